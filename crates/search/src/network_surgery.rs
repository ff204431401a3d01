//! Dynamic network surgery: weights are cut while the network trains, and spliced back where they were needed.
//!
//! Of each layer `mu` and `sigma` are the mean and the deviation of `|w|` over all weights and biases `w` that are not zero, once, before the training.
//! With `t = max(mu + c sigma, 0)`, a parameter goes out of use where `|w| <= 0.9 t`, comes back where `|w| > 1.1 t`, and stays as it is in between. The
//! network computes with what is in use, `w . m`, and the gradient of `w . m` moves all parameters, those out of use too: so a wrong cut is undone.
//! In step `i` masks may change with the probability `(1 + gamma i)^-power`, and from the share `until` of the training on they do not.
//!
//! ```
//! use briquette_search::network_surgery::Cut;
//!
//! let cut = Cut::of(&[0.1, -0.3, 0.5, 0.0], 1.0);
//! // mu = 0.3, sigma = 0.163.
//! assert_eq!([0.4, 0.45, 0.52].map(|w| cut.stays(w, true)), [false, true, true]);
//! assert_eq!([0.4, -0.45, -0.52].map(|w| cut.stays(w, false)), [false, false, true]);
//! ```
//!
//! Guo, Yao, Chen. "Dynamic Network Surgery for Efficient DNNs". NIPS 2016. arXiv:1608.04493.
//! Differs from the paper: a tuning may follow, in which weights that are out of use stay zero, while biases, which no mask holds, may come back; counts of
//! parameters are to be taken without it. The optimizer's decay pulls at
//! what the network computes with, hence not at what is out of use.

use std::collections::{BTreeMap, HashMap};

use briquette_core::archive::Archive;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::pass::{Method, Pass};
use briquette_core::streams::stream;
use briquette_core::training::{Choose, Extras, Projection, Recipe, fit, tune};
use briquette_core::types::{Layers, PerLayer, Ratio};
use briquette_core::values::{floats, plain, replace};
use briquette_parts::masks::mask_zeros;
use briquette_parts::refuse;
use burn::module::ParamId;
use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// Cuts and splices while it trains.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkSurgery {
    /// `c`, by layer: how many deviations above the mean what goes lies; may be negative.
    c: PerLayer<f64>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// `gamma`: how soon masks change less often.
    #[serde(default = "slowly")]
    gamma: f64,
    /// `power`: how much less often.
    #[serde(default = "one")]
    power: f64,
    /// Share of the training from which on masks do not change.
    #[serde(default = "most")]
    until: Ratio,
    /// The training.
    train: Recipe,
    /// Training of what is left.
    tune: Option<Recipe>,
}

fn slowly() -> f64 {
    1e-4
}

fn one() -> f64 {
    1.0
}

fn most() -> Ratio {
    Ratio::try_from(0.7).expect("a share")
}

impl Method for NetworkSurgery {
    const NAME: &'static str = "network-surgery";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Guo, Yao, Chen, NIPS 2016, arXiv:1608.04493";
    const EXAMPLE: &'static str = "c = { fc1 = 1.0, rest = 0.5 }\ntrain = { epochs = 10 }";
}

impl Pass for NetworkSurgery {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let chosen = self.check(&net)?;
        let layers = chosen.iter().filter_map(|(index, c)| Some((*index, Layer::of(&net.nodes[*index], *c)?))).collect();
        let seed = stream(cx.seed, "surgery");
        let mut surgery = Surgery { layers, gamma: self.gamma, power: self.power, until: self.until.get(), seed };
        let net = surgery.begun(net);
        // What a step has cut is cut in the last epoch.
        let recipe = Recipe { choose: Choose::Last, ..self.train.clone() };
        let net = fit(net, &recipe, Extras { projections: vec![&mut surgery], ..Extras::default() }, cx)?;
        let net = mask_zeros(net, |layer| chosen.contains_key(&layer))?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.check(&net).map(|_| net)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("how many weights stay follows from the training")
    }
}

impl NetworkSurgery {
    /// `c` of each layer that is cut.
    fn check(&self, net: &Net) -> Result<BTreeMap<usize, f64>> {
        self.train.check()?;
        self.tune.iter().try_for_each(Recipe::check)?;
        let positive = |number: f64| number.is_finite() && number >= 0.0;
        if !positive(self.gamma) || !positive(self.power) || self.train.epochs == 0 {
            let detail = "`gamma` and `power` are at least 0, and `train` has an epoch";
            return Err(Error::Invalid(format!("network-surgery: {detail}")));
        }
        refuse::weightless(net, &self.c)?;
        let chosen: BTreeMap<usize, f64> =
            self.c.resolve_within(net, &self.layers.without(&self.except, net)?)?.into_iter().collect();
        if let Some((layer, c)) = chosen.iter().find(|(_, c)| !c.is_finite()) {
            return Err(Error::node(&net.nodes[*layer].name, format!("`c` is a number of deviations, not {c}")));
        }
        refuse::shared(net, chosen.keys(), Self::NAME)?;
        refuse::pruned(net, chosen.keys(), Self::NAME)?;
        for layer in chosen.keys() {
            let node = &net.nodes[*layer];
            refuse::not_finite(&node.name, &parameters(node).unwrap_or_default().concat())?;
        }
        Ok(chosen)
    }
}

