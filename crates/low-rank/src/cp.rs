//! The canonical polyadic decomposition: a kernel as a sum of rank-one tensors.
//!
//! `X ~ sum_r a_r^(1) o a_r^(2) o ... o a_r^(modes)`, `R` terms, with the least `||X - model||`. A kernel `[N, C, kh, kw]` of the modes channels,
//! height, width and filters becomes a chain of four convolutions: by one pixel to `R` channels, `kh x 1` and `1 x kw` of each of these by
//! itself, and by one pixel to `N` filters, with the bias; `R (C + kh + kw + N)` weights. With `modes = 3`, the default, height and width are one
//! mode and the two in the middle one convolution, `R (C + kh kw + N)` weights: of small kernels fewer nodes and a lower error at nearly the same
//! size. Strides, paddings and dilations go to the convolutions in the middle, each axis to its own.
//!
//! Factors are found by alternating least squares from several starts, of which the first comes from singular vectors, and with
//! `solver = "gauss-newton"` by damped Gauss-Newton steps from the best of them. A best approximation of a rank need not exist: then terms grow and
//! cancel, the report says "did not converge, best so far", and `correction` looks for the smallest terms of the same error.
//!
//! Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky. "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition". ICLR 2015.
//! arXiv:1412.6553.
//! Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavsky, Glukhov, Oseledets, Cichocki. "Stable Low-rank Tensor Decomposition for Compression of
//! Convolutional Neural Network". ECCV 2020. arXiv:2008.05441.
//! Differs from the papers: Lebedev et al. solve by nonlinear least squares from a random start; here alternating least squares from several
//! starts come first. Norms are spread evenly over the factors instead of standing in one. Rules for ranks look at the spectrum of the unfolding
//! `[N, C kh kw]`, whose tail bounds the error from below: no spectrum tells it.
//!
//! ```
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use briquette_low_rank::cp::Cp;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([8, 12, 12], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(16, 3).same());
//! b.global_avg_pool("pool", x);
//! let method: Cp = serde_json::from_value(serde_json::json!({ "ranks": 10 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 10 * (8 + 9 + 16), "instead of 16 * 8 * 9");
//! ```
//!
//! The decomposition alone, of a kernel of any module:
//!
//! ```
//! use briquette_low_rank::cp::{Settings, Tensor, decompose};
//! use briquette_low_rank::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
//! use burn::nn::conv::{Conv2d, Conv2dConfig};
//! use burn::tensor::Device;
//!
//! let conv: Conv2d = Conv2dConfig::new([4, 6], [3, 3]).init(&Device::flex());
//! let tensor = Tensor::of(&Kernel::of(conv.weight.val()), &[&[CHANNELS], &[HEIGHT, WIDTH], &[FILTERS]]).unwrap();
//! let found = decompose(&tensor, &Settings { rank: 5, ..Settings::default() }).unwrap();
//! assert_eq!(found.factors.iter().map(|factor| factor.shape()).collect::<Vec<_>>(), [(4, 5), (9, 5), (6, 5)]);
//! ```

mod als;
mod cholesky;
mod contraction;
mod correction;
mod model;
mod newton;
mod start;
mod tensor;
#[cfg(test)]
mod tests;
mod views;

use briquette_core::error::{Error, Result};
use serde::Deserialize;

use self::als::Outcome;
use self::model::Model;
pub use self::tensor::Tensor;
use crate::algebra::Matrix;
use crate::chain::{Layer, Link};
use crate::factorization::{Factorization, Factorized, Factors};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::ranks::Spectrum;

/// Puts three or four convolutions in the place of one.
pub type Cp = Factorized<Canonical>;

/// The form of a canonical decomposition.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Canonical {
    /// 3, with height and width as one, or 4.
    #[serde(default = "three")]
    modes: u8,
    /// Starts of which the best counts.
    starts: Option<usize>,
    /// Most sweeps of a start, and most Gauss-Newton steps.
    sweeps: Option<usize>,
    /// How factors are found.
    #[serde(default)]
    solver: Solver,
    /// Whether the smallest terms of the error that was reached are looked for.
    #[serde(default)]
    correction: bool,
}

