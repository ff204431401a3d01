//! Layers with parameters that Burn has no module for: each a file, and a line in the list of `computed`.

mod affine;
mod detail_preserving_pool;
mod experts;
mod quantize;
mod structured;

use super::Flow;
use crate::tensors::Tensors;

/// What a layer with tensors computes.
pub(crate) trait Compute {
    /// Whether its tensors are trained.
    fn trains(&self) -> bool {
        true
    }

    /// The output for the inputs, whose shapes were checked.
    fn forward(&self, tensors: &Tensors, inputs: Vec<Flow>) -> Flow;
}
