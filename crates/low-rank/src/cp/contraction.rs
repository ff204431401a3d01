//! Products of a tensor with factors: `M_m = X_(m) (khatri-rao of the factors of the other modes)`.
//!
//! The largest mode is the pivot. Its product takes one pass over the tensor; another one contracts the tensor with the pivot's factor,
//! after which the product of any other mode takes `1 / dim` of that work, as in the trees of Phan, Tichavsky, Cichocki, "Fast Alternating
//! LS Algorithms for High Order CANDECOMP/PARAFAC Tensor Factorizations" (IEEE Trans. Signal Processing 2013). Both the Khatri-Rao product
//! and the contracted tensor would have a column for each column of the unfolding: they exist in panels. Panels of the contracted tensor
//! are kept from mode to mode as far as there is room beside the tensor, and are computed again beyond.
//!
//! Factors and products are `[rank, dim]` here, so that what belongs to one index is contiguous.

use std::ops::Range;

use nalgebra::DVector;
use rayon::prelude::*;

use super::tensor::Tensor;
use super::views::{Left, Right, multiply};
use crate::algebra::Matrix;

/// Columns of a panel.
const PANEL: usize = 128;
/// Panels that are computed at once: a number of its own, so that no result depends on that of threads.
const TASKS: usize = 4;
/// Multiplications below which tasks cost more than they bring.
const SERIAL: usize = 1 << 20;

/// Calls `update(m, M_m, A_m)` for the pivot `m` and then for the other modes in their order, each product with the factors as the calls
/// before have left them.
pub(super) fn sweep(tensor: &Tensor, factors: &mut [Matrix], mut update: impl FnMut(usize, Matrix, &mut Matrix)) {
    let pivot = tensor.largest();
    let product = pivot_product(tensor, factors);
    update(pivot, product, &mut factors[pivot]);
    // The products of the other modes read the pivot's factor in the contracted tensor alone.
    let contracted = Contracted::new(tensor, std::mem::replace(&mut factors[pivot], Matrix::zeros(0, 0)));
    for mode in (0..factors.len()).filter(|mode| *mode != pivot) {
        let product = contracted.product(mode, factors);
        update(mode, product, &mut factors[mode]);
    }
    factors[pivot] = contracted.factor;
}

/// `||X - model||`, entry by entry. The difference of squared norms would lose half of the digits.
pub(super) fn distance(tensor: &Tensor, factors: &[Matrix]) -> f64 {
    let left = factors[tensor.largest()].transpose();
    let square = |panel: &Range<usize>| {
        let mut difference = tensor.unfolding().columns_range(panel.clone()).into_owned();
        difference.gemm(-1.0, &left, &khatri_rao(tensor, factors, panel.clone()), 1.0);
        difference.norm_squared()
    };
    panels(tensor).par_iter().map(square).collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}

fn pivot_product(tensor: &Tensor, factors: &[Matrix]) -> Matrix {
    let (rank, dim) = factors[tensor.largest()].shape();
    let unfolding = tensor.unfolding_transposed();
    let tasks = if serial(tensor, rank) { 1 } else { TASKS };
    let width = dim.div_ceil(tasks);
    let mut product = Matrix::zeros(rank, dim);
    for panel in panels(tensor) {
        let khatri_rao = khatri_rao(tensor, factors, panel.clone());
        let rows: Right = unfolding.rows_range(panel);
        let add = |(at, columns): (usize, &mut [f64])| {
            let wide = columns.len() / rank;
            let right = rows.columns(at * width, wide);
            nalgebra::DMatrixViewMut::from_slice(columns, rank, wide).gemm(1.0, &khatri_rao, &right, 1.0);
        };
        if tasks == 1 {
            add((0, product.as_mut_slice()));
        } else {
            product.as_mut_slice().par_chunks_mut(rank * width).enumerate().for_each(add);
        }
    }
    product
}

