//! Learned step sizes.
//!
//! Weights and the inputs of layers are on grids `x' = s round(clip(x / s, -Qn, Qp))`, whose steps `s` are trained by the loss: inside the
//! grid `dx'/ds = round(x / s) - x / s`, beyond its ends `-Qn` or `Qp`, and `dx'/dx` is 1 inside and 0 beyond. Weights and inputs with
//! negative values have `Qn = 2^(b-1)` and `Qp = 2^(b-1) - 1`, others `Qn = 0` and `Qp = 2^b - 1`. Steps begin at `2 mean |x| / sqrt(Qp)`, and
//! their gradients are divided by the root of the number of values times that of levels, so that they move in proportion to what they
//! round. The first and the last layer have 8 bits.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::coding::{Source, adjust, weights};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::learned_step::{LearnedStep, Per, round};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! let x = b.linear("fc1", x, 8);
//! let x = b.relu("relu", x);
//! let x = b.linear("fc2", x, 8);
//! b.linear("fc3", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let method: LearnedStep = serde_json::from_str(r#"{ "bits": 3, "activations": 3, "train": { "epochs": 5 } }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! let levels = |layer: &str| match net.nodes[net.index(layer).unwrap()].weight().unwrap().coding.source {
//!     Source::Grid { grid, .. } => grid.levels,
//!     _ => 0,
//! };
//! assert_eq!(["fc1", "fc2", "fc3"].map(levels), [256, 8, 256]);
//!
//! // Any module of Burn, and the bits of each of its weights; its steps are among the parameters that an optimizer moves.
//! let layer = round(LinearConfig::new(20, 10).init(&Device::flex()), |_| Some(2), Per::Tensor);
//! let mut values = weights(&layer)[0].values.clone();
//! values.sort_by(f32::total_cmp);
//! values.dedup();
//! assert!(values.len() <= 4);
//! // After each step of an optimizer:
//! let layer = adjust(layer, |_, base, steps| (base, steps.clamp_min(1e-8)));
//! # drop(layer);
//! ```
//!
//! Esser, McKinstry, Bablani, Appuswamy, Modha. "Learned Step Size Quantization". ICLR 2020. arXiv:1902.08153.
//! Differs from the paper: steps of activations begin at the mean over more images than a batch, weights may have a step for each filter,
//! and the number of levels in the gradient's divisor is `(levels - 1) / 2` for all grids.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::StepGradient;
use briquette_core::coding::{Rounding, Weight};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{Bits, Fit, Layers, PerLayer};
use burn::module::Module;
use serde::Deserialize;

use briquette_parts::observers::{Calibration, LEAST_STEP, Scale, observe};
use briquette_parts::quantizers::{Site, activation_levels, ends, grid, layers, on_grids, place, sites};
use briquette_parts::steps::Positive;

pub use briquette_parts::quantizers::Per;

/// Trains weights and activations on grids together with the grids' steps.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LearnedStep {
    /// Bits of the weights, 2 to 8.
    bits: PerLayer<Bits>,
    /// Bits of the values that the layers read, 2 to 8; without, they stay in floating point.
    activations: Option<PerLayer<Bits>>,
    /// Bits of both in the first and the last layer, 2 to 8, unless tables name these layers.
    #[serde(default = "eight")]
    ends: Bits,
    /// What has a step of its own.
    #[serde(default = "tensor")]
    per: Per,
    /// Training images from which the steps of the activations begin.
    #[serde(default = "images")]
    calibration_images: usize,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training.
    train: Recipe,
}

impl Method for LearnedStep {
    const NAME: &'static str = "learned-step";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Esser, McKinstry, Bablani, Appuswamy, Modha, ICLR 2020, arXiv:1902.08153";
    const EXAMPLE: &'static str = "bits = 4\nactivations = 4\ntrain = { epochs = 10 }";
}

impl Pass for LearnedStep {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (layers, sites) = self.targets(&net)?;
        let values: BTreeSet<usize> = sites.iter().map(|site| site.value).collect();
        let amount = Calibration { images: self.calibration_images, batch: 32 };
        let seen = if sites.is_empty() { BTreeMap::new() } else { observe(&net, &values, amount, cx)? };
        let net = self.quantize(net, &layers, sites, |site| seen[&site.value].mean_size)?;
        fit(net, &self.train, Extras { projections: vec![&mut Positive], ..Extras::default() }, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        let (layers, sites) = self.targets(&net)?;
        self.quantize(net, &layers, sites, |_| 1.0)
    }

    fn shorten(&mut self) {
        self.calibration_images = self.calibration_images.min(50);
    }
}

