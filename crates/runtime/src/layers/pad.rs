//! Zeros around maps.

use super::shape::{map, padded};
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Threads};
use crate::{Error, Node, Padding};

/// Zeros around every channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pad {
    /// How many.
    pub padding: Padding,
}

impl Kind for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let [c, h, w] = map(inputs[0])?;
        padded(self.padding, [c, h, w]).map(|[h, w]| vec![c, h, w])
    }

    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].iter().map(|known| known.filter(|value| self.padding.is_none() || *value == 0.0)).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn homogeneous(&self) -> bool {
        true
    }
}

impl Storable for Pad {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_padding(self.padding);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { padding: reader.padding()? })
    }
}

impl Runnable for Pad {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        let before = [0, 1].map(|axis| self.padding.before(axis));
        Box::new(Around { input: [input[1], input[2]], output: [output[1], output[2]], before })
    }
}

#[derive(Debug)]
struct Around {
    input: [usize; 2],
    output: [usize; 2],
    before: [usize; 2],
}

impl Operation for Around {
    fn run(&self, inputs: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        let ([height, width], [rows, columns], [above, left]) = (self.input, self.output, self.before);
        threads.pieces(output, rows * columns, |plane, out| {
            out.fill(0.0);
            let input = &inputs[0][plane * height * width..][..height * width];
            for (row, out) in input.chunks(width).zip(out.chunks_mut(columns).skip(above)) {
                out[left..left + width].copy_from_slice(row);
            }
        });
    }
}
