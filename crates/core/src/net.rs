//! The network: a list of nodes in order of execution that is itself a Burn module.
//!
//! Node 0 is the input, the last node is the output, and a node reads only from nodes before it. Optimizers, autodiff and device
//! moves come from Burn; surgery, taps, cost, storing and printing of *changed structure* come from the graph.

use std::sync::Arc;

use briquette_runtime::{Layer, Structure, activations};
use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use crate::error::{Error, Result};
use crate::quantize::Quantize;

/// A network, from its input to its logits.
#[derive(Module, Debug)]
pub struct Net {
    /// The nodes in order of execution.
    pub nodes: Vec<Node>,
}

/// One operation, its name and where its inputs come from.
#[derive(Module, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Unique name, as configs and reports use it.
    #[module(skip)]
    pub name: String,
    /// Indices of the nodes it reads.
    #[module(skip)]
    pub inputs: Vec<usize>,
}

/// The operations that carry trainable tensors, and one variant for all that do not.
#[derive(Module, Debug)]
pub enum Op {
    /// Convolution with symmetric explicit padding; weight `[out, in / groups, kh, kw]`.
    Conv2d(Conv2d),
    /// Fully connected layer; Burn stores the weight as `[in, out]`.
    Linear(Linear),
    /// Batch normalization.
    BatchNorm(BatchNorm),
    /// Fully connected layer, or convolution by one pixel, with a structural matrix.
    Structured(Structured),
    /// Activations on a uniform grid.
    Quantize(Quantize),
    /// An open kernel of some scheme.
    Custom(Custom),
    /// Everything without parameters.
    Fixed(Fixed),
}

/// A parameter-free operation.
#[derive(Module, Debug)]
pub struct Fixed {
    /// What it computes.
    #[module(skip)]
    pub layer: Layer,
}

/// A structural matrix: what it is made of, and nothing as large as the matrix itself.
#[derive(Module, Debug)]
pub struct Structured {
    /// The structure's parameters, in its order.
    pub tensors: Vec<Param<Tensor<2>>>,
    /// One value for each output.
    pub bias: Option<Param<Tensor<1>>>,
    /// Which matrix the parameters make.
    #[module(skip)]
    pub structure: Structure,
}

/// A layer that a scheme invents: named matrices that Burn trains and a stateless description of what to do with them.
#[derive(Module, Debug)]
pub struct Custom {
    /// Trainable tensors, each as a matrix.
    pub tensors: Vec<Param<Tensor<2>>>,
    /// Their names, in the same order.
    #[module(skip)]
    pub names: Vec<String>,
    /// What the layer computes.
    #[module(skip)]
    pub kernel: Arc<dyn Kernel>,
}

/// The behaviour of a [`Custom`] layer. Implementations live in the scheme's own crate.
pub trait Kernel: std::fmt::Debug + Send + Sync {
    /// Name under which the kernel is stored and found again.
    fn name(&self) -> &'static str;
    /// Hyper-parameters as JSON.
    fn config(&self) -> String;
    /// Output for the inputs; `tensors` are in the order of [`Custom::names`].
    fn forward(&self, tensors: &[Tensor<2>], inputs: &[Value]) -> Value;
    /// Shape of one sample's output, or what does not fit.
    fn output_shape(&self, inputs: &[&[usize]]) -> std::result::Result<Vec<usize>, String>;
    /// Multiply-accumulates per sample.
    fn macs(&self, inputs: &[&[usize]]) -> u64;
}

/// An activation on its way through the network.
#[derive(Debug, Clone)]
pub enum Value {
    /// Feature maps `[batch, channels, height, width]`.
    Map(Tensor<4>),
    /// Feature vectors `[batch, features]`.
    Vector(Tensor<2>),
}

