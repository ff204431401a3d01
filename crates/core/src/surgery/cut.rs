//! Masking and cutting, once it is known which channels of each node stay.

use std::borrow::Cow;

use briquette_runtime::Layer;
use briquette_runtime::layers::Extent;
use burn::tensor::Device;

use crate::coding::Source;
use crate::error::Result;
use crate::net::{Net, Node};
use crate::stored::{Stored, build};

pub(super) fn keep(net: Net, stay: &[Vec<bool>]) -> Result<Net> {
    let device = net.device();
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let input = node.inputs.first().map_or(&[] as &[bool], |&input| &stay[input]);
        if stay[index].iter().chain(input).all(|stays| *stays) { Ok(node) } else { shorten(node, input, &stay[index], &device) }
    });
    let net = Net { nodes: nodes.collect::<Result<_>>()? };
    net.shapes()?;
    Ok(net)
}

pub(super) fn mask(net: Net, stay: &[Vec<bool>]) -> Result<Net> {
    let device = net.device();
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let touched = node.dense().is_some() || matches!(node.op.layer(), Layer::BatchNorm(_) | Layer::Affine(_));
        if !touched || stay[index].iter().all(|stays| *stays) {
            return Ok(node);
        }
        let parameters = node.parameters().into_iter().map(|parameter| silence(parameter, &stay[index])).collect();
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}

fn silence(mut parameter: Stored, stay: &[bool]) -> Stored {
    let per_channel = parameter.base.len() / stay.len();
    match parameter.name {
        "weight" => parameter.mask((0..parameter.base.len()).map(|i| stay[i / per_channel]).collect()),
        "bias" | "gamma" | "beta" | "shift" => {
            parameter.base.iter_mut().zip(stay).filter(|(_, stays)| !**stays).for_each(|(value, _)| *value = 0.0);
        }
        _ => {}
    }
    parameter
}

/// The node's layer for the input channels and output channels that stay.
pub(super) fn layer(node: &Node, input: &[bool], output: &[bool]) -> Layer {
    let layer = node.op.layer();
    layer.kind().with_channels(input, output).unwrap_or(layer)
}

/// Names and shapes of the node's tensors for the input channels and output channels that stay.
pub(super) fn tensor_shapes(node: &Node, input: &[bool], output: &[bool]) -> Vec<(&'static str, Vec<usize>)> {
    let kept = |flags: &[bool]| flags.iter().filter(|stays| **stays).count();
    let shape = |(name, mut shape): (&'static str, Vec<usize>)| {
        if let Some(flags) = stays(node, name, &shape, input, output) {
            shape.iter_mut().zip(flags).for_each(|(size, flags)| *size = kept(flags));
        }
        (name, shape)
    };
    node.op.tensor_shapes().into_iter().map(shape).collect()
}

/// Which rows and columns stay of a tensor `[rows, columns, ...]` of the node, with these channels; none where they are no matter of channels.
fn stays<'a>(node: &Node, tensor: &str, shape: &[usize], input: &'a [bool], output: &'a [bool]) -> Option<[&'a [bool]; 2]> {
    let found = node.op.layer().kind().tensors().into_iter().find(|known| known.name == tensor)?;
    match found.shape {
        // Only the columns of the first group are looked at: the channels of all groups were joined by their place in the group.
        Extent::Free => Some([
            output,
            match shape.get(1) {
                None | Some(1) => &[true],
                Some(columns) => &input[..*columns],
            },
        ]),
        Extent::Outputs => Some([output, &[true]]),
        // A quantizer has one step for all channels.
        Extent::Exactly(_) => None,
    }
}

/// A node for the input channels and output channels that stay.
fn shorten(node: Node, input: &[bool], output: &[bool], device: &Device) -> Result<Node> {
    let layer = layer(&node, input, output);
    let cut = |parameter: Stored| match stays(&node, parameter.name, &parameter.shape, input, output) {
        Some([rows, columns]) => select(parameter, rows, columns),
        None => parameter,
    };
    let parameters = node.parameters().into_iter().map(cut).collect();
    build(node.name, node.inputs, &layer, parameters, device)
}

/// The rows and columns of `[rows, columns, ...]` that stay.
fn select(mut parameter: Stored, rows: &[bool], columns: &[bool]) -> Stored {
    parameter.settle();
    let inner = parameter.base.len() / (rows.len() * columns.len());
    let kept = |flags: &[bool]| flags.iter().enumerate().filter(|(_, stays)| **stays).map(|(i, _)| i).collect::<Vec<_>>();
    let (kept_rows, kept_columns) = (kept(rows), kept(columns));
    let mut indices = Vec::with_capacity(kept_rows.len() * kept_columns.len() * inner);
    for row in &kept_rows {
        for column in &kept_columns {
            let start = (row * columns.len() + column) * inner;
            indices.extend(start..start + inner);
        }
    }
    let mut shape = parameter.shape.clone();
    shape[0] = kept_rows.len();
    if let Some(fan_in) = shape.get_mut(1) {
        *fan_in = kept_columns.len();
    }
    // These codings may be gone afterwards, and the values must not go with them.
    let dissolves = matches!(parameter.coding.source, Source::Shared { .. } | Source::Product { .. });
    let base = if dissolves { Cow::Owned(parameter.values()) } else { Cow::Borrowed(&parameter.base) };
    Stored {
        name: parameter.name,
        shape,
        base: indices.iter().map(|&i| base[i]).collect(),
        coding: parameter.coding.select(&indices, |axis| [&kept_rows[..], &kept_columns[..]].get(axis).copied()),
    }
}
