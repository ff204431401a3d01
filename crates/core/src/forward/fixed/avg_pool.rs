//! Mean of windows.

use briquette_runtime::layers::AvgPool;
use briquette_runtime::{Padding, Window};

use burn::tensor::module::avg_pool2d;
use burn::tensor::ops::AvgPoolOptions;
use burn::tensor::{Tensor, TensorData};

use super::Forward;
use crate::forward::Flow;

impl Forward for AvgPool {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        Flow::First(average(inputs.remove(0).first(), &self.window, self.count_padding))
    }
}

/// Burn's own `ceil` differs from device to device in what it counts, so that padding is grown instead.
pub(super) fn average(x: Tensor<4>, window: &Window, count_padding: bool) -> Tensor<4> {
    let ([_, _, height, width], device) = (x.dims(), x.device());
    let padding = window.grown([height, width]);
    let options = AvgPoolOptions::new(window.kernel)
        .with_stride(window.stride)
        .with_padding_pairs(pairs(padding))
        .with_count_include_pad(count_padding);
    let y = avg_pool2d(x, options);
    if !count_padding || padding == window.padding {
        return y;
    }
    // What was grown is not counted.
    let [_, _, rows, columns] = y.dims();
    let share = |axis: usize, count: usize, size: usize| -> Tensor<1> {
        let shares = (0..count).map(|at| window.kernel[axis] as f32 / window.counted(axis, at, size) as f32);
        Tensor::from_data(TensorData::new(shares.collect(), [count]), &device)
    };
    y * (share(0, rows, height).reshape([1, 1, rows, 1]) * share(1, columns, width).reshape([1, 1, 1, columns]))
}

/// Padding as Burn's pooling takes it.
pub(super) fn pairs(padding: Padding) -> [(usize, usize); 2] {
    padding.0.map(|[before, after]| (before, after))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::coding::floats;

    /// Means are linear, so that the gradient is the transposed matrix: the products with it and with the matrix are the same number.
    #[test]
    fn gradients_of_means_are_those_of_what_is_counted() {
        let device = Device::flex();
        device.seed(5);
        let device = device.autodiff();
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let ones = Tensor::<4>::ones([2, 3, 7, 8], &device).require_grad();
        for padding in [Padding::NONE, Padding::all(1), Padding([[0, 2], [1, 0]])] {
            for (ceil, stride) in [(false, [2, 1]), (true, [2, 3]), (true, [3, 4])] {
                let window = Window { padding, ceil, ..Window::new([3, 2], stride) };
                for count_padding in [false, true] {
                    let y = average(ones.clone(), &window, count_padding);
                    let weights = random(y.dims());
                    let dx = ones.grad(&(y.clone() * weights.clone()).sum().backward()).unwrap();
                    let x = random([2, 3, 7, 8]);
                    let forward = floats((average(x.clone(), &window, count_padding) * weights).sum())[0];
                    let backward = floats((x.inner() * dx).sum())[0];
                    assert!((forward - backward).abs() < 1e-3, "{window:?}: {forward} {backward}");
                    // Without padding that counts, means of ones are ones.
                    let ones = !count_padding || padding.is_none();
                    assert!(!ones || floats(y.inner()).iter().all(|y| (y - 1.0).abs() < 1e-6), "{window:?}");
                }
            }
        }
    }
}
