//! Some of the channels.

use super::shape::with_channels;
use super::{Channels, Constants, Kind, Layer, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Lies, Operation, Threads};
use crate::{Error, Node};

/// Channels `start .. start + len` of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChannelSlice {
    /// First channel.
    pub start: usize,
    /// Number of channels.
    pub len: usize,
}

impl Kind for ChannelSlice {
    fn name(&self) -> &'static str {
        "channel-slice"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let Self { start, len } = *self;
        let channels = inputs[0].first().copied().unwrap_or(0);
        if len == 0 || start.checked_add(len).is_none_or(|end| end > channels) {
            return Err(format!("channels {start}..{start}+{len} of {channels}"));
        }
        Ok(with_channels(len, inputs[0]))
    }

    fn channels(&self) -> Channels {
        Channels::Sliced { start: self.start, len: self.len }
    }

    fn with_channels(&self, input: &[usize], output: &[usize]) -> Option<Layer> {
        Some(Self { start: input[..self.start].iter().sum(), len: output.iter().sum() }.into())
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0][self.start..self.start + self.len].to_vec()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for ChannelSlice {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_sizes(&[self.start, self.len]);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        reader.sizes().map(|[start, len]| Self { start, len })
    }
}

impl Runnable for ChannelSlice {
    fn operation(&self, _: &Node, input: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(Slice { start: self.start, pixels: input[1..].iter().product(), last: false })
    }
}

/// Copies channels of each sample from `start` on.
#[derive(Debug)]
struct Slice {
    start: usize,
    pixels: usize,
    /// Whether maps lie channels last: then of each pixel.
    last: bool,
}

impl Operation for Slice {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn lie_last(&mut self) {
        self.last = true;
    }

    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], _: &Threads) {
        let (rows, start) = if self.last { (batch * self.pixels, self.start) } else { (batch, self.start * self.pixels) };
        let (some, size) = (output.len() / rows, inputs[0].len() / rows);
        for (out, input) in output.chunks_mut(some).zip(inputs[0].chunks(size)) {
            out.copy_from_slice(&input[start..][..some]);
        }
    }
}
