//! Samples that take a branch.

use super::{Arity, Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::branches::Branch;
use crate::bytes::Reader;
use crate::engine::{Codes, Lies, Operation, Threads};
use crate::{Error, Node};

/// Of its first input the samples for which its second, a [`Gate`](super::Gate), decided so; nothing is computed for the others until
/// a [`Merge`](super::Merge) brings them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Route {
    /// Whether it takes those that leave or those that go on.
    pub leaving: bool,
}

impl Kind for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn arity(&self) -> Arity {
        Arity::Two
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match inputs[1] {
            [1] => Ok(inputs[0].to_vec()),
            other => Err(format!("the second input is a gate's decision, not {other:?}")),
        }
    }

    fn branch(&self) -> Branch {
        Branch::Keeps { leaving: self.leaving }
    }

    fn channels(&self) -> Channels {
        Channels::Joined
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].clone()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for Route {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.leaving));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { leaving: reader.truth()? })
    }
}

impl Runnable for Route {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(*self)
    }

    fn codes(&self, _: &Node, _: &[usize], _: &[usize]) -> Codes {
        Codes::Kept
    }
}

impl Operation for Route {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], _: &Threads) {
        let size = inputs[0].len() / batch;
        let rows = inputs[0].chunks(size).zip(inputs[1]).filter(|(_, leaves)| (**leaves != 0.0) == self.leaving);
        rows.zip(output.chunks_mut(size)).for_each(|((row, _), out)| out.copy_from_slice(row));
    }
}
