//! What the methods that cut channels by the next layer's output have in common: which groups they may cut, what the next layer reads and
//! computes at sampled places, and the way through the network, each layer seeing its inputs as already cut.

use std::marker::PhantomData;

use briquette_core::Layer;
use briquette_core::builder::stream;
use briquette_core::coding::{Coding, floats};
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Value};
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::surgery::{ChannelGroup, Keep};
use briquette_core::training::{Recipe, probe};
use burn::tensor::Device;
use nalgebra::{Cholesky, DMatrix, DMatrixView, DVector};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Deserialize;

use super::channels::{Channels, only_reader, pairs};

/// How much is sampled.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Training images; taken by fifty, and the last fifty as a whole.
    pub images: usize,
    /// Places of the output of a convolution in each image.
    pub positions: usize,
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
        let sample = Sample { images: self.calibration_images.unwrap_or(C::IMAGES), positions: self.positions };
        let net = cut(C::NAME, &self.channels, net, sample, cx, C::choose)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        if self.calibration_images == Some(0) || self.positions == 0 {
            return Err(Error::Invalid(format!("{}: `calibration-images` and `positions` must be at least 1", C::NAME)));
        }
        plan(C::NAME, &self.channels, net)
    }

    fn recipes(&mut self) -> Vec<&mut Recipe> {
        self.channels.recipes()
    }

    fn shorten(&mut self) {
        self.calibration_images = Some(self.calibration_images.unwrap_or(C::IMAGES).min(50));
    }
}

fn ten() -> usize {
    10
}

