//! Mean of windows.

use briquette_runtime::Window;
use briquette_runtime::layers::AvgPool;
use burn::tensor::Tensor;
use burn::tensor::module::avg_pool2d;
use burn::tensor::ops::AvgPoolOptions;

use super::Forward;
use crate::forward::Flow;

impl Forward for AvgPool {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        Flow::First(average(inputs.remove(0).first(), &self.window, self.count_padding))
    }
}

pub(super) fn average(x: Tensor<4>, window: &Window, count_padding: bool) -> Tensor<4> {
    let options = AvgPoolOptions::new(window.kernel)
        .with_stride(window.stride)
        .with_padding(window.padding)
        .with_count_include_pad(count_padding);
    avg_pool2d(x, options)
}
