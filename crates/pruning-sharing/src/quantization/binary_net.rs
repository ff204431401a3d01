//! Binarized neural networks.
//!
//! Weights and activations are -1 and 1 in the forward pass, so that a layer's products are exclusive nors of bits and its sums counts of
//! bits. The sign of the activations stands directly in front of each binary layer, in the place of the rectifier, and passes the gradient
//! where `|x| <= 1`; real weights underneath are clipped to [-1, 1] after each step. The first layer reads the real input. A block is
//! convolution, pool, batch norm, sign; where the network has the pool behind the rectifier the signs come out the same, for the largest
//! of some signs is the sign of the largest.
//!
//! ```
//! use briquette_core::{Layer, layers};
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::binary_net::BinaryNet;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! let x = b.linear("fc1", x, 8);
//! let x = b.batch_norm("norm1", x);
//! let x = b.relu("relu1", x);
//! let x = b.linear("fc2", x, 2);
//! b.batch_norm("norm2", x);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let method: BinaryNet = serde_json::from_str(r#"{ "train": { "epochs": 5 } }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert!(matches!(net.nodes[4].op.layer(), Layer::Quantize(layers::Quantize { levels: 2, .. })));
//! assert!(net.nodes[5].weight().unwrap().values().iter().all(|w| w.abs() == 1.0));
//! ```
//!
//! Courbariaux, Hubara, Soudry, El-Yaniv, Bengio. "Binarized Neural Networks: Training Deep Neural Networks with Weights and Activations
//! Constrained to +1 or -1". arXiv:1602.02830, 2016; Hubara et al., NIPS 2016.
//! Differs from the paper: signs of activations are never drawn; batch norm and Adam are exact instead of shift-based; and the real
//! weights start, and batch norms take their statistics anew where signs are drawn, as in [`binary_connect`](crate::quantization::binary_connect).

use briquette_core::coding::Rounding;
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::Recipe;
use briquette_core::types::Layers;
use serde::Deserialize;

use crate::quantization::binary::{Scale, Settled, binarize_layers, layers, signs, spread, train};
use briquette_parts::yes;

/// Trains weights and activations of -1 and 1.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BinaryNet {
    /// Whether the signs of weights are drawn while training, as in BinaryConnect.
    #[serde(default)]
    stochastic: bool,
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

impl Method for BinaryNet {
    const NAME: &'static str = "binary-net";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, 2016, arXiv:1602.02830";
    const EXAMPLE: &'static str = "train = { epochs = 20, loss = \"square-hinge\" }";
}

impl Pass for BinaryNet {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (net, binary) = self.binary(net)?;
        let net = spread(net, &binary)?;
        let settled = self.stochastic.then(|| Settled { layers: binary.clone(), real: false });
        train(net, &binary, (Scale::One, self.glorot), &self.train, settled.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        Ok(self.binary(net)?.0)
    }
}

