//! The best approximation of a matrix by one of low rank.

use briquette_core::builder::standard_normal;
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
    // A random start is not orthogonal to a leading vector; one seed serves all matrices, so that equal ones have equal factors.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut right: Vec<Vec<f64>> = (0..rank).map(|_| (0..columns).map(|_| standard_normal(&mut rng)).collect()).collect();
    let mut left = Vec::new();
    for _ in 0..ROUNDS {
        orthonormalize(&mut right);
        left = right.iter().map(|v| matrix.chunks_exact(columns).map(|row| dot(row, v)).collect()).collect();
        orthonormalize(&mut left);
        right = left
            .iter()
            .map(|u: &Vec<f64>| {
                let mut v = vec![0.0; columns];
                for (row, u) in matrix.chunks_exact(columns).zip(u) {
                    v.iter_mut().zip(row).for_each(|(v, m)| *v += u * f64::from(*m));
                }
                v
            })
            .collect();
    }
    let pair = |(u, v): (Vec<f64>, Vec<f64>)| {
        let scale = v.iter().map(|v| v * v).sum::<f64>().sqrt().sqrt();
        let by = |values: Vec<f64>, factor: f64| values.into_iter().map(|value| (value * factor) as f32).collect();
        (by(u, scale), by(v, if scale > 0.0 { 1.0 / scale } else { 0.0 }))
    };
    left.into_iter().zip(right).map(pair).collect()
}

fn dot(row: &[f32], v: &[f64]) -> f64 {
    row.iter().zip(v).map(|(m, v)| f64::from(*m) * v).sum()
}

/// Gram and Schmidt, twice for the sake of rounding; what depends on earlier vectors becomes zeros.
fn orthonormalize(vectors: &mut [Vec<f64>]) {
    for j in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(j);
        let v = &mut rest[0];
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let whole = norm(v);
        for _ in 0..2 {
            for u in &*before {
                let along: f64 = u.iter().zip(&*v).map(|(u, v)| u * v).sum();
                v.iter_mut().zip(u).for_each(|(v, u)| *v -= along * u);
            }
        }
        let left = norm(v);
        let factor = if left > 1e-10 * whole { 1.0 / left } else { 0.0 };
        v.iter_mut().for_each(|v| *v *= factor);
    }
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
