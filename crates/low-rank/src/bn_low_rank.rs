//! Low-rank convolutions in closed form, with batch norm.
//!
//! A kernel `W` `[N, C, kh, kw]` becomes a vertical convolution of `K` filters, `V` `[K, C, kh, 1]`, and a horizontal one, `H`
//! `[N, K, 1, kw]`. The best pair follows from the singular value decomposition of the unfolding `M[(c, i), (j, n)] = W[n, c, i, j]`,
//! `M = sum_k s_k u_k v_k^T`: `V[k, c, i] = sqrt(s_k) u_k[(c, i)]` and `H[n, k, j] = sqrt(s_k) v_k[(j, n)]`. This is the global optimum, of
//! error `sum_{k > K} s_k^2`. Weights fall from `N C kh kw` to `K (C kh + N kw)`. Stride, padding and dilation of each axis go to the
//! convolution along it; of a convolution in groups each group has `K / groups` channels in between. A batch norm behind the pair lets deep
//! chains train; it begins with the statistics of what it reads as its scale and shift, so that the network computes what it did.
//!
//! Tai, Xiao, Zhang, Wang, E. "Convolutional Neural Networks with Low-rank Regularization". ICLR 2016. arXiv:1511.06067.
//! Differs from the paper: its released networks train the norms from scratch, with a scale of 1 and a shift of 0, where ours leave the
//! function unchanged at first; `norm = "between"` puts them behind the vertical convolution.
//! Pairs in closed form are tuned at a tenth of the rate that AlexNet was trained with, 1e-3, in the authors' released settings; about one
//! epoch brings the accuracy back.
//!
//! ```
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use briquette_low_rank::bn_low_rank::BnLowRank;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([8, 12, 12], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(16, 3).same());
//! b.global_avg_pool("pool", x);
//! let method: BnLowRank = serde_json::from_value(serde_json::json!({ "ranks": 6, "norm": "none" })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 6 * (8 * 3 + 16 * 3), "instead of 16 * 8 * 9");
//! ```
//!
//! The decomposition alone, for a kernel of any module:
//!
//! ```
//! use briquette_low_rank::bn_low_rank;
//! use burn::nn::conv::{Conv2d, Conv2dConfig};
//! use burn::tensor::Device;
//!
//! let conv: Conv2d = Conv2dConfig::new([4, 6], [3, 3]).init(&Device::flex());
//! let [vertical, horizontal] = bn_low_rank::decompose(conv.weight.val(), 12).unwrap();
//! assert_eq!((vertical.dims(), horizontal.dims()), ([12, 4, 3, 1], [6, 12, 1, 3]));
//! ```

use briquette_core::error::Result;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::chain::{Layer, Link};
use crate::factorization::{Factorization, Factorized, Factors};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::norm::Norm;
use crate::ranks::Spectrum;
use crate::svd::{balanced, energy_of};

/// Puts a vertical and a horizontal convolution in the place of one.
pub type BnLowRank = Factorized<Pair>;

/// The form of the pair.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pair {
    /// Where batch norms come.
    #[serde(default = "after")]
    norm: Norm,
}

fn after() -> Norm {
    Norm::After
}

impl Factorization for Pair {
    const NAME: &'static str = "bn-low-rank";
    const PAPER: &'static str = "Tai, Xiao, Zhang, Wang, E, ICLR 2016, arXiv:1511.06067";
    const EXAMPLE: &'static str = "layers = [\"conv2\"]\nranks = { fraction = 0.2 }\ntune = { epochs = 4, lr = 1e-4 }";

    fn refuses(&self, layer: &Layer) -> Option<String> {
        unsplit(layer)
    }

    fn limits(&self, layer: &Layer) -> Vec<usize> {
        limits(layer)
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        links(layer, ranks[0])
    }

    fn spectra(&self, _: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        spectra(kernel)
    }

    fn factors(&self, _: &Layer, kernel: &Kernel, ranks: &[usize], seed: u64) -> Result<Factors> {
        factors(kernel, ranks[0], seed)
    }

    fn norm(&self) -> Norm {
        self.norm
    }
}

/// Rows and columns of the unfolding.
const SIDES: [&[usize]; 2] = [&[CHANNELS, HEIGHT], &[WIDTH, FILTERS]];

