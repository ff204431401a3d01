//! Tensor trains.
//!
//! A tensor `A[i_1 .. i_d]` becomes `G_1[i_1] G_2[i_2] .. G_d[i_d]`, a product of matrices `[r_{k-1}, r_k]` with `r_0 = r_d = 1`. The decomposition
//! goes from left to right: the matrix `[r_{k-1} n_k, n_{k+1} .. n_d]` of what is left is cut to its `r_k` leading singular values, whose left
//! vectors are core `k` and whose weighted right ones are left. The squared error is at most the sum of the squared tails of the spectra of
//! the unfoldings `[n_1 .. n_k, n_{k+1} .. n_d]`.
//!
//! A convolution is cut along channels, height, width and filters into one by one pixel, one `kh x 1`, one `1 x kw`, and one by one pixel; the
//! matrix of a fully connected layer along digits `(i_k, j_k)` of rows and columns, for [`Structure::TensorTrain`].
//!
//! Oseledets. "Tensor-Train Decomposition". SIAM J. Sci. Comput., 2011. Novikov, Podoprikhin, Osokin, Vetrov. "Tensorizing Neural Networks".
//! NIPS 2015. arXiv:1509.06569.
//! Differs from the latter: convolutions are cut along their own modes instead of digits of channels.
//!
//! In a config `ranks` is one number for all cuts or a list, three of a convolution. A fully connected layer has `cores` cores, 4 by default, whose
//! digits multiply to its features or a little more; `output-modes` and `input-modes` give the digits.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_low_rank::tensor_train::TensorTrain;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 64);
//! let method: TensorTrain = serde_json::from_value(serde_json::json!({ "ranks": 2, "cores": 3 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 16 * 2 + 2 * 16 * 2 + 2 * 16, "instead of 64 * 64");
//! ```
//!
//! The decomposition alone, of a kernel of any module:
//!
//! ```
//! use briquette_low_rank::kernel::Kernel;
//! use briquette_low_rank::tensor_train::convolutions;
//! use burn::nn::conv::{Conv2d, Conv2dConfig};
//! use burn::tensor::Device;
//!
//! let conv: Conv2d = Conv2dConfig::new([4, 6], [3, 3]).init(&Device::flex());
//! let chain = convolutions(&Kernel::of(conv.weight.val()), &[4, 5, 6]).unwrap();
//! assert_eq!(chain.map(|kernel| kernel.shape), [[4, 4, 1, 1], [5, 4, 3, 1], [6, 5, 1, 3], [6, 6, 1, 1]]);
//! ```

use briquette_core::error::{Error, Result};
use briquette_kernels::Structure;
use briquette_kernels::structured::Sizes;
use serde::Deserialize;

use crate::algebra::{Matrix, svd};
use crate::chain::{Layer, Link};
use crate::factorization::{Factorization, Factorized, Factors};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::ranks::Spectrum;

/// Puts four convolutions in the place of one, or a structural matrix in that of a fully connected layer.
pub type TensorTrain = Factorized<Train>;

/// The form of a tensor train.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Train {
    /// Cores of a fully connected layer.
    cores: Option<usize>,
    /// Digits of its outputs.
    output_modes: Option<Vec<usize>>,
    /// Digits of its inputs.
    input_modes: Option<Vec<usize>>,
}

/// Most entries of a matrix by its digits.
const MOST: usize = 1 << 30;
/// Cores where the config does not say.
const CORES: usize = 4;

impl Train {
    /// The digits of the outputs and of the inputs of a fully connected layer.
    fn digits(&self, layer: &Layer) -> [Vec<usize>; 2] {
        let given = self.output_modes.as_ref().or(self.input_modes.as_ref()).map(Vec::len);
        let count = self.cores.or(given).unwrap_or(CORES);
        let of = |given: &Option<Vec<usize>>, features: usize| given.clone().unwrap_or_else(|| even(features, count));
        [of(&self.output_modes, layer.shape[FILTERS]), of(&self.input_modes, layer.shape[CHANNELS])]
    }

