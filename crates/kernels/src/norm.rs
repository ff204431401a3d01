//! Batch normalization of `[rows, channels]`, where each pixel of each image is a row, with the rectifier and the residual sum that follow
//! it, and the gradients of all of them.

// Results are not zeroed before they are written, and the loops read and write through pointers into slices whose lengths are checked.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::buffer::{Target, filled};
use crate::columns::{Column, ColumnWork, Rows, Terms, each_column, sums};
use crate::lanes::{Isa, Lanes, Work};
use crate::{Error, count};

/// Shape of what is normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchNorm {
    /// Pixels of all images.
    pub rows: usize,
    /// Channels of a pixel.
    pub channels: usize,
}

/// Mean and variance of each channel over a batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// Means.
    pub mean: Vec<f32>,
    /// Variances, divided by the number of values.
    pub variance: Vec<f32>,
}

/// How a channel is normalized and what comes after.
#[derive(Debug, Clone, Copy)]
pub struct Normalization<'a> {
    /// Moments by which it is normalized.
    pub moments: &'a Moments,
    /// Factor of each channel.
    pub gamma: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether negative results become zero.
    pub rectify: bool,
}

/// Gradients by the inputs of a normalization.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// By what is normalized.
    pub x: Vec<f32>,
    /// By gamma.
    pub gamma: Vec<f32>,
    /// By beta.
    pub beta: Vec<f32>,
    /// By the residual, where there was one: the gradient of the output where the rectifier let it through.
    pub residual: Option<Vec<f32>>,
}

/// Rows of a task.
const ROWS: usize = 1024;

impl BatchNorm {
    /// Mean and variance of each channel, in one pass over deviations from the first row: a row is near enough to the mean that squares
    /// lose nothing.
    ///
    /// # Errors
    /// When `x` does not hold the batch.
    pub fn moments(&self, x: &[f32]) -> Result<Moments, Error> {
        self.check(&[("input", x.len())], 0)?;
        let pivot = x.get(..self.channels).unwrap_or_default();
        let all = sums(self.rows, self.channels, |rows, to| Isa::of_this_machine().run(Deviations { x, pivot, rows, to }));
        let count = self.rows.max(1) as f64;
        let of_channel = |channel: usize| {
            let (sum, squares) = (all[2 * channel] / count, all[2 * channel + 1] / count);
            let pivot = pivot.get(channel).copied().unwrap_or_default();
            ((f64::from(pivot) + sum) as f32, (squares - sum * sum).max(0.0) as f32)
        };
        let (mean, variance) = (0..self.channels).map(of_channel).unzip();
        Ok(Moments { mean, variance })
    }

