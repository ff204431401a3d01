//! Movement pruning.
//!
//! While the network trains, every weight `w` has a score `S`, at first 0, that each step changes by `S <- S - r w dL/dw`, where `r` is the
//! learning rate: it grows while the weight moves away from zero and falls while it shrinks. The forward pass uses the weights of the
//! highest scores in each layer, the rest as zero; `dL/dw` is the gradient by what the forward pass uses, so that the score of a weight
//! that is out keeps moving, by the value that it had when it left, and the weight can come back. The share in use falls from 1 to `keep`
//! as `keep + (1 - keep) (1 - t)^3`, where `t` grows from 0 to 1 between the shares `warmup` and `1 - cooldown` of the training.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::movement::Movement;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let method: Movement = serde_json::from_str(r#"{ "keep": 0.5, "train": { "epochs": 20 } }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert_eq!(net.nodes[2].weight().unwrap().values().iter().filter(|w| **w != 0.0).count(), 4);
//! ```
//!
//! Sanh, Wolf, Rush. "Movement Pruning: Adaptive Sparsity by Fine-Tuning". NeurIPS 2020. arXiv:2005.07683. The cubic schedule is that of
//! Zhu, Gupta. "To Prune, or Not to Prune". ICLR 2018 workshop. arXiv:1710.01878.
//! Differs from the paper: scores take plain gradient steps at the network's rate whatever the optimizer, which scores of any scale order
//! alike; the momentum of a weight goes on while it is out; and the last epoch is the result whatever the recipe chooses.

use std::collections::{BTreeMap, HashMap};

use briquette_core::archive::Archive;
use briquette_core::coding::floats;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Choose, Extras, Projection, Recipe, fit, tune};
use briquette_core::types::{Layers, PerLayer, Ratio};
use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::Deserialize;

use briquette_core::values::{plain, replace};
use briquette_parts::masks::{check_shares, highest, mask_layers, mask_zeros};
use briquette_parts::refuse;

/// Masks the weights that shrink in training.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Movement {
    /// Share of each layer's weights that stays.
    keep: PerLayer<Ratio>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Share of the training before the first weight goes.
    #[serde(default = "tenth")]
    warmup: Ratio,
    /// Share of the training that is left when the last weight has gone.
    #[serde(default = "fifth")]
    cooldown: Ratio,
    /// The training.
    train: Recipe,
    /// Training of what is left.
    tune: Option<Recipe>,
}

impl Method for Movement {
    const NAME: &'static str = "movement";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Sanh, Wolf, Rush, NeurIPS 2020, arXiv:2005.07683";
    const EXAMPLE: &'static str = "keep = 0.15\ntrain = { epochs = 10 }";
}

impl Pass for Movement {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let keep = self.check(&net)?;
        let layer = |node: &Node| Some(Layer::new(weights(node)?.1, mask(node)));
        let layers = keep.keys().filter_map(|index| Some((*index, layer(&net.nodes[*index])?))).collect();
        let mut scores = Scores { layers, keep, warmup: self.warmup.get(), cooldown: self.cooldown.get() };
        let recipe = Recipe { choose: Choose::Last, ..self.train.clone() };
        let net = fit(net, &recipe, Extras { projections: vec![&mut scores], ..Extras::default() }, cx)?;
        let net = mask_zeros(net, |layer| scores.keep.contains_key(&layer))?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let keep = self.check(&net)?;
        mask_layers(net, |index, weight| {
            Some(highest(vec![0.0; weight.base.len()], weight.coding.mask.as_deref(), *keep.get(&index)?))
        })
    }
}

impl Movement {
    /// For each layer that is pruned, the share that stays.
    fn check(&self, net: &Net) -> Result<BTreeMap<usize, f64>> {
        check_shares(net, Some(&self.keep), None)?;
        self.train.check()?;
        if self.train.epochs == 0 || self.warmup.get() + self.cooldown.get() >= 1.0 {
            let detail = "movement: `train` needs an epoch, and `warmup` and `cooldown` together must leave a part of it";
            return Err(Error::Invalid(detail.into()));
        }
        let keep: BTreeMap<usize, f64> = self
            .keep
            .resolve_within(net, &self.layers.without(&self.except, net)?)?
            .into_iter()
            .map(|(layer, keep)| (layer, keep.get()))
            .collect();
        refuse::shared(net, keep.keys(), Self::NAME)?;
        Ok(keep)
    }
}

