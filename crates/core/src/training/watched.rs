//! The objectives of one training.

use burn::tensor::Tensor;

use crate::error::{Error, Result};
use crate::net::Net;
use crate::objective::{Objective, Seen, Taps};

/// What the objectives of a training look at, and what they leave of the task's own loss.
#[derive(Debug)]
pub(super) struct Watched {
    /// Of each, the nodes.
    taps: Vec<Vec<usize>>,
    task: f64,
}

impl Watched {
    pub(super) fn by(objectives: &[&mut dyn Objective], net: &Net) -> Result<Self> {
        let taps: Vec<Vec<usize>> = objectives.iter().map(|objective| objective.taps(net)).collect::<Result<_>>()?;
        if let Some(beyond) = taps.iter().flatten().find(|node| **node >= net.nodes.len()) {
            return Err(Error::Invalid(format!(
                "node {beyond} is looked at by the loss, and the network has {}",
                net.nodes.len()
            )));
        }
        let task = objectives.iter().map(|objective| objective.task()).product();
        Ok(Self { taps, task })
    }

    /// What the next forward pass has to meet.
    pub(super) fn taps(&self) -> Taps {
        Taps::of(self.taps.concat())
    }

    /// The whole loss, of the task's own.
    pub(super) fn loss(
        &self,
        objectives: &mut [&mut dyn Objective],
        task: Tensor<1>,
        met: Taps,
        seen: Seen<'_>,
    ) -> Result<Tensor<1>> {
        let values = met.values()?;
        let mut values = &values[..];
        // Exactly 1 leaves the graph as it was; exactly 0 takes the task out of it, so that what it alone reaches gets no gradient, hence no step.
        let mut loss = match self.task.to_bits() {
            bits if bits == 1.0_f64.to_bits() => Some(task),
            bits if bits == 0.0_f64.to_bits() && !objectives.is_empty() => None,
            _ => Some(task.mul_scalar(self.task)),
        };
        for (objective, taps) in objectives.iter_mut().zip(&self.taps) {
            let own = values.split_off(..taps.len()).unwrap_or_default();
            let term = objective.term(&Seen { taps: own, ..seen })?;
            loss = Some(match loss {
                Some(loss) => loss + term,
                None => term,
            });
        }
        loss.ok_or_else(|| Error::Invalid("the task counts nothing, and nothing else is minimized".into()))
    }
}
