//! Zeros around maps.

use super::shape::map;
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// Zeros around every channel, as many on each side as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pad {
    /// Above and on the left.
    pub before: [usize; 2],
    /// Below and on the right.
    pub after: [usize; 2],
}

impl Kind for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let [c, h, w] = map(inputs[0])?;
        let side = |axis: usize, size: usize| size.saturating_add(self.before[axis]).saturating_add(self.after[axis]);
        Ok(vec![c, side(0, h), side(1, w)])
    }

    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        let pads = [self.before, self.after] != [[0; 2]; 2];
        inputs[0].iter().map(|known| known.filter(|value| !pads || *value == 0.0)).collect()
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
        [self.before, self.after].iter().for_each(|pair| out.put_sizes(pair));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { before: reader.sizes()?, after: reader.sizes()? })
    }
}

impl Runnable for Pad {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Around { input: [input[1], input[2]], output: [output[1], output[2]], before: self.before })
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
