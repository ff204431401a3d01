//! Inverted residuals with linear bottlenecks.
//!
//! A convolution of `N` filters on `C` channels becomes an expansion by one pixel to `t C` maps, left out for `t = 1`, a depthwise convolution
//! with kernel, stride, padding and dilation of the one before, both followed by batch norm and ReLU6, and a projection by one pixel to `N`
//! maps with batch norm and no activation. Where the block's input and output have the same shape and the stride is 1, the input is added.
//! Weights of a kernel of `k` taps: `t C (C + k + N)`, without the expansion `C (k + N)`.
//!
//! Sandler, Howard, Zhu, Zhmoginov, Chen. "MobileNetV2: Inverted Residuals and Linear Bottlenecks". CVPR 2018. arXiv:1801.04381.
//! Differs from the paper: the network keeps its widths, of which the paper's are narrower, so that blocks of 3 by 3 with `t = 6` are no
//! smaller than what they replace where `C` and `N` are about the same; an activation behind the replaced layer stays; and where a batch norm
//! follows that layer already, it serves the projection, unless the input is added before it. Nothing is fitted: rectifiers stand between the
//! convolutions.
//!
//! ```
//! use briquette_compact_filters::inverted_residual::{InvertedResidual, inverted_residual};
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([16, 8, 8], 1, &Device::flex());
//! let input = b.input();
//! let x = inverted_residual(&mut b, "block", input, Conv::new(16, 3).same(), 6, true);
//! let x = b.conv("dense", x, Conv::new(64, 3).same().stride(2));
//! b.global_avg_pool("mean", x);
//! let net = b.finish().unwrap();
//! assert!(net.index("block.add").is_ok());
//!
//! let settings = serde_json::json!({ "layers": ["dense"], "expand": 4, "init": "random" });
//! let method: InvertedResidual = serde_json::from_value(settings).unwrap();
//! let net = method.plan(net).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 6 * 16 * (16 + 9 + 16) + 4 * 16 * (16 + 9 + 64));
//! ```

use briquette_core::builder::{At, Builder};
use briquette_core::error::{Error, Result};
use briquette_core::net::Node;
use serde::Deserialize;

use crate::chosen::Init;
use crate::rewriting::{Compact, Rewriting, Site};

pub use briquette_core::zoo::inverted_residual;

/// Replaces convolutions by inverted residuals.
pub type InvertedResidual = Rewriting<Inverted>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inverted {
    /// Maps inside the block for each input channel.
    #[serde(default = "six")]
    expand: usize,
}

fn six() -> usize {
    6
}

impl Compact for Inverted {
    const NAME: &'static str = "inverted-residual";
    const PAPER: &'static str = "Sandler, Howard, Zhu, Zhmoginov, Chen, CVPR 2018, arXiv:1801.04381";
    const EXAMPLE: &'static str = "layers = [\"conv4\"]\nexpand = 1\ninit = \"random\"\ntune = { epochs = 10 }";

    fn check(&self, init: Init) -> Result<()> {
        if self.expand == 0 {
            return Err(Error::Invalid(
                "`expand` is 0, which leaves no maps inside the block; 1 leaves the expansion out".into(),
            ));
        }
        match init {
            Init::Random => Ok(()),
            Init::Fit => Err(Error::Invalid(
                "inverted residuals have rectifiers inside, for which there is no least-squares start; set init = \"random\""
                    .into(),
            )),
        }
    }

    fn width(&self, site: &Site) -> std::result::Result<usize, String> {
        Ok(site.channels.saturating_mul(self.expand))
    }

    fn build(&self, b: &mut Builder, name: &str, at: At, site: &Site) -> At {
        inverted_residual(b, name, at, site.conv, self.expand, !site.normed)
    }

