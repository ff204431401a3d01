//! One step's operation: what it computes from whole buffers.

use super::convolve::{Convolution, Depthwise, Epilogue, Linear};
use super::pointwise::{self, LocalResponse, Shortcut};
use super::pool::Pool;
use super::quantized::Quantized;
use super::structured::Structured;
use super::threads::Threads;
use crate::{Activation, Grid};

/// Floats of an element-wise task.
const PIECE: usize = 1 << 14;

/// An operation with its weights.
#[derive(Debug)]
pub(crate) enum Operation {
    Convolution(Convolution),
    Depthwise(Depthwise),
    Linear(Linear),
    Quantized(Quantized),
    Structured(Structured),
    Pool(Pool),
    LocalResponse(LocalResponse),
    Shortcut(Shortcut),
    /// Copies `len` floats per input sample from `start` on.
    Slice {
        start: usize,
    },
    Concat,
    /// The mean absolute value over the channels.
    MeanMagnitude {
        channels: usize,
    },
    // The rest works in place.
    Add {
        activation: Option<Activation>,
    },
    /// The second input has the first one's shape or a single channel.
    Multiply,
    Affine {
        scale: Vec<f32>,
        shift: Vec<f32>,
        activation: Option<Activation>,
    },
    Normalize {
        mean: Vec<f32>,
        std: Vec<f32>,
    },
    Activation(Activation),
    Quantize(Grid),
    Softmax {
        channels: usize,
    },
}

impl Operation {
    /// Whether it changes its first input in place.
    pub(crate) fn in_place(&self) -> bool {
        match self {
            Operation::Add { .. }
            | Operation::Multiply
            | Operation::Affine { .. }
            | Operation::Normalize { .. }
            | Operation::Activation(_)
            | Operation::Quantize(_)
            | Operation::Softmax { .. } => true,
            Operation::Convolution(_)
            | Operation::Depthwise(_)
            | Operation::Linear(_)
            | Operation::Quantized(_)
            | Operation::Structured(_)
            | Operation::Pool(_)
            | Operation::LocalResponse(_)
            | Operation::Shortcut(_)
            | Operation::Slice { .. }
            | Operation::Concat
            | Operation::MeanMagnitude { .. } => false,
        }
    }

