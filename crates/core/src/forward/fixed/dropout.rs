//! Dropout.

use briquette_runtime::layers::Dropout;
use burn::tensor::Tensor;

use super::Forward;
use crate::chance;
use crate::forward::Flow;

impl Forward for Dropout {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(drop_out(x, self.p)),
            Flow::Last(x) => Flow::Last(drop_out(x, self.p)),
            Flow::Vector(x) => Flow::Vector(drop_out(x, self.p)),
        }
    }
}

fn drop_out<const D: usize>(x: Tensor<D>, p: f64) -> Tensor<D> {
    if p == 0.0 || !x.device().is_autodiff() {
        return x;
    }
    let kept = chance::uniform_like(&x).greater_equal_elem(p).float();
    x * kept.mul_scalar(1.0 / (1.0 - p))
}
