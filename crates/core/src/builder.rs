//! Building a network node by node, the way a paper's table reads.

use briquette_runtime::{Activation, Layer, Padding, Places, Window, layers};
use burn::module::{Param, ParamId};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, BatchNormConfig, Linear};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::coding::{Coding, Source};
use crate::error::{Error, Result};
use crate::net::{Net, Node, Op, explicit, padded};
use crate::streams::{standard_normal, stream};
use crate::tensors::{Parameter, Ranked, Tensors};

/// Appends nodes and infers the number of input channels of each.
#[derive(Debug)]
pub struct Builder {
    nodes: Vec<Node>,
    shapes: Vec<Vec<usize>>,
    /// The first node that does not fit.
    refused: Option<Error>,
    seed: u64,
    device: Device,
}

/// A node of a network under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At(usize);

/// A convolution's geometry; start from [`Conv::new`].
#[derive(Debug, Clone, Copy)]
pub struct Conv {
    /// Number of filters.
    pub filters: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Step, `[vertical, horizontal]`.
    pub stride: [usize; 2],
    /// Zeros around the input.
    pub padding: Padding,
    /// Spacing of the kernel's taps, `[vertical, horizontal]`.
    pub dilation: [usize; 2],
    /// Independent groups of channels.
    pub groups: usize,
    /// Whether a bias is added; a convolution before batch norm needs none.
    pub bias: bool,
}

impl Conv {
    /// `filters` filters of `kernel` by `kernel`, stride 1, no padding, with bias.
    pub fn new(filters: usize, kernel: usize) -> Self {
        Self { filters, kernel: [kernel; 2], stride: [1; 2], padding: Padding::NONE, dilation: [1; 2], groups: 1, bias: true }
    }

    /// Padding that keeps height and width at stride 1.
    pub fn same(self) -> Self {
        Self { padding: Padding::both([0, 1].map(|axis| self.dilation[axis] * (self.kernel[axis] - 1) / 2)), ..self }
    }

    /// With this step along both axes.
    pub fn stride(self, stride: usize) -> Self {
        Self { stride: [stride; 2], ..self }
    }

    /// In this many groups.
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Without bias.
    pub fn no_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

impl Builder {
    /// Starts a network for inputs of `shape` = `[channels, height, width]`. Weights are drawn from streams that depend on `seed` and
    /// the node's name alone, so that a layer's start does not depend on its neighbours or on the device.
    pub fn new(shape: [usize; 3], seed: u64, device: &Device) -> Self {
        let input = Node { op: Op::fixed(layers::Input { shape: shape.to_vec() }), name: "input".into(), inputs: Vec::new() };
        Self { nodes: vec![input], shapes: vec![shape.to_vec()], refused: None, seed, device: device.clone() }
    }

    /// The input.
    pub fn input(&self) -> At {
        At(0)
    }

    /// Shape of a node's output, without the batch.
    pub fn shape(&self, at: At) -> &[usize] {
        &self.shapes[at.0]
    }

    /// Normalizes the input by channel means and deviations (of pixels / 255).
    pub fn normalize(&mut self, at: At, mean: &[f32], std: &[f32]) -> At {
        self.fixed("normalize", &[at], layers::Normalize { mean: mean.to_vec(), std: std.to_vec() })
    }

    /// A convolution with He-normal weights (fan-in) and zero biases.
    pub fn conv(&mut self, name: &str, at: At, conv: Conv) -> At {
        let fan_in = self.shape(at)[0] / conv.groups;
        let [height, width] = conv.kernel;
        let weight = self.drawn(name, [conv.filters, fan_in, height, width], fan_in * height * width);
        self.push_conv(name, at, conv, weight)
    }

    /// A convolution whose filters a rule makes of fewer values, which are drawn as the weights of [`Builder::conv`]. A bias is one for each filter
    /// all the same.
    ///
    /// # Panics
    /// If the rule does not fit the shape, or leaves open how many values there are.
    pub fn shared_conv(&mut self, name: &str, at: At, conv: Conv, rule: Places) -> At {
        let fan_in = self.shape(at)[0] / conv.groups;
        let [height, width] = conv.kernel;
        let (shape, taps) = ([conv.filters, fan_in, height, width], fan_in * height * width);
        let values = rule.count(&shape).unwrap_or_else(|error| panic!("node '{name}': {error}"));
        let count = values.unwrap_or_else(|| panic!("node '{name}': any number of values fits {rule:?}"));
        let source = Source::shared(rule, he_normal(self.seed, name, count, taps), &shape);
        let source = source.unwrap_or_else(|error| panic!("node '{name}': {error}"));
        let weight = Coding { mask: None, source }.attach(Param::from_tensor(Tensor::zeros(shape, &self.device)));
        self.push_conv(name, at, conv, weight)
    }

    fn push_conv(&mut self, name: &str, at: At, conv: Conv, weight: Param<Tensor<4>>) -> At {
        let op = Op::Conv2d(Conv2d {
            weight,
            bias: conv.bias.then(|| Param::from_tensor(Tensor::zeros([conv.filters], &self.device))),
            stride: conv.stride,
            kernel_size: conv.kernel,
            dilation: conv.dilation,
            groups: conv.groups,
            padding: explicit(conv.padding),
        });
        self.push(name, &[at], op)
    }