impl Net {
    /// Checks wiring, names, shapes and how much of the feature maps is held at a time; the output shape of every node, without the batch.
    ///
    /// # Errors
    /// Names the first node that does not fit.
    pub fn shapes(&self) -> Result<Vec<Vec<usize>>> {
        let mut shapes: Vec<Vec<usize>> = Vec::with_capacity(self.nodes.len());
        let mut names = std::collections::HashSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if !names.insert(node.name.as_str()) {
                return Err(Error::node(&node.name, "the name is taken by an earlier node"));
            }
            if (index == 0) != matches!(node.op.layer(), Layer::Input { .. }) {
                return Err(Error::node(&node.name, "node 0, and no other, is the input"));
            }
            if let Some(late) = node.inputs.iter().find(|&&input| input >= index) {
                return Err(Error::node(&node.name, format!("reads node {late}, which does not come before it ({index})")));
            }
            let inputs: Vec<&[usize]> = node.inputs.iter().map(|&i| shapes[i].as_slice()).collect();
            let shape = match &node.op {
                Op::Custom(custom) => custom.kernel.output_shape(&inputs).map_err(|detail| Error::node(&node.name, detail))?,
                op => op
                    .layer()
                    .output_shape(&inputs, op.weight_shape().as_deref())
                    .map_err(|source| Error::Shape { node: node.name.clone(), source })?,
            };
            node.op.check_channels(&shape).map_err(|detail| Error::node(&node.name, detail))?;
            shapes.push(shape);
        }
        if let Some(shape) = shapes.first().filter(|shape| shape.len() != 3) {
            return Err(Error::node(
                &self.nodes[0].name,
                format!("the input must be images [channels, height, width], is {shape:?}"),
            ));
        }
        self.fullest(&shapes)?;
        match shapes.last() {
            None => Err(Error::Invalid("a network without nodes".into())),
            Some(shape) if shape.len() != 1 => {
                Err(Error::node(&self.nodes[shapes.len() - 1].name, format!("the output must be a vector, is {shape:?}")))
            }
            Some(_) => Ok(shapes),
        }
    }

    /// Values of one sample's feature maps at the fullest moment of a run, of which there may be [`activations::MAX_ACTIVATIONS`].
    pub(crate) fn fullest(&self, shapes: &[Vec<usize>]) -> Result<usize> {
        let sizes = shapes.iter().map(|shape| shape.iter().product());
        Ok(activations::bounded(self.nodes.iter().map(|node| node.inputs.as_slice()).zip(sizes))?)
    }

    /// Index of the node of this name.
    ///
    /// # Errors
    /// An unknown name, with the nearest ones.
    pub fn index(&self, name: &str) -> Result<usize> {
        let found = self.nodes.iter().position(|node| node.name == name);
        found.ok_or_else(|| Error::unknown("layer", name, self.nodes.iter().map(|node| node.name.as_str())))
    }

    /// Shape of one input sample.
    pub fn input_shape(&self) -> Vec<usize> {
        match self.nodes.first().map(|node| node.op.layer()) {
            Some(Layer::Input { shape }) => shape,
            _ => Vec::new(),
        }
    }

    /// The device on which the weights lie.
    pub fn device(&self) -> Device {
        self.devices().into_iter().next().unwrap_or_default()
    }

    /// A copy that shares nothing: Burn's clones of a batch norm share their running statistics.
    pub fn deep_clone(&self) -> Self {
        self.valid()
    }

    /// Names of the nodes that hold weights (convolution, linear, structural matrices, open kernels), in order.
    pub fn weighted(&self) -> impl Iterator<Item = (usize, &Node)> {
        let weighted = |op: &Op| matches!(op, Op::Conv2d(_) | Op::Linear(_) | Op::Structured(_) | Op::Custom(_));
        self.nodes.iter().enumerate().filter(move |(_, node)| weighted(&node.op))
    }
}

impl Op {
    /// A parameter-free operation.
    pub fn fixed(layer: Layer) -> Self {
        Op::Fixed(Fixed { layer })
    }

