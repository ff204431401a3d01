//! Which layers a method rewrites, and what it refuses of them.

use std::collections::BTreeMap;

use briquette_core::coding::Coding;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::stored::Stored;
use briquette_core::types::Layers;
use briquette_parts::refuse;
use serde::Deserialize;

/// Where the values of rewritten layers begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Near the weights that they replace, in the sense of least squares.
    #[default]
    Fit,
    /// At random, weights from N(0, 2 / fan-in) (He, Zhang, Ren, Sun, ICCV 2015), for training from scratch.
    Random,
}

/// What `fit` says of each layer that `layers` and `except` choose, by the layer's name. Layers of which it says why they do not fit, and
/// those of a coded weight, are left alone, unless `layers` has their very names.
///
/// # Errors
/// Names a layer that was named and does not fit; without any that fits, the first of all.
pub(crate) fn chosen<T>(
    net: &Net,
    [layers, except]: [&Layers; 2],
    fit: impl Fn(usize) -> std::result::Result<T, String>,
) -> Result<BTreeMap<String, T>> {
    let (mut fitting, mut first) = (BTreeMap::new(), None);
    for index in layers.without(except, net)? {
        let node = &net.nodes[index];
        let name = &node.name;
        match fit(index).and_then(|found| uncoded(node).map(|()| found)) {
            Ok(found) => drop(fitting.insert(name.clone(), found)),
            Err(why) => {
                layers.all_done(net, |named| named != index, &why)?;
                first.get_or_insert(Error::node(name, why));
            }
        }
    }
    match first {
        Some(error) if fitting.is_empty() => Err(error),
        _ => Ok(fitting),
    }
}

/// Why a layer keeps its form: an earlier pass pruned, quantized or shared its weight.
pub(crate) fn uncoded(node: &Node) -> std::result::Result<(), String> {
    match node.weight() {
        Some(weight) if weight.coding != Coding::default() => {
            Err("is pruned, quantized or shares its weights, which compact filters cannot keep; put their pass before those"
                .into())
        }
        _ => Ok(()),
    }
}

/// The parameters of a layer.
///
/// # Errors
/// A weight that is not finite.
pub(crate) fn finite(node: &Node) -> Result<Vec<Stored>> {
    let parameters = node.parameters();
    for weight in parameters.iter().filter(|stored| stored.name == "weight") {
        refuse::not_finite(&node.name, &weight.base)?;
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use briquette_core::zoo::Arch;
    use briquette_handmade::{get, refusal, run, small};
    use burn::tensor::Device;
    use serde_json::json;

    use super::proof::pruned;
    use crate::crelu::Crelu;
    use crate::cyclic::Cyclic;
    use crate::depthwise_separable::DepthwiseSeparable;
    use crate::doubly_conv::DoublyConv;
    use crate::multi_bias::MultiBias;

    #[test]
    fn coded_layers_are_left_alone_unless_they_are_named() {
        let arch = Arch::named("lenet5-norm").unwrap();
        let net = || pruned(arch.build(&arch.wanted(), &Device::flex()).unwrap(), "conv1");
        let weight = get(&net(), "conv1", "weight");
        let rewritten = [
            run::<MultiBias>(net(), json!({ "init": "random" })).unwrap(),
            run::<DepthwiseSeparable>(net(), json!({ "init": "random" })).unwrap(),
            run::<DoublyConv>(net(), json!({ "meta": 6, "pool": "all", "init": "random" })).unwrap(),
            run::<Cyclic>(net(), json!({ "exact": false })).unwrap(),
        ];
        for (net, of) in rewritten.iter().zip(["multi-bias", "depthwise-separable", "doubly-conv", "cyclic"]) {
            assert_eq!(get(net, "conv1", "weight"), weight, "{of}");
        }
        let named = || pruned(small(), "conv1");
        for refused in [
            refusal::<Crelu>(named(), json!({ "layers": ["conv1"] })),
            refusal::<DepthwiseSeparable>(named(), json!({ "layers": ["conv1"] })),
            refusal::<DoublyConv>(named(), json!({ "layers": ["conv1"], "meta": 3 })),
            refusal::<Cyclic>(named(), json!({ "layers": ["conv1"] })),
        ] {
            assert_eq!(
                refused,
                "node 'conv1': is pruned, quantized or shares its weights, which compact filters cannot keep; put their pass before those"
            );
        }
    }
}

#[cfg(test)]
pub(crate) mod proof {
    use briquette_core::coding::floats;
    use briquette_core::context::Silent;
    use briquette_core::stored::Storage;
    use briquette_core::training::probe;
    use briquette_runtime::{Engine, Model};
    use burn::tensor::Device;

    use super::*;

    /// Both networks have the same outputs for all images of `briquette_handmade`, and so has the engine from the first one's container.
    pub(crate) fn agree(net: &Net, other: &Net) {
        let near =
            |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()));
        let (data, mut silent) = (briquette_handmade::images(), Silent);
        let mut cx = briquette_handmade::context(&data, &mut silent);
        probe(&mut cx, "all", (1, data.train.len()), &Device::flex(), |images, _| {
            let (found, expected) = (floats(net.forward(images.clone())), floats(other.forward(images.clone())));
            assert!(near(&found, &expected), "{found:?} and {expected:?}");
            let bytes = net.to_model(Storage::default())?.to_bytes()?;
            let engine = Engine::new(&Model::from_bytes(&bytes)?, 1)?.run(&floats(images), data.train.len())?;
            assert!(near(&engine, &expected), "{engine:?} and {expected:?}");
            Ok(())
        })
        .unwrap();
    }

    /// The network with the first weight of a layer masked.
    pub(crate) fn pruned(mut net: Net, layer: &str) -> Net {
        let (index, device) = (net.index(layer).unwrap(), net.device());
        let node = net.nodes.remove(index);
        let mut parameters = node.parameters();
        let stays = (0..parameters[0].base.len()).map(|weight| weight > 0).collect();
        parameters[0].mask(stays);
        net.nodes.insert(index, node.with(parameters, &device).unwrap());
        net
    }
}