fn three() -> u8 {
    3
}

/// Starts where the config does not say.
const STARTS: usize = 3;
/// Sweeps where the config does not say.
const SWEEPS: usize = 200;

impl Factorization for Canonical {
    const NAME: &'static str = "cp";
    const PAPER: &'static str =
        "Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, ICLR 2015, arXiv:1412.6553; Phan et al., ECCV 2020, arXiv:2008.05441";
    const EXAMPLE: &'static str = "layers = [\"conv2\"]\nranks = { fraction = 0.1 }\ntune = { epochs = 4, lr = 1e-4 }";

    fn check(&self) -> Result<()> {
        let why = match self.modes {
            3 | 4 if [self.starts, self.sweeps].contains(&Some(0)) => "`starts` and `sweeps` must be at least 1",
            3 | 4 => return Ok(()),
            _ => "`modes` is 3 or 4",
        };
        Err(Error::Invalid(format!("cp: {why}")))
    }

    fn refuses(&self, layer: &Layer) -> Option<String> {
        let [n, c, kh, kw] = layer.shape;
        let pointless = "has a kernel of one pixel, hence two modes; use svd for it";
        if kh * kw == 1 {
            return Some(pointless.into());
        }
        (n == 1 || c == 1).then(|| "has one channel in or out of each group, which leaves nothing to share".into())
    }

    /// What makes any tensor exact: the product of all modes but the largest.
    fn limits(&self, layer: &Layer) -> Vec<usize> {
        let [n, c, kh, kw] = layer.shape;
        let modes = if self.modes == 3 { vec![n, c, kh * kw] } else { vec![n, c, kh, kw] };
        vec![modes.iter().product::<usize>() / modes.iter().max().copied().unwrap_or(1).max(1)]
    }

    fn known(&self, layer: &Layer) -> Vec<usize> {
        let [n, c, kh, kw] = layer.shape;
        vec![n.min(c * kh * kw)]
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        let ([n, c, ..], r) = (layer.shape, ranks[0]);
        let (first, last) = (layer.across("reduce", [r, c]), layer.across("expand", [n, r]));
        if self.modes == 3 {
            return vec![first, layer.whole("depthwise", [r, 1], r), last];
        }
        vec![first, layer.along(0, "vertical", [r, 1], r), layer.along(1, "horizontal", [r, 1], r), last]
    }

    fn spectra(&self, _: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        vec![Spectrum::of(&kernel.unfold(&[FILTERS], &[CHANNELS, HEIGHT, WIDTH]))]
    }

    fn factors(&self, layer: &Layer, kernel: &Kernel, ranks: &[usize], seed: u64) -> Result<Factors> {
        let ([n, c, kh, kw], rank) = (layer.shape, ranks[0]);
        let modes: &[&[usize]] = match self.modes {
            3 => &[&[CHANNELS], &[HEIGHT, WIDTH], &[FILTERS]],
            _ => &[&[CHANNELS], &[HEIGHT], &[WIDTH], &[FILTERS]],
        };
        let settings = Settings {
            rank,
            starts: self.starts.unwrap_or(STARTS),
            sweeps: self.sweeps.unwrap_or(SWEEPS),
            solver: self.solver,
            correction: self.correction,
            seed,
        };
        let found = decompose(&Tensor::of(kernel, modes)?, &settings)?;
        // A factor's columns are contiguous, which are the filters of all links but the last.
        let columns = |mode: usize| found.factors[mode].as_slice().to_vec();
        let last = found.factors[modes.len() - 1].transpose().as_slice().to_vec();
        let mut kernels = vec![Kernel::new([rank, c, 1, 1], columns(0))];
        if self.modes == 3 {
            kernels.push(Kernel::new([rank, 1, kh, kw], columns(1)));
        } else {
            kernels.extend([Kernel::new([rank, 1, kh, 1], columns(1)), Kernel::new([rank, 1, 1, kw], columns(2))]);
        }
        kernels.push(Kernel::new([n, rank, 1, 1], last));
        let note = (!found.converged).then(|| {
            let (sweeps, largest) = (found.sweeps, found.largest);
            format!(
                "did not converge in {sweeps} sweeps, best so far; its terms have {largest:.1} times the energy of the kernel"
            )
        });
        Ok(Factors { kernels, residual: found.error.powi(2) * kernel.energy(), note })
    }

