//! Decompositions of matrices on the host, in double precision.

use nalgebra::DMatrix;

/// A matrix; columns are contiguous. `a.transpose() * b` is ten times as fast as `a.tr_mul(&b)` where both are large.
pub type Matrix = DMatrix<f64>;

/// `A = sum_k s_k u_k v_k^T`, singular values falling. Of each `u_k` the entry of the largest magnitude is positive, the first of equals, so
/// that the same matrix has the same vectors everywhere.
#[derive(Debug, Clone)]
pub struct Svd {
    /// The left vectors, `[rows, rank]`, orthonormal.
    pub u: Matrix,
    /// The singular values.
    pub s: Vec<f64>,
    /// The right vectors, `[columns, rank]`; those of singular values that vanish beside the largest are zero.
    pub v: Matrix,
}

/// The thin singular value decomposition, by the eigenvectors `U` of `A A^T`, or of `A^T A` where that is the smaller: `A = U (U^T A)` holds
/// to rounding whatever the precision of small singular values, which is half of that of the large ones.
pub fn svd(matrix: &Matrix) -> Svd {
    if matrix.nrows() <= matrix.ncols() {
        let (_, u) = eigen(matrix * matrix.transpose());
        signed(projected(matrix, u))
    } else {
        let Svd { u: v, s, v: u } = projected(&matrix.transpose(), eigen(matrix.transpose() * matrix).1);
        signed(Svd { u, s, v })
    }
}

/// The singular values, falling, from the eigenvalues of the smaller Gram matrix.
pub fn spectrum(matrix: &Matrix) -> Vec<f64> {
    let gram = if matrix.nrows() <= matrix.ncols() { matrix * matrix.transpose() } else { matrix.transpose() * matrix };
    let mut values: Vec<f64> = gram.symmetric_eigenvalues().iter().map(|value| value.max(0.0).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// Eigenvalues, falling, and orthonormal eigenvectors of a symmetric matrix.
pub fn eigen(symmetric: Matrix) -> (Vec<f64>, Matrix) {
    let found = symmetric.symmetric_eigen();
    let mut order: Vec<usize> = (0..found.eigenvalues.len()).collect();
    order.sort_by(|a, b| found.eigenvalues[*b].total_cmp(&found.eigenvalues[*a]));
    (order.iter().map(|at| found.eigenvalues[*at]).collect(), found.eigenvectors.select_columns(&order))
}

/// `X` of the least `||X||` among those that minimize `||G X - B||` for a positive semidefinite `G`: eigenvalues below `1e-12` of the
/// largest count as zero.
pub fn solve(gram: Matrix, right: &Matrix) -> Matrix {
    let (values, vectors) = eigen(gram);
    let floor = values.first().map_or(0.0, |largest| largest.max(0.0) * 1e-12);
    let mut turned = vectors.transpose() * right;
    for (mut row, value) in turned.row_iter_mut().zip(&values) {
        row.scale_mut(if *value > floor { 1.0 / value } else { 0.0 });
    }
    vectors * turned
}

/// The decomposition for these left vectors.
fn projected(matrix: &Matrix, u: Matrix) -> Svd {
    let mut v = matrix.transpose() * &u;
    let s: Vec<f64> = v.column_iter().map(|column| column.norm()).collect();
    let floor = s.iter().copied().fold(0.0, f64::max) * 1e-14;
    for (mut column, s) in v.column_iter_mut().zip(&s) {
        column.scale_mut(if *s > floor { 1.0 / s } else { 0.0 });
    }
    Svd { u, s, v }
}

/// With the signs that [`Svd`] says.
pub fn signed(mut svd: Svd) -> Svd {
    for (mut u, mut v) in svd.u.column_iter_mut().zip(svd.v.column_iter_mut()) {
        let largest =
            u.iter().fold(0.0_f64, |largest, value| if value.abs() > largest.abs() * (1.0 + 1e-9) { *value } else { largest });
        if largest < 0.0 {
            u.neg_mut();
            v.neg_mut();
        }
    }
    svd
}
