//! Optimal brain damage.
//!
//! At a minimum of the loss `L`, with its Hessian taken as diagonal, deleting the weight `w_i` raises `L` by the saliency
//! `s_i = h_ii w_i^2 / 2`. The weights of the lowest saliency go and the rest is retrained. The curvature is the diagonal of the
//! Gauss-Newton matrix, averaged sample by sample: `h_ii = mean over samples of sum_k p_k (dL_k/dw_i)^2`, where `p_k` is the network's own
//! probability of class `k` and `L_k = -log p_k` the loss if `k` were the label (of more than 32 classes one is drawn from `p` for each
//! image, see [`factors`](briquette_parts::gauss_newton::factors)). No label is needed. In networks whose activations are
//! piecewise linear it is the exact diagonal of the Hessian, for there each logit is a linear function of any single weight.
//!
//! LeCun, Denker, Solla. "Optimal Brain Damage". NIPS 1989, Advances in Neural Information Processing Systems 2, 1990.
//! Differs from the paper: the curvature is averaged over `calibration-images` training images instead of all and comes from as many backward passes
//! as there are classes instead of one of second order; biases stay.
//!
//! ```
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::optimal_brain_damage::OptimalBrainDamage;
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
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{Layers, PerLayer, Ratio};
use serde::Deserialize;