    fn shorten(&mut self) {
        self.starts = Some(1);
        self.sweeps = Some(self.sweeps.unwrap_or(SWEEPS).min(10));
    }
}

/// How factors are found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Alternating least squares.
    #[default]
    Als,
    /// Damped Gauss-Newton steps after them, which get through where they stall.
    GaussNewton,
}

/// What [`decompose`] is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The number of terms `R`.
    pub rank: usize,
    /// Starts of which the best counts: the first from leading singular vectors, the others random.
    pub starts: usize,
    /// Most sweeps of a start, and most Gauss-Newton steps.
    pub sweeps: usize,
    /// How factors are found.
    pub solver: Solver,
    /// Whether to look for the smallest components with the error that was reached (Phan et al., section 4).
    pub correction: bool,
    /// The seed of the random starts.
    pub seed: u64,
}

impl Default for Settings {
    /// One term, five starts of at most 1,000 sweeps, no Gauss-Newton steps and no correction.
    fn default() -> Self {
        Self { rank: 1, starts: 5, sweeps: 1000, solver: Solver::Als, correction: false, seed: 0 }
    }
}

/// The components of a fit together have at most this many times the energy of the tensor; beyond they diverge and cancel.
const DIVERGED: f64 = 1e3;

/// A decomposition.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// A factor `[dim, rank]` for each mode, the norms of a component's columns equal.
    pub factors: Vec<Matrix>,
    /// `||X - model|| / ||X||`; zero for a tensor of zeros.
    pub error: f64,
    /// Sweeps and steps that led to it.
    pub sweeps: usize,
    /// Whether the fit settled with components of bounded norms. If not, it is the best so far: the sweeps were too few, or the tensor has no
    /// best approximation of this rank, and components grow and cancel.
    pub converged: bool,
    /// `sum_r ||component_r||^2 / ||X||^2`: one for orthogonal components of an exact fit, and far above where components cancel.
    pub largest: f64,
}