    /// `y = (x - mean) / sqrt(variance + epsilon) * gamma + beta`, plus the residual if there is one, rectified if the normalization says so.
    ///
    /// # Errors
    /// When a slice does not fit the shape.
    pub fn forward(
        &self,
        x: &[f32],
        normalization: &Normalization<'_>,
        beta: &[f32],
        residual: Option<&[f32]>,
    ) -> Result<Vec<f32>, Error> {
        self.check(&[("input", x.len()), ("residual", residual.map_or(x.len(), <[f32]>::len))], beta.len())?;
        let scale = self.scale(normalization)?;
        let write = |to: Target<'_>| {
            self.each_task(|rows| {
                let (mean, rectify) = (&normalization.moments.mean, normalization.rectify);
                Isa::of_this_machine().run(Normalize { x, mean, scale: &scale, beta, residual, rectify, rows, to });
            });
        };
        // SAFETY: the tasks cover all rows, and each writes all channels of its own.
        Ok(unsafe { filled(x.len(), write) })
    }

    /// The gradients for moments that were those of `x` itself, from that by the output `y`. With `residual`, also the one by the residual.
    ///
    /// With `g` the gradient by the output where it was not rectified to zero, `c = x - mean`, `s = 1 / sqrt(variance + epsilon)` and
    /// averages over the batch: `dx = gamma s (g - avg(g) - c s^2 avg(g c))`, `dgamma = s sum(g c)`, `dbeta = sum(g)`, `dresidual = g`.
    ///
    /// # Errors
    /// When a slice does not fit the shape.
    pub fn gradients(
        &self,
        x: &[f32],
        y: &[f32],
        dy: &[f32],
        normalization: &Normalization<'_>,
        residual: bool,
    ) -> Result<Gradients, Error> {
        self.check(&[("input", x.len()), ("output", y.len()), ("gradient", dy.len())], self.channels)?;
        let scale = self.scale(normalization)?;
        let (moments, isa) = (normalization.moments, Isa::of_this_machine());
        let gate = normalization.rectify.then_some(y);
        let mean = moments.mean.as_slice();
        let all = sums(self.rows, self.channels, |rows, to| isa.run(Products { x, mean, gate, dy, rows, to }));
        let count = self.rows.max(1) as f64;
        let spread = |channel: usize| 1.0 / (f64::from(moments.variance[channel]) + f64::from(normalization.epsilon)).sqrt();
        let gamma: Vec<f32> = (0..self.channels).map(|c| (all[2 * c + 1] * spread(c)) as f32).collect();
        let beta: Vec<f32> = (0..self.channels).map(|c| all[2 * c] as f32).collect();
        let shift: Vec<f32> = (0..self.channels).map(|c| (all[2 * c] / count) as f32).collect();
        let slope: Vec<f32> = (0..self.channels).map(|c| (all[2 * c + 1] * spread(c).powi(2) / count) as f32).collect();
        let write = |to: Target<'_>, residual: Option<Target<'_>>| {
            self.each_task(|rows| {
                let (scale, shift, slope) = (&scale, &shift, &slope);
                isa.run(InputGradient { x, mean, gate, dy, scale, shift, slope, rows, to, residual });
            });
        };
        // SAFETY: the tasks cover all rows, and each writes all channels of its own, of the residual too.
        let (x, residual) = unsafe {
            if residual {
                let mut x = Vec::new();
                let residual = filled(dy.len(), |residual| x = filled(dy.len(), |to| write(to, Some(residual))));
                (x, Some(residual))
            } else {
                (filled(dy.len(), |to| write(to, None)), None)
            }
        };
        Ok(Gradients { x, gamma, beta, residual })
    }

    /// `gamma / sqrt(variance + epsilon)`.
    fn scale(&self, normalization: &Normalization<'_>) -> Result<Vec<f32>, Error> {
        let lengths = [normalization.moments.mean.len(), normalization.moments.variance.len(), normalization.gamma.len()];
        if lengths != [self.channels; 3] {
            return Err(Error(format!("means, variances and gammas number {lengths:?}, {self:?}")));
        }
        Ok(normalization
            .moments
            .variance
            .iter()
            .zip(normalization.gamma)
            .map(|(variance, gamma)| gamma / (variance + normalization.epsilon).sqrt())
            .collect())
    }

    fn check(&self, values: &[(&str, usize)], channels: usize) -> Result<(), Error> {
        let wanted = count(&[self.rows, self.channels])?;
        if let Some((name, found)) = values.iter().find(|(_, found)| *found != wanted) {
            return Err(Error(format!("the {name} has {found} values, {self:?} takes {wanted}")));
        }
        if channels != 0 && channels != self.channels {
            return Err(Error(format!("{channels} values for the channels of {self:?}")));
        }
        Ok(())
    }

    fn each_task(&self, work: impl Fn(Rows) + Sync) {
        (0..self.rows.div_ceil(ROWS)).into_par_iter().for_each(|task| {
            work(Rows { first: task * ROWS, count: ROWS.min(self.rows - task * ROWS), channels: self.channels });
        });
    }
}

/// Sums of `x - pivot` and of its square.
struct Deviations<'a> {
    x: &'a [f32],
    pivot: &'a [f32],
    rows: Rows,
    to: &'a mut [f64],
}

impl Work for Deviations<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        self.rows.check(&[self.x.len()], &[self.pivot.len()]);
        // SAFETY: the slices hold every row and every channel.
        unsafe { each_column::<L>(self.rows, self) };
    }
}

impl ColumnWork for Deviations<'_> {
    #[inline(always)]
    unsafe fn column<L: Lanes>(&mut self, column: Column) {
        struct OfColumn<'a, L>(&'a [f32], L);

        impl<L: Lanes> Terms<L> for OfColumn<'_, L> {
            #[inline(always)]
            unsafe fn at(&self, column: &Column, place: usize) -> [L; 2] {
                // SAFETY: as the caller vouches.
                let deviation = unsafe { column.load::<L>(self.0, place) }.subtract(self.1);
                [deviation, deviation.multiply(deviation)]
            }
        }

        // SAFETY: as the caller vouches.
        unsafe {
            let terms = OfColumn(self.x, column.channel::<L>(self.pivot));
            column.add_sums::<L>(self.to, &terms);
        }
    }
}

/// Sums of `g` and of `g (x - mean)`, where `g` is `dy` where the gate is positive.
struct Products<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    gate: Option<&'a [f32]>,
    dy: &'a [f32],
    rows: Rows,
    to: &'a mut [f64],
}

impl Work for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        self.rows.check(&[self.x.len(), self.dy.len(), self.gate.map_or(self.x.len(), <[f32]>::len)], &[self.mean.len()]);
        // SAFETY: the slices hold every row and every channel.
        unsafe { each_column::<L>(self.rows, self) };
    }
}

