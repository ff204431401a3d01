//! Binary-weight networks.
//!
//! The weights of a filter `W` become `alpha B` with `B = sign(W)` and `alpha = 1/n sum |W_i|`, which of all scales and signs are nearest to
//! `W`: they minimize `||W - alpha B||^2`. Scales follow from the real weights underneath after every step of the optimizer. The first and the
//! last layer stay real.
//!
//! ```
//! use briquette_core::coding;
//! use briquette_core::coding::Rounding;
//! use briquette_pruning_sharing::quantization::binary::{Scale, binarize};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! let layer = LinearConfig::new(20, 30).init(&Device::flex());
//! let error = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
//! let real = coding::weights(&layer).remove(0).values;
//! let scaled = coding::weights(&binarize(layer.clone(), Scale::PerFilter, Rounding::Nearest, |_| true)).remove(0).values;
//! let signs = coding::weights(&binarize(layer, Scale::One, Rounding::Nearest, |_| true)).remove(0).values;
//! assert!(error(&scaled, &real) < error(&signs, &real));
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::bwn::Bwn;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: Bwn = serde_json::from_value(serde_json::json!({ "except": ["fc3"], "train": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! assert!(values.chunks(784).all(|row| row.iter().all(|w| w.abs() == row[0].abs())));
//! # Ok(())
//! # }
//! ```
//!
//! Rastegari, Ordonez, Redmon, Farhadi. "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks". ECCV 2016.
//! arXiv:1603.05279. Weights are clipped to [-1, 1] as in the authors' code.
//! Differs from the paper: the gradient of a real weight is that of the weight in use, where the paper multiplies it by
//! `1/n + alpha` inside [-1, 1], a factor that is nearly the same for the weights of a filter and that Adam divides by again; and weights
//! are not shifted to a mean of 0 over the inputs, as they are in the authors' code.

use briquette_core::coding::Rounding;
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::Recipe;
use briquette_core::types::Layers;
use serde::Deserialize;

use crate::quantization::binary::{Scale, binarize_layers, inner_layers, train};

/// Trains binary weights with a scale for each filter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bwn {
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training.
    train: Recipe,
}

impl Method for Bwn {
    const NAME: &'static str = "bwn";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Rastegari, Ordonez, Redmon, Farhadi, ECCV 2016, arXiv:1603.05279";
    const EXAMPLE: &'static str = "train = { epochs = 20 }";
}

impl Pass for Bwn {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (net, binary) = self.binary(net)?;
        train(net, &binary, (Scale::PerFilter, false), &self.train, None, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        Ok(self.binary(net)?.0)
    }
}

impl Bwn {
    /// The network with binary weights, and the layers that have them.
    fn binary(&self, net: Net) -> Result<(Net, Vec<usize>)> {
        self.train.check()?;
        let binary = inner_layers(&net, (&self.layers, &self.except), Self::NAME)?;
        Ok((binarize_layers(net, &binary, Scale::PerFilter, Rounding::Nearest), binary))
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Builder;
    use briquette_core::coding::Source;
    use briquette_core::stored::Storage;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{get, refusal, run, set, small};

    #[test]
    fn a_filter_is_its_mean_magnitude_times_signs_before_and_after_the_training() {
        for epochs in [0, 3] {
            let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.05 });
            let net = run::<Bwn>(small(), serde_json::json!({ "train": train })).unwrap();
            for layer in ["conv2", "fc1"] {
                let weight = net.nodes[net.index(layer).unwrap()].weight().unwrap();
                let per_filter = weight.base.len() / weight.shape[0];
                for (base, values) in weight.base.chunks(per_filter).zip(weight.values().chunks(per_filter)) {
                    let alpha = base.iter().map(|w| w.abs()).sum::<f32>() / per_filter as f32;
                    let near = base.iter().zip(values).all(|(w, value)| (value - alpha * w.signum()).abs() < 1e-6);
                    assert!(near && (epochs == 0 || base.iter().all(|w| w.abs() <= 1.0)), "{layer}: {base:?} {values:?}");
                }
                assert!(matches!(weight.coding.source, Source::Grid { .. }));
            }
            if epochs == 0 {
                assert_eq!(
                    [get(&net, "conv1", "weight"), get(&net, "fc2", "weight")],
                    [get(&small(), "conv1", "weight"), get(&small(), "fc2", "weight")]
                );
            }
        }
    }

    #[test]
    fn a_zero_in_a_file_s_layer_does_not_make_it_pruned() {
        let mut weights = get(&small(), "fc1", "weight");
        weights[0] = 0.0;
        let model = set(small(), "fc1", "weight", &weights).to_model(Storage::default()).unwrap();
        let net = Net::from_model(&model, &Device::flex()).unwrap();
        let net = run::<Bwn>(net, serde_json::json!({ "train": { "epochs": 0 } })).unwrap();
        assert!(get(&net, "fc1", "weight").iter().all(|w| *w != 0.0));
    }

    #[test]
    fn the_ends_stay_real_unless_told_otherwise() {
        let method: Bwn = serde_json::from_str(r#"{ "except": [], "train": {} }"#).unwrap();
        assert_eq!(method.binary(small()).unwrap().1.len(), 4);
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let x = b.linear("fc1", x, 4);
        b.linear("fc2", x, 3);
        let ends = refusal::<Bwn>(b.finish().unwrap(), serde_json::json!({ "train": {} }));
        assert!(ends.starts_with("bwn: no convolution or fully connected layer is left"), "{ends}");
    }
}
