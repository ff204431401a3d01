//! What a network costs: parameters, non-zeros and multiply-accumulates, layer by layer.

use briquette_runtime::{Layer, Model};
use burn::tensor::Device;

use crate::error::Result;
use crate::net::{Net, Node, Op};

/// The cost of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// One entry per node that carries parameters, in order.
    pub layers: Vec<LayerCost>,
}

/// The cost of one node.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerCost {
    /// Index of the node.
    pub node: usize,
    /// The node's name.
    pub name: String,
    /// The operation's name.
    pub kind: &'static str,
    /// Shape of the weight, `[out, in / groups, kh, kw]` or `[out, in]`; empty for normalization; the number of parameters for a
    /// structural matrix.
    pub shape: Vec<usize>,
    /// Trainable values, biases included, running statistics not.
    pub params: usize,
    /// Values of the weight alone.
    pub weights: usize,
    /// Multiply-accumulates of one sample, masked weights included.
    pub macs: u64,
}

impl Cost {
    /// The cost of a container's network.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn of_model(model: &Model) -> Result<Self> {
        Self::of(&Net::assembled(model, &Device::flex())?)
    }

    /// Counts from shapes alone; no weight is read.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn of(net: &Net) -> Result<Self> {
        let shapes = net.shapes()?;
        let layers = net.nodes.iter().zip(&shapes).enumerate();
        let layers = layers.filter_map(|(index, (node, shape))| {
            LayerCost::of(index, node, &node.op.layer(), node.op.weight_shape().as_deref(), shape)
        });
        Ok(Self { layers: layers.collect() })
    }

    /// Trainable values.
    pub fn params(&self) -> usize {
        self.layers.iter().map(|layer| layer.params).sum()
    }

    /// Values of convolutions and fully connected layers, without biases and normalization: what papers count as weights.
    pub fn weights(&self) -> usize {
        self.layers.iter().map(|layer| layer.weights).sum()
    }

    /// Multiply-accumulates of one sample.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|layer| layer.macs).sum()
    }

    /// Multiply-accumulates of a sample on the mean, where `share` says of a node by its name which part of all samples reached it.
    pub fn expected_macs(&self, share: impl Fn(&str) -> f64) -> f64 {
        self.layers.iter().map(|layer| layer.macs as f64 * share(&layer.name)).sum()
    }

    #[cfg(test)]
    pub(crate) fn of_zoo(name: &str) -> Self {
        let arch = crate::zoo::Arch::named(name).expect("a name of the zoo");
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).expect("the zoo builds");
        Self::of(&net).expect("the zoo holds together")
    }
}

impl LayerCost {
    /// The cost of a node, with this layer, weight and output in the place of its own; none where it has no parameters.
    pub(crate) fn of(index: usize, node: &Node, layer: &Layer, weight: Option<&[usize]>, output: &[usize]) -> Option<Self> {
        // Each of these vectors has a value for each channel of the output.
        let (shape, vectors) = match &node.op {
            Op::Conv2d(_) | Op::Linear(_) => (weight?.to_vec(), usize::from(node.dense()?.bias.is_some())),
            Op::Tensors(tensors) => (vec![node.op.structure()?.count()], usize::from(tensors.get("bias").is_some())),
            Op::BatchNorm(_) => (Vec::new(), 2),
            Op::Fixed(_) => return None,
        };
        let weights = if shape.is_empty() { 0 } else { shape.iter().product() };
        Some(Self {
            node: index,
            name: node.name.clone(),
            kind: layer.kind().name(),
            shape,
            params: weights + vectors * output[0],
            weights,
            macs: layer.macs(weight, output),
        })
    }
}
