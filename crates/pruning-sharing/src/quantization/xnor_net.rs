//! XNOR-Net.
//!
//! Weights are binary with a scale for each filter, as in [`bwn`](crate::quantization::bwn), and so are the activations that they read: a convolution of
//! the input `I` with a filter `W` becomes `(sign(I) * sign(W)) . K alpha`. `K` says how large the activations are that a window sees: it is
//! the mean of `|I|` over the channels, convolved with a box of the window's size, stride and padding whose entries are `1 / (w h)`; of a
//! fully connected layer, the mean of `|I|` over the features. The sign stands directly in front of the convolution, in the place of the
//! rectifier, so that a block is batch norm, sign, convolution, pool. The first and the last layer stay real.
//!
//! ```
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::pass::Pass;
//! use briquette_pruning_sharing::quantization::xnor_net::XnorNet;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.conv("conv1", b.input(), Conv::new(4, 3).no_bias());
//! let x = b.batch_norm("norm1", x);
//! let x = b.relu("relu1", x);
//! let x = b.conv("conv2", x, Conv::new(4, 3).no_bias());
//! let x = b.global_avg_pool("pool", x);
//! b.linear("fc", x, 2);
//!
//! let method: XnorNet = serde_json::from_str(r#"{ "train": { "epochs": 5 } }"#).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! let names: Vec<&str> = net.nodes[3..8].iter().map(|node| node.name.as_str()).collect();
//! assert_eq!(names, ["conv2-sign", "conv2", "conv2-mean", "conv2-box", "conv2-scaled"]);
//! ```
//!
//! Rastegari, Ordonez, Redmon, Farhadi. "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks". ECCV 2016.
//! arXiv:1603.05279.
//! Differs from the paper: as `bwn` does; gradients pass through `K` too; a bias, if there is one, is scaled as well; and batch norms stay
//! where the network has them.

use briquette_core::coding::Rounding;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::Recipe;
use briquette_core::types::Layers;
use briquette_core::{Layer, Window};
use briquette_runtime::layers;
use serde::Deserialize;

use crate::quantization::binary::{Scale, binarize_layers, inner_layers, signs, train};
use briquette_parts::yes;

/// Trains binary weights and activations, both with scales.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct XnorNet {
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Whether outputs are scaled by how large the activations are; without, batch norms alone restore the scale.
    #[serde(default = "yes")]
    k_map: bool,
    /// The training.
    train: Recipe,
}

impl Method for XnorNet {
    const NAME: &'static str = "xnor-net";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Rastegari, Ordonez, Redmon, Farhadi, ECCV 2016, arXiv:1603.05279";
    const EXAMPLE: &'static str = "k-map = true\ntrain = { epochs = 20 }";
}

impl Pass for XnorNet {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (net, binary) = self.binary(net)?;
        train(net, &binary, (Scale::PerFilter, false), &self.train, None, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        Ok(self.binary(net)?.0)
    }
}

impl XnorNet {
    /// The network with binary weights, signs and scales, and its binary layers.
    fn binary(&self, net: Net) -> Result<(Net, Vec<usize>)> {
        self.train.check()?;
        let binary = inner_layers(&net, (&self.layers, &self.except), Self::NAME)?;
        let (mut net, mut binary) = signs(net, &binary)?;
        if self.k_map {
            let names: Vec<String> = binary.iter().map(|layer| net.nodes[*layer].name.clone()).collect();
            for name in &names {
                let layer = net.index(name)?;
                let sign = net.nodes[layer].inputs[0];
                // A layer that reads the network's input has no sign.
                if let (Some(_), Some(&real)) = (net.nodes[sign].op.quantize(), net.nodes[sign].inputs.first()) {
                    net = scale(net, layer, real)?;
                }
            }
            binary = names.iter().map(|name| net.index(name)).collect::<Result<_>>()?;
        }
        Ok((binarize_layers(net, &binary, Scale::PerFilter, Rounding::Nearest), binary))
    }
}