/// What goes and what comes back, of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// `t`.
    threshold: f64,
}

impl Cut {
    /// From a layer's parameters, `c` deviations above the mean of their sizes; zeros do not count.
    pub fn of(parameters: &[f32], c: f64) -> Self {
        let sizes = || parameters.iter().filter(|w| **w != 0.0).map(|w| f64::from(w.abs()));
        let count = sizes().count().max(1) as f64;
        let mean = sizes().sum::<f64>() / count;
        let deviation = (sizes().map(|size| (size - mean).powi(2)).sum::<f64>() / count).sqrt();
        Self { threshold: (mean + c * deviation).max(0.0) }
    }

    /// Whether a parameter is in use from here on, which was in use or was not.
    pub fn stays(self, parameter: f32, used: bool) -> bool {
        let size = f64::from(parameter.abs());
        if used { size > 0.9 * self.threshold } else { size > 1.1 * self.threshold }
    }
}

/// A layer's weights, then its biases: all of them, and which are in use.
struct Layer {
    cut: Cut,
    parameters: Vec<f32>,
    used: Vec<bool>,
}

impl Layer {
    fn of(node: &Node, c: f64) -> Option<Self> {
        let parameters = parameters(node)?.concat();
        let (cut, used) = (Cut::of(&parameters, c), vec![true; parameters.len()]);
        Some(Self { cut, parameters, used })
    }

    /// What is in use, zero elsewhere.
    fn in_use(&self) -> impl Iterator<Item = f32> {
        self.parameters.iter().zip(&self.used).map(|(w, used)| if *used { *w } else { 0.0 })
    }

    /// Moves all parameters as far as the step has moved what the network computes with.
    fn follow(&mut self, stepped: &[f32]) {
        let moves: Vec<f32> = stepped.iter().zip(self.in_use()).map(|(to, from)| to - from).collect();
        // Nothing is lost of what is in use: it is where the step left it.
        let all = self.parameters.iter_mut().zip(&self.used).zip(stepped.iter().zip(moves));
        all.for_each(|((w, used), (to, by))| *w = if *used { *to } else { *w + by });
    }

    fn choose(&mut self) {
        let cut = self.cut;
        self.used.iter_mut().zip(&self.parameters).for_each(|(used, w)| *used = cut.stays(*w, *used));
    }
}

/// A layer's weight and its bias, in Burn's order.
fn parameters(node: &Node) -> Option<Vec<Vec<f32>>> {
    let dense = node.dense()?;
    Some([floats(plain(dense.weight()))].into_iter().chain(dense.bias.map(|bias| floats(plain(bias.val())))).collect())
}

/// The masks while the network trains.
struct Surgery {
    layers: BTreeMap<usize, Layer>,
    gamma: f64,
    power: f64,
    until: f64,
    seed: u64,
}

impl Surgery {
    /// The network before the first step.
    fn begun(&mut self, net: Net) -> Net {
        self.layers.values_mut().for_each(Layer::choose);
        self.applied(net)
    }

    /// Whether masks may change before the step of this number, of `steps`.
    fn changes(&self, step: usize, steps: usize) -> bool {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(step as u64);
        let early = (step as f64) < self.until * steps as f64;
        early && rng.random::<f64>() < (1.0 + self.gamma * step as f64).powf(-self.power)
    }

    /// The network with what is in use.
    fn applied(&self, net: Net) -> Net {
        let device = net.device().inner();
        let mut values: HashMap<ParamId, Tensor<1>> = HashMap::new();
        for (index, layer) in &self.layers {
            let Some(dense) = net.nodes[*index].dense() else { continue };
            let mut all: Vec<f32> = layer.in_use().collect();
            let biases = all.split_off(dense.weight().shape().num_elements());
            values.insert(dense.id(), Tensor::from_floats(all.as_slice(), &device));
            if let Some(bias) = dense.bias {
                values.insert(bias.id, Tensor::from_floats(biases.as_slice(), &device));
            }
        }
        replace(net, values)
    }
}

impl Projection for Surgery {
    fn project(&mut self, net: Net, step: usize, steps: usize) -> Net {
        let changes = self.changes(step + 1, steps);
        for (index, layer) in &mut self.layers {
            let Some(stepped) = parameters(&net.nodes[*index]) else { continue };
            layer.follow(&stepped.concat());
            if changes {
                layer.choose();
            }
        }
        self.applied(net)
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        self.layers.values_mut().try_for_each(|layer| {
            archive.numbers(&mut layer.parameters)?;
            archive.bits(&mut layer.used)
        })
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
