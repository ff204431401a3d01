//! Product of two inputs.

use super::{Arity, Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// The product of two inputs of one shape, or of one and another that has a single channel, which scales all channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Multiply;

impl Kind for Multiply {
    fn name(&self) -> &'static str {
        "multiply"
    }

    fn arity(&self) -> Arity {
        Arity::Two
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let one = std::iter::once(1).chain(inputs[0].iter().skip(1).copied());
        if inputs[0].is_empty() || (inputs[1] != inputs[0] && !inputs[1].iter().copied().eq(one)) {
            return Err(format!("inputs of the shapes {:?} and {:?}", inputs[0], inputs[1]));
        }
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        Channels::Joined
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        let product = |(c, a): (usize, &Option<f64>)| match (*a, inputs[1][c.min(inputs[1].len() - 1)]) {
            (Some(0.0), _) | (_, Some(0.0)) => Some(0.0),
            (a, b) => a.zip(b).map(|(a, b)| a * b),
        };
        inputs[0].iter().enumerate().map(product).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for Multiply {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Multiply {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(*self)
    }
}

/// The second input has the first one's shape or a single channel.
impl Operation for Multiply {
    fn in_place(&self) -> bool {
        true
    }

    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let size = inputs[0].len() / batch;
        threads.pieces(output, output.len() / batch, |number, out| {
            for channels in out.chunks_mut(size) {
                channels.iter_mut().zip(&inputs[0][number * size..][..size]).for_each(|(y, x)| *y *= x);
            }
        });
    }
}
