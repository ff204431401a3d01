//! Ternary weights.
//!
//! A weight `w` becomes `s`, 0 or `-s`. With the threshold `d = 0.7 mean |w|`, beyond which a weight is not 0, the scale
//! `s = mean of |w| over |w| > d` minimizes the squared error; both follow the weights after every step (TWN). With `scales = "learned"`,
//! the threshold is `d = threshold max |w|`, and the two scales are trained by the loss, each by the sum of the gradients of its weights
//! ([`Source::Ternary`], TTQ).
//!
//! ```
//! use briquette_core::coding;
//! use briquette_pruning_sharing::quantization::ternary::{self, Per};
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::Device;
//!
//! let layer: Linear = LinearConfig::new(20, 30).init(&Device::flex());
//! let layer = ternary::ternarize(layer, |_| Some(Per::Tensor));
//! let mut values: Vec<u32> = coding::weights(&layer)[0].values.iter().map(|w| w.abs().to_bits()).collect();
//! values.sort_unstable();
//! values.dedup();
//! assert_eq!(values.len(), 2);
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::ternary::Ternary;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: Ternary = serde_json::from_value(serde_json::json!({ "train": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! let distinct: std::collections::BTreeSet<u32> = values.iter().map(|w| w.to_bits()).collect();
//! assert_eq!(distinct.len(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! Li, Zhang, Liu. "Ternary Weight Networks". arXiv:1605.04711, 2016.
//! Zhu, Han, Mao, Dally. "Trained Ternary Quantization". ICLR 2017. arXiv:1612.01064.
//! Differs from the papers: TWN may have a threshold and a scale for each filter, and TTQ's scales begin at the means of the weights that
//! they stand for.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::coding::{self, Coding, Rounding, Source, Weight, adjust_kept};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::quantize::mean;
use briquette_core::training::{Extras, Projection, Recipe, fit};
use briquette_core::types::{Bits, Layers, PerLayer};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::Deserialize;

use briquette_parts::observers::{LEAST_STEP, Scale};
use briquette_parts::quantizers::{grid, layers, on_grids};
use briquette_parts::steps::paths;

pub use briquette_parts::quantizers::Per;

/// Trains weights of three values.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ternary {
    /// Where the scales come from.
    #[serde(default)]
    scales: Scales,
    /// What has a scale of its own, where scales are means.
    per: Option<Per>,
    /// Share of the layer's largest weight below which a weight becomes zero, where scales are learned.
    threshold: Option<f64>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training.
    train: Recipe,
}

/// Where the scales come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scales {
    /// The mean of the weights beyond the threshold, one for both signs.
    #[default]
    Mean,
    /// The loss, one for each sign.
    Learned,
}

impl Method for Ternary {
    const NAME: &'static str = "ternary";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Li, Zhang, Liu, arXiv:1605.04711; Zhu, Han, Mao, Dally, ICLR 2017, arXiv:1612.01064";
    const EXAMPLE: &'static str = "train = { epochs = 10 }";
}

impl Pass for Ternary {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (net, paths) = self.train(net, cx)?;
        Ok(settled(net, &paths))
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        let share = self.threshold.unwrap_or(SHARE);
        match self.scales {
            Scales::Mean if self.threshold.is_some() => {
                return Err(Error::Invalid("ternary: `threshold` is of learned scales; add scales = \"learned\"".into()));
            }
            Scales::Learned if self.per.is_some() => {
                return Err(Error::Invalid("ternary: learned scales are two for each layer; leave out `per`".into()));
            }
            Scales::Mean | Scales::Learned if !(0.0..1.0).contains(&share) => {
                return Err(Error::Invalid(format!("ternary: threshold lies in [0, 1), not {share}")));
            }
            Scales::Mean | Scales::Learned => {}
        }
        let two = PerLayer::All(Bits::try_from(2).map_err(Error::Invalid)?);
        let layers = layers(Self::NAME, &net, &two, &self.layers.without(&self.except, &net)?, (|_| true, "2"))?;
        let chosen = |weight: &Weight| weight.node().is_some_and(|node| layers.contains_key(&node));
        Ok(match self.scales {
            Scales::Mean => {
                let per = self.per.unwrap_or(Per::Tensor);
                ternarize(net, |weight| chosen(weight).then_some(per))
            }
            Scales::Learned => {
                let learned = |weight: &Weight| chosen(weight).then(|| source(&weight.values, share as f32));
                let codings = coding::weights(&net).into_iter().filter_map(|weight| {
                    let source = learned(&weight)?;
                    Some((weight.path, Coding { mask: weight.coding.mask, source }))
                });
                let codings: BTreeMap<String, Coding> = codings.collect();
                coding::recode(net, codings)
            }
        })
    }
}

