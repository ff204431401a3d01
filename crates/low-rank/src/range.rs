//! The leading singular triplets of matrices too large for an exact decomposition, on any device.
//!
//! Of `A`, `[m, n]` with `m >= n` (the transpose is taken otherwise), the range of `(A^T A)^2 A^T G` is found, `G` being `m` by `k + 10` Gaussian
//! numbers, with an orthonormal basis taken after every product. With that basis `V`, `A V` is decomposed exactly by the eigenvectors `Z` of
//! its Gram matrix, and the leading `k` columns of `V Z` are the right vectors. Products run on the device in single precision; Gram
//! matrices are summed on the host in double precision, so that Cholesky's factors of them, by which columns become orthonormal, exist whenever
//! single precision tells the columns apart.
//!
//! Halko, Martinsson, Tropp. "Finding Structure with Randomness: Probabilistic Algorithms for Constructing Approximate Matrix Decompositions".
//! SIAM Review 53, 2011. arXiv:0909.4061.

use briquette_core::coding::floats;
use briquette_core::error::{Error, Result};
use briquette_core::streams::{standard_normal, stream};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::algebra::{Matrix, Svd, eigen, signed, svd};

/// `A`, nearly `sum over k of s_k u_k v_k^T`, singular values falling. Of each `u_k` the entry of the largest magnitude is positive.
#[derive(Debug, Clone)]
pub struct Truncated {
    /// The left vectors, `[rows, rank]`, orthonormal; those of singular values that vanish in single precision are zero.
    pub u: Tensor<2>,
    /// The singular values.
    pub s: Vec<f64>,
    /// The right vectors, `[columns, rank]`, likewise.
    pub v: Tensor<2>,
    /// What the largest singular value of the error does not exceed, but with a probability of at most `10^-10`.
    pub bound: f64,
}

/// Columns beyond the rank that is asked for.
const OVERSAMPLING: usize = 10;
/// Power iterations.
const ITERATIONS: usize = 2;
/// Random vectors on which the error is measured.
const CHECKS: usize = 10;
/// Powers of `E^T E` in front of the random vectors: the more, the closer the bound.
const POWERS: usize = 5;
/// Rows whose part of a Gram matrix is summed at once.
const ROWS: usize = 1024;

