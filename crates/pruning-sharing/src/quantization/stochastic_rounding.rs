//! Training in fixed point with stochastic rounding.
//!
//! A format `<IL, FL>` has `IL` bits before and `FL` behind the binary point: the multiples of `e = 2^-FL` from `-2^(IL-1)` to `2^(IL-1) - e`,
//! to whose ends whatever lies beyond them saturates. After each step of the optimizer, weights and biases are rounded into their format,
//! up or down with probabilities that make the mean of the outcome the value, `P(up) = (x - floor_e(x)) / e`: a gradient that would move a
//! weight by less than `e` then moves it sometimes, instead of never. Activations that layers read are rounded into a format of their own in
//! every forward pass, while training by the same rule, to the nearest value otherwise; a shortcut that carries the same value past the layers has
//! it unrounded in both. Gradients have a format of their own, too: those of what the layers put out, on the way back, and those of weights and
//! biases before the optimizer takes them. Sums are those of the machine, wider than any of the formats, and are rounded once.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::coding::{adjust, weights};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::stochastic_rounding::{By, Format, StochasticRounding, round};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let settings = r#"{ "weights": { "integer": 2, "fraction": 6 }, "train": { "epochs": 5 } }"#;
//! let method: StochasticRounding = serde_json::from_str(settings).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert!(net.nodes[2].weight().unwrap().values().iter().all(|w| (w * 64.0).fract() == 0.0));
//!
//! // The weights of any module of Burn.
//! let format = Format { integer: 2, fraction: 6 };
//! let layer = round(LinearConfig::new(20, 10).init(&Device::flex()), format, |_| true);
//! // After each step of an optimizer:
//! let layer = adjust(layer, |_, base, steps| (format.round(base, By::Stochastic), steps));
//! assert!(weights(&layer)[0].values.iter().all(|w| (w * 64.0).fract() == 0.0));
//! ```
//!
//! Gupta, Agrawal, Gopalakrishnan, Narayanan. "Deep Learning with Limited Numerical Precision". ICML 2015. arXiv:1502.02551.
//! Differs from the paper: the optimizer's moments and normalization stay in floating point, activations and gradients too unless they are
//! given a format.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use briquette_core::chance;
use briquette_core::coding::{Rounding, Weight, adjust};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Value};
use briquette_core::objective::Taps;
use briquette_core::pass::{Method, Pass};
use briquette_core::quantize::{CoarseGradient, straight};
use briquette_core::training::{Extras, Forward, Projection, Recipe, fit};
use briquette_core::types::{Bits, Layers, PerLayer};
use briquette_core::{Grid, StepGradient};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::Deserialize;

use briquette_core::values::{plain, replace};
use briquette_parts::observers::Scale;
use briquette_parts::quantizers::{Site, layers, on_grids, place, sites};
use briquette_parts::steps::paths;

/// Trains with weights and activations in fixed point.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StochasticRounding {
    /// Format of weights and biases.
    #[serde(default = "unit")]
    weights: Format,
    /// Format of the values that the layers read; without, they stay in floating point.
    activations: Option<Format>,
    /// Format of the gradients of what the layers put out and of their weights and biases; without, they stay in floating point. They are those
    /// of the batch's mean loss, hence small.
    gradients: Option<Format>,
    /// How values are rounded while the network trains.
    #[serde(default)]
    rounding: By,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training.
    train: Recipe,
}

/// A fixed-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Format {
    /// `IL`: bits before the point, the sign's included.
    pub integer: u32,
    /// `FL`: bits behind it.
    pub fraction: u32,
}

/// How a value becomes one of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Up or down by chance, so that the mean is the value.
    #[default]
    Stochastic,
    /// To the nearest.
    Nearest,
}

impl Format {
    fn grid(self) -> Grid {
        let middle = 1_u32 << (self.integer + self.fraction - 1);
        Grid::uniform(2 * middle, self.step(), middle as f32)
    }

    fn step(self) -> f32 {
        0.5_f32.powi(self.fraction as i32)
    }