    /// Bytes of its weights.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Operation::Convolution(conv) => conv.bytes() + 4 * conv.epilogue.bias.len(),
            Operation::Depthwise(conv) => 4 * (conv.weight.len() + conv.epilogue.bias.len()),
            Operation::Linear(linear) => linear.weight.bytes() + 4 * linear.epilogue.bias.len(),
            Operation::Quantized(layer) => layer.bytes(),
            Operation::Structured(structured) => structured.matrix.bytes() + 4 * structured.epilogue.bias.len(),
            Operation::Affine { scale, shift, .. } => 4 * (scale.len() + shift.len()),
            Operation::Normalize { mean, std } => 4 * (mean.len() + std.len()),
            _ => 0,
        }
    }

    /// Takes over the activation that follows; false when it cannot.
    pub(crate) fn absorb(&mut self, follows: Activation) -> bool {
        let activation = match self {
            Operation::Convolution(Convolution { epilogue, .. })
            | Operation::Depthwise(Depthwise { epilogue, .. })
            | Operation::Linear(Linear { epilogue, .. })
            | Operation::Quantized(Quantized { epilogue, .. })
            | Operation::Structured(Structured { epilogue, .. }) => &mut epilogue.activation,
            Operation::Add { activation } | Operation::Affine { activation, .. } => activation,
            _ => return false,
        };
        let free = activation.is_none();
        if free {
            *activation = Some(follows);
        }
        free
    }

    /// Takes over the scale and shift of each channel that follow; false when it cannot.
    pub(crate) fn fold(&mut self, scale: &[f32], shift: &[f32]) -> bool {
        let (epilogue, out): (&mut Epilogue, usize) = match self {
            Operation::Convolution(Convolution { epilogue, out, .. })
            | Operation::Depthwise(Depthwise { epilogue, out, .. })
            | Operation::Linear(Linear { epilogue, out, .. })
            | Operation::Quantized(Quantized { epilogue, out, .. }) => (epilogue, *out),
            _ => return false,
        };
        // Between them may stand a flattening, after which a channel is another thing.
        if epilogue.activation.is_some() || scale.len() != out {
            return false;
        }
        let bias = |channel: usize| epilogue.bias.get(channel).copied().unwrap_or(0.0);
        epilogue.bias = (0..scale.len()).map(|channel| bias(channel) * scale[channel] + shift[channel]).collect();
        match self {
            Operation::Convolution(conv) => conv.scale_rows(scale),
            Operation::Linear(linear) => linear.weight.scale_rows(scale),
            Operation::Quantized(layer) => layer.scale_rows(scale),
            Operation::Depthwise(conv) => {
                let taps = conv.weight.len() / conv.out;
                conv.weight.chunks_mut(taps).zip(scale).for_each(|(taps, scale)| taps.iter_mut().for_each(|tap| *tap *= scale));
            }
            _ => {}
        }
        true
    }

    /// Computes `output` from `inputs`; an operation that works in place finds its first input in `output` and only the others
    /// in `inputs`.
    pub(crate) fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let sample = output.len() / batch;
        match self {
            Operation::Convolution(conv) => conv.run(inputs[0], output, threads),
            Operation::Depthwise(conv) => conv.run(inputs[0], output, threads),
            Operation::Linear(linear) => linear.run(inputs[0], batch, output, threads),
            Operation::Quantized(layer) => layer.run(inputs[0], batch, output, threads),
            Operation::Structured(structured) => structured.run(inputs[0], batch, output, threads),
            Operation::Pool(pool) => pool.run(inputs[0], output, threads),
            Operation::LocalResponse(norm) => {
                threads.pieces(output, sample, |number, out| norm.run(&inputs[0][number * sample..][..sample], out));
            }
            Operation::Shortcut(shortcut) => {
                let size = inputs[0].len() / batch;
                threads.pieces(output, sample, |number, out| shortcut.run(&inputs[0][number * size..][..size], out));
            }
            Operation::Slice { start } => {
                let size = inputs[0].len() / batch;
                for (out, input) in output.chunks_mut(sample).zip(inputs[0].chunks(size)) {
                    out.copy_from_slice(&input[*start..][..sample]);
                }
            }
            Operation::Concat => {
                for (number, out) in output.chunks_mut(sample).enumerate() {
                    let mut rest = out;
                    for input in inputs {
                        let size = input.len() / batch;
                        let (piece, after) = rest.split_at_mut(size);
                        piece.copy_from_slice(&input[number * size..][..size]);
                        rest = after;
                    }
                }
            }
            Operation::Add { activation } => threads.pieces(output, PIECE, |number, out| {
                for input in inputs {
                    out.iter_mut().zip(&input[number * PIECE..]).for_each(|(sum, x)| *sum += x);
                }
                if let Some(activation) = activation {
                    pointwise::activate(*activation, out);
                }
            }),
            Operation::MeanMagnitude { channels } => {
                let size = inputs[0].len() / batch;
                threads.pieces(output, sample, |number, out| {
                    pointwise::mean_magnitude(*channels, &inputs[0][number * size..][..size], out);
                });
            }
            Operation::Multiply => {
                let size = inputs[0].len() / batch;
                threads.pieces(output, sample, |number, out| {
                    for channels in out.chunks_mut(size) {
                        channels.iter_mut().zip(&inputs[0][number * size..][..size]).for_each(|(y, x)| *y *= x);
                    }
                });
            }
            Operation::Affine { scale, shift, activation } => threads.pieces(output, sample, |_, out| {
                pointwise::affine(scale, shift, out);
                if let Some(activation) = activation {
                    pointwise::activate(*activation, out);
                }
            }),
            Operation::Normalize { mean, std } => threads.pieces(output, sample, |_, out| pointwise::normalize(mean, std, out)),
            Operation::Activation(activation) => {
                threads.pieces(output, PIECE, |_, out| pointwise::activate(*activation, out));
            }
            Operation::Quantize(grid) => threads.pieces(output, PIECE, |_, out| pointwise::quantize(grid, out)),
            Operation::Softmax { channels } => threads.pieces(output, sample, |_, out| pointwise::softmax(*channels, out)),
        }
    }
}
