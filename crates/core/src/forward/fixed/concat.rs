//! Concatenation.

use briquette_runtime::layers::Concat;
use burn::tensor::Tensor;

use super::Forward;
use crate::forward::Flow;

impl Forward for Concat {
    fn forward(&self, inputs: Vec<Flow>) -> Flow {
        match inputs[0] {
            Flow::Vector(_) => Flow::Vector(Tensor::cat(inputs.into_iter().map(Flow::vector).collect(), 1)),
            Flow::First(_) | Flow::Last(_) => match all_last(inputs) {
                Ok(maps) => Flow::Last(Tensor::cat(maps, 3)),
                Err(maps) => Flow::First(Tensor::cat(maps.into_iter().map(Flow::first).collect(), 1)),
            },
        }
    }
}

/// The maps channels last, if all of them lie so.
fn all_last(maps: Vec<Flow>) -> Result<Vec<Tensor<4>>, Vec<Flow>> {
    if !maps.iter().all(|map| matches!(map, Flow::Last(_))) {
        return Err(maps);
    }
    Ok(maps.into_iter().filter_map(|map| map.last().ok()).collect())
}
