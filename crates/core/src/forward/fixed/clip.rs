//! Values within bounds.

use briquette_runtime::layers::Clip;

use super::Forward;
use crate::forward::Flow;

impl Forward for Clip {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let [low, high] = self.bounds();
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(x.clamp(low, high)),
            Flow::Last(x) => Flow::Last(x.clamp(low, high)),
            Flow::Vector(x) => Flow::Vector(x.clamp(low, high)),
        }
    }
}
