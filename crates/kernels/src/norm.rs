//! Batch normalization of `[batch, channels, pixels]` and its gradients.

use rayon::prelude::*;

use crate::lanes::{Isa, LANES};

/// Shape of what is normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchNorm {
    /// Number of images.
    pub batch: usize,
    /// Number of channels.
    pub channels: usize,
    /// Height times width.
    pub pixels: usize,
}

/// Mean and variance of each channel over a batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// Means.
    pub mean: Vec<f32>,
    /// Variances, divided by the number of values.
    pub variance: Vec<f32>,
}

impl BatchNorm {
    /// Mean and variance of each channel.
    ///
    /// # Panics
    /// If `x` has not `batch * channels * pixels` values.
    pub fn moments(&self, x: &[f32]) -> Moments {
        assert_eq!(x.len(), self.len(), "the slice does not hold the batch");
        let count = (self.batch * self.pixels).max(1) as f64;
        let of_channel = |channel: usize| {
            let mean = self.sum(channel, |at| sum_of(x[at].chunks(LANES).map(|x| (x, x)), |x, _| x)) / count;
            let centre = mean as f32;
            let square = |x: f32, _: f32| (x - centre) * (x - centre);
            let variance = self.sum(channel, |at| sum_of(x[at].chunks(LANES).map(|x| (x, x)), square)) / count;
            (centre, variance as f32)
        };
        let (mean, variance) = (0..self.channels).into_par_iter().map(of_channel).unzip();
        Moments { mean, variance }
    }

    /// `y = (x - mean) / sqrt(variance + epsilon) * gamma + beta`.
    ///
    /// # Panics
    /// If a slice does not fit the shape.
    pub fn forward(&self, x: &[f32], moments: &Moments, gamma: &[f32], beta: &[f32], epsilon: f32, y: &mut [f32]) {
        assert_eq!((x.len(), y.len()), (self.len(), self.len()), "the slices do not hold the batch");
        let scale = scales(moments, gamma, epsilon);
        self.each_plane(y, |channel, at, y| {
            let (scale, mean, shift) = (scale[channel], moments.mean[channel], beta[channel]);
            y.iter_mut().zip(&x[at]).for_each(|(y, x)| *y = (x - mean) * scale + shift);
        });
    }

    /// The gradients by `x`, into `dx`, and by gamma and beta, for moments that were those of `x` itself.
    ///
    /// With `c = x - mean`, `s = 1 / sqrt(variance + epsilon)` and averages over the batch:
    /// `dx = gamma s (dy - avg(dy) - c s^2 avg(dy c))`, `dgamma = s sum(dy c)`, `dbeta = sum(dy)`.
    ///
    /// # Panics
    /// If a slice does not fit the shape.
    pub fn gradients(
        &self,
        x: &[f32],
        dy: &[f32],
        moments: &Moments,
        gamma: &[f32],
        epsilon: f32,
        dx: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        assert_eq!([x.len(), dy.len(), dx.len()], [self.len(); 3], "the slices do not hold the batch");
        let count = (self.batch * self.pixels).max(1) as f32;
        let spread = scales(moments, &vec![1.0; self.channels], epsilon);
        let of_channel = |channel: usize| {
            let mean = moments.mean[channel];
            let pairs = |at: std::ops::Range<usize>| dy[at.clone()].chunks(LANES).zip(x[at].chunks(LANES));
            let beta = self.sum(channel, |at| sum_of(pairs(at), |dy, _| dy));
            let gamma = self.sum(channel, |at| sum_of(pairs(at), |dy, x| dy * (x - mean)));
            (gamma as f32 * spread[channel], beta as f32)
        };
        let (dgamma, dbeta): (Vec<f32>, Vec<f32>) = (0..self.channels).into_par_iter().map(of_channel).unzip();
        self.each_plane(dx, |channel, at, dx| {
            let (mean, scale) = (moments.mean[channel], gamma[channel] * spread[channel]);
            let (shift, slope) = (dbeta[channel] / count, dgamma[channel] * spread[channel] / count);
            for ((dx, dy), x) in dx.iter_mut().zip(&dy[at.clone()]).zip(&x[at]) {
                *dx = scale * (dy - shift - (x - mean) * slope);
            }
        });
        (dgamma, dbeta)
    }

    fn len(&self) -> usize {
        self.batch * self.channels * self.pixels
    }

