//! Depthwise separable convolutions.
//!
//! A convolution `W` `[N, C, h, w]` becomes a depthwise one `D` `[C m, 1, h, w]`, which filters each channel by itself `m` times and has
//! stride, padding and dilation, and a pointwise one `P` `[N, C m, 1, 1]`, which mixes the maps and has the bias. Its weights and
//! multiply-accumulates are `m (1 / N + 1 / (h w))` of those before.
//!
//! With nothing between, the pair is a convolution: `W'[n, c] = sum_j P[n, c m + j] D[c m + j]`. The least-squares start is, for each input
//! channel, the singular value decomposition of `W[:, c]` as a matrix `[N, h w]`, cut at rank `m`, the roots of the singular values on both
//! sides; with `m = min(N, h w)` it is `W` itself.
//!
//! Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam. "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
//! Applications". 2017. arXiv:1704.04861.
//! Differs from the paper: batch norm and ReLU between the halves are a choice (`norm`), for there is no fit through them; and `m` can be more
//! than 1. A network's first convolution, which the paper leaves dense, is one to name in `except`.
//!
//! ```
//! use briquette_compact_filters::depthwise_separable::{DepthwiseSeparable, separable};
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([16, 8, 8], 1, &Device::flex());
//! let input = b.input();
//! let x = separable(&mut b, "block", input, Conv::new(32, 3).same(), 1, true);
//! let x = b.conv("dense", x, Conv::new(64, 3).same());
//! b.global_avg_pool("mean", x);
//! let net = b.finish().unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 16 * 9 + 32 * 16 + 64 * 32 * 9);
//!
//! let method: DepthwiseSeparable = serde_json::from_value(serde_json::json!({ "layers": ["dense"] })).unwrap();
//! let net = method.plan(net).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 16 * 9 + 32 * 16 + 32 * 9 + 64 * 32);
//! ```

use briquette_core::builder::{At, Builder, Conv};
use briquette_core::error::{Error, Result};
use briquette_core::net::Node;
use briquette_parts::algebra::{Matrix, svd};
use serde::Deserialize;

use crate::chosen::Init;
use crate::rewriting::{Compact, Rewriting, Site, linear, normalized, vanishes};

/// Replaces convolutions by depthwise separable ones.
pub type DepthwiseSeparable = Rewriting<Separable>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Separable {
    /// Filters of the depthwise convolution for each input channel.
    #[serde(default = "one")]
    multiplier: usize,
    /// Whether batch norm and ReLU stand between the two convolutions.
    #[serde(default)]
    norm: bool,
}

fn one() -> usize {
    1
}

/// Appends `name.depthwise`, `multiplier` filters for each channel with the geometry of `conv`, and `name.pointwise`, the filters and the bias
/// of `conv`; with `norm` batch norm and ReLU between them. Those behind the block are the caller's.
pub fn separable(b: &mut Builder, name: &str, at: At, conv: Conv, multiplier: usize, norm: bool) -> At {
    let (channels, depthwise) = (b.shape(at)[0], format!("{name}.depthwise"));
    let mut x = b.conv(&depthwise, at, Conv { filters: channels * multiplier, groups: channels, bias: false, ..conv });
    if norm {
        x = normalized(b, &depthwise, x);
    }
    b.conv(&format!("{name}.pointwise"), x, Conv { bias: conv.bias, ..Conv::new(conv.filters, 1) })
}

impl Compact for Separable {
    const NAME: &'static str = "depthwise-separable";
    const PAPER: &'static str = "Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam, 2017, arXiv:1704.04861";
    const EXAMPLE: &'static str = "except = [\"conv1\"]\ntune = { epochs = 10 }";

    fn check(&self, init: Init) -> Result<()> {
        if self.multiplier == 0 {
            return Err(Error::Invalid("`multiplier` is 0; each channel needs a filter".into()));
        }
        linear(self.norm, init)
    }

    fn width(&self, site: &Site) -> std::result::Result<usize, String> {
        let rank = site.conv.kernel.iter().product::<usize>().min(site.conv.filters);
        if site.init == Init::Fit && self.multiplier > rank {
            return Err(format!(
                "has filters of rank {rank} on each channel; a `multiplier` of more leaves filters without a start"
            ));
        }
        Ok(site.channels.saturating_mul(self.multiplier))
    }

