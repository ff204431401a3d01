//! Parameterized clipping activation.
//!
//! The activation function is `y = clip(x, 0, alpha)`, rounded to `2^k` levels, with a clip value `alpha` for each layer that is trained:
//! `dy/dalpha` is 1 where `x` exceeds `alpha` and 0 elsewhere, and `decay alpha^2` joins the loss and keeps the range, hence the step
//! `alpha / (2^k - 1)`, small. The parameter of the optimizer is `alpha` itself, so that the paper's rates serve, by gradient descent too. Weights are [DoReFa-Net's](crate::quantization::dorefa). The first and the last layer stay as they are.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::pact::Pact;
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
//! let method: Pact = serde_json::from_str(r#"{ "bits": 4, "activations": 4, "train": { "epochs": 5 } }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert!(net.index("relu-quantized").is_ok());
//! ```
//!
//! Choi, Wang, Venkataramani, Chuang, Srinivasan, Gopalakrishnan. "PACT: Parameterized Clipping Activation for Quantized Neural Networks".
//! arXiv:1805.06085, 2018.
//! Differs from the paper: residual sums read the clipped and rounded activations, and `alpha` is kept positive.

use briquette_core::StepGradient;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::quantization::clipped::Clipped;
use briquette_parts::steps::Positive;

/// Trains with squashed weights on grids and activations whose clip value is trained.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pact {
    /// Bits and layers.
    #[serde(flatten)]
    clipped: Clipped,
    /// Where the clip values begin.
    #[serde(default = "ten")]
    alpha: f64,
    /// Weight of the squared clip values in the loss.
    #[serde(default = "decay")]
    decay: f64,
    /// The training.
    train: Recipe,
}

impl Method for Pact {
    const NAME: &'static str = "pact";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Choi, Wang, Venkataramani, Chuang, Srinivasan, Gopalakrishnan, arXiv:1805.06085";
    const EXAMPLE: &'static str = "bits = 4\nactivations = 4\ntrain = { epochs = 10 }";
}

impl Pass for Pact {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (mut decay, mut positive) = (Decay(self.decay), Positive);
        let extras = Extras { objectives: vec![&mut decay], projections: vec![&mut positive], ..Extras::default() };
        fit(self.plan(net)?, &self.train, extras, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        if !(self.alpha.is_finite() && self.alpha > 0.0 && self.decay.is_finite() && self.decay >= 0.0) {
            let detail = format!("pact: alpha must be above 0 and decay 0 or more, they are {} and {}", self.alpha, self.decay);
            return Err(Error::Invalid(detail));
        }
        self.clipped.apply(Self::NAME, net, self.alpha, 2, StepGradient::Clip)
    }
}

/// `decay sum alpha^2`.
struct Decay(f64);

impl Objective for Decay {
    fn term(&mut self, Seen { net, logits, .. }: &Seen<'_>) -> Result<Tensor<1>> {
        let clipped = net.nodes.iter().filter_map(|node| node.op.quantize()).filter(|own| own.train == StepGradient::Clip);
        let squares = clipped.map(|own| own.scale.val().powi_scalar(2));
        Ok(squares.fold(Tensor::zeros([1], &logits.device()), |sum, square| sum + square).mul_scalar(self.0))
    }
}

fn ten() -> f64 {
    10.0
}

