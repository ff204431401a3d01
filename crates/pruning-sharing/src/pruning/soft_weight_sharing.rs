//! Soft weight sharing.
//!
//! Trains the weights `w` under a mixture of `J + 1` normal densities as their prior, and the mixture with them:
//! `L = cross-entropy - tau / N sum_i log sum_j pi_j N(w_i | mu_j, s_j^2)`, where `N` is the number of training images, since the
//! cross-entropy is a mean over images. Component 0 has the mean 0 and a fixed share `pi_0` close to 1: weights fall to zero unless the data
//! hold them. All other means, deviations and shares are learned, so that the components become narrow and the weights gather at their
//! means. An inverse-gamma prior on the variances, `-log p(s^2) = (alpha + 1) log s^2 + beta / s^2`, keeps a component from collapsing onto a
//! few weights. Afterwards components that hardly differ merge (`pi` adds up, `mu` and `s^2` become means weighted by `pi`), and each weight
//! takes the mean of the component most responsible for it: zeros become a mask, the others a codebook. Weights that an earlier pass has
//! masked stay zero and take no part.
//!
//! Ullrich, Meeds, Welling. "Soft Weight-Sharing for Neural Network Compression". ICLR 2017. arXiv:1702.04008.
//! Differs from the paper: the deviations start at half the distance of neighbouring means, `pi_0` has no hyper-prior, components differ by
//! the mean of the divergences in both directions, and each layer stores its own copy of the means it uses.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::pruning::soft_weight_sharing::SoftWeightSharing;
//! use burn::module::Module;
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let settings = serde_json::json!({ "tau": 0.005, "prior": { "alpha": 250, "beta": 0.1 }, "train": { "epochs": 20 } });
//! let method: SoftWeightSharing = serde_json::from_value(settings)?;
//! // Layers keep their shapes; `run` needs a pass's context with its training images.
//! assert_eq!(method.plan(net.deep_clone())?.shapes()?, net.shapes()?);
//!
//! // Any module of Burn, in a loop of your own: the prior is a term of the loss, and learns with the weights.
//! let layer = LinearConfig::new(20, 10).init(&Device::flex()).train();
//! let flat = || vec![layer.weight.val().flatten(0, 1)];
//! let mut mixture = method.mixture(&flat(), 1000)?;
//! let gradients = mixture.term(flat()).backward();
//! mixture.learn(&gradients, 1e-3);
//! let layer = mixture.harden(layer.valid())?;
//! let mut values = weights(&layer)[0].values.clone();
//! values.sort_by(f32::total_cmp);
//! values.dedup();
//! assert!(values.len() <= 17);
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::archive::Archive;
use briquette_core::coding::{self, Coding, Source, Weight, floats};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Choose, Extras, Recipe, fit, tune};
use briquette_core::types::Layers;
use briquette_core::values::plain;
use burn::module::Module;
use burn::optim::{Adam, AdamConfig, AdamState, AdaptiveMomentumState, Optimizer};
use burn::tensor::{Device, Gradients, Tensor, TensorData, activation};
use serde::Deserialize;

use crate::pruning::mixture::{Component, Slopes, merge};
use briquette_parts::codebooks::used;
use briquette_parts::refuse;

/// Trains weights towards the means of a mixture that is trained with them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SoftWeightSharing {
    /// Components besides the one at zero.
    #[serde(default = "sixteen")]
    components: usize,
    /// Share of the component at zero.
    #[serde(default = "nearly_all")]
    pi_zero: f64,
    /// Weight of the prior against the data.
    #[serde(default = "tau")]
    tau: f64,
    /// Learning rate of the mixture when that of the weights is at its highest; both follow one schedule.
    #[serde(default = "rate")]
    rate: f64,
    /// Prior on the variances.
    prior: Option<InverseGamma>,
    /// Components that differ by less merge, in nats.
    #[serde(default = "tenth")]
    merge: f64,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training with the mixture, of which the last epoch counts.
    train: Recipe,
    /// Training of the centroids.
    tune: Option<Recipe>,
}

