//! Fixed-point weights and activations.
//!
//! Weights and the inputs of layers are integers `q` times a step, `x = s (q - z)`, so that a layer's sum is one of products of integers,
//! `y = s_x s_w sum (q_x - z_x) (q_w - z_w) + b`, exact in 32 bits. Weights have a step for each filter or one for the whole layer and
//! lie evenly about 0 or between their extremes; inputs have one step, found on some training images ([`Observer`]), and no codes for
//! negative values where there are none. In order: batch norms are folded into the layers before them, [channels are
//! equalized](briquette_parts::equalize), weights and inputs rounded, [biases corrected](crate::quantization::bias_correction), and the network trained
//! on, rounding in every forward pass (quantization-aware training), if there is a recipe. With `fold = false` batch norms stay, so that the
//! training bears higher rates and fewer bits; the pass `fold-norms` then puts them into the steps.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::coding::weights;
//! use briquette_core::net::Op;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::fixed_point::{FixedPoint, Symmetry, Per, Reach, round};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let method: FixedPoint = serde_json::from_str(r#"{ "bits": 8, "activations": 8 }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! let fc = net.index("fc").unwrap();
//! assert!(net.nodes[net.nodes[fc].inputs[0]].op.quantize().is_some());
//! let values = net.nodes[fc].weight().unwrap().values();
//! assert!(values[..4].iter().any(|w| (w / values[..4].iter().fold(0.0_f32, |m, w| m.max(w.abs()))).abs() == 1.0));
//!
//! // Any module of Burn, and the bits of each of its weights.
//! let layer = round(LinearConfig::new(20, 10).init(&Device::flex()), |_| Some(3), Per::Channel, Symmetry::Symmetric, Reach::MinMax);
//! for filter in weights(&layer)[0].filters().chunks(20) {
//!     let largest = filter.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
//!     assert!(filter.iter().all(|w| (3.0 * w / largest - (3.0 * w / largest).round()).abs() < 1e-5));
//! }
//! ```
//!
//! Vanhoucke, Senior, Mao. "Improving the speed of neural networks on CPUs". NIPS 2011 workshop on deep learning.
//! Training with rounding and ranges by moving averages: Jacob et al. "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference". CVPR 2018. arXiv:1712.05877.
//! Differs from the papers: inputs of all layers may have other widths than 8 bits, biases and what is between layers stay in floating
//! point, and ranges of inputs are those of the network before its weights are rounded.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::StepGradient;
use briquette_core::coding::{Rounding, Weight};
use briquette_core::context::{Context, Event};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{Bits, Layers, PerLayer};
use burn::module::Module;
use serde::Deserialize;

use crate::quantization::bias_correction::{correct, output_means};
use briquette_parts::equalize::equalize;
use briquette_parts::observers::{Calibration, Percentile, Scale, observe};
use briquette_parts::quantizers::{Site, activation_levels, layers, on_grids, place, sites, weight_grid};
use briquette_parts::steps::Positive;
use briquette_parts::yes;

pub use briquette_parts::observers::Observer;
pub use briquette_parts::quantizers::{Per, Reach, Symmetry};

/// Puts weights and activations on uniform grids.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FixedPoint {
    /// Bits of the weights: 2 to 8, or 16.
    bits: PerLayer<Bits>,
    /// Bits of the values that the layers read, 2 to 8; without, they stay in floating point.
    activations: Option<PerLayer<Bits>>,
    /// What has a step of its own.
    #[serde(default)]
    per: Per,
    /// Whether weights lie evenly about 0.
    #[serde(default)]
    weights: Symmetry,
    /// How far the weights' grids reach.
    #[serde(default)]
    reach: Reach,
    /// How the activations' ranges follow from what was seen.
    #[serde(default)]
    observer: Observer,
    /// How much of the activations the observer `percentile` holds inside, in percent.
    #[serde(default)]
    percentile: Percentile,
    /// Training images that ranges and mean outputs are taken from.
    #[serde(default = "images")]
    calibration_images: usize,
    /// Images at a time.
    #[serde(default = "batch")]
    batch: usize,
    /// Whether batch norms are folded first, so that grids are those of the folded weights.
    #[serde(default = "yes")]
    fold: bool,
    /// Whether channels are equalized; those between layers of which one shares its weights are left, with a note.
    #[serde(default)]
    equalize: bool,
    /// Whether biases are corrected.
    #[serde(default)]
    bias_correction: bool,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Whether the training moves the steps too.
    #[serde(default)]
    learned: bool,
    /// Training with rounded weights and activations.
    tune: Option<Recipe>,
}

