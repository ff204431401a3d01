//! Noise while a network trains.

use super::{Arity, Channels, Constants, Kind, Parameters, Runnable, Setting, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::Operation;
use crate::{Error, Node};

/// Adds noise to its first input while training, `x + e (softplus(s) + epsilon)` with a draw `e` from N(0, 1) for each value and its second input `s`;
/// `x` afterwards.
///
/// Shazeer et al. "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer". ICLR 2017. arXiv:1701.06538, without `epsilon`, which
/// the authors' code adds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Noise {
    /// The deviation that is always there.
    pub epsilon: f64,
}

impl Kind for Noise {
    fn name(&self) -> &'static str {
        "noise"
    }

    fn check(&self) -> Result<(), String> {
        match self.epsilon {
            epsilon if epsilon.is_finite() && epsilon >= 0.0 => Ok(()),
            epsilon => Err(format!("an epsilon of {epsilon}; it is finite and not negative")),
        }
    }

    fn arity(&self) -> Arity {
        Arity::Two
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match inputs[0].len() == 1 && inputs[0] == inputs[1] {
            true => Ok(inputs[0].to_vec()),
            false => Err(format!("takes two vectors of one length, not {inputs:?}")),
        }
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "adds noise to them", fixed: true }
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }

    fn settings(&self) -> Vec<Setting> {
        vec![Setting::finite("epsilon", [self.epsilon])]
    }
}

impl Storable for Noise {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_f64(self.epsilon);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { epsilon: reader.f64()? })
    }
}

impl Runnable for Noise {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        unreachable!("an identity is no step")
    }

    fn identity(&self) -> bool {
        true
    }
}
