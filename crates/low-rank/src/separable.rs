//! Separable filters, fitted to the filters or to what the layer computes.
//!
//! Scheme 2: a kernel `W` `[N, C, kh, kw]` becomes `K` vertical filters over all channels, `V` `[K, C, kh, 1]`, and `N` horizontal filters over
//! these `K` maps, `H` `[N, K, 1, kw]`; `K (C kh + N kw)` weights. Scheme 1: each channel gets `M` separable basis filters of its own, and a
//! convolution by one pixel mixes the `C M` maps; `C M (kh + kw) + N C M` weights. The rank is `K`, or `M`.
//!
//! Reconstruction of filters minimizes `||W - W~||^2`: in closed form for scheme 2, as in [`bn_low_rank`], and for scheme 1
//! as a [canonical decomposition](crate::cp) of rank `M` of each channel's tensor `[N, kh, kw]`. Reconstruction of data minimizes
//! `E ||y - H * (V * x)||^2` over training images, `y` what the layer computed in the network before the pass and `x` what it reads now
//! that the layers below are factorized. With `S = sum x x^T` and `T = sum y x^T` over sampled places this is
//! `tr(W~ S W~^T) - 2 tr(W~ T^T)`, a quadratic form in `H` with `V` fixed and in `V` with `H` fixed, whose least squares are solved in turn,
//! beginning at the reconstruction of filters, so that the error never rises.
//!
//! Jaderberg, Vedaldi, Zisserman. "Speeding up Convolutional Neural Networks with Low Rank Expansions". BMVC 2014. arXiv:1405.3866.
//! Differs from the paper: data reconstruction is by alternating least squares, not by back-propagation, and filters by their exact
//! optimum, where the paper penalizes the nuclear norm.
//!
//! ```
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use briquette_low_rank::separable::Separable;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([4, 12, 12], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(16, 5).same());
//! b.global_avg_pool("pool", x);
//! let method: Separable = serde_json::from_value(serde_json::json!({ "scheme": 1, "ranks": 2 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 4 * 2 * (5 + 5) + 16 * 4 * 2, "instead of 16 * 4 * 25");
//! ```

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_parts::moments::{Moments, Reading, Sample, moments};
use serde::Deserialize;

use crate::algebra::{Matrix, solve};
use crate::bn_low_rank;
use crate::chain::{Layer, Link};
use crate::cp::{self, Settings, Tensor};
use crate::factorization::{Factorization, Factorized, Factors, Site};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::ranks::Spectrum;

/// Puts separable filters in the place of convolutions.
pub type Separable = Factorized<Filters>;

/// The form of separable filters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Filters {
    /// 1 or 2.
    #[serde(default = "two")]
    scheme: u8,
    /// What the fit is to.
    #[serde(default)]
    reconstruction: Reconstruction,
    /// Training images that data are reconstructed on.
    calibration_images: Option<usize>,
    /// Places of each layer's output in an image.
    positions: Option<usize>,
    /// How often either factor is fitted.
    sweeps: Option<usize>,
}

/// What a fit is to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reconstruction {
    /// The kernel.
    #[default]
    Filters,
    /// What the layer computes of training images.
    Data,
}

fn two() -> u8 {
    2
}

/// Images that data are reconstructed on where the config does not say.
const IMAGES: usize = 1000;
/// Places of each image.
const POSITIONS: usize = 10;
/// Sweeps of a fit to data.
const SWEEPS: usize = 10;
/// Most steps of conjugate gradients; a small factor takes as many as it has values.
const STEPS: usize = 200;

impl Factorization for Filters {
    const NAME: &'static str = "separable";
    const PAPER: &'static str = "Jaderberg, Vedaldi, Zisserman, BMVC 2014, arXiv:1405.3866";
    const EXAMPLE: &'static str = "layers = [\"conv2\"]\nranks = { energy = 0.8 }\ntune = { epochs = 4 }";