impl Ternary {
    /// The trained network, and the paths of the weights whose scales are means.
    fn train(&self, net: Net, cx: &mut Context<'_>) -> Result<(Net, BTreeSet<String>)> {
        let net = self.plan(net)?;
        let mean = |weight: &Weight| matches!(&weight.coding.source, Source::Grid { rounding: Rounding::Threshold, .. });
        let mut refreshed = Refreshed(paths(&net, mean));
        let net = fit(net, &self.train, Extras { projections: vec![&mut refreshed], ..Extras::default() }, cx)?;
        Ok((net, refreshed.0))
    }
}

/// The network without what lies underneath the weights at these paths: a mean that is taken in another order could carry a weight over the
/// threshold.
fn settled(net: Net, paths: &BTreeSet<String>) -> Net {
    let own = coding::weights(&net).into_iter().filter(|weight| paths.contains(&weight.path));
    let codings = own.map(|weight| (weight.path, weight.coding.settled(&weight.values))).collect();
    coding::recode(net, codings)
}

/// Share of the largest weight in Zhu et al.'s threshold.
const SHARE: f64 = 0.05;

/// Makes tensors of rank 2 or more in any Burn module ternary. `per` says what has a scale of its own; tensors for which it gives none are
/// left alone. Masked weights stay zero.
pub fn ternarize<M: Module>(module: M, per: impl Fn(&Weight) -> Option<Per>) -> M {
    let chosen: BTreeSet<String> =
        coding::weights(&module).into_iter().filter(|weight| per(weight).is_some()).map(|weight| weight.path).collect();
    // The steps are those of the next line.
    let unit = |weight: &Weight| Some(grid(weight, 3, per(weight)?, |_| Scale { step: 1.0, zero: 1.0 }));
    refresh(on_grids(module, (Rounding::Threshold, false), unit), &chosen)
}

/// Gives the weights at these paths the scales of what lies underneath.
fn refresh<M: Module>(module: M, paths: &BTreeSet<String>) -> M {
    adjust_kept(module, |path, base, mask, steps| {
        let steps = if paths.contains(path) { scales(&base, mask.as_ref()) } else { steps };
        (base, steps)
    })
}

/// For each channel of `[before, channels, behind]`, the mean of what exceeds `0.7 mean |w|`, both means being over what a mask keeps.
fn scales(base: &Tensor<3>, mask: Option<&Tensor<3>>) -> Tensor<1> {
    let size = base.clone().abs();
    let threshold = mean(&size, mask).mul_scalar(0.7).expand(size.shape());
    let large = size.clone().greater(threshold).float();
    let large = mask.map_or(large.clone(), |mask| large * mask.clone());
    let channels = size.dims()[1];
    mean(&size, Some(&large)).reshape([channels]).clamp_min(LEAST_STEP)
}

/// Two scales, each the mean of the weights that it stands for, or 1 where there are none.
fn source(values: &[f32], share: f32) -> Source {
    let threshold = share * values.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
    let mean = |sign: f32| {
        let beyond = || values.iter().map(|w| sign * w).filter(|w| *w > threshold);
        let (sum, count) = (beyond().map(f64::from).sum::<f64>(), beyond().count());
        if count == 0 { 1.0 } else { (sum / count as f64) as f32 }
    };
    Source::Ternary { scales: [mean(-1.0), mean(1.0)], share }
}

/// Gives the weights at these paths the scales of what they have become.
struct Refreshed(BTreeSet<String>);

