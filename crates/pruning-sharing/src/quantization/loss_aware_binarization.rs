//! Loss-aware binarization.
//!
//! The weights of a layer become `alpha sign(w)` with the `alpha` that costs the loss least. By the proximal Newton method the binary weights
//! of the next step minimize `1/2 sum d_i (w_i - alpha b_i)^2`, where `w` are the real weights underneath, and `d` is the diagonal
//! curvature as Adam estimates it, the root of its mean of squared gradients. The solution is `b = sign(w)` and `alpha = ||d w||_1 / ||d||_1`:
//! the mean of `|w|`, in which weights count by what they do to the loss. With a uniform curvature that is the scale of [`bwn`](crate::quantization::bwn),
//! for a whole layer.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::coding::{Rounding, adjust, weights};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::loss_aware_binarization::{LossAwareBinarization, scale};
//! use briquette_pruning_sharing::quantization::binary::{Scale, binarize};
//! use burn::nn::LinearConfig;
//! use burn::tensor::{Device, Tensor};
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let method: LossAwareBinarization = serde_json::from_str(r#"{ "train": { "epochs": 5 } }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! let values = net.nodes[2].weight().unwrap().values();
//! assert!(values.iter().all(|w| w.abs() == values[0].abs()));
//!
//! // The weights of any module of Burn.
//! let layer = binarize(LinearConfig::new(20, 10).init(&Device::flex()), Scale::One, Rounding::Nearest, |_| true);
//! // After each step of an optimizer, with the curvature `d` of each weight:
//! let d = Tensor::<1>::ones([200], &Device::flex());
//! let layer = adjust(layer, |_, base, _| (base.clone(), scale(base, Some(d.clone())).mul_scalar(2.0)));
//! let values = &weights(&layer)[0].values;
//! assert!(values.iter().all(|w| w.abs() == values[0].abs() && w.abs() < 1.0));
//! ```
//!
//! Hou, Yao, Kwok. "Loss-aware Binarization of Deep Networks". ICLR 2017. arXiv:1611.01600.
//! Differs from the paper: the step of the real weights is the recipe's optimizer's, which with Adam adds momentum to the Newton step; and the
//! squared gradients are averaged here again with the decay `beta`, for an optimizer's are its own.

use std::collections::BTreeMap;

use briquette_core::archive::Archive;
use briquette_core::coding::{self, Rounding};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Projection, Recipe, fit};
use briquette_core::types::Layers;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::quantization::binary::{Scale, binarize_layers, gradient, layers, paths};

/// Added to the root of the mean squared gradient, as in Adam.
const EPSILON: f64 = 1e-8;
/// Smallest `alpha`.
const SMALLEST: f64 = 1e-12;

/// Trains binary weights whose scale minimizes the loss.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LossAwareBinarization {
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Share of the mean of squared gradients that a step keeps.
    #[serde(default = "beta")]
    beta: f64,
    /// The training.
    train: Recipe,
}

impl Method for LossAwareBinarization {
    const NAME: &'static str = "loss-aware-binarization";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Hou, Yao, Kwok, ICLR 2017, arXiv:1611.01600";
    const EXAMPLE: &'static str = "train = { epochs = 20 }";
}

impl Pass for LossAwareBinarization {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let binary = layers(&net, (&self.layers, &self.except), Self::NAME)?;
        let mut newton = Newton::new(&net, &binary, self.beta);
        let net = newton.project(self.plan(net)?, 0, 1);
        fit(net, &self.train, Extras { projections: vec![&mut newton], ..Extras::default() }, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        if !(0.0..1.0).contains(&self.beta) {
            return Err(Error::Invalid(format!("loss-aware-binarization: beta lies in [0, 1), not {}", self.beta)));
        }
        let binary = layers(&net, (&self.layers, &self.except), Self::NAME)?;
        Ok(binarize_layers(net, &binary, Scale::One, Rounding::Nearest))
    }
}

/// The curvature of the weights, and the scales that follow from it.
struct Newton {
    paths: BTreeMap<String, usize>,
    beta: f64,
    /// Mean squared gradients by layer, flat, biased towards 0 by the factor `1 - beta^seen`.
    squares: BTreeMap<usize, Tensor<1>>,
    /// Steps so far.
    seen: u32,
}

impl Newton {
    fn new(net: &Net, layers: &[usize], beta: f64) -> Self {
        let zeros = |layer: &usize| {
            let count = net.nodes[*layer].op.weight_shape()?.iter().product::<usize>();
            Some((*layer, Tensor::zeros([count], &net.device().inner())))
        };
        Self { paths: paths(net, layers), beta, squares: layers.iter().filter_map(zeros).collect(), seen: 0 }
    }

    /// The diagonal curvature `d` of a layer, after the first step.
    fn curvature(&self, layer: usize) -> Option<Tensor<1>> {
        let unbiased = 1.0 / (1.0 - self.beta.powi(self.seen as i32));
        let squares = self.squares.get(&layer).filter(|_| self.seen > 0)?;
        Some(squares.clone().mul_scalar(unbiased).sqrt().add_scalar(EPSILON))
    }
}

impl Projection for Newton {
    fn see(&mut self, net: &Net, gradients: &GradientsParams, _: f64) {
        self.seen += 1;
        for (layer, squares) in &mut self.squares {
            if let Some(gradient) = gradient(net, *layer, gradients) {
                *squares = squares.clone().mul_scalar(self.beta) + gradient.square().mul_scalar(1.0 - self.beta);
            }
        }
    }

    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        coding::adjust(net, |path, base, steps| match self.paths.get(path) {
            None => (base, steps),
            Some(layer) => {
                let alpha = scale(base.clone(), self.curvature(*layer));
                (base, alpha.mul_scalar(2.0))
            }
        })
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        archive.numbers(std::slice::from_mut(&mut self.seen))?;
        self.squares.values_mut().try_for_each(|squares| archive.tensor(squares))
    }
}