    fn check(&self) -> Result<()> {
        let of_data = [self.calibration_images, self.positions, self.sweeps];
        let why = match (self.scheme, self.reconstruction) {
            (1 | 2, _) if of_data.contains(&Some(0)) => "`calibration-images`, `positions` and `sweeps` must be at least 1",
            (1, Reconstruction::Data) => "scheme 1 is fitted to filters only; set `scheme = 2` for `reconstruction = \"data\"`",
            (1 | 2, Reconstruction::Filters) if of_data.iter().any(Option::is_some) => {
                "`calibration-images`, `positions` and `sweeps` are of `reconstruction = \"data\"`"
            }
            (1 | 2, _) => return Ok(()),
            _ => "`scheme` is 1 or 2",
        };
        Err(Error::Invalid(format!("separable: {why}")))
    }

    fn refuses(&self, layer: &Layer) -> Option<String> {
        let grouped = self.reconstruction == Reconstruction::Data && layer.groups > 1;
        let why = || "is in groups, of which no data are reconstructed; set `reconstruction = \"filters\"` for it".to_string();
        bn_low_rank::unsplit(layer).or_else(|| grouped.then(why))
    }

    fn limits(&self, layer: &Layer) -> Vec<usize> {
        let [n, _, kh, kw] = layer.shape;
        if self.scheme == 1 { vec![(kh * kw).min(n * kh.min(kw))] } else { bn_low_rank::limits(layer) }
    }

    fn known(&self, layer: &Layer) -> Vec<usize> {
        let [n, _, kh, kw] = layer.shape;
        if self.scheme == 1 { vec![n.min(kh * kw)] } else { self.limits(layer) }
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        let [n, c, ..] = layer.shape;
        let maps = c * ranks[0];
        if self.scheme == 2 {
            return bn_low_rank::links(layer, ranks[0]);
        }
        vec![
            layer.along(0, "vertical", [maps, 1], c),
            layer.along(1, "horizontal", [maps, 1], maps),
            layer.across("mix", [n, maps]),
        ]
    }

    /// For scheme 1 those of the channels' matrices `[kh kw, N]`, of which `M` basis filters that need not be separable would cut off the tail.
    fn spectra(&self, _: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        if self.scheme == 2 {
            return bn_low_rank::spectra(kernel);
        }
        let channels =
            (0..kernel.shape[1]).map(|channel| Spectrum::of(&of_channel(kernel, channel).unfold(&[HEIGHT, WIDTH], &[FILTERS])));
        vec![Spectrum::together(&channels.collect::<Vec<_>>())]
    }

    fn factors(&self, _: &Layer, kernel: &Kernel, ranks: &[usize], seed: u64) -> Result<Factors> {
        if self.scheme == 2 { bn_low_rank::factors(kernel, ranks[0], seed) } else { channelwise(kernel, ranks[0], seed) }
    }

    fn adapted(
        &self,
        site: &Site<'_>,
        mut kernels: Vec<Vec<Kernel>>,
        cx: &mut Context<'_>,
    ) -> Result<(Vec<Vec<Kernel>>, Option<String>)> {
        if self.reconstruction == Reconstruction::Filters {
            return Ok((kernels, None));
        }
        let sample = Sample {
            images: self.calibration_images.unwrap_or(IMAGES),
            positions: self.positions.unwrap_or(POSITIONS),
            hold_back: true,
        };
        let reading = Reading::whole(site.net, site.net.index(site.name)?);
        let found = moments(site.net, site.original, &reading, sample, "separable", cx)?;
        let mut pair = [kernels[0][0].clone(), kernels[0][1].clone()];
        let before = missed(&found, &pair);
        Data::of(&found).fit(&mut pair, self.sweeps.unwrap_or(SWEEPS));
        let (Some(before), Some(after)) = (before, missed(&found, &pair)) else {
            kernels[0] = pair.into();
            return Ok((kernels, Some("fitted to data that leave none to measure on".into())));
        };
        let better = after < before;
        if better {
            kernels[0] = pair.into();
        }
        let [from, to] = [before, after].map(|missed| 100.0 * missed.sqrt());
        let kept = if better { "" } else { ", hence the fit to filters is kept" };
        let words =
            format!("{to:.2} % of its output's norm missing with the fit to data, {from:.2} % with that to filters{kept}");
        Ok((kernels, Some(words)))
    }

    fn shorten(&mut self) {
        if self.reconstruction == Reconstruction::Data {
            self.calibration_images = Some(self.calibration_images.unwrap_or(IMAGES).min(50));
            self.sweeps = Some(self.sweeps.unwrap_or(SWEEPS).min(2));
        }
    }
}

