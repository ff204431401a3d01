//! Training with few multiplications.
//!
//! In the forward pass weights are drawn from -1 and 1, or from -1, 0 and 1, with the real weights `w` underneath as their means, so that
//! products are changes of sign. Binary: 1 with the probability `(w + 1) / 2`. Ternary: `sign(w)` with the probability `|w|`, else 0. In the
//! backward pass the gradient of a weight, the product of what comes from above and of what the layer read, takes the latter rounded to powers
//! of two, so that it is a shift: `dL/dW = dL/dy q(x)^T` with `q(x) = sign(x) 2^round(log2 |x|)`. What goes on to the layers below passes
//! the drawn weights, again by changes of sign. Real weights are clipped to [-1, 1] after each step.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::coding::{adjust, weights};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::few_multiplications::{FewMultiplications, Values, draw};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! let x = b.linear("fc", x, 2);
//! b.batch_norm("norm", x);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let method: FewMultiplications = serde_json::from_str(r#"{ "weights": "ternary", "train": { "epochs": 5 } }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert!(net.nodes[2].weight().unwrap().values().iter().all(|w| [-1.0, 0.0, 1.0].contains(w)));
//!
//! // The weights of any module of Burn; its own forward pass multiplies in the backward pass.
//! let layer = draw(LinearConfig::new(20, 10).init(&Device::flex()), Values::Binary, |_| true);
//! assert!(weights(&layer)[0].values.iter().all(|w| w.abs() == 1.0));
//! // After each step of an optimizer:
//! let layer = adjust(layer, |_, base, steps| (base.clamp(-1.0, 1.0), steps));
//! # drop(layer);
//! ```
//!
//! Lin, Courbariaux, Memisevic, Bengio. "Neural Networks with Few Multiplications". ICLR 2016. arXiv:1510.03009.
//! Differs from the paper: the network is tested with the nearest of the values that weights are drawn from, under batch norms that take the
//! statistics of these anew, before each validation and at the end; the first layer's weights are
//! drawn, too, and its input is rounded; and products are computed in floats, of which the point is what they are products of. Batch norms and
//! the optimizer multiply as ever.

use std::collections::BTreeMap;

use briquette_core::Grid;
use briquette_core::coding::{Rounding, Weight};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op, Value};
use briquette_core::objective::Taps;
use briquette_core::pass::{Method, Pass};
use briquette_core::quantize::straight;
use briquette_core::training::{Extras, Forward, Recipe};
use briquette_core::types::Layers;
use burn::module::{Module, Param, ParamId};
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::quantization::binary::{Bounds, Scale, Settled, fit_settled, layers, spread};
use briquette_parts::quantizers::on_grids;
use briquette_parts::yes;

/// Draws weights in the forward pass and shifts in the backward pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FewMultiplications {
    /// What weights are drawn from.
    #[serde(default)]
    weights: Values,
    /// The least and the largest exponent of what a layer read, when its weights' gradients are computed.
    #[serde(default = "exponents")]
    exponents: [i32; 2],
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Whether the steps of each layer are longer by the inverse of Glorot's range, `sqrt((inputs + outputs) / 1.5)`.
    #[serde(default = "yes")]
    glorot: bool,
    /// The training.
    train: Recipe,
}

/// The values of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Values {
    /// -1 and 1.
    Binary,
    /// -1, 0 and 1.
    #[default]
    Ternary,
}

impl Method for FewMultiplications {
    const NAME: &'static str = "few-multiplications";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Lin, Courbariaux, Memisevic, Bengio, ICLR 2016, arXiv:1510.03009";
    const EXAMPLE: &'static str = "weights = \"ternary\"\ntrain = { epochs = 20 }";
}

impl Pass for FewMultiplications {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let drawn = layers(&net, (&self.layers, &self.except), Self::NAME)?;
        let net = spread(self.plan(net)?, &drawn)?;
        let mut bounds = Bounds::new(&net, &drawn, Scale::One, self.glorot);
        let settled = Settled { layers: drawn.clone(), real: false };
        let forward = Shifts { layers: drawn, exponents: self.exponents };
        let extras = Extras { projections: vec![&mut bounds], forward: Some(&forward), ..Extras::default() };
        fit_settled(net, &self.train, extras, Some(&settled), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        let [least, largest] = self.exponents;
        if !(-64..=largest).contains(&least) || largest > 64 {
            let detail = format!("exponents are the least and the largest, in -64..=64, not {:?}", self.exponents);
            return Err(Error::Invalid(format!("few-multiplications: {detail}")));
        }
        let drawn = layers(&net, (&self.layers, &self.except), Self::NAME)?;
        Ok(draw(net, self.weights, |weight| weight.node().is_some_and(|node| drawn.contains(&node))))
    }
}

