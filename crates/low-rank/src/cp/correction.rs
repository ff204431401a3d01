//! The error-preserving correction.

use super::als::Outcome;
use super::contraction::sweep;
use super::model::{Model, grams, hadamard, normalize};
use super::tensor::Tensor;
use super::views::cross;
use crate::algebra::{Matrix, eigen};

/// Rounds until the sum of squared norms changes by less than this of itself.
const TOLERANCE: f64 = 1e-4;

/// Minimizes the components' squared norms `sum_r ||component_r||^2` such that `||X - model|| <= bound`, mode by mode: with vectors of norm
/// one in the others, `min ||A||^2` subject to `||X_(m) - A K^T|| <= bound`, a quadratic problem on a ball. Its solution is
/// `A^T = (G + nu I)^-1 M^T` for the `nu >= 0` that meets the bound. In the eigenvectors of `G = Q diag(s) Q^T` the squared error, which
/// rises with `nu`, is `||X||^2 - sum_k w_k (s_k + 2 nu) / (s_k + nu)^2` with `w_k = ||M q_k||^2`.
///
/// A model that exceeds the bound comes nearer to it first. Bounds below `1e-6 ||X||` are taken for that, where squared norms differ by
/// rounding.
///
/// Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavsky, Glukhov, Oseledets, Cichocki. "Stable Low-rank Tensor Decomposition for Compression
/// of Convolutional Neural Network". ECCV 2020. arXiv:2008.05441.
pub(super) fn correct(tensor: &Tensor, model: &mut Model, bound: f64, rounds: usize) -> Outcome {
    let bound = bound.powi(2).max(1e-12 * tensor.energy());
    let mut grams = grams(&model.factors);
    let mut last = f64::INFINITY;
    for done in 1..=rounds {
        let Model { factors, weights } = model;
        sweep(tensor, factors, |mode, product, factor| {
            *factor = smallest(tensor.energy(), &product, hadamard(&grams, &[mode]), bound);
            *weights = normalize(factor);
            grams[mode] = cross(factor, factor);
        });
        let components = model.components();
        if (last - components).abs() <= TOLERANCE * components {
            return Outcome { sweeps: done, settled: true };
        }
        last = components;
    }
    Outcome { sweeps: rounds, settled: false }
}

/// The factor of the least norm whose squared error is within `bound`; of the least error if none is.
fn smallest(energy: f64, product: &Matrix, gram: Matrix, bound: f64) -> Matrix {
    let (values, vectors) = eigen(gram);
    let mut turned = vectors.transpose() * product;
    let powers: Vec<f64> = turned.row_iter().map(|row| row.norm_squared()).collect();
    let floor = values.first().map_or(0.0, |largest| largest * 1e-14);
    let values: Vec<f64> = values.iter().map(|value| value.max(floor)).collect();
    let error = |nu: f64| energy - values.iter().zip(&powers).map(|(s, w)| w * (s + 2.0 * nu) / (s + nu).powi(2)).sum::<f64>();
    // The logarithm of nu is halved between nothing beside the smallest eigenvalue and all of the largest.
    let (mut low, mut high) = (floor * 1e-4, values.first().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE) * 1e16);
    if error(low) < bound {
        while high / low > 1.0 + 1e-12 {
            let middle = low.sqrt() * high.sqrt();
            *(if error(middle) < bound { &mut low } else { &mut high }) = middle;
        }
    }
    turned.column_iter_mut().for_each(|mut column| column.iter_mut().zip(&values).for_each(|(a, s)| *a /= s + low));
    vectors * turned
}
