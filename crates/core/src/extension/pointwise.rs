//! The order of values, the rectifier, and the loss.

use briquette_kernels::grid::Grid;
use briquette_kernels::pointwise;
use briquette_runtime::StepGradient;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::host::coarse;
use super::*;

/// `[batch, channels, height, width]` to `[batch, height, width, channels]`.
pub(crate) fn channels_last(x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Extension>::channels_last(x.into_dispatch()))
}

/// `[batch, height, width, channels]` to `[batch, channels, height, width]`.
pub(crate) fn channels_first(x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Extension>::channels_first(x.into_dispatch()))
}

/// `max(x, 0)`.
pub(crate) fn rectify<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Extension>::rectify(x.into_dispatch()))
}

/// The nearest values of a grid of this step `[1]`; see [`Quantize`](crate::quantize::Quantize).
pub(crate) fn quantize<const D: usize>(x: Tensor<D>, step: Tensor<1>, rule: Quantizing) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Extension>::quantize(x.into_dispatch(), step.into_dispatch(), rule))
}

/// The same values; their gradient is rounded to fewer values, up or down by the noise.
pub(crate) fn coarsen<const D: usize>(x: Tensor<D>, noise: Tensor<D>, levels: Levels) -> Tensor<D> {
    let coarsen = match is_flex(&x.device().inner()) {
        true => <Dispatch as Extension>::coarsen,
        false => <Dispatch as Hosted>::coarsen,
    };
    Tensor::from_dispatch(coarsen(x.into_dispatch(), noise.into_dispatch(), levels))
}

/// The mean over the rows of `-sum_k t_k log softmax(logits)_k`.
pub(crate) fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as Extension>::softmax_cross_entropy(logits.into_dispatch(), targets.into_dispatch()))
}

pub(super) fn last(x: &FlexTensor) -> FlexTensor {
    let [batch, channels, height, width] = x.shape().dims();
    tensor(with_values(x, |x| pointwise::channels_last(x, channels, height * width)), [batch, height, width, channels])
}

pub(super) fn first(x: &FlexTensor) -> FlexTensor {
    let [batch, height, width, channels] = x.shape().dims();
    tensor(with_values(x, |x| pointwise::channels_last(x, height * width, channels)), [batch, channels, height, width])
}

#[derive(Debug)]
struct Turned(fn(&FlexTensor) -> FlexTensor);

impl Backward<Flex, 1> for Turned {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, self.0(&dy));
        }
    }
}

pub(super) fn record_last<C: CheckpointStrategy>(x: FloatTensor<Autodiff<Flex, C>>) -> FloatTensor<Autodiff<Flex, C>> {
    Turned(first).prepare::<C>([x.node()]).compute_bound().stateless(last(x.primitive()))
}

pub(super) fn record_first<C: CheckpointStrategy>(x: FloatTensor<Autodiff<Flex, C>>) -> FloatTensor<Autodiff<Flex, C>> {
    Turned(last).prepare::<C>([x.node()]).compute_bound().stateless(first(x.primitive()))
}

/// The same shape with other values.
fn like(x: &FlexTensor, values: Vec<f32>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, x.shape()))
}

pub(super) fn rectified(x: &FlexTensor) -> FlexTensor {
    like(x, with_values(x, pointwise::rectify))
}

/// The gradient before a rectifier whose output is `y`; without one, the gradient itself.
pub(super) fn through(y: Option<&FlexTensor>, dy: FlexTensor) -> FlexTensor {
    match y {
        None => dy,
        Some(y) => like(y, with_values(y, |y| with_values(&dy, |dy| timed("relu'", || pointwise::rectify_gradient(y, dy))))),
    }
}

#[derive(Debug)]
struct Rectified;

impl Backward<Flex, 1> for Rectified {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, through(Some(&ops.state), dy));
        }
    }
}

