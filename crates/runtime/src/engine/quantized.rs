//! Convolutions and fully connected layers whose weights and inputs lie on grids: products of integers, or of signs a bit each.
//!
//! With `w = s_c (q_w - z_w)` and `x = s_x (q_x - z_x)` a layer's sum is `s_c s_x sum (q_w - z_w)(q_x - z_x)`, and the sum is an integer, exact
//! in any order (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018).
//! The same sum in floats is rounded after every addition; where nothing is lost there, both ways agree to the last bit. Zeros between two
//! codes make both sides twice as large and the step half.

use briquette_kernels::{Conv2d, Precision, bits, integer};

use super::convolve::{Epilogue, Geometry, transpose_into};
use super::pointwise::quantize;
use super::threads::Threads;
use crate::{Coded, Grid};

/// A layer in integers.
#[derive(Debug)]
pub(crate) struct Quantized {
    product: Product,
    /// The grid of its input.
    input: Grid,
    channels: usize,
    pub(crate) out: usize,
    /// What a filter's integer sum is multiplied by.
    scales: Vec<f32>,
    pub(crate) epilogue: Epilogue,
}

#[derive(Debug)]
enum Product {
    Signs(bits::Convolution),
    Bytes {
        filters: integer::Convolution,
        /// What the zero of the inputs adds to a filter's sum.
        offsets: Vec<i32>,
        /// Factors of the sum of a window's inputs, which a last filter of ones computes, where weights have a zero that does not fit.
        zeros: Option<Vec<i32>>,
        /// 2 where the zero of the inputs lies between two codes.
        factor: i32,
    },
}

impl Quantized {
    /// The layer with this weight `[out, in / groups, kh, kw]` for inputs on this grid; none where integers cannot compute it: for weights
    /// beside any grid or on one along another axis, for more than 256 levels, where sums may not fit 32 bits, and where a border would
    /// have to be padded by what is no code.
    pub(crate) fn new(geometry: &Geometry, weight: &Coded, out: usize, input: &Grid, epilogue: Epilogue) -> Option<Self> {
        let (grid, codes) = weight.codes()?;
        if grid.axis.is_some_and(|axis| axis != 0) || grid.levels > 256 || input.levels > 256 {
            return None;
        }
        let shape = Conv2d {
            batch: 1,
            input: [geometry.input[0], geometry.input[1], geometry.channels],
            filters: out,
            kernel: geometry.kernel,
            stride: geometry.stride,
            padding: geometry.padding,
            dilation: geometry.dilation,
            groups: geometry.groups,
            precision: Precision::F32,
        };
        let depth = codes.len() / out;
        let of = |values: &[f32], row: usize| if grid.axis.is_some() { values[row] } else { values[0] };
        let zeros: Vec<f32> = (0..out).map(|row| of(&grid.zeros, row)).collect();
        let signs = |grid: &Grid| grid.levels == 2 && grid.zeros.iter().all(|zero| *zero == 0.5);
        let step = |row: usize| of(&grid.steps, row) * input.steps[0];
        if signs(grid) && signs(input) {
            let values: Vec<f32> = codes.iter().map(|code| f32::from(*code) - 0.5).collect();
            let matrix = bits::Matrix::of_signs(out, depth, &values, 1).ok()?;
            let product = Product::Signs(bits::Convolution::pack(shape, &matrix).ok()?);
            let scales = (0..out).map(|row| 0.25 * step(row)).collect();
            return Some(Self { product, input: input.clone(), channels: geometry.channels, out, scales, epilogue });
        }
        let between = |zero: f32| if zero.fract() == 0.0 { 1 } else { 2 };
        let (factor, zero) = (between(input.zeros[0]), input.zeros[0]);
        if factor == 2 && geometry.padding != [0, 0] {
            return None;
        }
        // Twice the zero, so that it is an integer.
        let twice = |zero: f32| (2.0 * zero) as i32;
        let distance =
            |row: usize, code: u16| between(zeros[row]) * i32::from(code) - between(zeros[row]) * twice(zeros[row]) / 2;
        let rows = || codes.chunks_exact(depth).enumerate();
        let fit = rows().all(|(row, codes)| codes.iter().all(|code| i8::try_from(distance(row, *code)).is_ok()));
        let bounded = rows().all(|(row, codes)| {
            let sum: i64 = codes.iter().map(|code| i64::from(distance(row, *code).abs())).sum();
            i64::from(factor) * 255 * sum <= i64::from(i32::MAX)
        });
        if !bounded || (!fit && (geometry.groups > 1 || zeros.iter().any(|zero| between(*zero) == 2))) {
            return None;
        }
        // Weights of eight bits with a zero elsewhere than in the middle are taken about 128.
        let about = |row: usize, code: u16| if fit { distance(row, code) } else { i32::from(code) - 128 };
        let mut values: Vec<i8> = rows().flat_map(|(row, codes)| codes.iter().map(move |code| about(row, *code) as i8)).collect();
        let mut filters = out;
        let mut window_factors = None;
        if !fit {
            values.extend(std::iter::repeat_n(1, depth));
            filters += 1;
            window_factors = Some(zeros.iter().map(|zero| *zero as i32 - 128).collect::<Vec<_>>());
        }
        let filters = integer::Convolution::pack(Conv2d { filters, ..shape }, &values).ok()?;
        let sums = filters.sums();
        let offset = |row: usize| {
            let zero = factor * twice(zero) / 2;
            let windows = window_factors.as_ref().map_or(0, |zeros| zeros[row].wrapping_mul(depth as i32));
            zero.wrapping_mul(windows.wrapping_sub(sums[row]))
        };
        let offsets = (0..out).map(offset).collect();
        let scales = (0..out).map(|row| step(row) / (factor * between(zeros[row])) as f32).collect();
        let product = Product::Bytes { filters, offsets, zeros: window_factors, factor };
        Some(Self { product, input: input.clone(), channels: geometry.channels, out, scales, epilogue })
    }

