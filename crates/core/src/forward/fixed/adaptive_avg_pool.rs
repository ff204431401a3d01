//! Mean of windows that share the input out.

use briquette_runtime::layers::AdaptiveAvgPool;
use burn::tensor::module::adaptive_avg_pool2d;

use super::Forward;
use crate::forward::Flow;

impl Forward for AdaptiveAvgPool {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        Flow::First(adaptive_avg_pool2d(inputs.remove(0).first(), self.output))
    }
}