/// The scores while the network trains.
struct Scores {
    layers: BTreeMap<usize, Layer>,
    keep: BTreeMap<usize, f64>,
    warmup: f64,
    cooldown: f64,
}

/// The weights of one layer, in Burn's order.
struct Layer {
    scores: Vec<f64>,
    /// Those out of use too.
    weights: Vec<f32>,
    /// Those that an earlier pass left.
    mask: Option<Vec<bool>>,
    used: Vec<bool>,
}

impl Layer {
    fn new(weights: Vec<f32>, mask: Option<Vec<bool>>) -> Self {
        let used = mask.clone().unwrap_or_else(|| vec![true; weights.len()]);
        Self { scores: vec![0.0; weights.len()], weights, mask, used }
    }

    /// `S <- S - rate * w * gradient`.
    fn move_scores(&mut self, gradient: &[f32], rate: f64) {
        let moved = self.weights.iter().zip(gradient).map(|(w, g)| rate * f64::from(*w) * f64::from(*g));
        self.scores.iter_mut().zip(moved).for_each(|(score, moved)| *score -= moved);
    }

    /// The weights to use when this share of them is, given those after the step, of which only the used ones count.
    fn choose(&mut self, stepped: &[f32], share: f64) -> Vec<f32> {
        for (i, new) in stepped.iter().enumerate().filter(|(i, _)| self.used[*i]) {
            self.weights[i] = *new;
        }
        self.used = highest(self.scores.clone(), self.mask.as_deref(), share);
        self.weights.iter().zip(&self.used).map(|(w, used)| if *used { *w } else { 0.0 }).collect()
    }
}

impl Scores {
    /// How much of the way from all weights to the share that stays is behind.
    fn share(&self, layer: usize, step: usize, steps: usize) -> f64 {
        let keep = self.keep[&layer];
        let done = (step + 1) as f64 / steps as f64;
        let t = ((done - self.warmup) / (1.0 - self.warmup - self.cooldown)).clamp(0.0, 1.0);
        keep + (1.0 - keep) * (1.0 - t).powi(3)
    }
}

impl Projection for Scores {
    fn see(&mut self, net: &Net, gradients: &GradientsParams, lr: f64) {
        for (index, layer) in &mut self.layers {
            if let Some(gradient) = gradient(&net.nodes[*index], gradients) {
                layer.move_scores(&gradient, lr);
            }
        }
    }

    fn project(&mut self, net: Net, step: usize, steps: usize) -> Net {
        let shares: BTreeMap<usize, f64> = self.keep.keys().map(|index| (*index, self.share(*index, step, steps))).collect();
        let mut values = HashMap::new();
        for (index, layer) in &mut self.layers {
            let Some((id, stepped)) = weights(&net.nodes[*index]) else { continue };
            let used = layer.choose(&stepped, shares[index]);
            values.insert(id, Tensor::from_floats(used.as_slice(), &net.device().inner()));
        }
        replace(net, values)
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        self.layers.values_mut().try_for_each(|Layer { scores, weights, used, .. }| {
            archive.numbers(scores)?;
            archive.numbers(weights)?;
            archive.bits(used)
        })
    }
}

/// A layer's weight as the network computes with it.
fn weights(node: &Node) -> Option<(ParamId, Vec<f32>)> {
    node.dense().map(|dense| (dense.id(), floats(plain(dense.weight()))))
}

/// A layer's mask, in Burn's order.
fn mask(node: &Node) -> Option<Vec<bool>> {
    node.dense()?.mask()
}

fn gradient(node: &Node, gradients: &GradientsParams) -> Option<Vec<f32>> {
    node.dense()?.gradient(gradients).map(floats)
}

fn tenth() -> Ratio {
    Ratio::try_from(0.1).expect("a tenth is a share")
}