impl Projection for Refreshed {
    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        refresh(net, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Silent;
    use briquette_core::net::Node;
    use briquette_core::stored::Storage;
    use briquette_core::training::evaluate;
    use burn::module::Param;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{context, get, images, outputs, refusal, run, small, stirred};

    fn tuned(epochs: usize, more: serde_json::Value) -> Net {
        let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.01 });
        let mut settings = serde_json::json!({ "train": train });
        if let (Some(settings), serde_json::Value::Object(more)) = (settings.as_object_mut(), more) {
            settings.extend(more);
        }
        run::<Ternary>(stirred(), settings).unwrap()
    }

    #[test]
    fn scales_are_the_means_beyond_the_threshold_and_the_best_for_its_signs() {
        let values = [[0.9_f32, -0.2, 0.31, -3.0], [0.05, 2.4, -0.1, 0.0]];
        let ternary = |per| {
            let filters = Tensor::<2>::from_floats(values, &Device::flex()).unsqueeze_dim::<3>(2);
            let param = ternarize(Param::from_tensor(filters), |_| Some(per));
            coding::weights(&param)[0].values.clone()
        };
        // Thresholds 0.7 * 1.1025 and 0.7 * 0.6375.
        let near = |found: Vec<f32>, wanted: [f32; 8]| found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(ternary(Per::Channel), [1.95, 0.0, 0.0, -1.95, 0.0, 2.4, 0.0, 0.0]));
        // 0.7 * 0.87.
        assert!(near(ternary(Per::Tensor), [2.1, 0.0, 0.0, -2.1, 0.0, 2.1, 0.0, 0.0]));
        let error = |scale: f32| {
            let codes = [1.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0];
            values.concat().iter().zip(codes).map(|(w, code)| (w - scale * code).powi(2)).sum::<f32>()
        };
        assert!(error(2.1) < error(2.0) && error(2.1) < error(2.2));
    }

    #[test]
    fn scales_follow_the_weights_underneath() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        for per in ["tensor", "channel"] {
            let train = serde_json::json!({ "epochs": 40, "batch": 10, "lr": 0.01 });
            let method: Ternary = serde_json::from_value(serde_json::json!({ "per": per, "train": train })).unwrap();
            let mut silent = Silent;
            let (net, paths) = method.train(stirred(), &mut context(&data, &mut silent)).unwrap();
            assert!(loss(&net) < loss(&tuned(0, serde_json::json!({ "per": per }))), "{per}");
            for (_, node) in net.weighted() {
                let weight = node.weight().unwrap();
                let Source::Grid { grid, .. } = &weight.coding.source else { panic!("{} is not on a grid", node.name) };
                assert_eq!(grid.axis, (per == "channel").then_some(0));
                let row = weight.base.len() / grid.steps.len();
                for (base, step) in weight.base.chunks(row).zip(&grid.steps) {
                    let threshold = 0.7 * base.iter().map(|w| w.abs()).sum::<f32>() / row as f32;
                    let beyond: Vec<f32> = base.iter().map(|w| w.abs()).filter(|w| *w > threshold).collect();
                    let mean = beyond.iter().sum::<f32>() / beyond.len() as f32;
                    assert!((step - mean).abs() < 1e-5 * mean, "{}: {step} {mean}", node.name);
                }
            }
            let settled = settled(net.deep_clone(), &paths);
            assert_eq!(outputs(&settled), outputs(&net));
            let fc1 = settled.nodes[settled.index("fc1").unwrap()].weight().unwrap();
            assert_eq!(fc1.base, fc1.values());
            let back = Net::from_model(&settled.to_model(Storage::default()).unwrap(), &device).unwrap();
            assert_eq!(outputs(&back), outputs(&settled));
        }
    }

    #[test]
    fn learned_scales_part_and_three_values_are_left() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        let learned = |epochs| tuned(epochs, serde_json::json!({ "scales": "learned", "threshold": 0.2 }));
        let (start, net) = (learned(0), learned(40));
        assert!(loss(&net) < loss(&start));
        let scales = |node: &Node| {
            let source = node.weight().unwrap().coding.source;
            let Source::Ternary { scales, .. } = source else { panic!("{} is not ternary: {source:?}", node.name) };
            scales
        };
        for ((_, begun), (_, node)) in start.weighted().zip(net.weighted()) {
            let (weight, [n, p], before) = (node.weight().unwrap(), scales(node), scales(begun));
            let values: BTreeSet<u32> = weight.values().iter().filter(|w| **w != 0.0).map(|w| w.to_bits()).collect();
            assert!(values.is_subset(&[p.to_bits(), (-n).to_bits()].into()), "{}", node.name);
            let moved = |after: f32, before: f32| (after - before).abs() > 1e-4;
            assert!(moved(n, before[0]) && moved(p, before[1]), "{}: {n} {p} {before:?}", node.name);
            assert!(moved(n - p, before[0] - before[1]), "{}: {n} {p} {before:?}", node.name);
        }
        let back = Net::from_model(&net.to_model(Storage::default()).unwrap(), &device).unwrap();
        assert_eq!(outputs(&back), outputs(&net));
        let again = Net::from_state(&net.to_state(), &device).unwrap();
        assert_eq!(outputs(&again), outputs(&net));
    }

    #[test]
    fn masked_weights_stay_zero_and_have_no_say_in_threshold_and_scales() {
        // Of the 60 weights of fc1 36 stay, in whose mean no zero counts.
        let pruned = crate::pruning::magnitude::prune(stirred(), |weight| (weight.shape == [12, 5]).then_some(0.6));
        let fc1 = pruned.index("fc1").unwrap();
        let weight = |net: &Net| net.nodes[fc1].weight().unwrap();
        let before = weight(&pruned);
        let sizes: Vec<f32> = before.values().iter().map(|w| w.abs()).filter(|w| *w != 0.0).collect();
        let threshold = 0.7 * sizes.iter().sum::<f32>() / sizes.len() as f32;
        let large: Vec<f32> = sizes.iter().copied().filter(|size| *size > threshold).collect();
        let scale = large.iter().sum::<f32>() / large.len() as f32;
        assert!(sizes.len() == 36 && large.len() < 36, "{sizes:?}");
        for (scales, epochs) in [("mean", 0), ("mean", 5), ("learned", 0), ("learned", 5)] {
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.01 });
            let settings = serde_json::json!({ "scales": scales, "except": ["conv*", "fc2"], "train": train });
            let after = weight(&run::<Ternary>(pruned.deep_clone(), settings).unwrap());
            assert_eq!(after.coding.mask, before.coding.mask, "{scales}");
            let masked = |(value, keep): (&f32, &bool)| *keep || *value == 0.0;
            assert!(after.values().iter().zip(after.coding.mask.as_ref().unwrap()).all(masked), "{scales}");
            if (scales, epochs) == ("mean", 0) {
                let expected = |w: &f32| if w.abs() > threshold { scale * w.signum() } else { 0.0 };
                let near = after.values().iter().zip(before.values()).all(|(found, w)| (found - expected(&w)).abs() < 1e-6);
                assert!(near, "{scale} {threshold}: {:?} {:?}", after.values(), before.values());
            }
        }
    }

    #[test]
    fn spared_layers_stay_and_zeros_do_no_harm() {
        let zeros = briquette_handmade::set(stirred(), "fc1", "weight", &vec![0.0; get(&small(), "fc1", "weight").len()]);
        for more in [serde_json::json!({ "except": ["conv1"] }), serde_json::json!({ "except": ["conv1"], "scales": "learned" })]
        {
            let mut settings = more;
            settings["train"] = serde_json::json!({ "epochs": 2, "batch": 10 });
            let net = run::<Ternary>(zeros.deep_clone(), settings).unwrap();
            assert!(outputs(&net).iter().all(|y| y.is_finite()));
            assert_eq!(net.nodes[net.index("conv1").unwrap()].weight().unwrap().coding, Coding::default());
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let refused = |more: serde_json::Value| refusal::<Ternary>(small(), more);
        let error = refused(serde_json::json!({ "threshold": 0.1, "train": {} }));
        assert_eq!(error, "ternary: `threshold` is of learned scales; add scales = \"learned\"");
        let error = refused(serde_json::json!({ "scales": "learned", "per": "channel", "train": {} }));
        assert_eq!(error, "ternary: learned scales are two for each layer; leave out `per`");
        let error = refused(serde_json::json!({ "scales": "learned", "threshold": 1.0, "train": {} }));
        assert_eq!(error, "ternary: threshold lies in [0, 1), not 1");
    }
}
