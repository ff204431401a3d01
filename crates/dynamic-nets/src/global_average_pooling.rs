//! Means of maps in the place of fully connected layers.
//!
//! All that follows the last flattening, fully connected layers and what stands between them, becomes a convolution by one pixel with a filter for
//! each class, and the mean of each of its maps, which is the class's logit. Its weights begin at random.
//!
//! Lin, Chen, Yan. "Network in Network". ICLR 2014. arXiv:1312.4400.
//! Differs from the paper: the convolution has no rectifier behind it, which would keep logits from being negative, and the mean is over a network
//! that was made for fully connected layers, so that it has to be trained anew.
//!
//! ```
//! use briquette_core::{cost::Cost, pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::global_average_pooling::GlobalAveragePooling;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("lenet5").unwrap();
//! let method: GlobalAveragePooling = serde_json::from_str("{}").unwrap();
//! let net = method.plan(arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 20 * 25 + 50 * 20 * 25 + 10 * 50);
//! ```

use briquette_core::Layer;
use briquette_core::builder::{Builder, Conv};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Recipe, tune};
use serde::Deserialize;

/// Replaces fully connected layers at the end by means of maps.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GlobalAveragePooling {
    /// Training afterwards.
    tune: Option<Recipe>,
}

impl Method for GlobalAveragePooling {
    const NAME: &'static str = "global-average-pooling";
    const FAMILY: &'static str = "pooling";
    const PAPER: &'static str = "Lin, Chen, Yan, ICLR 2014, arXiv:1312.4400";
    const EXAMPLE: &'static str = "tune = { epochs = 10 }";
}

impl Pass for GlobalAveragePooling {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        net.finite()?;
        let net = self.pooled(net, cx.seed)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.pooled(net, 0)
    }
}

impl GlobalAveragePooling {
    fn pooled(&self, mut net: Net, seed: u64) -> Result<Net> {
        self.tune.iter().try_for_each(Recipe::check)?;
        let (shapes, device) = (net.shapes()?, net.device());
        let flatten = net.nodes.iter().rposition(|node| matches!(node.op.layer(), Layer::Flatten(_)));
        let (Some(flatten), last) = (flatten, net.nodes.len() - 1) else {
            return Err(Error::Invalid(
                "the network flattens no maps for fully connected layers, which means could replace".into(),
            ));
        };
        let from = net.nodes[flatten].inputs[0];
        if net.nodes[..flatten].iter().all(|node| node.dense().is_none()) {
            return Err(Error::node(
                &net.nodes[flatten].name,
                "flattens the images themselves, of whose means no class can be told",
            ));
        }
        let (&[channels, height, width], classes) = (&shapes[from][..], shapes[last][0]) else {
            return Err(Error::node(&net.nodes[flatten].name, "flattens a vector; there are no maps whose means could be taken"));
        };
        if let Some(read) = (flatten + 1..=last).find(|index| net.nodes[*index].inputs != [index - 1]) {
            return Err(Error::node(
                &net.nodes[read].name,
                "reads something else than the layer before; only a chain can be replaced",
            ));
        }
        if net.nodes[flatten..].iter().all(|node| node.dense().is_none()) {
            return Err(Error::node(&net.nodes[flatten].name, "has no fully connected layer behind it"));
        }
        let name = net.nodes[last].name.clone();
        let mut b = Builder::new([channels, height, width], seed, &device);
        let x = b.conv(&format!("{name}.conv"), b.input(), Conv::new(classes, 1));
        b.global_avg_pool(&name, x);
        let head = b.finish()?.nodes.into_iter().skip(1);
        net.nodes.truncate(flatten);
        net.nodes.extend(head.zip([from, flatten]).map(|(node, read)| Node { inputs: vec![read], ..node }));
        net.shapes()?;
        Ok(net)
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_handmade::{get, refusal, run, set, small};
    use burn::tensor::{Device, Tensor, TensorData};
    use serde_json::json;

    use super::*;

    #[test]
    fn logits_are_means_of_the_maps_of_a_convolution() {
        let net = run::<GlobalAveragePooling>(small(), json!({})).unwrap();
        let names: Vec<&str> = net.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["input", "conv1", "norm1", "relu1", "conv2", "relu2", "fc2.conv", "fc2"]);
        let net = set(
            set(net, "fc2.conv", "weight", &[1.0, 2.0, -1.0, 0.0, 1.0, 0.0, 0.5, 0.0, 0.0]),
            "fc2.conv",
            "bias",
            &[0.1, 0.2, 0.3],
        );
        let x = || {
            Tensor::<4>::from_data(
                TensorData::new((0..16).map(|i| i as f32 / 8.0 - 1.0).collect::<Vec<_>>(), [1, 1, 4, 4]),
                &Device::flex(),
            )
        };
        let mut means = Vec::new();
        let relu = net.index("relu2").unwrap();
        let logits = floats(
            net.trace(x(), |index, value| {
                if index == relu {
                    means = floats(value.clone().map()).chunks(4).map(|map| map.iter().sum::<f32>() / 4.0).collect();
                }
                value
            })
            .vector(),
        );
        let expected = [means[0] + 2.0 * means[1] - means[2] + 0.1, means[1] + 0.2, 0.5 * means[0] + 0.3];
        assert!(logits.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{logits:?} {expected:?}");
    }

    #[test]
    fn the_new_layer_learns() {
        let [start, trained] = [json!({}), json!({ "tune": { "epochs": 1, "batch": 20, "lr": 0.01 } })]
            .map(|settings| get(&run::<GlobalAveragePooling>(small(), settings).unwrap(), "fc2.conv", "weight"));
        assert!(start != trained);
    }

    #[test]
    fn networks_without_a_flattened_map_are_refused() {
        let none = run::<GlobalAveragePooling>(small(), json!({})).unwrap();
        assert!(refusal::<GlobalAveragePooling>(none, json!({})).starts_with("the network flattens no maps"));
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc", x, 3);
        let images = refusal::<GlobalAveragePooling>(b.finish().unwrap(), json!({}));
        assert_eq!(images, "node 'flatten': flattens the images themselves, of whose means no class can be told");
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(2, 3));
        let x = b.global_avg_pool("mean", x);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        let flat = refusal::<GlobalAveragePooling>(b.finish().unwrap(), json!({}));
        assert_eq!(flat, "node 'flatten': flattens a vector; there are no maps whose means could be taken");
    }
}
