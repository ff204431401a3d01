//! Samples that take a branch.

use briquette_runtime::layers::Route;

use super::Forward;
use crate::forward::Flow;

/// All samples take all branches here, so that every exit learns from all of them; the engine skips.
impl Forward for Route {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        inputs.remove(0)
    }
}
