//! Replaces the network by one from a container.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::pass::Pass;
//! use briquette_core::passes::{Load, Save};
//! use briquette_data::Dataset;
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
//! let (file, before, mut host) = ("before.brq".to_string(), net.to_state(), Memory::default());
//! let mut cx = Context::new(&Device::flex(), 1, &data, &mut host);
//! let mut net = Save { file: file.clone() }.run(net, &mut cx)?;
//! // Whatever is done now can be undone.
//! net.nodes.truncate(2);
//! let net = Load { file }.run(net, &mut cx)?;
//! assert_eq!(net.to_state(), before);
//! # Ok(())
//! # }
//! ```

use serde::Deserialize;

use crate::context::Context;
use crate::error::Result;
use crate::net::Net;
use crate::pass::{Method, Pass};

/// Reads a container; masks and codebooks in it become codings again, so that tuning goes on from there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Load {
    /// The container.
    pub file: String,
}

impl Method for Load {
    const NAME: &'static str = "load";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Briquette's container, docs/container.md";
    const EXAMPLE: &'static str = "file = \"before-tuning.brq\"";
}

impl Pass for Load {
    fn run(&self, _: Net, cx: &mut Context<'_>) -> Result<Net> {
        cx.load(&self.file)
    }

    fn replaces(&self) -> bool {
        true
    }

    fn loads(&self) -> Option<&str> {
        Some(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::super::handmade::{coded, context, images};
    use super::*;
    use crate::coding::Coding;
    use crate::context::{Host, Memory};
    use crate::stored::Storage;
    use crate::zoo::Arch;
    use briquette_runtime::{Coded, Permission};

    #[test]
    fn the_network_of_the_file_takes_the_place_of_the_one_at_hand() {
        let masked = coded(Coding { mask: Some((0..12).map(|i| i % 3 == 0).collect()), ..Coding::default() });
        let (data, mut host) = (images(), Memory::default());
        host.write("before.brq", &masked.to_model(Storage::default()).unwrap().to_bytes().unwrap()).unwrap();
        let load = Load { file: "before.brq".into() };
        let loaded = load.run(coded(Coding::default()), &mut context(&data, &mut host)).unwrap();
        let weights = |net: &Net| net.nodes[2].weight().unwrap();
        assert_eq!(weights(&loaded).values(), weights(&masked).values());
        assert_eq!(weights(&loaded).coding.mask, weights(&masked).coding.mask);
    }

    #[test]
    fn files_that_are_missing_damaged_or_of_other_inputs_are_refused() {
        let (data, mut host) = (images(), Memory::default());
        let other = Arch::named("lenet5").unwrap();
        let other = other.build(&other.wanted(), &burn::tensor::Device::flex()).unwrap().to_model(Storage::default());
        host.files.insert("other.brq".into(), other.unwrap().to_bytes().unwrap());
        host.files.insert("damaged.brq".into(), b"BRQ".to_vec());
        let mut refusal = |file: &str| {
            let load = Load { file: file.into() };
            load.run(coded(Coding::default()), &mut context(&data, &mut host)).unwrap_err().to_string()
        };
        assert_eq!(refusal("none.brq"), "cannot read none.brq: no pass has written it");
        let images = "it takes images of shape [1, 28, 28], the data have [1, 2, 2]";
        let classes = "it tells 10 classes apart, the data have 3";
        let expected =
            format!("other.brq: the network does not fit the data 'handmade': {images}; {classes}; name a pair that fits");
        assert_eq!(refusal("other.brq"), expected);
        assert_eq!(refusal("damaged.brq"), "damaged.brq");
    }

    #[test]
    fn a_container_with_values_that_are_not_finite_is_refused_with_their_number() {
        let (data, mut host) = (images(), Memory::default());
        let mut model = coded(Coding::default()).to_model(Storage::default()).unwrap();
        let (_, weight) = &mut model.nodes[2].tensors[0];
        let values: Vec<f32> = weight.decode().iter().enumerate().map(|(i, v)| if i % 5 == 1 { f32::NAN } else { *v }).collect();
        *weight = Coded::encode(weight.shape(), &values, None, &Permission::default()).unwrap();
        host.files.insert("nan.brq".into(), model.to_bytes().unwrap());
        let load = Load { file: "nan.brq".into() };
        let error = load.run(coded(Coding::default()), &mut context(&data, &mut host)).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string() == "nan.brq" && cause.contains("3 of 12 value(s)") && cause.contains(".weight'"), "{cause}");
    }
}
