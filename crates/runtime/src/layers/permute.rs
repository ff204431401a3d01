//! Channels in another order.

use super::shape::with_channels;
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// Channel `order[i]` of the input comes to the place `i`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Permute {
    /// Every channel once.
    pub order: Vec<usize>,
}

impl Kind for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn check(&self) -> Result<(), String> {
        let mut seen = vec![false; self.order.len()];
        let new = |channel: &usize| seen.get_mut(*channel).is_some_and(|seen| !std::mem::replace(seen, true));
        if self.order.iter().all(new) { Ok(()) } else { Err("an order that does not name each channel once".into()) }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let (channels, known) = (inputs[0].first().copied().unwrap_or(0), self.order.len());
        if channels != known {
            return Err(format!("an order of {known} channels does not take {channels}"));
        }
        Ok(with_channels(channels, inputs[0]))
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "puts channels into another order", fixed: true }
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        self.order.iter().map(|channel| inputs[0][*channel]).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for Permute {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_varint(self.order.len());
        self.order.iter().for_each(|channel| out.put_varint(*channel));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let count = reader.varint()?;
        // Each takes a byte at least.
        let mut order = Vec::new();
        for _ in 0..count {
            order.push(reader.varint()?);
        }
        Ok(Self { order })
    }
}

impl Runnable for Permute {
    fn operation(&self, _: &Node, input: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(Moves { order: self.order.clone(), size: input[1..].iter().product() })
    }
}

/// Copies the floats of each channel to its new place.
#[derive(Debug)]
struct Moves {
    order: Vec<usize>,
    size: usize,
}

impl Operation for Moves {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], _: &Threads) {
        let sample = output.len() / batch.max(1);
        for (out, input) in output.chunks_mut(sample.max(1)).zip(inputs[0].chunks(sample.max(1))) {
            for (out, channel) in out.chunks_mut(self.size).zip(&self.order) {
                out.copy_from_slice(&input[channel * self.size..][..self.size]);
            }
        }
    }
}
