//! Maximum of windows.

use briquette_runtime::layers::MaxPool;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;

use super::Forward;
use crate::forward::Flow;
use crate::kernels;

impl Forward for MaxPool {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let window = &self.window;
        match inputs.remove(0).last() {
            Ok(x) => Flow::Last(kernels::max_pool(window, x)),
            Err(x) => {
                let options = MaxPoolOptions::new(window.kernel).with_stride(window.stride).with_padding(window.padding);
                Flow::First(max_pool2d(x, options))
            }
        }
    }
}
