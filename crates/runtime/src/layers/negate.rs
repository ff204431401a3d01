//! Change of sign.

use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Lies, Operation, PIECE, Threads};
use crate::{Error, Node};

/// `y = -x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Negate;

impl Kind for Negate {
    fn name(&self) -> &'static str {
        "negate"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].iter().map(|known| known.map(|value| -value)).collect()
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }

    fn homogeneous(&self) -> bool {
        true
    }
}

impl Storable for Negate {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Negate {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(*self)
    }
}

impl Operation for Negate {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn in_place(&self) -> bool {
        true
    }

    fn run(&self, _: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        threads.pieces(output, PIECE, |_, out| out.iter_mut().for_each(|x| *x = -*x));
    }
}
