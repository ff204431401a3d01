//! Structural matrices: fully connected layers whose matrix has fewer parameters than entries and a fast product.
//!
//! A [`Structure`] says which matrix, for any number of inputs and outputs: the input is padded with zeros to the size of a transform,
//! further outputs come from further blocks, and outputs beyond the last are left out. [`Structure::prepare`] makes it ready for rows of
//! inputs. What is fixed and not learned (signs, permutations) follows from a seed by SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): the
//! `i`-th draw mixes `seed + i * 0x9e3779b97f4a7c15`, `i` from 1, a sign is negative when the draw's highest bit is set, and a permutation
//! is that of Fisher and Yates, which swaps place `i`, from the last down to 1, with place `draw mod (i + 1)`.

mod acdc;
mod butterfly;
mod circulant;
mod fastfood;
mod kronecker;
mod levels;
mod tensor_train;
mod toeplitz;
mod transform;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Error;
pub use tensor_train::{MAX_CORES, Sizes};

/// A structural matrix `[outputs, inputs]`, without its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Structure {
    /// Blocks `C(r_b) D_b` below each other, `C(r)` circulant with the first column `r` and `D_b` random signs, both as large as the input.
    /// Parameters: `r` `[blocks, inputs]`.
    Circulant {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
        /// Seed of the signs.
        seed: u64,
    },
    /// Blocks `S_b H G_b P_b H B_b` below each other, `H` the Walsh-Hadamard transform over `n`, the next power of two, divided by
    /// `sqrt n`, `S`, `G` and `B` diagonal, `P` random permutations. Parameters: `s` `[1, outputs]`, `g` `[blocks, n]`, `b` `[blocks, inputs]`.
    Fastfood {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
        /// Seed of the permutations.
        seed: u64,
    },
    /// `A_k C^T D_k C P_k` one after the other, `C` the orthonormal DCT-II over the larger of inputs and outputs, `n`; `P_1` is the identity,
    /// the other `P` random permutations. Parameters: the diagonals `a` and `d`, `[layers, n]` each.
    Acdc {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
        /// Number of factors.
        layers: usize,
        /// Seed of the permutations.
        seed: u64,
    },
    /// Blocks `1/2 sum_j Z_1(g_j) Z_-1(h_j)` of low displacement rank below each other, `Z_f(v)` the `f`-circulant matrix with the first
    /// column `v`, as large as the input. Parameters: `g` and `h`, `[blocks * rank, inputs]` each.
    ToeplitzLike {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
        /// Terms of the sum.
        rank: usize,
    },
    /// Two-level Toeplitz blocks below each other, as large as the input: features are an image of `inputs / columns` rows `j` by `columns`,
    /// and the entry from pixel `(j, l)` to pixel `(i, k)` depends on `i - j` and `k - l` alone, a convolution in two dimensions with a
    /// kernel that reaches from any pixel to any other. Parameter: `t` `[blocks * (2 rows - 1), 2 columns - 1]`.
    TwoLevelToeplitz {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
        /// Pixels of a row of the image; 1 makes a plain Toeplitz matrix.
        columns: usize,
    },
    /// `sum_t A_t (x) B_t`, of which the first `outputs` rows and the first `inputs` columns count. Parameters: `left` and `right`, the
    /// matrices of all terms below each other.
    Kronecker {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
        /// Rows and columns of `A_t`.
        left: [usize; 2],
        /// Rows and columns of `B_t`.
        right: [usize; 2],
        /// Terms of the sum.
        terms: usize,
    },
    /// Blocks of `log2 n` butterfly factors below each other, `n` the next power of two: factor `l`, applied in ascending order, mixes the
    /// features `i` and `i + 2^l` by a matrix `[[p, q], [r, s]]` of each pair. Parameters: `factors` `[blocks * log2 n, 2 n]`, the four
    /// entries of each pair in the order of `i`.
    Butterfly {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
    },
    /// A tensor train, `W[(i_1 .. i_d), (j_1 .. j_d)] = G_1[i_1, j_1] .. G_d[i_d, j_d]`, a product of matrices `[r_{k-1}, r_k]` with
    /// `r_0 = r_d = 1`; digits `i_k` below `m_k` and `j_k` below `n_k` make a row and a column, the first digit slowest, and the first
    /// `outputs` rows and the first `inputs` columns count. Parameters: `core1`, `core2` and so on, `[r_{k-1} m_k, n_k r_k]`.
    TensorTrain {
        /// Features of the input.
        inputs: usize,
        /// Features of the output.
        outputs: usize,
        /// `m_1 .. m_d`, whose product is the number of outputs or more.
        rows: Sizes,
        /// `n_1 .. n_d`, whose product is the number of inputs or more.
        columns: Sizes,
        /// `r_1 .. r_{d-1}`.
        ranks: Sizes,
    },
}

