//! The network: a list of nodes in order of execution that is itself a Burn module.
//!
//! Node 0 is the input, the last node is the output, and a node reads only from nodes before it. Optimizers, autodiff and device
//! moves come from Burn; surgery, taps, cost, storing and printing of *changed structure* come from the graph.

use briquette_runtime::{Layer, Padding, Structure, activations, branches, layers};
use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use crate::coding::DeviceCoding;
use crate::error::{Error, Result};
use crate::quantize::Quantize;
use crate::tensors::Tensors;

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
    /// Convolution; weight `[out, in / groups, kh, kw]`.
    Conv2d(Conv2d),
    /// Fully connected layer; Burn stores the weight as `[in, out]`.
    Linear(Linear),
    /// Batch normalization.
    BatchNorm(BatchNorm),
    /// Parameters that Burn has no module for.
    Tensors(Tensors),
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
            node.op.check_padding().map_err(|detail| Error::node(&node.name, detail))?;
            if (index == 0) != matches!(node.op.layer(), Layer::Input(_)) {
                return Err(Error::node(&node.name, "node 0, and no other, is the input"));
            }
            if let Some(late) = node.inputs.iter().find(|&&input| input >= index) {
                return Err(Error::node(&node.name, format!("reads node {late}, which does not come before it ({index})")));
            }
            let inputs: Vec<&[usize]> = node.inputs.iter().map(|&i| shapes[i].as_slice()).collect();
            let shape = node
                .op
                .layer()
                .output_shape(&inputs, node.op.weight_shape().as_deref())
                .map_err(|source| Error::Shape { node: node.name.clone(), source })?;
            node.op.check_channels(&shape).map_err(|detail| Error::node(&node.name, detail))?;
            shapes.push(shape);
        }
        if let Some(shape) = shapes.first().filter(|shape| shape.len() != 3) {
            return Err(Error::node(
                &self.nodes[0].name,
                format!("the input must be images [channels, height, width], is {shape:?}"),
            ));
        }
        self.paths()?;
        self.fullest(&shapes)?;
        match shapes.last() {
            None => Err(Error::Invalid("a network without nodes".into())),
            Some(shape) if shape.len() != 1 => {
                Err(Error::node(&self.nodes[shapes.len() - 1].name, format!("the output must be a vector, is {shape:?}")))
            }
            Some(_) => Ok(shapes),
        }
    }

    /// The decisions that samples passed on their way to each node, of a network that skips work.
    ///
    /// # Errors
    /// Names the node where samples of different branches meet.
    pub fn paths(&self) -> Result<branches::Paths> {
        let layers: Vec<Layer> = self.nodes.iter().map(|node| node.op.layer()).collect();
        let wired = layers.iter().zip(&self.nodes).map(|(layer, node)| (layer, node.inputs.as_slice()));
        branches::paths(wired).map_err(|(node, detail)| Error::node(&self.nodes[node].name, detail))
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

    /// Index of the node of this name, or of the last node of the block of this name: of those whose names begin with it and a dot.
    ///
    /// # Errors
    /// As [`Net::index`].
    pub fn behind(&self, name: &str) -> Result<usize> {
        let block = format!("{name}.");
        let last = || self.nodes.iter().rposition(|node| node.name.starts_with(&block));
        self.index(name).or_else(|error| last().ok_or(error))
    }

    /// Shape of one input sample.
    pub fn input_shape(&self) -> Vec<usize> {
        let first = self.nodes.first().map(|node| node.op.layer());
        if let Some(Layer::Input(layers::Input { shape })) = first { shape } else { Vec::new() }
    }

    /// The device on which the weights lie.
    pub fn device(&self) -> Device {
        self.devices().into_iter().next().unwrap_or_default()
    }

    /// A copy that shares nothing: Burn's clones of a batch norm share their running statistics.
    pub fn deep_clone(&self) -> Self {
        self.valid()
    }

    /// Names of the nodes that hold weights (convolution, linear, structural matrices), in order.
    pub fn weighted(&self) -> impl Iterator<Item = (usize, &Node)> {
        let weighted = |node: &Node| node.dense().is_some() || node.op.structure().is_some();
        self.nodes.iter().enumerate().filter(move |(_, node)| weighted(node))
    }

    /// The nodes whose weights are their own (convolution, linear), in order: what makes a structural matrix is
    /// none that could be pruned or shared.
    pub fn own_weights(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.op.weight_shape().is_some())
    }
}