    /// The sum over a channel's planes, in the order of the images.
    fn sum(&self, channel: usize, plane: impl Fn(std::ops::Range<usize>) -> f32) -> f64 {
        let at = |image: usize| (image * self.channels + channel) * self.pixels;
        Isa::of_this_machine().run(|| (0..self.batch).map(|image| f64::from(plane(at(image)..at(image) + self.pixels))).sum())
    }

    fn each_plane(&self, to: &mut [f32], write: impl Fn(usize, std::ops::Range<usize>, &mut [f32]) + Sync) {
        let image = self.channels * self.pixels;
        if image == 0 {
            return;
        }
        to.par_chunks_mut(image).enumerate().for_each(|(index, to)| {
            Isa::of_this_machine().run(|| {
                for (channel, plane) in to.chunks_mut(self.pixels).enumerate() {
                    let start = index * image + channel * self.pixels;
                    write(channel, start..start + self.pixels, plane);
                }
            });
        });
    }
}

/// `gamma / sqrt(variance + epsilon)`.
fn scales(moments: &Moments, gamma: &[f32], epsilon: f32) -> Vec<f32> {
    moments.variance.iter().zip(gamma).map(|(variance, gamma)| gamma / (variance + epsilon).sqrt()).collect()
}

/// Sum of `term` over pairs of values, eight sums side by side.
#[inline(always)]
fn sum_of<'a>(chunks: impl Iterator<Item = (&'a [f32], &'a [f32])>, term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in chunks {
        match (<&[f32; LANES]>::try_from(a), <&[f32; LANES]>::try_from(b)) {
            (Ok(a), Ok(b)) => (0..LANES).for_each(|i| sums[i] += term(a[i], b[i])),
            _ => a.iter().zip(b).enumerate().for_each(|(i, (a, b))| sums[i] += term(*a, *b)),
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn outputs_and_gradients_follow_the_definition() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for (batch, channels, pixels) in [(4, 3, 25), (1, 1, 1), (7, 2, 64), (3, 5, 7), (0, 2, 4), (16, 1, 1)] {
            let norm = BatchNorm { batch, channels, pixels };
            let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-2.0..2.0)).collect::<Vec<f32>>();
            let (x, dy) = (noise(norm.len()), noise(norm.len()));
            let (gamma, beta) = (noise(channels), noise(channels));
            let epsilon = 0.01_f32;
            let moments = norm.moments(&x);
            let (mut y, mut dx) = (x.clone(), x.clone());
            norm.forward(&x, &moments, &gamma, &beta, epsilon, &mut y);
            let (dgamma, dbeta) = norm.gradients(&x, &dy, &moments, &gamma, epsilon, &mut dx);

            // The loss sum(y dy) in double precision, and its differences.
            let loss = |x: &[f32], gamma: &[f32], beta: &[f32]| -> f64 {
                let place = |i: usize| i / pixels % channels;
                let mut total = 0.0;
                for channel in 0..channels {
                    let mine: Vec<usize> = (0..x.len()).filter(|i| place(*i) == channel).collect();
                    let count = mine.len() as f64;
                    let mean = mine.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
                    let variance = mine.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / count;
                    let value = |i: usize| (f64::from(x[i]) - mean) / (variance + 0.01).sqrt() * f64::from(gamma[channel]);
                    total += mine.iter().map(|&i| (value(i) + f64::from(beta[channel])) * f64::from(dy[i])).sum::<f64>();
                }
                total
            };
            let found: f64 = y.iter().zip(&dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum();
            if batch == 0 {
                assert_eq!((y.len(), dbeta), (0, vec![0.0; channels]));
                continue;
            }
            assert!((found - loss(&x, &gamma, &beta)).abs() < 1e-3);
            let difference = |values: &[f32], i: usize, loss: &dyn Fn(&[f32]) -> f64| {
                let step = |by: f32| {
                    let mut moved = values.to_vec();
                    moved[i] += by;
                    loss(&moved)
                };
                (step(1e-2) - step(-1e-2)) / 2e-2
            };
            for i in (0..x.len()).step_by(5) {
                let expected = difference(&x, i, &|x| loss(x, &gamma, &beta));
                assert!((f64::from(dx[i]) - expected).abs() < 2e-2 * (1.0 + expected.abs()), "dx {i}: {} {expected}", dx[i]);
            }
            for i in 0..channels {
                let of_gamma = difference(&gamma, i, &|gamma| loss(&x, gamma, &beta));
                let of_beta = difference(&beta, i, &|beta| loss(&x, &gamma, beta));
                assert!((f64::from(dgamma[i]) - of_gamma).abs() < 1e-2 && (f64::from(dbeta[i]) - of_beta).abs() < 1e-2);
            }
        }
    }
}
