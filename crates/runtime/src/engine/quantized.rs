//! Convolutions and fully connected layers whose weights and inputs lie on grids: products of integers, or of signs a bit each.
//!
//! With `w = s_c (q_w - z_w)` and `x = s_x (q_x - z_x)` a layer's sum is `s_c s_x sum (q_w - z_w)(q_x - z_x)`, and the sum is an integer, exact
//! in any order (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018).
//! The same sum in floats is rounded after every addition; where nothing is lost there, both ways agree to the last bit. Zeros between two
//! codes make both sides twice as large and the step half.

use briquette_kernels::integer::{self, Scaling};
use briquette_kernels::{Conv2d, Precision, bits, grid};

use super::convolve::{Epilogue, Geometry, transpose_into};
use super::operation::Operation;
use super::threads::Threads;
use crate::{Activation, Coded, Grid};

/// Most groups of a convolution in integers: the filters of each are packed apart, which takes a multiple of the weights where they are few.
const MOST_GROUPS: usize = 1 << 12;

/// A layer in integers.
#[derive(Debug)]
pub(crate) struct Quantized {
    product: Box<Product>,
    /// The grid of its input.
    input: Grid,
    channels: usize,
    pub(crate) out: usize,
    /// What a filter's integer sum stands for.
    scaling: Scaling,
    pub(crate) epilogue: Epilogue,
}

#[derive(Debug)]
enum Product {
    Signs(bits::Convolution),
    /// Perhaps with a last filter of ones, which computes the sum of a window's inputs, where weights have a zero that does not fit.
    Bytes(integer::Convolution),
}

impl Operation for Quantized {
    fn bytes(&self) -> usize {
        let weights = match &*self.product {
            Product::Signs(filters) => filters.bytes(),
            Product::Bytes(filters) => filters.bytes(),
        };
        weights + self.scaling.bytes() + 4 * self.epilogue.bias.len()
    }

    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        Some(&mut self.epilogue.activation)
    }

    fn fold(&mut self, scale: &[f32], shift: &[f32]) -> bool {
        let Some(scale) = self.epilogue.fold(self.out, scale, shift) else { return false };
        self.scaling.multiply(&scale);
        true
    }

    /// `[batch, channels, h, w]` to `[batch, out, oh, ow]`. The input is put on its grid first, which changes nothing where that was done before.
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let (image, map) = (inputs[0].len() / batch, output.len() / batch);
        let positions = map / self.out;
        // A few images at a time, so that what is between the steps stays in the cache, yet enough for each weight that is loaded.
        let some = WINDOWS.div_ceil(positions).min(batch);
        let tasks: Vec<_> = inputs[0].chunks(some * image).zip(output.chunks_mut(some * map)).collect();
        if tasks.len() >= threads.count() {
            threads.each(tasks, |scratch, (input, output)| self.few(scratch, input, image, output, 1));
        } else {
            let mut scratch = Scratch::default();
            tasks.into_iter().for_each(|(input, output)| {
                threads.inside(|count| self.few(&mut scratch, input, image, output, count));
            });
        }
    }
}

impl Quantized {
    /// The layer with this weight `[out, in / groups, kh, kw]` for inputs on this grid; none where integers cannot compute it: for weights
    /// beside any grid or on one along another axis, for more than 256 levels, where sums may not fit 32 bits, where a border would
    /// have to be padded by what is no code, and for more than [`MOST_GROUPS`].
    pub(crate) fn new(geometry: &Geometry, weight: &Coded, out: usize, input: &Grid, epilogue: Epilogue) -> Option<Self> {
        let (grid, codes) = weight.codes()?;
        let levels = grid.levels.max(input.levels);
        if grid.axis.is_some_and(|axis| axis != 0) || levels > 256 || geometry.groups > MOST_GROUPS {
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
            let product = Box::new(Product::Signs(bits::Convolution::pack(shape, &matrix).ok()?));
            let scales: Vec<f32> = (0..out).map(|row| 0.25 * step(row)).collect();
            let scaling = Scaling::new(1, &scales, &vec![0; out], None);
            return Some(Self { product, input: input.clone(), channels: geometry.channels, out, scaling, epilogue });
        }
        let between = |zero: f32| if zero.fract() == 0.0 { 1 } else { 2 };
        let (factor, zero) = (between(input.zeros[0]), input.zeros[0]);
        if factor == 2 && !geometry.padding.is_none() {
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
        let offsets: Vec<i32> = (0..out).map(offset).collect();
        let scales: Vec<f32> = (0..out).map(|row| step(row) / (factor * between(zeros[row])) as f32).collect();
        let scaling = Scaling::new(factor, &scales, &offsets, window_factors.as_deref());
        let product = Box::new(Product::Bytes(filters));
        Some(Self { product, input: input.clone(), channels: geometry.channels, out, scaling, epilogue })
    }

    /// [`Operation::run`] for a few images of this size.
    fn few(&self, scratch: &mut Scratch, input: &[f32], image: usize, output: &mut [f32], threads: usize) {
        let batch = input.len() / image;
        let map = output.len() / batch;
        let of_image = map / self.out * self.scaling.stride();
        scratch.sums.resize(batch * of_image, 0);
        match &*self.product {
            Product::Signs(filters) => {
                scratch.last.resize(input.len(), 0.0);
                for (input, last) in input.chunks_exact(image).zip(scratch.last.chunks_exact_mut(image)) {
                    transpose_into(input, self.channels, last);
                }
                self.input.round(&mut scratch.last);
                let signs = bits::Matrix::of_signs(batch, image, &scratch.last, threads);
                signs.and_then(|signs| filters.forward(&signs, &mut scratch.sums, threads))
            }
            Product::Bytes(filters) => {
                scratch.codes.resize(input.len(), 0);
                let (step, zero) = (self.input.steps[0], self.input.zeros[0]);
                let grid = grid::Grid { step, zero, levels: self.input.levels };
                for (input, codes) in input.chunks_exact(image).zip(scratch.codes.chunks_exact_mut(image)) {
                    grid.codes_last(input, self.channels, codes);
                }
                filters.forward(batch, &scratch.codes, zero as u8, &mut scratch.sums, threads)
            }
        }
        .expect("the shapes were checked");
        for (sums, map) in scratch.sums.chunks_exact(of_image).zip(output.chunks_exact_mut(map)) {
            self.scaling.channels_first(sums, map);
            map.chunks_exact_mut(map.len() / self.out).enumerate().for_each(|(row, plane)| self.epilogue.apply(row, plane));
        }
    }
}

/// What is between the steps for a few images.
#[derive(Debug, Default)]
struct Scratch {
    /// The input channels last.
    last: Vec<f32>,
    /// The same as codes.
    codes: Vec<u8>,
    sums: Vec<i32>,
}

/// Fewest windows that are worked on at a time, where there are as many.
const WINDOWS: usize = 256;
