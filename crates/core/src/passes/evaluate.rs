//! Measures the network as it is.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::passes::Evaluate;
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
//! let before = net.to_state();
//! let net = Evaluate {}.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
//! assert_eq!(net.to_state(), before);
//! # Ok(())
//! # }
//! ```

use serde::Deserialize;

use crate::context::Context;
use crate::error::Result;
use crate::net::Net;
use crate::pass::{Method, Pass};

/// Changes nothing; the runner measures after every pass, so this adds a row to the report.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {}

impl Method for Evaluate {
    const NAME: &'static str = "evaluate";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Cheng, Wang, Zhou, Zhang, arXiv:1710.09282, section 7";
    const EXAMPLE: &'static str = "";
}

impl Pass for Evaluate {
    fn run(&self, net: Net, _: &mut Context<'_>) -> Result<Net> {
        Ok(net)
    }
}

#[cfg(test)]
mod tests {
    use super::super::handmade::{coded, context, images};
    use super::*;
    use crate::coding::Coding;
    use crate::context::Silent;
    use crate::stored::Storage;

    #[test]
    fn nothing_changes_and_no_setting_is_taken() {
        let (data, mut host, net) = (images(), Silent, coded(Coding::default()));
        let mut cx = context(&data, &mut host);
        assert!(Evaluate {}.run(net.deep_clone(), &mut cx).unwrap().to_state() == net.to_state());
        assert_eq!((cx.storage, cx.curve.len(), cx.stage), (Storage::default(), 0, 0));
        assert!(serde_json::from_str::<Evaluate>(r#"{ "split": "test" }"#).is_err());
    }
}