    fn build(&self, b: &mut Builder, name: &str, at: At, site: &Site) -> At {
        separable(b, name, at, site.conv, self.multiplier, self.norm)
    }

    fn fit(&self, site: &Site, weight: &[f32], block: &[Node]) -> Vec<Vec<f32>> {
        let (filters, taps) = (site.conv.filters, site.conv.kernel.iter().product::<usize>());
        let maps = site.channels * self.multiplier;
        // Depthwise filters stay as drawn where the weight has nothing for them: where both halves were zero, neither would learn.
        let mut depthwise = block[0].weight().expect("the first is a convolution").values();
        let mut pointwise = vec![0.0; filters * maps];
        for channel in 0..site.channels {
            let of = Matrix::from_fn(filters, taps, |n, tap| f64::from(weight[(n * site.channels + channel) * taps + tap]));
            let found = svd(&of);
            let some = found.s.iter().enumerate().take(self.multiplier).filter(|(_, s)| !vanishes(**s, found.s[0]));
            for (rank, s) in some {
                let (map, root) = (channel * self.multiplier + rank, s.sqrt());
                let scaled = |value: &f64| (value * root) as f32;
                found.u.column(rank).iter().enumerate().for_each(|(n, u)| pointwise[n * maps + map] = scaled(u));
                found.v.column(rank).iter().enumerate().for_each(|(tap, v)| depthwise[map * taps + tap] = scaled(v));
            }
        }
        vec![depthwise, pointwise]
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::Padding;
    use briquette_core::cost::Cost;
    use briquette_handmade::{get, refusal, run, set};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::rewriting::proof::{self, holds, keeps, learns, learns_from_zeros};

    #[test]
    fn a_replaced_layer_is_planned_stored_and_trained() {
        for settings in [json!({}), json!({ "multiplier": 2, "init": "random" }), json!({ "norm": true, "init": "random" })] {
            holds::<DepthwiseSeparable>(5, &settings);
            learns::<DepthwiseSeparable>(5, &settings);
        }
    }

    #[test]
    fn a_pair_in_the_place_of_zeros_learns() {
        learns_from_zeros::<DepthwiseSeparable>(3);
    }

    #[test]
    fn with_as_many_filters_as_the_rank_nothing_changes() {
        let conv = Conv { stride: [2, 1], padding: Padding([[1, 0], [2, 1]]), dilation: [1, 2], ..Conv::new(12, 3) };
        for bias in [true, false] {
            keeps::<DepthwiseSeparable>(Conv { bias, ..conv }, &json!({ "multiplier": 9 }));
        }
    }

    /// Two channels to three, 3 by 3: `dwsep` of the reference values, computed with NumPy.
    #[test]
    #[rustfmt::skip]
    fn a_separable_kernel_is_taken_apart_into_its_halves() {
        let x = [0.76, 0.18, -1.78, 0.04, 0.42, -1.2, -1.02, -1.06, 0.78, -1.27, -0.92, -0.09, 0.11, -0.61, 1.56, 1.61,
            -1.28, 1.8, 0.46, 0.66, 0.78, -1.4, -1.29, 0.47, -0.74, 2.77, -0.46, 0.94, -0.99, 2.16, 1.88, -1.52];
        let depthwise: [f32; 18] = [0.35, 0.08, 1.55, -2.44, -0.34, 0.87, -0.39, -0.71, -1.55,
            0.29, -0.3, -1.56, 0.04, -0.82, 0.18, 0.64, 1.01, 0.27];
        let pointwise: [f32; 6] = [-1.12, -0.31, -0.47, 0.94, -0.81, 1.45];
        let expected = [-2.188054, 2.177725, -2.700216, -5.866753, 0.391857, 1.723805, -4.678852, -3.017906,
            1.790595, 5.806728, 1.577182, 0.415301, 3.66967, 0.511532, -1.206523, 4.964038,
            0.990196, -1.9834, -3.549816, -3.396878, -3.383013, 2.347885, 0.179728, -1.102291,
            3.575055, 4.930488, 3.632207, -1.576709, -1.56181, -1.711928, -2.918183, 3.052838,
            1.40333, -2.957925, -5.73384, -5.705665, -5.266732, 3.788278, -0.030732, -1.925771,
            5.712686, 8.101056, 5.787875, -2.439136, -2.198868, -2.644276, -4.646046, 5.10722];
        let dense: Vec<f32> = (0..54).map(|at| pointwise[at / 9] * depthwise[at % 18]).collect();
        let conv = Conv::new(3, 3).same().no_bias();
        let mut b = Builder::new([2, 4, 4], 1, &Device::flex());
        let input = b.input();
        let block = separable(&mut b, "mix", input, conv, 1, false);
        b.flatten("flatten", block);
        let block = set(set(b.finish().unwrap(), "mix.depthwise", "weight", &depthwise), "mix.pointwise", "weight", &pointwise);
        let fitted = run::<DepthwiseSeparable>(proof::alone([2, 4, 4], conv, &dense), json!({})).unwrap();
        for net in [block, fitted] {
            proof::near(&proof::output(&net, &x), &expected);
        }
    }

    /// `dwsep.fit` of the reference values.
    #[test]
    #[rustfmt::skip]
    fn the_fit_leaves_the_error_of_the_singular_values_left_out() {
        let dense = [-0.12, 0.58, -0.55, 1.16, -0.69, 1.58, 0.35, 0.72, 0.5, -0.9, 1.34, -1.64, 0.02, 0.72, 0.96, -0.72, -0.58, -0.31,
            -1.11, -0.34, -1.0, 0.39, -0.3, -0.92, -0.86, 0.04, -0.94, -1.51, -1.22, 0.12, -1.93, -0.02, 0.72, -0.75, -0.43, -1.62,
            -1.12, -0.71, 0.21, -0.52, -1.27, -0.68, -1.36, 1.61, -0.77, 1.41, -1.73, -1.11, 1.33, -0.4, 2.05, 0.71, 1.3, -1.68];
        let net = proof::alone([2, 4, 4], Conv::new(3, 3), &dense);
        let net = run::<DepthwiseSeparable>(net, json!({ "layers": ["mix"] })).unwrap();
        let [depthwise, pointwise] = ["mix.depthwise", "mix.pointwise"].map(|layer| get(&net, layer, "weight"));
        let off = |at: usize| f64::from(pointwise[at / 9] * depthwise[at % 18] - dense[at]).powi(2);
        let error = (0..54).map(off).sum::<f64>().sqrt();
        assert!((error - 5.212_806_41).abs() < 1e-5, "{error}");
    }

    /// `dwsep.cost` of the reference values: channels, filters, side of the output, multiply-accumulates before and after.
    #[test]
    fn the_cost_falls_to_one_over_the_filters_and_one_over_the_taps() {
        for (channels, filters, side, dense, separable) in
            [(512, 512, 14, 462_422_016, 52_283_392), (64, 128, 56, 231_211_008, 27_496_448)]
        {
            let mut b = Builder::new([channels, side, side], 1, &Device::flex());
            let x = b.conv("mix", b.input(), Conv::new(filters, 3).same());
            b.global_avg_pool("mean", x);
            let net = b.finish().unwrap();
            assert_eq!(Cost::of(&net).unwrap().macs(), dense);
            let plan = proof::planned::<DepthwiseSeparable>(net, &json!({ "init": "random" }));
            assert_eq!(Cost::of(&plan).unwrap().macs(), separable);
            let ratio = separable as f64 / dense as f64;
            assert!((ratio - (1.0 / filters as f64 + 1.0 / 9.0)).abs() < 1e-12);
        }
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let refused = |settings| refusal::<DepthwiseSeparable>(proof::net(3), settings);
        assert_eq!(refused(json!({ "multiplier": 0 })), "`multiplier` is 0; each channel needs a filter");
        assert!(refused(json!({ "norm": true })).starts_with("`norm` puts a rectifier between the convolutions, for which"));
        let rank = refused(json!({ "layers": ["mix"], "multiplier": 9 }));
        assert!(rank.starts_with("node 'mix': has filters of rank 8 on each channel"), "{rank}");
        let wide = refused(json!({ "layers": ["mix"], "multiplier": 1_usize << 60, "init": "random" }));
        assert!(wide.starts_with("node 'mix': would have") && wide.contains("more values than the limit"), "{wide}");
    }
}
