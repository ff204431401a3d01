//! What the methods of structural matrices share: which layers they replace, how the new parameters begin, and the training afterwards. A
//! method adds the structure, and where it knows one, its closest matrix.
//!
//! A fit goes down `sum (M - W)^2`, `M` the dense form and `W` the layer's weight, by Adam: the gradient of the parameters comes from the
//! structure's own product with unit vectors, so that neither a large `M` nor its gradient is ever held as a whole.

use briquette_core::Layer;
use briquette_core::coding::Coding;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::streams::{standard_normal, stream};
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use briquette_kernels::Structure;
use briquette_kernels::optimize::Adam;
use briquette_kernels::structured::{UNITS, units};
use briquette_runtime::{Padding, layers};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use briquette_parts::refuse;

/// A method: it replaces layers by structural matrices of one form.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Replacement<F> {
    /// Fully connected layers and convolutions by one pixel, by name.
    layers: Layers,
    /// Of these, the layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Where the parameters begin.
    #[serde(default)]
    init: Init,
    /// Steps of the fit, after the closest matrix in closed form where the method knows it.
    steps: Option<usize>,
    /// Training afterwards.
    tune: Option<Recipe>,
    /// What only this form has to set.
    #[serde(flatten)]
    form: F,
}

/// Where the parameters of a structural matrix begin.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Near the weight that they replace, in the sense of least squares; the bias stays.
    #[default]
    Fit,
    /// At random, so that the matrix has the variance `2 / inputs` of He et al. (ICCV 2015), and the bias at zero.
    Random,
}

/// What a method says of its structure.
pub trait StructuralMatrix: std::fmt::Debug + Send + DeserializeOwned + 'static {
    /// [`Method::NAME`].
    const NAME: &'static str;
    /// [`Method::PAPER`].
    const PAPER: &'static str;
    /// [`Method::EXAMPLE`].
    const EXAMPLE: &'static str;

    /// Refuses settings without sense that [`Structure::check`] does not see.
    ///
    /// # Errors
    /// Names the setting.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The structure for so many inputs and outputs.
    fn structure(&self, features: [usize; 2], seed: u64) -> Structure;

    /// Random values of every parameter, in order; their common scale does not matter. `normal` draws from N(0, 1).
    fn draw(&self, structure: &Structure, normal: &mut dyn FnMut() -> f32) -> Vec<f32> {
        (0..structure.count()).map(|_| normal()).collect()
    }

    /// The power of the first parameter's scale with which the matrix grows.
    fn degree(&self, _structure: &Structure) -> usize {
        1
    }

    /// Parameters of a matrix close to `weight` `[outputs, inputs]`, in closed form; none where there is no such form.
    ///
    /// # Errors
    /// When the structure refuses its own parameters.
    fn closest(&self, _structure: &Structure, _weight: &[f32]) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
}

/// Steps of a fit that begins anywhere.
const STEPS: usize = 200;

impl<F: StructuralMatrix> Method for Replacement<F> {
    const NAME: &'static str = F::NAME;
    const FAMILY: &'static str = "structural matrices";
    const PAPER: &'static str = F::PAPER;
    const EXAMPLE: &'static str = F::EXAMPLE;
}

impl<F: StructuralMatrix> Pass for Replacement<F> {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (form, seed) = (&self.form, cx.seed);
        let net = self.each(net, seed, |structure, node, weight| match self.init {
            Init::Random => random(form, structure, stream(seed, &format!("{node} parameters")), he(structure)),
            Init::Fit => match form.closest(structure, weight)? {
                Some(start) => approach(structure, weight, start, self.steps.unwrap_or(0)),
                None => {
                    let norm = weight.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                    let start = random(form, structure, stream(seed, &format!("{node} parameters")), norm)?;
                    approach(structure, weight, start, self.steps.unwrap_or(STEPS))
                }
            },
        })?;
        tune(net, self.tune.as_ref(), cx)
    }

    /// The new layers have no values yet.
    fn plan(&self, net: Net) -> Result<Net> {
        self.each(net, 0, |structure, _, _| Ok(vec![0.0; structure.count()]))
    }

    fn shorten(&mut self) {
        self.steps = Some(self.steps.unwrap_or(STEPS).min(5));
    }
}

