//! Pooling: every kind is a maximum or a mean over rectangles, known once the shapes are.

use super::threads::Threads;
use crate::Window;

/// Pooling of planes `[h, w]`.
#[derive(Debug)]
pub(crate) struct Pool {
    mean: bool,
    width: usize,
    area: usize,
    rows: Vec<Span>,
    columns: Vec<Span>,
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
        let spans = |axis: usize| {
            let span = |position: usize| {
                let first = position * window.stride[axis];
                let start = first.saturating_sub(window.padding[axis]);
                let end = (first + window.kernel[axis]).saturating_sub(window.padding[axis]).min(input[axis]);
                Span { start, end, counted: if count_padding { window.kernel[axis] } else { end - start } }
            };
            (0..output[axis]).map(span).collect()
        };
        Self { mean: true, width: input[1], area: input[0] * input[1], rows: spans(0), columns: spans(1) }
    }

    /// Means over `floor(i * in / out) .. ceil((i + 1) * in / out)`.
    pub(crate) fn adaptive(input: [usize; 2], output: [usize; 2]) -> Self {
        let spans = |axis: usize| {
            let (size, count) = (input[axis], output[axis]);
            let span = |i: usize| {
                let (start, end) = (i * size / count, ((i + 1) * size).div_ceil(count));
                Span { start, end, counted: end - start }
            };
            (0..count).map(span).collect()
        };
        Self { mean: true, width: input[1], area: input[0] * input[1], rows: spans(0), columns: spans(1) }
    }

    /// `input` `[planes, h, w]` to `output` `[planes, oh, ow]`.
    pub(crate) fn run(&self, input: &[f32], output: &mut [f32], threads: &Threads) {
        threads.pieces(output, self.rows.len() * self.columns.len(), |number, plane| {
            let input = &input[number * self.area..][..self.area];
            for (rows, out) in self.rows.iter().zip(plane.chunks_mut(self.columns.len())) {
                for (columns, out) in self.columns.iter().zip(out) {
                    let seen = (rows.start..rows.end)
                        .map(|row| &input[row * self.width..][columns.start..columns.end])
                        .flat_map(|row| row.iter().copied());
                    *out = match self.mean {
                        true => seen.sum::<f32>() / (rows.counted * columns.counted) as f32,
                        false => seen.fold(f32::NEG_INFINITY, f32::max),
                    };
                }
            }
        });
    }
}
