//! Tensor trains.

use serde::{Deserialize, Serialize};

use super::{MAX_FEATURES, Operator};
use crate::Error;

/// Most cores of a tensor train.
pub const MAX_CORES: usize = 8;
/// The names of the cores.
pub(super) const NAMES: [&str; MAX_CORES] = ["core1", "core2", "core3", "core4", "core5", "core6", "core7", "core8"];

/// Up to [`MAX_CORES`] sizes in `1..=MAX_FEATURES`: modes of a tensor, or ranks between the cores of its train.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<usize>", into = "Vec<usize>")]
pub struct Sizes {
    len: u8,
    sizes: [u32; MAX_CORES],
}

impl Sizes {
    /// These sizes.
    ///
    /// # Errors
    /// When there are too many or one is out of bounds.
    pub fn new(sizes: &[usize]) -> Result<Self, Error> {
        if sizes.len() > MAX_CORES || sizes.iter().any(|size| !(1..=MAX_FEATURES).contains(size)) {
            return Err(Error(format!("{sizes:?}: a tensor train takes up to {MAX_CORES} cores of sizes in 1..=2^24")));
        }
        let mut held = [1; MAX_CORES];
        held.iter_mut().zip(sizes).for_each(|(held, size)| *held = *size as u32);
        Ok(Self { len: sizes.len() as u8, sizes: held })
    }

    /// Their number.
    pub(super) fn len(&self) -> usize {
        self.len.into()
    }

    /// The sizes in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator + '_ {
        self.sizes[..self.len()].iter().map(|size| *size as usize)
    }
}

impl std::fmt::Debug for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl TryFrom<Vec<usize>> for Sizes {
    type Error = Error;

    fn try_from(sizes: Vec<usize>) -> Result<Self, Error> {
        Self::new(&sizes)
    }
}

impl From<Sizes> for Vec<usize> {
    fn from(sizes: Sizes) -> Self {
        sizes.iter().collect()
    }
}

/// What a core does: it multiplies `[rows, columns]` by each of `times` matrices `[columns, width]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    times: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    width: usize,
}

impl Product {
    /// The products in the order in which they are done, the last core's first: core `k` takes `[n_1 .. n_{k-1}, n_k r_k, m_{k+1} .. m_d]` to
    /// `[n_1 .. n_{k-1}, r_{k-1} m_k, m_{k+1} .. m_d]`, which core `k - 1` reads with other borders between its dimensions. Sizes beyond all
    /// bounds saturate.
    pub(super) fn all(rows: Sizes, columns: Sizes, ranks: Sizes) -> impl Iterator<Item = Self> {
        let product = |sizes: &[u32]| sizes.iter().fold(1_usize, |product, size| product.saturating_mul(*size as usize));
        (0..rows.len()).rev().map(move |k| {
            let rank = |at: Option<usize>| at.and_then(|at| ranks.iter().nth(at)).unwrap_or(1);
            Self {
                times: product(&columns.sizes[..k]),
                rows: rank(k.checked_sub(1)).saturating_mul(rows.sizes[k] as usize),
                columns: rank(Some(k)).saturating_mul(columns.sizes[k] as usize),
                width: product(&rows.sizes[k + 1..rows.len()]),
            }
        })
    }

    /// Values that it reads.
    pub(super) fn reads(&self) -> usize {
        self.times.saturating_mul(self.columns).saturating_mul(self.width)
    }

    /// Values that it writes.
    pub(super) fn writes(&self) -> usize {
        self.times.saturating_mul(self.rows).saturating_mul(self.width)
    }
}

/// `y = W x`, core by core.
pub(super) struct TensorTrain {
    inputs: usize,
    outputs: usize,
    /// The products and their cores, the last core first.
    steps: Vec<(Product, Vec<f32>)>,
}

impl TensorTrain {
    pub(super) fn new(inputs: usize, outputs: usize, products: impl Iterator<Item = Product>, cores: &[&[f32]]) -> Self {
        let steps = products.zip(cores.iter().rev()).map(|(product, core)| (product, core.to_vec())).collect();
        Self { inputs, outputs, steps }
    }

    /// Room for the input, padded with zeros, and for what each product writes.
    fn room(&self) -> Vec<Vec<f32>> {
        let sizes = self.steps.first().map(|(first, _)| first.reads()).into_iter();
        sizes.chain(self.steps.iter().map(|(product, _)| product.writes())).map(|size| vec![0.0; size]).collect()
    }

    /// Fills the room for one row.
    fn run(&self, x: &[f32], room: &mut [Vec<f32>]) {
        room[0][..self.inputs].copy_from_slice(x);
        for (at, (product, core)) in self.steps.iter().enumerate() {
            let [from, to] = &mut room[at..at + 2] else { unreachable!("room for one more than there are products") };
            to.fill(0.0);
            let blocks =
                from.chunks_exact(product.columns * product.width).zip(to.chunks_exact_mut(product.rows * product.width));
            for (from, to) in blocks {
                for (weights, to) in core.chunks_exact(product.columns).zip(to.chunks_exact_mut(product.width)) {
                    for (weight, from) in weights.iter().zip(from.chunks_exact(product.width)) {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += weight * from);
                    }
                }
            }
        }
    }
}

impl Operator for TensorTrain {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let mut room = self.room();
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            self.run(x, &mut room);
            y.copy_from_slice(&room[self.steps.len()][..self.outputs]);
        }
    }

    fn sums(&self) -> usize {
        self.steps.iter().map(|(_, core)| core.len()).sum()
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let (mut room, mut back) = (self.room(), self.room());
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(self.inputs));
        for ((x, dy), dx) in rows {
            self.run(x, &mut room);
            back[self.steps.len()][..self.outputs].copy_from_slice(dy);
            let mut sums = &mut *sums;
            for (at, (product, core)) in self.steps.iter().enumerate().rev() {
                let [d_from, d_to] = &mut back[at..at + 2] else { unreachable!("room for one more than there are products") };
                d_from.fill(0.0);
                let (of_core, rest) = sums.split_at_mut(core.len());
                sums = rest;
                let (read, written) = (product.columns * product.width, product.rows * product.width);
                let blocks = room[at].chunks_exact(read).zip(d_from.chunks_exact_mut(read)).zip(d_to.chunks_exact(written));
                for ((from, d_from), d_to) in blocks {
                    let of_rows = core.chunks_exact(product.columns).zip(of_core.chunks_exact_mut(product.columns));
                    for ((weights, d_weights), d_to) in of_rows.zip(d_to.chunks_exact(product.width)) {
                        let of_columns = from.chunks_exact(product.width).zip(d_from.chunks_exact_mut(product.width));
                        for ((weight, d_weight), (from, d_from)) in weights.iter().zip(d_weights).zip(of_columns) {
                            *d_weight += from.iter().zip(d_to).map(|(from, d_to)| from * d_to).sum::<f32>();
                            d_from.iter_mut().zip(d_to).for_each(|(d_from, d_to)| *d_from += weight * d_to);
                        }
                    }
                }
            }
            dx.copy_from_slice(&back[0][..self.inputs]);
        }
    }

    fn held(&self) -> usize {
        self.sums()
    }
}
