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
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::floats;
    use briquette_core::context::Silent;
    use briquette_core::stored::Storage;
    use briquette_core::training::evaluate;
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::quantization::fixed_point::FixedPoint;
    use briquette_handmade::{get, images, outputs, refusal, run, set, small, stirred};

    #[test]
    fn the_mean_of_what_is_rounded_is_the_value_and_the_format_saturates() {
        let (format, device) = (Format { integer: 3, fraction: 2 }, Device::flex());
        chance::seed(9);
        let x = [0.1_f32, -0.6, 1.9, -3.99, 0.25, 0.0];
        let draws = 4000;
        let many = Tensor::<1>::from_floats(x, &device).reshape([1, 6]).repeat_dim(0, draws);
        let drawn = format.round(many, By::Stochastic);
        assert!(floats(drawn.clone()).iter().all(|v| (v * 4.0).fract() == 0.0));
        let mean = floats(drawn.mean_dim(0));
        // Four standard errors of a step of a quarter.
        assert!(mean.iter().zip(x).all(|(mean, x)| (mean - x).abs() < 4.0 * 0.125 / (draws as f32).sqrt()), "{mean:?}");
        for by in [By::Stochastic, By::Nearest] {
            let ends = format.round(Tensor::<1>::from_floats([9.0, -9.0, 3.9, -4.0], &device), by);
            assert_eq!(floats(ends)[..2], [3.75, -4.0]);
        }
        let nearest = floats(format.round(Tensor::<1>::from_floats(x, &device), By::Nearest));
        assert_eq!(nearest, [0.0, -0.5, 2.0, -4.0, 0.25, 0.0]);
    }

    /// A step a tenth of the format's, taken two hundred times: 20 steps in the mean, with a deviation of `sqrt(200 * 0.09)`.
    #[test]
    fn steps_below_the_format_move_weights_by_chance_only() {
        let (format, device) = (Format { integer: 2, fraction: 6 }, Device::flex());
        chance::seed(4);
        let after = |by| {
            let mut weights = Tensor::<1>::zeros([400], &device);
            for _ in 0..200 {
                weights = format.round(weights.add_scalar(0.1 / 64.0), by);
            }
            f64::from(floats(weights.mean())[0]) * 64.0
        };
        assert_eq!(after(By::Nearest), 0.0);
        assert!((after(By::Stochastic) - 20.0).abs() < 4.0 * (200.0_f64 * 0.09 / 400.0).sqrt());
    }

    #[test]
    fn sixteen_bits_train_as_floats_do_and_what_is_left_is_in_the_format() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        let train = serde_json::json!({ "epochs": 40, "batch": 10, "lr": 0.01, "choose": "last" });
        let recipe: Recipe = serde_json::from_value(train.clone()).unwrap();
        let mut silent = Silent;
        let float = fit(stirred(), &recipe, Extras::default(), &mut briquette_handmade::context(&data, &mut silent)).unwrap();
        let activations = serde_json::json!({ "integer": 6, "fraction": 10 });
        let trained =
            run::<StochasticRounding>(stirred(), serde_json::json!({ "activations": activations, "train": train })).unwrap();
        assert!(
            loss(&trained) < loss(&stirred()) - 0.8 * (loss(&stirred()) - loss(&float)),
            "{} {}",
            loss(&trained),
            loss(&float)
        );
        let in_format = |values: Vec<f32>| values.iter().all(|v| (v * 16384.0).fract() == 0.0 && (-2.0..2.0).contains(v));
        for layer in ["conv1", "conv2", "fc1", "fc2"] {
            assert!(in_format(get(&trained, layer, "weight")), "{layer}");
        }
        assert!(in_format(get(&trained, "fc1", "bias")));
        let back = Net::from_model(&trained.to_model(Storage::default()).unwrap(), &device).unwrap();
        assert_eq!(outputs(&back), outputs(&trained));
    }

    #[test]
    fn eight_bits_learn_by_chance_where_the_nearest_stands_still() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        let after = |rounding: &str, epochs: usize| {
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.005, "optimizer": "sgd", "momentum": 0.0 });
            let format = serde_json::json!({ "integer": 2, "fraction": 6 });
            run::<StochasticRounding>(stirred(), serde_json::json!({ "weights": format, "rounding": rounding, "train": train }))
                .unwrap()
        };
        let (start, nearest, chance) = (after("nearest", 0), after("nearest", 40), after("stochastic", 40));
        assert_eq!(get(&start, "fc2", "weight"), get(&nearest, "fc2", "weight"));
        assert_ne!(get(&start, "fc2", "weight"), get(&chance, "fc2", "weight"));
        assert!(loss(&chance) < loss(&start), "{} {}", loss(&chance), loss(&start));
    }

    #[test]
    fn gradients_lie_in_their_format_and_are_right_on_the_mean() {
        let format = serde_json::json!({ "integer": 2, "fraction": 5 });
        let settings = serde_json::json!({ "gradients": format, "except": ["conv1"], "train": {} });
        let method: StochasticRounding = serde_json::from_value(settings).unwrap();
        let net = method.plan(stirred()).unwrap();
        let layers = ["conv2", "fc1", "fc2"].map(String::from).into();
        let way = method.way(&net, &layers).unwrap().unwrap();
        let net = net.probed();
        let x = Tensor::<4>::random([5, 1, 4, 4], Distribution::Uniform(0.0, 1.0), &Device::flex().autodiff());
        let gradient = |logits: Tensor<2>, layer: &str, parameter: &str| {
            let gradients = logits.powi_scalar(2).mean().backward();
            net.nodes[net.index(layer).unwrap()].gradient(parameter, &gradients).unwrap()
        };
        let on_format = |values: &[f32]| values.iter().all(|dy| (dy * 32.0).fract() == 0.0 && (-2.0..2.0).contains(dy));
        for (layer, parameter) in [("fc2", "weight"), ("fc2", "bias"), ("fc1", "weight"), ("conv2", "weight")] {
            let exact = gradient(net.forward(x.clone()), layer, parameter);
            let mut mean = vec![0.0; exact.len()];
            for draw in 0..2000 {
                chance::seed(draw);
                let found = gradient(way.forward(&net, x.clone(), &mut Taps::default()), layer, parameter);
                assert!(on_format(&found), "{layer}: {found:?}");
                mean.iter_mut().zip(found).for_each(|(mean, found)| *mean += found / 2000.0);
            }
            assert!(!on_format(&exact), "{layer}");
            // Four standard errors of steps of 1/32, of which each output's gradient adds up to a few.
            assert!(mean.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 8e-3), "{layer}: {mean:?} {exact:?}");
        }
    }

    #[test]
    fn a_network_trains_in_sixteen_bits_throughout() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        let after = |fraction: u32, rounding: &str, epochs: usize| {
            let format = |integer: u32, fraction: u32| serde_json::json!({ "integer": integer, "fraction": fraction });
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.1, "optimizer": "sgd", "choose": "last" });
            let settings = serde_json::json!({
                "activations": format(6, 10), "gradients": format(2, fraction), "rounding": rounding, "train": train
            });
            run::<StochasticRounding>(stirred(), settings).unwrap()
        };
        let (start, trained) = (loss(&stirred()), loss(&after(14, "stochastic", 60)));
        assert!(trained < 0.95 * start, "{trained} {start}");
        // Of two bits behind the point the nearest is 0 for all, and only statistics move.
        let parameters = |net: &Net| {
            let biases = ["conv2", "fc1", "fc2"].map(|layer| get(net, layer, "bias"));
            ["conv1", "conv2", "fc1", "fc2"].map(|layer| get(net, layer, "weight")).into_iter().chain(biases).collect::<Vec<_>>()
        };
        let [begun, nearest, chance] =
            [("nearest", 0), ("nearest", 60), ("stochastic", 60)].map(|(by, epochs)| after(2, by, epochs));
        assert_eq!(parameters(&nearest), parameters(&begun));
        assert!(parameters(&chance).iter().zip(parameters(&begun)).all(|(after, before)| *after != before));
    }

    #[test]
    fn gradients_and_activations_of_a_layer_that_an_earlier_pass_quantized_stay_exact() {
        let earlier = serde_json::json!({ "bits": 8, "activations": 8, "layers": ["fc2"], "fold": false });
        let earlier = run::<FixedPoint>(stirred(), earlier).unwrap();
        // One step, so that what is above the rounded gradients is the same.
        let after = |gradients: Option<Format>| {
            let train = serde_json::json!({ "epochs": 1, "batch": 40, "lr": 0.1, "optimizer": "sgd", "choose": "last" });
            let mut settings = serde_json::json!({ "layers": ["conv2"], "train": train });
            if let Some(Format { integer, fraction }) = gradients {
                settings["gradients"] = serde_json::json!({ "integer": integer, "fraction": fraction });
            }
            run::<StochasticRounding>(earlier.deep_clone(), settings).unwrap()
        };
        let (exact, coarse) = (after(None), after(Some(Format { integer: 2, fraction: 5 })));
        let far = |layer: &str| {
            let (a, b) = (get(&exact, layer, "bias"), get(&coarse, layer, "bias"));
            a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(far("fc2") < 1e-6 && far("conv2") > 1e-4, "{} {}", far("fc2"), far("conv2"));
        let format = serde_json::json!({ "integer": 6, "fraction": 2 });
        let settings = serde_json::json!({ "activations": format, "layers": ["conv2"], "train": {} });
        let method: StochasticRounding = serde_json::from_value(settings).unwrap();
        let net = method.plan(earlier).unwrap();
        let way = method.way(&net, &["conv2".to_string()].into()).unwrap().unwrap();
        assert_eq!(
            (way.layers, way.noisy.unwrap().quantizers.into_values().collect()),
            (vec![net.index("conv2").unwrap()], vec![net.index("relu1").unwrap()])
        );
    }

    #[test]
    fn draws_reach_the_layers_and_no_shortcut_past_them() {
        let block = |weight: f32| {
            let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
            let conv1 = b.conv("conv1", b.input(), Conv::new(3, 3).same());
            let x = b.relu("relu1", conv1);
            let conv2 = b.conv("conv2", x, Conv::new(3, 1).no_bias());
            let sum = b.add("sum", &[x, conv2]);
            let x = b.global_avg_pool("pool", sum);
            b.linear("fc", x, 3);
            let format = serde_json::json!({ "integer": 4, "fraction": 2 });
            let settings = serde_json::json!({ "activations": format, "layers": ["conv2"], "train": {} });
            let method: StochasticRounding = serde_json::from_value(settings).unwrap();
            let net = method.plan(set(b.finish().unwrap(), "conv2", "weight", &[weight; 9])).unwrap();
            let way = method.way(&net, &["conv2".to_string()].into()).unwrap().unwrap();
            (net, way)
        };
        let x = Tensor::<4>::random([5, 1, 4, 4], Distribution::Uniform(0.0, 1.0), &Device::flex());
        let (net, way) = block(0.0);
        assert_eq!(floats(way.forward(&net, x.clone(), &mut Taps::default())), floats(net.forward(x.clone())));
        // What the layer reads is drawn, and on the mean it is what the shortcut carries.
        let (net, way) = block(0.5);
        let drawn = |seed: u64| {
            chance::seed(seed);
            floats(way.forward(&net, x.clone(), &mut Taps::default()))
        };
        let draws: Vec<Vec<f32>> = (0..2000).map(drawn).collect();
        assert_ne!(draws[0], draws[1]);
        let quantizer = net.nodes[net.index("conv2").unwrap()].inputs[0];
        let read = net.nodes[quantizer].inputs[0];
        let real = floats(net.deep_clone().bypass(quantizer, read).unwrap().forward(x.clone()));
        let mean = |at: usize| draws.iter().map(|draw| draw[at]).sum::<f32>() / draws.len() as f32;
        assert!(real.iter().enumerate().all(|(at, real)| (mean(at) - real).abs() < 1e-2), "{real:?}");
    }

    #[test]
    fn formats_that_do_not_fit_are_refused() {
        let refused = |integer: u32, fraction: u32| {
            let format = serde_json::json!({ "integer": integer, "fraction": fraction });
            refusal::<StochasticRounding>(small(), serde_json::json!({ "weights": format, "train": {} }))
        };
        let detail = "it takes 2 to 16 bits, at least one of them before the point";
        for (integer, fraction) in [(0, 8), (4, 13), (1, 0), (u32::MAX, 1)] {
            assert_eq!(
                refused(integer, fraction),
                format!("stochastic-rounding: `weights` is <{integer}, {fraction}>; {detail}")
            );
        }
    }
}
