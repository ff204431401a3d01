//! Pooling: every kind is a maximum or a mean over rectangles.

use super::operation::Operation;
use super::threads::Threads;
use crate::Window;

/// Pooling of planes `[h, w]`.
#[derive(Debug)]
pub(crate) struct Pool {
    mean: bool,
    input: [usize; 2],
    output: [usize; 2],
    windows: Windows,
}

/// What an output sees; spans are made for each run, for the shapes of a file may ask for many.
#[derive(Debug, Clone, Copy)]
enum Windows {
    Fixed {
        window: Window,
        count_padding: bool,
    },
    /// `floor(i * in / out) .. ceil((i + 1) * in / out)`.
    Adaptive,
}

/// What an output sees along one axis.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    /// Positions that a mean divides by.
    counted: usize,
}

impl Pool {
    /// Maximum, for planes `input` pooled to `output`.
    pub(crate) fn max(window: &Window, input: [usize; 2], output: [usize; 2]) -> Self {
        Self { mean: false, ..Self::average(window, false, input, output) }
    }

    /// Mean, with or without padded zeros.
    pub(crate) fn average(window: &Window, count_padding: bool, input: [usize; 2], output: [usize; 2]) -> Self {
        Self { mean: true, input, output, windows: Windows::Fixed { window: *window, count_padding } }
    }

    /// Means over windows that share the input out among the outputs.
    pub(crate) fn adaptive(input: [usize; 2], output: [usize; 2]) -> Self {
        Self { mean: true, input, output, windows: Windows::Adaptive }
    }

    fn span(&self, axis: usize, position: usize) -> Span {
        let (size, count) = (self.input[axis], self.output[axis]);
        match &self.windows {
            Windows::Fixed { window, count_padding } => {
                let first = position * window.stride[axis];
                let before = window.padding.before(axis);
                let start = first.saturating_sub(before);
                let end = (first + window.kernel[axis]).saturating_sub(before).min(size);
                let counted = if *count_padding { window.counted(axis, position, size) } else { end - start };
                Span { start, end, counted }
            }
            Windows::Adaptive => {
                let (start, end) = (position * size / count, ((position + 1) * size).div_ceil(count));
                Span { start, end, counted: end - start }
            }
        }
    }
}

impl Operation for Pool {
    /// `[planes, h, w]` to `[planes, oh, ow]`.
    fn run(&self, inputs: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        let ([height, width], [rows, columns]) = (self.input, self.output);
        let spans: Vec<Span> = (0..columns).map(|column| self.span(1, column)).collect();
        threads.pieces(output, rows * columns, |number, plane| {
            let input = &inputs[0][number * height * width..][..height * width];
            for (row, out) in plane.chunks_mut(columns).enumerate() {
                let rows = self.span(0, row);
                for (columns, out) in spans.iter().zip(out) {
                    let seen = (rows.start..rows.end).map(|row| &input[row * width..][columns.start..columns.end]);
                    *out = match self.mean {
                        // Row by row, so that a large map loses no more than a row's sum does.
                        true => seen.map(|row| row.iter().sum::<f32>()).sum::<f32>() / (rows.counted * columns.counted) as f32,
                        false => seen.flatten().copied().fold(f32::NEG_INFINITY, f32::max),
                    };
                }
            }
        });
    }
}
