//! Mixtures of experts: several fully connected layers in the place of one, of which each sample is computed by few.
//!
//! A layer `W x + b` becomes `y = sum_{i in T} g_i (W_i x + b_i)` of `n` experts. Their gating has the logits `h = W_g x`; `T` are the `k` experts of the
//! largest logits, `g` is the softmax over these, and the others are not computed. While the network trains, `h_i = (W_g x)_i + e_i s_i` with draws `e_i`
//! from N(0, 1) and deviations `s = softplus(W_n x) + 0.01`, so that others are tried; `W_n` is dropped afterwards. With `CV^2`, the variance of `n` values
//! over the square of their mean, the loss has two more terms, over the samples `x` of a batch:
//! - `importance` times the `CV^2` of the sums of gates, `sum_x g_i`;
//! - `load` times the `CV^2` of the smooth numbers of samples, `sum_x P_i`. `P_i = Phi(((W_g x)_i - t_i) / s_i)` is the probability that another draw of
//!   `e_i` keeps expert `i`: `t_i` is the `k`-th largest of the other experts' `h`, `Phi` the normal distribution.
//!
//! `W_g` and `W_n` begin at 0, where every expert is as probable as any other.
//!
//! Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean. "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer". ICLR 2017.
//! arXiv:1701.06538.
//! Differs from the paper: each expert is one layer and begins as the layer that they replace, so that at first outputs are what they were; what was behind
//! that layer, a rectifier say, is behind their sum. As in the authors' code, there is 0.01 in the deviations, and gradients reach `t_i`.
//!
//! ```
//! use briquette_core::{cost::Cost, pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::mixture_of_experts::MixtureOfExperts;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("lenet300").unwrap();
//! let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
//! let settings = r#"{ "layers": ["fc2"], "experts": 8, "k": 2, "train": { "epochs": 1 } }"#;
//! let method: MixtureOfExperts = serde_json::from_str(settings).unwrap();
//! let (before, after) = (Cost::of(&net).unwrap(), Cost::of(&method.plan(net).unwrap()).unwrap());
//! assert_eq!(after.weights() - before.weights(), 7 * 300 * 100 + 8 * 300);
//! assert_eq!(after.macs() - before.macs(), 300 * 100 + 8 * 300);
//! ```

use briquette_core::Layer;
use briquette_core::coding::Coding;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::gating::{softmax_of_largest, softplus};
use briquette_core::layers::{Experts, Linear, Noise, largest};
use briquette_core::net::{Net, Node, Op, Value};
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::training::{Extras, Recipe, fit, predict};
use briquette_core::types::Layers;
use briquette_core::values::floats;
use briquette_parts::refuse;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use serde::Deserialize;

/// Replaces fully connected layers by mixtures of experts and trains them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MixtureOfExperts {
    /// Fully connected layers by name.
    layers: Layers,
    /// `n`: experts in the place of each.
    experts: usize,
    /// How many of them compute a sample, 2 or more and fewer than all: the gate of one alone would be 1, and teach the gating nothing.
    k: usize,
    /// Weight of the loss on sums of gates.
    #[serde(default = "tenth")]
    importance: f64,
    /// Weight of the loss on numbers of samples.
    #[serde(default = "tenth")]
    load: f64,
    /// The training.
    train: Recipe,
}

/// The paper's weight of both losses for language models.
fn tenth() -> f64 {
    0.1
}

/// Deviation of the noise that is always there.
const EPSILON: f64 = 1e-2;

impl Method for MixtureOfExperts {
    const NAME: &'static str = "mixture-of-experts";
    const FAMILY: &'static str = "dynamic networks";
    const PAPER: &'static str = "Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean, ICLR 2017, arXiv:1701.06538";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\nexperts = 4\nk = 2\ntrain = { epochs = 10 }";
}

impl Pass for MixtureOfExperts {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (net, mixtures) = self.noisy(net)?;
        let mut balance = Balance { mixtures: mixtures.clone(), k: self.k, weights: [self.importance, self.load] };
        let extras = Extras { objectives: vec![&mut balance], ..Extras::default() };
        let net = calm(fit(net, &self.train, extras, cx)?, &mixtures)?;
        self.tell(&net, &mixtures, cx)?;
        Ok(net)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let (net, mixtures) = self.noisy(net)?;
        calm(net, &mixtures)
    }
}

