//! How a weight is stored: a mask and a source of values, attached to any parameter of any Burn module.
//!
//! [`Coding`] is the host's view, plain numbers that files, reports and methods deal with. [`DeviceCoding`] is the same on the device: a
//! Burn reparameterization that computes the effective weight `mask * source(base)` in every forward pass, so that masked weights stay
//! zero and shared weights stay shared while training goes on. Burn holds one reparameterization per parameter and does not nest
//! them, hence one composite type instead of one per method.

mod device;
mod module;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use briquette_runtime::{Grid, MAX_CODEBOOK, Places, Product, Shared};
use burn::module::{Module, Param, Reparameterizer};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::quantize::{OnGrid, Ternary, view};

pub use crate::quantize::Rounding;
pub use crate::values::floats;
pub use device::DeviceCoding;
pub use module::{Weight, adjust, adjust_kept, recode, weights};

/// The coding of one weight tensor, on the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Coding {
    /// Which weights are kept, in the tensor's order; none keeps all.
    pub mask: Option<Vec<bool>>,
    /// Where the kept values come from.
    pub source: Source,
}

/// Where the values of a weight come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// The tensor's own values.
    #[default]
    Free,
    /// `w_i = centroids[assignment_i]`: the centroids are trained, `dL/dc_k = sum over i with assignment_i = k of dL/dw_i`
    /// (Han, Mao, Dally, ICLR 2016), the assignment is fixed.
    Codebook {
        /// The shared values.
        centroids: Vec<f32>,
        /// Index into the centroids, one per weight; masked weights point anywhere.
        assignment: Vec<u32>,
    },
    /// The tensor's own values, put on a grid in every forward pass; training changes the values underneath (see
    /// [`quantize`](crate::quantize)).
    Grid {
        /// The grid.
        grid: Grid,
        /// How a value becomes a code.
        rounding: Rounding,
        /// Whether the steps are trained as well.
        learned: bool,
    },
    /// The tensor's own values `w`, in every forward pass taken to `p` for `w > d`, to `-n` for `w < -d` and to 0 between, with
    /// `d = share max |w|`. The scales are trained, `dL/dp` being the sum of the gradients of the weights at `p`; the values underneath get
    /// the gradients of what became of them times `p`, `n` or, between, 1 (Zhu, Han, Mao, Dally, "Trained Ternary Quantization", ICLR 2017).
    Ternary {
        /// `[n, p]`.
        scales: [f32; 2],
        /// Share of the largest absolute value below which a weight is zero.
        share: f32,
    },
    /// `w_i = s_i values[b_i]`, where base value and sign follow from the position in the container's layout by a rule ([`Places`]): the base
    /// values are trained, `dL/dv_k = sum over i with b_i = k of s_i dL/dw_i`, and decay as weights do.
    Shared {
        /// The rule.
        rule: Places,
        /// The base values.
        values: Vec<f32>,
        /// Twice the base value, plus 1 if the sign is negative, one per weight.
        places: Vec<u32>,
    },
    /// The rows are put together from centroids of blocks of columns, which are trained like those of a codebook.
    Product {
        /// Centroids and indices, in the container's layout.
        product: Product,
        /// Whether the tensor is the transposed of the container's, as matrices are in Burn.
        transposed: bool,
    },
}

impl Source {
    /// Whether a weight's value follows from others of its tensor too, from the largest or from their mean, so that it would change when
    /// others go.
    pub(crate) fn relative(&self) -> bool {
        match self {
            Source::Ternary { .. } => true,
            Source::Grid { rounding, .. } => matches!(rounding, Rounding::Tanh | Rounding::Threshold),
            Source::Free | Source::Codebook { .. } | Source::Shared { .. } | Source::Product { .. } => false,
        }
    }

    /// A codebook of the values that a mask keeps, or free weights where they are too many for one: what is left of sharing that a cut
    /// breaks up.
    fn dissolved(values: &[f32], mask: Option<&[bool]>) -> Self {
        let source = Source::codebook(values, mask);
        let too_many = matches!(&source, Source::Codebook { centroids, .. } if centroids.len() > MAX_CODEBOOK);
        if too_many { Source::Free } else { source }
    }

    /// The codebook behind values that share few of them: the sorted distinct values that a mask keeps, and the index of each. Where it
    /// keeps none, the only value is zero.
    pub(crate) fn codebook(values: &[f32], mask: Option<&[bool]>) -> Self {
        let keeps = |i: usize| mask.is_none_or(|mask| mask[i]);
        let mut centroids: Vec<f32> = values.iter().enumerate().filter(|(i, _)| keeps(*i)).map(|(_, value)| *value).collect();
        centroids.sort_by(f32::total_cmp);
        centroids.dedup_by(|a, b| a.to_bits() == b.to_bits());
        if centroids.is_empty() {
            centroids.push(0.0);
        }
        let index = |(i, value): (usize, &f32)| match keeps(i) {
            true => centroids.binary_search_by(|c| c.total_cmp(value)).unwrap_or(0) as u32,
            false => 0,
        };
        let assignment = values.iter().enumerate().map(index).collect();
        Source::Codebook { centroids, assignment }
    }