    /// The modes of a layer's tensor.
    fn modes(&self, layer: &Layer) -> Vec<usize> {
        let [n, c, kh, kw] = layer.shape;
        if !layer.connected {
            return vec![c, kh, kw, n];
        }
        let [rows, columns] = self.digits(layer);
        rows.iter().zip(&columns).map(|(m, n)| m * n).collect()
    }
}

/// So many digits, as even as can be, whose product is at least `features`.
fn even(features: usize, count: usize) -> Vec<usize> {
    let mut left = features;
    let digits = (1..=count).rev().map(|rest| {
        let digit = ((left as f64).powf(1.0 / rest as f64) - 1e-9).ceil().max(1.0) as usize;
        left = left.div_ceil(digit);
        digit
    });
    digits.collect()
}

/// Ranks cut to what is left of them beside the ones before.
fn within(ranks: &[usize], modes: &[usize]) -> Vec<usize> {
    let mut before = 1;
    let cut = ranks.iter().enumerate().map(|(k, rank)| {
        before = (*rank).min(before * modes[k]).min(product(&modes[k + 1..]));
        before
    });
    cut.collect()
}

fn product(numbers: &[usize]) -> usize {
    numbers.iter().fold(1, |product: usize, number| product.saturating_mul(*number))
}

impl Factorization for Train {
    const NAME: &'static str = "tensor-train";
    const PAPER: &'static str =
        "Novikov, Podoprikhin, Osokin, Vetrov, NIPS 2015, arXiv:1509.06569; Oseledets, SIAM J. Sci. Comput. 2011";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\nranks = { fraction = 0.2 }\ntune = { epochs = 4 }";

    fn check(&self) -> Result<()> {
        let given = [&self.output_modes, &self.input_modes];
        let lengths: Vec<usize> = self.cores.into_iter().chain(given.into_iter().flatten().map(Vec::len)).collect();
        let zero = given.into_iter().flatten().flatten().any(|mode| *mode == 0);
        if zero || lengths.iter().any(|length| *length < 2 || *length != lengths[0]) {
            let why = "`cores`, `output-modes` and `input-modes` speak of the same number of cores, at least 2, and modes are at least 1";
            return Err(Error::Invalid(format!("tensor-train: {why}")));
        }
        Ok(())
    }

    fn refuses(&self, layer: &Layer) -> Option<String> {
        if layer.connected {
            let [rows, columns] = self.digits(layer);
            if product(&rows).saturating_mul(product(&columns)) > MOST {
                return Some(format!(
                    "would have more than 2^30 entries with `output-modes` {rows:?} and `input-modes` {columns:?}"
                ));
            }
            let short = product(&rows) < layer.shape[FILTERS] || product(&columns) < layer.shape[CHANNELS];
            return short.then(|| format!("has more features than `output-modes` {rows:?} and `input-modes` {columns:?} count"));
        }
        layer.pointwise().then(|| "has a kernel of one pixel, whose train is a matrix between two others; use svd for it".into())
    }

    fn limits(&self, layer: &Layer) -> Vec<usize> {
        let modes = self.modes(layer);
        (1..modes.len()).map(|cut| product(&modes[..cut]).min(product(&modes[cut..]))).collect()
    }

    fn within(&self, layer: &Layer, ranks: &[usize]) -> Vec<usize> {
        within(ranks, &self.modes(layer))
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        let ([n, c, ..], ranks) = (layer.shape, within(ranks, &self.modes(layer)));
        let [r1, r2, r3] = [0, 1, 2].map(|at| ranks[at]);
        vec![
            layer.across("reduce", [r1, c]),
            layer.along(0, "vertical", [r2, r1], 1),
            layer.along(1, "horizontal", [r3, r2], 1),
            layer.across("expand", [n, r3]),
        ]
    }

    fn structure(&self, layer: &Layer, ranks: &[usize]) -> Result<Option<Structure>> {
        if !layer.connected {
            return Ok(None);
        }
        let ([n, c, ..], [rows, columns]) = (layer.shape, self.digits(layer));
        structure([n, c], [&rows, &columns], &within(ranks, &self.modes(layer))).map(Some)
    }

