//! A scale and a shift of each channel.

use briquette_runtime::layers::Affine;
use burn::tensor::Tensor;

use super::Compute;
use crate::forward::Flow;
use crate::tensors::{Ranked, Tensors};

impl Compute for Affine {
    fn forward(&self, tensors: &Tensors, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(moved(tensors, x, [1, -1, 1, 1])),
            Flow::Last(x) => Flow::Last(moved(tensors, x, [1, 1, 1, -1])),
            Flow::Vector(x) => Flow::Vector(moved(tensors, x, [1, -1])),
        }
    }
}

/// Of values among whose dimensions the channels lie as `along` says.
fn moved<const D: usize>(tensors: &Tensors, x: Tensor<D>, along: [i32; D]) -> Tensor<D> {
    let tensor = |name: &str| tensors.get(name).map(|values| Ranked::flat(values).reshape(along));
    let scaled = match tensor("scale") {
        Some(scale) => x * scale,
        None => x,
    };
    tensor("shift").map_or(scaled.clone(), |shift| scaled + shift)
}
