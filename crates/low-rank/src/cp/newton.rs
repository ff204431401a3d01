//! Damped Gauss-Newton steps over all factors at once.

use super::als::{Outcome, residual};
use super::cholesky::Cholesky;
use super::contraction::sweep;
use super::model::{Model, grams, hadamard};
use super::tensor::Tensor;
use super::views::cross;
use crate::algebra::Matrix;

/// Steps until one lowers `||X - model||^2 / ||X||^2`, which is known to about `1e-15`, by less than this.
const TOLERANCE: f64 = 1e-14;
/// Most iterations of conjugate gradients in a step.
const ITERATIONS: usize = 100;

/// Minimizes `f = ||X - model||^2 / 2` over all factors by Levenberg's and Marquardt's method: `(J^T J + mu I) d = -J^T (model - X)`, the
/// damping `mu` after Nielsen's rule from the ratio of what a step gained and what its linear model promised.
///
/// `J^T J` is never formed: it takes products of size `rank` alone, and conjugate gradients with the blocks of its diagonal `(hadamard of
/// the other grams) (x) I` as the preconditioner solve for `d`. Each step costs as much as a sweep of alternating least squares, and the
/// solution.
///
/// Tomasi, De Lathauwer. "A comparison of algorithms for fitting the PARAFAC model". Computational Statistics and Data Analysis 2006.
pub(super) fn polish(tensor: &Tensor, model: &mut Model, steps: usize) -> Outcome {
    let mut at = Point::new(tensor, model.balanced());
    let largest = (0..at.factors.len()).map(|mode| hadamard(&at.grams, &[mode]).max()).fold(0.0, f64::max);
    let (mut damping, mut growth) = (1e-3 * largest, 2.0);
    let mut outcome = Outcome { sweeps: steps, settled: false };
    let mut first = None;
    for done in 1..=steps {
        let size = norm(&at.gradient);
        let accuracy = (size / *first.get_or_insert(size)).sqrt().clamp(1e-6, 0.1);
        let Some((step, promised)) = at.step(damping, accuracy) else { break };
        if promised <= TOLERANCE * tensor.energy() {
            outcome = Outcome { sweeps: done, settled: promised.is_finite() };
            break;
        }
        let next = Point::new(tensor, at.factors.iter().zip(step).map(|(factor, step)| factor + step).collect());
        let ratio = (at.value - next.value) / promised;
        if ratio > 0.0 {
            let gained = at.value - next.value;
            at = next;
            damping *= (1.0 - (2.0 * ratio - 1.0).powi(3)).max(1.0 / 3.0);
            growth = 2.0;
            if gained <= TOLERANCE * tensor.energy() {
                outcome = Outcome { sweeps: done, settled: true };
                break;
            }
        } else {
            damping *= growth;
            growth *= 2.0;
        }
        if !damping.is_finite() {
            break;
        }
    }
    *model = Model::new(at.factors);
    outcome
}

/// Factors with what a step from them takes.
struct Point {
    factors: Vec<Matrix>,
    grams: Vec<Matrix>,
    gradient: Vec<Matrix>,
    value: f64,
}

impl Point {
    fn new(tensor: &Tensor, mut factors: Vec<Matrix>) -> Self {
        let grams = grams(&factors);
        let of_model = |(mode, factor): (usize, &Matrix)| hadamard(&grams, &[mode]) * factor;
        let mut gradient: Vec<Matrix> = factors.iter().enumerate().map(of_model).collect();
        let mut inner = 0.0;
        sweep(tensor, &mut factors, |mode, product, factor| {
            inner = factor.dot(&product);
            gradient[mode] -= product;
        });
        let value = residual(tensor, inner, &grams, &vec![1.0; factors[0].nrows()]) / 2.0;
        Self { factors, grams, gradient, value }
    }

    /// The step for this damping and by how much the linear model lowers `f` with it.
    fn step(&self, damping: f64, accuracy: f64) -> Option<(Vec<Matrix>, f64)> {
        let damped = |mode: usize| {
            let mut gram = hadamard(&self.grams, &[mode]);
            (0..gram.nrows()).for_each(|r| gram[(r, r)] += damping);
            Cholesky::new(gram)
        };
        let blocks: Vec<Cholesky> = (0..self.factors.len()).map(damped).collect::<Option<_>>()?;
        let precondition = |mut right: Vec<Matrix>| {
            right.iter_mut().zip(&blocks).for_each(|(right, block)| block.solve(right));
            right
        };
        let mut step: Vec<Matrix> = self.factors.iter().map(|factor| Matrix::zeros(factor.nrows(), factor.ncols())).collect();
        let mut left: Vec<Matrix> = self.gradient.iter().map(|gradient| -gradient).collect();
        let target = accuracy * norm(&left);
        let mut direction = precondition(left.clone());
        let mut slope = dot(&left, &direction);
        let mut reached = norm(&left);
        for _ in 0..ITERATIONS {
            if reached <= target {
                break;
            }
            let mut curved = self.curvature(&direction);
            add(&mut curved, damping, &direction);
            let along = slope / dot(&direction, &curved);
            if !along.is_finite() {
                break;
            }
            add(&mut step, along, &direction);
            add(&mut left, -along, &curved);
            reached = norm(&left);
            let turned = precondition(left.clone());
            let next = dot(&left, &turned);
            direction.iter_mut().for_each(|block| *block *= next / slope);
            add(&mut direction, 1.0, &turned);
            slope = next;
        }
        let promised = -dot(&self.gradient, &step) - dot(&step, &self.curvature(&step)) / 2.0;
        Some((step, promised))
    }

    /// `J^T J v`: of mode `m` `G_m V_m + sum_k (A_k V_k^T . grams of the modes other than m and k) A_m`, the product of grams entry by
    /// entry.
    fn curvature(&self, v: &[Matrix]) -> Vec<Matrix> {
        let mixed: Vec<Matrix> = v.iter().zip(&self.factors).map(|(v, factor)| cross(factor, v)).collect();
        let block = |mode: usize| {
            let mut sum = Matrix::zeros(mixed[0].nrows(), mixed[0].ncols());
            for other in (0..v.len()).filter(|other| *other != mode) {
                sum += hadamard(&self.grams, &[mode, other]).component_mul(&mixed[other]);
            }
            hadamard(&self.grams, &[mode]) * &v[mode] + sum * &self.factors[mode]
        };
        (0..v.len()).map(block).collect()
    }
}

fn dot(a: &[Matrix], b: &[Matrix]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.dot(b)).sum()
}

fn norm(a: &[Matrix]) -> f64 {
    dot(a, a).sqrt()
}

fn add(to: &mut [Matrix], times: f64, what: &[Matrix]) {
    to.iter_mut().zip(what).for_each(|(to, what)| to.zip_apply(what, |to, what| *to += times * what));
}
