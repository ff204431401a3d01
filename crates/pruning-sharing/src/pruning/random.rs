//! Random pruning: the control that every score has to beat.
//!
//! Scores are drawn evenly from [0, 1), from streams that depend on the pass's seed and the layer's name alone, so that a layer loses
//! the same units whatever happens to its neighbours. Removes whole units of channel groups (`ratio`, `budget`) or single weights (`keep`).
//!
//! Mittal, Bhardwaj, Khapra, Ravindran. "Recovering from Random Pruning: On the Plasticity of Deep Convolutional Neural Networks". WACV
//! 2018. arXiv:1801.10447.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::random::{Random, prune};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let method: Random = serde_json::from_value(serde_json::json!({ "keep": 0.25 }))?;
//! let draw = |seed| Ok::<_, briquette_core::Error>(method.run(net.deep_clone(), &mut Context::new(&Device::flex(), seed, &data, &mut Silent))?.to_state());
//! assert!(draw(1)? == draw(1)? && draw(1)? != draw(2)?);
//!
//! // Any module of Burn, and the share to keep of each of its weights.
//! let layer = prune(LinearConfig::new(20, 10).init(&Device::flex()), |_| Some(0.25), 1);
//! assert_eq!(weights(&layer)[0].coding.kept(200), 50);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::coding::Weight;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::streams::stream;
use briquette_core::types::{PerLayer, Ratio};
use burn::module::Module;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use briquette_parts::channels::Channels;
use briquette_parts::masks::{check_shares, highest, keep_highest, mask_layers};

/// Removes channels or weights at random.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Random {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
    /// Share of each layer's single weights that stays, in place of cutting channels.
    keep: Option<PerLayer<Ratio>>,
}

impl Method for Random {
    const NAME: &'static str = "random";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Mittal, Bhardwaj, Khapra, Ravindran, WACV 2018, arXiv:1801.10447";
    const EXAMPLE: &'static str = "ratio = 0.5";
}

impl Pass for Random {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.prune(net, cx.seed)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.prune(net, 0)
    }
}

impl Random {
    fn prune(&self, net: Net, seed: u64) -> Result<Net> {
        let Some(keep) = &self.keep else {
            return self.channels.cut(Self::NAME, net, |_, group| scores(seed, &group.name, group.len()));
        };
        if !self.channels.open() {
            return Err(Error::Invalid("random takes exactly one of `ratio`, `budget` and `keep`".into()));
        }
        check_shares(&net, Some(keep), None)?;
        let each: BTreeMap<usize, Ratio> = keep.resolve_within(&net, &self.channels.chosen(&net)?)?.into_iter().collect();
        let names: Vec<String> = net.nodes.iter().map(|node| node.name.clone()).collect();
        mask_layers(net, |index, weight| {
            let share = each.get(&index)?;
            let drawn = scores(seed, &names[index], weight.base.len());
            Some(highest(drawn, weight.coding.mask.as_deref(), share.get()))
        })
    }
}

/// Masks all but a share of each tensor of rank 2 or more in any Burn module, drawn anew for each seed and path. `keep` gives the share that
/// stays, of which at least one weight is kept; tensors for which it gives none are left alone. Weights that an earlier mask removed stay
/// removed.
pub fn prune<M: Module>(module: M, keep: impl Fn(&Weight) -> Option<f64>, seed: u64) -> M {
    keep_highest(module, |weight| Some((scores(seed, &weight.path, weight.values.len()), keep(weight)?)))
}

fn scores(seed: u64, name: &str, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(stream(seed, &format!("random-{name}")));
    (0..count).map(|_| rng.random()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_handmade::{get, refusal, set, small};

    fn pruned(settings: &serde_json::Value, seed: u64) -> Vec<f32> {
        let net = set(small(), "fc1", "weight", &(1..=60).map(|i| i as f32).collect::<Vec<_>>());
        let net = serde_json::from_value::<Random>(settings.clone()).unwrap().prune(net, seed).unwrap();
        get(&net, "fc1", "weight")
    }

    #[test]
    fn the_seed_alone_decides_what_stays() {
        for settings in [serde_json::json!({ "ratio": { "fc1": 0.4 } }), serde_json::json!({ "keep": 0.5 })] {
            assert_eq!(pruned(&settings, 1), pruned(&settings, 1));
            assert!((2..9).any(|seed| pruned(&settings, seed) != pruned(&settings, 1)), "{settings}");
        }
        let kept = |settings| pruned(&settings, 1).iter().filter(|v| **v != 0.0).count();
        assert_eq!(kept(serde_json::json!({ "ratio": { "fc1": 0.4 } })), 36);
        assert_eq!(kept(serde_json::json!({ "ratio": { "conv1": 0.5, "fc1": 0.4 } })), 36);
        assert_eq!(kept(serde_json::json!({ "keep": 0.25 })), 15);
        assert_eq!(kept(serde_json::json!({ "keep": 0.25, "except": ["fc*"] })), 60);
        // A cut elsewhere does not change the draw.
        let alone = pruned(&serde_json::json!({ "ratio": { "fc1": 0.4 } }), 1);
        assert_eq!(pruned(&serde_json::json!({ "ratio": { "conv1": 0.5, "fc1": 0.4 } }), 1), alone);
    }

    #[test]
    fn every_unit_goes_about_equally_often() {
        let mut gone = [0; 5];
        for seed in 0..500 {
            let kept = pruned(&serde_json::json!({ "ratio": { "fc1": 0.4 } }), seed);
            let stays = |unit: usize| kept.contains(&((unit * 12 + 1) as f32));
            (0..5).filter(|unit| !stays(*unit)).for_each(|unit| gone[unit] += 1);
        }
        assert!(gone.iter().all(|count| (150..250).contains(count)), "{gone:?}");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let both = refusal::<Random>(small(), serde_json::json!({ "ratio": 0.5, "keep": 0.5 }));
        assert_eq!(both, "random takes exactly one of `ratio`, `budget` and `keep`");
        let none = refusal::<Random>(small(), serde_json::json!({ "keep": { "fc1": 0.0 } }));
        assert_eq!(none, "node 'fc1': keep = 0 would remove every weight; keep a share above 0");
    }
}