    fn spectra(&self, layer: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        let modes = self.modes(layer);
        let tensor = if layer.connected {
            let [rows, columns] = self.digits(layer);
            arranged(&as_matrix(kernel), &rows, &columns)
        } else {
            kernel.unfold(&[CHANNELS, HEIGHT, WIDTH, FILTERS], &[]).as_slice().to_vec()
        };
        let of = |cut: usize| {
            let rows = product(&modes[..cut]);
            Spectrum::of(&Matrix::from_row_slice(rows, tensor.len() / rows, &tensor))
        };
        (1..modes.len()).map(of).collect()
    }

    fn factors(&self, layer: &Layer, kernel: &Kernel, ranks: &[usize], _: u64) -> Result<Factors> {
        let ranks = within(ranks, &self.modes(layer));
        if layer.connected {
            let ([rows, columns], weight) = (self.digits(layer), as_matrix(kernel));
            let (_, cores) = matrix(&weight, &rows, &columns, &ranks)?;
            let values: Vec<f64> = cores.iter().flat_map(|core| core.values.iter().copied()).collect();
            // All but the last are orthonormal.
            let kept: f64 = cores.last().map_or(0.0, |core| core.values.iter().map(|value| value * value).sum());
            let residual = (kernel.energy() - kept).max(0.0);
            return Ok(Factors { kernels: vec![Kernel::new([1, 1, 1, values.len()], values)], residual, note: None });
        }
        let kernels = convolutions(kernel, &ranks)?;
        let residual = (kernel.energy() - kernels[3].energy()).max(0.0);
        Ok(Factors { kernels: kernels.into(), residual, note: None })
    }
}

fn as_matrix(kernel: &Kernel) -> Matrix {
    Matrix::from_row_slice(kernel.shape[FILTERS], kernel.shape[CHANNELS], &kernel.values)
}

/// A core `[r, n, r']`, the last dimension fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Core {
    /// Rank to the left, mode, rank to the right.
    pub shape: [usize; 3],
    /// Its values.
    pub values: Vec<f64>,
}

/// The cores of a tensor of these modes, the last fastest, each spectrum cut after `r_1 .. r_{d-1}` values, or as many as there are.
///
/// # Errors
/// For ranks that are zero or of another number than the cuts, and a tensor that is not finite or not of the modes.
pub fn decompose(tensor: &[f64], modes: &[usize], ranks: &[usize]) -> Result<Vec<Core>> {
    let refuse = |detail: String| Err(Error::Invalid(format!("a tensor train of the modes {modes:?}: {detail}")));
    if modes.is_empty() || modes.contains(&0) || modes.iter().product::<usize>() != tensor.len() {
        return refuse(format!("{} values, and modes are at least 1", tensor.len()));
    }
    if let Some(value) = tensor.iter().find(|value| !value.is_finite()) {
        return refuse(format!("a value is {value}"));
    }
    let cuts = modes.len() - 1;
    if ranks.len() != cuts || ranks.contains(&0) {
        return refuse(format!("the ranks {ranks:?}; it takes {cuts}, each at least 1"));
    }
    let (mut left, mut rest, mut cores) = (1, tensor.to_vec(), Vec::new());
    for (mode, rank) in modes.iter().zip(ranks) {
        let rows = left * mode;
        let parts = svd(&Matrix::from_row_slice(rows, rest.len() / rows, &rest));
        let rank = (*rank).min(parts.s.len());
        // Columns are contiguous in a matrix and rows in a core.
        let values = parts.u.columns(0, rank).transpose().as_slice().to_vec();
        cores.push(Core { shape: [left, *mode, rank], values });
        let weighted = parts.v.columns(0, rank).column_iter().zip(&parts.s).map(|(v, s)| v * *s).collect::<Vec<_>>();
        rest = weighted.iter().flat_map(|column| column.iter().copied()).collect();
        left = rank;
    }
    cores.push(Core { shape: [left, modes[cuts], 1], values: rest });
    Ok(cores)
}