/// The prior on the variances of the components.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InverseGamma {
    /// Shape.
    alpha: f64,
    /// Scale; the variance likeliest under the prior is `beta / (alpha + 1)`.
    beta: f64,
}

impl Method for SoftWeightSharing {
    const NAME: &'static str = "soft-weight-sharing";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Ullrich, Meeds, Welling, ICLR 2017, arXiv:1702.04008";
    const EXAMPLE: &'static str = "train = { epochs = 40, lr = 5e-4 }";
}

impl Pass for SoftWeightSharing {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let layers = self.check(&net)?;
        let mut mixture = self.mixture(&tensors(&net, Some(&layers)), cx.data.train.len())?;
        mixture.layers = Some(layers.clone());
        let recipe = Recipe { choose: Choose::Last, ..self.train.clone() };
        let net = fit(net, &recipe, Extras { objectives: vec![&mut mixture], ..Extras::default() }, cx)?;
        let names: BTreeMap<usize, String> = layers.into_iter().map(|layer| (layer, net.nodes[layer].name.clone())).collect();
        let net = harden(net, &mixture.merged(), |weight| names.get(&weight.node()?).cloned())?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.check(&net)?;
        Ok(net)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("nothing is removed here; how much is follows from the training")
    }
}

impl SoftWeightSharing {
    /// The mixture with its means evenly over the range of these weights, for a training with so many images.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn mixture(&self, weights: &[Tensor<1>], images: usize) -> Result<Mixture> {
        self.check_settings()?;
        let all = weights.iter().flat_map(|weights| floats(plain(weights.clone())));
        let (min, max) = all.fold((0.0_f32, 0.0_f32), |(min, max), w| (min.min(w), max.max(w)));
        let gap = (max - min).max(f32::EPSILON) / self.components as f32;
        let means = (0..self.components).map(|j| min + gap * (j as f32 + 0.5)).collect();
        let device = weights.first().map(|weights| plain(weights.clone()).device()).unwrap_or_default();
        Ok(Mixture {
            layers: None,
            scale: self.tau / images.max(1) as f64,
            pi_zero: self.pi_zero,
            prior: self.prior,
            merge: self.merge,
            means: Learned::new(means, &device),
            deviations: Learned::new(vec![(gap / 2.0).ln(); self.components + 1], &device),
            shares: Learned::new(vec![0.0; self.components], &device),
            adam: AdamConfig::new().build(),
            pace: self.rate / self.train.lr,
        })
    }

    fn check_settings(&self) -> Result<()> {
        let prior = self.prior.map_or([1.0, 1.0], |prior| [prior.alpha, prior.beta]);
        let [alpha, beta] = prior;
        let positive =
            [("tau", self.tau), ("rate", self.rate), ("prior.alpha", alpha), ("prior.beta", beta), ("merge", self.merge)];
        if let Some((name, value)) = positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            return Err(Error::Invalid(format!("soft-weight-sharing: {name} must be above 0, is {value}")));
        }
        if !(self.pi_zero > 0.0 && self.pi_zero < 1.0) {
            return Err(Error::Invalid(format!("soft-weight-sharing: pi-zero lies between 0 and 1, not {}", self.pi_zero)));
        }
        if self.components == 0 {
            return Err(Error::Invalid("soft-weight-sharing: `components` must be at least 1".into()));
        }
        self.train.check()
    }

    /// The layers whose weights the mixture is about.
    fn check(&self, net: &Net) -> Result<BTreeSet<usize>> {
        self.check_settings()?;
        let layers = self.layers.without(&self.except, net)?;
        for node in layers.iter().map(|layer| &net.nodes[*layer]) {
            let Some(weight) = node.weight() else { continue };
            if weight.coding.source != Source::Free {
                let detail = "its weights are shared already; put soft-weight-sharing before the pass that does so";
                return Err(Error::node(&node.name, detail));
            }
            refuse::not_finite(&node.name, &weight.base)?;
        }
        Ok(layers)
    }
}

