//! Sums of outer products of three vectors, by alternating least squares.

use crate::algebra::{Matrix, solve};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};

/// A tensor of three modes, unfolded along each: its index by rows, those of the others, in order, by columns.
pub(crate) type Unfolded = [Matrix; 3];

/// A matrix for each mode, with a column for each term.
pub(crate) type Factors = [Matrix; 3];

/// The modes channels, taps and filters of a kernel.
pub(crate) fn by_taps(kernel: &Kernel) -> Unfolded {
    [
        kernel.unfold(&[CHANNELS], &[HEIGHT, WIDTH, FILTERS]),
        kernel.unfold(&[HEIGHT, WIDTH], &[CHANNELS, FILTERS]),
        kernel.unfold(&[FILTERS], &[CHANNELS, HEIGHT, WIDTH]),
    ]
}

/// The modes of planes, rows and columns: a plane for each channel of each filter.
pub(crate) fn by_planes(kernel: &Kernel) -> Unfolded {
    [
        kernel.unfold(&[FILTERS, CHANNELS], &[HEIGHT, WIDTH]),
        kernel.unfold(&[HEIGHT], &[FILTERS, CHANNELS, WIDTH]),
        kernel.unfold(&[WIDTH], &[FILTERS, CHANNELS, HEIGHT]),
    ]
}

/// Most sweeps, and least relative change of the error.
const SWEEPS: usize = 500;
const CHANGE: f64 = 1e-8;

/// Solves for each factor in turn until the error settles: that, and the factors, each term's scale shared evenly. The error never rises.
pub(crate) fn fit(tensor: &Unfolded, [mut a, mut b, mut c]: Factors) -> (f64, Factors) {
    let mut error = f64::INFINITY;
    for _ in 0..SWEEPS {
        a = least_squares(&tensor[0], &b, &c);
        b = least_squares(&tensor[1], &a, &c);
        c = least_squares(&tensor[2], &a, &b);
        even([&mut a, &mut b, &mut c]);
        let now = (&tensor[2] - &c * pairs(&a, &b).transpose()).norm();
        let moved = error - now;
        error = now;
        if moved <= CHANGE * error {
            break;
        }
    }
    (error, [a, b, c])
}

/// The factor of a mode for which the sum is nearest to the tensor, from its unfolding and the two other factors.
pub(crate) fn least_squares(unfolded: &Matrix, slow: &Matrix, fast: &Matrix) -> Matrix {
    let gram = slow.tr_mul(slow).component_mul(&fast.tr_mul(fast));
    solve(gram, &(unfolded * pairs(slow, fast)).transpose()).transpose()
}

/// The outer product of each pair of columns, the index of the first slowest.
pub(crate) fn pairs(slow: &Matrix, fast: &Matrix) -> Matrix {
    let rows = fast.nrows();
    Matrix::from_fn(slow.nrows() * rows, slow.ncols(), |at, k| slow[(at / rows, k)] * fast[(at % rows, k)])
}

/// Gives the three vectors of each term the same length.
fn even(factors: [&mut Matrix; 3]) {
    let lengths = |k: usize| factors.each_ref().map(|factor| factor.column(k).norm());
    let lengths: Vec<[f64; 3]> = (0..factors[0].ncols()).map(lengths).collect();
    for (mode, factor) in factors.into_iter().enumerate() {
        for (mut column, norms) in factor.column_iter_mut().zip(&lengths) {
            let length = norms.iter().product::<f64>().cbrt();
            column.scale_mut(if norms[mode] > 0.0 { length / norms[mode] } else { 0.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_sum_is_found_again_and_its_scale_is_shared() {
        let factor = |rows: usize, by: usize| Matrix::from_fn(rows, 2, |i, k| ((i * by + 3 * k * k + i * k) % 7) as f64 - 2.5);
        let (a, b, c) = (factor(4, 3), factor(6, 5), factor(3, 2));
        let kernel = Kernel::fold([3, 4, 2, 3], &(&c * pairs(&a, &b).transpose()), &[FILTERS], &[CHANNELS, HEIGHT, WIDTH]);
        let start = [4, 6, 3].map(|rows| Matrix::from_fn(rows, 2, |i, k| 1.0 / (1 + i + 2 * k) as f64 - 0.2 * k as f64));
        let (error, [a, b, c]) = fit(&by_taps(&kernel), start);
        assert!(error < 1e-5 * kernel.energy().sqrt(), "{error}");
        for k in 0..2 {
            let norm = a.column(k).norm();
            assert!((b.column(k).norm() / norm - 1.0).abs() < 1e-9 && (c.column(k).norm() / norm - 1.0).abs() < 1e-9);
        }
    }
}