/// A parameter of a structure: a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Rows and columns.
    pub shape: [usize; 2],
}

impl Parameter {
    /// Number of values.
    pub fn count(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// Most inputs, most outputs, and most values on the way through a Kronecker product or a
/// tensor train, of a structure; a bound for what comes out of files.
pub const MAX_FEATURES: usize = 1 << 24;
/// Most parameters of a structure.
pub const MAX_VALUES: usize = 1 << 28;

/// What a structure computes.
trait Operator: Send + Sync {
    /// Writes the outputs of one or more rows.
    fn forward(&self, x: &[f32], y: &mut [f32]);
    /// Length of the sums that gradients of parameters are gathered in.
    fn sums(&self) -> usize;
    /// From the gradient by the outputs of one or more rows: writes that by the inputs, and adds to the sums.
    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]);
    /// The gradient by all parameters, one after the other, from the sums over all rows.
    fn gradient(&self, sums: Vec<f32>) -> Vec<f32> {
        sums
    }
    /// Floats that are held.
    fn held(&self) -> usize;
}

/// A structure with its parameters, ready for rows of inputs.
pub struct Prepared {
    structure: Structure,
    operator: Box<dyn Operator>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({:?})", self.structure)
    }
}

/// Most tasks that the rows are split into, and least rows of one.
const TASKS: usize = 16;
const ROWS: usize = 4;