/// `alpha = ||d w||_1 / ||d||_1`, `[1]`; without a curvature it is uniform.
pub fn scale(base: Tensor<3>, curvature: Option<Tensor<1>>) -> Tensor<1> {
    let sizes = base.abs();
    let alpha = match curvature {
        None => sizes.mean(),
        Some(d) => (sizes * d.clone().reshape([1, 1, -1])).sum() / d.sum(),
    };
    alpha.clamp_min(SMALLEST)
}

fn beta() -> f64 {
    0.999
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{get, refusal, run, small};

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex())
    }

    const W: [f32; 6] = [0.3, -1.2, 0.05, 2.0, -0.7, 0.4];

    #[test]
    fn a_uniform_curvature_gives_the_scale_of_bwn() {
        let base = tensor(&W).reshape([1, 1, 6]);
        let bwn = floats(crate::quantization::binary::least_squares(&base))[0] / 2.0;
        for d in [1e-6_f32, 0.3, 70.0] {
            let alpha = floats(scale(base.clone(), Some(tensor(&[d; 6]))))[0];
            assert!((alpha - bwn).abs() < 1e-6, "{d}: {alpha} and {bwn}");
        }
        assert_eq!(floats(scale(base, None))[0], bwn);
    }

    #[test]
    fn the_scale_and_the_signs_minimize_the_weighted_error() {
        let d = [5.0_f32, 0.1, 1.0, 0.01, 2.0, 0.0];
        let alpha = floats(scale(tensor(&W).reshape([1, 1, 6]), Some(tensor(&d))))[0];
        let error = |alpha: f32, signs: u32| -> f32 {
            let sign = |i: usize| if signs >> i & 1 == 1 { 1.0 } else { -1.0 };
            (0..6).map(|i| d[i] * (W[i] - alpha * sign(i)).powi(2)).sum()
        };
        let own = (0..6).filter(|i| W[*i] >= 0.0).map(|i| 1 << i).sum();
        for signs in 0..64 {
            for other in (0..250).map(|i| i as f32 * 0.01) {
                assert!(error(alpha, own) <= error(other, signs) + 1e-6, "{alpha} {own:b} and {other} {signs:b}");
            }
        }
    }

    /// Remembers gradients as the method sees them, in 64 bits.
    struct Check {
        newton: Newton,
        layer: usize,
        squares: Vec<f64>,
    }

    impl Projection for Check {
        fn see(&mut self, net: &Net, gradients: &GradientsParams, lr: f64) {
            let own = floats(gradient(net, self.layer, gradients).unwrap());
            self.squares.resize(own.len(), 0.0);
            self.squares.iter_mut().zip(own).for_each(|(v, g)| *v = 0.9 * *v + 0.1 * f64::from(g).powi(2));
            self.newton.see(net, gradients, lr);
        }

        fn project(&mut self, net: Net, step: usize, steps: usize) -> Net {
            let net = self.newton.project(net, step, steps);
            // Burn keeps [in, out], as the gradients lie.
            let weight = net.nodes[self.layer].stored().into_iter().find(|stored| stored.name == "weight").unwrap();
            let unbiased = 1.0 / (1.0 - 0.9_f64.powi(step as i32 + 1));
            let d: Vec<f64> = self.squares.iter().map(|v| (v * unbiased).sqrt() + EPSILON).collect();
            let weighted: f64 = d.iter().zip(&weight.base).map(|(d, w)| d * f64::from(w.abs())).sum();
            let alpha = weighted / d.iter().sum::<f64>();
            for (value, base) in weight.values().iter().zip(&weight.base) {
                let expected = alpha * f64::from(if *base >= 0.0 { 1.0_f32 } else { -1.0 });
                assert!((f64::from(*value) - expected).abs() < 1e-5, "step {step}: {value} and {expected}");
            }
            net
        }
    }

    #[test]
    fn scales_follow_the_gradients_while_the_network_trains() {
        let method: LossAwareBinarization = serde_json::from_str(r#"{ "train": {} }"#).unwrap();
        let net = method.plan(small()).unwrap();
        let layer = net.index("fc1").unwrap();
        let mut check = Check { newton: Newton::new(&net, &[layer], 0.9), layer, squares: Vec::new() };
        let recipe: Recipe = serde_json::from_str(r#"{ "epochs": 3, "batch": 10, "lr": 0.02 }"#).unwrap();
        let (data, mut silent) = (briquette_handmade::images(), briquette_core::context::Silent);
        let mut cx = briquette_handmade::context(&data, &mut silent);
        fit(net, &recipe, Extras { projections: vec![&mut check], ..Extras::default() }, &mut cx).unwrap();
    }

    #[test]
    fn a_layer_has_one_scale_and_bad_decays_are_refused() {
        let train = serde_json::json!({ "epochs": 2, "batch": 10 });
        let net = run::<LossAwareBinarization>(small(), serde_json::json!({ "except": ["conv1"], "train": train })).unwrap();
        for layer in ["conv2", "fc1", "fc2"] {
            let values = get(&net, layer, "weight");
            assert!(values.iter().all(|w| w.abs() == values[0].abs()) && values[0] != 0.0, "{layer}: {values:?}");
        }
        let beta = refusal::<LossAwareBinarization>(small(), serde_json::json!({ "beta": 1.0, "train": {} }));
        assert_eq!(beta, "loss-aware-binarization: beta lies in [0, 1), not 1");
    }
}
