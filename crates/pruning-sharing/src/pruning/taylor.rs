//! Pruning by the first-order Taylor expansion of the loss.
//!
//! Scores filter `f` by the squared change of the loss `L` that its removal would bring to first order, averaged over mini-batches:
//! `s_f = mean over batches of (dL/dg_f)^2`, where `g_f = 1` is a gate that multiplies the filter's output. The gate sits after the batch
//! norm when one follows directly, so that `dL/dg_f = gamma_f dL/dgamma_f + beta_f dL/dbeta_f`; otherwise
//! `dL/dg_f = sum_j W_fj dL/dW_fj + b_f dL/db_f`.
//!
//! Molchanov, Mallya, Tyree, Frosio, Kautz. "Importance Estimation for Neural Network Pruning". CVPR 2019. arXiv:1906.10771. The squared
//! gate is theirs; the absolute value of activation times gradient is that of Molchanov, Tyree, Karras, Aila, Kautz, ICLR 2017,
//! arXiv:1611.06440.
//! Differs from the papers: all units go at once instead of a few every few updates, filters joined by a residual go together by the mean
//! of their scores, and the gradients are those of the network in
//! evaluation mode. With batch statistics `sum_j W_fj dL/dW_fj` would be zero, for the loss would not depend on the scale of a filter.
//!
//! ```
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::taylor::Taylor;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let method: Taylor = serde_json::from_value(serde_json::json!({ "ratio": 0.5 }))?;
//! let cut = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
//! assert_eq!(cut.weighted().filter_map(|(_, node)| Some(node.weight()?.shape[0])).collect::<Vec<_>>(), [15, 5, 10]);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{cross_entropy, probe};
use briquette_core::types::Ratio;
use burn::tensor::Gradients;
use serde::Deserialize;

use briquette_parts::channels::{Channels, FilterScores, norm_after};

/// Removes the filters that matter least to the loss to first order, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Taylor {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
    /// Share of the units of all groups together that stays, over one threshold, in place of `ratio` and `budget`.
    global: Option<Ratio>,
    /// Training images over which the score is averaged.
    #[serde(default = "nine_hundred")]
    calibration_images: usize,
    /// Images in each mini-batch.
    #[serde(default = "thirty")]
    batch: usize,
}

impl Method for Taylor {
    const NAME: &'static str = "taylor";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Molchanov, Mallya, Tyree, Frosio, Kautz, CVPR 2019, arXiv:1906.10771";
    const EXAMPLE: &'static str = "ratio = 0.4";
}

impl Pass for Taylor {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        self.check()?;
        let scores = scores(&net, (self.calibration_images.div_ceil(self.batch), self.batch), cx)?;
        let net = self.channels.cut_or_rank(Self::NAME, self.global, net, |_, group| scores.means(group))?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.check()?;
        self.channels.plan(Self::NAME, self.global, net)
    }

    fn estimate(&self) -> Option<&'static str> {
        self.channels.estimate(self.global)
    }

    fn shorten(&mut self) {
        self.calibration_images = self.calibration_images.min(2 * self.batch);
    }
}

impl Taylor {
    fn check(&self) -> Result<()> {
        if self.calibration_images == 0 || self.batch == 0 {
            return Err(Error::Invalid("taylor: `calibration-images` and `batch` must be at least 1".into()));
        }
        Ok(())
    }
}

/// Mean over the batches of the squared derivative of the loss by each filter's gate.
fn scores(net: &Net, batches: (usize, usize), cx: &mut Context<'_>) -> Result<FilterScores> {
    let probed = net.probed();
    // What a structural matrix makes is never cut.
    let gated: Vec<(usize, &Node)> =
        probed.own_weights().map(|(i, _)| (i, &probed.nodes[norm_after(net, i).unwrap_or(i)])).collect();
    let mut sums: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut count = 0.0;
    let device = net.device().autodiff();
    probe(cx, Taylor::NAME, batches, &device, |images, labels| {
        let grads = cross_entropy(probed.forward(images), labels, 0.0).backward();
        for (index, node) in &gated {
            let slopes = gate_slopes(node, &grads);
            let sums = sums.entry(*index).or_insert_with(|| vec![0.0; slopes.len()]);
            sums.iter_mut().zip(slopes).for_each(|(sum, slope)| *sum += slope * slope);
        }
        count += 1.0;
        Ok(())
    })?;
    sums.values_mut().flatten().for_each(|sum| *sum /= count);
    Ok(FilterScores(sums))
}

/// For each output channel of a node that is linear in its parameters, the sum of each parameter times its gradient.
fn gate_slopes(node: &Node, grads: &Gradients) -> Vec<f64> {
    let parameters = node.parameters();
    let mut slopes = vec![0.0; parameters.first().map_or(0, |first| first.shape[0])];
    for parameter in parameters {
        let Some(gradient) = node.gradient(parameter.name, grads) else { continue };
        let per_channel = parameter.base.len() / slopes.len();
        for (i, (value, gradient)) in parameter.base.iter().zip(gradient).enumerate() {
            slopes[i / per_channel] += f64::from(*value) * f64::from(gradient);
        }
    }
    slopes
}