use briquette_parts::curvature::{diagonal, reached};
use briquette_parts::masks::{check_shares, keep_highest, keep_highest_of_all};

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
    /// Labels drawn from the network's own distribution for each image, in place of all classes.
    labels: Option<usize>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
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
        let within = self.layers.without(&self.except, &net)?;
        for round in 1..=self.rounds {
            let curvature = diagonal(&net, (self.calibration_images, self.labels), Self::NAME, cx)?;
            match &self.keep {
                None => reached(&net, &curvature, &within)?,
                Some(keep) => reached(&net, &curvature, keep.resolve_within(&net, &within)?.iter().map(|(layer, _)| layer))?,
            }
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

    fn estimate(&self) -> Option<&'static str> {
        self.global.map(|_| "the layers' shares are those of equal curvature; data give others")
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
        if self.calibration_images == 0 || self.rounds == 0 || self.labels == Some(0) {
            return Err(Error::Invalid(
                "optimal-brain-damage: `calibration-images`, `labels` and `rounds` must be at least 1".into(),
            ));
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
        let within = self.layers.without(&self.except, &net)?;
        let Some(keep) = &self.keep else {
            let share = self.global.map_or(1.0, Ratio::get).powf(t);
            let within = |weight: &Weight| weight.node().is_some_and(|node| within.contains(&node));
            return Ok(keep_highest_of_all(net, share, 1, |weight| within(weight).then(|| saliencies(weight))));
        };
        let shares: BTreeMap<usize, Ratio> = keep.resolve_within(&net, &within)?.into_iter().collect();
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
    use std::collections::BTreeSet;

    use briquette_core::builder::Builder;
    use briquette_core::coding::floats;
    use briquette_core::context::Silent;
    use briquette_core::training::probe;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{context, get, images, refusal, run, set, small, stirred};

    /// What the network loses by deleting a weight of `fc2`, to second order: half the second difference of the mean loss over all images
    /// along that weight, times its square. The logits are linear in it, so that nothing else curves.
    fn costs(net: &Net) -> Vec<f64> {
        let (data, mut silent) = (images(), Silent);
        let weights = get(net, "fc2", "weight");
        let mut loss = |i: usize, step: f32| {
            let mut moved = weights.clone();
            moved[i] += step;
            let net = set(net.deep_clone(), "fc2", "weight", &moved);
            let mut loss = 0.0;
            probe(&mut context(&data, &mut silent), "all", (1, 40), &Device::flex(), |images, labels| {
                let logits = floats(net.forward(images));
                for (row, label) in logits.chunks(3).zip(labels) {
                    let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                    loss += (sum.ln() - f64::from(row[usize::from(*label)])) / 40.0;
                }
                Ok(())
            })
            .unwrap();
            loss
        };
        let second = |i: usize| (loss(i, 0.05) - 2.0 * loss(i, 0.0) + loss(i, -0.05)) / 0.05_f64.powi(2);
        (0..weights.len())
            .map(second)
            .collect::<Vec<_>>()
            .iter()
            .zip(&weights)
            .map(|(h, w)| 0.5 * h * f64::from(*w).powi(2))
            .collect()
    }

    #[test]
    fn the_weights_go_whose_loss_costs_least_to_second_order() {
        let weights: Vec<f32> = (0..15).map(|i| [1.0, -0.2, 0.1, -0.5, 6.0][i % 5] * [1.0, -0.6, 1.5][i / 5]).collect();
        // Units of fc1 of very different size, so that neither the size of a weight nor the curvature alone orders as both do.
        let net = set(set(stirred(), "fc2", "weight", &weights), "fc1", "bias", &[0.1, 1.5, 3.0, -0.3, 0.0]);
        let costs = costs(&net);
        let order = |scores: &[f64]| {
            let mut order: Vec<usize> = (0..15).collect();
            order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            order
        };
        let expected = order(&costs);
        let sizes: Vec<f64> = weights.iter().map(|w| f64::from(w.abs())).collect();
        let curvatures: Vec<f64> = costs.iter().zip(&sizes).map(|(cost, size)| cost / size.powi(2)).collect();
        let slopes: Vec<f64> = costs.iter().zip(&sizes).map(|(cost, size)| cost / size).collect();
        // Where the next costs clearly more than the last that goes.
        let clear = |gone: &usize| costs[expected[*gone]] > 1.1 * costs[expected[gone - 1]];
        let (counts, first) = ((1..15).filter(clear).collect::<Vec<_>>(), |order: &[usize], gone| {
            order[..gone].iter().copied().collect::<BTreeSet<_>>()
        });
        assert!(counts.len() >= 6, "{costs:?}");
        for &gone in &counts {
            let settings = serde_json::json!({ "keep": { "fc2": (15 - gone) as f64 / 15.0 }, "calibration-images": 40 });
            let values = get(&run::<OptimalBrainDamage>(net.deep_clone(), settings).unwrap(), "fc2", "weight");
            let left: BTreeSet<usize> = (0..15).filter(|i| values[*i] == 0.0).collect();
            assert_eq!(left, first(&expected, gone), "{costs:?}");
        }
        for other in [&sizes, &curvatures, &slopes] {
            assert!(counts.iter().any(|&gone| first(&order(other), gone) != first(&expected, gone)), "{other:?}");
        }
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
    fn a_layer_of_whose_curvature_nothing_is_known_is_refused() {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("idle", x, 4);
        b.linear("fc", x, 3);
        let net = b.finish().unwrap();
        let why = "no gradient of the loss reaches it, so that its curvature is not known; name it in `except`";
        for keep in [serde_json::json!({ "global": 0.5 }), serde_json::json!({ "keep": { "idle": 0.5 } })] {
            let error = run::<OptimalBrainDamage>(net.deep_clone(), keep).unwrap_err().to_string();
            assert_eq!(error, format!("node 'idle': {why}"));
        }
        let shared = serde_json::json!({ "bits": 2, "calibration-images": 4 });
        let error = run::<crate::quantization::hessian_kmeans::HessianKmeans>(net.deep_clone(), shared).unwrap_err().to_string();
        assert_eq!(error, format!("node 'idle': {why}"));
        let kept = run::<OptimalBrainDamage>(net, serde_json::json!({ "global": 0.5, "except": ["idle"] })).unwrap();
        assert_eq!(get(&kept, "fc", "weight").iter().filter(|w| **w != 0.0).count(), 24);
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<OptimalBrainDamage>(small(), serde_json::json!({}));
        assert_eq!(none, "optimal-brain-damage takes exactly one of `keep` and `global`");
        let all = refusal::<OptimalBrainDamage>(small(), serde_json::json!({ "keep": { "conv": 0.0 } }));
        assert_eq!(all, "node 'conv1': keep = 0 would remove every weight; keep a share above 0");
        let samples = refusal::<OptimalBrainDamage>(small(), serde_json::json!({ "global": 0.5, "calibration-images": 0 }));
        assert_eq!(samples, "optimal-brain-damage: `calibration-images`, `labels` and `rounds` must be at least 1");
    }
}