    fn fit(&self, _: &Site, _: &[f32], _: &[Node]) -> Vec<Vec<f32>> {
        unreachable!("refused with the settings")
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Conv;
    use briquette_core::cost::Cost;
    use briquette_handmade::{refusal, set};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::rewriting::proof::{self, holds, learns};

    #[test]
    fn a_replaced_layer_is_planned_stored_and_trained() {
        for expand in [1, 2, 6] {
            let settings = json!({ "expand": expand, "init": "random" });
            holds::<InvertedResidual>(5, &settings);
            learns::<InvertedResidual>(5, &settings);
        }
    }

    /// `inverted_residual` of the reference values, blocks of MobileNetV2: channels, filters, expansion, side, stride, weights, parameters of
    /// batch norms, multiply-accumulates, residual.
    #[test]
    fn blocks_cost_what_those_of_mobilenet_v2_do() {
        for (channels, filters, expand, side, stride, weights, norms, macs, residual) in [
            (16, 24, 6, 112, 2, 4_704, 432, 29_202_432, false),
            (24, 24, 6, 56, 1, 8_208, 624, 25_740_288, true),
            (32, 16, 1, 112, 1, 800, 96, 10_035_200, false),
            (96, 160, 6, 14, 2, 152_640, 2_624, 15_607_872, false),
        ] {
            let mut b = Builder::new([channels, side, side], 1, &Device::flex());
            let conv = Conv::new(filters, 3).same().stride(stride);
            let input = b.input();
            let x = inverted_residual(&mut b, "block", input, conv, expand, true);
            b.global_avg_pool("mean", x);
            let net = b.finish().unwrap();
            let cost = Cost::of(&net).unwrap();
            assert_eq!((cost.weights(), cost.params() - cost.weights(), cost.macs()), (weights, norms, macs));
            assert_eq!(net.index("block.add").is_ok(), residual);
            assert_eq!(net.index("block.expand").is_ok(), expand > 1);
        }
    }

    #[test]
    fn what_is_between_is_cut_at_six_and_the_input_comes_back() {
        // One channel through one filter each way; the norms hand on what they get, but for their epsilon of 1e-5.
        let mut b = Builder::new([1, 1, 3], 1, &Device::flex());
        let input = b.input();
        let x = inverted_residual(&mut b, "block", input, Conv::new(1, 1), 2, true);
        b.flatten("flatten", x);
        let mut net = b.finish().unwrap();
        for (layer, weight) in [("expand", &[1.0, -1.0][..]), ("depthwise", &[2.0, 0.5]), ("project", &[1.0, 10.0])] {
            net = set(net, &format!("block.{layer}"), "weight", weight);
        }
        // 1: 2 * 1; 5: 2 * 5 is cut; -8: 8 is cut to 6, and half of that times ten is left.
        let output = proof::output(&net, &[1.0, 5.0, -8.0]);
        let expected = [1.0 + 2.0, 5.0 + 6.0, -8.0 + 30.0];
        assert!(output.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-3), "{output:?}");
    }

    #[test]
    fn a_norm_that_follows_serves_the_projection() {
        let after = |normed: bool, filters: usize| {
            let mut b = Builder::new([4, 5, 5], 1, &Device::flex());
            let mut x = b.conv("mix", b.input(), Conv::new(filters, 3).same());
            if normed {
                x = b.batch_norm("norm", x);
            }
            b.global_avg_pool("mean", x);
            let settings = json!({ "layers": ["mix"], "init": "random" });
            proof::planned::<InvertedResidual>(b.finish().unwrap(), &settings).index("mix.project.norm").is_ok()
        };
        assert_eq!([after(true, 6), after(true, 4), after(false, 6)], [false, true, true]);
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let refused = |settings| refusal::<InvertedResidual>(proof::net(3), settings);
        assert!(refused(json!({ "expand": 0, "init": "random" })).starts_with("`expand` is 0, which leaves no maps"));
        assert!(refused(json!({})).ends_with("there is no least-squares start; set init = \"random\""));
        let huge = refused(json!({ "layers": ["mix"], "expand": 1_usize << 40, "init": "random" }));
        assert!(huge.contains("more values than the limit"), "{huge}");
        let dearer = refused(json!({ "expand": 40, "init": "random" }));
        assert!(dearer.starts_with("node 'lift': is a convolution by one pixel"), "{dearer}");
    }
}