impl LearnedStep {
    /// The layers with their bits, and where their inputs are quantized.
    fn targets(&self, net: &Net) -> Result<(BTreeMap<usize, u32>, Vec<Site>)> {
        Calibration { images: self.calibration_images, batch: 32 }.check(Self::NAME)?;
        let eight = |bits| (2..=8).contains(&bits);
        if !eight(self.ends.get()) {
            return Err(Error::Invalid(format!("learned-step: `ends` takes 2 to 8 bits, not {}", self.ends.get())));
        }
        let which = self.layers.without(&self.except, net)?;
        let mut layers = layers(Self::NAME, net, &self.bits, &which, (eight, "2 to 8"))?;
        let mut levels = activation_levels(Self::NAME, net, self.activations.as_ref(), &layers, (eight, "2 to 8"))?;
        // What a table says of a layer by its name goes before `ends`.
        let named = |bits: &PerLayer<Bits>| -> Result<BTreeSet<usize>> {
            Ok(bits.fits(net)?.into_iter().filter(|(_, (fit, _))| *fit == Fit::Name).map(|(layer, _)| layer).collect())
        };
        let weights = named(&self.bits)?;
        let activations = self.activations.as_ref().map_or(Ok(BTreeSet::new()), named)?;
        for end in ends(net) {
            if !weights.contains(&end) {
                layers.entry(end).and_modify(|bits| *bits = self.ends.get());
            }
            if !activations.contains(&end) {
                levels.entry(end).and_modify(|levels| *levels = 1 << self.ends.get());
            }
        }
        let sites = sites(net, levels);
        Ok((layers, sites))
    }

    fn quantize(
        &self,
        net: Net,
        layers: &BTreeMap<usize, u32>,
        sites: Vec<Site>,
        mean_size: impl Fn(&Site) -> f64,
    ) -> Result<Net> {
        let net = round(net, |weight| layers.get(&weight.node()?).copied(), self.per);
        let quantizers = sites.into_iter().map(|site| {
            let scale = first(mean_size(&site), site.levels, site.unsigned);
            (site, scale)
        });
        place(net, &quantizers.collect::<Vec<_>>(), StepGradient::Learned)
    }
}

/// Puts each tensor of rank 2 or more in any Burn module on a grid whose steps are parameters of the module, which an optimizer moves with
/// the others; `bits` gives how many, brought within 2 to 16, and tensors for which it gives none are left alone. Steps must be kept above
/// 0, by [`adjust`](briquette_core::coding::adjust).
pub fn round<M: Module>(module: M, bits: impl Fn(&Weight) -> Option<u32>, per: Per) -> M {
    on_grids(module, (Rounding::Nearest, true), |weight| {
        let levels = 1 << bits(weight)?.clamp(2, 16);
        Some(grid(weight, levels, per, |values| first(mean_absolute(values), levels, false)))
    })
}

/// Where the step begins.
fn first(mean_size: f64, levels: u32, unsigned: bool) -> Scale {
    let zero = if unsigned { 0 } else { levels / 2 };
    let largest = f64::from(levels - 1 - zero);
    Scale { step: ((2.0 * mean_size / largest.sqrt()) as f32).max(LEAST_STEP), zero: zero as f32 }
}

fn mean_absolute(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(value.abs())).sum::<f64>() / values.len().max(1) as f64
}

fn eight() -> Bits {
    Bits::try_from(8).expect("8 bits are allowed")
}

fn tensor() -> Per {
    Per::Tensor
}

