//! Optimal brain damage.
//!
//! At a minimum of the loss `L`, with its Hessian taken as diagonal, deleting the weight `w_i` raises `L` by the saliency
//! `s_i = h_ii w_i^2 / 2`. The weights of the lowest saliency go and the rest is retrained. The curvature is the diagonal of the
//! Gauss-Newton matrix, averaged sample by sample: `h_ii = mean over samples of sum_k p_k (dL_k/dw_i)^2`, where `p_k` is the network's own
//! probability of class `k` and `L_k = -log p_k` the loss if `k` were the label. No label is needed. In networks whose activations are
//! piecewise linear it is the exact diagonal of the Hessian, for there each logit is a linear function of any single weight.
//!
//! LeCun, Denker, Solla. "Optimal Brain Damage". NIPS 1989, Advances in Neural Information Processing Systems 2, 1990.
//! Differs from the paper: the curvature is averaged over `samples` training images instead of all and comes from as many backward passes
//! as there are classes instead of one of second order; biases stay.

use std::collections::BTreeMap;

use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{PerLayer, Ratio};
use serde::Deserialize;

use crate::parts::gauss_newton::factors;
use crate::parts::masks::{check_shares, highest, mask_layers, threshold};

/// Masks the weights whose loss the network feels least, to second order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimalBrainDamage {
    /// Share of each layer's weights that stays.
    keep: Option<PerLayer<Ratio>>,
    /// Share of all weights that stays, the saliencies of all layers in one order: the paper's form.
    global: Option<Ratio>,
    /// Training images over which the curvature is averaged.
    #[serde(default = "hundred")]
    samples: usize,
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
            let curvature = curvature(&net, self.samples, cx)?;
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

    fn trainings(&self) -> Vec<&Recipe> {
        self.tune.iter().flat_map(|recipe| std::iter::repeat_n(recipe, self.rounds)).collect()
    }

    fn shrink(&mut self) {
        self.rounds = self.rounds.min(2);
        self.samples = self.samples.min(10);
        if let Some(recipe) = &mut self.tune {
            recipe.shrink(1);
        }
    }
}

impl OptimalBrainDamage {
    fn check(&self, net: &Net) -> Result<()> {
        if self.keep.is_some() == self.global.is_some() {
            return Err(Error::Invalid("optimal-brain-damage takes exactly one of `keep` and `global`".into()));
        }
        if self.samples == 0 || self.rounds == 0 {
            return Err(Error::Invalid("optimal-brain-damage: `samples` and `rounds` must be at least 1".into()));
        }
        check_shares(net, self.keep.as_ref(), self.global)
    }

    /// Keeps `share^t` of the weights, at the time `t` = round / rounds.
    fn prune(&self, net: Net, curvature: &BTreeMap<usize, Vec<f64>>, t: f64) -> Result<Net> {
        let saliency = |index: usize, values: &[f32]| -> Vec<f64> {
            let h = |i: usize| curvature.get(&index).map_or(1.0, |h| h[i]);
            values.iter().enumerate().map(|(i, w)| 0.5 * h(i) * f64::from(*w).powi(2)).collect()
        };
        let shares: BTreeMap<usize, f64> = match (&self.keep, self.global) {
            (Some(keep), _) => keep.resolve(&net)?.into_iter().map(|(index, share)| (index, share.get().powf(t))).collect(),
            (None, share) => {
                let of =
                    |(index, node): (usize, &briquette_core::net::Node)| Some((index, saliency(index, &node.weight()?.values())));
                let all: Vec<(usize, Vec<f64>)> = net.weighted().filter_map(of).collect();
                let share = share.map_or(1.0, Ratio::get).powf(t);
                let border = threshold(all.iter().flat_map(|(_, saliencies)| saliencies.clone()).collect(), share);
                let kept = |saliencies: &[f64]| saliencies.iter().filter(|s| **s >= border).count() as f64;
                all.iter().map(|(index, saliencies)| (*index, kept(saliencies) / saliencies.len() as f64)).collect()
            }
        };
        mask_layers(net, |index, weight| {
            let values = weight.values();
            Some(highest(&values, &saliency(index, &values), *shares.get(&index)?))
        })
    }
}

/// The diagonal of the Gauss-Newton matrix of the mean loss, for the weights of each layer.
fn curvature(net: &Net, samples: usize, cx: &mut Context<'_>) -> Result<BTreeMap<usize, Vec<f64>>> {
    let mut sums: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let seen = factors(net, OptimalBrainDamage::NAME, samples, cx, |index, factor| {
        let sums = sums.entry(index).or_insert_with(|| vec![0.0; factor.len()]);
        sums.iter_mut().zip(factor).for_each(|(sum, x)| *sum += x * x);
    })?;
    sums.values_mut().flatten().for_each(|sum| *sum /= seen as f64);
    Ok(sums)
}

