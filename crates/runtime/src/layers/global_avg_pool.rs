//! Mean of channels.

use super::shape::map;
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Operation, Pool};
use crate::{Error, Node};

/// Mean of each channel: `[c, h, w]` to `[c]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GlobalAvgPool;

impl Kind for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "global-avg-pool"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        map(inputs[0]).map(|[c, ..]| vec![c])
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

impl Storable for GlobalAvgPool {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for GlobalAvgPool {
    fn operation(&self, _: &Node, input: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(Pool::adaptive([input[1], input[2]], [1, 1]))
    }
}
