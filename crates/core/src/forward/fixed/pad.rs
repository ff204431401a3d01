//! Zeros around maps.

use briquette_runtime::layers::Pad;

use super::Forward;
use crate::forward::Flow;

impl Forward for Pad {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let ([above, left], [below, right]) = (self.before, self.after);
        Flow::First(inputs.remove(0).first().pad((left, right, above, below), 0.0))
    }
}