impl Structure {
    /// The name of the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Structure::Circulant { .. } => "circulant",
            Structure::Fastfood { .. } => "fastfood",
            Structure::Acdc { .. } => "acdc",
            Structure::ToeplitzLike { .. } => "toeplitz-like",
            Structure::TwoLevelToeplitz { .. } => "two-level-toeplitz",
            Structure::Kronecker { .. } => "kronecker",
            Structure::Butterfly { .. } => "butterfly",
            Structure::TensorTrain { .. } => "tensor-train",
        }
    }

    /// Features of the input and of the output.
    pub fn features(&self) -> [usize; 2] {
        match *self {
            Structure::Circulant { inputs, outputs, .. }
            | Structure::Fastfood { inputs, outputs, .. }
            | Structure::Acdc { inputs, outputs, .. }
            | Structure::ToeplitzLike { inputs, outputs, .. }
            | Structure::TwoLevelToeplitz { inputs, outputs, .. }
            | Structure::Kronecker { inputs, outputs, .. }
            | Structure::Butterfly { inputs, outputs }
            | Structure::TensorTrain { inputs, outputs, .. } => [inputs, outputs],
        }
    }

    /// Whether the sizes make sense and stay within bounds.
    ///
    /// # Errors
    /// Says what does not.
    pub fn check(&self) -> Result<(), Error> {
        let [inputs, outputs] = self.features();
        let refuse = |detail: &str| Err(Error(format!("{self:?}: {detail}")));
        if !(1..=MAX_FEATURES).contains(&inputs) || !(1..=MAX_FEATURES).contains(&outputs) {
            return refuse("inputs and outputs lie in 1..=2^24");
        }
        match *self {
            Structure::Acdc { layers: 0, .. }
            | Structure::ToeplitzLike { rank: 0, .. }
            | Structure::Kronecker { terms: 0, .. } => {
                return refuse("a structure has at least one layer, rank or term");
            }
            Structure::Acdc { layers: count, .. }
            | Structure::ToeplitzLike { rank: count, .. }
            | Structure::Kronecker { terms: count, .. }
                if count > MAX_VALUES =>
            {
                return refuse("layers, rank and terms are at most 2^28");
            }
            Structure::TwoLevelToeplitz { columns, .. } if columns == 0 || !inputs.is_multiple_of(columns) => {
                return refuse("the columns must divide the inputs");
            }
            Structure::Kronecker { left, right, .. } => {
                let covers = |side: usize, size: usize| left[side].checked_mul(right[side]).is_some_and(|all| all >= size);
                if !covers(0, outputs) || !covers(1, inputs) {
                    return refuse("the factors' rows must multiply to the outputs or more, their columns to the inputs or more");
                }
                if left[0].max(left[1]).max(right[0]).max(right[1]) > MAX_FEATURES || left[1] * right[0] > MAX_FEATURES {
                    return refuse("the factors are too large");
                }
            }
            Structure::TensorTrain { rows, columns, ranks, .. } => {
                if rows.len() == 0 || columns.len() != rows.len() || ranks.len() + 1 != rows.len() {
                    return refuse("d cores take d sizes of rows, d of columns and d - 1 ranks, d at least 1");
                }
                let products: Vec<_> = tensor_train::Product::all(rows, columns, ranks).collect();
                if products.iter().any(|product| product.reads().max(product.writes()) > MAX_FEATURES) {
                    return refuse("more than 2^24 values on the way; lower the ranks");
                }
                if products.first().is_none_or(|first| first.reads() < inputs)
                    || products.last().is_none_or(|last| last.writes() < outputs)
                {
                    return refuse("the rows must multiply to the outputs or more, the columns to the inputs or more");
                }
            }
            Structure::Circulant { .. }
            | Structure::Fastfood { .. }
            | Structure::Acdc { .. }
            | Structure::ToeplitzLike { .. }
            | Structure::TwoLevelToeplitz { .. }
            | Structure::Butterfly { .. } => {}
        }
        let wide = |p: &Parameter| p.shape[0] as u128 * p.shape[1] as u128;
        match self.parameters().iter().map(wide).sum::<u128>() > MAX_VALUES as u128 {
            true => refuse("has more than 2^28 parameters"),
            false => Ok(()),
        }
    }

    /// The parameters, in order.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter = |name: &'static str, rows: usize, columns: usize| Parameter { name, shape: [rows, columns] };
        match *self {
            Structure::Circulant { inputs, outputs, .. } => vec![parameter("r", outputs.div_ceil(inputs), inputs)],
            Structure::Fastfood { inputs, outputs, .. } => {
                let n = inputs.next_power_of_two();
                let blocks = outputs.div_ceil(n);
                vec![parameter("s", 1, outputs), parameter("g", blocks, n), parameter("b", blocks, inputs)]
            }
            Structure::Acdc { inputs, outputs, layers, .. } => {
                ["a", "d"].map(|name| parameter(name, layers, inputs.max(outputs))).to_vec()
            }
            Structure::ToeplitzLike { inputs, outputs, rank } => {
                ["g", "h"].map(|name| parameter(name, outputs.div_ceil(inputs) * rank, inputs)).to_vec()
            }
            Structure::TwoLevelToeplitz { inputs, outputs, columns } => {
                let rows = outputs.div_ceil(inputs) * (2 * (inputs / columns) - 1);
                vec![parameter("t", rows, 2 * columns - 1)]
            }
            Structure::Kronecker { left, right, terms, .. } => {
                vec![parameter("left", terms * left[0], left[1]), parameter("right", terms * right[0], right[1])]
            }
            Structure::Butterfly { inputs, outputs } => {
                let n = butterfly::size(inputs);
                vec![parameter("factors", outputs.div_ceil(n) * n.ilog2() as usize, 2 * n)]
            }
            Structure::TensorTrain { rows, columns, ranks, .. } => {
                let mut products: Vec<_> = tensor_train::Product::all(rows, columns, ranks).collect();
                products.reverse();
                let names = tensor_train::NAMES.into_iter();
                names.zip(products).map(|(name, product)| parameter(name, product.rows, product.columns)).collect()
            }
        }
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.parameters().iter().map(Parameter::count).sum()
    }

    /// Multiply-accumulates of one row. A transform over `n` values counts `n log2 n`, rounded up.
    pub fn macs(&self) -> u64 {
        let transform = |n: usize| n as u64 * u64::from(n.next_power_of_two().ilog2());
        let blocks = |n: usize, outputs: usize| outputs.div_ceil(n) as u64;
        match *self {
            Structure::Circulant { inputs, outputs, .. } => blocks(inputs, outputs) * (2 * transform(inputs) + 2 * inputs as u64),
            Structure::Fastfood { inputs, outputs, .. } => {
                let n = inputs.next_power_of_two();
                blocks(n, outputs) * (2 * transform(n) + (n + inputs) as u64) + outputs as u64
            }
            Structure::Acdc { inputs, outputs, layers, .. } => {
                let n = inputs.max(outputs);
                layers as u64 * (2 * transform(n) + 2 * n as u64)
            }
            Structure::ToeplitzLike { inputs, outputs, rank } => {
                let (n, rank) = (inputs as u64, rank as u64);
                let term = transform(2 * inputs) + transform(inputs) + 6 * n;
                transform(2 * inputs) + blocks(inputs, outputs) * (rank * term + transform(inputs))
            }
            Structure::TwoLevelToeplitz { inputs, outputs, columns } => {
                let n = 2 * (inputs / columns) * (3 * columns - 2);
                transform(n) + blocks(inputs, outputs) * (transform(n) + 2 * n as u64)
            }
            Structure::Kronecker { left, right, terms, .. } => {
                let (first, second) = (left[1] * right[1] * right[0], left[0] * left[1] * right[0]);
                terms as u64 * (first as u64 + second as u64)
            }
            Structure::Butterfly { inputs, outputs } => {
                let n = butterfly::size(inputs);
                blocks(n, outputs) * 2 * transform(n)
            }
            Structure::TensorTrain { rows, columns, ranks, .. } => {
                tensor_train::Product::all(rows, columns, ranks).map(|product| (product.reads() * product.rows) as u64).sum()
            }
        }
    }

    /// Makes the structure ready for rows of inputs.
    ///
    /// # Errors
    /// When the sizes do not make sense or a parameter has another length.
    pub fn prepare(&self, parameters: &[&[f32]]) -> Result<Prepared, Error> {
        self.check()?;
        let wanted: Vec<usize> = self.parameters().iter().map(Parameter::count).collect();
        let found: Vec<usize> = parameters.iter().map(|values| values.len()).collect();
        if found != wanted {
            return Err(Error(format!("parameters of {found:?} values, {self:?} takes {wanted:?}")));
        }
        let p = parameters;
        let operator: Box<dyn Operator> = match *self {
            Structure::Circulant { inputs, outputs, seed } => Box::new(circulant::Circulant::new(inputs, outputs, seed, p[0])),
            Structure::Fastfood { inputs, outputs, seed } => {
                Box::new(fastfood::Fastfood::new(inputs, outputs, seed, [p[0], p[1], p[2]]))
            }
            Structure::Acdc { inputs, outputs, layers, seed } => {
                Box::new(acdc::Acdc::new(inputs, outputs, layers, seed, [p[0], p[1]]))
            }
            Structure::ToeplitzLike { inputs, outputs, rank } => {
                Box::new(toeplitz::ToeplitzLike::new(inputs, outputs, rank, [p[0], p[1]]))
            }
            Structure::TwoLevelToeplitz { inputs, outputs, columns } => {
                Box::new(levels::TwoLevels::new(inputs, outputs, columns, p[0]))
            }
            Structure::Kronecker { inputs, outputs, left, right, terms } => {
                Box::new(kronecker::Kronecker::new(inputs, outputs, [left, right], terms, [p[0], p[1]]))
            }
            Structure::Butterfly { inputs, outputs } => Box::new(butterfly::Butterfly::new(inputs, outputs, p[0])),
            Structure::TensorTrain { inputs, outputs, rows, columns, ranks } => {
                let products = tensor_train::Product::all(rows, columns, ranks);
                Box::new(tensor_train::TensorTrain::new(inputs, outputs, products, p))
            }
        };
        Ok(Prepared { structure: *self, operator })
    }

    /// The matrix, `[outputs, inputs]`.
    ///
    /// # Errors
    /// As [`Structure::prepare`], and for a matrix of more than [`MAX_VALUES`] entries.
    pub fn dense(&self, parameters: &[&[f32]]) -> Result<Vec<f32>, Error> {
        let prepared = self.prepare(parameters)?;
        let [inputs, outputs] = self.features();
        if inputs * outputs > MAX_VALUES {
            return Err(Error(format!("{self:?}: its dense form has more than 2^28 entries")));
        }
        let mut dense = vec![0.0; inputs * outputs];
        for first in (0..inputs).step_by(UNITS) {
            let units = units(inputs, first);
            for (column, y) in prepared.forward(&units)?.chunks_exact(outputs).enumerate() {
                y.iter().enumerate().for_each(|(row, y)| dense[row * inputs + first + column] = *y);
            }
        }
        Ok(dense)
    }
}

