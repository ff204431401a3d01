//! Zeros around maps.

use briquette_runtime::Padding;
use briquette_runtime::layers::Pad;

use super::Forward;
use crate::forward::Flow;

impl Forward for Pad {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let Padding([[top, bottom], [left, right]]) = self.padding;
        Flow::First(inputs.remove(0).first().pad((left, right, top, bottom), 0.0))
    }
}
