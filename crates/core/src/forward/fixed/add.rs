//! Sum of inputs.

use briquette_runtime::layers::Add;

use super::Forward;
use crate::forward::Flow;

impl Forward for Add {
    fn forward(&self, inputs: Vec<Flow>) -> Flow {
        let sum = inputs.into_iter().reduce(|sum, next| match (sum, next) {
            (Flow::Vector(a), b) => Flow::Vector(a + b.vector()),
            (Flow::Last(a), Flow::Last(b)) => Flow::Last(a + b),
            (a, b) => Flow::First(a.first() + b.first()),
        });
        sum.expect("the shapes were checked")
    }
}
