//! Some of the channels.

use briquette_runtime::layers::ChannelSlice;

use super::Forward;
use crate::forward::Flow;

impl Forward for ChannelSlice {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let Self { start, len } = *self;
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(x.narrow(1, start, len)),
            Flow::Last(x) => Flow::Last(x.narrow(3, start, len)),
            Flow::Vector(x) => Flow::Vector(x.narrow(1, start, len)),
        }
    }
}