impl Node {
    /// Whether it is another node, or has parameters of other shapes; values do not count.
    pub(crate) fn differs(&self, other: &Node) -> bool {
        let outline = |node: &Node| (node.op.layer(), node.op.tensor_shapes());
        self.name != other.name || self.inputs != other.inputs || outline(self) != outline(other)
    }
}

impl Op {
    /// A parameter-free operation.
    pub fn fixed(layer: impl Into<Layer>) -> Self {
        Op::Fixed(Fixed { layer: layer.into() })
    }

    /// The operation without its weights.
    ///
    /// # Panics
    /// If it is a convolution whose padding follows from its input; [`Net::shapes`] rules that out.
    pub fn layer(&self) -> Layer {
        match self {
            Op::Conv2d(conv) => Layer::Conv2d(layers::Conv2d {
                stride: conv.stride,
                padding: padding(conv).unwrap_or_else(|found| panic!("{found}")),
                dilation: conv.dilation,
                groups: conv.groups,
            }),
            Op::Linear(_) => Layer::Linear(layers::Linear),
            Op::BatchNorm(norm) => Layer::BatchNorm(layers::BatchNorm { epsilon: norm.epsilon }),
            Op::Tensors(tensors) => tensors.layer.clone(),
            Op::Fixed(fixed) => fixed.layer.clone(),
        }
    }

    /// The structural matrix, where it is one.
    pub fn structure(&self) -> Option<Structure> {
        if let Op::Tensors(Tensors { layer: Layer::Structured(own), .. }) = self { Some(own.structure) } else { None }
    }

    /// The quantizer, where it is one.
    pub fn quantize(&self) -> Option<Quantize> {
        if let Op::Tensors(tensors) = self { Quantize::of(tensors) } else { None }
    }

    /// Shape of the weight as `[out, in / groups, kh, kw]` or `[out, in]`; none for operations without one.
    pub fn weight_shape(&self) -> Option<Vec<usize>> {
        match self {
            Op::Conv2d(conv) => Some(conv.weight.lazy_shape().as_slice().to_vec()),
            Op::Linear(linear) => {
                let shape = linear.weight.lazy_shape();
                Some(vec![shape[1], shape[0]])
            }
            Op::BatchNorm(_) | Op::Tensors(_) | Op::Fixed(_) => None,
        }
    }

    /// How many base values the weight is made of, where a rule says how many a tensor of its shape takes; no value is read.
    pub(crate) fn base_values(&self) -> Option<usize> {
        match self {
            Op::Conv2d(conv) => conv.weight.reparameterization::<DeviceCoding>()?.base_values(),
            Op::Linear(linear) => linear.weight.reparameterization::<DeviceCoding>()?.base_values(),
            Op::BatchNorm(_) | Op::Tensors(_) | Op::Fixed(_) => None,
        }
    }