/// The share of the output's squares that a pair misses at places that were held back.
fn missed(found: &Moments, [vertical, horizontal]: &[Kernel; 2]) -> Option<f64> {
    let composed = composed(vertical, horizontal);
    found.missed(&composed.values)
}

/// The kernel `W[n, c, i, j] = sum_k H[n, k, j] V[k, c, i]` that a pair computes.
pub(crate) fn composed(vertical: &Kernel, horizontal: &Kernel) -> Kernel {
    let ([_, c, kh, _], [n, _, _, kw]) = (vertical.shape, horizontal.shape);
    let product =
        vertical.unfold(&[CHANNELS, HEIGHT], &[FILTERS, WIDTH]) * horizontal.unfold(&[CHANNELS, HEIGHT], &[WIDTH, FILTERS]);
    Kernel::fold([n, c, kh, kw], &product, &[CHANNELS, HEIGHT], &[WIDTH, FILTERS])
}

/// One channel of a kernel, `[N, 1, kh, kw]`.
fn of_channel(kernel: &Kernel, channel: usize) -> Kernel {
    let [n, c, kh, kw] = kernel.shape;
    let filters = kernel.values.chunks_exact(c * kh * kw);
    let values = filters.flat_map(|filter| &filter[channel * kh * kw..(channel + 1) * kh * kw]).copied().collect();
    Kernel::new([n, 1, kh, kw], values)
}

/// Scheme 1: each channel's filters `[N, kh, kw]` as sums of `M` separable basis filters.
fn channelwise(kernel: &Kernel, rank: usize, seed: u64) -> Result<Factors> {
    let [n, c, kh, kw] = kernel.shape;
    let (mut vertical, mut horizontal, mut mix) = (Vec::new(), Vec::new(), vec![0.0; n * c * rank]);
    let (mut residual, mut unsettled) = (0.0, 0);
    for channel in 0..c {
        let own = of_channel(kernel, channel);
        let tensor = Tensor::of(&own, &[&[FILTERS, CHANNELS], &[HEIGHT], &[WIDTH]])?;
        let settings = Settings { rank, seed: seed.wrapping_add(channel as u64), ..Settings::default() };
        let found = cp::decompose(&tensor, &settings)?;
        residual += found.error.powi(2) * own.energy();
        unsettled += usize::from(!found.converged);
        let [filters, rows, columns] = [0, 1, 2].map(|mode| &found.factors[mode]);
        for term in 0..rank {
            vertical.extend(rows.column(term).iter());
            horizontal.extend(columns.column(term).iter());
            (0..n).for_each(|filter| mix[(filter * c + channel) * rank + term] = filters[(filter, term)]);
        }
    }
    let maps = c * rank;
    let note = (unsettled > 0).then(|| format!("the fits of {unsettled} of {c} channels did not converge; best so far"));
    let kernels = vec![
        Kernel::new([maps, 1, kh, 1], vertical),
        Kernel::new([maps, 1, 1, kw], horizontal),
        Kernel::new([n, maps, 1, 1], mix),
    ];
    Ok(Factors { kernels, residual, note })
}

/// The quadratic form of a layer's data.
struct Data {
    /// `sum x x^T` and a ridge, by `[channel, row, column]`.
    inputs: Matrix,
    /// `sum x y^T`.
    targets: Matrix,
}

impl Data {
    fn of(found: &Moments) -> Self {
        let width = found.width();
        let mut inputs = Matrix::from_row_slice(width, width, &found.inputs);
        let ridge = 1e-6 * inputs.trace() / width as f64;
        (0..width).for_each(|i| inputs[(i, i)] += ridge);
        Self { inputs, targets: Matrix::from_row_slice(found.targets.len() / width, width, &found.targets).transpose() }
    }

    /// Half the gradient of `tr(W S W^T) - 2 tr(W T)` by the kernel.
    fn slope(&self, kernel: &Kernel, linear: bool) -> Kernel {
        let matrix = kernel.unfold(&[CHANNELS, HEIGHT, WIDTH], &[FILTERS]);
        let product = &self.inputs * matrix;
        let slope = if linear { product - &self.targets } else { product };
        Kernel::fold(kernel.shape, &slope, &[CHANNELS, HEIGHT, WIDTH], &[FILTERS])
    }

