//! The best approximation of a matrix by one of low rank.

use briquette_core::streams::standard_normal;
use nalgebra::DMatrix;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Rounds of the iteration, each of which shrinks what is still wrong by `(sigma_{r + 1} / sigma_r)^2`.
const ROUNDS: usize = 40;

/// Vectors `u_j` and `v_j` with `sum_j u_j v_j^T` nearest to the matrix, of as many columns, in the sense of least squares: by orthogonal
/// iteration (Golub & Van Loan, "Matrix Computations", section 8.2). Both vectors of a pair have the same length; pairs beyond the matrix's
/// rank are zeros. A singular value that equals the first one left out is approached slowly.
pub fn low_rank(matrix: &[f32], columns: usize, rank: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
    let rows = matrix.len() / columns;
    let rank = rank.min(rows).min(columns);
    let matrix = DMatrix::from_row_iterator(rows, columns, matrix.iter().map(|m| f64::from(*m)));
    // A random start is not orthogonal to a leading vector; one seed serves all matrices, so that equal ones have equal factors.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut right = DMatrix::from_fn(columns, rank, |_, _| standard_normal(&mut rng));
    let mut left = DMatrix::zeros(rows, rank);
    for _ in 0..ROUNDS {
        left = (&matrix * right.qr().q()).qr().q();
        right = matrix.tr_mul(&left);
    }
    let pair = |j: usize| {
        let scale = right.column(j).norm().sqrt();
        let by = |matrix: &DMatrix<f64>, factor: f64| matrix.column(j).iter().map(|value| (value * factor) as f32).collect();
        (by(&left, scale), by(&right, if scale > 0.0 { 1.0 / scale } else { 0.0 }))
    };
    (0..rank).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_singular_values_stay() {
        // Orthogonal columns of the lengths 3, 2 and 1, turned by a reflection of the rows.
        let columns = [[2.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0], [2.0 / 3.0, -1.0 / 3.0, -2.0 / 3.0, 0.0]];
        let matrix: Vec<f32> = (0..4).flat_map(|i| columns.map(|column| column[i])).collect();
        for (rank, left_out) in [(1, 5.0), (2, 1.0), (3, 0.0), (5, 0.0)] {
            let pairs = low_rank(&matrix, 3, rank);
            let near = |i: usize, j: usize| pairs.iter().map(|(u, v)| u[i] * v[j]).sum::<f32>();
            let error: f32 = (0..12).map(|at| (matrix[at] - near(at / 3, at % 3)).powi(2)).sum();
            assert!((error - left_out).abs() < 1e-4, "rank {rank}: {error}");
        }
        let zeros = low_rank(&[0.0; 6], 2, 1);
        assert!(zeros.iter().all(|(u, v)| u.iter().chain(v).all(|value| *value == 0.0)));
    }
}
