//! Samples that take a branch.

use briquette_runtime::layers::Route;

use super::Forward;
use crate::forward::Flow;

/// In a training, and wherever somebody looks at every node, all samples take all branches; evaluation packs them (`packed`). What the last output is
/// compared with teaches a branch by the samples that the gate sent there; an objective that taps the exits teaches each by all.
impl Forward for Route {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        inputs.remove(0)
    }
}
