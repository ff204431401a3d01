//! Decision of a sample to leave.

use briquette_runtime::layers::{Gate, Measure};
use burn::tensor::activation::log_softmax;

use super::Forward;
use crate::forward::Flow;

impl Forward for Gate {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let logits = inputs.remove(0).vector().detach();
        let [_, classes] = logits.dims();
        let leaves = match self.measure {
            Measure::Sigmoid => logits.greater_equal_elem(self.logit()),
            Measure::Confidence => log_softmax(logits, 1).max_dim(1).exp().greater_elem(self.threshold),
            Measure::Entropy => {
                // Of a probability that rounds to zero nothing is left, and not the product of zero and infinity.
                let p = log_softmax(logits, 1).clamp_min(-80.0);
                let share = (p.clone().exp() * p).sum_dim(1).div_scalar(-(classes as f64).ln()).clamp_min(0.0);
                if self.threshold < 1.0 { share.lower_elem(self.threshold) } else { share.greater_equal_elem(0.0) }
            }
        };
        Flow::Vector(leaves.float())
    }
}