impl MixtureOfExperts {
    /// The network with noisy mixtures, and the names of these.
    fn noisy(&self, mut net: Net) -> Result<(Net, Vec<String>)> {
        self.train.check()?;
        let refuse = |detail: String| Err(Error::Invalid(detail));
        if !(2..self.experts).contains(&self.k) {
            return refuse(format!(
                "`k` is {}, of {} experts; it is 2 or more, for one gate alone teaches the gating nothing, and fewer than there are",
                self.k, self.experts
            ));
        }
        if let Some(bad) = [self.importance, self.load].iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
            return refuse(format!("a weight of {bad} in `importance` or `load`; it is a number that is not negative"));
        }
        let chosen = self.layers.without(&Layers::default(), &net)?;
        let names: Vec<String> = chosen.into_iter().map(|index| net.nodes[index].name.clone()).collect();
        for name in &names {
            let index = net.index(name)?;
            let mixture = self.mixture(&net, index)?;
            net = net.replace(index, mixture)?;
        }
        Ok((net, names))
    }

    /// What comes in the place of a layer: its gating, with noise, and copies of it.
    fn mixture(&self, net: &Net, index: usize) -> Result<Vec<Node>> {
        let (node, device) = (&net.nodes[index], net.device());
        let Op::Linear(_) = node.op else {
            return Err(Error::node(&node.name, "is no fully connected layer; name those in `layers`"));
        };
        let parameters = node.parameters();
        if parameters.iter().any(|stored| stored.coding != Coding::default()) {
            return Err(Error::node(
                &node.name,
                "is pruned or shares its weights, which experts do not; put their pass before those",
            ));
        }
        parameters.iter().try_for_each(|stored| refuse::not_finite(&node.name, &stored.base))?;
        let find = |name: &str| parameters.iter().find(|stored| stored.name == name);
        let weight = find("weight").expect("a fully connected layer has a weight");
        let [outputs, inputs] = [weight.shape[0], weight.shape[1]];
        let n = self.experts;
        let copies = |name: &'static str, of: &Stored, shape: &[usize]| Stored {
            name,
            shape: shape.to_vec(),
            base: of.base.repeat(n),
            coding: Coding::default(),
        };
        let layer = Experts { experts: n, chosen: self.k, inputs, outputs };
        let weights = copies("weights", weight, &[n, outputs, inputs]);
        let copied = std::iter::once(weights).chain(find("bias").map(|bias| copies("biases", bias, &[n * outputs]))).collect();
        let zeros = || Stored { name: "weight", shape: vec![n, inputs], base: vec![0.0; n * inputs], coding: Coding::default() };
        let named = |part: &str| format!("{}.{part}", node.name);
        let built = |name: String, inputs: Vec<usize>, layer: Layer, parameters: Vec<Stored>| -> Result<Node> {
            Ok(Node { op: Op::built(&name, &layer, parameters, &device)?, name, inputs })
        };
        let x = node.inputs[0];
        Ok(vec![
            built(named("gate"), vec![x], Linear.into(), vec![zeros()])?,
            built(named("noise"), vec![x], Linear.into(), vec![zeros()])?,
            built(named("noisy"), vec![index, index + 1], Noise { epsilon: EPSILON }.into(), Vec::new())?,
            built(node.name.clone(), vec![x, index + 2], layer.into(), copied)?,
        ])
    }

    /// Says which experts the validation images go to.
    fn tell(&self, net: &Net, mixtures: &[String], cx: &mut Context<'_>) -> Result<()> {
        if cx.data.valid.is_empty() {
            return Ok(());
        }
        let gates: Vec<usize> = mixtures.iter().map(|name| net.index(&format!("{name}.gate"))).collect::<Result<_>>()?;
        let none = || Tensor::<2>::zeros([1, self.experts], &cx.device);
        let (mut importance, mut load) = (vec![none(); gates.len()], vec![none(); gates.len()]);
        let (device, data) = (cx.device.clone(), &cx.data.valid);
        predict(net, data, (&device, &mut *cx.host), &gates, |_, _, logits| {
            for (mixture, logits) in logits.into_iter().enumerate() {
                let gates = softmax_of_largest(logits.vector(), self.k).0;
                load[mixture] = load[mixture].clone() + gates.clone().greater_elem(0.0).float().sum_dim(0);
                importance[mixture] = importance[mixture].clone() + gates.sum_dim(0);
            }
            0.0
        })?;
        for ((name, importance), load) in mixtures.iter().zip(importance).zip(load) {
            let of = |share: f32| format!("{:.1} %", 100.0 * share / data.len() as f32);
            let shares: Vec<String> = floats(load.clone()).into_iter().map(of).collect();
            let [importance, load] = [importance, load].map(|values| floats(squared_variation(values))[0]);
            cx.note(format!(
                "{name}: {} of {} experts compute an image; each its share of the validation images, {}; squared coefficient of variation of the \
                 importance {importance:.4}, of the load {load:.4}",
                self.k,
                self.experts,
                shares.join(", ")
            ));
        }
        Ok(())
    }
}