/// The products, entry by entry, of what the factors of all modes but the pivot have for each of these columns of the unfolding.
fn khatri_rao(tensor: &Tensor, factors: &[Matrix], panel: Range<usize>) -> Matrix {
    let pivot = tensor.largest();
    let mut product = Matrix::from_element(factors[pivot].nrows(), panel.len(), 1.0);
    for (mut column, at) in product.column_iter_mut().zip(panel) {
        indices(tensor, at).for_each(|(mode, index)| column.component_mul_assign(&factors[mode].column(index)));
    }
    product
}

/// A tensor times the pivot's factor, in panels: a tensor of the other modes for each component.
struct Contracted<'a> {
    tensor: &'a Tensor,
    factor: Matrix,
    kept: Vec<Matrix>,
}

impl<'a> Contracted<'a> {
    fn new(tensor: &'a Tensor, factor: Matrix) -> Self {
        let mut contracted = Self { tensor, factor, kept: Vec::new() };
        let panels = panels(tensor);
        let groups = contracted.room() / (contracted.factor.nrows() * PANEL * TASKS);
        contracted.kept = panels.chunks(TASKS).take(groups).flat_map(|group| contracted.compute(group)).collect();
        contracted
    }

    /// How many values may be kept: half as many as the tensor has, less where a sweep holds much beside. That are a gram matrix for each mode, the
    /// product of all but one, a product with the tensor, and the panels that are computed at once.
    fn room(&self) -> usize {
        let ([rank, dim], modes) = ([self.factor.nrows(), self.factor.ncols()], self.tensor.shape().len());
        let beside = rank * ((modes + 1) * rank + dim + TASKS * PANEL);
        (self.tensor.values().len() / 2).min((self.tensor.values().len() * 15 / 16).saturating_sub(beside))
    }

    fn compute(&self, group: &[Range<usize>]) -> Vec<Matrix> {
        let left: Left = self.factor.as_view();
        let unfolding = self.tensor.unfolding();
        let panel = |panel: &Range<usize>| multiply(left, &unfolding.columns_range(panel.clone()));
        if serial(self.tensor, self.factor.nrows()) {
            group.iter().map(panel).collect()
        } else {
            group.par_iter().map(panel).collect()
        }
    }

    fn product(&self, mode: usize, factors: &[Matrix]) -> Matrix {
        let mut product = Matrix::zeros(self.factor.nrows(), factors[mode].ncols());
        let mut weighted = DVector::zeros(self.factor.nrows());
        let mut add = |panel: &Range<usize>, values: &Matrix| {
            for (column, at) in values.column_iter().zip(panel.clone()) {
                weighted.copy_from(&column);
                let mut place = 0;
                for (other, index) in indices(self.tensor, at) {
                    if other == mode {
                        place = index;
                    } else {
                        weighted.component_mul_assign(&factors[other].column(index));
                    }
                }
                product.column_mut(place).axpy(1.0, &weighted, 1.0);
            }
        };
        let panels = panels(self.tensor);
        panels.iter().zip(&self.kept).for_each(|(panel, values)| add(panel, values));
        for group in panels[self.kept.len()..].chunks(TASKS) {
            group.iter().zip(&self.compute(group)).for_each(|(panel, values)| add(panel, values));
        }
        product
    }
}

/// The modes but the pivot, with their index in this column of the unfolding.
fn indices(tensor: &Tensor, column: usize) -> impl Iterator<Item = (usize, usize)> {
    let pivot = tensor.largest();
    let mut rest = column;
    tensor.shape().iter().enumerate().rev().filter(move |(mode, _)| *mode != pivot).map(move |(mode, dim)| {
        let index = rest % dim;
        rest /= dim;
        (mode, index)
    })
}

fn panels(tensor: &Tensor) -> Vec<Range<usize>> {
    let columns = tensor.unfolding().ncols();
    (0..columns).step_by(PANEL).map(|start| start..columns.min(start + PANEL)).collect()
}

fn serial(tensor: &Tensor, rank: usize) -> bool {
    tensor.values().len() * rank < SERIAL
}
