//! Layers whose matrix is structural.

use briquette_kernels::structured::Prepared;

use super::convolve::Epilogue;
use super::operation::Operation;
use super::threads::Threads;
use crate::Activation;

/// A structural matrix times every vector, or every pixel of a map.
#[derive(Debug)]
pub(crate) struct StructuredProduct {
    pub(crate) matrix: Prepared,
    pub(crate) epilogue: Epilogue,
    /// Of the input and of the output.
    pub(crate) features: [usize; 2],
}

impl Operation for StructuredProduct {
    fn bytes(&self) -> usize {
        self.matrix.bytes() + 4 * self.epilogue.bias.len()
    }

    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        Some(&mut self.epilogue.activation)
    }

    /// `[batch, in, pixels]` to `[batch, out, pixels]`.
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let [features, outputs] = self.features;
        let pixels = output.len() / batch / outputs;
        threads.pieces(output, outputs * pixels, |sample, out| {
            let input = &inputs[0][sample * features * pixels..][..features * pixels];
            if pixels == 1 {
                self.matrix.forward_into(input, out);
            } else {
                let mut rows = vec![0.0; out.len()];
                self.matrix.forward_into(&turned(input, pixels), &mut rows);
                out.copy_from_slice(&turned(&rows, outputs));
            }
            out.chunks_mut(pixels).enumerate().for_each(|(channel, values)| self.epilogue.apply(channel, values));
        });
    }
}

/// The transpose of a matrix of as many columns.
fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}
