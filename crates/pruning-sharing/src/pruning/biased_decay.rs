//! Biased weight decay.
//!
//! Trains with the hyperbolic penalty `lambda * sum |w| / (1 + b |w|)` over all weights, whose pull `lambda sign(w) / (1 + b |w|)^2` is
//! strong on small weights and leaves large ones nearly alone, then masks the weights below `threshold`.
//!
//! Hanson, Pratt. "Comparing Biases for Minimal Network Construction with Back-Propagation". NIPS 1988, Advances in Neural Information
//! Processing Systems 1, 1989.
//! Differs from the paper: the penalty is one of single weights instead of the summed weights of a unit, and the threshold follows the
//! training instead of leaving weights that are merely small.
//!
//! ```
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::biased_decay::BiasedDecay;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let settings = serde_json::json!({ "lambda": 1e-3, "b": 10.0, "threshold": 0.05, "train": { "epochs": 2 } });
//! let method: BiasedDecay = serde_json::from_value(settings)?;
//! let pruned = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
//! for layer in briquette_core::coding::weights(&pruned) {
//!     assert!(layer.values.iter().all(|w| *w == 0.0 || w.abs() >= 0.05));
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeSet;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit, tune};
use briquette_core::types::Layers;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::pruning::magnitude::prune;

/// Trains small weights away and masks them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BiasedDecay {
    /// Weight of the penalty.
    lambda: f64,
    /// How soon the penalty of a growing weight levels off, at `1 / b`.
    #[serde(default = "one")]
    b: f64,
    /// Weights of smaller magnitude go after the training; each layer keeps at least its largest.
    threshold: f64,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training with the penalty.
    train: Recipe,
    /// Training of what is left, without the penalty.
    tune: Option<Recipe>,
}

impl Method for BiasedDecay {
    const NAME: &'static str = "biased-decay";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Hanson, Pratt, NIPS 1988";
    const EXAMPLE: &'static str = "lambda = 1e-5\nb = 10\nthreshold = 1e-2\ntrain = { epochs = 10 }";
}

impl Pass for BiasedDecay {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let chosen = self.check(&net)?;
        let mut penalty = Hyperbolic { lambda: self.lambda, b: self.b, layers: chosen.clone() };
        let net = fit(net, &self.train, Extras { objectives: vec![&mut penalty], ..Extras::default() }, cx)?;
        let net = prune(net, |weight| {
            let kept = weight.values.iter().filter(|v| f64::from(v.abs()) >= self.threshold).count();
            weight.node().is_some_and(|node| chosen.contains(&node)).then_some(kept as f64 / weight.values.len() as f64)
        });
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

impl BiasedDecay {
    /// The chosen layers, if the settings make sense.
    fn check(&self, net: &Net) -> Result<BTreeSet<usize>> {
        for (name, value) in [("lambda", self.lambda), ("b", self.b), ("threshold", self.threshold)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Invalid(format!("biased-decay: {name} must be 0 or more, is {value}")));
            }
        }
        self.train.check()?;
        self.layers.without(&self.except, net)
    }
}

/// `lambda * sum |w| / (1 + b |w|)`.
struct Hyperbolic {
    lambda: f64,
    b: f64,
    layers: BTreeSet<usize>,
}

impl Objective for Hyperbolic {
    fn term(&mut self, Seen { net, logits, .. }: &Seen<'_>) -> Result<Tensor<1>> {
        let zero = Tensor::zeros([1], &logits.device());
        let terms = self.layers.iter().filter_map(|layer| Some(self.sum(net.nodes[*layer].dense()?.weight())));
        Ok(terms.fold(zero, |sum, term| sum + term).mul_scalar(self.lambda))
    }
}

impl Hyperbolic {
    fn sum(&self, weights: Tensor<4>) -> Tensor<1> {
        let sizes = weights.abs();
        (sizes.clone() / (sizes.mul_scalar(self.b) + 1.0)).sum()
    }
}

fn one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{get, refusal, run, set, small, term};

    #[test]
    fn the_gradient_of_the_hyperbolic_penalty_agrees_with_differences_and_with_its_formula() {
        let (lambda, b) = (0.3, 4.0);
        let value = |net: &Net, device: &Device| {
            let layers = net.weighted().map(|(index, _)| index).collect();
            term(&mut Hyperbolic { lambda, b, layers }, net, device)
        };
        let net = small();
        let trained = net.deep_clone().train();
        let grads = value(&trained, &Device::flex().autodiff()).backward();
        for layer in ["conv1", "conv2", "fc1", "fc2"] {
            let weights = get(&net, layer, "weight");
            let gradient = trained.nodes[net.index(layer).unwrap()].gradient("weight", &grads).unwrap();
            for i in (0..weights.len()).filter(|i| weights[*i].abs() > 0.02) {
                let moved = |step: f32| {
                    let mut weights = weights.clone();
                    weights[i] += step;
                    let net = set(net.deep_clone(), layer, "weight", &weights);
                    f64::from(value(&net, &Device::flex()).into_scalar::<f32>())
                };
                let difference = (moved(4e-3) - moved(-4e-3)) / 8e-3;
                let w = f64::from(weights[i]);
                let formula = lambda * w.signum() / (1.0 + b * w.abs()).powi(2);
                assert!((f64::from(gradient[i]) - formula).abs() < 1e-5, "{layer} {i}: {} and {formula}", gradient[i]);
                assert!((difference - formula).abs() < 2e-3, "{layer} {i}: {difference} and {formula}");
            }
        }
    }

    #[test]
    fn the_penalty_drives_weights_below_the_threshold_and_they_stay_masked() {
        let left = |lambda: f64| {
            let train = serde_json::json!({ "epochs": 40, "batch": 20, "lr": 0.02, "choose": "last" });
            let tune = serde_json::json!({ "epochs": 1, "batch": 20 });
            let settings = serde_json::json!({ "lambda": lambda, "b": 5.0, "threshold": 0.05, "train": train, "tune": tune });
            let net = run::<BiasedDecay>(small(), settings).unwrap();
            let weights = ["conv1", "conv2", "fc1", "fc2"].map(|layer| get(&net, layer, "weight"));
            weights.concat().iter().filter(|v| **v != 0.0).count()
        };
        let (free, held) = (left(0.0), left(0.2));
        assert!(4 <= held && held < free / 2, "{held} and {free} weights left");
    }

    #[test]
    fn a_threshold_above_all_weights_leaves_each_layer_its_largest() {
        let settings = serde_json::json!({ "lambda": 0.0, "threshold": 1e9, "train": { "epochs": 0 } });
        let net = run::<BiasedDecay>(small(), settings).unwrap();
        for layer in ["conv1", "conv2", "fc1", "fc2"] {
            let largest = get(&small(), layer, "weight").into_iter().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
            let left: Vec<f32> = get(&net, layer, "weight").into_iter().filter(|v| *v != 0.0).collect();
            assert_eq!(left, [largest]);
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let settings = serde_json::json!({ "lambda": 0.1, "threshold": -1.0, "train": {} });
        assert_eq!(refusal::<BiasedDecay>(small(), settings), "biased-decay: threshold must be 0 or more, is -1");
        let settings = serde_json::json!({ "lambda": 0.1, "threshold": 0.1, "train": { "batch": 0 } });
        assert_eq!(refusal::<BiasedDecay>(small(), settings), "training settings: batch must be at least 1");
    }
}