impl ColumnWork for Products<'_> {
    #[inline(always)]
    unsafe fn column<L: Lanes>(&mut self, column: Column) {
        struct OfColumn<'a, L> {
            x: &'a [f32],
            dy: &'a [f32],
            gate: Option<&'a [f32]>,
            mean: L,
        }

        impl<L: Lanes> Terms<L> for OfColumn<'_, L> {
            #[inline(always)]
            unsafe fn at(&self, column: &Column, place: usize) -> [L; 2] {
                // SAFETY: as the caller vouches.
                unsafe {
                    let g = gated(column.load::<L>(self.dy, place), self.gate, column, place);
                    [g, g.multiply(column.load::<L>(self.x, place).subtract(self.mean))]
                }
            }
        }

        // SAFETY: as the caller vouches.
        unsafe {
            let terms = OfColumn { x: self.x, dy: self.dy, gate: self.gate, mean: column.channel::<L>(self.mean) };
            column.add_sums::<L>(self.to, &terms);
        }
    }
}

/// `g` where the gate is positive.
///
/// # Safety
/// The place is one of the column's, and the gate holds it.
#[inline(always)]
unsafe fn gated<L: Lanes>(g: L, gate: Option<&[f32]>, column: &Column, place: usize) -> L {
    match gate {
        None => g,
        // SAFETY: as the caller vouches.
        Some(gate) => g.where_positive(unsafe { column.load(gate, place) }),
    }
}

struct Normalize<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    scale: &'a [f32],
    beta: &'a [f32],
    residual: Option<&'a [f32]>,
    rectify: bool,
    rows: Rows,
    to: Target<'a>,
}

impl Work for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let residual = self.residual.map_or(self.x.len(), <[f32]>::len);
        self.rows.check(&[self.x.len(), residual], &[self.mean.len(), self.scale.len(), self.beta.len()]);
        // SAFETY: the slices hold every row and every channel.
        unsafe { each_column::<L>(self.rows, self) };
    }
}

impl ColumnWork for Normalize<'_> {
    #[inline(always)]
    unsafe fn column<L: Lanes>(&mut self, column: Column) {
        let to = self.rows.of(self.to);
        let (mut place, step, count) = column.places();
        // SAFETY: as the caller vouches; the rows of the target are this task's own.
        unsafe {
            let (mean, scale) = (column.channel::<L>(self.mean), column.channel::<L>(self.scale));
            let beta = column.channel::<L>(self.beta);
            for _ in 0..count {
                let mut y = column.load::<L>(self.x, place).subtract(mean).multiply_add(scale, beta);
                if let Some(residual) = self.residual {
                    y = y.add(column.load(residual, place));
                }
                column.store(if self.rectify { y.rectified() } else { y }, to, place);
                place += step;
            }
        }
    }
}

struct InputGradient<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    gate: Option<&'a [f32]>,
    dy: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    slope: &'a [f32],
    rows: Rows,
    to: Target<'a>,
    residual: Option<Target<'a>>,
}

impl Work for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let gate = self.gate.map_or(self.x.len(), <[f32]>::len);
        let channels = [self.mean.len(), self.scale.len(), self.shift.len(), self.slope.len()];
        self.rows.check(&[self.x.len(), self.dy.len(), gate], &channels);
        // SAFETY: the slices hold every row and every channel.
        unsafe { each_column::<L>(self.rows, self) };
    }
}