/// Why a layer has no pair of a vertical and a horizontal convolution.
pub(crate) fn unsplit(layer: &Layer) -> Option<String> {
    let [_, _, kh, kw] = layer.shape;
    let line = kh == 1 || kw == 1;
    line.then(|| {
        format!("has a kernel of {kh} by {kw}, which does not split into a vertical and a horizontal one; use svd for it")
    })
}

pub(crate) fn limits(layer: &Layer) -> Vec<usize> {
    let [n, c, kh, kw] = layer.shape;
    vec![(c * kh).min(n * kw)]
}

pub(crate) fn links(layer: &Layer, rank: usize) -> Vec<Link> {
    let [n, c, ..] = layer.shape;
    vec![layer.along(0, "vertical", [rank, c], 1), layer.along(1, "horizontal", [n, rank], 1)]
}

pub(crate) fn spectra(kernel: &Kernel) -> Vec<Spectrum> {
    vec![Spectrum::of(&kernel.unfold(SIDES[0], SIDES[1]))]
}

pub(crate) fn factors(kernel: &Kernel, rank: usize, seed: u64) -> Result<Factors> {
    let [n, c, kh, kw] = kernel.shape;
    let ([left, right], note) = balanced(&kernel.unfold(SIDES[0], SIDES[1]), rank, seed)?;
    let residual = (kernel.energy() - energy_of(&left, &right)).max(0.0);
    let vertical = Kernel::fold([rank, c, kh, 1], &left, SIDES[0], SIDES[1]);
    let horizontal = Kernel::fold([n, rank, 1, kw], &right, SIDES[0], SIDES[1]);
    Ok(Factors { kernels: vec![vertical, horizontal], residual, note })
}

/// The vertical `[K, C, kh, 1]` and the horizontal `[N, K, 1, kw]` kernel that come nearest to a kernel `[N, C, kh, kw]` (of one group).
///
/// # Errors
/// A rank that is not in `1..=min(C kh, N kw)`, and values that are not finite.
pub fn decompose(kernel: Tensor<4>, rank: usize) -> Result<[Tensor<4>; 2]> {
    let device = kernel.device();
    let Factors { kernels, .. } = factors(&Kernel::of(kernel), rank, 0)?;
    Ok([0, 1].map(|at| kernels[at].tensor(&device)))
}

#[cfg(test)]
mod tests {
    use briquette_core::cost::Cost;
    use briquette_core::net::Op;
    use briquette_core::pass::Pass as _;
    use briquette_core::zoo::Arch;
    use briquette_handmade::{outputs, refusal, run, small};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::golden::{self, near};
    use crate::proof::{apart, connected, convolutions, reproduces};
    use crate::separable::composed;

    #[test]
    fn full_rank_reproduces_the_layer() {
        for kernel in [[3, 3], [5, 2]] {
            reproduces::<BnLowRank>(convolutions(kernel), &json!({ "norm": "none" }));
        }
    }

