//! Dense tensors of any order and their unfoldings.

use std::borrow::Cow;

use briquette_core::error::{Error, Result};

use super::views::{Right, cross, strided};
use crate::algebra::Matrix;
use crate::kernel::Kernel;

/// Columns of an unfolding that are copied at once.
const PANEL: usize = 256;

/// A tensor of order 2 or more in double precision, the last mode fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    values: Vec<f64>,
    energy: f64,
}

impl Tensor {
    /// The tensor with these values.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are fewer than two modes, a mode has no index, the number of values is not that of the shape, or their
    /// squares have no finite sum.
    pub fn new(shape: Vec<usize>, values: Vec<f64>) -> Result<Self> {
        if shape.len() < 2 || shape.contains(&0) {
            return Err(Error::Invalid(format!("a tensor of shape {shape:?}: it takes two modes or more, none of them empty")));
        }
        if shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim)) != Some(values.len()) {
            return Err(Error::Invalid(format!("{} values for a tensor of shape {shape:?}", values.len())));
        }
        let energy: f64 = values.iter().map(|x| x * x).sum();
        if !energy.is_finite() {
            return Err(Error::Invalid(format!(
                "a tensor of shape {shape:?} with values that are not finite or overflow when squared"
            )));
        }
        Ok(Self { shape, values, energy })
    }

    /// A kernel with its modes in another order or merged: each entry of `modes` lists the kernel's modes that become one, the first
    /// slowest. `[[CHANNELS], [HEIGHT, WIDTH], [FILTERS]]` is the tensor of three modes `[channels, height * width, filters]`.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    ///
    /// # Panics
    /// If `modes` is empty or names a mode twice or not at all.
    pub fn of(kernel: &Kernel, modes: &[&[usize]]) -> Result<Self> {
        let order = modes.concat();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3], "each mode of a kernel once: {modes:?}");
        let values = kernel.unfold(&order[3..], &order[..3]).data.into();
        Self::new(modes.iter().map(|merged| merged.iter().map(|mode| kernel.shape[*mode]).product()).collect(), values)
    }

    /// The number of indices of each mode.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, the last mode fastest.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// `||X||^2`.
    pub fn energy(&self) -> f64 {
        self.energy
    }

    /// The largest mode, of equals the last.
    pub(super) fn largest(&self) -> usize {
        (0..self.shape.len()).max_by_key(|mode| self.shape[*mode]).unwrap_or_default()
    }

    /// The shape without one mode.
    pub(super) fn without(&self, mode: usize) -> Vec<usize> {
        self.shape.iter().enumerate().filter(|(at, _)| *at != mode).map(|(_, dim)| *dim).collect()
    }

    /// This tensor, or a copy with its largest mode in front where that is neither the first nor the last, and the order of the modes in
    /// it.
    pub(super) fn pivoted(&self) -> (Cow<'_, Self>, Vec<usize>) {
        let (largest, modes) = (self.largest(), self.shape.len());
        if largest == 0 || largest + 1 == modes {
            return (Cow::Borrowed(self), (0..modes).collect());
        }
        let order: Vec<usize> = std::iter::once(largest).chain((0..modes).filter(|mode| *mode != largest)).collect();
        let (dim, inner) = (self.shape[largest], self.shape[largest + 1..].iter().product::<usize>());
        let blocks = |at: usize| self.values.chunks_exact(dim * inner).flat_map(move |outer| &outer[at * inner..][..inner]);
        let values = (0..dim).flat_map(blocks).copied().collect();
        (Cow::Owned(Self { shape: order.iter().map(|mode| self.shape[*mode]).collect(), values, energy: self.energy }), order)
    }

    /// `X_(m)` of the largest mode: a row for each of its indices, a column for each combination of the others, the last of them fastest.
    /// Nothing is copied.
    pub(super) fn unfolding(&self) -> Right<'_> {
        let (shape, strides) = self.layout();
        strided(&self.values, shape, strides)
    }

    /// The transpose of [`Tensor::unfolding`].
    pub(super) fn unfolding_transposed(&self) -> Right<'_> {
        let ([rows, columns], [down, across]) = self.layout();
        strided(&self.values, [columns, rows], [across, down])
    }

    fn layout(&self) -> ([usize; 2], [usize; 2]) {
        let rows = self.shape[self.largest()];
        let columns = self.values.len() / rows;
        match self.largest() {
            0 => ([rows, columns], [columns, 1]),
            last if last + 1 == self.shape.len() => ([rows, columns], [1, rows]),
            inner => panic!("mode {inner} of a tensor of shape {:?} has no unfolding in place", self.shape),
        }
    }

    /// `X_(m) X_(m)^T` of any mode.
    pub(super) fn gram(&self, mode: usize) -> Matrix {
        let dim = self.shape[mode];
        let inner: usize = self.shape[mode + 1..].iter().product();
        let columns = self.values.len() / dim;
        let mut gram = Matrix::zeros(dim, dim);
        for start in (0..columns).step_by(PANEL) {
            let panel = Matrix::from_fn(dim, PANEL.min(columns - start), |i, j| {
                let (outer, inside) = ((start + j) / inner, (start + j) % inner);
                self.values[(outer * dim + i) * inner + inside]
            });
            gram += cross(&panel, &panel);
        }
        gram
    }
}
