//! Pooling, and the shortcut without parameters.

use briquette_kernels::{MaxPool2d, PadShortcut, pool};
use briquette_runtime::Window;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::*;

/// Pooling windows; a type of this crate, as extensions want it.
#[derive(Debug, Clone, Copy)]
pub struct Windows(Window);

/// A shortcut's step, and the zero channels around it.
#[derive(Debug, Clone, Copy)]
pub struct Shortcut {
    stride: usize,
    before: usize,
    after: usize,
}

/// Max pooling of a map that lies channels last.
pub(crate) fn max_pool(window: &Window, x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Extension>::pool_max(x.into_dispatch(), Windows(*window)))
}

/// The mean of each channel of a map that lies channels last.
pub(crate) fn channel_means(x: Tensor<4>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Extension>::pool_channels(x.into_dispatch()))
}

/// The parameter-free shortcut of a map that lies channels last.
pub(crate) fn pad_shortcut(x: Tensor<4>, stride: usize, before: usize, after: usize) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Extension>::shortcut(x.into_dispatch(), Shortcut { stride, before, after }))
}

/// The largest values, and the pooling that found them with the taps that won.
pub(super) fn largest(x: &FlexTensor, Windows(window): Windows) -> (FlexTensor, Won) {
    let [batch, height, width, channels] = x.shape().dims();
    let (Window { kernel, stride, .. }, padding) = (window, window.grown([height, width]));
    let pool = MaxPool2d { batch, input: [height, width, channels], kernel, stride, padding };
    let [out_height, out_width, _] = pool.output().expect(CHECKED);
    let (y, taps) = with_values(x, |x| timed("max-pool", || pool.forward(x))).expect(CHECKED);
    let shape = [batch, out_height, out_width, channels];
    (tensor(y, shape), Won { pool, taps: tensor(taps, shape) })
}

#[derive(Debug, Clone)]
pub(super) struct Won {
    pool: MaxPool2d,
    taps: FlexTensor,
}

#[derive(Debug)]
struct Largest;

impl Backward<Flex, 1> for Largest {
    type State = Won;

    fn backward(self, ops: Ops<Won, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            let Won { pool, taps } = ops.state;
            let dx = with_values(&dy, |dy| with_values(&taps, |taps| timed("max-pool'", || pool.gradient(dy, taps))));
            let [height, width, channels] = pool.input;
            grads.register::<Flex>(node.id, tensor(dx.expect(CHECKED), [pool.batch, height, width, channels]));
        }
    }
}

pub(super) fn record_largest<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    windows: Windows,
) -> FloatTensor<Autodiff<Flex, C>> {
    let prepared = Largest.prepare::<C>([x.node()]).compute_bound().stateful();
    let (y, won) = largest(x.primitive(), windows);
    match prepared {
        OpsKind::Tracked(prep) => prep.finish(won, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

pub(super) fn means(x: &FlexTensor) -> FlexTensor {
    let [batch, height, width, channels] = x.shape().dims();
    tensor(with_values(x, |x| pool::channel_means(x, height * width, channels)), [batch, channels])
}

#[derive(Debug)]
struct Means;

impl Backward<Flex, 1> for Means {
    type State = [usize; 4];

    fn backward(self, ops: Ops<[usize; 4], 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            let shape @ [_, height, width, channels] = ops.state;
            let dx = with_values(&dy, |dy| pool::channel_means_gradient(dy, height * width, channels));
            grads.register::<Flex>(node.id, tensor(dx, shape));
        }
    }
}

pub(super) fn record_means<C: CheckpointStrategy>(x: FloatTensor<Autodiff<Flex, C>>) -> FloatTensor<Autodiff<Flex, C>> {
    let y = means(x.primitive());
    match Means.prepare::<C>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(x.shape().dims(), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

impl Shortcut {
    fn shapes(self, x: &FlexTensor) -> PadShortcut {
        let [batch, height, width, channels] = x.shape().dims();
        PadShortcut { batch, input: [height, width, channels], stride: self.stride, before: self.before, after: self.after }
    }
}

pub(super) fn shorten(x: &FlexTensor, shortcut: Shortcut) -> FlexTensor {
    let shapes = shortcut.shapes(x);
    let [height, width, channels] = shapes.output().expect(CHECKED);
    tensor(with_values(x, |x| shapes.forward(x)).expect(CHECKED), [shapes.batch, height, width, channels])
}

#[derive(Debug)]
struct Shorten;

impl Backward<Flex, 1> for Shorten {
    type State = PadShortcut;

    fn backward(self, ops: Ops<PadShortcut, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            let dx = with_values(&dy, |dy| ops.state.gradient(dy)).expect(CHECKED);
            let [height, width, channels] = ops.state.input;
            grads.register::<Flex>(node.id, tensor(dx, [ops.state.batch, height, width, channels]));
        }
    }
}

pub(super) fn record_shortcut<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    shortcut: Shortcut,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = shorten(x.primitive(), shortcut);
    match Shorten.prepare::<C>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(shortcut.shapes(x.primitive()), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use briquette_runtime::Padding;
    use burn::tensor::Distribution;
    use burn::tensor::module::max_pool2d;
    use burn::tensor::ops::MaxPoolOptions;

    use super::*;
    use crate::coding::floats;

    #[test]
    fn pooling_is_that_of_burn() {
        let device = Device::flex();
        device.seed(4);
        let device = device.autodiff();
        let x = Tensor::<4>::random([3, 2, 7, 9], Distribution::Normal(0.0, 1.0), &device).require_grad();
        let run = |y: Tensor<4>| {
            let grads = y.clone().powi_scalar(3).sum().backward();
            [floats(y.inner()), floats(x.grad(&grads).unwrap())]
        };
        let windows = [
            ([2, 2], [2, 2], Padding::NONE),
            ([3, 3], [2, 2], Padding::all(1)),
            ([3, 2], [2, 3], Padding([[0, 2], [1, 0]])),
            ([4, 3], [3, 3], Padding([[1, 1], [0, 2]])),
            ([3, 5], [3, 4], Padding::all(2)),
        ];
        let windows = windows.into_iter().flat_map(|window| [false, true].map(|ceil| (window, ceil)));
        for ((kernel, stride, padding), ceil) in windows {
            let window = Window { kernel, stride, padding, ceil };
            let pairs = padding.0.map(|[before, after]| (before, after));
            let options = MaxPoolOptions::new(kernel).with_stride(stride).with_padding_pairs(pairs).with_ceil_mode(ceil);
            let ours = channels_first(max_pool(&window, channels_last(x.clone())));
            assert_eq!(run(ours), run(max_pool2d(x.clone(), options)));
        }
        let means = |x: Tensor<4>| {
            let y = x.reshape([3, 2, 63]).mean_dim(2).reshape([3, 2, 1, 1]);
            run(y)
        };
        let ours = run(channel_means(channels_last(x.clone())).reshape([3, 2, 1, 1]));
        for (ours, burns) in ours.iter().zip(means(x.clone())) {
            assert!(ours.iter().zip(burns).all(|(a, b)| (a - b).abs() < 1e-6));
        }
        let shortened = run(channels_first(pad_shortcut(channels_last(x.clone()), 2, 1, 2)));
        let zeros = |channels: usize| Tensor::<4>::zeros([3, channels, 4, 5], &device);
        let kept = x.clone().slice([0..3, 0..2, 0..7, 0..9]).slice(burn::tensor::s![.., .., 0..;2, 0..;2]);
        assert_eq!(shortened, run(Tensor::cat(vec![zeros(1), kept, zeros(2)], 1)));
    }
}
