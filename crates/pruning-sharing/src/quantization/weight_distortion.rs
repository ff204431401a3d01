//! Robustness to distortions of the weights.
//!
//! Trains with weights that a projection distorts in every forward pass, while the real weights underneath take the gradients of the distorted
//! ones and are clipped to [-1, 1] after each step; then tests the network under other projections of the same real weights. What was trained
//! under one survives many others, once batch norms have taken the statistics of their inputs anew: the table of survivals is the result. Projections of a real weight `w` in [-1, 1]:
//!
//! - `sign`: 1 or -1; `stochastic`: 1 with the probability `(w + 1) / 2`, else -1;
//! - `{ round = n }`: the nearest of `n` values from -1 to 1; `{ power = p }`: `sign(w) |w|^p`;
//! - `{ add = a }`: `w + u` with `u` uniform in [-a, a]; `{ multiply = a }`: `w (1 + u)`; `none`: `w` itself.
//!
//! ```
//! use briquette_core::coding::floats;
//! use briquette_pruning_sharing::quantization::weight_distortion::Distortion;
//! use burn::nn::LinearConfig;
//! use burn::tensor::{Device, Tensor, module};
//!
//! let weights = Tensor::<1>::from_floats([0.5, -0.8, 0.1], &Device::flex());
//! let distorted = |projection: &str| {
//!     let projection: Distortion = serde_json::from_str(projection).unwrap();
//!     floats(projection.apply(weights.clone()))
//! };
//! assert_eq!(distorted(r#""sign""#), [1.0, -1.0, 1.0]);
//! assert_eq!(distorted(r#"{ "round": 3 }"#), [1.0, -1.0, 0.0]);
//! assert_eq!(distorted(r#"{ "power": 2 }"#)[0], 0.25);
//!
//! // In the forward pass of any module of Burn:
//! let layer = LinearConfig::new(3, 2).init(&Device::flex());
//! let y = module::linear(Tensor::<2>::ones([1, 3], &Device::flex()), Distortion::Sign.apply(layer.weight.val()), None);
//! assert!(floats(y).iter().all(|y| [-3.0, -1.0, 1.0, 3.0].contains(y)));
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::weight_distortion::WeightDistortion;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: WeightDistortion = serde_json::from_value(serde_json::json!({ "under": "sign", "train": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! assert!(values.iter().all(|w| w.abs() == 1.0));
//! # Ok(())
//! # }
//! ```
//!
//! Merolla, Appuswamy, Arthur, Esser, Modha. "Deep Neural Networks are Robust to Weight Binarization and Other Non-linear Distortions".
//! arXiv:1606.01981, 2016.
//! Differs from the paper: one projection serves the whole training, noise is uniform, and the real weights start from the network's own, scaled
//! and clipped ([`spread`]), so that batch norms are needed where the scale matters. The network that leaves the
//! pass, and that is validated after each epoch, has the projected weights where that is one fixed set, on a grid where they lie on one, and the
//! real weights otherwise, with the statistics of batch norms taken anew.

use std::collections::HashMap;

use briquette_core::chance;
use briquette_core::coding::Rounding;
use briquette_core::context::{Context, Event};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::Taps;
use briquette_core::pass::{Method, Pass};
use briquette_core::quantize::straight;
use briquette_core::streams::stream;
use briquette_core::training::{Extras, Forward, Projection, Recipe, Settle, evaluate, fit, renew};
use briquette_core::{Grid, coding};
use burn::module::ParamId;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::quantization::binary::{layers, spread, with_weights};
use briquette_core::types::Layers;
use briquette_core::values::{plain, replace};

/// Trains under one distortion of the weights and tests under others.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WeightDistortion {
    /// The projection of the training.
    under: Distortion,
    /// The projections of the tests.
    #[serde(default = "usual")]
    tests: Vec<Distortion>,
    /// File for the table of survivals, as CSV; the notes of the run have it in any case.
    table: Option<String>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training.
    train: Recipe,
}

/// A projection of weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distortion {
    /// `w`.
    None,
    /// 1 or -1.
    Sign,
    /// 1 with the probability `(w + 1) / 2`, else -1.
    Stochastic,
    /// The nearest of so many values from -1 to 1.
    Round(u32),
    /// `sign(w) |w|^p`.
    Power(f64),
    /// `w + u` with `u` uniform between plus and minus this.
    Add(f64),
    /// `w (1 + u)` with `u` uniform between plus and minus this.
    Multiply(f64),
}

impl Distortion {
    /// The distorted weights, with the gradients of the real ones.
    pub fn apply<const D: usize>(self, w: Tensor<D>) -> Tensor<D> {
        let real = plain(w.clone());
        let noise = |size: f64| chance::uniform_like(&real).mul_scalar(2.0 * size).sub_scalar(size);
        let distorted = match self {
            Distortion::None => return w,
            Distortion::Sign => nearest(real.clone(), 2),
            Distortion::Round(values) => nearest(real.clone(), values),
            Distortion::Stochastic => (real.clone() - noise(1.0)).greater_equal_elem(0.0).float().mul_scalar(2.0).sub_scalar(1.0),
            Distortion::Power(exponent) => real.clone().abs().powf_scalar(exponent) * real.clone().sign(),
            Distortion::Add(size) => real.clone() + noise(size),
            Distortion::Multiply(size) => real.clone() * noise(size).add_scalar(1.0),
        };
        if w.is_autodiff() { straight(Tensor::from_inner(distorted), w) } else { distorted }
    }

    fn check(self) -> std::result::Result<(), String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let fits = match self {
            Distortion::None | Distortion::Sign | Distortion::Stochastic => true,
            Distortion::Round(values) => (2..=65536).contains(&values),
            Distortion::Power(value) | Distortion::Add(value) | Distortion::Multiply(value) => positive(value),
        };
        let ranges = "`round` takes 2 to 65536 values, `power`, `add` and `multiply` a positive number";
        if fits { Ok(()) } else { Err(format!("weight-distortion: {ranges}, not {self}")) }
    }

    /// The grid of its values, if they have one.
    fn grid(self) -> Option<Grid> {
        match self {
            Distortion::Sign => Some(grid(2)),
            Distortion::Round(values) => Some(grid(values)),
            Distortion::None | Distortion::Stochastic | Distortion::Power(_) | Distortion::Add(_) | Distortion::Multiply(_) => {
                None
            }
        }
    }
}

