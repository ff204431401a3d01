//! Concatenation.

use super::shape::with_channels;
use super::{Arity, Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Lies, Operation, Threads};
use crate::{Error, Node};

/// Concatenation along the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Concat;

impl Kind for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn arity(&self) -> Arity {
        Arity::More
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let rest = inputs[0].get(1..);
        if let Some(other) = inputs.iter().find(|shape| shape.is_empty() || shape.get(1..) != rest) {
            return Err(format!("inputs {:?} and {other:?} differ beyond the channels", inputs[0]));
        }
        let channels = inputs.iter().map(|shape| shape[0]).fold(0_usize, usize::saturating_add);
        Ok(with_channels(channels, inputs[0]))
    }

    fn channels(&self) -> Channels {
        Channels::Concatenated
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs.iter().copied().flatten().copied().collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for Concat {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Concat {
    fn operation(&self, _: &Node, _: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Joined { pixels: output[1..].iter().product(), last: false })
    }
}

/// The channels of several inputs behind each other.
#[derive(Debug)]
struct Joined {
    pixels: usize,
    /// Whether maps lie channels last: then pixel by pixel.
    last: bool,
}

impl Operation for Joined {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn lie_last(&mut self) {
        self.last = true;
    }

    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], _: &Threads) {
        let rows = if self.last { batch * self.pixels } else { batch };
        for (number, out) in output.chunks_mut(output.len() / rows).enumerate() {
            let mut rest = out;
            for input in inputs {
                let size = input.len() / rows;
                let (piece, after) = rest.split_at_mut(size);
                piece.copy_from_slice(&input[number * size..][..size]);
                rest = after;
            }
        }
    }
}