    /// The values rounded into the format.
    pub fn round<const D: usize>(self, x: Tensor<D>, by: By) -> Tensor<D> {
        let u = x.mul_scalar(1.0 / self.step());
        let up = match by {
            By::Nearest => u.add_scalar(0.5),
            By::Stochastic => u.clone() + chance::uniform_like(&u),
        };
        let end = f64::from(1_u32 << (self.integer + self.fraction - 1));
        up.floor().clamp(-end, end - 1.0).mul_scalar(self.step())
    }

    fn check(self, what: &str) -> Result<()> {
        let sound = self.integer >= 1 && (2..=16).contains(&self.integer.saturating_add(self.fraction));
        if sound {
            return Ok(());
        }
        let detail =
            format!("<{}, {}>; it takes 2 to 16 bits, at least one of them before the point", self.integer, self.fraction);
        Err(Error::Invalid(format!("stochastic-rounding: `{what}` is {detail}")))
    }
}

impl Method for StochasticRounding {
    const NAME: &'static str = "stochastic-rounding";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Gupta, Agrawal, Gopalakrishnan, Narayanan, ICML 2015, arXiv:1502.02551";
    const EXAMPLE: &'static str = "weights = { integer = 2, fraction = 14 }\ntrain = { epochs = 10 }";
}

impl Pass for StochasticRounding {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let layers = self.layers(&net)?;
        let layers: BTreeSet<String> = layers.keys().map(|layer| net.nodes[*layer].name.clone()).collect();
        let net = self.plan(net)?;
        let paths = paths(&net, |weight| weight.node().is_some_and(|node| layers.contains(&net.nodes[node].name)));
        let mut rounded = Rounded { format: self.weights, by: By::Nearest, layers, paths };
        // What is trained begins in the format.
        let net = rounded.project(net, 0, 1);
        rounded.by = self.rounding;
        let way = self.way(&net, &rounded.layers)?;
        let forward = way.as_ref().map(|way| way as &dyn Forward);
        fit(net, &self.train, Extras { projections: vec![&mut rounded], forward, ..Extras::default() }, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        let layers = self.layers(&net)?;
        let quantizers: Vec<(Site, Scale)> = match self.activations {
            None => Vec::new(),
            Some(format) => {
                let grid = format.grid();
                let scale = Scale { step: grid.steps[0], zero: grid.zeros[0] };
                sites(&net, layers.keys().map(|layer| (*layer, grid.levels))).into_iter().map(|site| (site, scale)).collect()
            }
        };
        let net = round(net, self.weights, |weight| weight.node().is_some_and(|node| layers.contains_key(&node)));
        place(net, &quantizers, StepGradient::Fixed)
    }
}

impl StochasticRounding {
    fn layers(&self, net: &Net) -> Result<BTreeMap<usize, u32>> {
        self.weights.check("weights")?;
        self.activations.map_or(Ok(()), |format| format.check("activations"))?;
        self.gradients.map_or(Ok(()), |format| format.check("gradients"))?;
        let bits = Bits::try_from(self.weights.integer + self.weights.fraction).map_err(Error::Invalid)?;
        layers(Self::NAME, net, &PerLayer::All(bits), &self.layers.without(&self.except, net)?, (|_| true, "2 to 16"))
    }

    fn coarse(&self) -> Option<CoarseGradient> {
        let rounding = match self.rounding {
            By::Stochastic => Rounding::Stochastic,
            By::Nearest => Rounding::Nearest,
        };
        self.gradients.map(|format| CoarseGradient::in_format(format.integer, format.fraction, rounding))
    }

    /// The training's own way through the network with its quantizers in place, if it has one. `layers` are by name, for quantizers move the
    /// indices; what an earlier pass quantized is none of them.
    fn way(&self, net: &Net, layers: &BTreeSet<String>) -> Result<Option<Way>> {
        let layers: Vec<usize> = layers.iter().map(|name| net.index(name)).collect::<Result<_>>()?;
        let noisy = self.activations.filter(|_| self.rounding == By::Stochastic).map(|format| Noisy::new(net, &layers, format));
        let gradients = self.coarse();
        Ok((noisy.is_some() || gradients.is_some()).then_some(Way { noisy, gradients, layers }))
    }
}