    /// Bytes that it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let weights = match &self.product {
            Product::Signs(filters) => filters.bytes(),
            Product::Bytes { filters, offsets, zeros, .. } => {
                filters.bytes() + 4 * (offsets.len() + zeros.as_ref().map_or(0, Vec::len))
            }
        };
        weights + 4 * (self.scales.len() + self.epilogue.bias.len())
    }

    /// Multiplies what each filter computes before its bias.
    pub(crate) fn scale_rows(&mut self, factors: &[f32]) {
        self.scales.iter_mut().zip(factors).for_each(|(scale, factor)| *scale *= factor);
    }

    /// `input` `[batch, channels, h, w]` to `output` `[batch, out, oh, ow]`. The input is put on its grid first, which changes nothing where
    /// that was done before.
    pub(crate) fn run(&self, input: &[f32], batch: usize, output: &mut [f32], threads: &Threads) {
        let area = input.len() / (batch * self.channels);
        let positions = output.len() / (batch * self.out);
        let mut last = vec![0.0; input.len()];
        threads.pieces(&mut last, self.channels * area, |sample, image| {
            transpose_into(&input[sample * self.channels * area..][..image.len()], self.channels, image);
        });
        let (columns, stride, sums) = match &self.product {
            Product::Signs(filters) => {
                threads.pieces(&mut last, PIECE, |_, values| quantize(&self.input, values));
                let mut sums = vec![0; output.len()];
                threads.inside(|count| {
                    let signs = bits::Matrix::of_signs(batch, last.len() / batch, &last, count);
                    signs.and_then(|signs| filters.forward(&signs, &mut sums, count)).expect("the shapes were checked");
                });
                (None, self.out, sums)
            }
            Product::Bytes { filters, zeros, .. } => {
                let codes: Vec<u8> = last.iter().map(|value| self.input.nearest(0, *value) as u8).collect();
                let stride = self.out + usize::from(zeros.is_some());
                let mut sums = vec![0; batch * positions * stride];
                let zero = self.input.zeros[0] as u8;
                threads.inside(|count| {
                    filters.forward(batch, &codes, zero, &mut sums, count).expect("the shapes were checked");
                });
                (zeros.as_ref(), stride, sums)
            }
        };
        threads.pieces(output, positions, |number, plane| {
            let (sample, row) = (number / self.out, number % self.out);
            let scale = self.scales[row];
            let windows = sums[sample * positions * stride..][..positions * stride].chunks_exact(stride);
            match &self.product {
                Product::Signs(_) => plane.iter_mut().zip(windows).for_each(|(out, sums)| *out = scale * sums[row] as f32),
                Product::Bytes { offsets, factor, .. } => {
                    let window = columns.map_or(0, |zeros| factor * zeros[row]);
                    for (out, sums) in plane.iter_mut().zip(windows) {
                        let inputs = if window == 0 { 0 } else { window.wrapping_mul(sums[self.out]) };
                        let sum = factor.wrapping_mul(sums[row]).wrapping_add(offsets[row]).wrapping_sub(inputs);
                        *out = scale * sum as f32;
                    }
                }
            }
            self.epilogue.apply(row, plane);
        });
    }
}

/// Floats of an element-wise task.
const PIECE: usize = 1 << 14;
