//! Samples of two branches, together again.

use briquette_runtime::layers::Merge;
use burn::tensor::Tensor;

use super::Forward;
use crate::forward::Flow;

impl Forward for Merge {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let leaves = inputs.pop().expect("the shapes were checked").vector();
        let (left, on) = (inputs.remove(0), inputs.remove(0));
        match (left, on) {
            (Flow::Vector(left), on) => Flow::Vector(chosen(left, on.vector(), leaves)),
            (Flow::Last(left), Flow::Last(on)) => Flow::Last(chosen(left, on, leaves)),
            (left, on) => Flow::First(chosen(left.first(), on.first(), leaves)),
        }
    }
}

/// Of each sample the one or the other.
fn chosen<const D: usize>(left: Tensor<D>, on: Tensor<D>, leaves: Tensor<2>) -> Tensor<D> {
    let (shape, [batch, _]) = (on.shape(), leaves.dims());
    let mut rows = [1; D];
    rows[0] = batch;
    on.mask_where(leaves.greater_elem(0.0).reshape(rows).expand(shape), left)
}
