//! Soft-max.

use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// Soft-max over the features, or over the channels at every pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Softmax;

impl Kind for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        Channels::Disturbed("turns a masked channel into something else than zeros")
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::NotNegative
    }
}

impl Storable for Softmax {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Softmax {
    fn operation(&self, _: &Node, input: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(Over { channels: input[0] })
    }
}

#[derive(Debug)]
struct Over {
    channels: usize,
}

impl Operation for Over {
    fn in_place(&self) -> bool {
        true
    }

    fn run(&self, _: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let sample = output.len() / batch;
        threads.pieces(output, sample, |_, out| softmax(self.channels, out));
    }
}

/// One sample.
fn softmax(channels: usize, sample: &mut [f32]) {
    let area = sample.len() / channels;
    for position in 0..area {
        let largest = sample.iter().skip(position).step_by(area).copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in sample.iter_mut().skip(position).step_by(area) {
            *value = (*value - largest).exp();
            sum += *value;
        }
        sample.iter_mut().skip(position).step_by(area).for_each(|value| *value /= sum);
    }
}