    #[test]
    fn the_error_is_the_tail_of_the_spectrum() {
        let decay = golden::kernel([8, 6, 3, 3], golden::DECAY);
        let errors = [1.525220404, 1.105645945, 0.7964442963, 0.5651259124, 0.4314596407, 0.3113931555];
        for (rank, error) in (1..).zip(errors) {
            let found = factors(&decay, rank, 0).unwrap();
            let off = composed(&found.kernels[0], &found.kernels[1]).distance(&decay);
            assert!(near(off, error, 1e-6) && near(found.residual.sqrt(), error, 1e-6), "{rank}: {off} and {error}");
        }
        let third = factors(&decay, 3, 0).unwrap().kernels;
        assert_eq!((third[0].shape, third[1].shape), ([3, 6, 3, 1], [8, 3, 1, 3]));
        assert!(third.iter().all(|kernel| near(kernel.energy().sqrt(), 1.797106424, 1e-7)));
        let first = [-0.02962537971, 0.02799594061, 0.1352183185, 0.06262344697, 0.07530067207, 0.02792225641];
        assert!(composed(&third[0], &third[1]).values.iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-8));
        let singular = &spectra(&golden::kernel([6, 4, 5, 5], golden::FIVE))[0].singular;
        assert!(near(singular[0], 1.490707042, 1e-7) && near(singular[19], 0.02513380871, 1e-6) && singular.len() == 20);
    }

    /// What a network of the zoo costs in convolutions, before and after, with ranks by layer.
    fn counted(arch: &str, ranks: &serde_json::Value) -> [[u64; 3]; 2] {
        let arch = Arch::named(arch).unwrap();
        let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let method: BnLowRank = serde_json::from_value(json!({ "ranks": ranks, "norm": "none" })).unwrap();
        let planned = method.plan(net.deep_clone()).unwrap();
        [net, planned].map(|net| {
            let cost = Cost::of(&net).unwrap();
            let convolutions = || cost.layers.iter().filter(|layer| layer.kind == "conv2d");
            let weights = convolutions().map(|layer| layer.weights as u64).sum();
            [weights, convolutions().map(|layer| layer.macs).sum(), cost.params() as u64]
        })
    }

    #[test]
    fn alexnet_and_vgg_16_cost_what_the_released_networks_cost() {
        let alexnet = counted("alexnet", &json!({ "conv1": 8, "conv2": 40, "conv3": 60, "conv4": 100, "conv5": 200 }));
        assert_eq!(alexnet, [[2_332_704, 665_784_864, 60_965_224], [466_312, 125_897_640, 59_098_832]]);
        let vgg = json!({ "conv1_1": 5, "conv1_2": 24, "conv2_1": 48, "conv2_2": 48, "conv3_1": 64, "conv3_2": 128, "conv3_3": 160, "conv4_1": 192,
            "conv4_2": 192, "conv4_3": 256, "conv5_1": 320, "conv5_2": 320, "conv5_3": 320 });
        let vgg = counted("vgg16", &vgg);
        assert_eq!(vgg, [[14_710_464, 15_346_630_656, 138_357_544], [5_358_573, 4_944_393_216, 129_005_653]]);
    }

    #[test]
    fn norms_leave_the_function_unchanged_at_first() {
        for (norm, name) in [("after", "conv2.horizontal.norm"), ("between", "conv2.vertical.norm")] {
            let settings = |norm: &str| json!({ "layers": ["conv2"], "ranks": 2, "break-even": "off", "norm": norm });
            let plain = run::<BnLowRank>(small(), settings("none")).unwrap();
            let normed = run::<BnLowRank>(small(), settings(norm)).unwrap();
            assert!(matches!(normed.nodes[normed.index(name).unwrap()].op, Op::BatchNorm(_)));
            assert_eq!(normed.nodes.len(), plain.nodes.len() + 1);
            assert!(apart(&outputs(&normed), &outputs(&plain)) < 1e-5, "{norm}");
            // Whatever its statistics, such a norm changes nothing; they are those of what it reads.
            let of = |parameter: &str| briquette_handmade::get(&normed, name, parameter);
            assert!(of("mean").iter().any(|mean| *mean != 0.0) && of("var").iter().any(|variance| *variance != 1.0));
            let roots: Vec<f32> = of("var").iter().map(|variance| (variance + 1e-5).sqrt()).collect();
            assert!(apart(&of("gamma"), &roots) < 1e-6 && of("beta") == of("mean"));
            let planned = serde_json::from_value::<BnLowRank>(settings(norm)).unwrap().plan(small()).unwrap();
            assert_eq!(planned.shapes().unwrap(), normed.shapes().unwrap());
        }
        // The first convolution has a norm already.
        let settings = json!({ "layers": ["conv1"], "ranks": 1, "break-even": "off" });
        assert_eq!(run::<BnLowRank>(small(), settings).unwrap().nodes.len(), small().nodes.len() + 1);
    }

    #[test]
    fn layers_that_do_not_split_and_ranks_that_do_not_fit_are_refused() {
        let why =
            "node 'layer': has a kernel of 1 by 1, which does not split into a vertical and a horizontal one; use svd for it";
        assert_eq!(refusal::<BnLowRank>(connected(), json!({ "layers": ["layer"], "ranks": 2 })), why);
        let grouped = || convolutions([3, 3]).remove(3);
        let refused = refusal::<BnLowRank>(grouped(), json!({ "ranks": 3 }));
        assert_eq!(refused, "node 'layer': rank 3 is not a multiple of its 2 groups");
        let budget = refusal::<BnLowRank>(convolutions([3, 3]).remove(0), json!({ "ranks": { "macs": 0.01 } }));
        assert!(budget.starts_with(
            "`ranks = { macs = 0.01 }` cannot be met: at the least ranks of all its layers the network comes to macs = 0."
        ));
    }
}