/// The network without the noise.
fn calm(net: Net, mixtures: &[String]) -> Result<Net> {
    let pair = |name: &String| Ok((net.index(&format!("{name}.noisy"))?, net.index(&format!("{name}.gate"))?));
    let pairs: Vec<(usize, usize)> = mixtures.iter().map(pair).collect::<Result<_>>()?;
    Ok(net.bypass_all(&pairs)?.0)
}

/// The losses that keep experts busy alike.
#[derive(Debug)]
struct Balance {
    mixtures: Vec<String>,
    k: usize,
    /// Of the importance and of the load.
    weights: [f64; 2],
}

impl Objective for Balance {
    fn taps(&self, net: &Net) -> Result<Vec<usize>> {
        let of = |name: &String| ["gate", "noise", "noisy"].map(|part| net.index(&format!("{name}.{part}")));
        self.mixtures.iter().flat_map(of).collect()
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        let of = |taps: &[Value]| {
            let [clean, raw, noisy] = [0, 1, 2].map(|tap| taps[tap].clone().vector());
            let deviation = softplus(raw).add_scalar(EPSILON);
            let load = load(clean, deviation, &noisy, self.k).mul_scalar(self.weights[1]);
            importance(noisy, self.k).mul_scalar(self.weights[0]) + load
        };
        Ok(seen.taps.chunks(3).map(of).fold(Tensor::zeros([1], &seen.logits.device()), |sum, term| sum + term))
    }
}

/// `CV^2` of the sums of gates, for logits `[batch, n]`.
fn importance(logits: Tensor<2>, k: usize) -> Tensor<1> {
    squared_variation(softmax_of_largest(logits, k).0.sum_dim(0))
}

/// `CV^2` of the smooth numbers of samples, for logits without and with noise, and its deviation, each `[batch, n]`; `k` is less than `n`.
fn load(clean: Tensor<2>, deviation: Tensor<2>, noisy: &Tensor<2>, k: usize) -> Tensor<1> {
    let ([batch, n], device) = (noisy.dims(), noisy.device());
    let orders: Vec<Vec<usize>> = floats(noisy.clone()).chunks(n).map(|row| largest(row, k + 1)).collect();
    // An expert that is chosen competes with the next one, any other with the last one chosen.
    let threshold = |rank: usize| {
        let places = orders.iter().map(|order| order[rank] as i32).collect();
        let places = Tensor::<2, Int>::from_data(TensorData::new::<i32, _>(places, [batch, 1]), &device);
        noisy.clone().gather(1, places).expand([batch, n])
    };
    let chosen = orders.iter().flat_map(|order| (0..n).map(move |expert| order[..k].contains(&expert))).collect();
    let chosen = Tensor::<2, Bool>::from_data(TensorData::new::<bool, _>(chosen, [batch, n]), &device);
    let threshold = threshold(k - 1).mask_where(chosen, threshold(k));
    let z = (clean - threshold) / deviation;
    let probability = z.div_scalar(std::f64::consts::SQRT_2).erf().add_scalar(1.0).div_scalar(2.0);
    squared_variation(probability.sum_dim(0))
}

/// The variance of `[1, n]` values, of all `n` of them, over the square of their mean.
fn squared_variation(values: Tensor<2>) -> Tensor<1> {
    let mean = values.clone().mean();
    let off = values - mean.clone().reshape([1, 1]);
    (off.clone() * off).mean() / (mean.clone() * mean).add_scalar(1e-10)
}

