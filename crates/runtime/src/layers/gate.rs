//! Decision of a sample to leave.

use super::{Channels, Constants, Kind, Parameters, Runnable, Setting, Sign, Storable};
use crate::branches::Branch;
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// 1 for samples that leave here, 0 for those that go on, by how sure the logits are, or by one logit. [`Route`](super::Route) and
/// [`Merge`](super::Merge) go by it.
///
/// The loss of the output alone teaches an exit by the samples that leave there. For an exit to learn from all samples, an objective has to tap it.
///
/// Teerapittayanon, McDanel, Kung. "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks". ICPR 2016. arXiv:1709.01686, for the
/// entropy, here as a share of the largest.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Gate {
    /// What is compared.
    pub measure: Measure,
    /// With what, in `[0, 1]`.
    pub threshold: f32,
}

/// What is read from logits `z`: how sure those of `K` classes are, of `p = softmax(z)`, or how probable a single one says that it is to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// A sample leaves where `-sum_k p_k ln p_k / ln K` is below the threshold: none at 0, all at 1.
    Entropy,
    /// A sample leaves where the largest `p_k` is above the threshold: all at 0, none at 1.
    Confidence,
    /// A sample leaves where the sigmoid of the one logit there is, `1 / (1 + e^-z)`, reaches the threshold `t`, which is where `z >= ln(t / (1 - t))`: all
    /// at 0, none at 1.
    Sigmoid,
}

impl Measure {
    /// How sure these logits are; not a number where they are none.
    pub fn of(self, logits: &[f32]) -> f32 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|z| (z - largest).exp()).sum();
        match self {
            Measure::Confidence => 1.0 / sum,
            Measure::Sigmoid => 1.0 / (1.0 + (-logits[0]).exp()),
            Measure::Entropy => {
                let of = |z: &f32| {
                    let p = (z - largest).exp() / sum;
                    if p > 0.0 { -p * p.ln() } else { p }
                };
                logits.iter().map(of).sum::<f32>() / (logits.len() as f32).ln()
            }
        }
    }
}

impl Gate {
    /// Whether a sample with these logits leaves; not where they are not numbers.
    pub fn leaves(&self, logits: &[f32]) -> bool {
        match self.measure {
            Measure::Entropy | Measure::Confidence => self.lets(self.measure.of(logits)),
            Measure::Sigmoid => logits[0] >= self.logit(),
        }
    }

    /// `ln(t / (1 - t))` of the threshold `t`: the logit at which the sigmoid reaches it. Who compares logits rounds nowhere, and decides alike on every
    /// machine.
    pub fn logit(&self) -> f32 {
        (self.threshold / (1.0 - self.threshold)).ln()
    }

    /// Whether a sample leaves that is so sure.
    pub fn lets(&self, sure: f32) -> bool {
        match self.measure {
            Measure::Confidence => sure > self.threshold,
            Measure::Sigmoid => sure >= self.threshold && self.threshold < 1.0,
            // Rounding may take the largest entropy there is beyond 1.
            Measure::Entropy => sure < self.threshold || (sure >= 0.0 && self.threshold >= 1.0),
        }
    }
}

impl Kind for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn check(&self) -> Result<(), String> {
        match (0.0..=1.0).contains(&self.threshold) {
            true => Ok(()),
            false => Err(format!("a threshold of {}; it lies in [0, 1]", self.threshold)),
        }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match (self.measure, inputs[0]) {
            (Measure::Entropy | Measure::Confidence, [classes]) if *classes >= 2 => Ok(vec![1]),
            (Measure::Sigmoid, [1]) => Ok(vec![1]),
            (Measure::Entropy | Measure::Confidence, other) => {
                Err(format!("it decides by logits of two classes or more, not by {other:?}"))
            }
            (Measure::Sigmoid, other) => Err(format!("it decides by one logit, not by {other:?}")),
        }
    }

    fn branch(&self) -> Branch {
        Branch::Decides
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "decides by all of them", fixed: true }
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::NotNegative
    }

    fn settings(&self) -> Vec<Setting> {
        vec![Setting::finite("threshold", [f64::from(self.threshold)])]
    }
}

impl Storable for Gate {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(match self.measure {
            Measure::Entropy => 0,
            Measure::Confidence => 1,
            Measure::Sigmoid => 2,
        });
        out.put_f32(self.threshold);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let measure = match reader.byte()? {
            0 => Measure::Entropy,
            1 => Measure::Confidence,
            2 => Measure::Sigmoid,
            other => return Err(Error::corrupt(format!("measure {other} of a gate"))),
        };
        Ok(Self { measure, threshold: reader.f32()? })
    }
}

impl Runnable for Gate {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(*self)
    }
}

impl Operation for Gate {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], _: &Threads) {
        let classes = inputs[0].len() / batch;
        let rows = inputs[0].chunks(classes).zip(output);
        rows.for_each(|(logits, leaves)| *leaves = f32::from(u8::from(self.leaves(logits))));
    }
}
