//! Values on uniform grids: the nearest codes, and the gradients of their values.
//!
//! The loops are plain Rust, compiled for each instruction set: no operation in them depends on how many lanes there are.

// Results go into memory that nobody has written before.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::buffer::filled;
use crate::lanes::{Isa, Lanes, Work};

/// Values of a task.
const TASK: usize = 1 << 14;

/// Sums side by side, so that no addition waits for the one before it.
const SUMS: usize = 16;

/// Pixels that are put into another order at a time.
const PIXELS: usize = 64;

/// A uniform grid: the code `q` in `0..levels` stands for `step (q - zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Distance between neighbouring values.
    pub step: f32,
    /// The code, or the middle of two, that stands for 0.
    pub zero: f32,
    /// Number of codes.
    pub levels: u32,
}

/// What a grid makes of a value.
#[derive(Clone, Copy)]
struct Placed {
    /// `q - zero`.
    code: f32,
    /// `x / step`.
    exact: f32,
    inside: bool,
}

/// A number for each value and the gradient that comes with it.
trait Rule {
    fn of(grid: &Grid, placed: Placed, dy: f32) -> f32;
}

/// The nearest value of the grid.
struct Nearest;

/// The gradient by the value.
struct Through;

/// The gradient by the step.
struct ByStep;

/// The gradient by the step where only the upper end moves.
struct ByEnd;

impl Rule for Nearest {
    #[inline(always)]
    fn of(grid: &Grid, placed: Placed, _: f32) -> f32 {
        placed.code * grid.step
    }
}

impl Rule for Through {
    #[inline(always)]
    fn of(_: &Grid, placed: Placed, dy: f32) -> f32 {
        if placed.inside { dy } else { 0.0 }
    }
}

impl Rule for ByStep {
    #[inline(always)]
    fn of(_: &Grid, placed: Placed, dy: f32) -> f32 {
        dy * if placed.inside { placed.code - placed.exact } else { placed.code }
    }
}

impl Rule for ByEnd {
    #[inline(always)]
    fn of(grid: &Grid, placed: Placed, dy: f32) -> f32 {
        let last = (grid.levels - 1) as f32 - grid.zero;
        dy * if placed.exact > last { last } else { 0.0 }
    }
}

impl Grid {
    #[inline(always)]
    fn place(&self, x: f32) -> Placed {
        let (exact, last) = (x / self.step, (self.levels - 1) as f32);
        let u = exact + self.zero;
        Placed { code: whole(u.clamp(0.0, last) + 0.5) - self.zero, exact, inside: u >= 0.0 && u <= last }
    }

    /// The nearest value of the grid, of two the higher, to each value; NaN stays NaN.
    pub fn quantize(&self, x: &[f32]) -> Vec<f32> {
        self.each::<Nearest>(x, x)
    }

    /// The codes of an image, `[channels, pixels]`, channels last; NaN has the code 0.
    ///
    /// # Panics
    /// If the slices are no images of so many channels and equal size, or codes do not fit a byte.
    pub fn codes_last(&self, x: &[f32], channels: usize, codes: &mut [u8]) {
        assert!(x.len() == codes.len() && x.len().is_multiple_of(channels), "{channels} channels of {} pixels", x.len());
        assert!(self.levels <= 256, "codes of a grid of {} levels do not fit a byte", self.levels);
        Isa::of_this_machine().run(Codes { grid: *self, x, channels, codes });
    }

