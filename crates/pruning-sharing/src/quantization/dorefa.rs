//! DoReFa-Net.
//!
//! With `quantize_k(x) = round((2^k - 1) x) / (2^k - 1)`, weights are `2 quantize_k(tanh(w) / (2 max |tanh(w)|) + 1 / 2) - 1`, those of one bit
//! `sign(w) mean |w|` with the mean over the layer, and activations `quantize_k(clip(x, 0, 1))`, all trained with gradients that go straight
//! through the rounding. The gradients of these layers' outputs are
//! rounded too, to `2 m (quantize_k(dr / (2 m) + 1 / 2 + N) - 1 / 2)` with the largest absolute value `m` of a sample and uniform noise `N` of one
//! step, which keeps their mean. The first and the last layer stay as they are.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::coding::weights;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::dorefa::Dorefa;
//! use briquette_pruning_sharing::quantization::clipped::squash;
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
//! let method: Dorefa = serde_json::from_str(r#"{ "bits": 2, "activations": 2, "train": { "epochs": 5 } }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! let values = net.nodes[net.index("fc2").unwrap()].weight().unwrap().values();
//! assert!(values.iter().all(|w| [-3.0, -1.0, 1.0, 3.0].iter().any(|third| (3.0 * w - third).abs() < 1e-5)));
//!
//! // The weights of any module of Burn, and the bits of each.
//! let layer = squash(LinearConfig::new(20, 10).init(&Device::flex()), |_| Some(2));
//! assert!(weights(&layer)[0].values.iter().all(|w| [-3.0, -1.0, 1.0, 3.0].iter().any(|third| (3.0 * w - third).abs() < 1e-5)));
//! ```
//!
//! Zhou, Wu, Ni, Zhou, Wen, Zou. "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients".
//! arXiv:1606.06160, 2016.
//! Differs from the paper: gradients keep their precision unless `gradients` says otherwise, and residual sums read the quantized activations.

use std::collections::BTreeMap;

use briquette_core::StepGradient;
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::{Net, Value};
use briquette_core::objective::Taps;
use briquette_core::pass::{Method, Pass};
use briquette_core::quantize::CoarseGradient;
use briquette_core::training::{Extras, Forward, Recipe, fit};
use briquette_core::types::Bits;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::quantization::clipped::{Clipped, Magnitudes};

/// Trains with squashed weights and activations between 0 and 1 on grids.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dorefa {
    /// Bits and layers.
    #[serde(flatten)]
    clipped: Clipped,
    /// Bits of the gradients of the layers' outputs, 1 to 16; without, they are not rounded.
    gradients: Option<Bits>,
    /// The training.
    train: Recipe,
}

impl Method for Dorefa {
    const NAME: &'static str = "dorefa";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Zhou, Wu, Ni, Zhou, Wen, Zou, arXiv:1606.06160";
    const EXAMPLE: &'static str = "bits = 2\nactivations = 4\ntrain = { epochs = 10 }";
}

impl Pass for Dorefa {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let layers = self.clipped.layers(Self::NAME, &net, 1)?;
        let layers = layers.into_iter().map(|(layer, bits)| (net.nodes[layer].name.clone(), bits)).collect();
        let net = self.plan(net)?;
        let (coarse, mut magnitudes) = (self.coarse(&net, &layers)?, Magnitudes::new(&net, &layers));
        let forward = coarse.as_ref().map(|coarse| coarse as &dyn Forward);
        fit(net, &self.train, Extras { projections: vec![&mut magnitudes], forward, ..Extras::default() }, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        self.coarse(&net, &BTreeMap::new())?;
        self.clipped.apply(Self::NAME, net, 1.0, 1, StepGradient::Fixed)
    }
}

