//! Gates of which only some are open.

use briquette_runtime::layers::largest;
use burn::tensor::{Bool, Tensor, TensorData, activation};

use crate::values::floats;

/// The softmax over the `k` largest of each row of logits `h` `[batch, n]`, of equal ones the first, and exactly 0 elsewhere; and the places of those,
/// the largest first. Gradients go to the `k` alone.
pub fn softmax_of_largest(h: Tensor<2>, k: usize) -> (Tensor<2>, Vec<Vec<usize>>) {
    let ([batch, n], device) = (h.dims(), h.device());
    let chosen: Vec<Vec<usize>> = floats(h.clone()).chunks(n).map(|row| largest(row, k)).collect();
    let mut closed = vec![true; batch * n];
    for (row, places) in chosen.iter().enumerate() {
        places.iter().for_each(|place| closed[row * n + place] = false);
    }
    let closed = Tensor::<2, Bool>::from_data(TensorData::new(closed, [batch, n]), &device);
    (activation::softmax(h.mask_fill(closed, f32::NEG_INFINITY), 1), chosen)
}

/// `ln(1 + e^x)`, also where `e^x` is beyond any float.
pub fn softplus<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::log_sigmoid(x.neg()).neg()
}