/// Multiplies a layer's output by its map `K` of the activations `real`, whose signs it reads.
fn scale(net: Net, layer: usize, real: usize) -> Result<Net> {
    let name = net.nodes[layer].name.clone();
    let mut factor = vec![(format!("{name}-mean"), Layer::MeanMagnitude(layers::MeanMagnitude), real)];
    match &net.nodes[layer].op {
        Op::Conv2d(conv) => {
            if conv.groups != 1 || conv.dilation != [1, 1] {
                let detail = "has groups or a dilation, for which there is no map K; set `k-map = false` or name it in `except`";
                return Err(Error::node(&name, detail));
            }
            let Layer::Conv2d(layers::Conv2d { stride, padding, .. }) = net.nodes[layer].op.layer() else {
                unreachable!("a convolution's layer is a convolution")
            };
            let window = Window { padding, ..Window::new(conv.kernel_size, stride) };
            if window != Window::square(1) {
                factor.push((format!("{name}-box"), Layer::AvgPool(layers::AvgPool { window, count_padding: true }), layer + 1));
            }
        }
        Op::Linear(_) | Op::BatchNorm(_) | Op::Tensors(_) | Op::Fixed(_) => {}
    }
    let product = layer + factor.len() + 1;
    let maps = factor.into_iter().map(|(name, layer, input)| Node { op: Op::fixed(layer), name, inputs: vec![input] });
    let scaled = Node { op: Op::fixed(layers::Multiply), name: format!("{name}-scaled"), inputs: vec![layer, product - 1] };
    net.insert(layer + 1, maps.chain([scaled]).collect(), |_, input| (input == layer).then_some(product))
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::floats;
    use briquette_core::net::Value;
    use briquette_core::stored::Storage;
    use briquette_runtime::{Engine, Model};
    use burn::tensor::{Device, Tensor};

    use super::*;
    use briquette_handmade::{images, outputs, refusal, run, small};

    fn method(settings: serde_json::Value) -> XnorNet {
        serde_json::from_value(settings).unwrap()
    }

    /// A network with a strided and padded binary convolution.
    fn strided() -> Net {
        let mut b = Builder::new([2, 7, 6], 5, &Device::flex());
        let x = b.conv("conv1", b.input(), Conv::new(3, 3).same());
        let x = b.relu("relu1", x);
        let x = b.conv("conv2", x, Conv::new(4, 3).same().stride(2).no_bias());
        let x = b.flatten("flatten", x);
        let x = b.linear("fc1", x, 5);
        let x = b.relu("relu2", x);
        b.linear("fc2", x, 3);
        b.finish().unwrap()
    }

    #[test]
    fn outputs_are_scaled_by_the_mean_magnitude_that_the_window_sees() {
        let net = method(serde_json::json!({ "train": {} })).plan(strided()).unwrap();
        let input = Tensor::<4>::random([1, 2, 7, 6], burn::tensor::Distribution::Normal(0.0, 1.0), &Device::flex());
        let mut seen = std::collections::BTreeMap::new();
        net.trace(input, |index, value| {
            let values = match value.clone() {
                Value::Map(x) => floats(x),
                Value::Vector(x) => floats(x),
            };
            seen.insert(net.nodes[index].name.clone(), values);
            value
        });
        let (real, plain, scaled) = (&seen["conv1"], &seen["conv2"], &seen["conv2-scaled"]);
        assert!(!seen.contains_key("relu1") && real.iter().any(|x| *x < 0.0));
        assert_eq!(plain.len(), 4 * 4 * 3);
        for (i, (plain, scaled)) in plain.iter().zip(scaled).enumerate() {
            let (row, column) = (i / 3 % 4, i % 3);
            let mut k = 0.0;
            for (dy, dx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
                let (y, x) = ((2 * row + dy).wrapping_sub(1), (2 * column + dx).wrapping_sub(1));
                if y < 7 && x < 6 {
                    k += (0..3).map(|c| real[(c * 7 + y) * 6 + x].abs()).sum::<f32>() / 3.0 / 9.0;
                }
            }
            assert!((scaled - plain * k).abs() < 1e-4 * (1.0 + scaled.abs()), "{i}: {scaled} and {plain} * {k}");
        }
        let mean = seen["flatten"].iter().map(|x| x.abs()).sum::<f32>() / 48.0;
        assert!(seen["fc1"].iter().zip(&seen["fc1-scaled"]).all(|(a, b)| (a * mean - b).abs() < 1e-4 * (1.0 + b.abs())));
    }

    #[test]
    fn the_trained_network_survives_its_container_and_the_engine_agrees() {
        for k_map in [true, false] {
            let train = serde_json::json!({ "epochs": 3, "batch": 10, "lr": 0.02 });
            let net = run::<XnorNet>(small(), serde_json::json!({ "k-map": k_map, "train": train })).unwrap();
            assert_eq!(
                net.nodes.iter().filter(|node| matches!(node.op.layer(), Layer::Multiply(_))).count(),
                2 * usize::from(k_map)
            );
            let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
            let model = Model::from_bytes(&bytes).unwrap();
            let expected = outputs(&net);
            assert_eq!(outputs(&Net::from_model(&model, &Device::flex()).unwrap()), expected);
            let order: Vec<f32> = {
                let (data, mut silent) = (images(), briquette_core::context::Silent);
                let mut pixels = Vec::new();
                let mut cx = briquette_handmade::context(&data, &mut silent);
                briquette_core::training::probe(&mut cx, "all", (1, 40), &Device::flex(), |images, _| {
                    pixels = floats(images);
                    Ok(())
                })
                .unwrap();
                pixels
            };
            let engine = Engine::new(&model, 1).unwrap().run(&order, 40).unwrap();
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3 * (1.0 + b.abs());
            // A sum near 0 may take another sign where a batch norm is folded.
            let agreeing = engine.chunks(3).zip(expected.chunks(3)).filter(|(a, b)| a.iter().zip(*b).all(near)).count();
            assert!(agreeing >= 38, "{agreeing} of 40");
        }
    }

    #[test]
    fn grouped_convolutions_have_no_map() {
        let mut b = Builder::new([2, 6, 6], 5, &Device::flex());
        let x = b.conv("conv1", b.input(), Conv::new(4, 3));
        let x = b.conv("conv2", x, Conv::new(4, 3).groups(2));
        let x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        let net = b.finish().unwrap();
        let refused = refusal::<XnorNet>(net.deep_clone(), serde_json::json!({ "train": {} }));
        assert!(refused.starts_with("node 'conv2': has groups or a dilation"), "{refused}");
        assert!(method(serde_json::json!({ "k-map": false, "train": {} })).plan(net).is_ok());
    }
}