/// Unit vectors that are worked on at once.
pub const UNITS: usize = 256;

/// The rows `first..` of the unit matrix of this size, at most [`UNITS`].
pub fn units(size: usize, first: usize) -> Vec<f32> {
    let rows = UNITS.min(size - first);
    let mut units = vec![0.0; rows * size];
    (0..rows).for_each(|row| units[row * size + first + row] = 1.0);
    units
}

/// The gradients of a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// By the input, `[rows, inputs]`.
    pub input: Vec<f32>,
    /// By all parameters, one after the other.
    pub parameters: Vec<f32>,
}

impl Prepared {
    /// The outputs `[rows, outputs]` for `x` of `[rows, inputs]`.
    ///
    /// # Errors
    /// When the input is no whole number of rows.
    pub fn forward(&self, x: &[f32]) -> Result<Vec<f32>, Error> {
        let [inputs, outputs] = self.structure.features();
        let rows = self.rows(x)?;
        let mut y = vec![0.0; rows * outputs];
        let some = rows.div_ceil(TASKS).max(ROWS);
        let tasks = y.par_chunks_mut(some * outputs).zip(x.par_chunks(some * inputs));
        tasks.for_each(|(y, x)| self.operator.forward(x, y));
        Ok(y)
    }

    /// As [`Prepared::forward`], on the calling thread and into `y`.
    ///
    /// # Panics
    /// If the two are not of the same number of rows.
    pub fn forward_into(&self, x: &[f32], y: &mut [f32]) {
        let [inputs, outputs] = self.structure.features();
        assert!(x.len().is_multiple_of(inputs) && x.len() / inputs * outputs == y.len(), "an output for each row of the input");
        self.operator.forward(x, y);
    }

