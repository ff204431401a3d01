//! Maps to vectors.

use briquette_runtime::layers::Flatten;

use super::Forward;
use crate::forward::Flow;

impl Forward for Flatten {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            vector @ Flow::Vector(_) => vector,
            map @ (Flow::First(_) | Flow::Last(_)) => Flow::Vector(map.first().flatten(1, 3)),
        }
    }
}
