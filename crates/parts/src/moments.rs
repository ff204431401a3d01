//! What a layer reads and is to compute at places sampled from images, and the weights that come nearest to it.

use briquette_core::coding::floats;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Value};
use briquette_core::stored::Stored;
use briquette_core::streams::stream;
use briquette_core::surgery::ChannelGroup;
use briquette_core::training::probe;
use briquette_core::{Layer, Padding, layers};
use burn::tensor::Device;
use nalgebra::{Cholesky, DMatrix, DMatrixView, DMatrixViewMut, DVector};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// How much is sampled.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Training images; taken by fifty, and the last fifty as a whole.
    pub images: usize,
    /// Places of the output of a convolution in each image.
    pub positions: usize,
    /// Whether every tenth image is held back to judge what is fitted to the others.
    pub hold_back: bool,
}

/// A layer, and its inputs in an order in which those of a channel follow each other.
#[derive(Debug, Clone)]
pub struct Reading {
    layer: usize,
    channels: usize,
    /// The place of each input in a row of the weight.
    pub places: Vec<usize>,
}

/// The second moments of what a layer reads, `x = [channel, tap]` at each sampled place, and of what it is to compute there.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Number of channels.
    pub channels: usize,
    /// `sum x x^T`, row by row.
    pub inputs: Vec<f64>,
    /// `sum y x^T`, `[out, channel, tap]`, where `y` is the original network's output without its bias.
    pub targets: Vec<f64>,
    /// `sum |y|^2`.
    pub squares: f64,
    /// The layer's weights as they are, `[out, channel, tap]`.
    weights: Vec<f64>,
    /// Number of places.
    pub rows: usize,
    /// What it reads and is to compute at places of images that are in none of the sums.
    held: Rows,
}

/// Inputs `[place, channel, tap]` and outputs `[place, out]`.
#[derive(Debug, Clone, Default)]
struct Rows {
    inputs: Vec<f32>,
    outputs: Vec<f32>,
}

/// Sums over outputs and places of the products of what channels contribute to the output, `z_c = sum over taps of w x`.
#[derive(Debug, Clone)]
pub struct Contributions {
    /// `<z_c, z_d>`, row by row.
    pub products: Vec<f64>,
    /// `<z_c, y>`.
    pub with_target: Vec<f64>,
}

impl Reading {
    /// The inputs of a layer as those of one channel.
    pub fn whole(net: &Net, layer: usize) -> Self {
        let width = net.nodes[layer].op.weight_shape().map_or(0, |shape| shape[1..].iter().product());
        Self { layer, channels: 1, places: (0..width).collect() }
    }

    /// The inputs of the layer that reads a group's units. Of a convolution in groups, a unit has a filter in each, which do not follow each
    /// other.
    pub fn of(net: &Net, group: &ChannelGroup, layer: usize) -> Self {
        let area: usize = net.nodes[layer].op.weight_shape().map_or(1, |shape| shape[2..].iter().product());
        let columns = (0..group.len()).flat_map(|unit| group.readers(unit)).filter(|(node, _)| *node == layer);
        let places = columns.flat_map(|(_, column)| column * area..(column + 1) * area).collect();
        Self { layer, channels: group.len(), places }
    }
}

