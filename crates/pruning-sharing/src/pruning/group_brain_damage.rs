//! Group-wise brain damage.
//!
//! Written as a product of matrices, a convolution multiplies its weight `[out, in * kh * kw]` with the unfolded input. Training with the
//! penalty `Omega = lambda sum_{i,j,s} ||K(i, j, s, :)||`, whose groups are the weights of all filters at the place `(i, j)` of the kernel
//! and the input channel `s`, empties whole columns of the weight, which are the rows of the unfolded input. What is left multiplies a
//! thinner matrix: the engine unfolds nothing for a column that is zero. A convolution in groups is as many products, and its columns
//! those of each: a channel is read by the filters of one group alone.
//!
//! ```
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::group_brain_damage::GroupBrainDamage;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(3, 2));
//! let x = b.flatten("flatten", x);
//! b.linear("fc", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let settings = r#"{ "lambda": 0.1, "ratio": 0.5, "train": { "epochs": 2 } }"#;
//! let method: GroupBrainDamage = serde_json::from_str(settings).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! // Two of the four places of the kernel are left, in all three filters.
//! assert_eq!(net.nodes[1].weight().unwrap().values().iter().filter(|w| **w != 0.0).count(), 2 * 3);
//! ```
//!
//! Lebedev, Lempitsky. "Fast ConvNets Using Group-wise Brain Damage". CVPR 2016. arXiv:1506.02515.
//! Differs from the paper: the penalty acts by its proximal step after each step of the optimizer, and how many columns go is set by `ratio`
//! or by one `threshold` for all layers instead of by a threshold that moves during the training.

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::training::{Extras, Recipe, fit, tune};
use briquette_core::types::{Layers, PerLayer, Ratio};
use serde::Deserialize;

use crate::pruning::empty::refuse_empty;
use crate::pruning::proximal::{Groups, Penalty, Proximal};
use briquette_parts::masks::{highest, mask_layers};

/// Trains whole columns of the convolutions' matrices to zero and masks them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GroupBrainDamage {
    /// Strength of the penalty.
    lambda: f64,
    /// Share of each convolution's columns that goes, those of the smallest norms, for all or by name.
    ratio: Option<PerLayer<Ratio>>,
    /// In place of `ratio`: columns of a norm up to this go.
    threshold: Option<f64>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training with the penalty; `choose = "last"` keeps it from returning an early epoch.
    train: Recipe,
    /// Training of what is left, without the penalty.
    tune: Option<Recipe>,
}

impl Method for GroupBrainDamage {
    const NAME: &'static str = "group-brain-damage";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Lebedev, Lempitsky, CVPR 2016, arXiv:1506.02515";
    const EXAMPLE: &'static str = "lambda = 1e-2\nratio = 0.6\ntrain = { epochs = 10, choose = \"last\" }";
}

impl Pass for GroupBrainDamage {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (penalty, _) = self.check(&net)?;
        let mut proximal = Proximal::new(vec![penalty]);
        let net = fit(net, &self.train, Extras { projections: vec![&mut proximal], ..Extras::default() }, cx)?;
        refuse_empty(&net, "lower `lambda`, or name it in `except`")?;
        let net = self.mask(net)?;
        tune(net, self.tune.as_ref(), cx)
    }

    /// With a threshold, which only a trained network meets, nothing is masked.
    fn plan(&self, net: Net) -> Result<Net> {
        self.check(&net)?;
        if self.threshold.is_some() { Ok(net) } else { self.mask(net) }
    }

    fn estimate(&self) -> Option<&'static str> {
        self.threshold.map(|_| "how many columns fall to the threshold follows from the training")
    }
}

