//! The network's input.

use super::{Arity, Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::Operation;
use crate::{Error, Node};

/// The network's input, `[channels, height, width]` or `[features]`; always node 0.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Input {
    /// Shape of one sample.
    pub shape: Vec<usize>,
}

impl Kind for Input {
    fn name(&self) -> &'static str {
        "input"
    }

    fn arity(&self) -> Arity {
        Arity::Zero
    }

    fn shape(&self, _: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match self.shape.len() {
            1 | 3 => Ok(self.shape.clone()),
            _ => Err(format!("{:?} is neither a feature map [channels, height, width] nor a vector [features]", self.shape)),
        }
    }

    fn channels(&self) -> Channels {
        Channels::Source
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    /// Pixels.
    fn sign(&self) -> Sign {
        Sign::NotNegative
    }
}

impl Storable for Input {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_varint(self.shape.len());
        out.put_sizes(&self.shape);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let rank = reader.varint()?;
        Ok(Self { shape: (0..rank).map(|_| reader.varint()).collect::<Result<_, _>>()? })
    }
}

impl Runnable for Input {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        unreachable!("the input is no step")
    }
}