    /// Brings a pair nearer to the data, in each sweep the horizontal factor and then the vertical one.
    fn fit(&self, pair: &mut [Kernel; 2], sweeps: usize) {
        for _ in 0..sweeps {
            pair[1] = self.horizontal(&pair[0]);
            self.descend(pair);
        }
    }

    /// The least squares for the horizontal factor: all filters have the same normal equations, `L^T S L h = L^T t` with `L = V (x) I`.
    fn horizontal(&self, vertical: &Kernel) -> Kernel {
        let ([k, c, kh, _], [width, n]) = (vertical.shape, [self.targets.nrows(), self.targets.ncols()]);
        let kw = width / (c * kh);
        let maps = vertical.unfold(&[CHANNELS, HEIGHT], &[FILTERS, WIDTH]).kronecker(&Matrix::identity(kw, kw));
        let turned = maps.transpose();
        let (gram, right) = (&turned * (&self.inputs * &maps), &turned * &self.targets);
        let found = match nalgebra::linalg::Cholesky::new(gram.clone()) {
            Some(gram) => gram.solve(&right),
            None => solve(gram, &right),
        };
        Kernel::fold([n, k, 1, kw], &found, &[CHANNELS, WIDTH], &[FILTERS, HEIGHT])
    }

    /// The least squares for the vertical factor, whose normal equations are as many as it has values, by conjugate gradients. For `W = L(V)`
    /// linear in the factor, the gradient by `V` is `L^T` of that by `W`, which along a direction `d` changes by `S L(d)`.
    fn descend(&self, pair: &mut [Kernel; 2]) {
        let mut slope = self.slope(&composed(&pair[0], &pair[1]), true);
        let mut gradient = back(&slope, pair);
        let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut size = dot(&gradient, &gradient);
        let enough = size * 1e-20;
        for _ in 0..STEPS {
            let moved = composed(&Kernel::new(pair[0].shape, direction.clone()), &pair[1]);
            let turned = self.slope(&moved, false);
            let (fall, curvature) = (-dot(&gradient, &direction), dot(&moved.values, &turned.values));
            if !(curvature > 0.0 && fall > 0.0) {
                return;
            }
            let step = fall / curvature;
            pair[0].values.iter_mut().zip(&direction).for_each(|(value, d)| *value += step * d);
            slope.values.iter_mut().zip(&turned.values).for_each(|(value, d)| *value += step * d);
            gradient = back(&slope, pair);
            let now = dot(&gradient, &gradient);
            if now <= enough {
                return;
            }
            direction.iter_mut().zip(&gradient).for_each(|(d, g)| *d = now / size * *d - g);
            size = now;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The gradient by the vertical factor of a pair, from that by the kernel.
fn back(slope: &Kernel, [vertical, horizontal]: &[Kernel; 2]) -> Vec<f64> {
    // [(c, i), (j, n)], as the product of [(c, i), k] and [k, (j, n)].
    let (rows, columns) = (&[CHANNELS, HEIGHT], &[WIDTH, FILTERS]);
    let gradient = slope.unfold(rows, columns) * horizontal.unfold(rows, columns).transpose();
    Kernel::fold(vertical.shape, &gradient, rows, &[FILTERS, WIDTH]).values
}

#[cfg(test)]
mod tests {
    use briquette_handmade::{outputs, refusal, run, small};
    use serde_json::json;

    use super::*;
    use crate::golden::{self, near};
    use crate::proof::{apart, convolutions, reproduces};

    #[test]
    fn full_rank_reproduces_the_layer() {
        for scheme in [1, 2] {
            reproduces::<Separable>(convolutions([3, 2]), &json!({ "scheme": scheme }));
        }
    }

    #[test]
    fn each_channel_is_as_near_as_the_best_that_another_program_finds() {
        let kernel = golden::kernel([8, 6, 3, 3], golden::DECAY);
        for (rank, bound) in (1..).zip([1.305654787, 0.8825332336, 0.438275463]) {
            let found = channelwise(&kernel, rank, 1).unwrap().residual.sqrt();
            assert!(found < bound * 1.001, "{rank}: {found} and {bound}");
        }
    }

    /// Moments of every place of the golden images under the golden kernel, zeros around them.
    fn golden_data() -> (Data, Kernel, f64) {
        let (x, kernel) = (golden::numbers(golden::IMAGES), golden::kernel([6, 4, 3, 3], golden::OF_IMAGES));
        let (mut inputs, mut targets, mut squares) = (Matrix::zeros(36, 36), Matrix::zeros(36, 6), 0.0);
        let weights = kernel.unfold(&[FILTERS], &[CHANNELS, HEIGHT, WIDTH]);
        for image in x.chunks_exact(4 * 49) {
            for (row, column) in (0..7).flat_map(|row| (0..7).map(move |column| (row, column))) {
                let pixel = |at: usize| {
                    let (channel, i, j) = (at / 9, (row + at / 3 % 3).wrapping_sub(1), (column + at % 3).wrapping_sub(1));
                    if i < 7 && j < 7 { image[channel * 49 + i * 7 + j] } else { 0.0 }
                };
                let patch = Matrix::from_fn(36, 1, |at, _| pixel(at));
                let computed = &weights * &patch;
                squares += computed.norm_squared();
                inputs += &patch * patch.transpose();
                targets += &patch * computed.transpose();
            }
        }
        (Data { inputs, targets }, kernel, squares)
    }

    #[test]
    fn a_fit_to_data_goes_down_as_exact_least_squares_do() {
        let (data, kernel, squares) = golden_data();
        assert!(near(squares.sqrt(), 13.76661798, 1e-6));
        let error = |pair: &[Kernel; 2]| {
            let composed = composed(&pair[0], &pair[1]);
            let matrix = composed.unfold(&[CHANNELS, HEIGHT, WIDTH], &[FILTERS]);
            (matrix.dot(&(&data.inputs * &matrix)) - 2.0 * matrix.dot(&data.targets) + squares).max(0.0).sqrt()
        };
        for (rank, errors) in [
            (2, [8.127221864, 5.780643689, 5.699240946]),
            (3, [7.023446694, 3.769391434, 3.655861757]),
            (4, [4.53908089, 2.985353564, 2.293887338]),
        ] {
            let found = bn_low_rank::factors(&kernel, rank, 0).unwrap().kernels;
            let mut pair = [found[0].clone(), found[1].clone()];
            assert!(near(error(&pair), errors[0], 1e-6), "{rank}: {}", error(&pair));
            data.fit(&mut pair, 1);
            assert!(near(error(&pair), errors[1], 1e-5), "{rank}: {} after one sweep", error(&pair));
            data.fit(&mut pair, 4);
            assert!(near(error(&pair), errors[2], 1e-5), "{rank}: {} after five", error(&pair));
        }
    }

    #[test]
    fn a_fit_to_data_brings_the_network_nearer_to_what_it_computed() {
        let settings =
            |of: serde_json::Value| crate::proof::with(&json!({ "layers": ["conv2"], "ranks": 2, "break-even": "off" }), of);
        let of_filters = run::<Separable>(small(), settings(json!({}))).unwrap();
        let of_data = run::<Separable>(small(), settings(json!({ "reconstruction": "data", "calibration-images": 40 }))).unwrap();
        let expected = outputs(&small());
        let (far, near) = (apart(&outputs(&of_filters), &expected), apart(&outputs(&of_data), &expected));
        assert!(near < 0.8 * far, "{near} and {far}");
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let refused = |more: serde_json::Value| refusal::<Separable>(small(), crate::proof::with(&json!({ "ranks": 1 }), more));
        assert_eq!(refused(json!({ "scheme": 3 })), "separable: `scheme` is 1 or 2");
        assert!(refused(json!({ "scheme": 1, "reconstruction": "data" })).contains("scheme 1 is fitted to filters only"));
        assert!(refused(json!({ "sweeps": 3 })).contains("are of `reconstruction = \"data\"`"));
        let grouped = refusal::<Separable>(convolutions([3, 3]).remove(3), json!({ "ranks": 2, "reconstruction": "data" }));
        assert!(grouped.contains("node 'layer': is in groups, of which no data are reconstructed"), "{grouped}");
    }
}
