//! Sum of inputs.

use super::{Activation, Arity, Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Lies, Operation, PIECE, Threads};
use crate::{Error, Node};

/// Sum of all inputs, which have one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Add;

impl Kind for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn arity(&self) -> Arity {
        Arity::More
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match inputs.iter().find(|shape| *shape != &inputs[0]) {
            Some(other) => Err(format!("inputs of different shapes {:?} and {other:?}", inputs[0])),
            None => Ok(inputs[0].to_vec()),
        }
    }

    fn channels(&self) -> Channels {
        Channels::Joined
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        (0..of.channels).map(|c| inputs.iter().map(|input| input[c]).sum()).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for Add {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Add {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(Sum { activation: None })
    }
}

#[derive(Debug)]
struct Sum {
    activation: Option<Activation>,
}

impl Operation for Sum {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn in_place(&self) -> bool {
        true
    }

    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        Some(&mut self.activation)
    }

    fn run(&self, inputs: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        threads.pieces(output, PIECE, |number, out| {
            for input in inputs {
                out.iter_mut().zip(&input[number * PIECE..]).for_each(|(sum, x)| *sum += x);
            }
            if let Some(activation) = self.activation {
                activation.apply(out);
            }
        });
    }
}