    /// Names and shapes of all tensors, statistics included, as a container lays them out; no value is read.
    pub(crate) fn tensor_shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let vector = |parameter: &Param<Tensor<1>>| parameter.lazy_shape().as_slice().to_vec();
        let dense = |bias: &Option<Param<Tensor<1>>>| {
            let bias = bias.as_ref().map(|bias| ("bias", vector(bias)));
            self.weight_shape().map(|weight| ("weight", weight)).into_iter().chain(bias).collect()
        };
        match self {
            Op::Conv2d(conv) => dense(&conv.bias),
            Op::Linear(linear) => dense(&linear.bias),
            Op::BatchNorm(norm) => {
                let [mean, var] = [&norm.running_mean, &norm.running_var].map(|state| state.value().dims().to_vec());
                vec![("gamma", vector(&norm.gamma)), ("beta", vector(&norm.beta)), ("mean", mean), ("var", var)]
            }
            Op::Tensors(tensors) => tensors.parameters.iter().map(|own| (own.name, own.values.shape())).collect(),
            Op::Fixed(_) => Vec::new(),
        }
    }

    pub(crate) fn check_padding(&self) -> std::result::Result<(), String> {
        let Op::Conv2d(conv) = self else { return Ok(()) };
        padding(conv).map(drop).map_err(|found| format!("has {found}; write its numbers out, as the builder does"))
    }

    fn check_channels(&self, output: &[usize]) -> std::result::Result<(), String> {
        let expect = |what: &str, len: usize| {
            if output.first() == Some(&len) { Ok(()) } else { Err(format!("{what} has {len} values, the output is {output:?}")) }
        };
        match self {
            Op::Conv2d(conv) => conv.bias.as_ref().map_or(Ok(()), |bias| expect("bias", bias.lazy_shape()[0])),
            Op::Linear(linear) => linear.bias.as_ref().map_or(Ok(()), |bias| expect("bias", bias.lazy_shape()[0])),
            Op::BatchNorm(_) => self.tensor_shapes().iter().try_for_each(|(what, shape)| expect(what, shape[0])),
            Op::Tensors(tensors) => tensors.check(output),
            Op::Fixed(Fixed { layer }) => match layer.kind().tensors().into_iter().find(|tensor| tensor.required) {
                Some(tensor) => Err(format!("has no tensor '{}', which {} needs", tensor.name, layer.kind().name())),
                None => Ok(()),
            },
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

/// The padding of a convolution where it does not depend on the input; otherwise what it is. Burn's `Same` adds `kernel - 1` zeros at stride 1,
/// half of them in front, and one more behind where they are odd; at other strides their number follows from the input.
pub(crate) fn padding(conv: &Conv2d) -> std::result::Result<Padding, String> {
    match conv.padding {
        PaddingConfig2d::Valid => Ok(Padding::NONE),
        PaddingConfig2d::Explicit(top, left, bottom, right) => Ok(Padding([[top, bottom], [left, right]])),
        PaddingConfig2d::Same if [0, 1].iter().all(|&axis| conv.stride[axis] == 1 || conv.kernel_size[axis] == 1) => {
            Ok(Padding(conv.kernel_size.map(|size| halves(size - 1))))
        }
        PaddingConfig2d::Same => {
            Err(format!("padding `Same` at stride {:?}, which follows from the size of the input", conv.stride))
        }
    }
}

/// Padding as Burn's convolutions keep it.
pub(crate) fn explicit(Padding([[top, bottom], [left, right]]): Padding) -> PaddingConfig2d {
    PaddingConfig2d::Explicit(top, left, bottom, right)
}

fn halves(total: usize) -> [usize; 2] {
    [total / 2, total - total / 2]
}

/// The convolution with `Same` padding spelled out for inputs of this shape.
pub(crate) fn padded(mut conv: Conv2d, input: &[usize]) -> Conv2d {
    if let (PaddingConfig2d::Same, &[_, height, width]) = (&conv.padding, input) {
        let total = |axis: usize, length: usize| {
            let stride = conv.stride[axis].max(1);
            (length.div_ceil(stride).saturating_sub(1) * stride + conv.kernel_size[axis]).saturating_sub(length)
        };
        conv.padding = explicit(Padding([total(0, height), total(1, width)].map(halves)));
    }
    conv
}

#[cfg(test)]
mod tests {
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::Distribution;

    use super::*;
    use crate::builder::Builder;
    use crate::stored::Storage;

    fn same(kernel: [usize; 2], stride: usize, device: &Device) -> Conv2d {
        let config = Conv2dConfig::new([2, 3], kernel).with_stride([stride; 2]).with_padding(PaddingConfig2d::Same);
        config.init(device)
    }

    /// A net of this convolution alone, its channels averaged, put together without the builder.
    fn around(conv: Conv2d, size: usize) -> Net {
        let node = |name: &str, inputs, op| Node { op, name: name.into(), inputs };
        let input = Op::fixed(layers::Input { shape: vec![2, size, size] });
        let mean = Op::fixed(layers::GlobalAvgPool);
        Net { nodes: vec![node("input", vec![], input), node("conv", vec![0], Op::Conv2d(conv)), node("mean", vec![1], mean)] }
    }

    fn agrees(net: &Net, conv: &Conv2d, size: usize) {
        let x = Tensor::<4>::random([2, 2, size, size], Distribution::Normal(0.0, 1.0), &net.device());
        let expected = conv.forward(x.clone()).mean_dim(3).mean_dim(2).reshape([2, 3]);
        let model = net.to_model(Storage::default()).unwrap();
        let engine = briquette_runtime::Engine::new(&model, 1).unwrap();
        let stored = engine.run(&crate::values::floats(x.clone()), 2).unwrap();
        let expected = crate::values::floats(expected);
        for found in [crate::values::floats(net.forward(x)), stored] {
            let off = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == expected.len() && off < 1e-5, "{expected:?} and {found:?}");
        }
    }

    #[test]
    fn same_padding_of_a_convolution_is_carried() {
        let device = Device::flex();
        device.seed(8);
        for kernel in [[3, 3], [5, 1], [1, 7], [2, 3], [4, 6]] {
            let conv = same(kernel, 1, &device);
            let net = around(conv.clone(), 6);
            assert_eq!(net.shapes().unwrap()[1], [3, 6, 6]);
            agrees(&net, &conv, 6);
        }
        // With the builder the input's size is known, hence also what `Same` is at a stride.
        for (kernel, size) in [([3, 3], 7), ([4, 4], 8), ([3, 3], 8), ([2, 5], 7)] {
            let conv = same(kernel, 2, &device);
            let mut b = Builder::new([2, size, size], 1, &device);
            let at = b.push("conv", &[b.input()], Op::Conv2d(conv.clone()));
            b.global_avg_pool("mean", at);
            agrees(&b.finish().unwrap(), &conv, size);
        }
    }

    #[test]
    fn a_layer_that_needs_tensors_is_refused_without_them() {
        let mut b = Builder::new([2, 3, 3], 1, &Device::flex());
        b.push("norm", &[b.input()], Op::fixed(layers::BatchNorm { epsilon: 1e-5 }));
        let error = b.finish().unwrap_err().to_string();
        assert!(error.contains("'norm'") && error.contains("has no tensor 'gamma', which batch-norm needs"), "{error}");
    }

    #[test]
    fn padding_that_differs_from_side_to_side_is_carried_and_what_follows_from_the_input_is_refused() {
        let device = Device::flex();
        device.seed(8);
        let explicit = Conv2dConfig::new([2, 3], [3, 4]).with_stride([2, 1]).with_padding(PaddingConfig2d::Explicit(1, 0, 2, 3));
        let conv = explicit.init(&device);
        let net = around(conv.clone(), 8);
        assert_eq!(net.shapes().unwrap()[1], [3, 5, 8]);
        agrees(&net, &conv, 8);
        let net = around(same([3, 3], 2, &device), 8);
        for error in [net.shapes().unwrap_err(), net.to_model(Storage::default()).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("'conv'") && error.contains("padding `Same` at stride [2, 2], which follows from"), "{error}");
        }
    }

    #[test]
    fn statistics_of_another_length_than_the_channels_are_refused() {
        let device = Device::flex();
        let mut b = Builder::new([2, 4, 4], 1, &device);
        let x = b.batch_norm("norm", b.input());
        b.global_avg_pool("mean", x);
        let net = b.finish().unwrap();
        let norm = net.index("norm").unwrap();
        for tensor in ["gamma", "beta", "mean", "var"] {
            let mut parameters = net.nodes[norm].parameters();
            let changed = parameters.iter_mut().find(|stored| stored.name == tensor).unwrap();
            (changed.shape, changed.base) = (vec![3], vec![1.0; 3]);
            let mut other = net.deep_clone();
            other.nodes[norm] = net.nodes[norm].clone().with(parameters, &device).unwrap();
            assert!(other.nodes[norm].differs(&net.nodes[norm]));
            let state = other.to_state();
            for error in [other.shapes().unwrap_err(), Net::from_state(&state, &device).unwrap_err()] {
                assert_eq!(error.to_string(), format!("node 'norm': {tensor} has 3 values, the output is [2, 4, 4]"));
            }
        }
    }
}
