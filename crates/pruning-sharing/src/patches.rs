//! What the methods that cut channels by the next layer's output have in common: which groups they may cut, what the next layer reads and
//! computes at sampled places, and the way through the network, each layer seeing its inputs as already cut.

use std::marker::PhantomData;

use briquette_core::coding::{Coding, floats};
use briquette_core::context::{Context, Event};
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Value};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::streams::stream;
use briquette_core::surgery::{ChannelGroup, Keep};
use briquette_core::training::probe;
use briquette_core::{Layer, Padding, layers};
use burn::tensor::Device;
use nalgebra::{Cholesky, DMatrix, DMatrixView, DMatrixViewMut, DVector};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Deserialize;

use briquette_parts::channels::{Channels, only_reader, pairs};

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
    places: Vec<usize>,
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

/// A method: it cuts the channels that `C` does not choose by what the next layer computes of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ByNextLayer<C> {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
    /// Training images that the output is sampled from.
    calibration_images: Option<usize>,
    /// Places of each layer's output in an image.
    #[serde(default = "ten")]
    positions: usize,
    /// Most memory for the products of the inputs of one layer, in MiB.
    #[serde(default = "two_gibi")]
    memory_mib: usize,
    #[serde(skip)]
    choice: PhantomData<C>,
}

/// How a method chooses.
pub trait Choice: std::fmt::Debug + Send + 'static {
    /// [`Method::NAME`].
    const NAME: &'static str;
    /// [`Method::PAPER`].
    const PAPER: &'static str;
    /// Images that are sampled where the config does not say.
    const IMAGES: usize;

    /// Marks the `count` channels that stay and gives the weights, `[out, channel, tap]`, of the layer that reads them.
    fn choose(moments: &Moments, count: usize) -> (Vec<bool>, Vec<f64>);
}

impl<C: Choice> Method for ByNextLayer<C> {
    const NAME: &'static str = C::NAME;
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = C::PAPER;
    const EXAMPLE: &'static str = "ratio = 0.5";
}

impl<C: Choice> Pass for ByNextLayer<C> {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let sample = Sample { images: self.calibration_images.unwrap_or(C::IMAGES), positions: self.positions, hold_back: true };
        let groups = self.counts(&net)?;
        let net = cut(C::NAME, groups, net, sample, cx, C::choose)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let (groups, counts): (Vec<ChannelGroup>, Vec<usize>) = self.counts(&net)?.into_iter().unzip();
        let keeps = groups.iter().zip(counts).map(|(group, count)| group.best(&vec![0.0; group.len()], count)).collect();
        net.keep(&pairs(&groups, keeps))
    }

    fn shorten(&mut self) {
        self.calibration_images = Some(self.calibration_images.unwrap_or(C::IMAGES).min(50));
    }
}

impl<C: Choice> ByNextLayer<C> {
    /// What is cut, in the order of the layers, and how many units of each group stay.
    fn counts(&self, net: &Net) -> Result<Vec<(ChannelGroup, usize)>> {
        if self.calibration_images == Some(0) || self.positions == 0 {
            return Err(Error::Invalid(format!("{}: `calibration-images` and `positions` must be at least 1", C::NAME)));
        }
        let counts = counts(C::NAME, &self.channels, net)?;
        for node in counts.iter().filter(|(group, count)| *count < group.len()).filter_map(|(group, _)| reader(net, group)) {
            let node = &net.nodes[node];
            let width: usize = node.op.weight_shape().map_or(0, |shape| shape[1..].iter().product());
            // The products, and again as many while a system of those that stay is solved.
            let bytes = 16 * (width as u128).pow(2);
            if bytes > (self.memory_mib as u128) << 20 {
                let detail = format!(
                    "reads {width} numbers, whose products take {} MiB, `memory-mib` allows {}; raise it, or name the layer before it in `except`",
                    bytes.div_ceil(1 << 20),
                    self.memory_mib
                );
                return Err(Error::node(&node.name, detail));
            }
        }
        Ok(counts)
    }
}

fn ten() -> usize {
    10
}

fn two_gibi() -> usize {
    2048
}

