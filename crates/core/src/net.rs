//! The network: a list of nodes in order of execution that is itself a Burn module.
//!
//! Node 0 is the input, the last node is the output, and a node reads only from nodes before it. Optimizers, autodiff and device
//! moves come from Burn; surgery, taps, cost, storing and printing of *changed structure* come from the graph.

use std::sync::Arc;

use briquette_runtime::{Activation, Layer, Window};
use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::activation;
use burn::tensor::module::{adaptive_avg_pool2d, avg_pool2d};
use burn::tensor::ops::AvgPoolOptions;
use burn::tensor::{Device, Distribution, Tensor};

use crate::error::{Error, Result};
use crate::kernels;

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
    /// Output of the last node for the input `[batch, channels, height, width]`: `[batch, classes]`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<2> {
        self.trace(input, |_, value| value).vector()
    }

    /// Runs the network and hands every activation to `tap` together with its node's index; what `tap` returns goes on in its place.
    /// Activations are dropped after their last use.
    pub fn trace(&self, input: Tensor<4>, mut tap: impl FnMut(usize, Value) -> Value) -> Value {
        let last_use = self.last_use();
        let mut values: Vec<Option<Value>> = Vec::with_capacity(self.nodes.len());
        values.push(Some(tap(0, Value::Map(input))));
        for (index, node) in self.nodes.iter().enumerate().skip(1) {
            let live = |&i: &usize| values[i].clone().expect("an activation lives until its last use");
            let inputs = node.inputs.iter().map(live).collect();
            values.push(Some(tap(index, node.op.forward(inputs))));
            for &used in &node.inputs {
                if last_use[used] == index {
                    values[used] = None;
                }
            }
        }
        values.pop().flatten().expect("a network has an output")
    }

    fn last_use(&self) -> Vec<usize> {
        let mut last = vec![usize::MAX; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                last[input] = index;
            }
        }
        last
    }

    /// Checks wiring, names and shapes; the output shape of every node, without the batch.
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
        match shapes.last() {
            None => Err(Error::Invalid("a network without nodes".into())),
            Some(shape) if shape.len() != 1 => {
                Err(Error::node(&self.nodes[shapes.len() - 1].name, format!("the output must be a vector, is {shape:?}")))
            }
            Some(_) => Ok(shapes),
        }
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

    /// Names of the nodes that hold weights (convolution, linear, open kernels), in order.
    pub fn weighted(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| matches!(node.op, Op::Conv2d(_) | Op::Linear(_) | Op::Custom(_)))
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
            Op::BatchNorm(_) | Op::Custom(_) | Op::Fixed(_) => None,
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
            Op::Custom(_) | Op::Fixed(_) => Ok(()),
        }
    }

    fn forward(&self, mut inputs: Vec<Value>) -> Value {
        match self {
            Op::Conv2d(conv) => Value::Map(kernels::convolve(conv, inputs.remove(0).map())),
            Op::Linear(linear) => Value::Vector(linear.forward(inputs.remove(0).vector())),
            Op::BatchNorm(norm) => match inputs.remove(0) {
                Value::Map(x) => Value::Map(kernels::normalize(norm, x)),
                Value::Vector(x) => Value::Vector(norm.forward(x)),
            },
            Op::Custom(custom) => {
                let tensors: Vec<Tensor<2>> = custom.tensors.iter().map(Param::val).collect();
                custom.kernel.forward(&tensors, &inputs)
            }
            Op::Fixed(fixed) => forward_fixed(&fixed.layer, inputs),
        }
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

fn forward_fixed(layer: &Layer, mut inputs: Vec<Value>) -> Value {
    match layer {
        Layer::Normalize { mean, std } => {
            let x = inputs.remove(0).map();
            let device = x.device();
            let per_channel =
                |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), &device).reshape([1, values.len(), 1, 1]);
            Value::Map((x - per_channel(mean.clone())) * per_channel(std.iter().map(|s| 1.0 / s).collect()))
        }
        Layer::Activation(function) => match inputs.remove(0) {
            Value::Map(x) => Value::Map(activate(*function, x)),
            Value::Vector(x) => Value::Vector(activate(*function, x)),
        },
        Layer::Softmax => match inputs.remove(0) {
            Value::Map(x) => Value::Map(activation::softmax(x, 1)),
            Value::Vector(x) => Value::Vector(activation::softmax(x, 1)),
        },
        Layer::LocalResponseNorm { size, alpha, beta, k } => {
            let x = inputs.remove(0).map();
            let [n, c, h, w] = x.dims();
            let before = (size - 1) / 2;
            let squares = x.clone().powi_scalar(2).reshape([n, 1, c, h * w]);
            let options = AvgPoolOptions::new([*size, 1])
                .with_stride([1, 1])
                .with_padding_pairs([(before, size - 1 - before), (0, 0)])
                .with_count_include_pad(true);
            let mean = avg_pool2d(squares, options).reshape([n, c, h, w]);
            Value::Map(x / (mean.mul_scalar(*alpha).add_scalar(*k)).powf_scalar(*beta))
        }
        Layer::MaxPool(window) => Value::Map(kernels::max_pool(window, inputs.remove(0).map())),
        Layer::AvgPool { window, count_padding } => Value::Map(average(inputs.remove(0).map(), window, *count_padding)),
        Layer::AdaptiveAvgPool { output } => Value::Map(adaptive_avg_pool2d(inputs.remove(0).map(), *output)),
        Layer::GlobalAvgPool => {
            let x = inputs.remove(0).map();
            let [n, c, h, w] = x.dims();
            Value::Vector(x.reshape([n, c, h * w]).mean_dim(2).reshape([n, c]))
        }
        Layer::Add => inputs
            .into_iter()
            .reduce(|sum, next| match (sum, next) {
                (Value::Map(a), b) => Value::Map(a + b.map()),
                (Value::Vector(a), b) => Value::Vector(a + b.vector()),
            })
            .expect("the shapes were checked"),
        Layer::Concat => match inputs[0] {
            Value::Map(_) => Value::Map(Tensor::cat(inputs.into_iter().map(Value::map).collect(), 1)),
            Value::Vector(_) => Value::Vector(Tensor::cat(inputs.into_iter().map(Value::vector).collect(), 1)),
        },
        Layer::ChannelSlice { start, len } => match inputs.remove(0) {
            Value::Map(x) => Value::Map(x.narrow(1, *start, *len)),
            Value::Vector(x) => Value::Vector(x.narrow(1, *start, *len)),
        },
        Layer::PadShortcut { stride, before, after } => {
            let window = Window { kernel: [1, 1], stride: [*stride; 2], padding: [0; 2] };
            let x = average(inputs.remove(0).map(), &window, true);
            let [n, _, h, w] = x.dims();
            let device = x.device();
            let zeros = |channels: usize| (channels > 0).then(|| Tensor::<4>::zeros([n, channels, h, w], &device));
            Value::Map(Tensor::cat([zeros(*before), Some(x), zeros(*after)].into_iter().flatten().collect(), 1))
        }
        Layer::Flatten => match inputs.remove(0) {
            Value::Map(x) => Value::Vector(x.flatten(1, 3)),
            vector @ Value::Vector(_) => vector,
        },
        Layer::Dropout { p } => {
            let value = inputs.remove(0);
            if *p == 0.0 || !value.device().is_autodiff() {
                return value;
            }
            match value {
                Value::Map(x) => Value::Map(drop_out(x, *p)),
                Value::Vector(x) => Value::Vector(drop_out(x, *p)),
            }
        }
        Layer::Input { .. } | Layer::Conv2d { .. } | Layer::Linear | Layer::BatchNorm { .. } | Layer::Custom { .. } => {
            unreachable!("{} is no parameter-free function of other nodes", layer.kind())
        }
    }
}

fn average(x: Tensor<4>, window: &Window, count_padding: bool) -> Tensor<4> {
    let options = AvgPoolOptions::new(window.kernel)
        .with_stride(window.stride)
        .with_padding(window.padding)
        .with_count_include_pad(count_padding);
    avg_pool2d(x, options)
}

fn activate<const D: usize>(function: Activation, x: Tensor<D>) -> Tensor<D> {
    match function {
        Activation::Relu => activation::relu(x),
        Activation::LeakyRelu { slope } => activation::leaky_relu(x, slope),
        Activation::Relu6 => activation::relu6(x),
        Activation::Sigmoid => activation::sigmoid(x),
        Activation::Tanh => activation::tanh(x),
        Activation::Gelu => activation::gelu(x),
        Activation::Silu => activation::silu(x),
    }
}

fn drop_out<const D: usize>(x: Tensor<D>, p: f64) -> Tensor<D> {
    let mask = x.random_like(Distribution::Bernoulli(1.0 - p));
    x * mask.mul_scalar(1.0 / (1.0 - p))
}