/// The tensor of these cores, the last mode fastest.
pub fn contract(cores: &[Core]) -> Vec<f64> {
    let product = |left: Vec<f64>, core: &Core| {
        let [rank, mode, next] = core.shape;
        let left = Matrix::from_row_slice(left.len() / rank, rank, &left);
        let product = left * Matrix::from_row_slice(rank, mode * next, &core.values);
        product.transpose().as_slice().to_vec()
    };
    cores.iter().fold(vec![1.0], product)
}

/// A kernel `[N, C, kh, kw]` as four, `[r_1, C, 1, 1]`, `[r_2, r_1, kh, 1]`, `[r_3, r_2, 1, kw]` and `[N, r_3, 1, 1]`: stride, padding and dilation
/// of the height belong to the second and those of the width to the third, the bias to the last.
///
/// # Errors
/// As [`decompose`].
pub fn convolutions(kernel: &Kernel, ranks: &[usize]) -> Result<[Kernel; 4]> {
    let [n, c, h, w] = kernel.shape;
    let tensor = kernel.unfold(&[CHANNELS, HEIGHT, WIDTH, FILTERS], &[]);
    let cores = decompose(tensor.as_slice(), &[c, h, w, n], ranks)?;
    let [r1, r2, r3] = [1, 2, 3].map(|k| cores[k].shape[0]);
    let shapes = [[r1, c, 1, 1], [r2, r1, h, 1], [r3, r2, 1, w], [n, r3, 1, 1]];
    Ok(std::array::from_fn(|k| {
        let [filters, rows @ ..] = shapes[k];
        let matrix = Matrix::from_row_slice(rows.iter().product(), filters, &cores[k].values);
        Kernel::fold(shapes[k], &matrix, &[CHANNELS, HEIGHT, WIDTH], &[FILTERS])
    }))
}

/// A matrix `[outputs, inputs]` as a [`Structure::TensorTrain`] and the values of its parameters: the cores `[r_{k-1}, m_k n_k, r_k]` of the
/// tensor whose modes are the pairs of digits `(i_k, j_k)`, below `m_k` of `rows` and `n_k` of `columns`. What is beyond the matrix is zero.
///
/// # Errors
/// As [`decompose`] and [`Structure::check`], and for digits that make a matrix of more than `2^30` entries.
pub fn matrix(weight: &Matrix, rows: &[usize], columns: &[usize], ranks: &[usize]) -> Result<(Structure, Vec<Core>)> {
    let (outputs, inputs) = weight.shape();
    let with = |ranks: &[usize]| structure([outputs, inputs], [rows, columns], ranks);
    with(&vec![1; rows.len().saturating_sub(1)])?;
    let modes: Vec<usize> = rows.iter().zip(columns).map(|(m, n)| m * n).collect();
    let size = modes.iter().fold(1_usize, |size, mode| size.saturating_mul(*mode));
    if size > MOST {
        return Err(Error::Invalid(format!("the digits {rows:?} and {columns:?} make {size} entries of more than 2^30")));
    }
    let cores = decompose(&arranged(weight, rows, columns), &modes, ranks)?;
    let ranks: Vec<usize> = cores[1..].iter().map(|core| core.shape[0]).collect();
    Ok((with(&ranks)?, cores))
}

/// The entries of a matrix by pairs of digits, the last fastest, zeros beyond it.
fn arranged(weight: &Matrix, rows: &[usize], columns: &[usize]) -> Vec<f64> {
    let size = product(rows) * product(columns);
    let entry = |mut at: usize| {
        let (mut row, mut column, mut down, mut across) = (0, 0, 1, 1);
        for (m, n) in rows.iter().zip(columns).rev() {
            (row, column) = (row + at % (m * n) / n * down, column + at % n * across);
            (down, across, at) = (down * m, across * n, at / (m * n));
        }
        weight.get((row, column)).copied().unwrap_or(0.0)
    };
    (0..size).map(entry).collect()
}