/// The groups that may be cut because one layer makes their channels and one reads them, and how many units of each stay.
///
/// # Errors
/// When there are none, or the settings, of the method of this name, do not fit the network.
fn counts(method: &str, channels: &Channels, net: &Net) -> Result<Vec<(ChannelGroup, usize)>> {
    let why = "its channels are not read by one layer alone, or by one in groups; use filter-l1 for it";
    let groups = channels.groups_where(net, |group| reader(net, group).is_some(), why)?;
    if groups.is_empty() {
        let detail = format!("{method}: no layer's channels are read by one layer alone; use filter-l1 for this network");
        return Err(Error::Invalid(detail));
    }
    for node in groups.iter().filter_map(|group| reader(net, group)).map(|node| &net.nodes[node]) {
        if node.weight().is_some_and(|weight| weight.coding != Coding::default()) {
            let detail = format!("its weights are masked or shared; put {method} before the pass that does so");
            return Err(Error::node(&node.name, detail));
        }
    }
    let equal: Vec<Vec<f64>> = groups.iter().map(|group| vec![0.0; group.len()]).collect();
    let keeps = channels.keeps(method, net, &groups, &equal)?;
    Ok(groups.into_iter().zip(keeps.iter().map(Keep::count)).collect())
}

/// Cuts groups one after the other, of each so many units staying. `choose` gets the moments of the layer that reads the group's channels, its inputs as the cuts before have left
/// them, and how many channels stay; it marks these and returns the layer's new weights, `[out, channel, tap]`.
///
/// # Errors
/// When the images give a layer inputs that are not finite.
fn cut(
    method: &str,
    groups: Vec<(ChannelGroup, usize)>,
    net: Net,
    sample: Sample,
    cx: &mut Context<'_>,
    choose: impl Fn(&Moments, usize) -> (Vec<bool>, Vec<f64>),
) -> Result<Net> {
    let original = net.deep_clone();
    let mut net = net;
    for (group, count) in groups.into_iter().filter(|(group, count)| *count < group.len()) {
        let Some(reader) = reader(&net, &group) else { continue };
        let reading = Reading::of(&net, &group, reader);
        let moments = moments(&net, &original, &reading, sample, method, cx)?;
        let (stays, weights) = choose(&moments, count);
        if let Some(missed) = moments.missed(&weights) {
            let (name, percent) = (&net.nodes[reader].name, 100.0 * missed);
            let detail = format!(
                "{method}: '{name}' misses {percent:.2} % of its output on images that its {} rows for {} inputs left out",
                moments.rows,
                moments.width()
            );
            cx.host.event(Event::Note(&detail));
        }
        let device = net.device();
        let node = net.nodes.remove(reader);
        let mut parameters = node.parameters();
        for stored in parameters.iter_mut().filter(|stored| stored.name == "weight") {
            let rows = stored.base.chunks_exact_mut(moments.width()).zip(weights.chunks_exact(moments.width()));
            rows.for_each(|(row, weights)| reading.places.iter().zip(weights).for_each(|(&i, w)| row[i] = *w as f32));
        }
        net.nodes.insert(reader, node.with(parameters, &device)?);
        // A group of the network as it now is, of the same name and the same channels.
        let groups = net.channel_groups()?;
        let now = groups.iter().filter(|now| now.name == group.name);
        let cuts: Vec<(&ChannelGroup, Keep)> = now.map(|now| (now, Keep::new(stays.clone()))).collect();
        net = net.keep(&cuts)?;
    }
    Ok(net)
}

/// The layer that alone reads the channels that one layer makes.
fn reader(net: &Net, group: &ChannelGroup) -> Option<usize> {
    let keeps_channels = |layer: &Layer| matches!(layer.kind().channels(), layers::Channels::Kept | layers::Channels::Spread);
    let one_group = |node: &usize| net.nodes[*node].op.layer().kind().channels() == layers::Channels::Made { groups: 1 };
    only_reader(net, group, keeps_channels).filter(one_group)
}

impl Reading {
    /// The inputs of a layer as those of one channel.
    pub fn whole(net: &Net, layer: usize) -> Self {
        let width = net.nodes[layer].op.weight_shape().map_or(0, |shape| shape[1..].iter().product());
        Self { layer, channels: 1, places: (0..width).collect() }
    }

    /// The inputs of the layer that reads a group's units. Of a convolution in groups, a unit has a filter in each, which do not follow each
    /// other.
    fn of(net: &Net, group: &ChannelGroup, layer: usize) -> Self {
        let area: usize = net.nodes[layer].op.weight_shape().map_or(1, |shape| shape[2..].iter().product());
        let columns = (0..group.len()).flat_map(|unit| group.readers(unit)).filter(|(node, _)| *node == layer);
        let places = columns.flat_map(|(_, column)| column * area..(column + 1) * area).collect();
        Self { layer, channels: group.len(), places }
    }
}

