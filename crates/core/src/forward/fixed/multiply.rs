//! Product of two inputs.

use briquette_runtime::layers::Multiply;

use super::Forward;
use crate::forward::Flow;

impl Forward for Multiply {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let factor = inputs.pop().expect("the shapes were checked");
        match (inputs.remove(0), factor) {
            (Flow::Vector(x), factor) => Flow::Vector(x * factor.vector()),
            (Flow::Last(x), Flow::Last(factor)) => Flow::Last(x * factor),
            (x, factor) => Flow::First(x.first() * factor.first()),
        }
    }
}
