//! Max pooling.

use std::sync::Arc;

use briquette_kernels::MaxPool2d;
use briquette_runtime::Window;
use burn::backend::TensorMetadata;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;

use super::*;

/// Pooling windows; a type of this crate, as extensions want it.
#[derive(Debug, Clone, Copy)]
pub struct Windows(Window);

/// Max pooling.
pub(crate) fn max_pool(window: &Window, x: Tensor<4>) -> Tensor<4> {
    if !takes(&x) {
        let options = MaxPoolOptions::new(window.kernel).with_stride(window.stride).with_padding(window.padding);
        return max_pool2d(x, options);
    }
    Tensor::from_dispatch(<Dispatch as Kernels>::pool_max(x.into_dispatch(), Windows(*window)))
}

/// The largest values and their places, and the pooling that found them.
pub(super) fn forward(x: &FlexTensor, Windows(window): Windows) -> (FlexTensor, Places) {
    let [batch, channels, height, width] = x.shape().dims();
    let Window { kernel, stride, padding } = window;
    let pool = MaxPool2d { input: [height, width], kernel, stride, padding };
    let [out_height, out_width] = pool.output().expect(CHECKED);
    let mut places = vec![0; batch * channels * out_height * out_width];
    let y = made([batch, channels, out_height, out_width], |y| {
        with_values(x, |x| pool.forward(x, y, &mut places)).expect(CHECKED);
    });
    (y, Places { pool, at: Arc::new(places), from: [batch, channels, height, width] })
}

#[derive(Debug, Clone)]
pub(super) struct Places {
    pool: MaxPool2d,
    at: Arc<Vec<u32>>,
    from: [usize; 4],
}

/// The gradient of max pooling.
#[derive(Debug)]
struct Pooling;

impl Backward<Flex, 1> for Pooling {
    type State = Places;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [of_x] = ops.parents;
        let dy = grads.consume::<Flex>(&ops.node);
        if let Some(node) = of_x {
            let Places { pool, at, from } = ops.state;
            let dx = made(from, |dx| with_values(&dy, |dy| pool.gradient(dy, &at, dx)).expect(CHECKED));
            grads.register::<Flex>(node.id, dx);
        }
    }
}

pub(super) fn record<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    windows: Windows,
) -> FloatTensor<Autodiff<Flex, C>> {
    let prepared = Pooling.prepare::<C>([x.node()]).compute_bound().stateful();
    let (y, places) = forward(x.primitive(), windows);
    match prepared {
        OpsKind::Tracked(prep) => prep.finish(places, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::coding::floats;

    #[test]
    fn pooling_is_that_of_burn() {
        let device = Device::flex();
        device.seed(4);
        let device = device.autodiff();
        let x = Tensor::<4>::random([3, 2, 7, 9], Distribution::Normal(0.0, 1.0), &device).require_grad();
        for window in [Window::square(2), Window { kernel: [3, 3], stride: [2, 2], padding: [1, 1] }] {
            let options = MaxPoolOptions::new(window.kernel).with_stride(window.stride).with_padding(window.padding);
            let run = |y: Tensor<4>| {
                let grads = y.clone().powi_scalar(3).sum().backward();
                [floats(y.inner()), floats(x.grad(&grads).unwrap())]
            };
            assert_eq!(run(max_pool(&window, x.clone())), run(max_pool2d(x.clone(), options)));
        }
    }
}
