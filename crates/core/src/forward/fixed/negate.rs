//! Change of sign.

use briquette_runtime::layers::Negate;

use super::Forward;
use crate::forward::Flow;

impl Forward for Negate {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(x.neg()),
            Flow::Last(x) => Flow::Last(x.neg()),
            Flow::Vector(x) => Flow::Vector(x.neg()),
        }
    }
}