impl GroupBrainDamage {
    /// The penalty, and for each of its layers the share of columns that goes.
    fn check(&self, net: &Net) -> Result<(Penalty, BTreeMap<usize, f64>)> {
        if self.ratio.is_some() == self.threshold.is_some() {
            return Err(Error::Invalid("group-brain-damage takes exactly one of `ratio` and `threshold`".into()));
        }
        if let Some(threshold) = self.threshold.filter(|threshold| !(threshold.is_finite() && *threshold >= 0.0)) {
            return Err(Error::Invalid(format!("group-brain-damage: threshold must be 0 or more, is {threshold}")));
        }
        self.train.check()?;
        let chosen = self.layers.without(&self.except, net)?;
        let convolution = |index: &usize| matches!(&net.nodes[*index].op, Op::Conv2d(_));
        if let Some(ratio) = &self.ratio {
            let why = "is no convolution, whose columns alone go; use structured-sparsity for it";
            ratio.all_done(net, |index| convolution(&index), why)?;
        }
        self.layers.all_done(net, |index| convolution(&index), "is no convolution; use structured-sparsity for it")?;
        let named: BTreeMap<usize, f64> = match &self.ratio {
            Some(ratio) => ratio.resolve_within(net, &chosen)?.into_iter().map(|(index, ratio)| (index, ratio.get())).collect(),
            None => chosen.iter().map(|index| (*index, 0.0)).collect(),
        };
        let shares: BTreeMap<usize, f64> = named.into_iter().filter(|(index, _)| convolution(index)).collect();
        if shares.is_empty() {
            let detail = "group-brain-damage: no convolution is named; use structured-sparsity for other layers";
            return Err(Error::Invalid(detail.into()));
        }
        if let Some((index, _)) = shares.iter().find(|(_, share)| **share >= 1.0) {
            return Err(Error::node(&net.nodes[*index].name, "ratio = 1 would remove every column; remove a share below 1"));
        }
        let penalty = Penalty { groups: Groups::Columns, layers: shares.keys().copied().collect(), strength: self.lambda };
        penalty.check(Self::NAME, net)?;
        Ok((penalty, shares))
    }

    /// Masks the columns that go; the largest of each layer stays.
    fn mask(&self, net: Net) -> Result<Net> {
        let (_, shares) = self.check(&net)?;
        let groups: Vec<usize> = net.nodes.iter().map(groups).collect();
        mask_layers(net, |index, weight| {
            let removed = shares.get(&index)?;
            let norms = columns(weight, groups[index]);
            let share = match self.threshold {
                Some(threshold) => norms.iter().filter(|norm| **norm > threshold).count() as f64 / norms.len() as f64,
                None => 1.0 - removed,
            };
            let (rows, depth) = (weight.shape[0] / groups[index], norms.len() / groups[index]);
            let stays = highest(norms, None, share);
            Some((0..weight.base.len()).map(|i| stays[i / depth / rows * depth + i % depth]).collect())
        })
    }
}

/// Groups of channels of a convolution.
fn groups(node: &Node) -> usize {
    node.dense().map_or(1, |dense| dense.groups)
}