/// The moments of a layer, no convolution in groups, over the sample: its inputs those of `net`, what it is to compute that of `original`.
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
            if index == reading.layer {
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
        match (layer, shape) {
            (Layer::Conv2d(layers::Conv2d { stride, padding, dilation, .. }), [_, _, kh, kw]) => {
                Some(Self { kernel: [*kh, *kw], stride: *stride, padding: *padding, dilation: *dilation })
            }
            _ => None,
        }
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
    fn width(&self) -> usize {
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
pub(crate) mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::context::Silent;
    use burn::tensor::{Tensor, TensorData};

    use super::*;
    use crate::pruning::channel_lasso::ChannelLasso;
    use crate::pruning::thinet::ThiNet;
    use briquette_handmade::{context, get, images, outputs, refusal, run, set, small};

    pub(crate) fn agree(a: &Net, b: &Net) -> bool {
        let (a, b) = (outputs(a), outputs(b));
        let size = a.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-3 * size)
    }

    /// Channel 1 of the first convolution computes twice what channel 3 does; channel 2 is not read.
    pub(crate) fn dependent() -> Net {
        let mut filters = get(&small(), "conv1", "weight");
        (0..4).for_each(|tap| filters[4 + tap] = 2.0 * filters[12 + tap]);
        let mut readers = get(&small(), "conv2", "weight");
        (0..3 * 4 * 4).filter(|i| i / 4 % 4 == 2).for_each(|i| readers[i] = 0.0);
        set(set(small(), "conv1", "weight", &filters), "conv2", "weight", &readers)
    }

    /// As the method's cut, but the weights of what stays remain as they are.
    pub(crate) fn unfitted<C: Choice>(method: &ByNextLayer<C>, net: Net, cx: &mut Context<'_>) -> Net {
        let sample = Sample { images: C::IMAGES, positions: method.positions, hold_back: true };
        let choose = |moments: &Moments, count: usize| {
            let stays = C::choose(moments, count).0;
            let factors: Vec<f64> = stays.iter().map(|stays| f64::from(u8::from(*stays))).collect();
            (stays, moments.scaled(&factors))
        };
        cut(C::NAME, method.counts(&net).unwrap(), net, sample, cx, choose).unwrap()
    }

    pub(crate) fn of_conv2(net: &Net) -> Moments {
        let (data, mut silent) = (images(), Silent);
        let sample = Sample { images: 40, positions: 20, hold_back: false };
        moments(net, net, &conv2(net), sample, "patches", &mut context(&data, &mut silent)).unwrap()
    }

    fn conv2(net: &Net) -> Reading {
        Reading::of(net, &net.channel_groups().unwrap()[0], net.index("conv2").unwrap())
    }

    /// A convolution of 8 filters in two groups, whose units are filters `c` and `c + 4`, read by a convolution or a fully connected layer. Nothing
    /// reads unit 2, and of unit 1 the filters and what reads them are those of unit 3, but for a factor each.
    fn grouped(flat: bool) -> Net {
        let mut b = Builder::new([1, 4, 4], 17, &Device::flex());
        let mut x = b.conv("lift", b.input(), Conv::new(4, 1));
        x = b.relu("relu1", x);
        x = b.conv("grouped", x, Conv::new(8, 2).groups(2));
        x = b.relu("relu2", x);
        if flat {
            x = b.flatten("flatten", x);
            b.linear("reader", x, 3);
        } else {
            x = b.conv("reader", x, Conv::new(3, 2));
            b.global_avg_pool("pool", x);
        }
        let net = b.finish().unwrap();
        let mut filters = get(&net, "grouped", "weight");
        let of_filter = filters.len() / 8;
        (0..8).filter(|filter| filter % 4 == 1).for_each(|filter| {
            (0..of_filter).for_each(|i| filters[filter * of_filter + i] = 2.0 * filters[(filter + 2) * of_filter + i]);
        });
        let mut readers = get(&net, "reader", "weight");
        let of_channel = readers.len() / 3 / 8;
        for i in 0..readers.len() {
            match i / of_channel % 4 {
                1 => readers[i] = 0.01 * readers[i + 2 * of_channel],
                2 => readers[i] = 0.0,
                _ => {}
            }
        }
        set(set(net, "grouped", "weight", &filters), "reader", "weight", &readers)
    }

    #[test]
    fn a_unit_of_a_convolution_in_groups_goes_with_its_filters_of_every_group() {
        for flat in [false, true] {
            let net = grouped(flat);
            for share in [0.25, 0.5] {
                let settings = serde_json::json!({ "ratio": { "grouped": share } });
                let thinet = run::<ThiNet>(net.deep_clone(), settings.clone()).unwrap();
                let lasso = run::<ChannelLasso>(net.deep_clone(), settings).unwrap();
                for cut in [thinet, lasso] {
                    assert_eq!(
                        cut.nodes[cut.index("grouped").unwrap()].op.weight_shape().unwrap()[0],
                        if share == 0.25 { 6 } else { 4 }
                    );
                    assert!(agree(&net, &cut), "{flat} {share}: {:?} {:?}", outputs(&net), outputs(&cut));
                }
            }
        }
    }

    #[test]
    fn what_a_layer_computes_is_what_its_weights_make_of_the_sampled_inputs() {
        let found = of_conv2(&dependent());
        let width = found.width();
        assert_eq!(width, 16);
        for (weights, targets) in found.weights.chunks_exact(width).zip(found.targets.chunks_exact(width)) {
            for (target, inputs) in targets.iter().zip(found.inputs.chunks_exact(width)) {
                let product: f64 = inputs.iter().zip(weights).map(|(a, b)| a * b).sum();
                assert!((product - target).abs() < 1e-3 * (1.0 + target.abs()), "{product} and {target}");
            }
        }
        let contributions = found.contributions();
        for c in 0..4 {
            let sum: f64 = contributions.products[4 * c..4 * c + 4].iter().sum();
            let target = contributions.with_target[c];
            assert!((sum - target).abs() < 1e-3 * (1.0 + target.abs()), "{sum} and {target}");
        }
        assert_eq!(contributions.products[4 * 2 + 2], 0.0);
    }

    #[test]
    fn least_squares_reproduce_the_output_when_what_goes_depends_on_what_stays() {
        let net = dependent();
        let cut = |stays: [bool; 4]| {
            let choose = |moments: &Moments, _: usize| (stays.to_vec(), moments.reconstructed(&stays));
            let channels: Channels = serde_json::from_value(serde_json::json!({ "ratio": { "conv1": 0.5 } })).unwrap();
            let (data, mut silent) = (images(), Silent);
            let sample = Sample { images: 40, positions: 20, hold_back: false };
            let groups = counts("patches", &channels, &net).unwrap();
            super::cut("patches", groups, net.deep_clone(), sample, &mut context(&data, &mut silent), choose).unwrap()
        };
        assert!(agree(&net, &cut([true, true, false, false])) && agree(&net, &cut([true, false, false, true])));
        assert!(!agree(&net, &cut([false, true, false, true])));
    }

    #[test]
    fn a_layer_in_layers_whose_channels_no_one_layer_reads_is_refused() {
        let settings = serde_json::json!({ "ratio": 0.25, "layers": ["lift", "grouped"] });
        let why = "node 'lift': its channels are not read by one layer alone, or by one in groups; use filter-l1 for it";
        assert_eq!(refusal::<ThiNet>(grouped(false), settings), why);
        let kind = refusal::<ThiNet>(grouped(true), serde_json::json!({ "ratio": 0.25, "layers": ["li*"] }));
        assert!(kind.starts_with("thinet: no layer's channels are read by one layer alone"), "{kind}");
    }

    /// Moments of `rows` places at which a layer of 2 outputs reads 12 numbers, and computes of them what `truth` says but for noise.
    fn noisy(rows: usize, truth: &[f64]) -> Moments {
        let mut rng = ChaCha8Rng::seed_from_u64(rows as u64);
        let mut place = || {
            let x: Vec<f32> = (0..12).map(|_| rng.random_range(-1.0..1.0)).collect();
            let y: Vec<f32> = truth
                .chunks(12)
                .map(|w| w.iter().zip(&x).map(|(w, x)| *w as f32 * x).sum::<f32>() + rng.random_range(-0.4..0.4))
                .collect();
            (x, y)
        };
        let mut found = Moments {
            channels: 6,
            inputs: vec![0.0; 144],
            targets: vec![0.0; 24],
            squares: 0.0,
            weights: truth.iter().map(|w| w * 1.1).collect(),
            rows,
            held: Rows::default(),
        };
        for _ in 0..rows {
            let (x, y) = place();
            add_products(&mut found.inputs, (&x, 12), (&x, 12));
            add_products(&mut found.targets, (&y, 2), (&x, 12));
        }
        for _ in 0..200 {
            let (x, y) = place();
            found.held.inputs.extend(x);
            found.held.outputs.extend(y);
        }
        found
    }

    #[test]
    fn a_fit_to_fewer_rows_than_unknowns_is_held_to_what_other_images_say() {
        let truth: Vec<f64> = (0..24).map(|i| ((i * i * 5 + 3) % 17) as f64 / 8.0 - 1.0).collect();
        let all = [true; 6];
        let off = |weights: &[f64]| weights.iter().zip(&truth).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let unheld = |moments: &Moments| Moments { held: Rows::default(), ..moments.clone() }.reconstructed(&all);
        // With rows enough the fit is right, and nothing pulls.
        let many = noisy(2000, &truth);
        assert!(off(&many.reconstructed(&all)) < 0.01 && off(&many.reconstructed(&all)) < off(&many.weights));
        // With too few it follows the noise, and is worse than no fit at all, unless it is held.
        let few = noisy(13, &truth);
        assert!(off(&unheld(&few)) > off(&few.weights), "{} and {}", off(&unheld(&few)), off(&few.weights));
        let held = few.reconstructed(&all);
        assert!(off(&held) < 0.5 * off(&unheld(&few)), "{} and {}", off(&held), off(&unheld(&few)));
        assert!(few.missed(&held).unwrap() <= few.missed(&few.weights).unwrap());
    }

    #[test]
    fn products_are_sums_over_rows_in_panels_and_without() {
        for (width, columns) in [(3, 5), (150, 131), (200, 97)] {
            let value = |i: usize, by: usize| ((i * i * by + i) % 19) as f32 / 9.0 - 1.0;
            let a: Vec<f32> = (0..7 * width).map(|i| value(i, 3)).collect();
            let b: Vec<f32> = (0..7 * columns).map(|i| value(i, 5)).collect();
            let mut sums = vec![0.5; width * columns];
            add_products(&mut sums, (&a, width), (&b, columns));
            for (at, sum) in sums.iter().enumerate() {
                let (i, j) = (at / columns, at % columns);
                let expected: f64 = (0..7).map(|row| f64::from(a[row * width + i]) * f64::from(b[row * columns + j])).sum();
                assert!((sum - 0.5 - expected).abs() < 1e-9, "{width} {columns} {at}: {sum} and {expected}");
            }
        }
    }

    #[test]
    fn every_tenth_image_is_held_back_and_not_fitted() {
        let (data, mut silent, net) = (images(), Silent, small());
        let sample = Sample { images: 40, positions: 3, hold_back: true };
        let found = moments(&net, &net, &conv2(&net), sample, "patches", &mut context(&data, &mut silent)).unwrap();
        assert_eq!((found.rows, found.held.outputs.len() / 3, found.held.inputs.len() / 16), (36 * 3, 4 * 3, 4 * 3));
        assert!(found.missed(&found.weights).unwrap() < 1e-6);
        let half: Vec<f64> = found.weights.iter().map(|w| 0.5 * w).collect();
        assert!((found.missed(&half).unwrap() - 0.25).abs() < 1e-4);
    }

    #[test]
    fn a_system_is_solved_and_what_it_leaves_open_stays_at_the_guess() {
        let found = solve(vec![4.0, 2.0, 2.0, 3.0], vec![(vec![8.0, 8.0], vec![0.0; 2])]);
        assert!((found[0][0] - 1.0).abs() < 1e-5 && (found[0][1] - 2.0).abs() < 1e-5, "{found:?}");
        let open = solve(vec![1.0, 0.0, 0.0, 0.0], vec![(vec![3.0, 0.0], vec![0.0, 7.0])]);
        assert!((open[0][0] - 3.0).abs() < 1e-5 && (open[0][1] - 7.0).abs() < 1e-9, "{open:?}");
        assert_eq!(solve(vec![0.0; 4], vec![(vec![0.0; 2], vec![5.0, 6.0])]), [[5.0, 6.0]]);
    }

    #[test]
    fn padding_strides_and_dilation_meet_the_right_pixels() {
        let device = Device::flex();
        let read = Tensor::<4>::from_data(TensorData::new((1..=9).map(|v| v as f32).collect::<Vec<_>>(), [1, 1, 3, 3]), &device);
        let computed = Tensor::<4>::zeros([1, 1, 1, 1], &device);
        let taps = |window: Window| {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            window.rows(Value::Map(read.clone()), Value::Map(computed.clone()), 1, &mut rng).0
        };
        let plain = Window { kernel: [2, 2], stride: [2, 2], padding: Padding([[1, 0], [0, 2]]), dilation: [1, 1] };
        assert_eq!(taps(plain), [0.0, 0.0, 1.0, 2.0]);
        assert_eq!(taps(Window { padding: Padding([[0, 3], [0, 0]]), dilation: [2, 1], ..plain }), [1.0, 2.0, 7.0, 8.0]);
    }
}
