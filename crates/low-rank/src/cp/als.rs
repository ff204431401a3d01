//! Alternating least squares.

use super::cholesky::Cholesky;
use super::contraction::sweep;
use super::model::{Model, grams, hadamard, normalize, scale};
use super::tensor::Tensor;
use super::views::cross;
use crate::algebra::Matrix;

/// How a fit came to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    /// Sweeps made.
    pub(super) sweeps: usize,
    /// Whether it ended because the fit no longer changed.
    pub(super) settled: bool,
}

/// Sweeps until the fit `1 - ||X - model|| / ||X||` changes by less than `1e-8` of itself.
const TOLERANCE: f64 = 1e-8;
/// The weight of the last factor in an update, beside a gram matrix with ones on its diagonal.
const PROXIMAL: f64 = 1e-12;

/// Minimizes `||X_(m) - A (khatri-rao of the others)^T||` over the factor `A` of one mode after the other: `A^T = G^-1 M_m^T` with the
/// product `G`, entry by entry, of the other factors' grams.
///
/// `G` of components that cancel is singular, therefore an update minimizes in truth the above plus `mu ||A - A_last||^2`, which never lets
/// the error rise, and `mu` is as small as the factorization of `G + mu I` allows.
pub(super) fn fit(tensor: &Tensor, model: &mut Model, sweeps: usize) -> Outcome {
    let mut grams = grams(&model.factors);
    let mut last = f64::INFINITY;
    for done in 1..=sweeps {
        let Model { factors, weights } = model;
        let mut inner = f64::NAN;
        let mut solved = true;
        sweep(tensor, factors, |mode, product, factor| {
            scale(factor, weights);
            solved &= proximal(|| hadamard(&grams, &[mode]), &product, factor);
            inner = factor.dot(&product);
            *weights = normalize(factor);
            grams[mode] = cross(factor, factor);
        });
        let fit = 1.0 - (residual(tensor, inner, &grams, weights) / tensor.energy()).sqrt();
        if !solved || !fit.is_finite() {
            return Outcome { sweeps: done, settled: false };
        }
        if (fit - last).abs() <= TOLERANCE * fit.abs() {
            return Outcome { sweeps: done, settled: true };
        }
        last = fit;
    }
    Outcome { sweeps, settled: false }
}

/// `||X - model||^2` from the scalar products of both and of the components.
pub(super) fn residual(tensor: &Tensor, inner: f64, grams: &[Matrix], weights: &[f64]) -> f64 {
    let components = hadamard(grams, &[]);
    let weights = nalgebra::DVectorView::from_slice(weights, weights.len());
    (tensor.energy() - 2.0 * inner + weights.dot(&(components * weights))).max(0.0)
}

/// The update in the place of the last factor, without another copy of either; whether there is one. The gram matrix is made anew for each `mu`, as
/// a factorization takes its place.
fn proximal(gram: impl Fn() -> Matrix, product: &Matrix, factor: &mut Matrix) -> bool {
    let weights = std::iter::successors(Some(PROXIMAL), |mu| Some(mu * 100.0)).take_while(|mu| *mu <= 1.0);
    let damped = |mu: f64| {
        let mut damped = gram();
        (0..damped.nrows()).for_each(|r| damped[(r, r)] += mu);
        Some((mu, Cholesky::new(damped)?))
    };
    let Some((mu, damped)) = weights.into_iter().find_map(damped) else { return false };
    factor.zip_apply(product, |last, product| *last = product + mu * *last);
    damped.solve(factor);
    true
}
