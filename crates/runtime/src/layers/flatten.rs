//! Maps to vectors.

use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Codes, Operation};
use crate::{Error, Node};

/// `[c, h, w]` to `[c * h * w]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Flatten;

impl Kind for Flatten {
    fn name(&self) -> &'static str {
        "flatten"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(vec![inputs[0].iter().copied().fold(1_usize, usize::saturating_mul)])
    }

    fn channels(&self) -> Channels {
        Channels::Spread
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        inputs[0].iter().flat_map(|value| std::iter::repeat_n(*value, of.pixels)).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn homogeneous(&self) -> bool {
        true
    }
}

impl Storable for Flatten {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Flatten {
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