/// The prior and what is learned of it.
pub struct Mixture {
    /// The layers of a network that it is about; all of them without.
    layers: Option<BTreeSet<usize>>,
    /// `tau / N`.
    scale: f64,
    pi_zero: f64,
    prior: Option<InverseGamma>,
    merge: f64,
    /// Means of the components from 1 on.
    means: Learned,
    /// Logarithms of the deviations of all.
    deviations: Learned,
    /// The shares of the components from 1 on are `(1 - pi_0) softmax` of these.
    shares: Learned,
    adam: Adam,
    /// Of the mixture's learning rate to that of the weights.
    pace: f64,
}

/// A tensor that learns by Adam.
struct Learned {
    values: Tensor<1>,
    moments: AdaptiveMomentumState<1>,
}

impl std::fmt::Debug for Mixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.components()).finish()
    }
}

impl Learned {
    fn new(values: Vec<f32>, device: &Device) -> Self {
        let len = values.len();
        let zeros = || Tensor::zeros([len], device);
        Self {
            values: Tensor::from_data(TensorData::new(values, [len]), &device.clone().autodiff()).require_grad(),
            moments: AdaptiveMomentumState::new(0, zeros(), zeros()),
        }
    }

    fn step(&mut self, adam: &Adam, rate: f64, gradients: &Gradients) {
        let Some(gradient) = self.values.grad(gradients) else { return };
        let moments = AdamState::new(self.moments.clone());
        let (values, state) = adam.step(rate, self.values.clone().inner(), gradient, Some(moments));
        self.values = Tensor::from_inner(values).require_grad();
        self.moments = state.map_or_else(|| self.moments.clone(), |state| state.momentum);
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        let mut time = [self.moments.time as u64];
        archive.numbers(&mut time)?;
        self.moments.time = time[0] as usize;
        archive.tensor(&mut self.values)?;
        archive.tensor(&mut self.moments.moment_1)?;
        archive.tensor(&mut self.moments.moment_2)
    }
}

impl Mixture {
    /// What the prior adds to the mean loss of a batch: `-tau / N sum_i log sum_j pi_j N(w_i | mu_j, s_j^2)`, and its own prior, for the weights
    /// `w` of all layers.
    pub fn term(&self, weights: Vec<Tensor<1>>) -> Tensor<1> {
        let cost = self.cost(&Tensor::cat(weights, 0));
        let cost = match self.prior {
            Some(InverseGamma { alpha, beta }) => {
                let logs = self.deviations.values.clone().mul_scalar(2.0);
                cost + (logs.clone().mul_scalar(alpha + 1.0) + logs.neg().exp().mul_scalar(beta)).sum()
            }
            None => cost,
        };
        cost.mul_scalar(self.scale)
    }

    /// A step of the mixture by Adam, with the gradients of a loss that has [`term`](Self::term) in it, when the learning rate of the weights
    /// is `lr`.
    pub fn learn(&mut self, gradients: &Gradients, lr: f64) {
        for learned in [&mut self.means, &mut self.deviations, &mut self.shares] {
            learned.step(&self.adam, lr * self.pace, gradients);
        }
    }

    /// Merges components that hardly differ, and sets each weight of any Burn module, its tensors of rank 2 or more, to the mean of the component
    /// most responsible for it; the one at zero masks.
    ///
    /// # Errors
    /// Names a layer that is left without weights.
    pub fn harden<M: Module>(&self, module: M) -> Result<M> {
        harden(module, &self.merged(), |weight| Some(weight.path.clone()))
    }

    fn merged(&self) -> Vec<Component> {
        merge(self.components(), self.merge)
    }