#[cfg(test)]
mod tests {
    use briquette_core::context::{Context, Data, Finding, Silent};
    use briquette_core::cost::Cost;
    use briquette_core::stored::Storage;
    use briquette_core::training::Optimizer;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_data::{GlyphCounts, Locations};
    use briquette_handmade::{get, outputs, refusal, run, set, small};
    use briquette_runtime::{Engine, Model};
    use burn::module::Module;
    use burn::optim::GradientsParams;
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;

    /// `moe-noisy-top-k-1` and `-3` of the reference values.
    #[test]
    fn losses_and_gradients_are_those_of_the_reference() {
        let goldens: serde_json::Value = serde_json::from_str(include_str!("mixture_of_experts/goldens.json")).unwrap();
        let values = |of: &serde_json::Value| -> Vec<f32> { serde_json::from_value(of.clone()).unwrap() };
        let device = Device::flex().autodiff();
        let tensor =
            |name: &str, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values(&goldens[name]), shape), &device);
        let near = |found: &[f32], expected: &serde_json::Value| {
            let expected = if expected.is_array() { values(expected) } else { vec![expected.as_f64().unwrap() as f32] };
            let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-5);
            assert!(found.len() == expected.len() && near, "{found:?} {expected:?}");
        };
        for case in goldens["cases"].as_array().unwrap() {
            let [w_gate, w_noise] = ["w_gate", "w_noise"].map(|name| tensor(name, [3, 5]).require_grad());
            let x = tensor("x", [6, 3]);
            let clean = x.clone().matmul(w_gate.clone());
            let deviation = softplus(x.matmul(w_noise.clone())).add_scalar(case["epsilon"].as_f64().unwrap());
            let noisy = clean.clone() + tensor("noise", [6, 5]) * deviation.clone();
            let (importance, load) = (importance(noisy.clone(), 2), load(clean, deviation, &noisy, 2));
            near(&floats(importance.clone().inner()), &case["cv2_importance"]);
            near(&floats(load.clone().inner()), &case["cv2_load"]);
            let gradients = (importance + load).mul_scalar(0.1).backward();
            near(&floats(w_gate.grad(&gradients).unwrap()), &case["grad_w_gate"]);
            near(&floats(w_noise.grad(&gradients).unwrap()), &case["grad_w_noise"]);
        }
    }

    fn settings() -> serde_json::Value {
        json!({ "layers": ["fc1"], "experts": 3, "k": 2, "train": { "epochs": 1, "batch": 20, "lr": 0.01 } })
    }

    #[test]
    fn experts_begin_as_the_layer_that_they_replace_and_part_while_they_train() {
        let method: MixtureOfExperts = serde_json::from_value(settings()).unwrap();
        let start = method.plan(small()).unwrap();
        assert!(outputs(&start).iter().zip(outputs(&small())).all(|(a, b)| (a - b).abs() < 1e-5));
        let net = run::<MixtureOfExperts>(small(), settings()).unwrap();
        let weights = get(&net, "fc1", "weights");
        let experts: Vec<&[f32]> = weights.chunks(weights.len() / 3).collect();
        assert!(experts[0] != experts[1] && experts[1] != experts[2] && experts[0] != experts[2]);
        let gating = get(&net, "fc1.gate", "weight").iter().any(|weight| *weight != 0.0);
        assert!(gating && net.index("fc1.noise").is_err() && net.index("fc1.noisy").is_err());
        assert_eq!(Cost::of(&net).unwrap(), Cost::of(&start).unwrap());
    }

    #[test]
    fn weights_of_experts_decay_and_their_biases_only_where_the_recipe_says_so() {
        let method: MixtureOfExperts = serde_json::from_value(settings()).unwrap();
        let start = method.plan(set(small(), "fc1", "bias", &[0.5; 5])).unwrap();
        let decayed = |decay_all: bool| {
            let recipe = Recipe { optimizer: Optimizer::Adamw, weight_decay: 0.5, decay_all, ..Recipe::default() };
            let net = start.deep_clone().train();
            // Nothing but the decay moves what all experts have, whichever the images choose.
            let Op::Tensors(experts) = &net.nodes[net.index("fc1").unwrap()].op else { panic!("no experts") };
            let loss = ["weights", "biases"].map(|name| experts.get(name).unwrap().flat().sum().mul_scalar(0.0));
            let loss = loss.into_iter().fold(Tensor::<1>::zeros([1], &Device::flex().autodiff()), |sum, term| sum + term);
            let gradients = GradientsParams::from_grads(loss.backward(), &net);
            let stepped = recipe.optimizer().step(0.1, net, gradients).valid();
            ["weights", "biases"].map(|name| {
                let moved = |(a, b): (&f32, f32)| (b - 0.95 * a).abs() < 1e-6;
                get(&start, "fc1", name).iter().zip(get(&stepped, "fc1", name)).all(moved)
            })
        };
        assert_eq!((decayed(false), decayed(true)), ([true, false], [true, true]));
    }

    #[test]
    fn experts_share_the_images_after_a_training_and_exactly_k_of_them_compute_each() {
        let at = Locations { glyphs: GlyphCounts { train: 800, test: 10 }, ..Locations::from_env(None) };
        let glyphs = briquette_data::open("glyphs", &at).unwrap();
        let (train, valid) = glyphs.train.split(200, 1);
        let data = Data { train, valid, test: glyphs.test };
        let arch = Arch::named("lenet300").unwrap();
        let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex()).unwrap();
        let settings = json!({ "layers": ["fc1"], "experts": 5, "k": 2,
            "train": { "epochs": 4, "batch": 50, "lr": 2e-3, "choose": "last" } });
        let method: MixtureOfExperts = serde_json::from_value(settings).unwrap();
        let mut silent = Silent;
        let mut cx = Context::new(&Device::flex(), 3, &data, &mut silent);
        let net = method.run(net, &mut cx).unwrap();
        let Some(Finding::Note(note)) = cx.findings.last() else { panic!("{:?}", cx.findings) };
        let (listed, _) = note.rsplit_once(" %").unwrap();
        let shares: Vec<f64> = listed.split(" %").filter_map(|part| part.rsplit(' ').next()?.parse().ok()).collect();
        assert!(shares.len() == 5 && (shares.iter().sum::<f64>() - 200.0).abs() < 0.5, "{note}");
        assert!(shares.iter().all(|share| (10.0..80.0).contains(share)), "{note}");
        let cost = Cost::of(&net).unwrap();
        assert_eq!(cost.layers.iter().find(|layer| layer.name == "fc1").unwrap().macs, 2 * 784 * 30);
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let engine = Engine::new(&Model::from_bytes(&bytes).unwrap(), 2).unwrap();
        let images: Vec<f32> = (0..7).flat_map(|i| data.valid.pixel(i).unwrap()).map(|pixel| f32::from(pixel) / 255.0).collect();
        let burn = floats(net.forward(Tensor::from_data(TensorData::new(images.clone(), [7, 1, 28, 28]), &Device::flex())));
        let alone: Vec<f32> = images.chunks(784).flat_map(|image| engine.run(image, 1).unwrap()).collect();
        for found in [engine.run(&images, 7).unwrap(), alone] {
            assert!(found.iter().zip(&burn).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} {burn:?}");
        }
    }

    #[test]
    fn what_is_no_mixture_is_refused() {
        let refuse = |change: serde_json::Value| {
            let mut settings = settings();
            settings.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            refusal::<MixtureOfExperts>(small(), settings)
        };
        for k in [4, 3, 1] {
            assert!(refuse(json!({ "k": k })).starts_with(&format!("`k` is {k}, of 3 experts; it is 2 or more")));
        }
        assert!(refuse(json!({ "load": -1.0 })).starts_with("a weight of -1 in `importance` or `load`"));
        let conv = refuse(json!({ "layers": ["conv2"] }));
        assert_eq!(conv, "node 'conv2': is no fully connected layer; name those in `layers`");
        let bad = set(small(), "fc1", "bias", &[0.0, f32::NAN, 0.0, 0.0, 0.0]);
        assert!(refusal::<MixtureOfExperts>(bad, settings()).contains("holds the weight NaN"));
        let twice = run::<MixtureOfExperts>(small(), settings()).unwrap();
        assert!(refusal::<MixtureOfExperts>(twice, settings()).starts_with("node 'fc1': holds no weights"));
    }
}
