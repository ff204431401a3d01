//! Convolution.

use briquette_kernels::{Conv2d as Shapes, Epilogue, Precision, column_sums};
use briquette_runtime::Padding;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::nn::BatchNorm;
use burn::nn::conv::Conv2d;

use super::*;
use crate::net::padding;

/// A convolution as the network's node describes it, and whether a rectifier follows; shapes come with the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    stride: [usize; 2],
    padding: Padding,
    dilation: [usize; 2],
    groups: usize,
    rectify: bool,
    precision: Precision,
}

/// The convolution of a map that lies channels last.
pub(crate) fn convolve(conv: &Conv2d, x: Tensor<4>, rectify: bool) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), conv.weight.val().into_dispatch());
    let bias = Maybe::of(conv.bias.as_ref().map(Param::val));
    Tensor::from_dispatch(<Dispatch as Extension>::convolve(x, weight, bias, Steps::of(conv, rectify)))
}

/// The convolution, the normalization by running moments that follows, and a residual sum after that.
pub(crate) fn convolve_normalized(
    conv: &Conv2d,
    norm: &BatchNorm,
    x: Tensor<4>,
    residual: Option<Tensor<4>>,
    rectify: bool,
) -> Tensor<4> {
    let deviation = norm.running_var.value_sync().add_scalar(norm.epsilon).sqrt();
    let scale = norm.gamma.val() / deviation;
    let mean = norm.running_mean.value_sync();
    let mean = conv.bias.as_ref().map_or(mean.clone(), |bias| mean - bias.val());
    let shift = norm.beta.val() - mean * scale.clone();
    let [scale, shift] = [scale, shift].map(Tensor::into_dispatch);
    let (x, weight) = (x.into_dispatch(), conv.weight.val().into_dispatch());
    let steps = Steps::of(conv, rectify);
    Tensor::from_dispatch(<Dispatch as Extension>::convolve_affine(x, weight, scale, shift, Maybe::of(residual), steps))
}

impl Steps {
    fn of(conv: &Conv2d, rectify: bool) -> Self {
        Self {
            stride: conv.stride,
            padding: padding(conv).expect(CHECKED),
            dilation: conv.dilation,
            groups: conv.groups,
            rectify,
            precision: precision(),
        }
    }

    fn shapes(self, x: &FlexTensor, weight: &FlexTensor) -> Shapes {
        let ([batch, height, width, channels], [filters, _, kh, kw]) = (x.shape().dims(), weight.shape().dims());
        Shapes {
            batch,
            input: [height, width, channels],
            filters,
            kernel: [kh, kw],
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
            precision: self.precision,
        }
    }
}

pub(super) fn forward(x: &FlexTensor, weight: &FlexTensor, bias: &Maybe<Flex>, steps: Steps) -> FlexTensor {
    bias.with_values(|bias| run(x, weight, &Epilogue { bias, rectify: steps.rectify, ..Epilogue::default() }, steps))
}

pub(super) fn affine(
    x: &FlexTensor,
    weight: &FlexTensor,
    [scale, shift]: [&FlexTensor; 2],
    residual: &Maybe<Flex>,
    steps: Steps,
) -> FlexTensor {
    with_values(scale, |scale| {
        with_values(shift, |shift| {
            residual.with_values(|residual| {
                let epilogue = Epilogue { scale: Some(scale), bias: Some(shift), residual, rectify: steps.rectify };
                run(x, weight, &epilogue, steps)
            })
        })
    })
}

fn run(x: &FlexTensor, weight: &FlexTensor, epilogue: &Epilogue<'_>, steps: Steps) -> FlexTensor {
    let shapes = steps.shapes(x, weight);
    let [height, width, filters] = shapes.output().expect(CHECKED);
    let y = with_values(x, |x| with_values(weight, |w| timed("conv2d", || shapes.forward(x, w, epilogue)))).expect(CHECKED);
    tensor(y, [shapes.batch, height, width, filters])
}

/// The gradients of a convolution with a bias (three parents) or without one (two).
#[derive(Debug)]
struct Convolution<const PARENTS: usize>;

#[derive(Debug, Clone)]
struct State {
    x: FlexTensor,
    weight: FlexTensor,
    /// The output, where a rectifier looks at its sign.
    y: Option<FlexTensor>,
    steps: Steps,
}

impl<const PARENTS: usize> Backward<Flex, PARENTS> for Convolution<PARENTS> {
    type State = State;