pub(super) fn record_rectified<C: CheckpointStrategy>(x: FloatTensor<Autodiff<Flex, C>>) -> FloatTensor<Autodiff<Flex, C>> {
    let y = rectified(x.primitive());
    match Rectified.prepare::<C>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(y.clone(), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

/// A grid without its step, and what the step's gradient is.
#[derive(Debug, Clone, Copy)]
pub struct Quantizing {
    /// Number of codes.
    pub levels: u32,
    /// The code, or the middle of two, that stands for 0.
    pub zero: f32,
    /// What trains the step.
    pub train: StepGradient,
    /// Factor of the gradient of a learned step.
    pub scale: f64,
}

impl Quantizing {
    fn grid(self, step: &FlexTensor) -> Grid {
        Grid { step: with_values(step, |step| step[0]), zero: self.zero, levels: self.levels }
    }
}

pub(super) fn quantized(x: &FlexTensor, step: &FlexTensor, rule: Quantizing) -> FlexTensor {
    like(x, with_values(x, |x| timed("quantize", || rule.grid(step).quantize(x))))
}

#[derive(Debug)]
struct Quantized;

impl Backward<Flex, 2> for Quantized {
    type State = (FlexTensor, FlexTensor, Quantizing);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let [of_x, of_step] = ops.parents;
        let (x, step, rule) = ops.state;
        let grid = rule.grid(&step);
        with_values(&x, |values| {
            with_values(&dy, |dy| {
                timed("quantize'", || {
                    if let Some(node) = of_step {
                        let gradient = match rule.train {
                            StepGradient::Clip => grid.clip_gradient(values, dy),
                            StepGradient::Learned | StepGradient::Fixed => rule.scale * grid.step_gradient(values, dy),
                        };
                        grads.register::<Flex>(node.id, tensor(vec![gradient as f32], [1]));
                    }
                    if let Some(node) = of_x {
                        grads.register::<Flex>(node.id, like(&x, grid.input_gradient(values, dy)));
                    }
                });
            });
        });
    }
}

pub(super) fn record_quantized<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    step: FloatTensor<Autodiff<Flex, C>>,
    rule: Quantizing,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = quantized(x.primitive(), step.primitive(), rule);
    match Quantized.prepare::<C>([x.node(), step.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((x.into_primitive(), step.into_primitive(), rule), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

/// The values that rounded gradients take.
#[derive(Debug, Clone, Copy)]
pub enum Levels {
    /// `2^bits` in each sample, evenly between plus and minus its largest absolute value.
    OfSample {
        /// 1 to 16.
        bits: u32,
    },
    /// Multiples of a step, from `-end` of them to `end - 1`.
    OfFormat {
        /// Above 0.
        step: f32,
        /// At least 1.
        end: f32,
    },
}

#[derive(Debug)]
struct Coarse;

impl Backward<Flex, 1> for Coarse {
    type State = (FlexTensor, Levels);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            let (noise, levels) = ops.state;
            let shape = dy.shape();
            let rounded = with_values(&dy, |dy| with_values(&noise, |noise| coarse(dy, noise, shape.as_slice(), levels)));
            grads.register::<Flex>(node.id, like(&dy, rounded));
        }
    }
}

pub(super) fn record_coarse<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    noise: FlexTensor,
    levels: Levels,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = x.primitive().clone();
    match Coarse.prepare::<C>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((noise, levels), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

/// The loss and its gradient by the logits.
pub(super) fn loss(logits: &FlexTensor, targets: &FlexTensor) -> (FlexTensor, FlexTensor) {
    let [_, classes] = logits.shape().dims();
    let (loss, gradient) =
        with_values(logits, |logits| with_values(targets, |targets| pointwise::cross_entropy(logits, targets, classes)));
    (tensor(vec![loss], [1]), like(logits, gradient))
}

#[derive(Debug)]
struct Loss;

impl Backward<Flex, 1> for Loss {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            let factor = with_values(&dy, |dy| dy.iter().sum::<f32>());
            let (gradient, ()) = with_values_mut(ops.state, |values| values.iter_mut().for_each(|value| *value *= factor));
            grads.register::<Flex>(node.id, gradient);
        }
    }
}

pub(super) fn record_loss<C: CheckpointStrategy>(
    logits: FloatTensor<Autodiff<Flex, C>>,
    targets: &FlexTensor,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (value, gradient) = loss(logits.primitive(), targets);
    match Loss.prepare::<C>([logits.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(gradient, value),
        OpsKind::UnTracked(prep) => prep.finish(value),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, activation};

    use super::*;
    use crate::coding::floats;

    #[test]
    fn rectifier_and_loss_are_those_of_burn() {
        let device = Device::flex();
        device.seed(5);
        let device = device.autodiff();
        let x = Tensor::<2>::random([13, 7], Distribution::Normal(0.0, 2.0), &device).require_grad();
        let targets = Tensor::<2>::random([13, 7], Distribution::Uniform(0.0, 1.0), &device);
        let run = |y: Tensor<1>| {
            let grads = y.clone().mul_scalar(3.0).backward();
            [floats(y.inner()), floats(x.grad(&grads).unwrap())]
        };
        let near = |ours: [Vec<f32>; 2], burns: [Vec<f32>; 2]| {
            assert!(ours.concat().iter().zip(burns.concat()).all(|(a, b)| (a - b).abs() < 1e-5), "{ours:?} {burns:?}");
        };
        near(run(rectify(x.clone()).powi_scalar(2).sum()), run(activation::relu(x.clone()).powi_scalar(2).sum()));
        let burns = (activation::log_softmax(x.clone(), 1) * targets.clone()).sum().mul_scalar(-1.0 / 13.0);
        near(run(cross_entropy(x.clone(), targets)), run(burns));
    }
}
