//! Normalization of the input.

use briquette_runtime::layers::Normalize;
use burn::tensor::Tensor;

use super::Forward;
use crate::forward::Flow;

impl Forward for Normalize {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let x = inputs.remove(0).first();
        let device = x.device();
        let per_channel =
            |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), &device).reshape([1, values.len(), 1, 1]);
        Flow::First((x - per_channel(self.mean.clone())) * per_channel(self.std.iter().map(|s| 1.0 / s).collect()))
    }
}
