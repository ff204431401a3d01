//! N:M sparsity.
//!
//! Of every `m` consecutive weights along a neuron's fan-in, flattened as `[in, kh, kw]`, the `n` of largest magnitude stay, so that hardware
//! finds as many weights in each block. A last block of fewer than `m` weights keeps up to `n` too.
//!
//! Mishra, Latorre, Pool, Stosic, Stosic, Venkatesh, Yu, Micikevicius. "Accelerating Sparse Deep Neural Networks". arXiv:2104.08378, 2021
//! (2:4 sparsity: prune a trained network, then train again).
//! Differs from the paper: its blocks of a convolution run along the input channels of one pixel, for which channels are not permuted here.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::n_m::{NM, prune};
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
//! // Any module of Burn, and `n` and `m` for each of its weights.
//! let layer = prune(LinearConfig::new(20, 10).init(&Device::flex()), |_| Some((1, 4)));
//! let weight = &weights(&layer)[0];
//! assert!(weight.filters().chunks(4).all(|block| block.iter().filter(|w| **w != 0.0).count() == 1));
//! # Ok(())
//! # }
//! ```

use briquette_core::coding::Weight;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::training::{Recipe, tune};
use burn::module::Module;
use serde::Deserialize;

use crate::parts::except::excepted;
use crate::parts::masks::{highest, mask, sizes};

/// Masks all but the largest `n` of every `m` consecutive weights.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NM {
    /// Weights that stay in each block.
    n: usize,
    /// Weights in a block.
    m: usize,
    /// Layers left alone; a trailing `*` stands for any ending.
    #[serde(default)]
    except: Vec<String>,
    /// Training afterwards.
    tune: Option<Recipe>,
}

impl Method for NM {
    const NAME: &'static str = "n-m";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Mishra et al., arXiv:2104.08378";
    const EXAMPLE: &'static str = "n = 2\nm = 4";
}

impl Pass for NM {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.plan(net)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        if self.n == 0 || self.n > self.m {
            return Err(Error::Invalid(format!("n-m: {} of {} weights cannot stay; n lies in 1..=m", self.n, self.m)));
        }
        let spared = excepted(&net, &self.except)?;
        for (index, node) in net.weighted().filter(|(index, _)| !spared.contains(index)) {
            let Some(shape) = net.nodes[index].op.weight_shape() else { continue };
            let fan_in: usize = shape[1..].iter().product();
            if fan_in < self.m {
                let detail = format!("a fan-in of {fan_in} holds no block of {} weights; name it in `except`", self.m);
                return Err(Error::node(&node.name, detail));
            }
        }
        let free = |weight: &Weight| weight.node().is_some_and(|node| !spared.contains(&node));
        Ok(prune(net, |weight| free(weight).then_some((self.n, self.m))))
    }

    fn recipes(&mut self) -> Vec<&mut Recipe> {
        self.tune.iter_mut().collect()
    }
}

/// Masks all but the largest `n` of every `m` consecutive weights along the fan-in of each tensor of rank 2 or more in any Burn module, for
/// the `(n, m)`, both at least 1, that `choose` gives; tensors for which it gives none are left alone. Weights that an earlier mask removed
/// stay removed.
pub fn prune<M: Module>(module: M, choose: impl Fn(&Weight) -> Option<(usize, usize)>) -> M {
    mask(module, |weight| {
        let (n, m) = choose(weight)?;
        let kept = |block: &[f32]| highest(block, &sizes(block), n.min(block.len()) as f64 / block.len() as f64);
        let filters = weight.filters();
        let rows = filters.chunks(weight.fan_in().max(1));
        Some(weight.unfiltered(rows.flat_map(|row| row.chunks(m.max(1))).flat_map(kept).collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handmade::{refusal, small};

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
