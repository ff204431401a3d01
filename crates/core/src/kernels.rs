//! Operations of the network on Briquette's own CPU kernels, with their gradients.
//!
//! They extend Burn's `flex` backend and are used where a tensor lives on it; every other device keeps Burn's operations. No method and
//! no network knows the difference. `BRIQUETTE_KERNELS=off` gives plain Burn, for comparison.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use briquette_kernels::{Conv2d as Shapes, Moments};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::ops::{ConvOptions, FloatTensorOps, ModuleOps};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::nn::BatchNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flex::FlexTensor;

use crate::net::padding;

/// A convolution as the network's node describes it; shapes come with the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
}

/// What the `flex` backend learns. Extensions cannot take options, hence two of one kind.
#[backend_extension(Autodiff, Flex)]
pub trait Kernels: Backend {
    /// Convolution of `x` `[batch, channels, height, width]` with `weight` `[filters, channels / groups, kh, kw]`.
    fn convolve(x: FloatTensor<Self>, weight: FloatTensor<Self>, steps: Steps) -> FloatTensor<Self>;
    /// The same, with a bias for each filter.
    fn convolve_biased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        steps: Steps,
    ) -> FloatTensor<Self>;

    /// Mean and variance of each channel of `x` over the batch, `[2, channels]`; carries no gradient.
    fn batch_moments(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`, with the gradient for moments that are those of `x` itself.
    fn batch_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
}

/// The convolution's forward pass, on our kernels where they serve.
pub(crate) fn convolve(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    if !enabled() || x.device().inner() != Device::flex() {
        return conv.forward(x);
    }
    let steps = Steps { stride: conv.stride, padding: padding(&conv.padding), dilation: conv.dilation, groups: conv.groups };
    let (x, weight) = (x.into_dispatch(), conv.weight.val().into_dispatch());
    Tensor::from_dispatch(match &conv.bias {
        None => <Dispatch as Kernels>::convolve(x, weight, steps),
        Some(bias) => <Dispatch as Kernels>::convolve_biased(x, weight, bias.val().into_dispatch(), steps),
    })
}

static ENABLED: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(std::env::var_os("BRIQUETTE_KERNELS").is_none_or(|wanted| wanted != "off")));

/// Turns our kernels on or off for the whole process: for benchmarks that compare.
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

impl Steps {
    fn shapes(self, x: &FlexTensor, weight: &FlexTensor) -> Shapes {
        let ([batch, channels, height, width], [filters, _, kh, kw]) = (x.shape().dims(), weight.shape().dims());
        Shapes {
            batch,
            input: [channels, height, width],
            filters,
            kernel: [kh, kw],
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        }
    }

    fn options(self) -> ConvOptions<2> {
        ConvOptions::new(self.stride, self.padding, self.dilation, self.groups)
    }
}

/// Vectors of pixels do not fill on narrower maps, where Burn's matrix products are faster.
const NARROW: usize = 8;

/// Whether our kernels take this convolution: the numbers must be floats, and rows at least a vector wide.
fn serves(tensors: [&FlexTensor; 2], width: usize) -> bool {
    width >= NARROW && tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Hands the tensor's values to `read` in order.
fn with_values<R>(tensor: &FlexTensor, read: impl FnOnce(&[f32]) -> R) -> R {
    let tensor = tensor.to_contiguous();
    let start = tensor.layout().start_offset();
    read(&tensor.storage::<f32>()[start..][..tensor.layout().num_elements()])
}

fn made(shape: [usize; 4], make: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut values = vec![0.0; shape.iter().product()];
    make(&mut values);
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The shapes were checked by [`Net::shapes`](crate::Net::shapes) before the network ran.
const CHECKED: &str = "the shapes of a network are checked before it runs";

/// Batch normalization: by the batch's own moments while training, which also move the running ones, and by those afterwards.
pub(crate) fn normalize(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    let device = x.device();
    if !enabled() || device.clone().inner() != Device::flex() || x.dtype() != DType::F32 {
        return norm.forward(x);
    }
    let moments = match (device.is_autodiff(), norm.training.is_enabled()) {
        (true, true) => moments_of_batch(norm, &x),
        (false, _) => Tensor::stack::<2>(vec![norm.running_mean.value_sync(), norm.running_var.value_sync()], 0),
        // A frozen layer in a training graph: its moments are constants, which the gradient below does not take them for.
        (true, false) => return norm.forward(x),
    };
    let [gamma, beta] = [&norm.gamma, &norm.beta].map(|param| param.val().into_dispatch());
    let (x, moments) = (x.into_dispatch(), moments.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::batch_normalize(x, gamma, beta, moments, norm.epsilon as f32))
}

/// Mean and variance over the batch, `[2, channels]`; the running ones follow them.
fn moments_of_batch(norm: &BatchNorm, x: &Tensor<4>) -> Tensor<2> {
    let moments = Tensor::<2>::from_dispatch(<Dispatch as Kernels>::batch_moments(x.clone().into_dispatch())).detach();
    let [_, channels] = moments.dims();
    for (row, running) in [&norm.running_mean, &norm.running_var].into_iter().enumerate() {
        let now = moments.clone().narrow(0, row, 1).reshape([channels]).mul_scalar(norm.momentum);
        let before = running.value_sync().to_device(&moments.device()).mul_scalar(1.0 - norm.momentum);
        running.update(before.add(now).detach());
    }
    moments
}

impl Kernels for Flex {
    fn convolve(x: FlexTensor, weight: FlexTensor, steps: Steps) -> FlexTensor {
        forward(x, weight, None, steps)
    }

    fn convolve_biased(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, steps: Steps) -> FlexTensor {
        forward(x, weight, Some(bias), steps)
    }

    fn batch_moments(x: FlexTensor) -> FlexTensor {
        let Moments { mean, variance } = with_values(&x, |values| shape_of(&x).0.moments(values));
        let channels = mean.len();
        FlexTensor::from_data(TensorData::new([mean, variance].concat(), [2, channels]))
    }

    fn batch_normalize(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, moments: FlexTensor, epsilon: f32) -> FlexTensor {
        let ((norm, dims), moments) = (shape_of(&x), read_moments(&moments));
        made(dims, |y| {
            with_values(&x, |x| {
                with_values(&gamma, |gamma| with_values(&beta, |beta| norm.forward(x, &moments, gamma, beta, epsilon, y)));
            });
        })
    }
}

/// The gradients of batch normalization in training.
#[derive(Debug)]
struct Normalization;

impl Backward<Flex, 3> for Normalization {
    type State = (FlexTensor, FlexTensor, FlexTensor, f32);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [of_x, of_gamma, of_beta] = ops.parents;
        let (x, gamma, moments, epsilon) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let ((norm, dims), moments) = (shape_of(&x), read_moments(&moments));
        let mut sums = (Vec::new(), Vec::new());
        let dx = made(dims, |dx| {
            with_values(&x, |x| {
                with_values(&dy, |dy| {
                    sums = with_values(&gamma, |gamma| norm.gradients(x, dy, &moments, gamma, epsilon, dx));
                });
            });
        });
        let vector = |values: Vec<f32>| {
            let len = values.len();
            FlexTensor::from_data(TensorData::new(values, [len]))
        };
        if let Some(node) = of_x {
            grads.register::<Flex>(node.id, dx);
        }
        for (node, sums) in [(of_gamma, sums.0), (of_beta, sums.1)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, vector(sums));
            }
        }
    }
}

fn shape_of(x: &FlexTensor) -> (briquette_kernels::BatchNorm, [usize; 4]) {
    let dims @ [batch, channels, height, width] = x.shape().dims();
    (briquette_kernels::BatchNorm { batch, channels, pixels: height * width }, dims)
}

/// Means in the first row, variances in the second.
fn read_moments(moments: &FlexTensor) -> Moments {
    with_values(moments, |values| {
        let (mean, variance) = values.split_at(values.len() / 2);
        Moments { mean: mean.to_vec(), variance: variance.to_vec() }
    })
}

fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, steps: Steps) -> FlexTensor {
    let shapes = steps.shapes(&x, &weight);
    let [filters, height, width] = shapes.output().expect(CHECKED);
    if !serves([&x, &weight], width) {
        return Flex::conv2d(x, weight, bias, steps.options());
    }
    made([shapes.batch, filters, height, width], |y| {
        with_values(&x, |x| {
            with_values(&weight, |w| match &bias {
                Some(bias) => with_values(bias, |bias| shapes.forward(x, w, Some(bias), y)),
                None => shapes.forward(x, w, None, y),
            })
        })
        .expect(CHECKED);
    })
}

/// The gradients of a convolution with a bias (three parents) or without one (two).
#[derive(Debug)]
struct Convolution<const PARENTS: usize>;

impl<const PARENTS: usize> Backward<Flex, PARENTS> for Convolution<PARENTS> {
    type State = (FlexTensor, FlexTensor, Steps);

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut parents = ops.parents.into_iter();
        let mut parent = || parents.next().flatten();
        let (of_x, of_weight, of_bias) = (parent(), parent(), parent());
        let (x, weight, steps) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        if let Some(node) = of_bias {
            grads.register::<Flex>(node.id, bias_gradient(&dy));
        }
        if let Some(node) = of_x {
            grads.register::<Flex>(node.id, input_gradient(&x, &weight, &dy, steps));
        }
        if let Some(node) = of_weight {
            grads.register::<Flex>(node.id, weight_gradient(x, weight, dy, steps));
        }
    }
}

fn bias_gradient(dy: &FlexTensor) -> FlexTensor {
    let [batch, filters, height, width] = dy.shape().dims();
    let rows = Flex::float_reshape(dy.clone(), [batch, filters, height * width].into());
    let sums = Flex::float_sum_dim(Flex::float_sum_dim(rows, 2), 0);
    Flex::float_reshape(sums, [filters].into())
}

fn input_gradient(x: &FlexTensor, weight: &FlexTensor, dy: &FlexTensor, steps: Steps) -> FlexTensor {
    let shapes = steps.shapes(x, weight);
    let [channels, height, width] = shapes.input;
    if !serves([dy, weight], width) {
        return Flex::conv2d_x_backward(x.clone(), weight.clone(), dy.clone(), steps.options());
    }
    made([shapes.batch, channels, height, width], |dx| {
        with_values(dy, |dy| with_values(weight, |w| shapes.input_gradient(dy, w, dx))).expect(CHECKED);
    })
}

fn weight_gradient(x: FlexTensor, weight: FlexTensor, dy: FlexTensor, steps: Steps) -> FlexTensor {
    let shapes = steps.shapes(&x, &weight);
    let [_, _, _, width] = dy.shape().dims();
    if !serves([&dy, &x], width) {
        return Flex::conv2d_weight_backward(x, weight, dy, steps.options());
    }
    made(weight.shape().dims(), |dw| {
        with_values(&x, |x| with_values(&dy, |dy| shapes.weight_gradient(x, dy, dw))).expect(CHECKED);
    })
}

impl<C: CheckpointStrategy> Kernels for Autodiff<Flex, C> {
    fn convolve(x: FloatTensor<Self>, weight: FloatTensor<Self>, steps: Steps) -> FloatTensor<Self> {
        let guards = [x.node(), weight.node()];
        record::<C, 2>(guards, x.into_primitive(), weight.into_primitive(), None, steps)
    }

    fn convolve_biased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        steps: Steps,
    ) -> FloatTensor<Self> {
        let guards = [x.node(), weight.node(), bias.node()];
        record::<C, 3>(guards, x.into_primitive(), weight.into_primitive(), Some(bias.into_primitive()), steps)
    }

    fn batch_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(Flex::batch_moments(x.into_primitive()))
    }

    fn batch_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let prepared = Normalization.prepare::<C>([x.node(), gamma.node(), beta.node()]).compute_bound().stateful();
        let (x, gamma, moments) = (x.into_primitive(), gamma.into_primitive(), moments.into_primitive());
        let y = Flex::batch_normalize(x.clone(), gamma.clone(), beta.into_primitive(), moments.clone(), epsilon);
        match prepared {
            OpsKind::Tracked(prep) => prep.finish((x, gamma, moments, epsilon), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// Runs the forward pass and, when a parent wants a gradient, remembers what the backward pass needs.
fn record<C: CheckpointStrategy, const PARENTS: usize>(
    guards: [NodeGuard; PARENTS],
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    steps: Steps,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = forward(x.clone(), weight.clone(), bias, steps);
    match Convolution::<PARENTS>.prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((x, weight, steps), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::Distribution;

    use super::*;
    use crate::coding::floats;

    #[test]
    fn normalization_is_that_of_burn_in_training_and_afterwards() {
        let device = Device::flex();
        device.seed(3);
        let device = device.autodiff();
        let fresh = || -> BatchNorm { burn::nn::BatchNormConfig::new(5).init(&device) };
        let (ours, burns) = (fresh(), fresh());
        let x = Tensor::<4>::random([4, 5, 3, 7], Distribution::Normal(1.0, 2.0), &device).require_grad();
        let factors = Tensor::<4>::random([4, 5, 3, 7], Distribution::Normal(0.0, 1.0), &device);
        let run = |norm: &BatchNorm, y: Tensor<4>| {
            let grads = (y.clone() * factors.clone()).sum().backward();
            let gradients = [&norm.gamma, &norm.beta].map(|param| floats(param.grad(&grads).unwrap()));
            let running = [&norm.running_mean, &norm.running_var].map(|state| floats(state.value_sync()));
            [vec![floats(y.inner()), floats(x.grad(&grads).unwrap())], gradients.to_vec(), running.to_vec()].concat()
        };
        let (a, b) = (run(&ours, normalize(&ours, x.clone())), run(&burns, burns.forward(x.clone())));
        let near = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4);
        assert!(a.iter().zip(&b).all(|(a, b)| near(a, b)), "{a:?}\n{b:?}");
        let (ours, x) = (ours.valid(), x.inner());
        assert!(near(&floats(normalize(&ours, x.clone())), &floats(ours.forward(x))));
    }

    #[test]
    fn outputs_and_gradients_are_those_of_burn() {
        let device = Device::flex();
        device.seed(2);
        let device = device.autodiff();
        for (channels, filters, kernel, stride, pad, groups, bias) in [
            (3, 5, 3, 1, 1, 1, true),
            (4, 6, 3, 2, 1, 2, false),
            (6, 6, 5, 1, 2, 6, true),
            (2, 9, 1, 1, 0, 1, false),
            (3, 4, 3, 1, 0, 1, true),
        ] {
            let config = Conv2dConfig::new([channels, filters], [kernel, kernel])
                .with_stride([stride, stride])
                .with_padding(burn::nn::PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .with_groups(groups)
                .with_bias(bias);
            let conv = config.init(&device);
            // Twelve columns are served by our kernels, six are left to Burn.
            for width in [6, 12, 17] {
                let x = Tensor::<4>::random([3, channels, 9, width], Distribution::Normal(0.0, 1.0), &device).require_grad();
                let run = |y: Tensor<4>| {
                    let grads = y.clone().powi_scalar(2).mul_scalar(0.5).sum().backward();
                    let of_bias = conv.bias.as_ref().map_or(Vec::new(), |bias| floats(bias.grad(&grads).unwrap()));
                    [floats(y.inner()), floats(x.grad(&grads).unwrap()), floats(conv.weight.grad(&grads).unwrap()), of_bias]
                };
                let (ours, burns) = (run(convolve(&conv, x.clone())), run(conv.forward(x.clone())));
                for (ours, burns) in ours.iter().zip(&burns) {
                    let scale = burns.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
                    assert_eq!(ours.len(), burns.len());
                    assert!(ours.iter().zip(burns).all(|(a, b)| (a - b).abs() <= 1e-5 * scale), "{config:?}, width {width}");
                }
            }
        }
    }
}
