//! N:M sparsity.
//!
//! Of every `m` consecutive weights of a filter the `n` of largest magnitude stay, the earlier of equals, so that hardware finds as many
//! weights in each block. With `along = "channels"` the blocks of a convolution run along the input channels at one tap of the kernel: the
//! form that NVIDIA's sparse tensor cores take, 2:4 along the dimension that a product sums over, for maps that lie channels last. Without,
//! they run along the fan-in flattened as `[in, kh, kw]`. The two are the same for fully connected layers. A last block of fewer than `m`
//! weights keeps up to `n` too.
//!
//! Mishra, Latorre, Pool, Stosic, Stosic, Venkatesh, Yu, Micikevicius. "Accelerating Sparse Deep Neural Networks". arXiv:2104.08378, 2021
//! (2:4 sparsity: prune a trained network, then train again).
//! Differs from the paper: channels are not permuted first.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::pruning::n_m::{NM, prune};
//! use briquette_parts::blocks::Blocks;
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: NM = serde_json::from_value(serde_json::json!({ "n": 2, "m": 4, "except": ["fc3"] }))?;
//! let pruned = method.plan(net)?;
//! let first = pruned.nodes[pruned.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! assert!(first.chunks(4).all(|block| block.iter().filter(|w| **w != 0.0).count() == 2));
//!
//! // Any module of Burn, and `n` and blocks of `m` for each of its weights.
//! let layer = prune(LinearConfig::new(20, 10).init(&Device::flex()), |weight| Some((1, Blocks::along_channels(weight, 4))));
//! let weight = &weights(&layer)[0];
//! assert!(weight.filters().chunks(4).all(|block| block.iter().filter(|w| **w != 0.0).count() == 1));
//! # Ok(())
//! # }
//! ```

use briquette_core::coding::Weight;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::rank;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use burn::module::Module;
use serde::Deserialize;

use briquette_parts::blocks::Blocks;
use briquette_parts::masks::{mask, sizes};

/// Masks all but the largest `n` of every `m` consecutive weights.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NM {
    /// Weights that stay in each block.
    n: usize,
    /// Weights in a block.
    m: usize,
    /// What blocks of a convolution run along: `fan-in`, or `channels`, as tensor cores take them.
    #[serde(default)]
    along: Along,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Training afterwards.
    tune: Option<Recipe>,
}

/// What the blocks of a convolution run along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Along {
    /// The fan-in, flattened as `[in, kh, kw]`.
    #[default]
    FanIn,
    /// The input channels at one tap of the kernel.
    Channels,
}

impl Method for NM {
    const NAME: &'static str = "n-m";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Mishra et al., arXiv:2104.08378";
    const EXAMPLE: &'static str = "n = 2\nm = 4";
}

impl Pass for NM {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        net.finite()?;
        let net = self.plan(net)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        if self.n == 0 || self.n > self.m {
            return Err(Error::Invalid(format!("n-m: {} of {} weights cannot stay; n lies in 1..=m", self.n, self.m)));
        }
        let chosen = self.layers.without(&self.except, &net)?;
        for (index, node) in net.weighted().filter(|(index, _)| chosen.contains(index)) {
            let Some(shape) = net.nodes[index].op.weight_shape() else { continue };
            let (run, what) = match self.along {
                Along::FanIn => (shape[1..].iter().product(), "a fan-in of"),
                Along::Channels => (shape[1], "a number of input channels of"),
            };
            if run < self.m {
                let detail = format!("{what} {run} holds no block of {} weights; name it in `except`", self.m);
                return Err(Error::node(&node.name, detail));
            }
        }
        let free = |weight: &Weight| weight.node().is_some_and(|node| chosen.contains(&node));
        let blocks = |weight: &Weight| match self.along {
            Along::FanIn => Blocks::along_fan_in(weight, self.m),
            Along::Channels => Blocks::along_channels(weight, self.m),
        };
        Ok(prune(net, |weight| free(weight).then(|| (self.n, blocks(weight)))))
    }
}

