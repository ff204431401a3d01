//! Makes batch norms part of the layers before them, for a network that is trained no further.
//!
//! With `a = gamma / sqrt(var + epsilon)` a layer's weights become `a w` and its bias `beta + a (bias - mean)`, filter by filter
//! ([`Net::fold_norms`]). After a training in few bits the codes of the weights stay and each filter's step becomes `|a| step`, so that
//! products of integers, and one factor and one bias for each filter, are left of a layer.
//!
//! ```
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::passes::FoldNorms;
//! use briquette_data::Dataset;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let conv = b.conv("conv", b.input(), Conv::new(2, 1));
//! let norm = b.batch_norm("norm", conv);
//! b.global_avg_pool("pool", norm);
//! let net = b.finish()?;
//! let images = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let net = FoldNorms {}.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
//! assert!(net.index("norm").is_err());
//! # Ok(())
//! # }
//! ```
//!
//! Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko. "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference". CVPR 2018. arXiv:1712.05877, section 3.2.
//! Differs from the paper: they fold in every step of the training, so that weights are rounded as they will be; here the grids of a training
//! with norms are what stays.

use serde::Deserialize;

use crate::context::Context;
use crate::error::Result;
use crate::net::Net;
use crate::pass::{Method, Pass};

/// Folds every batch norm that alone reads a convolution or fully connected layer; norms behind anything else stay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldNorms {}

impl Method for FoldNorms {
    const NAME: &'static str = "fold-norms";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Jacob et al., CVPR 2018, arXiv:1712.05877, section 3.2";
    const EXAMPLE: &'static str = "";
}

impl Pass for FoldNorms {
    fn run(&self, net: Net, _: &mut Context<'_>) -> Result<Net> {
        net.fold_norms()
    }

    fn plan(&self, net: Net) -> Result<Net> {
        net.fold_norms()
    }
}

#[cfg(test)]
mod tests {
    use super::super::handmade::{context, images};
    use super::*;
    use crate::builder::{Builder, Conv};
    use crate::context::Silent;
    use burn::tensor::Device;

    #[test]
    fn norms_go_in_the_plan_as_in_the_run() {
        let mut b = Builder::new([1, 2, 2], 11, &Device::flex());
        let conv = b.conv("conv", b.input(), Conv::new(3, 1));
        let norm = b.batch_norm("norm", conv);
        b.global_avg_pool("pool", norm);
        let (data, mut host, net) = (images(), Silent, b.finish().unwrap());
        let planned = FoldNorms {}.plan(net.deep_clone()).unwrap();
        let run = FoldNorms {}.run(net, &mut context(&data, &mut host)).unwrap();
        assert!(planned.index("norm").is_err() && planned.to_state() == run.to_state());
        assert!(serde_json::from_str::<FoldNorms>(r#"{ "epsilon": 1e-5 }"#).is_err());
    }
}
