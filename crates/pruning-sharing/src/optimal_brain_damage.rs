//! Optimal brain damage.
//!
//! At a minimum of the loss `L`, with its Hessian taken as diagonal, deleting the weight `w_i` raises `L` by the saliency
//! `s_i = h_ii w_i^2 / 2`. The weights of the lowest saliency go and the rest is retrained. The curvature is the diagonal of the
//! Gauss-Newton matrix, averaged sample by sample: `h_ii = mean over samples of sum_k p_k (dL_k/dw_i)^2`, where `p_k` is the network's own
//! probability of class `k` and `L_k = -log p_k` the loss if `k` were the label. No label is needed. In networks whose activations are
//! piecewise linear it is the exact diagonal of the Hessian, for there each logit is a linear function of any single weight.
//!
//! LeCun, Denker, Solla. "Optimal Brain Damage". NIPS 1989, Advances in Neural Information Processing Systems 2, 1990.
//! Differs from the paper: the curvature is averaged over `calibration-images` training images instead of all and comes from as many backward passes
//! as there are classes instead of one of second order; biases stay.
//!
//! ```
//! use briquette_core::pass::{Context, Data, Pass, Silent};
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::optimal_brain_damage::OptimalBrainDamage;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let method: OptimalBrainDamage = serde_json::from_value(serde_json::json!({ "keep": 0.25, "calibration-images": 5 }))?;
//! let pruned = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
//! let kept = |weight: briquette_core::stored::Stored| weight.values().iter().filter(|w| **w != 0.0).count();
//! assert_eq!(pruned.weighted().filter_map(|(_, node)| Some(kept(node.weight()?))).collect::<Vec<_>>(), [5880, 75, 25]);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::coding::Weight;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{PerLayer, Ratio};
use serde::Deserialize;

use crate::parts::curvature::diagonal;
use crate::parts::masks::{check_shares, keep_highest, keep_highest_of_all};

/// Masks the weights whose loss the network feels least, to second order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OptimalBrainDamage {
    /// Share of each layer's weights that stays.
    keep: Option<PerLayer<Ratio>>,
    /// Share of all weights that stays, the saliencies of all layers in one order: the paper's form.
    global: Option<Ratio>,
    /// Training images over which the curvature is averaged.
    #[serde(default = "hundred")]
    calibration_images: usize,
    /// How many times pruning and tuning alternate; each removes the same share of what is left.
    #[serde(default = "one")]
    rounds: usize,
    /// Training after each round.
    tune: Option<Recipe>,
}

impl Method for OptimalBrainDamage {
    const NAME: &'static str = "optimal-brain-damage";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "LeCun, Denker, Solla, NIPS 1989";
    const EXAMPLE: &'static str = "global = 0.25";
}

impl Pass for OptimalBrainDamage {
    fn run(&self, mut net: Net, cx: &mut Context<'_>) -> Result<Net> {
        self.check(&net)?;
        for round in 1..=self.rounds {
            let curvature = diagonal(&net, self.calibration_images, Self::NAME, cx)?;
            net = self.prune(net, &curvature, round as f64 / self.rounds as f64)?;
            if let Some(recipe) = &self.tune {
                net = fit(net, recipe, Extras::default(), cx)?;
            }
        }
        Ok(net)
    }

    /// The curvature is taken as the same for all weights, which gives the layers other shares of `global` than data would.
    fn plan(&self, net: Net) -> Result<Net> {
        self.check(&net)?;
        self.prune(net, &BTreeMap::new(), 1.0)
    }

