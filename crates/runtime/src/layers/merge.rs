//! Samples of two branches, together again.

use super::{Arity, Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::branches::Branch;
use crate::bytes::Reader;
use crate::engine::{Codes, Lies, Operation, Threads};
use crate::{Error, Node};

/// The samples of its first input, which left, and of its second, which went on, in the order in which its third, a
/// [`Gate`](super::Gate), saw them. Gradients go to the branch that each sample took alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Merge;

impl Kind for Merge {
    fn name(&self) -> &'static str {
        "merge"
    }

    fn arity(&self) -> Arity {
        Arity::Three
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match inputs {
            [left, on, [1]] if left == on => Ok(left.to_vec()),
            _ => Err(format!("two inputs of one shape and a gate's decision, not {inputs:?}")),
        }
    }

    fn branch(&self) -> Branch {
        Branch::Joins
    }

    fn channels(&self) -> Channels {
        Channels::Joined
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].iter().zip(inputs[1]).map(|(a, b)| a.filter(|a| *b == Some(*a))).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for Merge {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Merge {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(*self)
    }

    fn codes(&self, _: &Node, _: &[usize], _: &[usize]) -> Codes {
        Codes::Kept
    }
}

impl Operation for Merge {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], _: &Threads) {
        let size = output.len() / batch;
        let [mut left, mut on] = [inputs[0].chunks(size), inputs[1].chunks(size)];
        for (out, leaves) in output.chunks_mut(size).zip(inputs[2]) {
            let row = if *leaves != 0.0 { left.next() } else { on.next() };
            out.copy_from_slice(row.expect("the branches hold the samples that the gate sent there"));
        }
    }
}
