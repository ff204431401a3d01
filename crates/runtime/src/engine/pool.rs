//! Pooling: every kind is a maximum or a mean over rectangles.

use super::operation::{Lies, Operation};
use super::threads::Threads;
use crate::Window;

/// Pooling of planes `[h, w]`.
#[derive(Debug)]
pub(crate) struct Pool {
    mean: bool,
    input: [usize; 2],
    output: [usize; 2],
    windows: Windows,
    /// Whether maps lie channels last.
    last: bool,
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
        Self { mean: true, input, output, windows: Windows::Fixed { window: *window, count_padding }, last: false }
    }

    /// Means over windows that share the input out among the outputs.
    pub(crate) fn adaptive(input: [usize; 2], output: [usize; 2]) -> Self {
        Self { mean: true, input, output, windows: Windows::Adaptive, last: false }
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
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn lie_last(&mut self) {
        self.last = true;
    }

    /// `[planes, h, w]` to `[planes, oh, ow]`, or `[batch, h, w, channels]` to `[batch, oh, ow, channels]`.
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let ([height, width], [rows, columns]) = (self.input, self.output);
        let spans: Vec<Span> = (0..columns).map(|column| self.span(1, column)).collect();
        if self.last {
            let channels = output.len() / (batch * rows * columns);
            let image = height * width * channels;
            threads.pieces(output, columns * channels, |number, out| {
                let (input, rows) = (&inputs[0][number / rows * image..][..image], self.span(0, number % rows));
                for (columns, out) in spans.iter().zip(out.chunks_mut(channels)) {
                    self.pixel(input, width * channels, rows, *columns, out);
                }
            });
            return;
        }
        threads.pieces(output, rows * columns, |number, plane| {
            let input = &inputs[0][number * height * width..][..height * width];
            let mut largest = if self.mean { Vec::new() } else { vec![0.0_f32; width] };
            for (row, out) in plane.chunks_mut(columns).enumerate() {
                let rows = self.span(0, row);
                let seen = (rows.start..rows.end).map(|row| &input[row * width..][..width]);
                if self.mean {
                    for (columns, out) in spans.iter().zip(out) {
                        // Row by row, so that a large map loses no more than a row's sum does.
                        let sums = seen.clone().map(|row| row[columns.start..columns.end].iter().sum::<f32>());
                        *out = sums.sum::<f32>() / (rows.counted * columns.counted) as f32;
                    }
                    continue;
                }
                // Rows first, for whole rows of values are compared side by side.
                largest.fill(f32::NEG_INFINITY);
                for row in seen {
                    largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = largest.max(*x));
                }
                for (columns, out) in spans.iter().zip(out) {
                    *out = largest[columns.start..columns.end].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                }
            }
        });
    }
}

impl Pool {
    /// All channels of one output pixel, of an image whose rows are so long.
    fn pixel(&self, input: &[f32], row: usize, rows: Span, columns: Span, out: &mut [f32]) {
        let channels = out.len();
        let seen =
            |row_number: usize| input[row_number * row..][columns.start * channels..columns.end * channels].chunks(channels);
        if !self.mean {
            out.fill(f32::NEG_INFINITY);
            for x in (rows.start..rows.end).flat_map(seen) {
                out.iter_mut().zip(x).for_each(|(most, x)| *most = most.max(*x));
            }
            return;
        }
        out.fill(0.0);
        let mut sums = vec![0.0_f32; channels];
        for number in rows.start..rows.end {
            sums.fill(0.0);
            seen(number).for_each(|x| sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x));
            out.iter_mut().zip(&sums).for_each(|(all, sum)| *all += sum);
        }
        let counted = (rows.counted * columns.counted) as f32;
        out.iter_mut().for_each(|sum| *sum /= counted);
    }
}