    /// The operation without its weights.
    pub fn layer(&self) -> Layer {
        match self {
            Op::Conv2d(conv) => Layer::Conv2d {
                stride: conv.stride,
                padding: padding(&conv.padding),
                dilation: conv.dilation,
                groups: conv.groups,
            },
            Op::Linear(_) => Layer::Linear,
            Op::BatchNorm(norm) => Layer::BatchNorm { epsilon: norm.epsilon },
            Op::Structured(structured) => Layer::Structured(structured.structure),
            Op::Quantize(quantize) => quantize.layer(),
            Op::Custom(custom) => Layer::Custom { kernel: custom.kernel.name().into(), config: custom.kernel.config() },
            Op::Fixed(fixed) => fixed.layer.clone(),
        }
    }

    /// Shape of the weight as `[out, in / groups, kh, kw]` or `[out, in]`; none for operations without one.
    pub fn weight_shape(&self) -> Option<Vec<usize>> {
        match self {
            Op::Conv2d(conv) => Some(conv.weight.lazy_shape().as_slice().to_vec()),
            Op::Linear(linear) => {
                let shape = linear.weight.lazy_shape();
                Some(vec![shape[1], shape[0]])
            }
            Op::BatchNorm(_) | Op::Structured(_) | Op::Quantize(_) | Op::Custom(_) | Op::Fixed(_) => None,
        }
    }

    fn check_channels(&self, output: &[usize]) -> std::result::Result<(), String> {
        let expect = |what: &str, len: usize| {
            if output.first() == Some(&len) { Ok(()) } else { Err(format!("{what} has {len} values, the output is {output:?}")) }
        };
        match self {
            Op::Conv2d(conv) => conv.bias.as_ref().map_or(Ok(()), |bias| expect("bias", bias.lazy_shape()[0])),
            Op::Linear(linear) => linear.bias.as_ref().map_or(Ok(()), |bias| expect("bias", bias.lazy_shape()[0])),
            Op::BatchNorm(norm) => expect("gamma", norm.gamma.lazy_shape()[0]),
            Op::Structured(structured) => structured.check(),
            Op::Quantize(quantize) if quantize.scale.lazy_shape()[0] != 1 => Err("more than one step".into()),
            Op::Quantize(_) | Op::Custom(_) | Op::Fixed(_) => Ok(()),
        }
    }
}

impl Structured {
    /// Whether the tensors are those of the structure.
    fn check(&self) -> std::result::Result<(), String> {
        let wanted: Vec<[usize; 2]> = self.structure.parameters().iter().map(|parameter| parameter.shape).collect();
        let found: Vec<[usize; 2]> = self.tensors.iter().map(|tensor| tensor.lazy_shape().dims()).collect();
        let (bias, outputs) = (self.bias.as_ref().map(|bias| bias.lazy_shape()[0]), self.structure.features()[1]);
        if found == wanted && bias.is_none_or(|bias| bias == outputs) {
            return Ok(());
        }
        Err(format!(
            "tensors of the shapes {found:?} and a bias of {bias:?}, {:?} takes {wanted:?} and {outputs}",
            self.structure
        ))
    }
}

impl Value {
    /// The feature maps.
    ///
    /// # Panics
    /// If it is a vector; [`Net::shapes`] rules that out.
    pub fn map(self) -> Tensor<4> {
        match self {
            Value::Map(x) => x,
            Value::Vector(x) => panic!("a feature map is expected, got a vector {:?}", x.dims()),
        }
    }

    /// The feature vectors.
    ///
    /// # Panics
    /// If it is a map; [`Net::shapes`] rules that out.
    pub fn vector(self) -> Tensor<2> {
        match self {
            Value::Vector(x) => x,
            Value::Map(x) => panic!("a vector is expected, got a feature map {:?}", x.dims()),
        }
    }

    /// The device it lies on.
    pub fn device(&self) -> Device {
        match self {
            Value::Map(x) => x.device(),
            Value::Vector(x) => x.device(),
        }
    }
}

/// The symmetric `[vertical, horizontal]` padding of a convolution; the builder and the readers make no other.
pub(crate) fn padding(config: &PaddingConfig2d) -> [usize; 2] {
    match config {
        PaddingConfig2d::Explicit(top, left, _, _) => [*top, *left],
        PaddingConfig2d::Valid | PaddingConfig2d::Same => [0, 0],
    }
}