fn nine_hundred() -> usize {
    900
}

fn thirty() -> usize {
    30
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Silent;
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::structural::kronecker::Kronecker;
    use crate::structural::low_displacement::LowDisplacement;
    use briquette_handmade::{context, get, images, refusal, run, set, small};

    /// A network whose normalization does something.
    fn stirred() -> Net {
        let net = set(small(), "norm1", "gamma", &[1.5, -0.7, 0.4, 2.0]);
        let net = set(net, "norm1", "mean", &[0.1, 0.0, -0.2, 0.3]);
        set(set(net, "norm1", "beta", &[0.3, 0.5, -0.1, 0.2]), "conv2", "bias", &[0.4, -0.2, 0.3])
    }

    /// The network with all parameters of one channel of a node multiplied by `gate`.
    fn gated(node: &str, channel: usize, gate: f32) -> Net {
        let names: &[&str] = if node.starts_with("norm") { &["gamma", "beta"] } else { &["weight", "bias"] };
        let width = get(&stirred(), node, names[1]).len();
        names.iter().fold(stirred(), |net, name| {
            let mut values = get(&net, node, name);
            let per_channel = values.len() / width;
            values[channel * per_channel..][..per_channel].iter_mut().for_each(|v| *v *= gate);
            set(net, node, name, &values)
        })
    }

    #[test]
    fn the_score_is_the_squared_derivative_by_a_gate_behind_each_filter() {
        let (data, mut silent) = (images(), Silent);
        let scores = scores(&stirred(), (2, 15), &mut context(&data, &mut silent)).unwrap();
        let mut batches: Vec<(Tensor<4>, Vec<u16>)> = Vec::new();
        probe(&mut context(&data, &mut silent), "taylor", (2, 15), &Device::flex(), |images, labels| {
            batches.push((images, labels.to_vec()));
            Ok(())
        })
        .unwrap();
        let loss = |net: &Net, (images, labels): &(Tensor<4>, Vec<u16>)| {
            f64::from(briquette_core::coding::floats(cross_entropy(net.forward(images.clone()), labels, 0.0))[0])
        };
        for (layer, gate) in [("conv1", "norm1"), ("conv2", "conv2"), ("fc1", "fc1")] {
            let score = &scores.0[&stirred().index(layer).unwrap()];
            for (channel, score) in score.iter().enumerate() {
                let (low, high) = (gated(gate, channel, 0.998), gated(gate, channel, 1.002));
                let slopes = batches.iter().map(|batch| (loss(&high, batch) - loss(&low, batch)) / 0.004);
                let expected = slopes.map(|slope| slope * slope).sum::<f64>() / 2.0;
                assert!((score - expected).abs() <= 0.02 * expected + 1e-6, "{layer} {channel}: {score} and {expected}");
            }
        }
    }

    #[test]
    fn a_filter_that_nothing_reads_goes_first() {
        let mut reading = get(&stirred(), "conv2", "weight");
        // Weights are [out, in, 2, 2]; nothing reads the second of 4 channels.
        reading.iter_mut().enumerate().filter(|(i, _)| i / 4 % 4 == 1).for_each(|(_, w)| *w = 0.0);
        let net = set(stirred(), "conv2", "weight", &reading);
        let cut = run::<Taylor>(net, serde_json::json!({ "ratio": { "conv1": 0.25 } })).unwrap();
        assert_eq!(get(&cut, "norm1", "gamma"), [1.5, 0.4, 2.0]);
    }

    #[test]
    fn what_a_structural_matrix_makes_has_no_gates() {
        let structural = [
            run::<LowDisplacement>(small(), serde_json::json!({ "layers": ["fc1"], "rank": 3 })).unwrap(),
            run::<Kronecker>(small(), serde_json::json!({ "layers": ["fc1"], "terms": 2 })).unwrap(),
        ];
        for net in structural {
            // The channels of conv2, which the matrix reads, stay as well.
            let cut = run::<Taylor>(net, serde_json::json!({ "ratio": 0.5 })).unwrap();
            assert_eq!(["conv1", "conv2"].map(|layer| get(&cut, layer, "weight").len()), [2 * 4, 3 * 2 * 4]);
        }
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let two = refusal::<Taylor>(small(), serde_json::json!({ "ratio": 0.5, "global": 0.5 }));
        assert_eq!(two, "taylor takes exactly one of `ratio`, `budget` and `global`");
        let none = refusal::<Taylor>(small(), serde_json::json!({ "ratio": 0.5, "calibration-images": 0 }));
        assert_eq!(none, "taylor: `calibration-images` and `batch` must be at least 1");
    }
}