    /// The gradient of [`Grid::quantize`] by its input, straight through the rounding: that by the output, inside the grid.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn input_gradient(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        self.each::<Through>(x, dy)
    }

    /// The gradient by the step: the sum of `dy (q - zero - x / step)` inside the grid and `dy (q - zero)` beyond its ends.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn step_gradient(&self, x: &[f32], dy: &[f32]) -> f64 {
        self.sum::<ByStep>(x, dy)
    }

    /// The gradient by the step where only the upper end moves: the sum of `dy (levels - 1 - zero)` beyond it.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn clip_gradient(&self, x: &[f32], dy: &[f32]) -> f64 {
        self.sum::<ByEnd>(x, dy)
    }

    fn each<R: Rule>(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        assert_eq!(x.len(), dy.len(), "a gradient for each output");
        let isa = Isa::of_this_machine();
        // SAFETY: the tasks are all of the values, and each writes one result for every value of its own.
        unsafe {
            filled(x.len(), |to| {
                x.par_chunks(TASK).zip(dy.par_chunks(TASK)).enumerate().for_each(|(task, (x, dy))| {
                    // SAFETY: `at` checked that the place lies inside the buffer; no other task writes there.
                    let y = std::slice::from_raw_parts_mut(to.at(task * TASK, x.len()).cast(), x.len());
                    isa.run(Each::<R> { grid: *self, x, dy, y, rule: std::marker::PhantomData });
                });
            })
        }
    }

    /// The sum over the values, task by task, whatever the number of threads.
    fn sum<R: Rule>(&self, x: &[f32], dy: &[f32]) -> f64 {
        assert_eq!(x.len(), dy.len(), "a gradient for each output");
        let isa = Isa::of_this_machine();
        let of_task = |(x, dy)| isa.run(Sum::<R> { grid: *self, x, dy, rule: std::marker::PhantomData });
        let sums: Vec<f64> = x.par_chunks(TASK).zip(dy.par_chunks(TASK)).map(of_task).collect();
        sums.iter().sum()
    }
}

/// Gradients of few bits: in each sample of `size` values, whose largest absolute value is `m`, the values are rounded to `2^bits` levels that
/// lie evenly from `-m` to `m`, up or down at random: `2 m (floor(n (dy / (2 m) + 1 / 2) + noise) / n - 1 / 2)` with `n = 2^bits - 1`. For noise
/// evenly spread over `[0, 1)` the mean is `dy`.
///
/// # Panics
/// If the slices differ in length or are no samples of so many values.
pub fn coarse(dy: &[f32], noise: &[f32], size: usize, bits: u32) -> Vec<f32> {
    assert!(dy.len() == noise.len() && dy.len().is_multiple_of(size.max(1)), "noise for each gradient of whole samples");
    let last = ((1_u64 << bits) - 1) as f32;
    let mut rounded = vec![0.0; dy.len()];
    let samples = rounded.par_chunks_mut(size.max(1)).zip(dy.par_chunks(size.max(1))).zip(noise.par_chunks(size.max(1)));
    samples.for_each(|((rounded, dy), noise)| {
        let largest = dy.iter().fold(0.0_f32, |largest, dy| largest.max(dy.abs()));
        if largest > 0.0 {
            for ((rounded, dy), noise) in rounded.iter_mut().zip(dy).zip(noise) {
                let code = (last * (dy / (2.0 * largest) + 0.5) + noise).floor().clamp(0.0, last);
                *rounded = 2.0 * largest * (code / last - 0.5);
            }
        }
    });
    rounded
}

/// Gradients in fixed point: each is rounded to a multiple of `step`, up or down at random, from `-end step` to `(end - 1) step`, at which what lies
/// beyond is cut off: `step clamp(floor(dy / step + noise), -end, end - 1)`. For noise evenly spread over `[0, 1)` the mean is `dy`, between the ends.
///
/// # Panics
/// If the slices differ in length.
pub fn in_format(dy: &[f32], noise: &[f32], step: f32, end: f32) -> Vec<f32> {
    assert_eq!(dy.len(), noise.len(), "noise for each gradient");
    let mut rounded = vec![0.0; dy.len()];
    let tasks = rounded.par_chunks_mut(TASK).zip(dy.par_chunks(TASK)).zip(noise.par_chunks(TASK));
    tasks.for_each(|((rounded, dy), noise)| {
        for ((rounded, dy), noise) in rounded.iter_mut().zip(dy).zip(noise) {
            *rounded = (dy / step + noise).floor().clamp(-end, end - 1.0) * step;
        }
    });
    rounded
}

struct Each<'a, R> {
    grid: Grid,
    x: &'a [f32],
    dy: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
    rule: std::marker::PhantomData<R>,
}

impl<R: Rule> Work for Each<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for ((y, x), dy) in self.y.iter_mut().zip(self.x).zip(self.dy) {
            y.write(R::of(&self.grid, self.grid.place(*x), *dy));
        }
    }
}

struct Sum<'a, R> {
    grid: Grid,
    x: &'a [f32],
    dy: &'a [f32],
    rule: std::marker::PhantomData<R>,
}