/// The moments of a layer, no convolution in groups, over the sample: its inputs those of `net`, what it is to compute that of the layer of its
/// name in `original`.
///
/// # Errors
/// When the images give it inputs that are not finite.
pub fn moments(
    net: &Net,
    original: &Net,
    reading: &Reading,
    sample: Sample,
    what: &str,
    cx: &mut Context<'_>,
) -> Result<Moments> {
    let node = &net.nodes[reading.layer];
    let parameters = node.parameters();
    let weight = parameters.iter().find(|stored| stored.name == "weight");
    let Some(weight) = weight else { return Err(Error::node(&node.name, "has no weight")) };
    let bias = parameters.iter().find(|stored| stored.name == "bias").map(Stored::values);
    let (out, width) = (weight.shape[0], weight.base.len() / weight.shape[0]);
    let window = Window::of(&node.op.layer(), &weight.shape);
    let mut rng = ChaCha8Rng::seed_from_u64(stream(cx.seed, &node.name));
    let device: Device = net.device();
    let computes = original.index(&node.name)?;
    let (net, original) = (net.deep_clone(), original.deep_clone());
    let (mut inputs, mut targets, mut squares) = (vec![0.0; width * width], vec![0.0; out * width], 0.0);
    let (mut rows, mut image, mut held) = (0, 0, Rows::default());
    probe(cx, what, (sample.images.div_ceil(BATCH), BATCH.min(sample.images)), &device, |images, _| {
        let count = images.dims()[0];
        let mut read = None;
        net.trace(images.clone(), |index, value| {
            if index == node.inputs[0] {
                read = Some(value.clone());
            }
            value
        });
        let mut computed = None;
        original.trace(images, |index, value| {
            if index == computes {
                computed = Some(value.clone());
            }
            value
        });
        let (Some(read), Some(computed)) = (read, computed) else { return Ok(()) };
        let (x, mut y) = match window {
            None => (floats(read.vector()), floats(computed.vector())),
            Some(window) => window.rows(read, computed, sample.positions, &mut rng),
        };
        if !x.iter().chain(&y).all(|v| v.is_finite()) {
            return Err(Error::node(&node.name, "reads or computes numbers that are not finite; train the network anew"));
        }
        if let Some(bias) = &bias {
            y.chunks_exact_mut(out).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y -= bias));
        }
        let places = y.len() / out / count;
        let mut kept = Rows::default();
        for (x, y) in x.chunks_exact(places * width).zip(y.chunks_exact(places * out)) {
            // More than these would take more memory than the products.
            let full = held.outputs.len() / out >= width.max(HELD);
            let back = sample.hold_back && image % TENTH == TENTH - 1 && !full;
            let rows = if back { &mut held } else { &mut kept };
            rows.inputs.extend(x.chunks_exact(width).flat_map(|x| reading.places.iter().map(|&place| x[place])));
            rows.outputs.extend(y);
            image += 1;
        }
        rows += kept.outputs.len() / out;
        squares += kept.outputs.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>();
        add_products(&mut inputs, (&kept.inputs, width), (&kept.inputs, width));
        add_products(&mut targets, (&kept.outputs, out), (&kept.inputs, width));
        Ok(())
    })?;
    let rows_of_weights = weight.base.chunks_exact(width);
    let weights = rows_of_weights.flat_map(|row| reading.places.iter().map(|&place| f64::from(row[place]))).collect();
    Ok(Moments { channels: reading.channels, inputs, targets, squares, weights, rows, held })
}

/// Every so-manieth image is held back.
const TENTH: usize = 10;

/// Places of images held back that are always enough.
const HELD: usize = 1000;

/// Adds `sum over rows of a_i b_j` to `sums[i, j]`, in double precision: a matrix of squares must stay positive where inputs depend on each
/// other. Each task has some rows of the result, so that nothing depends on the number of threads.
fn add_products(sums: &mut [f64], (a, width): (&[f32], usize), (b, columns): (&[f32], usize)) {
    if sums.len() < SMALL {
        sums.par_chunks_mut(columns).enumerate().for_each(|(i, sums)| {
            for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(columns)).filter(|(a, _)| a[i] != 0.0) {
                let factor = f64::from(a[i]);
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += factor * f64::from(*b));
            }
        });
        return;
    }
    let doubles = |values: &[f32], wide: usize| {
        DMatrix::from_iterator(wide, values.len() / wide, values.iter().map(|value| f64::from(*value)))
    };
    let (a, b) = (doubles(a, width), doubles(b, columns));
    sums.par_chunks_mut(PANEL * columns).enumerate().for_each(|(panel, sums)| {
        let wide = sums.len() / columns;
        let part = a.rows(panel * PANEL, wide).transpose();
        DMatrixViewMut::from_slice(sums, columns, wide).gemm(1.0, &b, &part, 1.0);
    });
}