    fn backward(self, ops: Ops<State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut parents = ops.parents.into_iter();
        let mut parent = || parents.next().flatten();
        let (of_x, of_weight, of_bias) = (parent(), parent(), parent());
        let State { x, weight, y, steps } = ops.state;
        let dy = pointwise::through(y.as_ref(), grads.consume::<Flex>(&ops.node));
        let shapes = steps.shapes(&x, &weight);
        with_values(&dy, |dy| {
            if let Some(node) = of_bias {
                grads.register::<Flex>(node.id, tensor(column_sums(dy, shapes.filters), [shapes.filters]));
            }
            if let Some(node) = of_weight {
                let dw = with_values(&x, |x| timed("conv2d weight'", || shapes.weight_gradient(x, dy))).expect(CHECKED);
                grads.register::<Flex>(node.id, tensor::<4>(dw, weight.shape().dims()));
            }
            if let Some(node) = of_x {
                let dx = with_values(&weight, |w| timed("conv2d'", || shapes.input_gradient(dy, w))).expect(CHECKED);
                grads.register::<Flex>(node.id, tensor::<4>(dx, x.shape().dims()));
            }
        });
    }
}

/// Runs the forward pass and, when a parent wants a gradient, remembers what the backward pass needs.
pub(super) fn record<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    weight: FloatTensor<Autodiff<Flex, C>>,
    bias: Maybe<Autodiff<Flex, C>>,
    steps: Steps,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = forward(x.primitive(), weight.primitive(), &bias.primitive(), steps);
    let nodes = [x.node(), weight.node()];
    let (x, weight) = (x.into_primitive(), weight.into_primitive());
    let state = State { x, weight, y: steps.rectify.then(|| y.clone()), steps };
    match bias {
        Maybe::Absent => finish::<C, 2>(Convolution.prepare::<C>(nodes).compute_bound().stateful(), state, y),
        Maybe::Present(bias) => {
            let [x, weight] = nodes;
            finish::<C, 3>(Convolution.prepare::<C>([x, weight, bias.node()]).compute_bound().stateful(), state, y)
        }
    }
}

fn finish<C: CheckpointStrategy, const N: usize>(
    prepared: OpsKind<Convolution<N>, Flex, State, C, N>,
    state: State,
    y: FlexTensor,
) -> FloatTensor<Autodiff<Flex, C>> {
    match prepared {
        OpsKind::Tracked(prep) => prep.finish(state, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::{Distribution, activation};

    use super::*;
    use crate::coding::floats;
    use crate::net::explicit;

    #[test]
    fn outputs_and_gradients_are_those_of_burn() {
        let device = Device::flex();
        device.seed(2);
        let device = device.autodiff();
        for (channels, filters, kernel, stride, padding, groups, bias) in [
            (3, 5, 3, 1, Padding::all(1), 1, true),
            (4, 6, 3, 2, Padding::all(1), 2, false),
            (6, 6, 5, 1, Padding::all(2), 6, true),
            (2, 9, 1, 1, Padding::NONE, 1, false),
            (3, 4, 3, 1, Padding::NONE, 1, true),
            (3, 4, 3, 2, Padding([[0, 1], [2, 0]]), 1, true),
            (4, 4, 3, 1, Padding([[3, 0], [1, 2]]), 4, true),
            (4, 6, 2, 3, Padding([[0, 2], [1, 0]]), 2, false),
        ] {
            let config = Conv2dConfig::new([channels, filters], [kernel, kernel])
                .with_stride([stride, stride])
                .with_padding(explicit(padding))
                .with_groups(groups)
                .with_bias(bias);
            let conv = config.init(&device);
            for (width, rectified) in [(3, false), (6, true), (17, false), (17, true)] {
                let x = Tensor::<4>::random([3, channels, 9, width], Distribution::Normal(0.0, 1.0), &device).require_grad();
                let run = |y: Tensor<4>| {
                    let grads = y.clone().powi_scalar(2).mul_scalar(0.5).sum().backward();
                    let of_bias = conv.bias.as_ref().map_or(Vec::new(), |bias| floats(bias.grad(&grads).unwrap()));
                    [floats(y.inner()), floats(x.grad(&grads).unwrap()), floats(conv.weight.grad(&grads).unwrap()), of_bias]
                };
                let ours = run(channels_first(convolve(&conv, channels_last(x.clone()), rectified)));
                let plain = conv.forward(x.clone());
                let burns = run(if rectified { activation::relu(plain) } else { plain });
                for (ours, burns) in ours.iter().zip(&burns) {
                    let scale = burns.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
                    assert_eq!(ours.len(), burns.len());
                    assert!(ours.iter().zip(burns).all(|(a, b)| (a - b).abs() <= 1e-5 * scale), "{config:?}, width {width}");
                }
            }
        }
    }
}
