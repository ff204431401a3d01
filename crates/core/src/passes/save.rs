//! Writes the network into a container without changing it.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::pass::Pass;
//! use briquette_core::passes::Save;
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
//! let net = Save { file: "now.brq".into() }.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! assert_eq!(Model::from_bytes(&host.files["now.brq"])?.nodes.len(), net.nodes.len());
//! # Ok(())
//! # }
//! ```

use serde::Deserialize;

use crate::context::Context;
use crate::error::Result;
use crate::net::Net;
use crate::pass::{Method, Pass};

/// Writes a container as the storage in force says (packed until an `encode` pass has run).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Save {
    /// Name of the file, within the run's folder unless it is absolute.
    pub file: String,
}

impl Method for Save {
    const NAME: &'static str = "save";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Briquette's container, docs/container.md";
    const EXAMPLE: &'static str = "file = \"before-tuning.brq\"";
}

impl Pass for Save {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        cx.host.write(&self.file, &net.to_model(cx.storage)?.to_bytes()?)?;
        Ok(net)
    }

    fn saves(&self) -> Option<&str> {
        Some(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use briquette_runtime::{Coder, Model};

    use super::super::handmade::{coded, context, images};
    use super::*;
    use crate::coding::Coding;
    use crate::context::{Memory, Silent};

    #[test]
    fn the_container_is_written_as_the_storage_in_force_says_and_the_network_stays() {
        let (data, mut host, net) = (images(), Memory::default(), coded(Coding::default()));
        let save = Save { file: "now.brq".into() };
        let mut cx = context(&data, &mut host);
        cx.storage.coder = Coder::Entropy;
        let storage = cx.storage;
        assert!(save.run(net.deep_clone(), &mut cx).unwrap().to_state() == net.to_state());
        let model = net.to_model(storage).unwrap();
        assert!(
            host.files["now.brq"] == model.to_bytes().unwrap() && Model::from_bytes(&host.files["now.brq"]).unwrap() == model
        );
        let refused = save.run(net, &mut context(&data, &mut Silent)).unwrap_err().to_string();
        assert_eq!(refused, "cannot write now.brq: this host has no files");
    }
}