/// Masks all but the largest `n` weights of every block of each tensor of rank 2 or more in any Burn module, for the `n`, at least 1, and the
/// blocks that `choose` gives; tensors for which it gives none are left alone. Weights that an earlier mask removed stay removed.
pub fn prune<M: Module>(module: M, choose: impl Fn(&Weight) -> Option<(usize, Blocks)>) -> M {
    mask(module, |weight| {
        let (n, blocks) = choose(weight)?;
        let sizes = sizes(&weight.filters());
        let open = weight.coding.mask.as_ref().map(|mask| weight.filtered(mask));
        let (places, mut mask) = (blocks.places(), vec![false; sizes.len()]);
        for (start, block) in (0..sizes.len()).step_by(weight.fan_in().max(1)).flat_map(|s| places.iter().map(move |b| (s, b))) {
            let open = open.as_ref().map(|open| block.iter().map(|place| open[start + place]).collect::<Vec<_>>());
            let stays = rank::highest(block.iter().map(|place| sizes[start + place]).collect(), open.as_deref(), n);
            block.iter().zip(stays).for_each(|(place, stays)| mask[start + place] = stays);
        }
        Some(weight.unfiltered(mask))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_handmade::{get, refusal, set, small};
    use briquette_parts::masks::mask_layers;

    #[test]
    fn every_block_keeps_its_largest_n() {
        for (n, m) in [(1, 2), (2, 4), (1, 4), (3, 4), (2, 5)] {
            let settings = serde_json::json!({ "n": n, "m": m, "except": ["conv1"] });
            let pruned = serde_json::from_value::<NM>(settings).unwrap().plan(small()).unwrap();
            for (index, before) in small().weighted().map(|(i, node)| (i, node.weight().unwrap())) {
                let after = pruned.nodes[index].weight().unwrap().values();
                if pruned.nodes[index].name == "conv1" {
                    assert_eq!(after, before.base);
                    continue;
                }
                let fan_in: usize = before.shape[1..].iter().product();
                let rows = before.base.chunks_exact(fan_in).zip(after.chunks_exact(fan_in));
                for (old, new) in rows.flat_map(|(old, new)| old.chunks(m).zip(new.chunks(m))) {
                    let mut sizes: Vec<f32> = old.iter().map(|v| v.abs()).collect();
                    sizes.sort_by(|a, b| b.total_cmp(a));
                    let kept: Vec<f32> =
                        old.iter().map(|v| if v.abs() >= sizes[n.min(sizes.len()) - 1] { *v } else { 0.0 }).collect();
                    assert_eq!(new, kept, "{n}:{m} of {old:?}");
                }
            }
        }
    }

    #[test]
    fn along_channels_two_of_four_stay_at_every_tap() {
        let settings = serde_json::json!({ "n": 2, "m": 4, "along": "channels", "except": ["conv1"] });
        let pruned = serde_json::from_value::<NM>(settings).unwrap().plan(small()).unwrap();
        let (before, after) = (get(&small(), "conv2", "weight"), get(&pruned, "conv2", "weight"));
        // [out 3, in 4, 2, 2]
        for (filter, tap) in (0..3).flat_map(|filter| (0..4).map(move |tap| (filter, tap))) {
            let block = |weights: &[f32]| [0, 1, 2, 3].map(|channel| weights[filter * 16 + channel * 4 + tap]);
            let (old, new) = (block(&before), block(&after));
            let mut order = [0, 1, 2, 3];
            order.sort_by(|a, b| old[*b].abs().total_cmp(&old[*a].abs()));
            assert!(
                order[..2].iter().all(|c| new[*c] == old[*c]) && order[2..].iter().all(|c| new[*c] == 0.0),
                "{old:?} {new:?}"
            );
        }
        let flat = serde_json::json!({ "n": 2, "m": 4, "except": ["conv*"] });
        let flat = serde_json::from_value::<NM>(flat).unwrap().plan(small()).unwrap();
        assert_eq!(get(&flat, "fc1", "weight"), get(&pruned, "fc1", "weight"));
        let error = refusal::<NM>(small(), serde_json::json!({ "n": 2, "m": 4, "along": "channels" }));
        assert_eq!(error, "node 'conv1': a number of input channels of 1 holds no block of 4 weights; name it in `except`");
    }

    #[test]
    fn what_an_earlier_pass_masked_takes_no_place_and_of_equals_the_earlier_stay() {
        let net = set(small(), "fc2", "weight", &[0.5; 15]);
        let fc2 = net.index("fc2").unwrap();
        let net = mask_layers(net, |i, _| (i == fc2).then(|| (0..15).map(|w| w % 5 != 0).collect())).unwrap();
        let settings = serde_json::json!({ "n": 2, "m": 4, "except": ["conv*", "fc1"] });
        let net = serde_json::from_value::<NM>(settings).unwrap().plan(net).unwrap();
        assert_eq!(get(&net, "fc2", "weight"), [0.0, 0.5, 0.5, 0.0, 0.5].repeat(3));
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused() {
        assert_eq!(
            refusal::<NM>(small(), serde_json::json!({ "n": 4, "m": 8 })),
            "node 'conv1': a fan-in of 4 holds no block of 8 weights; name it in `except`"
        );
        let all = refusal::<NM>(small(), serde_json::json!({ "n": 5, "m": 4 }));
        assert_eq!(all, "n-m: 5 of 4 weights cannot stay; n lies in 1..=m");
        let name = refusal::<NM>(small(), serde_json::json!({ "n": 2, "m": 4, "except": ["cov1"] }));
        assert!(name.contains("unknown layer 'cov1'; did you mean"), "{name}");
    }
}