impl<F: StructuralMatrix> Replacement<F> {
    /// Replaces the layers, by `parameters` of each structure, layer and weight.
    fn each(
        &self,
        mut net: Net,
        seed: u64,
        mut parameters: impl FnMut(&Structure, &str, &[f32]) -> Result<Vec<f32>>,
    ) -> Result<Net> {
        self.form.check()?;
        self.tune.iter().try_for_each(Recipe::check)?;
        let device = net.device();
        for index in self.layers.without(&self.except, &net)? {
            let name = &net.nodes[index].name.clone();
            let weight = replaceable(&net.nodes[index])?;
            let features = [weight.shape[1], weight.shape[0]];
            let structure = self.form.structure(features, stream(seed, &format!("{name} structure")));
            structure.check().map_err(|error| Error::node(name, error.to_string()))?;
            let mut values = parameters(&structure, name, &weight.base)?.into_iter();
            let stored = structure.parameters().into_iter().map(|parameter| Stored {
                name: parameter.name,
                shape: parameter.shape.to_vec(),
                base: values.by_ref().take(parameter.count()).collect(),
                coding: Coding::default(),
            });
            let mut stored: Vec<Stored> = stored.collect();
            let node = net.nodes.remove(index);
            let bias = node.stored().into_iter().find(|parameter| parameter.name == "bias");
            stored.extend(bias.map(|bias| match self.init {
                Init::Fit => bias,
                Init::Random => Stored { base: vec![0.0; bias.base.len()], ..bias },
            }));
            net.nodes.insert(index, node.replaced(&Layer::Structured(layers::Structured { structure }), stored, &device)?);
        }
        net.shapes()?;
        Ok(net)
    }
}

/// The weight of a layer that a structural matrix can replace.
fn replaceable(node: &Node) -> Result<Stored> {
    let plain = match &node.op {
        Op::Linear(_) => true,
        Op::Conv2d(conv) => matches!(
            node.op.layer(),
            Layer::Conv2d(layers::Conv2d { stride, padding, groups, .. })
                if (conv.kernel_size, stride, padding, groups) == ([1; 2], [1; 2], Padding::NONE, 1)
        ),
        Op::BatchNorm(_) | Op::Tensors(_) | Op::Fixed(_) => false,
    };
    let Some(weight) = node.weight().filter(|_| plain) else {
        let detail = "is no fully connected layer and no convolution by one pixel of stride 1 without padding and groups; \
                      structural matrices replace only these";
        return Err(Error::node(&node.name, detail));
    };
    if weight.coding != Coding::default() {
        let detail = "is pruned or shares its weights, which a structural matrix cannot keep; put its pass before those";
        return Err(Error::node(&node.name, detail));
    }
    refuse::not_finite(&node.name, &weight.base)?;
    Ok(weight)
}

/// The norm of a matrix of variance `2 / inputs`.
fn he(structure: &Structure) -> f64 {
    (2.0 * structure.features()[1] as f64).sqrt()
}

/// Random parameters whose matrix has this norm.
fn random(form: &impl StructuralMatrix, structure: &Structure, seed: u64, norm: f64) -> Result<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut values = form.draw(structure, &mut || standard_normal(&mut rng) as f32);
    let (squares, _) = descent(structure, &values, &mut |_, _| 0.0)?;
    let factor = (norm / squares.sqrt().max(f64::MIN_POSITIVE)).powf(1.0 / form.degree(structure) as f64) as f32;
    values[..structure.parameters()[0].count()].iter_mut().for_each(|value| *value *= factor);
    Ok(values)
}