    fn recipes(&mut self) -> Vec<&mut Recipe> {
        self.tune.iter_mut().collect()
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    fn shorten(&mut self) {
        self.rounds = self.rounds.min(2);
        self.calibration_images = self.calibration_images.min(10);
    }
}

impl OptimalBrainDamage {
    fn check(&self, net: &Net) -> Result<()> {
        if self.keep.is_some() == self.global.is_some() {
            return Err(Error::Invalid("optimal-brain-damage takes exactly one of `keep` and `global`".into()));
        }
        if self.calibration_images == 0 || self.rounds == 0 {
            return Err(Error::Invalid("optimal-brain-damage: `calibration-images` and `rounds` must be at least 1".into()));
        }
        check_shares(net, self.keep.as_ref(), self.global)
    }

    /// Keeps `share^t` of the weights, at the time `t` = round / rounds.
    fn prune(&self, net: Net, curvature: &BTreeMap<usize, Vec<f64>>, t: f64) -> Result<Net> {
        let saliencies = |weight: &Weight| -> Vec<f64> {
            let h = weight.node().and_then(|node| curvature.get(&node)).map(|h| weight.unfiltered(h.clone()));
            let h = |i: usize| h.as_ref().map_or(1.0, |h| h[i]);
            weight.values.iter().enumerate().map(|(i, w)| 0.5 * h(i) * f64::from(*w).powi(2)).collect()
        };
        let Some(keep) = &self.keep else {
            let share = self.global.map_or(1.0, Ratio::get).powf(t);
            return Ok(keep_highest_of_all(net, share, 1, saliencies));
        };
        let shares: BTreeMap<usize, Ratio> = keep.resolve(&net)?.into_iter().collect();
        Ok(keep_highest(net, |weight| Some((saliencies(weight), shares.get(&weight.node()?)?.get().powf(t)))))
    }
}

fn hundred() -> usize {
    100
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handmade::{refusal, run, set, small, stirred};

    #[test]
    fn the_lowest_saliency_goes_even_if_the_weight_is_the_largest() {
        let net = set(set(stirred(), "fc2", "weight", &[1.0; 15]), "fc1", "bias", &[0.5, 0.5, 0.5, 0.5, -90.0]);
        let fc2 = net.index("fc2").unwrap();
        // The last unit of fc1 never fires, so its outgoing weights have no curvature however large they are.
        let large: Vec<f32> = (0..15).map(|i| if i % 5 == 4 { 7.0 } else { 1.0 }).collect();
        let pruned = run::<OptimalBrainDamage>(
            set(net, "fc2", "weight", &large),
            serde_json::json!({ "keep": { "fc2": 0.8 }, "calibration-images": 20 }),
        )
        .unwrap();
        let kept: Vec<bool> = pruned.nodes[fc2].weight().unwrap().values().iter().map(|v| *v != 0.0).collect();
        assert_eq!(kept, (0..15).map(|i| i % 5 != 4).collect::<Vec<_>>());
    }

    #[test]
    fn one_order_over_all_layers_leaves_the_share_and_rounds_end_there() {
        let count =
            |net: &Net| net.weighted().map(|(_, n)| n.weight().unwrap().values().iter().filter(|v| **v != 0.0).count()).sum();
        let all: usize = count(&stirred());
        for rounds in [1, 3] {
            let net = run::<OptimalBrainDamage>(
                stirred(),
                serde_json::json!({ "global": 0.4, "calibration-images": 5, "rounds": rounds }),
            );
            let kept: usize = count(&net.unwrap());
            assert_eq!(kept, (0.4 * all as f64).round() as usize, "of {all}");
        }
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<OptimalBrainDamage>(small(), serde_json::json!({}));
        assert_eq!(none, "optimal-brain-damage takes exactly one of `keep` and `global`");
        let all = refusal::<OptimalBrainDamage>(small(), serde_json::json!({ "keep": { "conv": 0.0 } }));
        assert_eq!(all, "node 'conv1': keep = 0 would remove every weight; keep a share above 0");
        let samples = refusal::<OptimalBrainDamage>(small(), serde_json::json!({ "global": 0.5, "calibration-images": 0 }));
        assert_eq!(samples, "optimal-brain-damage: `calibration-images` and `rounds` must be at least 1");
    }
}
