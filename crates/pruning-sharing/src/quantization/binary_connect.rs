//! BinaryConnect.
//!
//! Trains with weights of -1 and 1 in the forward and the backward pass, while the steps of the optimizer add up in real weights `w`, which
//! are clipped to [-1, 1]. Deterministic: `w_b = sign(w)`. Stochastic: `w_b = 1` with the probability `clip((w + 1) / 2, 0, 1)`, the hard
//! sigmoid of `w`, else -1, drawn anew in every step. The network needs batch norms, which take the scale out of the sums of so large
//! weights.
//!
//! ```
//! use briquette_core::coding;
//! use briquette_core::coding::Rounding;
//! use briquette_pruning_sharing::quantization::binary::{Scale, binarize};
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::Device;
//!
//! #[derive(burn::module::Module, Debug)]
//! struct Mine {
//!     hidden: Linear,
//!     output: Linear,
//! }
//!
//! let device = Device::flex();
//! let mine = Mine { hidden: LinearConfig::new(20, 30).init(&device), output: LinearConfig::new(30, 5).init(&device) };
//! let mine = binarize(mine, Scale::One, Rounding::Nearest, |weight| weight.path == "hidden.weight");
//! assert!(coding::weights(&mine)[0].values.iter().all(|w| w.abs() == 1.0));
//! // After each step of an optimizer:
//! let mine = coding::adjust(mine, |_, base, steps| (base.clamp(-1.0, 1.0), steps));
//! # drop(mine);
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::binary_connect::BinaryConnect;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: BinaryConnect = serde_json::from_value(serde_json::json!({ "stochastic": true, "train": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! assert!(values.iter().all(|w| w.abs() == 1.0));
//! # Ok(())
//! # }
//! ```
//!
//! Courbariaux, Bengio, David. "BinaryConnect: Training Deep Neural Networks with Binary Weights during Propagations". NIPS 2015.
//! arXiv:1511.00363.
//! Differs from the paper: the network is tested with `sign(w)` in the stochastic form too, for that is what a small file holds, unless
//! `real = true` asks for the real `w` as in the paper. Either way the sums that batch norms read are others than those of the training, so that
//! their statistics are taken anew, before each validation and at the end. Real weights start from the network's own instead of uniform ones, scaled
//! to the mean magnitude of those, 1/2, and clipped ([`spread`]); and the rate falls by the recipe's schedule. The
//! paper's loss is `loss = "square-hinge"` in the recipe.

use briquette_core::coding::Rounding;
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::Recipe;
use briquette_core::types::Layers;
use serde::Deserialize;

use crate::quantization::binary::{Scale, Settled, binarize_layers, layers, spread, train};
use briquette_parts::yes;

/// Trains weights of -1 and 1.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BinaryConnect {
    /// Whether signs are drawn while training.
    #[serde(default)]
    stochastic: bool,
    /// Whether the network leaves with the real weights underneath, as the paper tests what it trained stochastically.
    #[serde(default)]
    real: bool,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Whether the steps of each layer are longer by the inverse of Glorot's range, `sqrt((inputs + outputs) / 1.5)`, as in the paper's code.
    #[serde(default = "yes")]
    glorot: bool,
    /// The training.
    train: Recipe,
}

impl Method for BinaryConnect {
    const NAME: &'static str = "binary-connect";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Courbariaux, Bengio, David, NIPS 2015, arXiv:1511.00363";
    const EXAMPLE: &'static str = "stochastic = true\ntrain = { epochs = 20, loss = \"square-hinge\" }";
}

impl Pass for BinaryConnect {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let binary = layers(&net, (&self.layers, &self.except), Self::NAME)?;
        let net = spread(binarize_layers(net, &binary, Scale::One, self.rounding()), &binary)?;
        let settled = (self.real || self.stochastic).then(|| Settled { layers: binary.clone(), real: self.real });
        train(net, &binary, (Scale::One, self.glorot), &self.train, settled.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        let binary = layers(&net, (&self.layers, &self.except), Self::NAME)?;
        if self.real { Ok(net) } else { Ok(binarize_layers(net, &binary, Scale::One, self.rounding())) }
    }
}

impl BinaryConnect {
    fn rounding(&self) -> Rounding {
        if self.stochastic { Rounding::Stochastic } else { Rounding::Nearest }
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::{Coding, Source, floats};
    use briquette_core::training::{Extras, Projection, fit};
    use briquette_core::{Grid, coding};
    use burn::module::{Module, Param};
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::quantization::binary::Bounds;
    use briquette_handmade::{get, refusal, run, settles, small};

    #[test]
    fn a_weight_is_positive_with_the_probability_of_the_hard_sigmoid() {
        let device = Device::flex().autodiff();
        let w = [-1.5_f32, -1.0, -0.6, 0.0, 0.25, 0.9, 1.0, 3.0];
        let source = Source::Grid { grid: Grid::uniform(2, 2.0, 0.5), rounding: Rounding::Stochastic, learned: false };
        let base = Tensor::<2>::from_floats([w], &device);
        let param = Coding { mask: None, source }.attach(Param::from_tensor(base)).train();
        briquette_core::chance::seed(3);
        let (draws, mut positive) = (4000, [0; 8]);
        for _ in 0..draws {
            for (value, count) in floats(param.val().inner()).into_iter().zip(&mut positive) {
                assert_eq!(value.abs(), 1.0);
                *count += i32::from(value > 0.0);
            }
        }
        let positive = positive.map(|count| f64::from(count) / f64::from(draws));
        let sigmoid = w.map(|w| f64::from(((w + 1.0) / 2.0).clamp(0.0, 1.0)));
        assert!(positive.iter().zip(sigmoid).all(|(found, wanted)| (found - wanted).abs() < 0.03), "{positive:?} {sigmoid:?}");
        assert_eq!((positive[0], positive[1], positive[6], positive[7]), (0.0, 0.0, 1.0, 1.0));
    }

    /// Looks at the real weights after each step.
    struct Watch {
        inner: Bounds,
        largest: f32,
        steps: usize,
    }

    impl Projection for Watch {
        fn see(&mut self, net: &Net, gradients: &GradientsParams, lr: f64) {
            self.inner.see(net, gradients, lr);
            for weight in coding::weights(&net.valid()) {
                assert!(weight.values.iter().all(|w| w.abs() == 1.0), "{}", weight.path);
            }
        }

        fn project(&mut self, net: Net, step: usize, steps: usize) -> Net {
            let net = self.inner.project(net, step, steps);
            for (_, node) in net.weighted() {
                let weight = node.weight().unwrap();
                self.largest = weight.base.iter().fold(self.largest, |most, w| most.max(w.abs()));
            }
            self.steps += 1;
            net
        }
    }

    #[test]
    fn real_weights_stay_in_bounds_and_the_forward_pass_sees_signs() {
        for rounding in [Rounding::Nearest, Rounding::Stochastic] {
            let net = small();
            let binary = layers(&net, (&Layers::default(), &Layers::default()), "it").unwrap();
            let net = binarize_layers(net, &binary, Scale::One, rounding);
            let mut watch = Watch { inner: Bounds::new(&net, &binary, Scale::One, true), largest: 0.0, steps: 0 };
            let recipe: Recipe = serde_json::from_str(r#"{ "epochs": 5, "batch": 10, "lr": 0.1 }"#).unwrap();
            let (data, mut silent) = (briquette_handmade::images(), briquette_core::context::Silent);
            let mut cx = briquette_handmade::context(&data, &mut silent);
            fit(net, &recipe, Extras { projections: vec![&mut watch], ..Extras::default() }, &mut cx).unwrap();
            assert_eq!((watch.largest, watch.steps), (1.0, 20), "steps of 0.1 reach the bounds and do not pass them");
        }
    }

    #[test]
    fn glorots_factor_lengthens_steps() {
        let net = small();
        let fc1 = net.index("fc1").unwrap();
        let net = binarize_layers(net, &[fc1], Scale::One, Rounding::Nearest);
        let moved = |glorot: bool| {
            let net = net.deep_clone().train();
            let mut bounds = Bounds::new(&net, &[fc1], Scale::One, glorot);
            bounds.see(&net, &GradientsParams::new(), 0.1);
            // A step of 1e-3 for every weight.
            let net = coding::adjust(net, |_, base, steps| (base + 1e-3, steps));
            let net = bounds.project(net, 0, 1);
            net.nodes[fc1].weight().unwrap().base
        };
        let before = net.nodes[fc1].weight().unwrap().base;
        let factor = (17.0_f32 / 1.5).sqrt();
        for ((before, plain), long) in before.iter().zip(moved(false)).zip(moved(true)) {
            let expected = [before + 1e-3, before + 1e-3 * factor].map(|w| w.clamp(-1.0, 1.0));
            assert!((plain - expected[0]).abs() < 1e-6 && (long - expected[1]).abs() < 1e-5, "{plain} {long} {expected:?}");
        }
    }

    #[test]
    fn the_trained_network_is_binary_except_where_it_is_told_not_to() {
        let train = serde_json::json!({ "epochs": 3, "batch": 10, "loss": "square-hinge" });
        let net =
            run::<BinaryConnect>(small(), serde_json::json!({ "stochastic": true, "except": ["fc2"], "train": train.clone() }));
        let net = net.unwrap();
        for layer in ["conv1", "conv2", "fc1"] {
            assert!(get(&net, layer, "weight").iter().all(|w| w.abs() == 1.0), "{layer}");
        }
        assert!(get(&net, "fc2", "weight").iter().any(|w| w.abs() != 1.0));
        let real =
            run::<BinaryConnect>(small(), serde_json::json!({ "stochastic": true, "real": true, "train": train })).unwrap();
        let weights = get(&real, "fc1", "weight");
        assert!(weights.iter().all(|w| w.abs() <= 1.0) && weights.iter().any(|w| w.abs() < 1.0));
        let typo = refusal::<BinaryConnect>(small(), serde_json::json!({ "except": ["fc9"], "train": {} }));
        assert!(typo.contains("fc9") && typo.contains("fc2"), "{typo}");
    }

    #[test]
    fn what_is_validated_and_handed_on_has_the_statistics_of_its_own_weights() {
        let train = serde_json::json!({ "epochs": 3, "batch": 10, "choose": "last" });
        for real in [false, true] {
            let settings = serde_json::json!({ "stochastic": true, "real": real, "train": train.clone() });
            settles::<BinaryConnect>(small(), settings);
        }
    }
}