impl Method for FixedPoint {
    const NAME: &'static str = "fixed-point";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Vanhoucke, Senior, Mao, NIPS 2011 workshop; Jacob et al., CVPR 2018, arXiv:1712.05877";
    const EXAMPLE: &'static str = "bits = 8\nactivations = 8";
}

impl Pass for FixedPoint {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (net, notes) = self.prepare(net)?;
        notes.iter().for_each(|note| cx.host.event(Event::Note(&format!("fixed-point: {note}"))));
        let (layers, sites) = self.targets(&net)?;
        let amount = Calibration { images: self.calibration_images, batch: self.batch };
        let seen = match sites.is_empty() {
            true => BTreeMap::new(),
            false => observe(&net, &sites.iter().map(|site| site.value).collect::<BTreeSet<_>>(), amount, cx)?,
        };
        let names: Vec<String> = layers.keys().map(|layer| net.nodes[*layer].name.clone()).collect();
        let means = if self.bias_correction { Some(output_means(&net, &names, amount, cx)?) } else { None };
        let scale = |site: &Site| seen[&site.value].scale(self.observer, site.levels, self.percentile.share());
        let mut net = self.quantize(net, &layers, sites, scale)?;
        if let Some(means) = means {
            net = correct(net, &means, amount, cx)?;
        }
        if let Some(recipe) = &self.tune {
            net = fit(net, recipe, Extras { projections: vec![&mut Positive], ..Extras::default() }, cx)?;
        }
        Ok(net)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let (net, _) = self.prepare(net)?;
        let (layers, sites) = self.targets(&net)?;
        self.quantize(net, &layers, sites, |_| Scale { step: 1.0, zero: 0.0 })
    }

    fn shorten(&mut self) {
        self.calibration_images = self.calibration_images.min(50);
    }
}

impl FixedPoint {
    /// The network whose weights and activations are rounded, and what the user should know.
    fn prepare(&self, net: Net) -> Result<(Net, Vec<String>)> {
        Calibration { images: self.calibration_images, batch: self.batch }.check(Self::NAME)?;
        if self.learned && self.tune.is_none() {
            return Err(Error::Invalid("fixed-point: `learned` takes a training; add `tune` or leave it out".into()));
        }
        let net = if self.fold { net.fold_norms()? } else { net };
        // Refuses what cannot be scaled before it is.
        self.targets(&net)?;
        if self.equalize { equalize(net) } else { Ok((net, Vec::new())) }
    }

    /// The layers with their bits, and where their inputs are quantized.
    fn targets(&self, net: &Net) -> Result<(BTreeMap<usize, u32>, Vec<Site>)> {
        let allowed = |bits| (2..=8).contains(&bits) || bits == 16;
        let layers = layers(Self::NAME, net, &self.bits, &self.layers.without(&self.except, net)?, (allowed, "2 to 8 or 16"))?;
        let eight = |bits| (2..=8).contains(&bits);
        let levels = activation_levels(Self::NAME, net, self.activations.as_ref(), &layers, (eight, "2 to 8"))?;
        Ok((layers, sites(net, levels)))
    }

    fn quantize(&self, net: Net, layers: &BTreeMap<usize, u32>, sites: Vec<Site>, scale: impl Fn(&Site) -> Scale) -> Result<Net> {
        let net = on_grids(net, (Rounding::Nearest, self.learned), |weight| {
            Some(weight_grid(weight, *layers.get(&weight.node()?)?, self.per, self.weights, self.reach))
        });
        let quantizers: Vec<(Site, Scale)> = sites.into_iter().map(|site| (site.clone(), scale(&site))).collect();
        place(net, &quantizers, if self.learned { StepGradient::Learned } else { StepGradient::Fixed })
    }
}

/// Rounds each tensor of rank 2 or more in any Burn module to the nearest values of a grid; `bits` gives how many, brought within 2 to
/// 16, and tensors for which it gives none are left alone. Further training rounds in every forward pass.
pub fn round<M: Module>(module: M, bits: impl Fn(&Weight) -> Option<u32>, per: Per, symmetry: Symmetry, reach: Reach) -> M {
    let grid = |weight: &Weight| Some(weight_grid(weight, bits(weight)?.clamp(2, 16), per, symmetry, reach));
    on_grids(module, (Rounding::Nearest, false), grid)
}

fn images() -> usize {
    256
}

fn batch() -> usize {
    32
}

#[cfg(test)]
mod tests;