/// The norms of the columns of a weight as a matrix `[out / groups, in / groups * kh * kw]` for each group, group after group.
fn columns(weight: &Stored, groups: usize) -> Vec<f64> {
    let values = weight.values();
    let depth = values.len() / weight.shape[0];
    let norm =
        |part: &[f32], column: usize| part.iter().skip(column).step_by(depth).map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    values.chunks(values.len() / groups).flat_map(|part| (0..depth).map(move |column| norm(part, column))).collect()
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::floats;
    use briquette_core::stored::Storage;
    use briquette_core::training::probe;
    use briquette_runtime::Engine;
    use burn::tensor::{Device, Tensor, TensorData};

    use super::*;
    use briquette_handmade::{context, get, images, refusal, run, set, small};

    /// [out 3, in 4, 2, 2] with column norms that grow from column 15 to column 0.
    fn graded() -> Net {
        let row = [1.6, -1.5, 1.4, -1.3, 1.2, -1.1, 1.0, -0.9, 0.8, -0.7, 0.6, -0.5, 0.4, -0.3, 0.2, -0.1];
        set(small(), "conv2", "weight", &[row; 3].concat())
    }

    fn settings(more: &serde_json::Value) -> serde_json::Value {
        let mut all = serde_json::json!({ "lambda": 0.0, "train": { "epochs": 0 }, "except": ["conv1"] });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    }

    #[test]
    fn whole_columns_of_the_smallest_norms_go() {
        // The norm of column c is (1.6 - 0.1 c) times the root of 3.
        for how in [serde_json::json!({ "ratio": 0.75 }), serde_json::json!({ "threshold": 1.25 * 3.0_f64.sqrt() })] {
            let net = run::<GroupBrainDamage>(graded(), settings(&how)).unwrap();
            let left: Vec<bool> = get(&net, "conv2", "weight").iter().map(|w| *w != 0.0).collect();
            assert_eq!(left, (0..48).map(|i| i % 16 < 4).collect::<Vec<_>>());
            assert_eq!(get(&net, "conv1", "weight"), get(&small(), "conv1", "weight"));
        }
    }

    #[test]
    fn a_convolution_in_groups_that_is_named_loses_columns_of_each_group() {
        let mut b = Builder::new([1, 4, 4], 2, &Device::flex());
        let x = b.conv("first", b.input(), Conv::new(4, 1));
        let x = b.conv("grouped", x, Conv::new(2, 2).groups(2));
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        // [out 2, in 2, 2, 2]: each filter reads two channels of its own.
        let rows = [[16.0, 1.0, 14.0, 3.0, 12.0, 5.0, 10.0, 7.0], [2.0, 15.0, 4.0, 13.0, 6.0, 11.0, 8.0, 9.0]];
        let net = set(b.finish().unwrap(), "grouped", "weight", &rows.concat());
        let settings = serde_json::json!({ "lambda": 0.0, "ratio": { "grouped": 0.5 }, "train": { "epochs": 0 } });
        let masked = run::<GroupBrainDamage>(net.deep_clone(), settings).unwrap();
        let left = [[16.0, 0.0, 14.0, 0.0, 12.0, 0.0, 10.0, 0.0], [0.0, 15.0, 0.0, 13.0, 0.0, 11.0, 0.0, 9.0]];
        assert_eq!(get(&masked, "grouped", "weight"), left.concat());
        let engine = |net: &Net| Engine::new(&net.to_model(Storage::default()).unwrap(), 1).unwrap();
        let pixels: Vec<f32> = (0..16).map(|i| (i * i % 7) as f32 / 7.0).collect();
        let found = engine(&masked).run(&pixels, 1).unwrap();
        let input = Tensor::<4>::from_data(TensorData::new(pixels, [1, 1, 4, 4]), &Device::flex());
        assert!(found.iter().zip(floats(masked.forward(input))).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    #[test]
    fn the_thinned_product_of_the_engine_equals_the_masked_one() {
        let net = run::<GroupBrainDamage>(graded(), settings(&serde_json::json!({ "ratio": 0.75 }))).unwrap();
        let (data, mut silent) = (images(), briquette_core::context::Silent);
        let mut masked = Vec::new();
        let mut pixels = Vec::new();
        probe(&mut context(&data, &mut silent), "all", (1, 40), &Device::flex(), |images, _| {
            pixels = floats(images.clone());
            masked = floats(net.forward(images));
            Ok(())
        })
        .unwrap();
        let engine = |net: &Net| Engine::new(&net.to_model(Storage::default()).unwrap(), 1).unwrap();
        let thinned = engine(&net).run(&pixels, 40).unwrap();
        assert!(thinned.iter().zip(&masked).all(|(a, b)| (a - b).abs() < 1e-4), "{thinned:?} and {masked:?}");
        // 12 of 16 columns are gone, and with them as many weights of the engine.
        assert!(engine(&net).peak_bytes(1) < engine(&graded()).peak_bytes(1));
    }

    #[test]
    fn the_training_empties_columns_and_the_tuning_leaves_them_empty() {
        let empty = |lambda: f64| {
            let train = serde_json::json!({ "epochs": 60, "batch": 5, "optimizer": "sgd", "lr": 0.1, "choose": "last" });
            let more =
                serde_json::json!({ "lambda": lambda, "threshold": 0.0, "train": train, "tune": { "epochs": 2, "batch": 20 } });
            let net = run::<GroupBrainDamage>(small(), settings(&more)).unwrap();
            columns(&net.nodes[net.index("conv2").unwrap()].weight().unwrap(), 1).iter().filter(|norm| **norm == 0.0).count()
        };
        assert_eq!(empty(0.0), 0);
        assert!((4..16).contains(&empty(0.05)), "{}", empty(0.05));
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let both = refusal::<GroupBrainDamage>(small(), settings(&serde_json::json!({ "ratio": 0.5, "threshold": 0.1 })));
        assert_eq!(both, "group-brain-damage takes exactly one of `ratio` and `threshold`");
        let all = refusal::<GroupBrainDamage>(small(), settings(&serde_json::json!({ "ratio": 1.0 })));
        assert_eq!(all, "node 'conv2': ratio = 1 would remove every column; remove a share below 1");
        let named = refusal::<GroupBrainDamage>(small(), settings(&serde_json::json!({ "ratio": { "conv2": 0.5, "fc1": 0.5 } })));
        assert_eq!(named, "node 'fc1': is no convolution, whose columns alone go; use structured-sparsity for it");
        let fc = refusal::<GroupBrainDamage>(small(), settings(&serde_json::json!({ "ratio": { "fc": 0.5 } })));
        assert!(fc.starts_with("group-brain-damage: no convolution"), "{fc}");
        let strength = refusal::<GroupBrainDamage>(small(), settings(&serde_json::json!({ "ratio": 0.5, "lambda": -1.0 })));
        assert_eq!(strength, "group-brain-damage: strengths must be 0 or more, not -1");
    }
}
