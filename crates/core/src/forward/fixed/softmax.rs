//! Soft-max.

use briquette_runtime::layers::Softmax;
use burn::tensor::activation::softmax;

use super::Forward;
use crate::forward::Flow;

impl Forward for Softmax {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(softmax(x, 1)),
            Flow::Last(x) => Flow::Last(softmax(x, 3)),
            Flow::Vector(x) => Flow::Vector(softmax(x, 1)),
        }
    }
}
