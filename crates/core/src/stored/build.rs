//! Nodes from what they compute and their parameters.

use std::collections::BTreeMap;

use briquette_runtime::{Layer, layers};
use burn::module::RunningState;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, BatchNormConfig, Linear};
use burn::tensor::Device;

use super::{Stored, transposed};
use crate::error::{Error, Result};
use crate::forward::Computed;
use crate::net::{Node, Op, explicit};
use crate::tensors::Tensors;

impl Node {
    /// The same node with other parameters, in the layout of [`Node::weight`].
    ///
    /// # Errors
    /// When a parameter is missing or has the wrong rank.
    pub fn with(self, parameters: Vec<Stored>, device: &Device) -> Result<Self> {
        let layer = self.op.layer();
        self.replaced(&layer, parameters, device)
    }

    /// Another layer under the same name and between the same neighbours; parameters as [`Node::with`] takes them.
    ///
    /// # Errors
    /// When a parameter is missing or has the wrong rank.
    pub fn replaced(self, layer: &Layer, parameters: Vec<Stored>, device: &Device) -> Result<Self> {
        build(self.name, self.inputs, layer, parameters, device)
    }
}

impl Op {
    /// The operation of a new node: a layer with parameters as [`Node::with`] takes them.
    ///
    /// # Errors
    /// When a parameter is missing or has the wrong rank; errors name the node.
    pub fn built(name: &str, layer: &Layer, parameters: Vec<Stored>, device: &Device) -> Result<Self> {
        Ok(build(name.into(), Vec::new(), layer, parameters, device)?.op)
    }
}

/// A node from its description and its parameters in the container's layout.
pub(crate) fn build(name: String, inputs: Vec<usize>, layer: &Layer, parameters: Vec<Stored>, device: &Device) -> Result<Node> {
    let turn = |stored: Stored| {
        if *layer == Layer::Linear(layers::Linear) && stored.name == "weight" { transposed(stored) } else { stored }
    };
    assemble(name, inputs, layer, parameters.into_iter().map(turn).collect(), device)
}

/// A node from its description and its parameters in Burn's layout.
pub(super) fn assemble(
    name: String,
    inputs: Vec<usize>,
    layer: &Layer,
    parameters: Vec<Stored>,
    device: &Device,
) -> Result<Node> {
    layer.check().map_err(|source| Error::Shape { node: name.clone(), source })?;
    let mut parameters: BTreeMap<&str, Stored> = parameters.into_iter().map(|stored| (stored.name, stored)).collect();
    let mut need = |key: &str| parameters.remove(key).ok_or_else(|| Error::node(&name, format!("has no tensor '{key}'")));
    let op = if let Layer::Conv2d(layers::Conv2d { stride, padding, dilation, groups }) = layer {
        let weight = need("weight")?;
        let kernel_size = match weight.shape[..] {
            [_, _, kh, kw] => [kh, kw],
            _ => return Err(Error::node(&name, format!("weight must have 4 dimensions, has shape {:?}", weight.shape))),
        };
        Op::Conv2d(Conv2d {
            weight: weight.param(device)?,
            bias: need("bias").ok().map(|bias| bias.param(device)).transpose()?,
            stride: *stride,
            kernel_size,
            dilation: *dilation,
            groups: *groups,
            padding: explicit(*padding),
        })
    } else if matches!(layer, Layer::Linear(_)) {
        Op::Linear(Linear {
            weight: need("weight")?.param(device)?,
            bias: need("bias").ok().map(|bias| bias.param(device)).transpose()?,
        })
    } else if let Layer::BatchNorm(layers::BatchNorm { epsilon }) = layer {
        let gamma = need("gamma")?;
        let norm: BatchNorm = BatchNormConfig::new(gamma.base.len().max(1)).with_epsilon(*epsilon).init(device);
        let state = |stored: Stored| Ok::<_, Error>(RunningState::new(stored.param::<1>(device)?.val().set_require_grad(false)));
        Op::BatchNorm(BatchNorm {
            gamma: gamma.param(device)?,
            beta: need("beta")?.param(device)?,
            running_mean: state(need("mean")?)?,
            running_var: state(need("var")?)?,
            ..norm
        })
    } else {
        match Computed::of(layer) {
            Computed::Tensors(computed) => {
                let mut stored = Vec::new();
                for tensor in layer.kind().tensors() {
                    match need(tensor.name) {
                        Ok(found) => stored.push(found),
                        Err(error) if tensor.required => return Err(error),
                        Err(_) => {}
                    }
                }
                Op::Tensors(Tensors::new(layer, stored, computed.trains(), device)?)
            }
            Computed::Fixed(_) | Computed::Elsewhere => Op::fixed(layer.clone()),
        }
    };
    Ok(Node { op, name, inputs })
}