impl BinaryNet {
    /// The network with signs, and its binary layers.
    fn binary(&self, net: Net) -> Result<(Net, Vec<usize>)> {
        self.train.check()?;
        let binary = layers(&net, (&self.layers, &self.except), Self::NAME)?;
        let (net, binary) = signs(net, &binary)?;
        let rounding = if self.stochastic { Rounding::Stochastic } else { Rounding::Nearest };
        Ok((binarize_layers(net, &binary, Scale::One, rounding), binary))
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::Window;
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::{Coding, floats};
    use briquette_core::net::{Node, Value};
    use briquette_core::stored::Storage;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_runtime::{Engine, Model};
    use burn::tensor::{Device, Tensor, TensorData};

    use super::*;
    use briquette_handmade::{run, set, settles, small};

    fn settings(more: &serde_json::Value) -> serde_json::Value {
        let mut all = serde_json::json!({ "train": { "epochs": 2, "batch": 10, "lr": 0.01 } });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    }

    #[test]
    fn weights_and_what_they_read_are_one_or_minus_one() {
        let net = run::<BinaryNet>(small(), settings(&serde_json::json!({ "except": ["fc2"] }))).unwrap();
        let binary: Vec<(usize, usize)> =
            net.weighted().filter(|(_, node)| node.name != "fc2").map(|(index, node)| (index, node.inputs[0])).collect();
        for (layer, _) in &binary {
            assert!(net.nodes[*layer].weight().unwrap().values().iter().all(|w| w.abs() == 1.0));
        }
        let images = Tensor::<4>::ones([2, 1, 4, 4], &Device::flex()) * 0.3;
        net.trace(images, |index, value| {
            if binary[1..].iter().any(|(_, input)| *input == index) {
                let values = match value.clone() {
                    Value::Map(x) => floats(x),
                    Value::Vector(x) => floats(x),
                };
                assert!(values.iter().all(|x| x.abs() == 1.0), "{}", net.nodes[index].name);
            }
            value
        });
        let kinds: Vec<&str> = net.nodes.iter().map(|node| node.op.layer().kind().name()).collect();
        assert_eq!(kinds[..6], ["input", "conv2d", "batch-norm", "quantize", "conv2d", "flatten"]);
        assert_eq!(net.nodes[net.nodes.len() - 1].inputs, [net.index("relu3").unwrap()], "fc2 keeps its rectifier");
    }

    #[test]
    fn the_gradient_passes_where_the_activation_is_at_most_one() {
        let net = small();
        let all = layers(&net, (&Layers::default(), &Layers::default()), "it").unwrap();
        let (net, _) = signs(net, &all).unwrap();
        let device = Device::flex().autodiff();
        let sign = net.nodes[net.index("fc1-sign").unwrap()].op.quantize().unwrap();
        let x = Tensor::<2>::from_floats([[-3.0, -0.5, 0.0, 1.0, 1.5]], &device).require_grad();
        let y = sign.forward(x.clone());
        assert_eq!(floats(y.clone().inner()), [-1.0, -1.0, 1.0, 1.0, 1.0]);
        let grads = (y * Tensor::<2>::from_floats([[1.0, 2.0, 3.0, 4.0, 5.0]], &device)).sum().backward();
        assert_eq!(floats(x.grad(&grads).unwrap()), [0.0, 2.0, 3.0, 4.0, 0.0]);
    }

    /// Convolutions and fully connected layers with small integers everywhere: inputs, means, shifts. Scales are 1.
    fn integers() -> Net {
        let mut b = Builder::new([2, 10, 10], 4, &Device::flex());
        let x = b.conv("conv1", b.input(), Conv::new(20, 3).same().no_bias());
        let x = b.batch_norm("norm1", x);
        let x = b.relu("relu1", x);
        let x = b.conv("conv2", x, Conv::new(70, 3).same().no_bias());
        let x = b.max_pool("pool2", x, Window::square(2));
        let x = b.batch_norm("norm2", x);
        let x = b.relu("relu2", x);
        let x = b.conv("conv3", x, Conv::new(9, 3).stride(2).no_bias());
        let x = b.batch_norm("norm3", x);
        let x = b.relu("relu3", x);
        let x = b.flatten("flatten", x);
        let x = b.linear("fc1", x, 33);
        let x = b.batch_norm("norm4", x);
        let x = b.relu("relu4", x);
        b.linear("fc2", x, 7);
        let net = b.finish().unwrap();
        let method: BinaryNet = serde_json::from_value(settings(&serde_json::json!({}))).unwrap();
        let mut net = method.plan(net).unwrap();
        for (i, name) in ["norm1", "norm2", "norm3", "norm4"].into_iter().enumerate() {
            let channels = briquette_handmade::get(&net, name, "gamma").len();
            let ints = |by: usize| (0..channels).map(|c| ((c * by + i) % 7) as f32 - 3.0).collect::<Vec<f32>>();
            // With epsilon 1e-5 the deviation is 1.
            net = set(net, name, "var", &vec![1.0 - 1e-5; channels]);
            net = set(set(net, name, "mean", &ints(3)), name, "beta", &ints(5));
        }
        net
    }

    #[test]
    fn the_engine_on_the_decoded_container_equals_the_float_graph_bit_for_bit() {
        let net = integers();
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let model = Model::from_bytes(&bytes).unwrap();
        let decoded = Net::from_model(&model, &Device::flex()).unwrap();
        let pixels: Vec<f32> = (0..6 * 200_usize).map(|i| ((i * i * 13) % 17) as f32 - 8.0).collect();
        let input = Tensor::<4>::from_data(TensorData::new(pixels.clone(), [6, 2, 10, 10]), &Device::flex());
        let expected = floats(net.forward(input.clone()));
        assert_eq!(floats(decoded.forward(input)), expected);
        for threads in [1, 2] {
            assert_eq!(Engine::new(&model, threads).unwrap().run(&pixels, 6).unwrap(), expected);
        }
        let distinct: std::collections::BTreeSet<i64> = expected.iter().map(|value| *value as i64).collect();
        assert!(distinct.len() > 10 && expected.iter().all(|value| value.fract() == 0.0), "{distinct:?}");
    }

    #[test]
    fn a_container_stores_one_bit_for_each_weight() {
        let arch = Arch::named("mlp").unwrap();
        let net = arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
        let weights: usize = net.weighted().map(|(_, node)| node.weight().unwrap().base.len()).sum();
        let method: BinaryNet = serde_json::from_value(settings(&serde_json::json!({}))).unwrap();
        let net = method.plan(net).unwrap();
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap().len();
        let others: usize = net
            .nodes
            .iter()
            .flat_map(Node::parameters)
            .filter(|stored| stored.coding == Coding::default())
            .map(|stored| 4 * stored.base.len())
            .sum();
        let rest = bytes - weights / 8 - others;
        assert!(rest < 800, "{bytes} bytes, {weights} weights, {others} bytes of other values, {rest} of topology and headers");
    }

    #[test]
    fn what_is_validated_and_handed_on_has_the_statistics_of_its_own_weights() {
        let train = serde_json::json!({ "epochs": 3, "batch": 10, "choose": "last" });
        settles::<BinaryNet>(small(), serde_json::json!({ "stochastic": true, "train": train }));
    }
}
