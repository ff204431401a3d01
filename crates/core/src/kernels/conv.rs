//! Convolution.

use briquette_kernels::Conv2d as Shapes;
use burn::backend::TensorMetadata;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::ops::{ConvOptions, FloatTensorOps, ModuleOps};
use burn::nn::conv::Conv2d;

use super::*;
use crate::net::padding;

/// A convolution as the network's node describes it; shapes come with the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
}

/// The convolution's forward pass, on our kernels where they serve.
pub(crate) fn convolve(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    if !takes(&x) {
        return conv.forward(x);
    }
    let steps = Steps { stride: conv.stride, padding: padding(&conv.padding), dilation: conv.dilation, groups: conv.groups };
    let (x, weight) = (x.into_dispatch(), conv.weight.val().into_dispatch());
    Tensor::from_dispatch(match &conv.bias {
        None => <Dispatch as Kernels>::convolve(x, weight, steps),
        Some(bias) => <Dispatch as Kernels>::convolve_biased(x, weight, bias.val().into_dispatch(), steps),
    })
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

/// Rows of fewer pixels fill less than half a vector; Burn's matrix products are then faster.
const NARROW: usize = 4;

/// The sum over pixels that is a weight's gradient is short on narrow maps, and adding up its lanes outweighs it.
const NARROW_SUM: usize = 8;

/// Whether our kernels take rows of this `width`: at least `narrow` pixels, and numbers that are floats.
fn serves(tensors: [&FlexTensor; 2], width: usize, narrow: usize) -> bool {
    width >= narrow && tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

pub(super) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, steps: Steps) -> FlexTensor {
    let shapes = steps.shapes(&x, &weight);
    let [filters, height, width] = shapes.output().expect(CHECKED);
    if !serves([&x, &weight], width, NARROW) {
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
    if !serves([dy, weight], width, NARROW) {
        return Flex::conv2d_x_backward(x.clone(), weight.clone(), dy.clone(), steps.options());
    }
    made([shapes.batch, channels, height, width], |dx| {
        with_values(dy, |dy| with_values(weight, |w| shapes.input_gradient(dy, w, dx))).expect(CHECKED);
    })
}

fn weight_gradient(x: FlexTensor, weight: FlexTensor, dy: FlexTensor, steps: Steps) -> FlexTensor {
    let shapes = steps.shapes(&x, &weight);
    let [_, _, _, width] = dy.shape().dims();
    if !serves([&dy, &x], width, NARROW_SUM) {
        return Flex::conv2d_weight_backward(x, weight, dy, steps.options());
    }
    made(weight.shape().dims(), |dw| {
        with_values(&x, |x| with_values(&dy, |dy| shapes.weight_gradient(x, dy, dw))).expect(CHECKED);
    })
}

/// Runs the forward pass and, when a parent wants a gradient, remembers what the backward pass needs.
pub(super) fn record<C: CheckpointStrategy, const PARENTS: usize>(
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
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::Distribution;

    use super::*;
    use crate::coding::floats;

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
            // From three columns to seventeen: all by Burn, all but the weights' gradient by our kernels, all by ours.
            for width in [3, 6, 12, 17] {
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
