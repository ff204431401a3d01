//! Activations on a grid.

use briquette_runtime::StepGradient;
use briquette_runtime::layers::Quantize;

use super::Compute;
use crate::forward::Flow;
use crate::quantize;
use crate::tensors::Tensors;

impl Compute for Quantize {
    fn trains(&self) -> bool {
        self.train != StepGradient::Fixed
    }

    fn forward(&self, tensors: &Tensors, mut inputs: Vec<Flow>) -> Flow {
        let quantize = quantize::Quantize::of(tensors).expect("the tensors of a network are checked before it runs");
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(quantize.forward(x)),
            Flow::Last(x) => Flow::Last(quantize.forward(x)),
            Flow::Vector(x) => Flow::Vector(quantize.forward(x)),
        }
    }
}
