//! What a network costs: parameters, non-zeros and multiply-accumulates, layer by layer.

use briquette_runtime::Model;
use burn::module::Param;
use burn::tensor::Device;

use crate::error::Result;
use crate::net::{Net, Op};

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
        let mut layers = Vec::new();
        for (index, node) in net.nodes.iter().enumerate() {
            let structure = node.op.structure().map(|structure| vec![structure.count()]);
            let shape = structure.or_else(|| node.op.weight_shape()).unwrap_or_default();
            let weights: usize = if shape.is_empty() { 0 } else { shape.iter().product() };
            let layer = node.op.layer();
            let (params, macs) = match &node.op {
                Op::Conv2d(_) | Op::Linear(_) => {
                    let bias = node.dense().and_then(|dense| dense.bias);
                    (weights + vector(bias), layer.macs(Some(&shape), &shapes[index]))
                }
                Op::BatchNorm(norm) => (vector(Some(&norm.gamma)) + vector(Some(&norm.beta)), 0),
                Op::Tensors(tensors) if node.op.structure().is_some() => {
                    let bias = tensors.get("bias").map_or(0, |bias| bias.shape()[0]);
                    (weights + bias, layer.macs(None, &shapes[index]))
                }
                Op::Tensors(_) | Op::Fixed(_) => continue,
            };
            layers.push(LayerCost {
                node: index,
                name: node.name.clone(),
                kind: layer.kind().name(),
                shape,
                params,
                weights,
                macs,
            });
        }
        Ok(Self { layers })
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

    #[cfg(test)]
    pub(crate) fn of_zoo(name: &str) -> Self {
        let arch = crate::zoo::Arch::named(name).expect("a name of the zoo");
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).expect("the zoo builds");
        Self::of(&net).expect("the zoo holds together")
    }
}

fn vector(param: Option<&Param<burn::tensor::Tensor<1>>>) -> usize {
    param.map_or(0, |param| param.lazy_shape()[0])
}