/// So many values from -1 to 1.
fn grid(values: u32) -> Grid {
    let last = (values - 1) as f32;
    Grid::uniform(values, 2.0 / last, last / 2.0)
}

/// The nearest of them, to the last bit as a weight on that grid has it.
fn nearest<const D: usize>(w: Tensor<D>, values: u32) -> Tensor<D> {
    let grid = grid(values);
    let (step, zero) = (f64::from(grid.steps[0]), f64::from(grid.zeros[0]));
    let codes = w.div_scalar(step).add_scalar(zero).clamp(0.0, f64::from(values - 1)).add_scalar(0.5).floor();
    codes.sub_scalar(zero).mul_scalar(step)
}

impl std::fmt::Display for Distortion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Distortion::None => f.write_str("none"),
            Distortion::Sign => f.write_str("sign"),
            Distortion::Stochastic => f.write_str("stochastic"),
            Distortion::Round(values) => write!(f, "round {values}"),
            Distortion::Power(exponent) => write!(f, "power {exponent}"),
            Distortion::Add(size) => write!(f, "add {size}"),
            Distortion::Multiply(size) => write!(f, "multiply {size}"),
        }
    }
}

impl Method for WeightDistortion {
    const NAME: &'static str = "weight-distortion";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Merolla, Appuswamy, Arthur, Esser, Modha, 2016, arXiv:1606.01981";
    const EXAMPLE: &'static str = "under = \"sign\"\ntable = \"survivals.csv\"\ntrain = { epochs = 20 }";
}