fn fifth() -> Ratio {
    Ratio::try_from(0.2).expect("a fifth is a share")
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_handmade::{get, refusal, run, small};

    #[test]
    fn scores_move_as_the_formula_says_and_growing_weights_stay_before_larger_ones_that_shrink() {
        // L = sum (w - goal)^2 / 2: the gradient is w - goal.
        let goal = [0.1_f32, 1.0, -1.0, -0.2];
        let mut layer = Layer::new(vec![2.0, 0.5, -0.5, -3.0], None);
        let slope = |weights: &[f32]| weights.iter().zip(goal).map(|(w, goal)| w - goal).collect::<Vec<f32>>();
        let rate = 0.1;
        let first = slope(&layer.weights);
        layer.move_scores(&first, rate);
        let expected = [-0.1 * 2.0 * 1.9, 0.1 * 0.5 * 0.5, 0.1 * 0.5 * 0.5, -0.1 * 3.0 * 2.8];
        assert!(layer.scores.iter().zip(expected).all(|(score, expected)| (score - expected).abs() < 1e-6), "{:?}", layer.scores);
        let stepped: Vec<f32> = layer.weights.iter().zip(&first).map(|(w, g)| w - 0.1 * g).collect();
        // The two that stay are the smallest, but they move away from zero.
        assert_eq!(layer.choose(&stepped, 0.5), [0.0, stepped[1], stepped[2], 0.0]);
    }

    #[test]
    fn a_weight_out_of_use_keeps_its_value_and_comes_back_when_its_score_is_among_the_highest() {
        let mut layer = Layer::new(vec![2.0, 0.5], None);
        layer.move_scores(&[1.0, -1.0], 0.1);
        assert_eq!(layer.choose(&[1.9, 0.6], 0.5), [0.0, 0.6]);
        // The optimizer's momentum moves the unused weight, which does not count.
        assert_eq!(layer.choose(&[-0.1, 0.7], 0.5), [0.0, 0.7]);
        layer.move_scores(&[-9.0, 1.0], 0.1);
        assert!((layer.scores[0] - (-0.2 + 0.9 * 1.9)).abs() < 1e-6);
        assert_eq!(layer.choose(&[-0.2, 0.6], 0.5), [1.9, 0.0]);
    }

    #[test]
    fn the_share_in_use_falls_by_the_cube_between_warmup_and_cooldown() {
        let scores = Scores { layers: BTreeMap::new(), keep: [(0, 0.2)].into(), warmup: 0.1, cooldown: 0.3 };
        let share = |step| scores.share(0, step, 100);
        assert_eq!((share(0), share(9)), (1.0, 1.0));
        assert!((share(39) - (0.2 + 0.8 * 0.125)).abs() < 1e-9);
        assert!((share(69) - 0.2).abs() < 1e-9 && share(99) == 0.2);
    }

    #[test]
    fn training_ends_at_the_share_and_tuning_leaves_the_mask() {
        let train = serde_json::json!({ "epochs": 5, "batch": 10, "lr": 0.01 });
        let settings =
            serde_json::json!({ "keep": { "fc": 0.4, "conv2": 0.25 }, "train": train, "tune": { "epochs": 1, "batch": 10 } });
        let net = run::<Movement>(small(), settings).unwrap();
        let left = |layer: &str| get(&net, layer, "weight").iter().filter(|w| **w != 0.0).count();
        assert_eq!((left("fc1"), left("fc2"), left("conv1"), left("conv2")), (24, 6, 16, 12));
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<Movement>(small(), serde_json::json!({ "keep": { "fc1": 0.0 }, "train": {} }));
        assert_eq!(none, "node 'fc1': keep = 0 would remove every weight; keep a share above 0");
        let detail = "movement: `train` needs an epoch, and `warmup` and `cooldown` together must leave a part of it";
        for settings in [
            serde_json::json!({ "keep": 0.5, "train": { "epochs": 0 } }),
            serde_json::json!({ "keep": 0.5, "warmup": 0.6, "cooldown": 0.4, "train": {} }),
        ] {
            assert_eq!(refusal::<Movement>(small(), settings), detail);
        }
    }
}