impl ColumnWork for InputGradient<'_> {
    #[inline(always)]
    unsafe fn column<L: Lanes>(&mut self, column: Column) {
        let (to, residual) = (self.rows.of(self.to), self.residual.map(|residual| self.rows.of(residual)));
        let (mut place, step, count) = column.places();
        // SAFETY: as the caller vouches; the rows of the targets are this task's own.
        unsafe {
            let (mean, scale) = (column.channel::<L>(self.mean), column.channel::<L>(self.scale));
            let (shift, slope) = (column.channel::<L>(self.shift), column.channel::<L>(self.slope));
            for _ in 0..count {
                let g = gated(column.load::<L>(self.dy, place), self.gate, &column, place);
                if let Some(residual) = residual {
                    column.store(g, residual, place);
                }
                let centred = column.load::<L>(self.x, place).subtract(mean);
                column.store(g.subtract(shift).subtract(centred.multiply(slope)).multiply(scale), to, place);
                place += step;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// The loss `sum(y dy)` in double precision.
    fn loss(norm: &BatchNorm, x: &[f32], gamma: &[f32], beta: &[f32], residual: &[f32], dy: &[f32], rectify: bool) -> f64 {
        let mut total = 0.0;
        for channel in 0..norm.channels {
            let mine: Vec<usize> = (0..norm.rows).map(|row| row * norm.channels + channel).collect();
            let count = mine.len() as f64;
            let mean = mine.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
            let variance = mine.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / count;
            for i in mine {
                let y = (f64::from(x[i]) - mean) / (variance + 0.01).sqrt() * f64::from(gamma[channel]);
                let y = y + f64::from(beta[channel]) + f64::from(residual[i]);
                total += if rectify { y.max(0.0) } else { y } * f64::from(dy[i]);
            }
        }
        total
    }

    #[test]
    fn outputs_and_gradients_follow_the_definition() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for (rows, channels) in [(100, 3), (1, 1), (448, 2), (21, 5), (0, 2), (16, 1), (9, 17), (3000, 8)] {
            for (rectify, add) in [(false, false), (true, false), (true, true), (false, true)] {
                let norm = BatchNorm { rows, channels };
                let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-2.0..2.0)).collect::<Vec<f32>>();
                let (x, dy) = (noise(rows * channels), noise(rows * channels));
                let (gamma, beta) = (noise(channels), noise(channels));
                let residual = if add { noise(x.len()) } else { vec![0.0; x.len()] };
                let moments = norm.moments(&x).unwrap();
                let normalization = Normalization { moments: &moments, gamma: &gamma, epsilon: 0.01, rectify };
                let y = norm.forward(&x, &normalization, &beta, add.then_some(residual.as_slice())).unwrap();
                let found = norm.gradients(&x, &y, &dy, &normalization, add).unwrap();
                assert_eq!(found.residual.is_some(), add);
                if rows == 0 {
                    assert!(y.is_empty() && found.beta == vec![0.0; channels]);
                    continue;
                }
                let wanted = loss(&norm, &x, &gamma, &beta, &residual, &dy, rectify);
                let total: f64 = y.iter().zip(&dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum();
                assert!((total - wanted).abs() < 1e-3 * (rows as f64).sqrt(), "{total} {wanted}");
                let near = |found: f32, values: &[f32], i: usize, loss: &dyn Fn(&[f32]) -> f64| {
                    let step = |by: f32| {
                        let mut moved = values.to_vec();
                        moved[i] += by;
                        loss(&moved)
                    };
                    let (wide, narrow) = ((step(1e-2) - step(-1e-2)) / 2e-2, (step(5e-3) - step(-5e-3)) / 1e-2);
                    // Across a kink of the rectifier the two differences disagree, and neither is the derivative.
                    let smooth = (wide - narrow).abs() < 2e-3 * (1.0 + narrow.abs());
                    assert!(
                        !smooth || (f64::from(found) - narrow).abs() < 2e-2 * (1.0 + narrow.abs()),
                        "{norm:?} {rectify} {add} {i}: {found} {narrow}"
                    );
                };
                for i in (0..x.len()).step_by(x.len() / 20 + 1) {
                    near(found.x[i], &x, i, &|x| loss(&norm, x, &gamma, &beta, &residual, &dy, rectify));
                    if let Some(by_residual) = &found.residual {
                        near(by_residual[i], &residual, i, &|r| loss(&norm, &x, &gamma, &beta, r, &dy, rectify));
                    }
                }
                for i in 0..channels {
                    near(found.gamma[i], &gamma, i, &|gamma| loss(&norm, &x, gamma, &beta, &residual, &dy, rectify));
                    near(found.beta[i], &beta, i, &|beta| loss(&norm, &x, &gamma, beta, &residual, &dy, rectify));
                }
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_drown_the_variance() {
        let norm = BatchNorm { rows: 5000, channels: 3 };
        let x: Vec<f32> = (0..15_000).map(|i| 1000.0 + (i % 7) as f32).collect();
        let moments = norm.moments(&x).unwrap();
        for channel in 0..3 {
            let mine: Vec<f64> = x.iter().skip(channel).step_by(3).map(|v| f64::from(*v)).collect();
            let mean = mine.iter().sum::<f64>() / 5000.0;
            let variance = mine.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5000.0;
            assert!((f64::from(moments.mean[channel]) - mean).abs() < 1e-3);
            assert!((f64::from(moments.variance[channel]) - variance).abs() < 1e-4 * variance);
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads_and_what_does_not_fit_is_refused() {
        let norm = BatchNorm { rows: 5003, channels: 6 };
        let x: Vec<f32> = (0..norm.rows * 6).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let moments = norm.moments(&x).unwrap();
                let normalization = Normalization { moments: &moments, gamma: &[1.0; 6], epsilon: 1e-5, rectify: true };
                let y = norm.forward(&x, &normalization, &[0.1; 6], None).unwrap();
                (norm.gradients(&x, &y, &x, &normalization, true).unwrap(), y)
            })
        };
        assert!(run(1) == run(2) && run(2) == run(5));
        let error = norm.moments(&x[1..]).unwrap_err().to_string();
        assert!(error.contains("the input has 30017 values") && error.contains("takes 30018"), "{error}");
    }
}
