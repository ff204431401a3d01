//! Mean over channels.

use super::shape::with_channels;
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// `y = 1/c sum_i |x_i|` over the channels: `[c, h, w]` to `[1, h, w]`, `[n]` to `[1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MeanMagnitude;

impl Kind for MeanMagnitude {
    fn name(&self) -> &'static str {
        "mean-magnitude"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match inputs[0] {
            [] => Err("the input has no channels".into()),
            input => Ok(with_channels(1, input)),
        }
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "divides by their number", fixed: false }
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::NotNegative
    }
}

impl Storable for MeanMagnitude {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for MeanMagnitude {
    fn operation(&self, _: &Node, input: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(Mean { channels: input[0] })
    }
}

#[derive(Debug)]
struct Mean {
    channels: usize,
}

impl Operation for Mean {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let size = inputs[0].len() / batch;
        threads.pieces(output, output.len() / batch, |number, out| {
            out.fill(0.0);
            for plane in inputs[0][number * size..][..size].chunks(out.len()) {
                out.iter_mut().zip(plane).for_each(|(sum, x)| *sum += x.abs());
            }
            out.iter_mut().for_each(|sum| *sum /= self.channels as f32);
        });
    }
}
