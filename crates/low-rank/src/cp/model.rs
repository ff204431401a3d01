//! Sums of rank-one tensors.

use super::views::cross;
use crate::algebra::Matrix;

/// `sum_r w_r a_r^(1) o ... o a_r^(modes)` with vectors `a` of norm one.
#[derive(Debug, Clone)]
pub(super) struct Model {
    /// A factor `[rank, dim]` for each mode, a component in each row.
    pub(super) factors: Vec<Matrix>,
    /// The norms of the components.
    pub(super) weights: Vec<f64>,
}

impl Model {
    /// The model of any factors.
    pub(super) fn new(mut factors: Vec<Matrix>) -> Self {
        let mut weights = vec![1.0; factors[0].nrows()];
        for factor in &mut factors {
            weights.iter_mut().zip(normalize(factor)).for_each(|(weight, norm)| *weight *= norm);
        }
        Self { factors, weights }
    }

    /// Factors with the norms spread evenly: each row of a factor has `w_r^(1 / modes)`.
    pub(super) fn balanced(&self) -> Vec<Matrix> {
        let modes = self.factors.len() as f64;
        let shares: Vec<f64> = self.weights.iter().map(|weight| weight.powf(modes.recip())).collect();
        let share = |mut factor: Matrix| {
            scale(&mut factor, &shares);
            factor
        };
        self.factors.iter().cloned().map(share).collect()
    }

    /// `sum_r w_r^2`, the squared norms of the components.
    pub(super) fn components(&self) -> f64 {
        self.weights.iter().map(|weight| weight * weight).sum()
    }

    /// Whether all of it is finite.
    pub(super) fn is_finite(&self) -> bool {
        self.weights.iter().chain(self.factors.iter().flatten()).all(|value| value.is_finite())
    }
}

/// Divides the rows by their norms, which it returns. Rows of zeros stay what they are.
pub(super) fn normalize(factor: &mut Matrix) -> Vec<f64> {
    let mut norms = vec![0.0; factor.nrows()];
    factor.column_iter().for_each(|column| norms.iter_mut().zip(&column).for_each(|(norm, a)| *norm += a * a));
    norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
    let inverses: Vec<f64> = norms.iter().map(|norm| if *norm > 0.0 { norm.recip() } else { 1.0 }).collect();
    scale(factor, &inverses);
    norms
}

/// Multiplies each row by its number.
pub(super) fn scale(factor: &mut Matrix, by: &[f64]) {
    factor.column_iter_mut().for_each(|mut column| column.iter_mut().zip(by).for_each(|(a, by)| *a *= by));
}

/// The scalar products of each factor's rows.
pub(super) fn grams(factors: &[Matrix]) -> Vec<Matrix> {
    factors.iter().map(|factor| cross(factor, factor)).collect()
}

/// The products, entry by entry, of the grams of all modes but these: for one mode the normal equations' matrix, for none the scalar
/// products of the components.
pub(super) fn hadamard(grams: &[Matrix], without: &[usize]) -> Matrix {
    let rank = grams[0].nrows();
    let kept = grams.iter().enumerate().filter(|(mode, _)| !without.contains(mode));
    kept.fold(Matrix::from_element(rank, rank, 1.0), |mut product, (_, gram)| {
        product.component_mul_assign(gram);
        product
    })
}