/// The structure of a matrix `[outputs, inputs]` for digits of rows and of columns.
fn structure([outputs, inputs]: [usize; 2], modes: [&[usize]; 2], ranks: &[usize]) -> Result<Structure> {
    let make = || {
        let [rows, columns, ranks] = [Sizes::new(modes[0])?, Sizes::new(modes[1])?, Sizes::new(ranks)?];
        let structure = Structure::TensorTrain { inputs, outputs, rows, columns, ranks };
        structure.check().map(|()| structure)
    };
    make().map_err(|error: briquette_kernels::Error| Error::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use briquette_handmade::refusal;
    use serde_json::json;

    use crate::proof::{connected, reproduces};

    use super::*;
    use crate::compose::compose;
    use crate::golden::{self, near};

    fn dense(chain: &[Kernel; 4]) -> Kernel {
        chain[1..].iter().fold(chain[0].clone(), |all, next| compose(&all, next))
    }

    /// The dense form by the kernels' own product.
    fn product(structure: &Structure, cores: &[Core]) -> Matrix {
        let cores: Vec<Vec<f32>> = cores.iter().map(|core| core.values.iter().map(|value| *value as f32).collect()).collect();
        let dense = structure.dense(&cores.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let [inputs, outputs] = structure.features();
        Matrix::from_row_iterator(outputs, inputs, dense.into_iter().map(f64::from))
    }

    #[test]
    fn errors_of_convolutions_are_those_of_tensorly() {
        let decay = [0.0, 0.4313557888, 0.7382601892, 1.322353255, 1.785395792];
        let rand = [0.0, 2.359794782, 2.640256002, 2.90573216, 3.083087618];
        let ranks = [([6, 18, 8], 856), ([4, 6, 4], 200), ([3, 4, 3], 114), ([2, 2, 2], 52), ([1, 1, 1], 20)];
        for (text, errors) in [(golden::DECAY, decay), (golden::RAND, rand)] {
            let kernel = golden::kernel([8, 6, 3, 3], text);
            for ((ranks, count), wanted) in ranks.iter().zip(errors) {
                let chain = convolutions(&kernel, ranks).unwrap();
                let error = dense(&chain).distance(&kernel);
                assert!(near(error, wanted, 1e-8), "{ranks:?}: {error} and {wanted}");
                assert_eq!(chain.iter().map(|kernel| kernel.values.len()).sum::<usize>(), *count);
            }
            let clipped = convolutions(&kernel, &[100, 100, 100]).unwrap();
            assert_eq!(clipped.map(|kernel| kernel.shape), [[6, 6, 1, 1], [18, 6, 3, 1], [8, 18, 1, 3], [8, 8, 1, 1]]);
        }
    }

    #[test]
    fn a_planted_train_is_found_and_zeros_have_one_of_zeros() {
        let kernel = golden::kernel([8, 6, 3, 3], golden::DECAY);
        let planted = dense(&convolutions(&kernel, &[2, 3, 2]).unwrap());
        assert!(dense(&convolutions(&planted, &[2, 3, 2]).unwrap()).distance(&planted) < 1e-7 * planted.energy().sqrt());
        let zeros = convolutions(&Kernel::new([4, 3, 3, 1], vec![0.0; 36]), &[2, 2, 2]).unwrap();
        assert!(zeros.iter().all(|kernel| kernel.values.iter().all(|value| value.is_finite())));
        assert_eq!(dense(&zeros).energy(), 0.0);
    }

    #[test]
    fn a_kernel_need_not_be_square() {
        let kernel = Kernel::new([5, 3, 2, 4], (0..120).map(|at| f64::from(at * at % 37) - 15.0).collect());
        let chain = convolutions(&kernel, &[3, 6, 5]).unwrap();
        assert_eq!([chain[1].shape, chain[2].shape], [[6, 3, 2, 1], [5, 6, 1, 4]]);
        assert!(dense(&chain).distance(&kernel) < 1e-10 * kernel.energy().sqrt());
    }

    #[test]
    fn a_matrix_is_the_structure_of_its_cores_and_errs_as_numpy() {
        let weight = Matrix::from_row_slice(12, 20, &golden::numbers(golden::MATRIX));
        for (rank, wanted, count) in
            [(12, 0.0, 384), (6, 6.406742881, 192), (4, 8.644967706, 128), (2, 11.32465302, 64), (1, 12.73916428, 32)]
        {
            let (structure, cores) = matrix(&weight, &[3, 4], &[4, 5], &[rank]).unwrap();
            assert_eq!(structure.count(), count);
            let error = (product(&structure, &cores) - &weight).norm();
            assert!(near(error, wanted, 1e-5), "{rank}: {error} and {wanted}");
            // Row 4 has the digits (1, 0), column 3 has (0, 3): the pairs are 1 * 4 + 0 and 0 * 5 + 3.
            assert!(near(contract(&cores)[4 * 20 + 3], product(&structure, &cores)[(4, 3)], 1e-5));
        }
    }

    #[test]
    fn three_cores_and_digits_for_more_than_the_matrix_are_exact_at_full_rank() {
        let weight = Matrix::from_fn(11, 13, |i, j| ((i * 5 + j * j * 3) % 17) as f64 / 4.0 - 2.0);
        let (structure, cores) = matrix(&weight, &[2, 3, 2], &[3, 2, 3], &[usize::MAX; 2]).unwrap();
        assert!((product(&structure, &cores) - &weight).norm() < 1e-4);
        let names: Vec<_> = structure.parameters().iter().map(briquette_kernels::structured::Parameter::count).collect();
        assert_eq!(names, cores.iter().map(|core| core.values.len()).collect::<Vec<_>>());
    }

    #[test]
    fn what_makes_no_train_is_refused() {
        let kernel = golden::kernel([8, 6, 3, 3], golden::DECAY);
        assert!(convolutions(&kernel, &[1, 1]).is_err() && convolutions(&kernel, &[1, 0, 1]).is_err());
        assert!(decompose(&[1.0, f64::INFINITY], &[2], &[]).is_err());
        assert!(decompose(&[1.0, 2.0], &[3], &[]).is_err() && decompose(&[1.0], &[], &[]).is_err());
        let weight = Matrix::zeros(6, 6);
        for (rows, columns) in
            [(&[2, 2][..], &[2, 3][..]), (&[6], &[2, 3]), (&[0, 6], &[2, 3]), (&[], &[]), (&[1 << 12, 1], &[1, 1 << 20])]
        {
            assert!(matrix(&weight, rows, columns, &[1]).is_err(), "{rows:?} {columns:?}");
        }
    }

    #[test]
    fn a_chain_or_a_structural_matrix_computes_what_the_layer_did_at_full_rank() {
        reproduces::<TensorTrain>(crate::proof::convolutions([3, 2]), &json!({}));
        reproduces::<TensorTrain>(vec![connected()], &json!({ "cores": 3 }));
        reproduces::<TensorTrain>(vec![connected()], &json!({ "output-modes": [3, 3], "input-modes": [4, 4] }));
    }

    #[test]
    fn digits_that_do_not_count_the_features_are_refused() {
        let refused = |settings: serde_json::Value| refusal::<TensorTrain>(connected(), settings);
        let why = refused(json!({ "layers": ["layer"], "ranks": 1, "output-modes": [3, 2], "input-modes": [4, 4] }));
        assert_eq!(why, "node 'layer': has more features than `output-modes` [3, 2] and `input-modes` [4, 4] count");
        let why = "tensor-train: `cores`, `output-modes` and `input-modes` speak of the same number of cores, at least 2, and modes are at least 1";
        assert_eq!(refused(json!({ "ranks": 1, "output-modes": [9], "cores": 2 })), why);
        assert_eq!(refused(json!({ "ranks": 1, "cores": 1 })), why);
        assert_eq!([even(4096, 6), even(10, 3), even(1, 2)], [vec![4; 6], vec![3, 2, 2], vec![1, 1]]);
    }
}