    /// Base values with the places that a rule gives a tensor of this shape as Burn stores it: of a matrix the rule sees the transposed, which is
    /// what the container holds.
    ///
    /// # Errors
    /// When the rule does not fit the shape, or takes another number of values.
    pub fn shared(rule: Places, values: Vec<f32>, shape: &[usize]) -> Result<Self> {
        let places = match *shape {
            [rows, columns] => {
                rule.check(&[columns, rows], values.len())?;
                turned(&rule.all(&[columns, rows], values.len()), columns, rows)
            }
            _ => {
                rule.check(shape, values.len())?;
                rule.all(shape, values.len())
            }
        };
        Ok(Source::Shared { rule, values, places })
    }
}

impl Coding {
    /// Number of weights that are not masked, out of `len`.
    pub fn kept(&self, len: usize) -> usize {
        self.mask.as_ref().map_or(len, |mask| mask.iter().filter(|keep| **keep).count())
    }

    /// Those of a tensor's values that are not masked: what statistics of its weights are over.
    pub fn left<'a, T: Copy>(&self, values: &'a [T]) -> Cow<'a, [T]> {
        match &self.mask {
            None => Cow::Borrowed(values),
            Some(mask) => values.iter().zip(mask).filter(|(_, keep)| **keep).map(|(value, _)| *value).collect(),
        }
    }

    /// A coding by which each of these, the tensor's values, is what it is whatever becomes of the others: on a grid the nearest code, of
    /// ternary weights with trained scales a codebook of the three. Its base are the values themselves; what was underneath them would give
    /// others as soon as the largest weight went.
    pub fn settled(self, values: &[f32]) -> Self {
        let source = match self.source {
            Source::Ternary { .. } => Source::codebook(values, self.mask.as_deref()),
            Source::Grid { grid, rounding: Rounding::Tanh | Rounding::Threshold, learned } => {
                Source::Grid { grid, rounding: Rounding::Nearest, learned }
            }
            alone @ (Source::Free
            | Source::Codebook { .. }
            | Source::Grid { .. }
            | Source::Shared { .. }
            | Source::Product { .. }) => alone,
        };
        Self { source, ..self }
    }

    /// The coding without the weights that `stays` leaves out, besides those that a mask removed before; the others keep their values, of
    /// which `values` has all, so that the coding is [`settled`](Coding::settled) if any goes.
    pub fn masked(self, mut stays: Vec<bool>, values: &[f32]) -> Self {
        if let Some(old) = &self.mask {
            stays.iter_mut().zip(old).for_each(|(stays, old)| *stays &= old);
        }
        let left = stays.iter().filter(|stays| **stays).count();
        let coding = if left < self.kept(stays.len()) { self.settled(values) } else { self };
        Self { mask: Some(stays), ..coding }
    }

    /// The coding of a tensor in the container's layout that takes `indices` of the flat one, in that order; `along` tells which indices
    /// remain along an axis. A rule goes by the position and a product by blocks of columns, so that the one always, and the other unless
    /// whole rows are taken, becomes a codebook of the values, or free weights where these are too many for one. What follows from all weights
    /// is [`settled`](Coding::settled) before.
    pub(crate) fn select<'a>(&self, indices: &[usize], along: impl Fn(usize) -> Option<&'a [usize]>) -> Self {
        let mask: Option<Vec<bool>> = self.mask.as_ref().map(|mask| indices.iter().map(|&i| mask[i]).collect());
        let source = match &self.source {
            Source::Free | Source::Ternary { .. } => self.source.clone(),
            Source::Codebook { centroids, assignment } => {
                Source::Codebook { centroids: centroids.clone(), assignment: indices.iter().map(|&i| assignment[i]).collect() }
            }
            Source::Grid { grid, rounding, learned } => {
                let mut grid = grid.clone();
                if let Some(kept) = grid.axis.and_then(along) {
                    grid.steps = kept.iter().map(|&c| grid.steps[c]).collect();
                    grid.zeros = kept.iter().map(|&c| grid.zeros[c]).collect();
                }
                Source::Grid { grid, rounding: *rounding, learned: *learned }
            }
            Source::Shared { values, places, .. } => {
                let values: Vec<f32> = indices.iter().map(|&i| Shared::at(values, places[i])).collect();
                Source::dissolved(&values, mask.as_deref())
            }
            Source::Product { product, .. } => {
                match along(0).filter(|rows| indices.len() == rows.len() * product.columns * product.taps) {
                    Some(rows) => Source::Product { product: product.select(rows), transposed: false },
                    None => Source::dissolved(&indices.iter().map(|&i| product.value(i)).collect::<Vec<_>>(), mask.as_deref()),
                }
            }
        };
        Self { mask, source }
    }

    /// Whether the coding makes sense for a tensor of this shape.
    pub(crate) fn fits(&self, shape: &[usize]) -> bool {
        let count: usize = shape.iter().product();
        let below = |indices: &[u32], end: usize| indices.len() == count && indices.iter().all(|&i| (i as usize) < end);
        let source = match &self.source {
            Source::Free => true,
            Source::Ternary { scales, share } => scales.iter().chain([share]).all(|value| value.is_finite()),
            Source::Codebook { centroids, assignment } => below(assignment, centroids.len()),
            Source::Grid { grid, .. } => grid.check(shape).is_ok(),
            Source::Shared { values, places, .. } => below(places, 2 * values.len()),
            Source::Product { product, transposed: true } => matches!(shape, [a, b] if product.check(&[*b, *a]).is_ok()),
            Source::Product { product, transposed: false } => product.check(shape).is_ok(),
        };
        source && self.mask.as_ref().is_none_or(|mask| mask.len() == count)
    }

    /// The coding of the transposed matrix.
    pub(crate) fn transposed(self, rows: usize, columns: usize) -> Self {
        let mask = self.mask.map(|mask| turned(&mask, rows, columns));
        let source = match self.source {
            Source::Codebook { centroids, assignment } => {
                Source::Codebook { centroids, assignment: turned(&assignment, rows, columns) }
            }
            Source::Grid { grid, rounding, learned } => {
                let grid = Grid { axis: grid.axis.map(|axis| 1 - axis), ..grid };
                Source::Grid { grid, rounding, learned }
            }
            Source::Shared { rule, values, places } => Source::Shared { rule, values, places: turned(&places, rows, columns) },
            Source::Product { product, transposed } => Source::Product { product, transposed: !transposed },
            source @ (Source::Free | Source::Ternary { .. }) => source,
        };
        Self { mask, source }
    }

    /// The values that a network computes with, for a tensor's own values.
    pub(crate) fn values(&self, base: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        let kept = |mask: &Vec<bool>, device: &Device| {
            let ones: Vec<f32> = mask.iter().map(|keep| f32::from(u8::from(*keep))).collect();
            Tensor::<1>::from_floats(ones.as_slice(), device)
        };
        let mut values = match &self.source {
            Source::Free => base,
            Source::Codebook { centroids, assignment } => assignment.iter().map(|&i| centroids[i as usize]).collect(),
            Source::Grid { grid, rounding, learned } => {
                let device = Device::flex();
                let [outer, channels, inner] = view(shape, grid.axis);
                let base = Tensor::<3>::from_data(TensorData::new(base, [outer, channels, inner]), &device);
                let grid = Grid { axis: Some(1), ..grid.clone() };
                let mask = self.mask.as_ref().map(|mask| kept(mask, &device).reshape([outer, channels, inner]));
                floats(OnGrid::new(&grid, *rounding, *learned, &device).apply(base, mask))
            }
            Source::Ternary { scales, share } => {
                let (device, count) = (Device::flex(), base.len());
                let base = Tensor::<1>::from_data(TensorData::new(base, [count]), &device);
                let mask = self.mask.as_ref().map(|mask| kept(mask, &device));
                floats(Ternary::new(*scales, *share, &device).apply(base, mask))
            }
            Source::Shared { values, places, .. } => places.iter().map(|&place| Shared::at(values, place)).collect(),
            Source::Product { product, transposed: false } => product.values(),
            Source::Product { product, transposed: true } => {
                by_column(product).map(|(row, column)| product.value(product.position(row, column))).collect()
            }
        };
        if let Some(mask) = &self.mask {
            values.iter_mut().zip(mask).filter(|(_, keep)| !**keep).for_each(|(value, _)| *value = 0.0);
        }
        values
    }

    /// Attaches the coding to a parameter in place of any earlier one. A free coding without a mask leaves the plain parameter.
    pub fn attach<const D: usize>(self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let device = value.device();
        let plain = Param::from_mapped_value(id, value, mapper);
        if self == Self::default() { plain } else { plain.apply_reparameterization(Once(Some(DeviceCoding::new(self, &device)))) }
    }
}

/// Hands one coding to one parameter.
struct Once(Option<DeviceCoding>);

impl Reparameterizer for Once {
    type Reparam = DeviceCoding;

    fn reparameterize<const D: usize>(&mut self, _: &str, param: Param<Tensor<D>>) -> (Param<Tensor<D>>, Option<DeviceCoding>) {
        (param, self.0.take())
    }
}

/// The elements of the transposed of a matrix.
pub(crate) fn turned<T: Copy>(matrix: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..matrix.len()).map(|i| matrix[i % rows * columns + i / rows]).collect()
}

/// Rows and columns of a product as a transposed matrix runs through them.
fn by_column(product: &Product) -> impl Iterator<Item = (usize, usize)> {
    let rows = product.rows();
    (0..product.columns).flat_map(move |column| (0..rows).map(move |row| (row, column)))
}

/// The coding of a parameter; the default one when none is attached.
pub fn coding_of<const D: usize>(param: &Param<Tensor<D>>) -> Coding {
    param.reparameterization::<DeviceCoding>().map(DeviceCoding::to_host).unwrap_or_default()
}