/// The groups that may be cut because one layer makes their channels and one reads them, and how many units of each stay.
///
/// # Errors
/// When there are none, or the settings, of the method of this name, do not fit the network.
fn counts(method: &str, channels: &Channels, net: &Net) -> Result<Vec<(ChannelGroup, usize)>> {
    let mut groups = channels.groups(net)?;
    groups.retain(|group| reader(net, group).is_some());
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

/// The network's shape after the cut: the last units of each group go.
///
/// # Errors
/// As [`counts`].
fn plan(method: &str, channels: &Channels, net: Net) -> Result<Net> {
    let (groups, counts): (Vec<ChannelGroup>, Vec<usize>) = counts(method, channels, &net)?.into_iter().unzip();
    let keeps = groups.iter().zip(counts).map(|(group, count)| group.best(&vec![0.0; group.len()], count)).collect();
    net.keep(&pairs(&groups, keeps))
}

/// Cuts group after group. `choose` gets the moments of the layer that reads the group's channels, its inputs as the cuts before have left
/// them, and how many channels stay; it marks these and returns the layer's new weights, `[out, channel, tap]`.
///
/// # Errors
/// As [`counts`], and when the images give a layer inputs that are not finite.
fn cut(
    method: &str,
    channels: &Channels,
    net: Net,
    sample: Sample,
    cx: &mut Context<'_>,
    choose: impl Fn(&Moments, usize) -> (Vec<bool>, Vec<f64>),
) -> Result<Net> {
    let original = net.deep_clone();
    let mut net = net;
    for (group, count) in counts(method, channels, &original)?.into_iter().filter(|(group, count)| *count < group.len()) {
        let Some(reader) = reader(&net, &group) else { continue };
        let moments = moments(&net, &original, reader, group.len(), sample, method, cx)?;
        let (stays, weights) = choose(&moments, count);
        let device = net.device();
        let node = net.nodes.remove(reader);
        let mut parameters = node.parameters();
        parameters
            .iter_mut()
            .filter(|stored| stored.name == "weight")
            .for_each(|stored| stored.base = weights.iter().map(|w| *w as f32).collect());
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
    let keeps_channels = |layer: &Layer| {
        matches!(
            layer,
            Layer::BatchNorm { .. }
                | Layer::Activation(_)
                | Layer::Dropout { .. }
                | Layer::MaxPool(_)
                | Layer::AvgPool { .. }
                | Layer::AdaptiveAvgPool { .. }
                | Layer::GlobalAvgPool
                | Layer::Flatten
        )
    };
    let reader = only_reader(net, group, keeps_channels)?;
    match net.nodes[reader].op.layer() {
        Layer::Linear | Layer::Conv2d { groups: 1, .. } => Some(reader),
        _ => None,
    }
}

/// The moments of a layer, no convolution in groups, that reads `channels` channels, over the sample: its inputs those of `net`, what it is
/// to compute that of `original`.
///
/// # Errors
/// When the images give it inputs that are not finite.
pub fn moments(
    net: &Net,
    original: &Net,
    reader: usize,
    channels: usize,
    sample: Sample,
    what: &str,
    cx: &mut Context<'_>,
) -> Result<Moments> {
    let node = &net.nodes[reader];
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
    probe(cx, what, (sample.images.div_ceil(BATCH), BATCH.min(sample.images)), &device, |images, _| {
        let mut read = None;
        net.trace(images.clone(), |index, value| {
            if index == node.inputs[0] {
                read = Some(value.clone());
            }
            value
        });
        let mut computed = None;
        original.trace(images, |index, value| {
            if index == reader {
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
        squares += y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>();
        add_products(&mut inputs, (&x, width), (&x, width));
        add_products(&mut targets, (&y, out), (&x, width));
        Ok(())
    })?;
    Ok(Moments { channels, inputs, targets, squares, weights: weight.base.iter().map(|w| f64::from(*w)).collect() })
}

/// Adds `sum over rows of a_i b_j` to `sums[i, j]`, in double precision: a matrix of squares must stay positive where inputs depend on each
/// other. Each task has a row of the result, so that nothing depends on the number of threads.
fn add_products(sums: &mut [f64], (a, width): (&[f32], usize), (b, columns): (&[f32], usize)) {
    sums.par_chunks_mut(columns).enumerate().for_each(|(i, sums)| {
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(columns)).filter(|(a, _)| a[i] != 0.0) {
            let factor = f64::from(a[i]);
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += factor * f64::from(*b));
        }
    });
}

/// What a convolution reads at one place.
#[derive(Clone, Copy)]
struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
}

impl Window {
    fn of(layer: &Layer, shape: &[usize]) -> Option<Self> {
        match (layer, shape) {
            (Layer::Conv2d { stride, padding, dilation, .. }, [_, _, kh, kw]) => {
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
                        .checked_sub(self.padding[axis])
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
        let weights = weights.transpose() * &weights;
        let inputs = DMatrixView::from_slice(&self.inputs, width, width);
        let product = |c: usize, d: usize| {
            let (start, taps) = ((c * taps, d * taps), (taps, taps));
            weights.view(start, taps).dot(&inputs.view(start, taps))
        };
        Contributions { products: DMatrix::from_fn(channels, channels, product).data.into(), with_target }
    }

    /// The weights with those of each channel multiplied by its factor.
    pub fn scaled(&self, factors: &[f64]) -> Vec<f64> {
        let (width, taps) = (self.width(), self.width() / self.channels);
        self.weights.iter().enumerate().map(|(i, w)| w * factors[i % width / taps]).collect()
    }

    /// The weights of the channels that stay by which the output comes nearest to the original network's, those of the others 0.
    pub fn reconstructed(&self, stays: &[bool]) -> Vec<f64> {
        let (width, taps) = (self.width(), self.width() / self.channels);
        let kept: Vec<usize> = (0..width).filter(|i| stays[i / taps]).collect();
        let matrix = kept.iter().flat_map(|i| kept.iter().map(move |j| self.inputs[i * width + j])).collect();
        let pick = |values: &[f64]| -> Vec<f64> { kept.iter().map(|&i| values[i]).collect() };
        let rows = self.targets.chunks_exact(width).zip(self.weights.chunks_exact(width));
        let solved = solve(matrix, rows.map(|(targets, weights)| (pick(targets), pick(weights))).collect());
        let mut weights = vec![0.0; self.weights.len()];
        for (row, solved) in weights.chunks_exact_mut(width).zip(solved) {
            kept.iter().zip(solved).for_each(|(&i, w)| row[i] = w);
        }
        weights
    }
}

/// For each right-hand side `b` and guess `g`, the `x` that minimizes `x^T A x - 2 b^T x + r |x - g|^2`, by Cholesky's decomposition. `r` is
/// a millionth of the mean of the diagonal of `A`: where the sample does not tell, the guess stays.
pub fn solve(matrix: Vec<f64>, sides: Vec<(Vec<f64>, Vec<f64>)>) -> Vec<Vec<f64>> {
    let n = matrix.len().isqrt();
    let matrix = DMatrix::from_vec(n, n, matrix);
    let ridge = if matrix.trace() > 0.0 { RIDGE * matrix.trace() / n as f64 } else { 1.0 };
    // Rounding may turn the pivot of dependent inputs negative.
    let factor = Cholesky::new_with_substitute(matrix + DMatrix::from_diagonal_element(n, n, ridge), ridge * f64::EPSILON);
    let solve = |(side, guess): (Vec<f64>, Vec<f64>)| match &factor {
        Some(factor) => factor.solve(&(DVector::from_vec(side) + DVector::from_vec(guess) * ridge)).data.into(),
        None => guess,
    };
    sides.into_par_iter().map(solve).collect()
}

/// Far above the rounding of the sums, far below what the output feels.
const RIDGE: f64 = 1e-6;

/// Images of one look at the network.
const BATCH: usize = 50;

#[cfg(test)]
pub(crate) mod tests {
    use briquette_core::pass::Silent;
    use burn::tensor::{Tensor, TensorData};

    use super::*;
    use crate::handmade::{context, get, images, outputs, set, small};

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

    pub(crate) fn of_conv2(net: &Net) -> Moments {
        let (data, mut silent) = (images(), Silent);
        let sample = Sample { images: 40, positions: 20 };
        let reader = net.index("conv2").unwrap();
        moments(net, net, reader, 4, sample, "patches", &mut context(&data, &mut silent)).unwrap()
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
            let channels = serde_json::from_value(serde_json::json!({ "ratio": { "conv1": 0.5 } })).unwrap();
            let (data, mut silent) = (images(), Silent);
            let sample = Sample { images: 40, positions: 20 };
            super::cut("patches", &channels, net.deep_clone(), sample, &mut context(&data, &mut silent), choose).unwrap()
        };
        assert!(agree(&net, &cut([true, true, false, false])) && agree(&net, &cut([true, false, false, true])));
        assert!(!agree(&net, &cut([false, true, false, true])));
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
        let plain = Window { kernel: [2, 2], stride: [2, 2], padding: [1, 0], dilation: [1, 1] };
        assert_eq!(taps(plain), [0.0, 0.0, 1.0, 2.0]);
        assert_eq!(taps(Window { padding: [0, 0], dilation: [2, 1], ..plain }), [1.0, 2.0, 7.0, 8.0]);
    }
}
