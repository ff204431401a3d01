//! Parameter-free shortcut.

use super::shape::map;
use super::{Channels, Constants, Kind, Layer, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Lies, Operation, Threads};
use crate::{Error, Node};

/// Parameter-free shortcut (option A of He et al. 2016): keeps every `stride`-th row and column and surrounds the channels with
/// `before` and `after` channels of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PadShortcut {
    /// Spatial sub-sampling.
    pub stride: usize,
    /// Zero channels in front.
    pub before: usize,
    /// Zero channels behind.
    pub after: usize,
}

impl Kind for PadShortcut {
    fn name(&self) -> &'static str {
        "pad-shortcut"
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let [c, h, w] = map(inputs[0])?;
        if self.stride == 0 {
            return Err("stride 0".into());
        }
        let channels = c.saturating_add(self.before).saturating_add(self.after);
        Ok(vec![channels, h.div_ceil(self.stride), w.div_ceil(self.stride)])
    }

    fn channels(&self) -> Channels {
        Channels::Surrounded { before: self.before, after: self.after }
    }

    fn with_channels(&self, input: &[usize], output: &[usize]) -> Option<Layer> {
        let Self { stride, before, .. } = *self;
        let (front, back) = (&output[..before], &output[before + input.len()..]);
        Some(Self { stride, before: front.iter().sum(), after: back.iter().sum() }.into())
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        [&vec![Some(0.0); self.before], inputs[0], &vec![Some(0.0); self.after]].into_iter().flatten().copied().collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for PadShortcut {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_sizes(&[self.stride, self.before, self.after]);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        reader.sizes().map(|[stride, before, after]| Self { stride, before, after })
    }
}

impl Runnable for PadShortcut {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Shortcut {
            input: [input[0], input[1], input[2]],
            output: [output[1], output[2]],
            stride: self.stride,
            before: self.before,
            last: false,
        })
    }
}

/// Sub-samples planes and surrounds them with planes of zeros.
#[derive(Debug)]
struct Shortcut {
    input: [usize; 3],
    /// Height and width.
    output: [usize; 2],
    stride: usize,
    before: usize,
    /// Whether maps lie channels last.
    last: bool,
}

impl Operation for Shortcut {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn lie_last(&mut self) {
        self.last = true;
    }

    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let [channels, height, width] = self.input;
        let [out_height, out_width] = self.output;
        let size = inputs[0].len() / batch;
        threads.pieces(output, output.len() / batch, |number, out| {
            out.fill(0.0);
            let input = &inputs[0][number * size..][..size];
            if self.last {
                let all = out.len() / (out_height * out_width);
                for (row, out) in out.chunks_mut(out_width * all).enumerate() {
                    let input = &input[row * self.stride * width * channels..][..width * channels];
                    for (pixel, input) in out.chunks_mut(all).zip(input.chunks(channels).step_by(self.stride)) {
                        pixel[self.before..][..channels].copy_from_slice(input);
                    }
                }
                return;
            }
            let planes = out.chunks_mut(out_height * out_width).skip(self.before).take(channels);
            for (plane, input) in planes.zip(input.chunks(height * width)) {
                for (row, input) in plane.chunks_mut(out_width).zip(input.chunks(width).step_by(self.stride)) {
                    row.iter_mut().zip(input.iter().step_by(self.stride)).for_each(|(out, x)| *out = *x);
                }
            }
        });
    }
}
