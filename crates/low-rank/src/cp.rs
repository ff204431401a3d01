//! The canonical polyadic decomposition: a tensor as a sum of rank-one tensors.
//!
//! `X ~ sum_r a_r^(1) o a_r^(2) o ... o a_r^(modes)`, `R` terms, with the least `||X - model||`. Of a kernel with the modes channels,
//! height, width, filters the terms are a chain of four convolutions, 1x1, height x 1 and 1 x width on each channel by itself, 1x1; with
//! height and width merged into one mode, of three.
//!
//! Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky. "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition". ICLR 2015.
//! arXiv:1412.6553.
//! Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavsky, Glukhov, Oseledets, Cichocki. "Stable Low-rank Tensor Decomposition for Compression
//! of Convolutional Neural Network". ECCV 2020. arXiv:2008.05441.
//! Differs from the papers: Lebedev et al. solve by nonlinear least squares from a random start; here alternating least squares from
//! several starts come first, and Gauss-Newton steps go on from the best. Norms are spread evenly over the factors instead of standing in
//! one.

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

use self::model::Model;
pub use self::tensor::Tensor;
use crate::algebra::Matrix;

/// How factors are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Alternating least squares.
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
    /// Most sweeps of a start, most Gauss-Newton steps, and most rounds of the correction.
    pub sweeps: usize,
    /// How factors are found.
    pub solver: Solver,
    /// Whether to look for the smallest components with the error that was reached.
    pub correction: bool,
    /// The seed of the random starts.
    pub seed: u64,
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
    /// Whether the fit settled with components of bounded norms. If not, it is the best so far: the sweeps were too few, or the tensor has
    /// no best approximation of this rank, and components grow and cancel.
    pub converged: bool,
    /// `sum_r ||component_r||^2 / ||X||^2`: one for orthogonal components of an exact fit, and far above where components cancel.
    pub largest: f64,
}

/// Decomposes a tensor into [`Settings::rank`] rank-one tensors.
///
/// Rank 0 and tensors of zeros have models of zeros. A sweep multiplies each value of the tensor about `2 R` times. What is held besides is
/// less than the tensor, but for a few matrices `[rank, rank]` and `[rank, dim]`; a tensor whose largest mode is neither the first nor the
/// last is copied.
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
        let factors = tensor.shape().iter().map(|dim| Matrix::zeros(*dim, settings.rank)).collect();
        return Ok(Fitted { factors, error: f64::from(tensor.energy().is_normal()), sweeps: 0, converged: true, largest: 0.0 });
    }
    let (tensor, order) = tensor.pivoted();
    let norm = tensor.energy().sqrt();
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
    let largest = model.components() / tensor.energy();
    let mut factors: Vec<(usize, Matrix)> = order.into_iter().zip(model.balanced().iter().map(Matrix::transpose)).collect();
    factors.sort_by_key(|(mode, _)| *mode);
    Ok(Fitted {
        factors: factors.into_iter().map(|(_, factor)| factor).collect(),
        error: distance / norm,
        sweeps: outcome.sweeps,
        converged: outcome.settled && largest <= DIVERGED,
        largest,
    })
}
