//! Masking, cutting and copying, once it is known which channels of each node are chosen.

use std::borrow::Cow;

use briquette_runtime::Layer;
use briquette_runtime::layers::Extent;
use burn::tensor::Device;

use crate::coding::Source;
use crate::error::Result;
use crate::net::{Net, Node};
use crate::stored::{Stored, build};

/// Which channels of a node are there afterwards.
#[derive(Debug, Clone, Default)]
pub(super) struct Chosen {
    /// The places that they had, in order.
    pub(super) places: Vec<usize>,
    /// How often each of those that were there is.
    pub(super) times: Vec<usize>,
}

impl Chosen {
    /// Each where it was, so many times in a row.
    pub(super) fn repeated(times: Vec<usize>) -> Self {
        let places = times.iter().enumerate().flat_map(|(place, times)| std::iter::repeat_n(place, *times)).collect();
        Self { places, times }
    }

    /// Those that stay.
    pub(super) fn staying(flags: &[bool]) -> Self {
        Self::repeated(flags.iter().map(|stays| usize::from(*stays)).collect())
    }

    /// Those of these places, of so many.
    pub(super) fn placed(places: Vec<usize>, of: usize) -> Self {
        let mut times = vec![0; of];
        places.iter().for_each(|place| times[*place] += 1);
        Self { places, times }
    }

    fn unchanged(&self) -> bool {
        self.times.iter().all(|times| *times == 1)
    }
}

/// The network with the channels of each node that are chosen.
pub(super) fn choose(net: Net, chosen: &[Chosen]) -> Result<Net> {
    let (device, none) = (net.device(), Chosen::default());
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let input = node.inputs.first().map_or(&none, |&input| &chosen[input]);
        if chosen[index].unchanged() && input.unchanged() { Ok(node) } else { remade(node, input, &chosen[index], &device) }
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

/// The node's layer for the input channels and output channels that are chosen.
pub(super) fn layer(node: &Node, input: &Chosen, output: &Chosen) -> Layer {
    let layer = node.op.layer();
    layer.kind().with_channels(&input.times, &output.times).unwrap_or(layer)
}

/// Names and shapes of the node's tensors for the input channels and output channels that are chosen.
pub(super) fn tensor_shapes(node: &Node, input: &Chosen, output: &Chosen) -> Vec<(&'static str, Vec<usize>)> {
    let shape = |(name, mut shape): (&'static str, Vec<usize>)| {
        if let Some(places) = chosen(node, name, &shape, input, output) {
            shape.iter_mut().zip(places).for_each(|(size, places)| *size = places.len());
        }
        (name, shape)
    };
    node.op.tensor_shapes().into_iter().map(shape).collect()
}

/// Which rows and columns are chosen of a tensor `[rows, columns, ...]` of the node, with these channels; none where they are no matter of channels.
fn chosen(node: &Node, tensor: &str, shape: &[usize], input: &Chosen, output: &Chosen) -> Option<[Vec<usize>; 2]> {
    let found = node.op.layer().kind().tensors().into_iter().find(|known| known.name == tensor)?;
    match found.shape {
        // Only the columns of the first group are looked at: the channels of all groups were joined by their place in the group.
        Extent::Free => Some([
            output.places.clone(),
            match shape.get(1) {
                None => vec![0],
                // A depthwise convolution reads one channel with each filter.
                Some(1) if input.times.len() != 1 => vec![0],
                Some(columns) => input.places.iter().copied().filter(|place| place < columns).collect(),
            },
        ]),
        Extent::Outputs => Some([output.places.clone(), vec![0]]),
        // A quantizer has one step for all channels.
        Extent::Exactly(_) => None,
    }
}

/// A node for the input channels and output channels that are chosen.
fn remade(node: Node, input: &Chosen, output: &Chosen, device: &Device) -> Result<Node> {
    let layer = layer(&node, input, output);
    let select = |parameter: Stored| match chosen(&node, parameter.name, &parameter.shape, input, output) {
        Some([rows, columns]) => select(parameter, &rows, &columns),
        None => parameter,
    };
    let parameters = node.parameters().into_iter().map(select).collect();
    build(node.name, node.inputs, &layer, parameters, device)
}

/// These rows and columns of `[rows, columns, ...]`.
fn select(mut parameter: Stored, rows: &[usize], columns: &[usize]) -> Stored {
    parameter.settle();
    let mut shape = parameter.shape.clone();
    let width = shape.get(1).copied().unwrap_or(1);
    let inner: usize = shape.iter().skip(2).product();
    let mut indices = Vec::with_capacity(rows.len() * columns.len() * inner);
    for row in rows {
        for column in columns {
            let start = (row * width + column) * inner;
            indices.extend(start..start + inner);
        }
    }
    shape[0] = rows.len();
    if let Some(fan_in) = shape.get_mut(1) {
        *fan_in = columns.len();
    }
    // These codings may be gone afterwards, and the values must not go with them.
    let dissolves = matches!(parameter.coding.source, Source::Shared { .. } | Source::Product { .. });
    let base = if dissolves { Cow::Owned(parameter.values()) } else { Cow::Borrowed(&parameter.base) };
    Stored {
        name: parameter.name,
        shape,
        base: indices.iter().map(|&i| base[i]).collect(),
        coding: parameter.coding.select(&indices, |axis| [rows, columns].get(axis).copied()),
    }
}