/// Decomposes a tensor into [`Settings::rank`] rank-one tensors.
///
/// Rank 0 and tensors of zeros have models of zeros. A sweep multiplies each value of the tensor `2 R` times, more where panels of what it has
/// contracted find no room. Besides the tensor, the factors of the best start and those of another, alternating least squares hold a matrix
/// `R x R` for each mode and one more, the largest factor's size once, and panels for as long as all that stays below the tensor's size: no
/// more than as many values as the tensor has while `(modes + 2) R^2` are fewer. Gauss-Newton steps hold six more of the factors' size and as many
/// `R x R` again. A tensor whose largest mode is neither the first nor the last is copied.
///
/// # Errors
/// [`Error::Invalid`] if there is no start or no sweep, or the rank exceeds the product of all dimensions but the largest, with which every
/// tensor is exact.
pub fn decompose(tensor: &Tensor, settings: &Settings) -> Result<Fitted> {
    let most: usize = tensor.without(tensor.largest()).iter().product();
    if settings.rank > most {
        let (rank, shape) = (settings.rank, tensor.shape());
        return Err(Error::Invalid(format!("rank {rank} for a tensor of shape {shape:?}, which needs {most} at most")));
    }
    if settings.starts == 0 || settings.sweeps == 0 {
        return Err(Error::Invalid("a CP decomposition takes one start and one sweep or more".into()));
    }
    if settings.rank == 0 || !tensor.energy().is_normal() {
        return Ok(nothing(tensor, settings.rank));
    }
    let (tensor, order) = tensor.pivoted();
    let away = |model: &Model| contraction::distance(&tensor, &model.balanced());
    let fits = (0..settings.starts).map(|number| {
        let mut model = start::start(&tensor, settings.rank, number, settings.seed);
        let outcome = als::fit(&tensor, &mut model, settings.sweeps);
        (away(&model), model, outcome)
    });
    let finite = |(distance, model, _): &(f64, Model, _)| distance.is_finite() && model.is_finite();
    let Some((mut distance, mut model, mut outcome)) = fits.filter(finite).min_by(|a, b| a.0.total_cmp(&b.0)) else {
        let factors = tensor.shape().iter().map(|dim| Matrix::zeros(*dim, settings.rank)).collect();
        return Ok(Fitted { factors, error: 1.0, sweeps: settings.sweeps, converged: false, largest: 0.0 });
    };
    if settings.solver == Solver::GaussNewton {
        let mut polished = model.clone();
        let end = newton::polish(&tensor, &mut polished, settings.sweeps);
        outcome.sweeps += end.sweeps;
        let reached = away(&polished);
        if polished.is_finite() && reached <= distance {
            (model, distance, outcome.settled) = (polished, reached, end.settled);
        }
    }
    if settings.correction {
        let mut smaller = model.clone();
        let end = correction::correct(&tensor, &mut smaller, distance, settings.sweeps);
        outcome.sweeps += end.sweeps;
        let reached = away(&smaller);
        if smaller.is_finite() && smaller.components() <= model.components() {
            (model, distance) = (smaller, reached);
        }
    }
    Ok(fitted(&tensor, &order, &model, distance, outcome))
}

/// Improves factors, one `[dim, rank]` for each mode, by alternating least squares, which never let the error rise.
///
/// # Errors
/// [`Error::Invalid`] if the factors are of another shape than the tensor's, or of different ranks.
pub fn refine(tensor: &Tensor, factors: &[Matrix], sweeps: usize) -> Result<Fitted> {
    let rank = factors.first().map_or(0, Matrix::ncols);
    let shapes: Vec<(usize, usize)> = factors.iter().map(Matrix::shape).collect();
    if shapes != tensor.shape().iter().map(|dim| (*dim, rank)).collect::<Vec<_>>() {
        return Err(Error::Invalid(format!("factors of shapes {shapes:?} for a tensor of shape {:?}", tensor.shape())));
    }
    if rank == 0 || !tensor.energy().is_normal() {
        return Ok(nothing(tensor, rank));
    }
    let (tensor, order) = tensor.pivoted();
    let mut model = Model::new(order.iter().map(|mode| factors[*mode].transpose()).collect());
    let outcome = als::fit(&tensor, &mut model, sweeps);
    let distance = contraction::distance(&tensor, &model.balanced());
    Ok(fitted(&tensor, &order, &model, distance, outcome))
}

/// The decomposition of zeros, or into no term.
fn nothing(tensor: &Tensor, rank: usize) -> Fitted {
    let factors = tensor.shape().iter().map(|dim| Matrix::zeros(*dim, rank)).collect();
    Fitted { factors, error: f64::from(tensor.energy().is_normal()), sweeps: 0, converged: true, largest: 0.0 }
}

/// A model of a tensor whose modes are in this order of those that were asked for.
fn fitted(tensor: &Tensor, order: &[usize], model: &Model, distance: f64, outcome: Outcome) -> Fitted {
    let largest = model.components() / tensor.energy();
    let mut factors: Vec<(&usize, Matrix)> = order.iter().zip(model.balanced().iter().map(Matrix::transpose)).collect();
    factors.sort_by_key(|(mode, _)| *mode);
    Fitted {
        factors: factors.into_iter().map(|(_, factor)| factor).collect(),
        error: distance / tensor.energy().sqrt(),
        sweeps: outcome.sweeps,
        converged: outcome.settled && largest <= DIVERGED,
        largest,
    }
}