/// The `rank` leading singular triplets of a matrix.
///
/// The bound is measured afterwards: with `E = A - sum s_k u_k v_k^T` and 10 vectors `w` of Gaussian numbers, `||E||_2^11` exceeds
/// `10 sqrt(2 / pi) max ||(E^T E)^5 E^T w||` with a probability of at most `10^-10` (lemma 4.1 of the paper; the bare `||E^T w||` would grow with the
/// Frobenius norm of `E`, a hundred times its largest singular value where the spectrum is flat).
///
/// # Errors
/// A rank that is not in `1..=min(m, n)`, and values that are not finite.
pub fn truncated_svd(matrix: &Tensor<2>, rank: usize, seed: u64) -> Result<Truncated> {
    let [rows, columns] = matrix.dims();
    let limit = rows.min(columns);
    if !(1..=limit).contains(&rank) {
        return Err(Error::Invalid(format!("rank {rank} is not in 1..={limit}, all that a {rows} by {columns} matrix has")));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(stream(seed, "range finder"));
    if rows >= columns {
        let (u, s, v, bound) = tall(matrix, rank, &mut rng)?;
        let signs = signs(&u);
        Ok(Truncated { u: u * signs.clone(), s, v: v * signs, bound })
    } else {
        let (v, s, u, bound) = tall(&matrix.clone().transpose(), rank, &mut rng)?;
        let signs = signs(&u);
        Ok(Truncated { u: u * signs.clone(), s, v: v * signs, bound })
    }
}

/// The leading singular values and vectors of a matrix.
#[derive(Debug, Clone)]
pub struct Leading {
    /// So many of them.
    pub svd: Svd,
    /// What the largest singular value that is left out does not exceed, where it was measured and not computed.
    pub bound: Option<f64>,
}

/// The `rank` leading singular values and vectors: exactly, or by [`truncated_svd`] with draws of this seed where the matrix is large and few
/// of them are asked for.
///
/// # Errors
/// A rank that is not in `1..=min(rows, columns)`, and values that are not finite.
pub fn leading(matrix: &Matrix, rank: usize, seed: u64) -> Result<Leading> {
    if matrix.iter().any(|value| !value.is_finite()) {
        return Err(Error::Invalid("a matrix holds values that are not finite".into()));
    }
    let short = matrix.nrows().min(matrix.ncols());
    if short <= EXACT || 3 * rank > short {
        if !(1..=short).contains(&rank) {
            return Err(Error::Invalid(format!("rank {rank} is not in 1..={short}, all that its shape allows")));
        }
        let Svd { u, s, v } = svd(matrix);
        let svd = Svd { u: u.columns(0, rank).into_owned(), s: s[..rank].to_vec(), v: v.columns(0, rank).into_owned() };
        return Ok(Leading { svd, bound: None });
    }
    // The columns of the one are the rows of the other.
    let values: Vec<f32> = matrix.iter().map(|value| *value as f32).collect();
    let turned = Tensor::from_data(TensorData::new(values, [matrix.ncols(), matrix.nrows()]), &Device::flex());
    let Truncated { u: v, s, v: u, bound } = truncated_svd(&turned, rank, seed)?;
    let host = |tensor: Tensor<2>| {
        let [rows, columns] = tensor.dims();
        Matrix::from_row_iterator(rows, columns, floats(tensor).into_iter().map(f64::from))
    };
    Ok(Leading { svd: signed(Svd { u: host(u), s, v: host(v) }), bound: Some(bound) })
}

/// The shorter side up to which matrices are decomposed exactly in seconds.
const EXACT: usize = 1024;

type Triplets = (Tensor<2>, Vec<f64>, Tensor<2>, f64);

/// Left vectors, singular values, right vectors and bound of a matrix with no more columns than rows.
fn tall(a: &Tensor<2>, rank: usize, rng: &mut ChaCha8Rng) -> Result<Triplets> {
    let ([rows, columns], device) = (a.dims(), a.device());
    let sketch = (rank + OVERSAMPLING).min(columns);
    let turned = a.clone().transpose();
    let mut v = orthonormal(&turned.clone().matmul(gaussian([rows, sketch], rng, &device)))?;
    for _ in 0..ITERATIONS {
        // What rounding leaves of the angles between these columns the next basis takes away.
        let w = a.clone().matmul(v);
        let basis = orthonormalizer(&gram(&w)?, &device);
        v = orthonormal(&turned.clone().matmul(w.matmul(basis)))?;
    }
    let w = a.clone().matmul(v.clone());
    let (values, vectors) = eigen(gram(&w)?);
    let s: Vec<f64> = values.iter().take(rank).map(|value| value.max(0.0).sqrt()).collect();
    let z = vectors.columns(0, rank).into_owned();
    let mut scaled = z.clone();
    let floor = s[0] * f64::from(f32::EPSILON);
    let mut seen = z;
    for (at, s) in s.iter().enumerate() {
        let counts = *s > floor;
        scaled.column_mut(at).scale_mut(if counts { 1.0 / s } else { 0.0 });
        seen.column_mut(at).scale_mut(if counts { 1.0 } else { 0.0 });
    }
    let (u, v) = (w.matmul(tensor(&scaled, &device)), v.matmul(tensor(&seen, &device)));
    let bound = bound(a, &v, gaussian([rows, CHECKS], rng, &device))?;
    Ok((u, s, v, bound))
}

/// What `E = A - A V V^T` does not exceed, by random vectors `w`.
fn bound(a: &Tensor<2>, v: &Tensor<2>, w: Tensor<2>) -> Result<f64> {
    let missed = |x: Tensor<2>| x.clone() - v.clone().matmul(v.clone().transpose().matmul(x));
    let mut w = w;
    // The logarithm of what the vectors were divided by, so that powers stay within single precision.
    let mut scale = (10.0 * std::f64::consts::FRAC_2_PI.sqrt()).ln();
    for power in 0..=POWERS {
        if power > 0 {
            // Where next to nothing is missed, once leaves as much of `V` in it as there is of anything.
            w = a.clone().matmul(missed(w));
        }
        w = missed(a.clone().transpose().matmul(w));
        let norm = gram(&w)?.diagonal().max().sqrt();
        if norm == 0.0 {
            return Ok(0.0);
        }
        w = w / norm;
        scale += norm.ln();
    }
    Ok((scale / (2 * POWERS + 1) as f64).exp())
}

/// An orthonormal basis of the columns, with columns of zeros for those that depend on others before them. The second time takes away what
/// rounding left the first time.
fn orthonormal(y: &Tensor<2>) -> Result<Tensor<2>> {
    let device = y.device();
    let once = y.clone().matmul(orthonormalizer(&gram(y)?, &device));
    let again = orthonormalizer(&gram(&once)?, &device);
    Ok(once.matmul(again))
}

/// `Y^T Y`, in double precision.
fn gram(y: &Tensor<2>) -> Result<Matrix> {
    let columns = y.dims()[1];
    let values = floats(y.clone());
    let mut gram = Matrix::zeros(columns, columns);
    for rows in values.chunks(ROWS * columns) {
        let turned = Matrix::from_iterator(columns, rows.len() / columns, rows.iter().map(|value| f64::from(*value)));
        gram.gemm(1.0, &turned, &turned.transpose(), 1.0);
    }
    if gram.iter().all(|value| value.is_finite()) {
        return Ok(gram);
    }
    Err(Error::Invalid("the matrix holds values that are not finite".into()))
}

/// The upper triangle `T` with `(Y T)^T Y T = I` for the Gram matrix of `Y`, by Cholesky's factor. A column that depends on those before it, up to
/// the precision of single numbers, is zero.
fn orthonormalizer(gram: &Matrix, device: &Device) -> Tensor<2> {
    let size = gram.nrows();
    let mut lower = Matrix::zeros(size, size);
    let mut dependent = Vec::new();
    for j in 0..size {
        let mut column = gram.view((j, j), (size - j, 1)).into_owned();
        column.gemm(-1.0, &lower.view((j, 0), (size - j, j)), &lower.view((j, 0), (1, j)).transpose(), 1.0);
        let pivot = column[0];
        if pivot > 1e-12 * gram[(j, j)] {
            column.scale_mut(1.0 / pivot.sqrt());
            lower.view_mut((j, j), (size - j, 1)).copy_from(&column);
        } else {
            // Nothing below: later columns make no use of this one.
            lower[(j, j)] = 1.0;
            dependent.push(j);
        }
    }
    let mut upper = Matrix::identity(size, size);
    // The diagonal is positive.
    lower.solve_lower_triangular_mut(&mut upper);
    upper.transpose_mut();
    dependent.into_iter().for_each(|j| upper.column_mut(j).fill(0.0));
    tensor(&upper, device)
}

fn tensor(matrix: &Matrix, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = matrix.transpose().iter().map(|value| *value as f32).collect();
    Tensor::from_data(TensorData::new(values, [matrix.nrows(), matrix.ncols()]), device)
}

fn gaussian([rows, columns]: [usize; 2], rng: &mut ChaCha8Rng, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..rows * columns).map(|_| standard_normal(rng) as f32).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// For each column the sign of its entry of the largest magnitude, `[1, columns]`.
fn signs(u: &Tensor<2>) -> Tensor<2> {
    let columns = u.dims()[1];
    let mut largest = vec![0.0_f32; columns];
    for row in floats(u.clone()).chunks(columns) {
        for (largest, value) in largest.iter_mut().zip(row) {
            // Of entries that are equal up to rounding the first counts.
            if value.abs() > largest.abs() * 1.0001 {
                *largest = *value;
            }
        }
    }
    let signs: Vec<f32> = largest.iter().map(|value| if *value < 0.0 { -1.0 } else { 1.0 }).collect();
    Tensor::from_data(TensorData::new(signs, [1, columns]), &u.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::svd;

    fn noise(rows: usize, columns: usize, seed: u64) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Matrix::from_fn(rows, columns, |_, _| standard_normal(&mut rng))
    }

    /// A matrix with these singular values.
    fn with(rows: usize, columns: usize, singular: &[f64]) -> Matrix {
        let mut u = noise(rows, singular.len(), 1).qr().q();
        u.column_iter_mut().zip(singular).for_each(|(mut column, s)| column.scale_mut(*s));
        u * noise(columns, singular.len(), 2).qr().q().transpose()
    }

    fn matrix(tensor: &Tensor<2>) -> Matrix {
        let [rows, columns] = tensor.dims();
        Matrix::from_row_iterator(rows, columns, floats(tensor.clone()).into_iter().map(f64::from))
    }

    fn of(a: &Matrix, rank: usize) -> Truncated {
        truncated_svd(&tensor(a, &Device::flex()), rank, 7).unwrap()
    }

    fn product(found: &Truncated) -> Matrix {
        matrix(&found.u) * Matrix::from_diagonal(&found.s.clone().into()) * matrix(&found.v).transpose()
    }

    #[test]
    fn a_falling_spectrum_is_found_as_exactly_as_by_the_whole_decomposition() {
        let singular: Vec<f64> = (0..60).map(|at| 0.9_f64.powi(at)).collect();
        for (rows, columns) in [(150, 60), (60, 150)] {
            let a = with(rows, columns, &singular);
            let (found, exact) = (of(&a, 12), svd(&a));
            for (at, (s, expected)) in found.s.iter().zip(&singular).enumerate() {
                assert!((s / expected - 1.0).abs() < 1e-3, "{at}: {s} and {expected}");
            }
            let error = (&a - product(&found)).singular_values().max();
            assert!(error < singular[12] * 1.001, "{error} and {}", singular[12]);
            assert!(error <= found.bound && found.bound < 1.5 * error, "{error} and {}", found.bound);
            let (u, v) = (matrix(&found.u), matrix(&found.v));
            for vectors in [&u, &v] {
                assert!((vectors.tr_mul(vectors) - Matrix::identity(12, 12)).amax() < 1e-4);
            }
            // The signs are those of the exact decomposition.
            assert!(
                (0..3).all(|at| u.column(at).dot(&exact.u.column(at)) > 0.999 && v.column(at).dot(&exact.v.column(at)) > 0.999)
            );
        }
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_up_to_rounding_and_its_other_vectors_are_zero() {
        let a = with(80, 50, &[5.0, 2.0, 1.0]);
        let found = of(&a, 6);
        assert!((&a - product(&found)).amax() < 1e-5);
        assert!(found.bound < 1e-4, "{}", found.bound);
        assert!(found.s[3..].iter().all(|s| *s < 1e-5), "{:?}", found.s);
        let single = Matrix::from_fn(20, 10, |i, j| if (i, j) == (3, 4) { -2.0 } else { 0.0 });
        let found = of(&single, 2);
        assert!((&single - product(&found)).amax() < 1e-6);
        assert_eq!(matrix(&found.v).column(1).amax(), 0.0);
        let zero = of(&Matrix::zeros(20, 10), 2);
        assert_eq!((zero.s, zero.bound), (vec![0.0; 2], 0.0));
    }

    #[test]
    fn small_singular_values_are_told_from_large_ones() {
        let singular: Vec<f64> = (0..20).map(|at| 10.0_f64.powf(-0.25 * f64::from(at))).collect();
        let found = of(&with(90, 40, &singular), 16);
        for (s, expected) in found.s.iter().zip(&singular) {
            assert!((s / expected - 1.0).abs() < 1e-2, "{s} and {expected}");
        }
    }

    #[test]
    fn the_full_rank_gives_the_matrix_back_and_seeds_repeat() {
        let a = noise(30, 12, 3);
        let found = of(&a, 12);
        assert!((&a - product(&found)).amax() < 1e-4);
        assert_eq!(matrix(&of(&a, 12).u), matrix(&found.u));
    }

    #[test]
    fn ranks_out_of_range_and_values_that_are_not_finite_are_refused() {
        let message = |a: &Matrix, rank| truncated_svd(&tensor(a, &Device::flex()), rank, 7).unwrap_err().to_string();
        assert_eq!(message(&noise(5, 3, 1), 0), "rank 0 is not in 1..=3, all that a 5 by 3 matrix has");
        assert_eq!(message(&noise(3, 5, 1), 4), "rank 4 is not in 1..=3, all that a 3 by 5 matrix has");
        let mut a = noise(5, 3, 1);
        a[(2, 1)] = f64::NAN;
        assert_eq!(message(&a, 1), "the matrix holds values that are not finite");
    }
}
