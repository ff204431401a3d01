//! Maximum of windows.

use briquette_runtime::Window;
use briquette_runtime::layers::MaxPool;
use burn::tensor::Tensor;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;

use super::Forward;
use super::avg_pool::pairs;
use crate::extension;
use crate::forward::Flow;

impl Forward for MaxPool {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let window = &self.window;
        match inputs.remove(0).last() {
            Ok(x) => Flow::Last(extension::max_pool(window, x)),
            Err(x) => Flow::First(largest(x, window)),
        }
    }
}

fn largest(x: Tensor<4>, window: &Window) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let padding = pairs(window.grown([height, width]));
    max_pool2d(x, MaxPoolOptions::new(window.kernel).with_stride(window.stride).with_padding_pairs(padding))
}

#[cfg(test)]
mod tests {
    use briquette_runtime::Padding;
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::coding::floats;

    #[test]
    fn burns_operations_pool_as_the_kernels_do() {
        let device = Device::flex();
        device.seed(5);
        let device = device.autodiff();
        let x = Tensor::<4>::random([2, 3, 7, 8], Distribution::Normal(0.0, 1.0), &device).require_grad();
        let run = |y: Tensor<4>| {
            let grads = y.clone().powi_scalar(3).sum().backward();
            [floats(y.inner()), floats(x.grad(&grads).unwrap())]
        };
        for padding in [Padding::NONE, Padding::all(1), Padding([[0, 2], [1, 0]])] {
            for (ceil, stride) in [(false, [2, 1]), (true, [2, 3]), (true, [3, 4])] {
                let window = Window { padding, ceil, ..Window::new([3, 2], stride) };
                let ours = extension::channels_first(extension::max_pool(&window, extension::channels_last(x.clone())));
                assert_eq!(run(largest(x.clone(), &window)), run(ours), "{window:?}");
            }
        }
    }
}