impl Pass for WeightDistortion {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let layers = self.check(&net)?;
        let net = spread(net, &layers)?;
        let way = Distorted { layers: layers.clone(), under: self.under };
        let (mut clip, settled) = (Clip(layers.clone()), Settled { layers: &layers, under: self.under });
        let extras = Extras { projections: vec![&mut clip], forward: Some(&way), settle: Some(&settled), ..Extras::default() };
        let net = fit(net, &self.train, extras, cx)?;
        let mut table = String::from("trained,tested,accuracy\n");
        for (number, test) in self.tests.iter().enumerate() {
            chance::seed(stream(cx.seed, &format!("distortion-{number}")));
            let mut tested = distorted(&net, &layers, *test);
            if *test != self.under {
                tested = renew(tested, cx)?;
            }
            let score = evaluate(&tested, &cx.data.test, &cx.device, cx.host)?;
            cx.host.event(Event::Note(&format!(
                "trained under {}, tested under {test}: {:.2} %",
                self.under,
                100.0 * score.accuracy
            )));
            table += &format!("{},{test},{:.4}\n", self.under, score.accuracy);
        }
        if let Some(file) = &self.table {
            cx.host.write(file, table.as_bytes())?;
        }
        settled.settle(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let layers = self.check(&net)?;
        projected(net, &layers, self.under)
    }

    fn writes(&self) -> Vec<String> {
        self.table.clone().into_iter().collect()
    }
}

impl WeightDistortion {
    fn check(&self, net: &Net) -> Result<Vec<usize>> {
        self.train.check()?;
        self.tests.iter().chain([&self.under]).try_for_each(|distortion| distortion.check()).map_err(Error::Invalid)?;
        layers(net, (&self.layers, &self.except), Self::NAME)
    }
}

/// The network with the weights of a projection, where that does not draw.
fn projected(net: Net, layers: &[usize], under: Distortion) -> Result<Net> {
    with_weights(net, layers, |weight| match under {
        Distortion::Sign | Distortion::Round(_) => {
            let source = under.grid().map(|grid| coding::Source::Grid { grid, rounding: Rounding::Nearest, learned: false });
            weight.coding.source = source.unwrap_or_default();
        }
        Distortion::Power(exponent) => {
            weight.base.iter_mut().for_each(|w| *w = w.signum() * (f64::from(w.abs()).powf(exponent)) as f32);
        }
        Distortion::None | Distortion::Stochastic | Distortion::Add(_) | Distortion::Multiply(_) => {}
    })
}

/// The network as it leaves the pass.
struct Settled<'a> {
    layers: &'a [usize],
    under: Distortion,
}

impl Settle for Settled<'_> {
    fn settle(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = projected(net, self.layers, self.under)?;
        match self.under {
            Distortion::None | Distortion::Sign | Distortion::Round(_) | Distortion::Power(_) => Ok(net),
            Distortion::Stochastic | Distortion::Add(_) | Distortion::Multiply(_) => renew(net, cx),
        }
    }
}

/// A network that computes with the distorted weights of these layers, drawn once, and shares everything else.
fn distorted(net: &Net, layers: &[usize], distortion: Distortion) -> Net {
    let mut net = net.clone();
    for &layer in layers {
        net.nodes[layer].pass_through(|weight| distortion.apply(weight), |bias| bias);
    }
    net
}

/// The way through the network with distorted weights.
struct Distorted {
    layers: Vec<usize>,
    under: Distortion,
}

impl Forward for Distorted {
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        distorted(net, &self.layers, self.under).tapped(images, taps)
    }
}

/// Keeps the weights of these layers in [-1, 1].
struct Clip(Vec<usize>);

