//! Products of matrices that lie in other values.

use nalgebra::{DMatrixView, Dyn};

use crate::algebra::Matrix;

/// A matrix with strides, for the right side of a product alone: where a dimension is small, nalgebra 0.35 writes out of bounds if
/// neighbours in a column of the left side are not neighbours in memory (its `axcpy` takes the length of the memory for the number of
/// rows).
pub(super) type Right<'a> = DMatrixView<'a, f64, Dyn, Dyn>;

/// A matrix whose columns are contiguous.
pub(super) type Left<'a> = DMatrixView<'a, f64>;

/// A matrix whose entry `(i, j)` is `values[i * down + j * across]`.
pub(super) fn strided(values: &[f64], [rows, columns]: [usize; 2], [down, across]: [usize; 2]) -> Right<'_> {
    Right::from_slice_with_strides_generic(values, Dyn(rows), Dyn(columns), Dyn(down), Dyn(across))
}

/// The product.
pub(super) fn multiply(left: Left<'_>, right: &Right<'_>) -> Matrix {
    left * right
}

/// `A B^T`. Nalgebra's own product with a transpose takes a scalar product for each entry, this one runs over blocks.
pub(super) fn cross(a: &Matrix, b: &Matrix) -> Matrix {
    multiply(a.as_view(), &strided(b.as_slice(), [b.ncols(), b.nrows()], [b.nrows(), 1]))
}