    /// `-sum_i log sum_j pi_j N(w_i | mu_j, s_j^2)`. One pass over the weights finds the value and all slopes; what Burn derives is the
    /// linear function that has them.
    fn cost(&self, weights: &Tensor<1>) -> Tensor<1> {
        let found = Slopes::of(&self.components(), &floats(weights.clone().inner()));
        let device = weights.device();
        let along =
            |values: &Tensor<1>, slopes: Vec<f32>| (values.clone() * Tensor::from_floats(slopes.as_slice(), &device)).sum();
        let slopes = |from: usize, which: usize| found.sums[from..].iter().map(|sums| sums[which] as f32).collect::<Vec<_>>();
        let line = along(weights, found.weights.clone())
            + along(&self.means.values, slopes(1, 0))
            + along(&self.deviations.values, slopes(0, 1))
            + along(&activation::log_softmax(self.shares.values.clone(), 0), slopes(1, 2));
        line.clone() - line.detach().add_scalar(-found.value)
    }

    /// The components as they are, that at zero first.
    fn components(&self) -> Vec<Component> {
        let wide = |values: &Tensor<1>| floats(values.clone().inner()).into_iter().map(f64::from).collect::<Vec<_>>();
        let [means, deviations, shares] = [&self.means, &self.deviations, &self.shares].map(|learned| wide(&learned.values));
        let total: f64 = shares.iter().map(|share| share.exp()).sum();
        let shares = shares.iter().map(|share| (1.0 - self.pi_zero) * share.exp() / total);
        let all = std::iter::once(self.pi_zero).chain(shares).zip(std::iter::once(0.0).chain(means)).zip(deviations);
        all.map(|((share, mean), deviation)| Component { share, mean, variance: (2.0 * deviation).exp() }).collect()
    }
}

impl Objective for Mixture {
    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        Ok(Self::term(self, tensors(seen.net, self.layers.as_ref())))
    }

    fn learn(&mut self, gradients: &mut Gradients, lr: f64) {
        Self::learn(self, gradients, lr);
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        [&mut self.means, &mut self.deviations, &mut self.shares].into_iter().try_for_each(|learned| learned.keep(archive))
    }
}

/// The weights of the convolutions and fully connected layers, those of `layers` where there are some.
fn tensors(net: &Net, layers: Option<&BTreeSet<usize>>) -> Vec<Tensor<1>> {
    let chosen = |index: &usize| layers.is_none_or(|layers| layers.contains(index));
    net.nodes
        .iter()
        .enumerate()
        .filter(|(index, _)| chosen(index))
        .filter_map(|(_, node)| Some(node.dense()?.weight().reshape([-1])))
        .collect()
}

/// As [`Mixture::harden`], for these components and the tensors for which `layer` gives a name.
fn harden<M: Module>(module: M, components: &[Component], layer: impl Fn(&Weight) -> Option<String>) -> Result<M> {
    let means: Vec<f32> = components[1..].iter().map(|component| component.mean as f32).collect();
    let responsible = |w: &f32| {
        let density = |j: &usize| components[*j].log_density(f64::from(*w));
        (0..components.len()).max_by(|a, b| density(a).total_cmp(&density(b))).unwrap_or(0)
    };
    let mut codings = BTreeMap::new();
    for weight in coding::weights(&module) {
        let Some(layer) = layer(&weight) else { continue };
        let chosen: Vec<usize> = weight.values.iter().map(|w| if *w == 0.0 { 0 } else { responsible(w) }).collect();
        let mask: Vec<bool> = chosen.iter().map(|component| *component > 0).collect();
        if !mask.contains(&true) {
            let detail = "all its weights fell to the component at zero; lower `tau`, `pi-zero` or the number of epochs";
            return Err(Error::node(&layer, detail));
        }
        let kept: Vec<u32> =
            chosen.into_iter().filter(|component| *component > 0).map(|component| component as u32 - 1).collect();
        let source = used(&means, &kept).spread(&mask).into_source();
        codings.insert(weight.path, Coding { mask: Some(mask), source });
    }
    Ok(coding::recode(module, codings))
}

fn sixteen() -> usize {
    16
}

fn nearly_all() -> f64 {
    0.99
}

fn tau() -> f64 {
    5e-3
}

fn rate() -> f64 {
    5e-4
}

fn tenth() -> f64 {
    0.1
}

#[cfg(test)]
mod tests;