impl Dorefa {
    /// The training's own way through the network, if it has one. `layers` are by name, for quantizers move the indices; what an earlier pass
    /// quantized is none of them.
    fn coarse(&self, net: &Net, layers: &BTreeMap<String, u32>) -> Result<Option<Coarse>> {
        let Some(bits) = self.gradients else { return Ok(None) };
        let gradient = CoarseGradient::of_bits(bits);
        Ok(Some(Coarse { gradient, layers: layers.keys().map(|name| net.index(name)).collect::<Result<_>>()? }))
    }
}

/// The way through the network on which the gradients of these layers' outputs are rounded.
struct Coarse {
    gradient: CoarseGradient,
    layers: Vec<usize>,
}

impl Forward for Coarse {
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        let tap = |index: usize, value: Value| {
            taps.meet(index, &value);
            match (self.layers.contains(&index), value) {
                (true, Value::Map(x)) => Value::Map(self.gradient.apply(x)),
                (true, Value::Vector(x)) => Value::Vector(self.gradient.apply(x)),
                (false, value) => value,
            }
        };
        net.trace(images, tap).vector()
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::context::Silent;
    use briquette_core::training::evaluate;
    use burn::module::{Module, Param};
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::quantization::clipped::squash;
    use crate::quantization::fixed_point::FixedPoint;
    use briquette_handmade::{get, images, refusal, run, small, stirred};

