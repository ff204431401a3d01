//! Writes the network into a container and goes on with what the container decodes to.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::pass::Pass;
//! use briquette_core::passes::Encode;
//! use briquette_data::Dataset;
//! use briquette_runtime::Model;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let net = b.finish()?;
//! let images = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let mut host = Memory::default();
//! let decoded = Encode::default().run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! let model = Model::from_bytes(&host.files["model.brq"])?;
//! assert_eq!(model.nodes[2].tensor("weight").map(|coded| coded.decode()), decoded.nodes[2].weight().map(|w| w.values()));
//! # Ok(())
//! # }
//! ```

use briquette_runtime::{Coder, Model, ValueFormat};
use serde::Deserialize;

use crate::context::Context;
use crate::error::Result;
use crate::net::Net;
use crate::pass::{Method, Pass};
use crate::stored::Storage;

/// Codes every weight as its coding says: masked weights by relative index, shared weights by codebook index, the streams by `coder`.
///
/// What follows works on the decoded network, so that every later figure is one of the file and not of the network in memory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Encode {
    /// How codebook indices and gaps are coded: `packed`, `huffman` or `entropy` (rANS).
    pub coder: Coder,
    /// How values outside codebooks are written: `f32`, or `f16`, which rounds biases and free weights to half precision.
    pub float: Float,
    /// Name of the file.
    pub file: String,
}

/// Formats of values that no codebook holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Float {
    /// IEEE single precision: nothing is lost.
    F32,
    /// IEEE half precision.
    F16,
}

impl Default for Encode {
    fn default() -> Self {
        Self { coder: Coder::Huffman, float: Float::F32, file: "model.brq".into() }
    }
}

impl Method for Encode {
    const NAME: &'static str = "encode";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Han, Mao, Dally, \"Deep Compression\", ICLR 2016";
    const EXAMPLE: &'static str = "coder = \"huffman\"";
}

impl Pass for Encode {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let float = match self.float {
            Float::F32 => ValueFormat::F32,
            Float::F16 => ValueFormat::F16,
        };
        cx.storage = Storage { coder: self.coder, float };
        let bytes = net.to_model(cx.storage)?.to_bytes()?;
        cx.host.write(&self.file, &bytes)?;
        Net::from_model(&Model::from_bytes(&bytes)?, &cx.device)
    }

    fn saves(&self) -> Option<&str> {
        Some(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::super::handmade::{coded, context, images};
    use super::*;
    use crate::coding::{Coding, Source};
    use crate::context::Memory;

    #[test]
    fn what_follows_works_on_what_the_file_holds() {
        let (data, mut host, net) = (images(), Memory::default(), coded(Coding::default()));
        let settings = serde_json::json!({ "coder": "entropy", "float": "f16", "file": "half.brq" });
        let mut cx = context(&data, &mut host);
        let decoded = serde_json::from_value::<Encode>(settings).unwrap().run(net.deep_clone(), &mut cx).unwrap();
        let storage = cx.storage;
        assert_eq!(storage, Storage { coder: Coder::Entropy, float: ValueFormat::F16 });
        assert!(decoded.to_model(storage).unwrap().to_bytes().unwrap() == host.files["half.brq"]);
        // Rounding to half precision is seen by whatever comes next.
        let (before, after) = (net.nodes[2].weight().unwrap().values(), decoded.nodes[2].weight().unwrap().values());
        assert!(before != after && before.iter().zip(after).all(|(a, b)| (a - b).abs() <= a.abs() / 2048.0));
    }

    #[test]
    fn masks_and_codebooks_come_back_as_codings() {
        let mask = Some((0..12).map(|i| i < 5).collect::<Vec<bool>>());
        let source = Source::Codebook { centroids: vec![-0.5, 0.25], assignment: vec![0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0] };
        let (data, mut host) = (images(), Memory::default());
        let net = coded(Coding { mask: mask.clone(), source });
        let decoded = Encode::default().run(net, &mut context(&data, &mut host)).unwrap();
        let weight = decoded.nodes[2].weight().unwrap();
        assert_eq!(weight.values(), [-0.5, 0.25, 0.25, -0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(weight.coding.mask, mask);
        assert!(matches!(weight.coding.source, Source::Codebook { .. }));
    }
}
