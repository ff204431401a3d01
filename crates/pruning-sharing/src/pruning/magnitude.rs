//! Magnitude pruning.
//!
//! Removes the weights of smallest absolute value and retrains the rest; the removed ones stay zero. The threshold of a layer is set by
//! the share to keep, by a quality parameter `q` times the layer's standard deviation (`|w| < q * std(W)` goes), or for all layers
//! together. With several rounds, pruning and tuning alternate while the kept share falls. Shares hold whatever ties there are: of equal
//! magnitudes the earlier stay. With `block = b`, weights of `b` consecutive input channels at one tap of a kernel go or stay together, by
//! the mean of their magnitudes.
//!
//! Han, Pool, Tran, Dally. "Learning both Weights and Connections for Efficient Neural Networks". NIPS 2015. arXiv:1506.02626.
//! The cubic schedule is that of Zhu, Gupta. "To Prune, or Not to Prune". ICLR 2018 workshop. arXiv:1710.01878.
//! Differs from the paper: biases are never pruned, and the cubic schedule runs over rounds instead of steps.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_pruning_sharing::pruning::magnitude::prune;
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! // Any module of Burn, and the share to keep of each of its weights.
//! let layer = prune(LinearConfig::new(20, 10).init(&Device::flex()), |_| Some(0.1));
//! let weight = &weights(&layer)[0];
//! assert_eq!(weight.coding.kept(200), 20);
//! assert_eq!(weight.values.iter().filter(|w| **w != 0.0).count(), 20);
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::pruning::magnitude::Magnitude;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: Magnitude = serde_json::from_value(serde_json::json!({ "keep": 0.1, "tune": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! assert_eq!(values.iter().filter(|w| **w != 0.0).count(), values.len() / 10);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::coding::Weight;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{Layers, PerLayer, Ratio};
use burn::module::Module;
use serde::Deserialize;

use briquette_parts::blocks::Blocks;
use briquette_parts::masks::{check_shares, highest_blocks, keep_highest, keep_highest_of_all, mask, sizes};

/// Masks small weights, round by round.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Magnitude {
    /// Share of each layer's weights that stays.
    keep: Option<PerLayer<Ratio>>,
    /// Quality parameter `q`: weights below `q` times the layer's standard deviation go.
    quality: Option<PerLayer<f64>>,
    /// Share of all weights that stays, the threshold being one for the whole network.
    global: Option<Ratio>,
    /// How many weights go or stay together, those of consecutive input channels at one tap of a kernel, by their mean magnitude: 4 is what
    /// products of bytes take at once.
    #[serde(default = "one")]
    block: usize,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// How many times pruning and tuning alternate.
    #[serde(default = "one")]
    rounds: usize,
    /// How the kept share falls from round to round.
    #[serde(default)]
    schedule: Falling,
    /// Training after each round.
    tune: Option<Recipe>,
}

/// How the removed share grows over the rounds, `t = round / rounds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Falling {
    /// The kept share is `keep^t`: each round removes the same share of what is left.
    #[default]
    Geometric,
    /// The removed share is `(1 - keep) * (1 - (1 - t)^3)`.
    Cubic,
}

impl Method for Magnitude {
    const NAME: &'static str = "magnitude";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Han, Pool, Tran, Dally, NIPS 2015, arXiv:1506.02626";
    const EXAMPLE: &'static str = "keep = 0.1";
}

impl Pass for Magnitude {
    fn run(&self, mut net: Net, cx: &mut Context<'_>) -> Result<Net> {
        self.check(&net)?;
        net.finite()?;
        for round in 1..=self.rounds {
            net = self.prune(net, self.schedule.at(round as f64 / self.rounds as f64))?;
            if let Some(recipe) = &self.tune {
                net = fit(net, recipe, Extras::default(), cx)?;
            }
        }
        Ok(net)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.check(&net)?;
        self.prune(net, Falling::end())
    }

    fn estimate(&self) -> Option<&'static str> {
        (self.keep.is_none()).then_some("the threshold parts the layers by the weights at hand, which training may still change")
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    fn shorten(&mut self) {
        self.rounds = self.rounds.min(2);
    }
}

impl Magnitude {
    fn check(&self, net: &Net) -> Result<()> {
        let named = [self.keep.is_some(), self.quality.is_some(), self.global.is_some()];
        if named.iter().filter(|set| **set).count() != 1 {
            return Err(Error::Invalid("magnitude takes exactly one of `keep`, `quality` and `global`".into()));
        }
        if self.rounds == 0 || self.block == 0 {
            return Err(Error::Invalid("magnitude: `rounds` and `block` must be at least 1".into()));
        }
        check_shares(net, self.keep.as_ref(), self.global)?;
        if let Some(quality) = &self.quality
            && let Some((index, q)) = quality
                .resolve_within(net, &self.layers.without(&self.except, net)?)?
                .into_iter()
                .find(|(_, q)| !(q.is_finite() && *q >= 0.0))
        {
            return Err(Error::node(&net.nodes[index].name, format!("quality must be 0 or more, is {q}")));
        }
        Ok(())
    }

    fn prune(&self, net: Net, falling: impl Fn(f64) -> f64) -> Result<Net> {
        let chosen = |weight: &Weight, share: f64| highest_blocks(weight, sizes(&weight.values), self.block, share);
        if let Some(keep) = &self.keep {
            let each: BTreeMap<usize, Ratio> =
                keep.resolve_within(&net, &self.layers.without(&self.except, &net)?)?.into_iter().collect();
            return Ok(mask(net, |weight| Some(chosen(weight, falling(each.get(&weight.node()?)?.get())))));
        }
        if let Some(quality) = &self.quality {
            let each: BTreeMap<usize, f64> =
                quality.resolve_within(&net, &self.layers.without(&self.except, &net)?)?.into_iter().collect();
            let names: Vec<String> = net.nodes.iter().map(|node| node.name.clone()).collect();
            let mut empty = None;
            let pruned = mask(net, |weight| {
                let node = weight.node()?;
                // A round's threshold grows with the share that the schedule has removed by then.
                let threshold = each.get(&node)? * deviation(&weight.left()) * (1.0 - falling(0.0));
                let (means, open) = Blocks::along_channels(weight, self.block).means(weight, &sizes(&weight.values));
                let kept = means.iter().zip(open).filter(|(mean, open)| *open && f64::from(**mean) >= threshold).count();
                if kept == 0 {
                    empty = Some(Error::node(&names[node], format!("a threshold of {threshold:.3e} would remove every weight")));
                }
                Some(chosen(weight, kept as f64 / means.len() as f64))
            });
            return empty.map_or(Ok(pruned), Err);
        }
        let share = falling(self.global.map_or(1.0, Ratio::get));
        let within = self.layers.without(&self.except, &net)?;
        Ok(keep_highest_of_all(net, share, self.block, |weight| {
            weight.node().is_some_and(|node| within.contains(&node)).then(|| sizes(&weight.values))
        }))
    }
}

impl Falling {
    /// The kept share at the time `t`, as a function of the share kept at the end.
    fn at(self, t: f64) -> impl Fn(f64) -> f64 {
        move |keep| match self {
            Falling::Geometric if keep == 0.0 => 1.0 - t,
            Falling::Geometric => keep.powf(t),
            Falling::Cubic => 1.0 - (1.0 - keep) * (1.0 - (1.0 - t).powi(3)),
        }
    }

    fn end() -> impl Fn(f64) -> f64 {
        Falling::Geometric.at(1.0)
    }
}

/// Masks all but the largest weights of each tensor of rank 2 or more in any Burn module. `keep` gives the share of a tensor that stays,
/// of which at least one weight is kept; tensors for which it gives none are left alone. Weights that an earlier mask removed stay
/// removed.
pub fn prune<M: Module>(module: M, mut keep: impl FnMut(&Weight) -> Option<f64>) -> M {
    keep_highest(module, |weight| keep(weight).map(|share| (sizes(&weight.values), share)))
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_core::coding;
    use briquette_handmade::{refusal, run, set, small};
    use burn::module::Param;
    use burn::tensor::{Device, Tensor};

    #[test]
    fn the_largest_stay_and_the_removed_stay_removed() {
        let weights = Tensor::<2>::from_floats([[0.1, -3.0, 0.2], [2.0, -0.3, 1.0]], &Device::flex());
        let once = prune(Param::from_tensor(weights), |_| Some(0.5));
        assert_eq!(coding::weights(&once)[0].values, [0.0, -3.0, 0.0, 2.0, 0.0, 1.0]);
        let twice = prune(once, |_| Some(1.0));
        assert_eq!(coding::weights(&twice)[0].values, [0.0, -3.0, 0.0, 2.0, 0.0, 1.0]);
        assert_eq!(coding::weights(&twice)[0].coding.kept(6), 3);
    }

    #[test]
    fn equal_magnitudes_keep_the_wanted_count_the_earlier_ones() {
        let halves = |net: Net, layer: &str| {
            let count = net.nodes[net.index(layer).unwrap()].weight().unwrap().base.len();
            set(net, layer, "weight", &(0..count).map(|i| if i % 2 == 0 { 0.5 } else { -0.5 }).collect::<Vec<_>>())
        };
        let net = ["conv1", "conv2", "fc1", "fc2"].iter().fold(small(), |net, layer| halves(net, layer));
        let kept = |net: &Net| net.weighted().map(|(_, node)| node.weight().unwrap().coding.kept(0)).collect::<Vec<_>>();
        let all: usize = net.weighted().map(|(_, node)| node.weight().unwrap().base.len()).sum();
        for share in [0.25, 0.5, 0.9] {
            for rounds in [1, 3] {
                let settings = serde_json::json!({ "global": share, "rounds": rounds });
                let pruned = run::<Magnitude>(net.deep_clone(), settings).unwrap();
                assert_eq!(kept(&pruned).iter().sum::<usize>(), (share * all as f64).round() as usize, "{share} in {rounds}");
            }
        }
        // The first layer, one weight of each, and what is left of the second.
        let pruned = run::<Magnitude>(net.deep_clone(), serde_json::json!({ "global": 0.25 })).unwrap();
        let count = (0.25 * all as f64).round() as usize;
        assert_eq!(kept(&pruned), [16, count - 18, 1, 1]);
        let mask = pruned.nodes[pruned.index("conv2").unwrap()].weight().unwrap().coding.mask.unwrap();
        assert!(mask[..count - 18].iter().all(|keep| *keep));
    }

    #[test]
    fn blocks_of_input_channels_go_and_stay_whole() {
        let blocks = |net: &Net, layer: &str| {
            let weight = net.nodes[net.index(layer).unwrap()].weight().unwrap();
            let (channels, area) = (weight.shape[1], weight.shape[2..].iter().product::<usize>());
            let mask = weight.coding.mask.unwrap();
            let filters = mask.chunks(channels * area).map(<[bool]>::to_vec).collect::<Vec<_>>();
            let taps = filters.into_iter().flat_map(move |filter| {
                (0..area).flat_map(|tap| filter.iter().skip(tap).step_by(area).copied().collect::<Vec<_>>()).collect::<Vec<_>>()
            });
            let blocks: Vec<Vec<bool>> = taps.collect::<Vec<_>>().chunks(4).map(<[bool]>::to_vec).collect();
            assert!(blocks.iter().all(|block| block.iter().all(|keep| *keep == block[0])), "{layer}: {blocks:?}");
            blocks.iter().filter(|block| block[0]).count()
        };
        // 12 blocks of conv2, 15 of fc1; 16 of conv1 and 6 of fc2, of one and of five channels.
        let each = serde_json::json!({ "keep": { "conv2": 0.25, "fc1": 0.4 }, "block": 4 });
        let net = run::<Magnitude>(small(), each).unwrap();
        assert_eq!((blocks(&net, "conv2"), blocks(&net, "fc1")), (3, 6));
        let net = run::<Magnitude>(small(), serde_json::json!({ "global": 0.5, "block": 4, "rounds": 2 })).unwrap();
        let ends: usize = ["conv1", "fc2"]
            .iter()
            .map(|layer| {
                let weight = net.nodes[net.index(layer).unwrap()].weight().unwrap();
                let mask = weight.coding.mask.unwrap();
                if weight.shape[1] == 1 {
                    mask.iter().filter(|keep| **keep).count()
                } else {
                    mask.chunks(5).map(|row| usize::from(row[0]) + usize::from(row[4])).sum()
                }
            })
            .sum();
        assert_eq!(blocks(&net, "conv2") + blocks(&net, "fc1") + ends, 25);
    }

    #[test]
    fn the_deviation_of_the_quality_is_over_what_is_left() {
        // The first round, half of q = 1, removes the weights of 0.1; of the others the deviation is 1.5, with the zeros it would be 0.87.
        let weights: Vec<f32> = (0..60).map(|i| [0.1, -0.1, 0.1, -0.1, 1.4, -1.6][i % 6]).collect();
        let net = set(small(), "fc1", "weight", &weights);
        let left = |quality: f64, rounds: usize| {
            let settings = serde_json::json!({ "quality": { "fc1": quality }, "rounds": rounds });
            let net = run::<Magnitude>(net.deep_clone(), settings).unwrap();
            net.nodes[net.index("fc1").unwrap()].weight().unwrap().coding.kept(60)
        };
        assert_eq!((left(1.0, 1), left(1.0, 2)), (20, 10));
    }

    #[test]
    fn layers_and_except_bound_every_form_of_the_threshold() {
        let kept = |settings: serde_json::Value| -> Vec<bool> {
            let net = run::<Magnitude>(small(), settings).unwrap();
            net.weighted().map(|(_, node)| node.weight().unwrap().values().iter().all(|w| *w != 0.0)).collect()
        };
        for how in ["keep", "global", "quality"] {
            assert_eq!(
                kept(serde_json::json!({ how: 0.5, "layers": ["conv", "fc2"], "except": ["*1"] })),
                [true, false, true, false]
            );
        }
        let error = refusal::<Magnitude>(small(), serde_json::json!({ "keep": { "fc1": 0.5 }, "except": ["fc1"] }));
        assert_eq!(error, "node 'fc1': has a value of its own, but `layers` and `except` leave it out; name it in `layers`");
        let error = refusal::<Magnitude>(small(), serde_json::json!({ "keep": 0.5, "layers": ["layer1.*"] }));
        assert!(error.starts_with("unknown layer 'layer1.*'"), "{error}");
    }

    #[test]
    fn schedules_end_at_the_wanted_share() {
        for falling in [Falling::Geometric, Falling::Cubic] {
            assert!((falling.at(1.0)(0.1) - 0.1).abs() < 1e-12);
            assert!(falling.at(0.5)(0.1) > 0.1 && falling.at(0.5)(0.1) < 1.0);
        }
    }
}