    #[test]
    fn weights_are_those_of_the_formula_and_training_lowers_the_loss() {
        let after = |epochs: usize| {
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.02 });
            run::<Dorefa>(stirred(), serde_json::json!({ "bits": 2, "activations": 3, "train": train })).unwrap()
        };
        let (start, trained) = (after(0), after(60));
        let weights = get(&stirred(), "conv2", "weight");
        let largest = weights.iter().fold(0.0_f32, |m, w| m.max(w.tanh().abs()));
        let expected = weights.iter().map(|w| 2.0 * ((w.tanh() / (2.0 * largest) + 0.5) * 3.0).round() / 3.0 - 1.0);
        assert!(get(&start, "conv2", "weight").iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(get(&start, "conv1", "weight"), get(&stirred(), "conv1", "weight"));
        let quantizers = trained.nodes.iter().filter_map(|node| node.op.quantize());
        let quantizers = quantizers.map(|own| (own.levels, own.zero, briquette_core::coding::floats(own.scale.val())[0]));
        assert_eq!(quantizers.collect::<Vec<_>>(), [(8, 0.0, 1.0 / 7.0); 2]);
        let thirds = |w: &f32| (3.0 * w).round() == 3.0 * w || ((3.0 * w) - (3.0 * w).round()).abs() < 1e-5;
        assert!(get(&trained, "fc1", "weight").iter().all(thirds));
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        assert!(loss(&trained) < 0.9 * loss(&start), "{} {}", loss(&trained), loss(&start));
    }

    #[test]
    fn one_bit_weights_are_signs_of_the_layers_mean_magnitude_and_learn_with_one_bit_activations() {
        let after = |epochs: usize| {
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.02 });
            run::<Dorefa>(stirred(), serde_json::json!({ "bits": 1, "activations": 1, "train": train })).unwrap()
        };
        let (start, trained) = (after(0), after(60));
        for (net, learned) in [(&start, false), (&trained, true)] {
            for layer in ["conv2", "fc1"] {
                let base = net.nodes[net.index(layer).unwrap()].weight().unwrap().base;
                assert_eq!(base != get(&stirred(), layer, "weight"), learned, "{layer}");
                let mean = base.iter().map(|w| w.abs()).sum::<f32>() / base.len() as f32;
                let signs = base.iter().map(|w| if *w < 0.0 { -mean } else { mean });
                assert!(get(net, layer, "weight").iter().zip(signs).all(|(a, b)| (a - b).abs() < 1e-6), "{layer}");
            }
        }
        let images = Tensor::<4>::random([5, 1, 4, 4], Distribution::Uniform(0.0, 1.0), &Device::flex());
        trained.trace(images, |index, value| {
            if trained.nodes[index].op.quantize().is_some() {
                let values = match value.clone() {
                    Value::Map(x) => floats(x),
                    Value::Vector(x) => floats(x),
                };
                assert!(values.iter().all(|x| [0.0, 1.0].contains(x)), "{values:?}");
            }
            value
        });
        let (data, device) = (briquette_handmade::images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        assert!(loss(&trained) < 0.9 * loss(&start), "{} {}", loss(&trained), loss(&start));
    }

    /// Straight-through gradients are those of the formulas without their rounding.
    #[test]
    fn activations_and_one_bit_weights_have_the_gradients_of_their_surrogates() {
        let device = Device::flex().autodiff();
        let (x, factors) = ([-0.4_f32, 0.2, 0.45, 0.81, 1.3], [1.0_f32, -2.0, 3.0, 0.5, 4.0]);
        let upstream = Tensor::<2>::from_floats([factors], &device);
        let slope = |surrogate: fn(f64) -> f64, x: f32| (surrogate(f64::from(x) + 1e-4) - surrogate(f64::from(x) - 1e-4)) / 2e-4;
        let near = |found: &[f32], surrogate: fn(f64) -> f64| {
            let expected = x.iter().zip(factors).map(|(x, factor)| f64::from(factor) * slope(surrogate, *x));
            assert!(found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3), "{found:?}");
        };
        for bits in [1, 2, 8] {
            let settings = serde_json::json!({ "bits": 1, "activations": bits, "train": {} });
            let method: Dorefa = serde_json::from_value(settings).unwrap();
            let net = method.plan(small()).unwrap().train();
            let quantize = net.nodes.iter().find_map(|node| node.op.quantize());
            let own = Tensor::<2>::from_floats([x], &device).require_grad();
            let y = quantize.unwrap().forward(own.clone());
            let last = (1 << bits) as f32 - 1.0;
            let expected = x.map(|x| (x.clamp(0.0, 1.0) * last).round() / last);
            assert!(floats(y.clone().inner()).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
            let grads = (y * upstream.clone()).sum().backward();
            near(&floats(own.grad(&grads).unwrap()), |x| x.clamp(0.0, 1.0));
        }
        let weight = squash(Param::from_tensor(Tensor::<2>::from_floats([x], &device)), |_| Some(1)).train();
        let grads = (weight.val() * upstream).sum().backward();
        near(&floats(weight.base().grad(&grads).unwrap()), |w| w);
    }

    #[test]
    fn gradients_of_few_bits_are_right_on_the_mean_and_train_too() {
        let settings = |more: serde_json::Value| {
            let mut all = serde_json::json!({ "bits": 4, "activations": 4, "train": { "epochs": 60, "batch": 10, "lr": 0.02 } });
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let method: Dorefa = serde_json::from_value(settings(serde_json::json!({ "gradients": 2 }))).unwrap();
        let net = method.plan(stirred()).unwrap();
        let (data, mut silent) = (images(), Silent);
        let layers = [("conv2".to_string(), 4), ("fc1".to_string(), 4)].into();
        let coarse = method.coarse(&net, &layers).unwrap().unwrap();
        let net = net.probed();
        assert_eq!(coarse.layers, [net.index("conv2").unwrap(), net.index("fc1").unwrap()]);
        let x = Tensor::<4>::random([5, 1, 4, 4], Distribution::Uniform(0.0, 1.0), &Device::flex().autodiff());
        let by_conv2 = |logits: Tensor<2>| {
            let gradients = logits.powi_scalar(2).sum().backward();
            net.nodes[net.index("conv2").unwrap()].gradient("bias", &gradients).unwrap()
        };
        let exact = by_conv2(net.forward(x.clone()));
        let mut mean = vec![0.0; exact.len()];
        for draw in 0..2000 {
            briquette_core::chance::seed(draw);
            let logits = coarse.forward(&net, x.clone(), &mut Taps::default());
            mean.iter_mut().zip(by_conv2(logits)).for_each(|(mean, found)| *mean += found / 2000.0);
        }
        // Of one image the gradient by a bias is that of the output: it lies on the four levels from the largest to its negative.
        let one = x.narrow(0, 0, 1);
        let by_fc1 = |logits: Tensor<2>| {
            let gradients = logits.powi_scalar(2).sum().backward();
            net.nodes[net.index("fc1").unwrap()].gradient("bias", &gradients).unwrap()
        };
        let (of_one, drawn) = (by_fc1(net.forward(one.clone())), by_fc1(coarse.forward(&net, one, &mut Taps::default())));
        let largest = of_one.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
        let on_level = |g: &f32| [-3.0, -1.0, 1.0, 3.0].iter().any(|third| (3.0 * g / largest - third).abs() < 1e-4);
        assert!(drawn.iter().all(on_level) && !of_one.iter().all(on_level), "{drawn:?} {of_one:?}");
        let size = exact.iter().map(|g| g * g).sum::<f32>().sqrt();
        let off = mean.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        assert!(size > 0.0 && off < 0.1 * size, "{mean:?} {exact:?}");
        let mut loss = |net: &Net| evaluate(net, &data.test, &Device::flex(), &mut silent).unwrap().loss;
        let [start, trained] = [0, 60].map(|epochs| {
            let more = serde_json::json!({ "gradients": 6, "train": { "epochs": epochs, "batch": 10, "lr": 0.02 } });
            run::<Dorefa>(stirred(), settings(more)).unwrap()
        });
        assert!(loss(&trained) < 0.9 * loss(&start));
    }

    #[test]
    fn gradients_of_a_layer_that_an_earlier_pass_quantized_stay_exact() {
        let earlier = serde_json::json!({ "bits": 8, "activations": 8, "layers": ["fc2"], "fold": false });
        let earlier = run::<FixedPoint>(stirred(), earlier).unwrap();
        // One step, so that what is above the rounded gradients is the same.
        let after = |gradients: Option<u32>| {
            let train = serde_json::json!({ "epochs": 1, "batch": 40, "lr": 0.1, "optimizer": "sgd", "choose": "last" });
            let settings = serde_json::json!({ "bits": 4, "gradients": gradients, "layers": ["conv2"], "train": train });
            run::<Dorefa>(earlier.deep_clone(), settings).unwrap()
        };
        let (exact, coarse) = (after(None), after(Some(1)));
        let far = |layer: &str| {
            let (a, b) = (get(&exact, layer, "bias"), get(&coarse, layer, "bias"));
            a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(far("fc2") < 1e-6 && far("conv2") > 1e-4, "{} {}", far("fc2"), far("conv2"));
    }

    #[test]
    fn bits_out_of_range_and_negative_inputs_are_refused() {
        let refused = |more: serde_json::Value| refusal::<Dorefa>(small(), more);
        let error = refused(serde_json::json!({ "bits": 9, "train": {} }));
        assert_eq!(error, "node 'conv2': dorefa takes 1 to 8 bits, not 9");
        let error = refused(serde_json::json!({ "bits": 2, "activations": 9, "train": {} }));
        assert_eq!(error, "dorefa: `activations` takes 1 to 8 bits, not 9");
        let pruned = crate::pruning::magnitude::prune(small(), |_| Some(0.5));
        let error = refusal::<Dorefa>(pruned, serde_json::json!({ "bits": 1, "train": {} }));
        assert_eq!(error, "node 'conv2': is pruned; put dorefa before the pass that prunes it, or name it in `except`");
        let mut b = briquette_core::builder::Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let x = b.linear("fc1", x, 4);
        let x = b.linear("fc2", x, 4);
        b.linear("fc3", x, 3);
        let error = refusal::<Dorefa>(b.finish().unwrap(), serde_json::json!({ "bits": 2, "activations": 2, "train": {} }));
        assert_eq!(error, "node 'fc2': reads values below 0, which dorefa clips away; add it to `except`");
    }
}