/// Rows of the result that one task computes.
const PANEL: usize = 64;

/// Sums that stay in the caches, and gain nothing by panels.
const SMALL: usize = 1 << 14;

/// What a convolution reads at one place.
#[derive(Clone, Copy)]
struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: Padding,
    dilation: [usize; 2],
}

impl Window {
    fn of(layer: &Layer, shape: &[usize]) -> Option<Self> {
        let (Layer::Conv2d(conv), &[_, _, height, width]) = (layer, shape) else { return None };
        let &layers::Conv2d { stride, padding, dilation, .. } = conv;
        Some(Self { kernel: [height, width], stride, padding, dilation })
    }

    /// Inputs `[place, channel, tap]` and outputs `[place, out]` at places drawn in each image.
    fn rows(self, read: Value, computed: Value, places: usize, rng: &mut ChaCha8Rng) -> (Vec<f32>, Vec<f32>) {
        let (read, computed) = (read.map(), computed.map());
        let ([images, channels, height, width], [_, out, rows, columns]) = (read.dims(), computed.dims());
        let (read, computed) = (floats(read), floats(computed));
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for image in 0..images {
            for _ in 0..places {
                let at = [rng.random_range(0..rows), rng.random_range(0..columns)];
                let tap = |axis: usize, tap: usize, size: usize| {
                    (at[axis] * self.stride[axis] + tap * self.dilation[axis])
                        .checked_sub(self.padding.before(axis))
                        .filter(|i| *i < size)
                };
                for channel in 0..channels {
                    for (i, j) in (0..self.kernel[0]).flat_map(|i| (0..self.kernel[1]).map(move |j| (i, j))) {
                        let place = tap(0, i, height).zip(tap(1, j, width));
                        x.push(place.map_or(0.0, |(i, j)| read[((image * channels + channel) * height + i) * width + j]));
                    }
                }
                y.extend((0..out).map(|o| computed[((image * out + o) * rows + at[0]) * columns + at[1]]));
            }
        }
        (x, y)
    }
}

impl Moments {
    /// Number of inputs of an output.
    pub fn width(&self) -> usize {
        self.inputs.len().isqrt()
    }

    /// What each channel contributes to the layer's output with its weights as they are.
    pub fn contributions(&self) -> Contributions {
        let (width, channels) = (self.width(), self.channels);
        let taps = width / channels;
        let rows = self.weights.chunks_exact(width);
        let with_target = rows.zip(self.targets.chunks_exact(width)).fold(vec![0.0; channels], |mut sums, (w, y)| {
            (0..width).for_each(|i| sums[i / taps] += w[i] * y[i]);
            sums
        });
        let weights = DMatrix::from_row_slice(self.weights.len() / width, width, &self.weights);
        let inputs = DMatrixView::from_slice(&self.inputs, width, width);
        // The products of the weights of one channel with all, so that no second matrix of all by all is held.
        let row = |c: usize| -> Vec<f64> {
            let own = weights.columns(c * taps, taps).tr_mul(&weights);
            let product = |d: usize| own.columns(d * taps, taps).dot(&inputs.view((c * taps, d * taps), (taps, taps)));
            (0..channels).map(product).collect()
        };
        Contributions { products: (0..channels).into_par_iter().flat_map_iter(row).collect(), with_target }
    }

    /// The weights with those of each channel multiplied by its factor.
    pub fn scaled(&self, factors: &[f64]) -> Vec<f64> {
        let (width, taps) = (self.width(), self.width() / self.channels);
        self.weights.iter().enumerate().map(|(i, w)| w * factors[i % width / taps]).collect()
    }