fn decay() -> f64 {
    2e-4
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::context::Silent;
    use briquette_core::training::evaluate;
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{images, refusal, run, small, stirred, term};

    fn clips(net: &Net) -> Vec<f32> {
        net.nodes.iter().filter_map(|node| Some(floats(node.op.quantize()?.scale.val())[0])).collect()
    }

    fn settings(epochs: usize, alpha: f64, decay: f64) -> serde_json::Value {
        let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.05, "choose": "last" });
        serde_json::json!({ "bits": 4, "activations": 4, "alpha": alpha, "decay": decay, "train": train })
    }

    #[test]
    fn the_decay_of_clip_values_has_its_gradient() {
        let device = Device::flex();
        let net = run::<Pact>(small(), settings(0, 3.0, 0.0)).unwrap();
        let value = |net: &Net, device: &Device| term(&mut Decay(0.2), net, device);
        assert!((floats(value(&net, &device))[0] - 0.2 * 2.0 * 9.0).abs() < 1e-4);
        let trained = net.train();
        let grads = value(&trained, &device.clone().autodiff()).backward();
        let clips = trained.nodes.iter().filter_map(|node| Some(node.op.quantize()?.scale));
        for clip in clips {
            // d(0.2 alpha^2)/dalpha = 0.4 alpha.
            assert!((floats(clip.val().grad(&grads).unwrap())[0] - 0.4 * 3.0).abs() < 1e-3);
        }
    }

    #[test]
    fn gradient_descent_moves_a_clip_value_by_the_rate_times_its_own_gradient() {
        let moved = |bits: u32, decay: f64, optimizer: &str| {
            let train = serde_json::json!({
                "epochs": 1, "batch": 40, "lr": 0.1, "optimizer": optimizer, "momentum": 0.0, "schedule": "constant", "choose": "last"
            });
            let settings = serde_json::json!({ "bits": 8, "activations": bits, "alpha": 0.5, "decay": decay, "train": train });
            clips(&run::<Pact>(stirred(), settings).unwrap()).into_iter().map(|clip| f64::from(clip) - 0.5).collect::<Vec<_>>()
        };
        // What the decay adds is 2 decay alpha, times the rate.
        for bits in [2, 4, 8] {
            let (free, held) = (moved(bits, 0.0, "sgd"), moved(bits, 0.3, "sgd"));
            for (free, held) in free.iter().zip(&held) {
                assert!((free - held - 0.1 * 2.0 * 0.3 * 0.5).abs() < 1e-6, "{bits} bits: {free} and {held}");
            }
        }
        // The first step of Adam is the rate, whatever the gradient.
        assert!(moved(4, 0.3, "adam").iter().all(|moved| (moved.abs() - 0.1).abs() < 1e-3), "{:?}", moved(4, 0.3, "adam"));
    }

    #[test]
    fn gradient_descent_at_the_papers_rate_keeps_clip_values_in_range_and_learns() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        let after = |epochs: usize| {
            let train = serde_json::json!({
                "epochs": epochs, "batch": 10, "lr": 0.1, "optimizer": "sgd", "momentum": 0.9, "weight-decay": 2e-4, "choose": "last"
            });
            let settings = serde_json::json!({ "bits": 4, "activations": 4, "alpha": 10.0, "decay": 2e-4, "train": train });
            run::<Pact>(stirred(), settings).unwrap()
        };
        let trained = after(40);
        assert!(clips(&trained).iter().all(|clip| (1.0..15.0).contains(clip)), "{:?}", clips(&trained));
        assert!(loss(&trained) < loss(&after(0)), "{} {}", loss(&trained), loss(&after(0)));
    }

    #[test]
    fn clip_values_shrink_under_decay_and_grow_where_they_cut() {
        let (held, free) = (clips(&run::<Pact>(stirred(), settings(20, 10.0, 1.0)).unwrap()), [10.0; 2]);
        assert!(held.iter().zip(free).all(|(held, free)| *held > 0.0 && *held < 0.85 * free), "{held:?}");
        let grown = clips(&run::<Pact>(stirred(), settings(40, 0.05, 0.0)).unwrap());
        assert!(grown.iter().any(|clip| *clip > 0.2), "{grown:?}");
    }

    #[test]
    fn training_lowers_the_loss_and_shortcuts_read_what_is_clipped() {
        let (data, device) = (images(), Device::flex());
        let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
        let after = |epochs| loss(&run::<Pact>(stirred(), settings(epochs, 4.0, 1e-4)).unwrap());
        assert!(after(60) < 0.9 * after(0), "{} {}", after(60), after(0));
        let arch = briquette_core::zoo::Arch::named("resnet20").unwrap();
        let net = arch.build(&briquette_core::zoo::Wanted { width: 0.25, ..arch.wanted() }, &device).unwrap();
        let method: Pact = serde_json::from_value(settings(1, 4.0, 1e-4)).unwrap();
        let net = method.plan(net).unwrap();
        let quantized = |node: usize| net.nodes[node].op.quantize().is_some();
        for (index, node) in net.nodes.iter().enumerate().filter(|(index, _)| quantized(*index)) {
            let value = node.inputs[0];
            assert!(net.nodes.iter().enumerate().all(|(reader, node)| reader == index || !node.inputs.contains(&value)));
        }
    }

    #[test]
    fn activations_have_bits_by_layer() {
        let with = |activations: serde_json::Value| {
            let mut all = settings(0, 3.0, 0.0);
            all["activations"] = activations;
            all
        };
        let net = run::<Pact>(small(), with(serde_json::json!({ "conv": 3, "fc": 5 }))).unwrap();
        let levels = net.nodes.iter().filter_map(|node| Some(node.op.quantize()?.levels));
        assert_eq!(levels.collect::<Vec<_>>(), [8, 32]);
        assert_eq!(
            refusal::<Pact>(small(), with(serde_json::json!({ "fc1": 9 }))),
            "pact: `activations` takes 2 to 8 bits, not 9"
        );
    }

    #[test]
    fn clip_values_that_are_none_are_refused() {
        let error = refusal::<Pact>(small(), settings(1, 0.0, 1e-4));
        assert_eq!(error, "pact: alpha must be above 0 and decay 0 or more, they are 0 and 0.0001");
        assert!(refusal::<Pact>(small(), settings(1, 1.0, -1.0)).starts_with("pact: alpha must be above 0"));
    }
}
