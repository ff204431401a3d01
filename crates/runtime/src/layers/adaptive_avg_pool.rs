//! Mean of windows that share the input out.

use super::shape::map;
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Pool};
use crate::{Error, Node};

/// Mean over windows chosen so that the output has this height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AdaptiveAvgPool {
    /// Output `[height, width]`.
    pub output: [usize; 2],
}

impl Kind for AdaptiveAvgPool {
    fn name(&self) -> &'static str {
        "adaptive-avg-pool"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let [c, h, w] = map(inputs[0])?;
        if self.output.contains(&0) || h == 0 || w == 0 {
            return Err(format!("cannot pool {:?} to {:?}", inputs[0], self.output));
        }
        Ok(vec![c, self.output[0], self.output[1]])
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

impl Storable for AdaptiveAvgPool {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_sizes(&self.output);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { output: reader.sizes()? })
    }
}

impl Runnable for AdaptiveAvgPool {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Pool::adaptive([input[1], input[2]], [output[1], output[2]]))
    }
}
