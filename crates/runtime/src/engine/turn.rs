//! How maps lie, and turning them around.

use super::convolve::transpose_into;
use super::operation::Operation;
use super::threads::Threads;

/// Puts maps that lie channels first channels last, or back: the transpose of a matrix of so many rows.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Channels, or pixels on the way back.
    pub(crate) rows: usize,
}

impl Operation for Turn {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let sample = output.len() / batch;
        threads.pieces(output, sample, |number, out| transpose_into(&inputs[0][number * sample..][..sample], self.rows, out));
    }
}