    /// The gradients of a loss from that by the output, `[rows, outputs]`.
    ///
    /// # Errors
    /// When the input is no whole number of rows or the gradient has another number.
    pub fn backward(&self, x: &[f32], dy: &[f32]) -> Result<Gradients, Error> {
        let [inputs, outputs] = self.structure.features();
        let rows = self.rows(x)?;
        if dy.len() != rows * outputs {
            return Err(Error(format!("a gradient of {} values for {rows} rows of {:?}", dy.len(), self.structure)));
        }
        let mut dx = vec![0.0; x.len()];
        let some = rows.div_ceil(TASKS).max(ROWS);
        let tasks = dx.par_chunks_mut(some * inputs).zip(x.par_chunks(some * inputs)).zip(dy.par_chunks(some * outputs));
        let partial: Vec<Vec<f32>> = tasks
            .map(|((dx, x), dy)| {
                let mut sums = vec![0.0; self.operator.sums()];
                self.operator.backward(x, dy, dx, &mut sums);
                sums
            })
            .collect();
        let mut sums = vec![0.0; self.operator.sums()];
        partial.iter().for_each(|part| sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part));
        Ok(Gradients { input: dx, parameters: self.operator.gradient(sums) })
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        4 * self.operator.held()
    }

    fn rows(&self, x: &[f32]) -> Result<usize, Error> {
        let inputs = self.structure.features()[0];
        match x.len().is_multiple_of(inputs) {
            true => Ok(x.len() / inputs),
            false => Err(Error(format!("an input of {} values is no number of rows of {:?}", x.len(), self.structure))),
        }
    }
}

/// SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn signs(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| if self.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect()
    }

    fn permutation(&mut self, count: usize) -> Vec<u32> {
        let mut places: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            places.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        places
    }
}

#[cfg(test)]
mod tests;