impl Projection for Clip {
    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        let clipped = |layer: &usize| {
            let dense = net.nodes[*layer].dense()?;
            Some((dense.id(), plain(dense.weight()).clamp(-1.0, 1.0).reshape([-1])))
        };
        let values: HashMap<ParamId, Tensor<1>> = self.0.iter().filter_map(clipped).collect();
        replace(net, values)
    }
}

fn usual() -> Vec<Distortion> {
    use Distortion::{Add, Multiply, None, Power, Round, Sign, Stochastic};
    vec![None, Sign, Stochastic, Round(3), Round(5), Power(0.5), Power(2.0), Add(0.5), Multiply(0.5)]
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::context::{Data, Memory, Silent};
    use briquette_core::zoo::{Arch, Wanted};
    use burn::module::Module;
    use burn::module::Param;
    use burn::tensor::{Device, TensorData};

    use super::*;
    use briquette_handmade::{context, get, images, refusal, run, small};

    const W: [f32; 7] = [-1.0, -0.6, -0.25, -1e-9, 0.1, 0.5, 1.0];

    fn apply(distortion: Distortion) -> Vec<f32> {
        floats(distortion.apply(Tensor::<1>::from_floats(W, &Device::flex())))
    }

    #[test]
    fn projections_are_their_formulas() {
        assert_eq!(apply(Distortion::None), W);
        assert_eq!(apply(Distortion::Sign), [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(apply(Distortion::Round(3)), [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(apply(Distortion::Round(5)), [-1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0]);
        let close = |found: &[f32], expected: &[f32]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&apply(Distortion::Power(2.0)), &[-1.0, -0.36, -0.0625, 0.0, 0.01, 0.25, 1.0]));
        for _ in 0..50 {
            let (added, multiplied) = (apply(Distortion::Add(0.3)), apply(Distortion::Multiply(0.3)));
            assert!(added.iter().zip(W).all(|(new, w)| (new - w).abs() <= 0.3 + 1e-6));
            assert!(multiplied.iter().zip(W).all(|(new, w)| (new - w).abs() <= 0.3 * w.abs() + 1e-6));
            let drawn = apply(Distortion::Stochastic);
            assert!(drawn.iter().all(|w| w.abs() == 1.0) && drawn[0] == -1.0 && drawn[6] == 1.0);
        }
    }

    #[test]
    fn the_grid_that_a_network_leaves_on_has_the_projections_values() {
        for distortion in [Distortion::Sign, Distortion::Round(2), Distortion::Round(3), Distortion::Round(6)] {
            let source = coding::Source::Grid { grid: distortion.grid().unwrap(), rounding: Rounding::Nearest, learned: false };
            let base = Tensor::<2>::from_data(TensorData::new(W.to_vec(), [1, 7]), &Device::flex());
            let param = coding::Coding { mask: None, source }.attach(Param::from_tensor(base));
            assert_eq!(floats(param.val()), apply(distortion), "{distortion}");
        }
    }

    #[test]
    fn real_weights_have_the_gradients_of_the_distorted_ones() {
        let device = Device::flex().autodiff();
        for distortion in usual() {
            let w = Tensor::<1>::from_floats(W, &device).require_grad();
            let factors = Tensor::<1>::from_floats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &device);
            let grads = (distortion.apply(w.clone()) * factors).sum().backward();
            assert_eq!(floats(w.grad(&grads).unwrap()), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "{distortion}");
        }
        let net = small().train();
        let all: Vec<usize> = net.weighted().map(|(index, _)| index).collect();
        let pixels = Tensor::<4>::random([5, 1, 4, 4], burn::tensor::Distribution::Normal(0.0, 1.0), &device);
        let logits = Distorted { layers: all.clone(), under: Distortion::Sign }.forward(&net, pixels, &mut Taps::default());
        let grads = logits.powi_scalar(2).sum().backward();
        assert!(all.iter().all(|layer| net.nodes[*layer].gradient("weight", &grads).unwrap().iter().any(|g| *g != 0.0)));
    }

    #[test]
    fn the_real_weights_stay_in_bounds_and_a_fixed_projection_is_what_leaves() {
        let train = serde_json::json!({ "epochs": 4, "batch": 10, "lr": 0.1 });
        let trained = |under: serde_json::Value| {
            run::<WeightDistortion>(small(), serde_json::json!({ "under": under, "train": train })).unwrap()
        };
        let noisy = trained(serde_json::json!({ "add": 0.2 }));
        let weights = ["conv1", "conv2", "fc1", "fc2"].map(|layer| get(&noisy, layer, "weight")).concat();
        assert!(weights.iter().all(|w| w.abs() <= 1.0) && weights.iter().any(|w| w.abs() == 1.0));
        let binary = trained(serde_json::json!("sign"));
        assert!(get(&binary, "fc1", "weight").iter().all(|w| w.abs() == 1.0));
        let ternary = trained(serde_json::json!({ "round": 3 }));
        assert!(get(&ternary, "fc1", "weight").iter().all(|w| [-1.0, 0.0, 1.0].contains(w)));
        let wrong = refusal::<WeightDistortion>(small(), serde_json::json!({ "under": { "round": 1 }, "train": {} }));
        assert!(wrong.ends_with("a positive number, not round 1"), "{wrong}");
    }

    /// The table, and the accuracy of the network that leaves the pass.
    fn survivals(data: &Data, under: &serde_json::Value) -> (String, f64) {
        let arch = Arch::named("mlp").unwrap();
        let net = arch.build(&Wanted { width: 0.02, classes: 2, ..arch.wanted() }, &Device::flex()).unwrap();
        let mut host = Memory::default();
        let train = serde_json::json!({ "epochs": 6, "batch": 10, "lr": 0.01 });
        let settings = serde_json::json!({ "under": under, "table": "survivals.csv", "train": train });
        let method: WeightDistortion = serde_json::from_value(settings).unwrap();
        let net = method.run(net, &mut context(data, &mut host)).unwrap();
        let table = String::from_utf8(host.files.remove("survivals.csv").unwrap()).unwrap();
        (table, evaluate(&net, &data.test, &Device::flex(), &mut Silent).unwrap().accuracy)
    }

    fn accuracy(table: &str, tested: &str) -> f64 {
        let found = table.lines().find_map(|line| line.split_once(&format!(",{tested},")));
        found.unwrap_or_else(|| panic!("no {tested} in {table}")).1.parse().unwrap()
    }

    /// On images that are light above or below, a network that was trained under signs survives what it has not seen.
    #[test]
    fn the_table_of_survivals_has_a_line_for_every_test_and_the_trained_projection_survives() {
        let halves = |count: usize| {
            let pixels = (0..count)
                .flat_map(|i| (0..784).map(move |p| if (p < 392) == (i % 2 == 0) { 200 } else { (i * p % 90) as u8 }))
                .collect();
            briquette_data::Dataset::from_memory("halves", [1, 28, 28], 2, pixels, (0..count).map(|i| (i % 2) as u16).collect())
        };
        let mut data = images();
        (data.train, data.valid, data.test) = (halves(80).unwrap(), halves(20).unwrap(), halves(40).unwrap());
        let (trained, tests) = (|under: serde_json::Value| survivals(&data, &under), usual());
        let (table, score) = trained(serde_json::json!("sign"));
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines[0], ["trained", "tested", "accuracy"]);
        assert_eq!(lines.len(), 1 + tests.len());
        assert!(["sign", "power 0.5", "none"].iter().all(|tested| accuracy(&table, tested) > 0.95), "{table}");
        assert_eq!(score, accuracy(&table, "sign"), "what leaves the pass is what was tested");
        let (table, score) = trained(serde_json::json!({ "multiply": 0.3 }));
        assert_eq!(score, accuracy(&table, "none"));
    }
}