impl<R: Rule> Work for Sum<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f64 {
        let mut sums = [0.0_f64; SUMS];
        let (x, last_x) = self.x.as_chunks::<SUMS>();
        let (dy, last_dy) = self.dy.as_chunks::<SUMS>();
        for (x, dy) in x.iter().zip(dy) {
            for (sum, (x, dy)) in sums.iter_mut().zip(x.iter().zip(dy)) {
                *sum += f64::from(R::of(&self.grid, self.grid.place(*x), *dy));
            }
        }
        for (sum, (x, dy)) in sums.iter_mut().zip(last_x.iter().zip(last_dy)) {
            *sum += f64::from(R::of(&self.grid, self.grid.place(*x), *dy));
        }
        sums.iter().sum()
    }
}

struct Codes<'a> {
    grid: Grid,
    x: &'a [f32],
    channels: usize,
    codes: &'a mut [u8],
}

impl Work for Codes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { grid, x, channels, codes } = self;
        let (pixels, last) = (x.len() / channels, (grid.levels - 1) as f32);
        for (first, codes) in (0..pixels).step_by(PIXELS).zip(codes.chunks_mut(PIXELS * channels)) {
            let count = PIXELS.min(pixels - first);
            for channel in (0..channels).step_by(4) {
                // The codes of up to four channels, a byte each.
                let mut words = [0_u32; PIXELS];
                let some = 4.min(channels - channel);
                for byte in 0..some {
                    let x = &x[(channel + byte) * pixels + first..][..count];
                    for (word, x) in words.iter_mut().zip(x) {
                        // The maximum makes 0 of what is no number.
                        *word |= code((x / grid.step + grid.zero).max(0.0).min(last)) << (8 * byte);
                    }
                }
                for (codes, word) in codes.chunks_exact_mut(channels).zip(&words[..count]) {
                    let bytes = word.to_le_bytes();
                    match codes[channel..].first_chunk_mut() {
                        Some(codes) => *codes = bytes,
                        None => codes[channel..].copy_from_slice(&bytes[..some]),
                    }
                }
            }
        }
    }
}

/// Floats from here to twice as much are whole numbers.
const NO_FRACTION: f32 = 8_388_608.0;

/// The largest whole number not above `x`, for `x` from 0 to 2^22. Vectors of `floor` are not on every machine, sums are.
#[inline(always)]
fn whole(x: f32) -> f32 {
    let near = (x + NO_FRACTION) - NO_FRACTION;
    if near > x { near - 1.0 } else { near }
}

