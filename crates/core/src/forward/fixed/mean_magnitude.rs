//! Mean over channels.

use briquette_runtime::layers::MeanMagnitude;

use super::Forward;
use crate::forward::Flow;

impl Forward for MeanMagnitude {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(x.abs().mean_dim(1)),
            Flow::Last(x) => Flow::Last(x.abs().mean_dim(3)),
            Flow::Vector(x) => Flow::Vector(x.abs().mean_dim(1)),
        }
    }
}
