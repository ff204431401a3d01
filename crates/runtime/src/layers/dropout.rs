//! Dropout.

use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Codes, Operation};
use crate::{Error, Node};

/// Drops activations while training; the identity afterwards.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Dropout {
    /// Probability of dropping.
    pub p: f64,
}

impl Kind for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn check(&self) -> Result<(), String> {
        match self.p {
            p if (0.0..1.0).contains(&p) => Ok(()),
            p => Err(format!("a probability of {p}; it lies from 0 to below 1")),
        }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].clone()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn homogeneous(&self) -> bool {
        true
    }
}

impl Storable for Dropout {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_f64(self.p);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { p: reader.f64()? })
    }
}

impl Runnable for Dropout {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        unreachable!("an identity is no step")
    }

    fn identity(&self) -> bool {
        true
    }

    fn codes(&self, _: &Node, _: &[usize], _: &[usize]) -> Codes {
        Codes::Kept
    }
}