/// The nearest whole number, of two the higher, for `x` from 0 to 255: the last bits of a float without a fraction.
#[inline(always)]
fn code(x: f32) -> u32 {
    (whole(x + 0.5) + NO_FRACTION).to_bits() & 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_to_the_nearest_code_and_gradients_through_those_inside() {
        let grid = Grid { step: 0.5, zero: 1.0, levels: 4 };
        let x = [0.3, 0.24, 0.25, 5.0, -0.7, 1.0, -0.5];
        assert_eq!(grid.quantize(&x), [0.5, 0.0, 0.5, 1.0, -0.5, 1.0, -0.5]);
        assert!(grid.quantize(&[f32::NAN])[0].is_nan());
        let dy = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        assert_eq!(grid.input_gradient(&x, &dy), [1.0, 2.0, 3.0, 0.0, 0.0, 6.0, 7.0]);
        // Inside 1 - 0.6, 0 - 0.48, 1 - 0.5, 0 and 0; above 2, below -1.
        let expected = 0.4 - 2.0 * 0.48 + 3.0 * 0.5 + 4.0 * 2.0 - 5.0;
        assert!((grid.step_gradient(&x, &dy) - expected).abs() < 1e-6);
        assert_eq!(grid.clip_gradient(&x, &dy), 8.0);
        let sixteen = Grid { step: 1.0, zero: 0.0, levels: 1 << 16 };
        let all: Vec<f32> = (0..1 << 18).map(|i| i as f32 / 4.0).collect();
        assert!(sixteen.quantize(&all).iter().zip(&all).all(|(q, x)| *q == (x.min(65535.0) + 0.5).floor()));
    }

    #[test]
    fn sums_are_the_same_for_any_number_of_threads() {
        let x: Vec<f32> = (0..5 * TASK + 77).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let dy: Vec<f32> = (0..x.len()).map(|i| (i as f32 * 0.11).cos()).collect();
        let grid = Grid { step: 0.1, zero: 8.0, levels: 16 };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (grid.quantize(&x), grid.input_gradient(&x, &dy), grid.step_gradient(&x, &dy).to_bits()))
        };
        assert!(run(1) == run(2) && run(1) == run(5));
    }

    #[test]
    fn every_instruction_set_does_what_plain_rust_does() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 3.0).chain([f32::NAN, 0.05, -0.05, 1e9]).collect();
        let dy: Vec<f32> = (0..x.len()).map(|i| (i as f32 * 0.11).cos()).collect();
        let grid = Grid { step: 0.1, zero: 8.0, levels: 16 };
        let run = |isa: Isa| {
            let mut y = vec![MaybeUninit::new(0.0); x.len()];
            isa.run(Each::<Nearest> { grid, x: &x, dy: &x, y: &mut y, rule: std::marker::PhantomData });
            // SAFETY: all were written when the vector was made.
            let y: Vec<u32> = y.iter().map(|y| unsafe { y.assume_init() }.to_bits()).collect();
            let sum = isa.run(Sum::<ByStep> { grid, x: &x[..1000], dy: &dy[..1000], rule: std::marker::PhantomData });
            let mut codes = vec![0; x.len()];
            isa.run(Codes { grid, x: &x, channels: 4, codes: &mut codes });
            (y, sum.to_bits(), codes)
        };
        assert!(Isa::all().into_iter().all(|isa| run(isa) == run(Isa::Portable)));
    }

    #[test]
    fn coarse_gradients_have_few_levels_and_are_right_on_the_mean() {
        let dy = [0.3, -0.5, 0.0, 0.1, 0.0, 0.0, 2.0, -0.25];
        let draws = 1000;
        let mut means = [0.0; 8];
        for draw in 0..draws {
            let noise = [(draw as f32 + 0.5) / draws as f32; 8];
            let rounded = coarse(&dy, &noise, 4, 2);
            for (i, rounded) in rounded.iter().enumerate() {
                let third = rounded / [0.5, 2.0][i / 4] * 3.0;
                assert!([-3.0, -1.0, 1.0, 3.0].iter().any(|level| (level - third).abs() < 1e-5), "{rounded}");
                means[i] += rounded / draws as f32;
            }
        }
        assert!(means.iter().zip(dy).all(|(mean, dy)| (mean - dy).abs() < 2e-3), "{means:?}");
        assert_eq!(coarse(&[0.0; 3], &[0.5; 3], 3, 8), [0.0; 3]);
    }

    #[test]
    fn gradients_in_fixed_point_are_multiples_of_the_step_right_on_the_mean_and_saturate() {
        let dy = [0.3, -0.55, 0.0, 0.01, 1.7, -1.99, 5.0, -5.0];
        let draws = 1000;
        let mut means = [0.0; 8];
        for draw in 0..draws {
            let rounded = in_format(&dy, &[(draw as f32 + 0.5) / draws as f32; 8], 0.25, 8.0);
            assert!(rounded.iter().all(|dy| (4.0 * dy).fract() == 0.0 && (-2.0..=1.75).contains(dy)), "{rounded:?}");
            means.iter_mut().zip(rounded).for_each(|(mean, dy)| *mean += dy / draws as f32);
        }
        let expected = [0.3, -0.55, 0.0, 0.01, 1.7, -1.99, 1.75, -2.0];
        assert!(means.iter().zip(expected).all(|(mean, dy)| (mean - dy).abs() < 2e-3), "{means:?}");
    }

    #[test]
    fn codes_go_channels_last() {
        let grid = Grid { step: 0.5, zero: 3.0, levels: 256 };
        let (channels, pixels) = (7, 2 * PIXELS + 5);
        let x: Vec<f32> = (0..channels * pixels).map(|i| (i as f32 - 60.0) * 0.16).collect();
        let mut codes = vec![0; x.len()];
        grid.codes_last(&x, channels, &mut codes);
        for (i, code) in codes.iter().enumerate() {
            let x = x[i % channels * pixels + i / channels];
            assert_eq!(*code, ((x / 0.5 + 3.0).clamp(0.0, 255.0) + 0.5) as u8, "{x}");
        }
        let mut code = [7];
        grid.codes_last(&[f32::NAN], 1, &mut code);
        assert_eq!(code, [0]);
    }
}