    /// A fully connected layer with He-normal weights (fan-in) and zero biases.
    pub fn linear(&mut self, name: &str, at: At, features: usize) -> At {
        let fan_in = self.shape(at)[0];
        let weight = self.drawn(name, [fan_in, features], fan_in);
        let bias = Tensor::zeros([features], &self.device);
        let op = Op::Linear(Linear { weight, bias: Some(Param::from_tensor(bias)) });
        self.push(name, &[at], op)
    }

    /// Batch normalization.
    pub fn batch_norm(&mut self, name: &str, at: At) -> At {
        self.batch_norm_with(name, at, 1e-5)
    }

    /// Batch normalization with another `epsilon` beside the variance.
    pub fn batch_norm_with(&mut self, name: &str, at: At, epsilon: f64) -> At {
        let norm: BatchNorm = BatchNormConfig::new(self.shape(at)[0]).with_epsilon(epsilon).init(&self.device);
        self.push(name, &[at], Op::BatchNorm(norm))
    }

    /// A trained shift of each channel, which starts at `shift`, and where `scaled` a factor before it, which starts at 1.
    pub fn affine(&mut self, name: &str, at: At, scaled: bool, shift: f32) -> At {
        let channels = self.shape(at)[0];
        let tensor = |name, value| Parameter {
            values: Ranked::One(Param::from_tensor(Tensor::full([channels], value, &self.device))),
            name,
        };
        let parameters = scaled.then(|| tensor("scale", 1.0)).into_iter().chain([tensor("shift", shift)]).collect();
        self.push(name, &[at], Op::Tensors(Tensors { parameters, layer: layers::Affine.into() }))
    }

    /// Rectified linear units.
    pub fn relu(&mut self, name: &str, at: At) -> At {
        self.fixed(name, &[at], Layer::Activation(Activation::Relu))
    }

    /// Max pooling.
    pub fn max_pool(&mut self, name: &str, at: At, window: Window) -> At {
        self.fixed(name, &[at], layers::MaxPool { window })
    }

    /// Mean of each channel.
    pub fn global_avg_pool(&mut self, name: &str, at: At) -> At {
        self.fixed(name, &[at], layers::GlobalAvgPool)
    }

    /// Sum of two or more nodes.
    pub fn add(&mut self, name: &str, at: &[At]) -> At {
        self.fixed(name, at, layers::Add)
    }

    /// Feature maps to a vector.
    pub fn flatten(&mut self, name: &str, at: At) -> At {
        self.fixed(name, &[at], layers::Flatten)
    }

    /// Any parameter-free layer.
    pub fn fixed(&mut self, name: &str, at: &[At], layer: impl Into<Layer>) -> At {
        self.push(name, at, Op::fixed(layer))
    }

    /// Any operation. A convolution's `Same` padding becomes the numbers that it is for this input. One that does not fit its inputs is an error of
    /// [`Builder::finish`]; until then its output counts as of its input's shape.
    pub fn push(&mut self, name: &str, at: &[At], op: Op) -> At {
        let op = match (op, at) {
            (Op::Conv2d(conv), &[at]) => Op::Conv2d(padded(conv, self.shape(at))),
            (op, _) => op,
        };
        let inputs: Vec<&[usize]> = at.iter().map(|at| self.shape(*at)).collect();
        let fit = op
            .check_padding()
            .and_then(|()| op.layer().output_shape(&inputs, op.weight_shape().as_deref()).map_err(|error| error.to_string()));
        let shape = match fit {
            Ok(shape) => shape,
            Err(detail) => {
                let unknown = inputs.first().map_or(vec![1], |shape| shape.to_vec());
                self.refused.get_or_insert_with(|| Error::node(name, detail));
                unknown
            }
        };
        self.shapes.push(shape);
        self.nodes.push(Node { op, name: name.into(), inputs: at.iter().map(|at| at.0).collect() });
        At(self.nodes.len() - 1)
    }

    /// The finished network; its output is the node added last.
    ///
    /// # Errors
    /// Names the first node that does not fit, or says why the wiring does not hold.
    pub fn finish(self) -> Result<Net> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let net = Net { nodes: self.nodes };
        net.shapes()?;
        Ok(net)
    }

    /// Drawn when first read: shapes and costs of a large network are known without its weights.
    fn drawn<const D: usize>(&self, name: &str, shape: [usize; D], fan_in: usize) -> Param<Tensor<D>> {
        let (seed, name) = (self.seed, name.to_string());
        let draw = move |device: &Device, require_grad: bool| {
            let values = he_normal(seed, &name, shape.iter().product(), fan_in);
            Tensor::from_data(TensorData::new(values, shape), device).set_require_grad(require_grad)
        };
        Param::uninitialized(ParamId::new(), draw, self.device.clone(), true, shape.into())
    }
}

/// `count` weights of the node `name`, drawn from N(0, 2 / `fan_in`) (He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015).
pub fn he_normal(seed: u64, name: &str, count: usize, fan_in: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(stream(seed, name));
    let deviation = (2.0 / fan_in as f64).sqrt();
    (0..count).map(|_| (standard_normal(&mut rng) * deviation) as f32).collect()
}