fn images() -> usize {
    128
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::{Source, floats};
    use briquette_core::context::Silent;
    use briquette_core::stored::Storage;
    use briquette_core::training::evaluate;
    use briquette_core::{Grid, layers};
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{get, images, outputs, refusal, run, set, small, stirred};

    fn grid(net: &Net, layer: &str) -> Grid {
        let source = net.nodes[net.index(layer).unwrap()].weight().unwrap().coding.source;
        let Source::Grid { grid, .. } = source else { panic!("{layer} is {source:?}") };
        grid
    }

    #[test]
    fn a_table_that_names_the_last_layer_goes_before_its_usual_bits() {
        let settings = serde_json::json!({
            "bits": { "rest": 4, "fc2": 3 }, "activations": { "conv": 4, "fc2": 2 }, "train": { "epochs": 0 }
        });
        let net = run::<LearnedStep>(small(), settings).unwrap();
        assert_eq!(["conv1", "conv2", "fc1", "fc2"].map(|layer| grid(&net, layer).levels), [256, 16, 16, 8]);
        let reads = |layer: &str| {
            let read = net.nodes[net.nodes[net.index(layer).unwrap()].inputs[0]].op.layer();
            if let briquette_core::Layer::Quantize(layers::Quantize { levels, .. }) = read { levels } else { 0 }
        };
        assert_eq!(["conv1", "conv2", "fc1", "fc2"].map(reads), [256, 16, 0, 4]);
    }

    #[test]
    fn steps_begin_at_twice_the_mean_over_the_root_of_the_largest_code() {
        let net = run::<LearnedStep>(
            small(),
            serde_json::json!({ "bits": 4, "activations": 4, "calibration-images": 40, "train": { "epochs": 0 } }),
        )
        .unwrap();
        let weights = get(&small(), "conv2", "weight");
        let mean = weights.iter().map(|w| w.abs()).sum::<f32>() / weights.len() as f32;
        let conv2 = grid(&net, "conv2");
        assert!((conv2.steps[0] - 2.0 * mean / 7.0_f32.sqrt()).abs() < 1e-6);
        assert_eq!((conv2.levels, conv2.zeros[0]), (16, 8.0));
        assert_eq!((grid(&net, "conv1").levels, grid(&net, "fc2").levels), (256, 256));
        let quantizers: Vec<(u32, f32)> =
            net.nodes.iter().filter_map(|node| node.op.quantize().map(|own| (own.levels, own.zero))).collect();
        assert_eq!(quantizers, [(256, 0.0), (16, 0.0), (16, 0.0), (256, 0.0)]);
        // The mean pixel, for pixels are never negative.
        let data = images();
        let pixels = (0..40_usize * 16).map(|i| f64::from((i * i * 31 % 251) as u8) / 255.0).sum::<f64>() / 640.0;
        let first = net.nodes.iter().find_map(|node| node.op.quantize()).unwrap();
        assert!((f64::from(floats(first.scale.val())[0]) - 2.0 * pixels / 255.0_f64.sqrt()).abs() < 1e-6);
        assert_eq!(data.train.len(), 40);
    }

    #[test]
    fn steps_begin_at_the_mean_of_what_pruning_left() {
        // Twelve of the 60 weights of fc1 stay, of which all would be clipped by a step from the mean over the zeros.
        let pruned = crate::pruning::magnitude::prune(small(), |weight| (weight.shape == [12, 5]).then_some(0.2));
        for per in ["tensor", "channel"] {
            let settings = serde_json::json!({ "bits": 3, "per": per, "train": { "epochs": 0 } });
            let net = run::<LearnedStep>(pruned.deep_clone(), settings).unwrap();
            let weight = pruned.nodes[pruned.index("fc1").unwrap()].weight().unwrap();
            let (steps, rows) = (grid(&net, "fc1").steps, if per == "tensor" { 1 } else { 5 });
            for (row, step) in weight.values().chunks(60 / rows).zip(&steps) {
                let left: Vec<f32> = row.iter().copied().filter(|w| *w != 0.0).collect();
                let mean = left.iter().map(|w| w.abs()).sum::<f32>() / left.len().max(1) as f32;
                assert!((step - (2.0 * mean / 3.0_f32.sqrt()).max(LEAST_STEP)).abs() < 1e-6, "{per}: {step} {mean}");
            }
        }
    }

    #[test]
    fn training_moves_the_steps_lowers_the_loss_and_ends_on_the_grids() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        let after = |epochs: usize, per: &str| {
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.01 });
            let settings =
                serde_json::json!({ "bits": 3, "activations": 3, "per": per, "calibration-images": 40, "train": train });
            run::<LearnedStep>(stirred(), settings).unwrap()
        };
        for per in ["tensor", "channel"] {
            let (before, trained) = (after(0, per), after(60, per));
            assert!(loss(&trained) < 0.9 * loss(&before), "{per}: {} {}", loss(&trained), loss(&before));
            for (_, node) in trained.weighted() {
                let (grid, weight) = (grid(&trained, &node.name), node.weight().unwrap());
                let channel = grid.channel_of(&weight.shape);
                let on = |(i, w): (usize, &f32)| *w == grid.value(channel(i), grid.nearest(channel(i), *w));
                assert!(weight.values().iter().enumerate().all(on), "{}", node.name);
                assert_ne!(grid.steps, self::grid(&before, &node.name).steps);
            }
            let back = Net::from_model(&trained.to_model(Storage::default()).unwrap(), &device).unwrap();
            assert_eq!(outputs(&back), outputs(&trained));
        }
    }

    #[test]
    fn steps_stay_positive_whatever_the_rate_and_for_weights_of_zero() {
        let zeros = set(stirred(), "conv2", "weight", &[0.0; 48]);
        let train = serde_json::json!({ "epochs": 3, "batch": 10, "lr": 2.0, "choose": "last" });
        let settings = serde_json::json!({ "bits": 2, "activations": 2, "calibration-images": 40, "train": train });
        match run::<LearnedStep>(zeros, settings) {
            Ok(net) => {
                net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
            }
            Err(error) => assert!(matches!(error, Error::Diverged { .. }), "{error}"),
        }
    }

    #[test]
    fn bits_out_of_range_are_refused() {
        let refused = |settings: serde_json::Value| refusal::<LearnedStep>(small(), settings);
        let error = refused(serde_json::json!({ "bits": 1, "train": {} }));
        assert_eq!(error, "node 'conv1': learned-step takes 2 to 8 bits, not 1");
        let error = refused(serde_json::json!({ "bits": 4, "ends": 16, "train": {} }));
        assert_eq!(error, "learned-step: `ends` takes 2 to 8 bits, not 16");
        let error = refused(serde_json::json!({ "bits": 4, "activations": 9, "train": {} }));
        assert_eq!(error, "learned-step: `activations` takes 2 to 8 bits, not 9");
        assert!(
            refused(serde_json::json!({ "bits": 4, "calibration-images": 0, "train": {} }))
                .starts_with("learned-step: `calibration-images`")
        );
    }
}