/// Rounds tensors of rank 2 or more in any Burn module, those that `choose` takes, to the nearest values of a format. Their training rounds
/// what is underneath after each step of the optimizer, with [`Format::round`] and [`adjust`].
pub fn round<M: Module>(module: M, format: Format, choose: impl Fn(&Weight) -> bool) -> M {
    on_grids(module, (Rounding::Nearest, false), |weight| choose(weight).then(|| format.grid()))
}

/// Rounds weights and biases after each step.
struct Rounded {
    format: Format,
    by: By,
    /// Whose biases.
    layers: BTreeSet<String>,
    /// Which weights.
    paths: BTreeSet<String>,
}

impl Projection for Rounded {
    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        let net = adjust(net, |path, base, steps| {
            let base = if self.paths.contains(path) { self.format.round(base, self.by) } else { base };
            (base, steps)
        });
        let rounded = net.nodes.iter().filter(|node| self.layers.contains(&node.name)).filter_map(|node| {
            let bias = node.dense()?.bias?;
            Some((bias.id, self.format.round(plain(bias.val()), self.by)))
        });
        let rounded: HashMap<_, _> = rounded.collect();
        replace(net, rounded)
    }
}

/// Has quantizers round what they read by chance. Only what they put out is touched: a shortcut that reads the same value has it as it is, while
/// training as afterwards.
struct Noisy {
    /// Each with the node that it reads.
    quantizers: BTreeMap<usize, usize>,
    format: Format,
}

impl Noisy {
    /// In front of each of these layers stands a quantizer of the pass's own.
    fn new(net: &Net, layers: &[usize], format: Format) -> Self {
        let own = |layer: &usize| net.nodes[*layer].inputs[0];
        Self { quantizers: layers.iter().map(own).map(|own| (own, net.nodes[own].inputs[0])).collect(), format }
    }

    /// What a quantizer draws of what it read, in the place of its own output and with the gradient of that.
    fn round(&self, read: Value, own: Value) -> Value {
        fn drawn<const D: usize>(format: Format, x: Tensor<D>, own: Tensor<D>) -> Tensor<D> {
            straight(format.round(x.detach(), By::Stochastic), own)
        }
        match own {
            Value::Map(own) => Value::Map(drawn(self.format, read.map(), own)),
            Value::Vector(own) => Value::Vector(drawn(self.format, read.vector(), own)),
        }
    }
}

/// The training's own way through the network.
struct Way {
    noisy: Option<Noisy>,
    /// Rounds the gradients of these layers.
    gradients: Option<CoarseGradient>,
    layers: Vec<usize>,
}

impl Way {
    /// The network whose layers round the gradients of their weights and biases.
    fn passing(&self, net: &Net) -> Net {
        let mut passing = net.clone();
        let Some(gradients) = self.gradients else { return passing };
        for &layer in &self.layers {
            passing.nodes[layer].pass_through(|weight| gradients.apply(weight), |bias| gradients.apply(bias));
        }
        passing
    }

    /// The output of a node with its gradient rounded, if it is one of the layers.
    fn coarse(&self, node: usize, value: Value) -> Value {
        match (self.gradients.filter(|_| self.layers.contains(&node)), value) {
            (Some(gradients), Value::Map(x)) => Value::Map(gradients.apply(x)),
            (Some(gradients), Value::Vector(x)) => Value::Vector(gradients.apply(x)),
            (None, value) => value,
        }
    }
}

impl Forward for Way {
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        // What quantizers will read.
        let mut kept: HashMap<usize, Value> = HashMap::new();
        let logits = self.passing(net).trace(images, |node, value| {
            let own = self.noisy.as_ref().and_then(|noisy| Some((noisy, kept.remove(noisy.quantizers.get(&node)?)?)));
            let value = own.map_or(value.clone(), |(noisy, read)| noisy.round(read, value));
            taps.meet(node, &value);
            let value = self.coarse(node, value);
            if self.noisy.iter().any(|noisy| noisy.quantizers.values().any(|read| *read == node)) {
                kept.insert(node, value.clone());
            }
            value
        });
        logits.vector()
    }
}

fn unit() -> Format {
    Format { integer: 2, fraction: 14 }
}

#[cfg(test)]
mod tests;