/// Lets tensors of rank 2 or more in any Burn module, those that `choose` takes, be drawn from `values` in every forward pass of a training,
/// and be the nearest of them otherwise. What is underneath must be kept within [-1, 1], by [`adjust`](briquette_core::coding::adjust).
pub fn draw<M: Module>(module: M, values: Values, choose: impl Fn(&Weight) -> bool) -> M {
    let grid = match values {
        Values::Binary => Grid::uniform(2, 2.0, 0.5),
        Values::Ternary => Grid::uniform(3, 1.0, 1.0),
    };
    on_grids(module, (Rounding::Stochastic, false), |weight| choose(weight).then(|| grid.clone()))
}

/// `sign(x) 2^e` with `e = round(log2 |x|)`, no less than the least and no more than the largest exponent; 0 stays 0.
pub fn powers_of_two<const D: usize>(x: Tensor<D>, [least, largest]: [i32; 2]) -> Tensor<D> {
    // Looked up instead of computed: of 2^e the last bit must be right.
    let exponents = x.clone().abs().clamp_min(f32::MIN_POSITIVE).log().mul_scalar(std::f64::consts::LOG2_E).round();
    let powers: Vec<f32> = (least..=largest).map(|exponent| 2.0_f32.powi(exponent)).collect();
    let index = exponents.clamp(f64::from(least), f64::from(largest)).sub_scalar(f64::from(least)).int();
    let count = x.shape().num_elements();
    let sizes = Tensor::<1>::from_floats(powers.as_slice(), &x.device()).select(0, index.reshape([count]));
    sizes.reshape(x.shape()) * x.sign()
}

/// The way through the network on which weights have their gradients by shifts.
struct Shifts {
    layers: Vec<usize>,
    exponents: [i32; 2],
}

/// The weight that one layer computes with in one step.
enum Drawn {
    Conv(Box<Conv2d>),
    Linear(Box<Tensor<2>>),
}

impl Forward for Shifts {
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        let mut passing = net.clone();
        let mut drawn = BTreeMap::new();
        for &layer in &self.layers {
            match &mut passing.nodes[layer].op {
                Op::Conv2d(conv) => {
                    let weight = conv.weight.val();
                    conv.weight = fixed(weight.clone().detach());
                    drawn.insert(layer, Drawn::Conv(Box::new(Conv2d { weight: fixed(weight), bias: None, ..conv.clone() })));
                }
                Op::Linear(linear) => {
                    let weight = linear.weight.val();
                    linear.weight = fixed(weight.clone().detach());
                    drawn.insert(layer, Drawn::Linear(Box::new(weight)));
                }
                Op::BatchNorm(_) | Op::Tensors(_) | Op::Fixed(_) => {}
            }
        }
        let mut read: BTreeMap<usize, Option<Value>> =
            self.layers.iter().map(|&layer| (net.nodes[layer].inputs[0], None)).collect();
        let tap = |index: usize, value: Value| {
            taps.meet(index, &value);
            let input = || read.get(&net.nodes[index].inputs[0]).cloned().flatten();
            let value = match (drawn.get(&index), value) {
                (Some(weight), value) => match input() {
                    Some(input) => self.with_shifts(weight, input, value),
                    None => value,
                },
                (None, value) => value,
            };
            if let Some(slot) = read.get_mut(&index) {
                *slot = Some(value.clone());
            }
            value
        };
        passing.trace(images, tap).vector()
    }
}

impl Shifts {
    /// The output of a layer, whose weight has the gradient by the rounded input.
    fn with_shifts(&self, weight: &Drawn, input: Value, output: Value) -> Value {
        match weight {
            Drawn::Conv(conv) => {
                let x = powers_of_two(input.map().detach(), self.exponents);
                Value::Map(output.map() + nothing(conv.forward(x)))
            }
            Drawn::Linear(weight) => {
                let x = powers_of_two(input.vector().detach(), self.exponents);
                Value::Vector(output.vector() + nothing(x.matmul((**weight).clone())))
            }
        }
    }
}