    /// The weights of the channels that stay by which the output comes nearest to the original network's, those of the others 0: the
    /// solution of `pulled` that misses least on the images held back, of a growing pull towards the weights as they are, and these where
    /// none misses less.
    pub fn reconstructed(&self, stays: &[bool]) -> Vec<f64> {
        let (width, taps) = (self.width(), self.width() / self.channels);
        let guess = self.scaled(&stays.iter().map(|stays| f64::from(u8::from(*stays))).collect::<Vec<_>>());
        let kept: Vec<usize> = (0..width).filter(|i| stays[i / taps]).collect();
        let pick = |values: &[f64]| -> Vec<f64> { kept.iter().map(|&i| values[i]).collect() };
        let fitted = |pull: f64| {
            let matrix = kept.iter().flat_map(|i| kept.iter().map(move |j| self.inputs[i * width + j])).collect();
            let rows = self.targets.chunks_exact(width).zip(self.weights.chunks_exact(width));
            let solved = pulled(matrix, pull, rows.map(|(targets, weights)| (pick(targets), pick(weights))).collect());
            let mut weights = vec![0.0; self.weights.len()];
            for (row, solved) in weights.chunks_exact_mut(width).zip(solved) {
                kept.iter().zip(solved).for_each(|(&i, w)| row[i] = w);
            }
            weights
        };
        let first = fitted(RIDGE);
        let Some(mut least) = self.missed(&first) else { return first };
        let mut best = first;
        for pull in PULLS {
            let next = fitted(pull);
            match self.missed(&next) {
                Some(missed) if missed < least => (best, least) = (next, missed),
                _ => break,
            }
        }
        if self.missed(&guess).is_some_and(|missed| missed < least) { guess } else { best }
    }

    /// The share of the squares of the output that these weights miss at the places held back; none where there are none.
    pub fn missed(&self, weights: &[f64]) -> Option<f64> {
        let (width, out) = (self.width(), weights.len() / self.width());
        let rows = self.held.outputs.chunks_exact(out).zip(self.held.inputs.chunks_exact(width)).collect::<Vec<_>>();
        let squares = |(y, x): &(&[f32], &[f32])| {
            let miss = |(y, w): (&f32, &[f64])| f64::from(*y) - w.iter().zip(*x).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
            let missed: f64 = y.iter().zip(weights.chunks_exact(width)).map(miss).map(|miss| miss * miss).sum();
            (missed, y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>())
        };
        let sums: Vec<(f64, f64)> = rows.par_iter().map(squares).collect();
        let (missed, all) = sums.into_iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        (all > 0.0).then(|| missed / all)
    }
}

/// For each right-hand side `b` and guess `g`, the `x` that minimizes `x^T A x - 2 b^T x + r |x - g|^2`, by Cholesky's decomposition. `r` is
/// a millionth of the mean of the diagonal of `A`: where the sample does not tell, the guess stays.
pub fn solve(matrix: Vec<f64>, sides: Vec<(Vec<f64>, Vec<f64>)>) -> Vec<Vec<f64>> {
    pulled(matrix, RIDGE, sides)
}

/// As [`solve`] with `r = pull` times the mean of the diagonal of `A`.
fn pulled(matrix: Vec<f64>, pull: f64, sides: Vec<(Vec<f64>, Vec<f64>)>) -> Vec<Vec<f64>> {
    let n = matrix.len().isqrt();
    let mut matrix = DMatrix::from_vec(n, n, matrix);
    let ridge = if matrix.trace() > 0.0 { pull * matrix.trace() / n as f64 } else { 1.0 };
    (0..n).for_each(|i| matrix[(i, i)] += ridge);
    // Rounding may turn the pivot of dependent inputs negative.
    let factor = Cholesky::new_with_substitute(matrix, ridge * f64::EPSILON);
    let solve = |(side, guess): (Vec<f64>, Vec<f64>)| match &factor {
        Some(factor) => factor.solve(&(DVector::from_vec(side) + DVector::from_vec(guess) * ridge)).data.into(),
        None => guess,
    };
    sides.into_par_iter().map(solve).collect()
}

/// A pull far above the rounding of the sums, far below what the output feels.
const RIDGE: f64 = 1e-6;

/// What [`Moments::reconstructed`] tries beyond it, where few rows tell less than they seem to.
const PULLS: [f64; 4] = [1e-4, 1e-2, 0.1, 1.0];

/// Images of one look at the network.
const BATCH: usize = 50;

#[cfg(test)]
mod tests;