fn hundred() -> usize {
    100
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::net::Value;
    use briquette_core::pass::Silent;
    use briquette_core::training::{cross_entropy, probe};
    use burn::tensor::Device;

    use super::*;
    use crate::handmade::{context, get, images, refusal, run, set, small};

    const SAMPLES: usize = 6;

    fn stirred() -> Net {
        set(set(small(), "norm1", "beta", &[0.3, 0.5, -0.1, 0.2]), "norm1", "mean", &[0.1, 0.0, -0.2, 0.3])
    }

    #[test]
    fn the_curvature_of_a_piecewise_linear_network_is_the_diagonal_of_its_hessian() {
        let (data, mut silent) = (images(), Silent);
        let mut cx = context(&data, &mut silent);
        let net = stirred();
        let found = curvature(&net, SAMPLES, &mut cx).unwrap();
        // The slope of the loss by a layer's weights, and which rectifiers are active.
        let mut look = |net: &Net, layer: &str| -> (Vec<f32>, Vec<bool>) {
            let (net, mut slope, mut active) = (net.probed(), Vec::new(), Vec::new());
            let index = net.index(layer).unwrap();
            probe(&mut cx, OptimalBrainDamage::NAME, (1, SAMPLES), &Device::flex().autodiff(), |images, labels| {
                let logits = net.trace(images, |i, value| {
                    if net.nodes[i].name.starts_with("relu") {
                        let values = match value.clone() {
                            Value::Map(x) => floats(x.inner()),
                            Value::Vector(x) => floats(x.inner()),
                        };
                        active.extend(values.into_iter().map(|v| v > 0.0));
                    }
                    value
                });
                let grads = cross_entropy(logits.vector(), labels, 0.0).backward();
                slope = net.nodes[index].gradient("weight", &grads).unwrap();
                Ok(())
            })
            .unwrap();
            (slope, active)
        };
        let (mut compared, mut all) = (0, 0);
        for layer in ["conv1", "conv2", "fc1", "fc2"] {
            let weights = get(&net, layer, "weight");
            let curvature = &found[&net.index(layer).unwrap()];
            let largest = curvature.iter().copied().fold(0.0, f64::max);
            all += weights.len();
            for i in 0..weights.len() {
                let mut moved = |step: f32| {
                    let mut weights = weights.clone();
                    weights[i] += step;
                    look(&set(net.deep_clone(), layer, "weight", &weights), layer)
                };
                let ((low, low_active), (high, high_active)) = (moved(-1e-3), moved(1e-3));
                // Across a kink the difference is none of the second derivative.
                if low_active == high_active {
                    let difference = f64::from(high[i] - low[i]) / 2e-3;
                    assert!((difference - curvature[i]).abs() < 0.01 * largest, "{layer} {i}: {} and {difference}", curvature[i]);
                    compared += 1;
                }
            }
        }
        assert!(compared * 10 > all * 8, "{compared} of {all} weights stay clear of kinks");
    }

    #[test]
    fn the_lowest_saliency_goes_even_if_the_weight_is_the_largest() {
        let net = set(set(stirred(), "fc2", "weight", &[1.0; 15]), "fc1", "bias", &[0.5, 0.5, 0.5, 0.5, -90.0]);
        let fc2 = net.index("fc2").unwrap();
        // The last unit of fc1 never fires, so its outgoing weights have no curvature however large they are.
        let large: Vec<f32> = (0..15).map(|i| if i % 5 == 4 { 7.0 } else { 1.0 }).collect();
        let pruned = run::<OptimalBrainDamage>(
            set(net, "fc2", "weight", &large),
            serde_json::json!({ "keep": { "fc2": 0.8 }, "samples": 20 }),
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
            let net = run::<OptimalBrainDamage>(stirred(), serde_json::json!({ "global": 0.4, "samples": 5, "rounds": rounds }));
            let kept: usize = count(&net.unwrap());
            assert!(kept.abs_diff((0.4 * all as f64).round() as usize) <= 2, "{kept} of {all}");
        }
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<OptimalBrainDamage>(small(), serde_json::json!({}));
        assert_eq!(none, "optimal-brain-damage takes exactly one of `keep` and `global`");
        let all = refusal::<OptimalBrainDamage>(small(), serde_json::json!({ "keep": { "conv": 0.0 } }));
        assert_eq!(all, "node 'conv1': keep = 0 would remove every weight; keep a share above 0");
        let samples = refusal::<OptimalBrainDamage>(small(), serde_json::json!({ "global": 0.5, "samples": 0 }));
        assert_eq!(samples, "optimal-brain-damage: `samples` and `rounds` must be at least 1");
    }
}
