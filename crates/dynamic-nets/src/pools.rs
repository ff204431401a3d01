//! Which pooling layers a method replaces.

use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::types::Layers;
use briquette_core::{Layer, Window};

/// What a max or mean pool of a network looks at.
pub(crate) fn window(layer: &Layer) -> Option<Window> {
    if let Layer::MaxPool(pool) = layer {
        Some(pool.window)
    } else if let Layer::AvgPool(pool) = layer {
        Some(pool.window)
    } else {
        None
    }
}

/// The names of the nodes that `layers` names, or without it of all pools that step by `stride`, of more than one pixel, in both directions.
///
/// # Errors
/// A selector that fits no node; where there is no pool.
pub(crate) fn chosen(net: &Net, layers: &Layers, stride: impl Fn(usize) -> bool) -> Result<Vec<String>> {
    let steps =
        |layer: &Layer| window(layer).is_some_and(|window| window.stride[0] == window.stride[1] && stride(window.stride[0]));
    let all = || net.nodes.iter().filter(|node| steps(&node.op.layer())).map(|node| node.name.clone()).collect::<Vec<_>>();
    let names = match layers.given() {
        true => layers.nodes(net)?.into_iter().map(|index| net.nodes[index].name.clone()).collect(),
        false => all(),
    };
    match names.is_empty() {
        true => Err(Error::Invalid("the network has no pool that could be replaced; name layers in `layers`".into())),
        false => Ok(names),
    }
}

/// Whether what stands in a layer's place has its shape.
///
/// # Errors
/// Names the layer, and both shapes.
pub(crate) fn same_shape(name: &str, before: &[usize], after: &[usize]) -> Result<()> {
    match before == after {
        true => Ok(()),
        false => Err(Error::node(name, format!("gives {before:?}, and would give {after:?}; leave it out"))),
    }
}