/// A parameter that is a value of the graph, not one of its leaves.
fn fixed<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), value)
}

/// Zeros with the gradient of `y`.
fn nothing<const D: usize>(y: Tensor<D>) -> Tensor<D> {
    straight(y.zeros_like(), y)
}

fn exponents() -> [i32; 2] {
    [-8, 3]
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::floats;
    use briquette_core::context::{Data, Silent};
    use briquette_core::training::evaluate;
    use briquette_data::Dataset;
    use burn::module::Module;
    use burn::tensor::{Device, Distribution};

    use super::*;
    use briquette_handmade::{context, get, refusal, run, set, settles, small};

    #[test]
    fn operands_are_powers_of_two_next_to_what_they_stand_for() {
        let x = Tensor::<2>::random([50, 40], Distribution::Normal(0.0, 1.0), &Device::flex());
        let x = Tensor::cat(vec![x, Tensor::from_floats([[0.0; 40], [1e-30; 40], [-1e9; 40]], &Device::flex())], 0);
        let q = floats(powers_of_two(x.clone(), [-6, 2]));
        for (x, q) in floats(x).into_iter().zip(q) {
            if x == 0.0 {
                assert_eq!(q, 0.0);
                continue;
            }
            assert_eq!(q.to_bits() << 9, 0, "{q} has a mantissa");
            assert_eq!(q.signum(), x.signum());
            let (found, wanted) = (f64::from(q.abs()).log2(), f64::from(x.abs()).log2());
            assert!((-6.0..=2.0).contains(&found));
            assert!((found - wanted.clamp(-6.0, 2.0)).abs() < 0.5 + 1e-6, "{x} became {q}");
        }
    }

    #[test]
    fn every_power_is_exact() {
        for exponent in -64..=64 {
            let power = 2.0_f32.powi(exponent);
            let x = Tensor::<1>::from_floats([power, -power * 1.3, power * 0.75], &Device::flex());
            assert_eq!(floats(powers_of_two(x, [-64, 64])), [power, -power, power]);
        }
    }

    /// The gradients are held against products of the rounded inputs; what goes on below against the network's own way.
    #[test]
    fn a_weights_gradient_is_the_product_with_the_rounded_input_and_the_rest_is_as_ever() {
        let mut b = Builder::new([1, 3, 3], 2, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(3, 2));
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 2);
        let (net, device) = (b.finish().unwrap().train(), Device::flex().autodiff());
        let exponents = [-5, 3];
        let way = Shifts { layers: vec![1, 3], exponents };
        let images = Tensor::<4>::random([4, 1, 3, 3], Distribution::Normal(0.0, 1.0), &device);
        let logits = way.forward(&net, images.clone(), &mut Taps::default());
        let own = net.forward(images.clone());
        let near = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near(&floats(logits.clone().inner()), &floats(own.clone().inner())));
        let upstream = Tensor::<2>::random([4, 2], Distribution::Normal(0.0, 1.0), &device);
        let (grads, plain) = ((logits * upstream.clone()).sum().backward(), (own * upstream.clone()).sum().backward());
        let of = |name: &str, parameter: &str, grads| net.nodes[net.index(name).unwrap()].gradient(parameter, grads).unwrap();
        for bias in ["conv", "fc"] {
            assert!(near(&of(bias, "bias", &grads), &of(bias, "bias", &plain)), "{bias}");
        }
        let Op::Conv2d(conv) = &net.nodes[1].op else { panic!("no convolution") };
        let hidden = conv.forward(images.clone()).inner().reshape([4, 12]);
        let expected = upstream.clone().inner().transpose().matmul(powers_of_two(hidden, exponents));
        assert!(near(&of("fc", "weight", &grads), &floats(expected)));
        // The convolution has what comes from above through fc's own weight, [out, in].
        let fc = Tensor::<1>::from_floats(get(&net, "fc", "weight").as_slice(), &Device::flex()).reshape([2, 12]);
        let above = floats(upstream.inner().matmul(fc));
        let pixels = floats(powers_of_two(images.inner(), exponents));
        let mut expected = vec![0.0; 12];
        for (i, expected) in expected.iter_mut().enumerate() {
            let (filter, ky, kx) = (i / 4, i / 2 % 2, i % 2);
            for (sample, oy, ox) in (0..16).map(|j| (j / 4, j / 2 % 2, j % 2)) {
                *expected += above[sample * 12 + filter * 4 + oy * 2 + ox] * pixels[sample * 9 + (oy + ky) * 3 + ox + kx];
            }
        }
        assert!(near(&of("conv", "weight", &grads), &expected));
        assert!(!near(&of("conv", "weight", &plain), &expected), "the rounding shows");
    }

    #[test]
    fn ternary_weights_are_drawn_with_the_real_ones_as_their_means() {
        let method: FewMultiplications = serde_json::from_str(r#"{ "train": {} }"#).unwrap();
        let net = method.plan(small()).unwrap().train();
        let Op::Linear(fc1) = &net.nodes[net.index("fc1").unwrap()].op else { panic!("no layer") };
        let base: Vec<f32> = floats(fc1.weight.base().inner());
        briquette_core::chance::seed(9);
        let draws = 3000;
        let mut mean = vec![0.0; base.len()];
        for _ in 0..draws {
            for (value, mean) in floats(fc1.weight.val().inner()).into_iter().zip(&mut mean) {
                assert!([-1.0, 0.0, 1.0].contains(&value));
                *mean += value / draws as f32;
            }
        }
        assert!(mean.iter().zip(&base).all(|(mean, w)| (mean - w.clamp(-1.0, 1.0)).abs() < 0.05));
    }

    #[test]
    fn the_trained_weights_are_of_the_values() {
        for (weights, values) in [("binary", &[-1.0_f32, 1.0][..]), ("ternary", &[-1.0, 0.0, 1.0])] {
            let train = serde_json::json!({ "epochs": 3, "batch": 10, "lr": 0.01 });
            let net = run::<FewMultiplications>(small(), serde_json::json!({ "weights": weights, "train": train })).unwrap();
            for layer in ["conv1", "conv2", "fc1", "fc2"] {
                assert!(get(&net, layer, "weight").iter().all(|w| values.contains(w)), "{layer}");
            }
        }
        let wrong = refusal::<FewMultiplications>(small(), serde_json::json!({ "exponents": [3, -3], "train": {} }));
        assert!(wrong.contains("the least and the largest, in -64..=64, not [3, -3]"), "{wrong}");
    }

    /// Images that are light above or below, and a layer whose weights are all alike, so that its outputs are the same for both: biases, scales
    /// and shifts tell nothing apart, and the accuracy is that of one class until weights move.
    #[test]
    fn weights_learn_by_shifts() {
        let pixels = (0..120_usize * 16).map(|i| if (i % 16 < 8) == (i / 16 % 2 == 0) { 200 } else { (i * i % 90) as u8 });
        let labels = (0..120).map(|i| (i % 2) as u16).collect();
        let all = Dataset::from_memory("halves", [1, 4, 4], 2, pixels.collect(), labels).unwrap();
        let data = Data { train: all.clone(), valid: all.clone(), test: all };
        let accuracy = |weights: &str, epochs: usize| {
            let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
            let x = b.flatten("flatten", b.input());
            let x = b.linear("fc", x, 2);
            b.batch_norm("norm", x);
            let net = set(b.finish().unwrap(), "fc", "weight", &[0.1; 32]);
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.01, "choose": "last" });
            let method: FewMultiplications =
                serde_json::from_value(serde_json::json!({ "weights": weights, "train": train })).unwrap();
            let mut silent = Silent;
            let net = method.run(net, &mut context(&data, &mut silent)).unwrap();
            evaluate(&net, &data.test, &Device::flex(), &mut Silent).unwrap().accuracy
        };
        for weights in ["binary", "ternary"] {
            let (before, after) = (accuracy(weights, 0), accuracy(weights, 10));
            assert!(before <= 0.6 && after > 0.95, "{weights}: {before} and {after}");
        }
    }

    #[test]
    fn what_is_validated_and_handed_on_has_the_statistics_of_its_own_weights() {
        let train = serde_json::json!({ "epochs": 3, "batch": 10, "lr": 0.01, "choose": "last" });
        settles::<FewMultiplications>(small(), serde_json::json!({ "train": train }));
    }
}