/// The parameters that come nearest to the weight within so many steps of Adam from `values`. The rate is a share of each parameter's own
/// size and falls by a cosine.
fn approach(structure: &Structure, weight: &[f32], mut values: Vec<f32>, steps: usize) -> Result<Vec<f32>> {
    let counts: Vec<usize> = structure.parameters().iter().map(briquette_kernels::structured::Parameter::count).collect();
    let inputs = structure.features()[0];
    let size = |values: &[f32]| (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    let mut rest = &values[..];
    let sizes: Vec<f32> = counts.iter().map(|&count| size(rest.split_off(..count).unwrap_or_default())).collect();
    let (mut first, mut second) = (vec![0.0; values.len()], vec![0.0; values.len()]);
    let mut best = (f64::INFINITY, values.clone());
    for step in 0..=steps {
        let (error, gradient) = descent(structure, &values, &mut |row, column| weight[row * inputs + column])?;
        if error < best.0 {
            best = (error, values.clone());
        }
        let falling = 0.5 * (1.0 + (std::f32::consts::PI * step as f32 / steps.max(1) as f32).cos());
        let mut at = 0;
        for (count, size) in counts.iter().zip(&sizes) {
            let mine = at..at + count;
            let adam = Adam {
                rate: RATE * size * falling,
                beta_1: 0.9,
                beta_2: 0.99,
                epsilon: 1e-12,
                decay: 0.0,
                decoupled: 0.0,
                time: step as i32 + 1,
            };
            adam.step(&mut values[mine.clone()], &gradient[mine.clone()], &mut first[mine.clone()], &mut second[mine]);
            at += count;
        }
    }
    Ok(best.1)
}

/// First rate of a fit, as a share of the parameter's size.
const RATE: f32 = 0.05;

/// `sum (M - W)^2` and its gradient by the parameters.
pub(crate) fn descent(
    structure: &Structure,
    values: &[f32],
    weight: &mut dyn FnMut(usize, usize) -> f32,
) -> Result<(f64, Vec<f32>)> {
    let refused = |error: briquette_kernels::Error| Error::Invalid(error.to_string());
    let [inputs, outputs] = structure.features();
    let mut rest = values;
    let each: Vec<&[f32]> =
        structure.parameters().iter().map(|parameter| rest.split_off(..parameter.count()).unwrap_or_default()).collect();
    let prepared = structure.prepare(&each).map_err(refused)?;
    let (mut error, mut gradient) = (0.0, vec![0.0; values.len()]);
    for first in (0..inputs).step_by(UNITS) {
        let units = units(inputs, first);
        let mut off = prepared.forward(&units).map_err(refused)?;
        for (column, off) in off.chunks_exact_mut(outputs).enumerate() {
            for (row, off) in off.iter_mut().enumerate() {
                *off -= weight(row, first + column);
                error += f64::from(*off).powi(2);
                *off *= 2.0;
            }
        }
        let found = prepared.backward(&units, &off).map_err(refused)?;
        gradient.iter_mut().zip(found.parameters).for_each(|(sum, g)| *sum += g);
    }
    Ok((error, gradient))
}

/// What every structural method owes, as checks for the methods' own tests.
#[cfg(test)]
pub(crate) mod proof {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::floats;
    use briquette_core::context::Silent;
    use briquette_core::cost::Cost;
    use briquette_core::stored::Storage;
    use briquette_core::training::probe;
    use briquette_runtime::{Engine, Model};
    use burn::tensor::Device;
    use serde_json::{Value, json};

    use super::*;
    use briquette_handmade::{context, images, refusal, run};

    /// Two convolutions by one pixel, of 6 and 5 filters, and two fully connected layers, of 12 and 3 outputs.
    pub(crate) fn net() -> Net {
        let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
        let mut x = b.conv("lift", b.input(), Conv::new(6, 1));
        x = b.relu("relu1", x);
        x = b.conv("mix", x, Conv::new(5, 1).no_bias());
        x = b.relu("relu2", x);
        x = b.flatten("flatten", x);
        x = b.linear("fc1", x, 12);
        x = b.relu("relu3", x);
        b.linear("fc2", x, 3);
        b.finish().unwrap()
    }

    /// The settings with further ones.
    pub(crate) fn with(settings: &Value, mut more: Value) -> Value {
        let mut all = settings.clone();
        all.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
        all
    }

    fn structure(net: &Net, layer: &str) -> Structure {
        let found = net.nodes[net.index(layer).unwrap()].op.layer();
        let Layer::Structured(layers::Structured { structure }) = found else { panic!("{layer} is a {}", found.kind().name()) };
        structure
    }

    /// The dense form of a layer.
    pub(crate) fn dense(net: &Net, layer: &str) -> Vec<f32> {
        let structure = structure(net, layer);
        let parameters = net.nodes[net.index(layer).unwrap()].parameters();
        let named = structure.parameters().into_iter().map(|p| parameters.iter().find(|own| own.name == p.name).unwrap());
        structure.dense(&named.map(|p| p.base.as_slice()).collect::<Vec<_>>()).unwrap()
    }

    fn outputs(net: &Net) -> (Vec<f32>, Vec<f32>) {
        let (data, mut silent) = (images(), Silent);
        let (mut pixels, mut outputs) = (Vec::new(), Vec::new());
        probe(&mut context(&data, &mut silent), "all", (1, 40), &Device::flex(), |images, _| {
            pixels = floats(images.clone());
            outputs = floats(net.forward(images));
            Ok(())
        })
        .unwrap();
        (pixels, outputs)
    }

    fn near(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()))
    }

    /// The network with both kinds of layers replaced computes what it computes with their dense forms, comes back from its container,
    /// which holds the parameters and nothing else, and runs in the engine to the same outputs.
    pub(crate) fn holds<P: Pass + DeserializeOwned>(settings: &Value) {
        let settings = with(settings, json!({ "layers": ["mix", "fc1"], "steps": 3 }));
        let replaced = run::<P>(net(), settings.clone()).unwrap();
        let mut twin = net();
        for layer in ["mix", "fc1"] {
            let structure = structure(&replaced, layer);
            let (index, device) = (twin.index(layer).unwrap(), twin.device());
            let node = twin.nodes.remove(index);
            let mut parameters = node.parameters();
            parameters.iter_mut().find(|p| p.name == "weight").unwrap().base = dense(&replaced, layer);
            twin.nodes.insert(index, node.with(parameters, &device).unwrap());
            let cost = Cost::of(&replaced).unwrap();
            let cost = cost.layers.iter().find(|cost| cost.name == layer).unwrap();
            assert_eq!(cost.weights, structure.count(), "{layer}");
        }
        let (pixels, expected) = outputs(&twin);
        assert!(near(&outputs(&replaced).1, &expected), "{settings}");

        let bytes = replaced.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let model = Model::from_bytes(&bytes).unwrap();
        let stored = |layer: &str| -> usize {
            let node = model.nodes.iter().find(|node| node.name == layer).unwrap();
            node.tensors.iter().map(|(_, coded)| coded.shape().iter().product::<usize>()).sum()
        };
        assert_eq!(stored("mix"), structure(&replaced, "mix").count());
        assert_eq!(stored("fc1"), structure(&replaced, "fc1").count() + 12);
        let back = Net::from_model(&model, &Device::flex()).unwrap();
        assert_eq!(outputs(&back), outputs(&replaced));
        let state = Net::from_state(&replaced.to_state(), &Device::flex()).unwrap();
        assert!(state.to_state() == replaced.to_state());
        let engine = Engine::new(&model, 2).unwrap().run(&pixels, 40).unwrap();
        assert!(near(&engine, &outputs(&replaced).1), "{settings}");
        let planned = serde_json::from_value::<P>(settings).unwrap().plan(net()).unwrap();
        assert_eq!(Cost::of(&planned).unwrap(), Cost::of(&replaced).unwrap());
    }

    /// Training from scratch moves every parameter, and the matrix begins with the variance of He et al.
    pub(crate) fn learns<P: Pass + DeserializeOwned>(settings: &Value) {
        let random = with(settings, json!({ "layers": ["mix", "fc1"], "init": "random" }));
        let train = json!({ "tune": { "epochs": 1, "batch": 20, "lr": 0.01 } });
        let (start, trained) = (run::<P>(net(), random.clone()).unwrap(), run::<P>(net(), with(&random, train)).unwrap());
        for layer in ["mix", "fc1"] {
            let node = |net: &Net| net.nodes[net.index(layer).unwrap()].parameters();
            for (before, after) in node(&start).into_iter().zip(node(&trained)) {
                assert!(before.base != after.base, "{layer}.{}", before.name);
            }
            let squares: f32 = dense(&start, layer).iter().map(|w| w * w).sum();
            let wanted = 2.0 * structure(&start, layer).features()[1] as f32;
            assert!((squares / wanted - 1.0).abs() < 1e-3, "{layer}: {squares} and {wanted}");
        }
    }

    /// Share of a random weight's squares that is left over after the fit, and that after no step of it.
    pub(crate) fn leaves<P: Pass + DeserializeOwned>(settings: &Value) -> [f64; 2] {
        let weight = briquette_handmade::get(&net(), "fc1", "weight");
        let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        [json!(100), json!(0)].map(|steps| {
            let fitted = run::<P>(net(), with(settings, json!({ "layers": ["fc1"], "steps": steps }))).unwrap();
            let off = squares(&mut dense(&fitted, "fc1").iter().zip(&weight).map(|(m, w)| m - w));
            off / squares(&mut weight.iter().copied())
        })
    }

    /// The matrix of a layer of this many inputs after a fit to `weight`.
    pub(crate) fn fitted<P: Pass + DeserializeOwned>(inputs: usize, weight: &[f32], settings: &Value) -> Vec<f32> {
        let mut b = Builder::new([inputs, 1, 1], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc", x, weight.len() / inputs);
        let net = briquette_handmade::set(b.finish().unwrap(), "fc", "weight", weight);
        dense(&run::<P>(net, with(settings, json!({ "layers": ["fc"] }))).unwrap(), "fc")
    }

    #[test]
    fn layers_that_cannot_be_replaced_are_refused() {
        use crate::structural::circulant::Circulant;
        use briquette_handmade::{set, small};

        let refuse = |net: Net, layers: Value| refusal::<Circulant>(net, json!({ "layers": layers }));
        assert_eq!(refuse(net(), json!([])), "`layers` names no layer; leave it out for all");
        assert_eq!(refuse(net(), json!(["fc9"])), "unknown layer 'fc9'; did you mean one of 'fc', 'fc1', 'fc2'?");
        assert!(refuse(small(), json!(["conv2"])).starts_with("node 'conv2': is no fully connected layer and no convolution"));
        let shared =
            crate::quantization::kmeans_sharing::share(net(), |_| Some(2), crate::quantization::kmeans_sharing::Init::Linear);
        assert!(refuse(shared, json!(["fc1"])).starts_with("node 'fc1': is pruned or shares its weights"));
        let broken = set(net(), "fc2", "weight", &[f32::NAN; 36]);
        assert!(refuse(broken, json!(["fc2"])).starts_with("node 'fc2': holds the weight NaN"));
        let unknown = serde_json::from_value::<Circulant>(json!({ "layers": ["fc1"], "rank": 3 })).unwrap_err();
        assert!(unknown.to_string().contains("unknown field `rank`"), "{unknown}");
    }
}
