//! Truncated singular value decomposition of fully connected layers and convolutions.
//!
//! A weight `W` `[N, C]` becomes two layers of `K` channels in between: with `W = sum_k s_k u_k v_k^T`, the first has the rows
//! `sqrt(s_k) v_k^T`, the second, with the bias, the columns `sqrt(s_k) u_k`, for the `K` largest `s_k`. The error is the tail of the
//! spectrum, `||W - W~||^2 = sum_{k > K} s_k^2`, the least of any rank `K` (Eckart and Young, Psychometrika 1936). Weights fall from
//! `C N` to `K (C + N)`. A kernel `[N, C, kh, kw]` larger than a pixel is cut along its channels, as a matrix `[C, N kh kw]`: the first layer
//! is a convolution by one pixel and the second has the kernel, `K (C + N kh kw)` weights. The step of a convolution by one pixel goes to
//! its first layer, which then computes only what the second reads.
//!
//! Denton, Zaremba, Bruna, LeCun, Fergus. "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation". NIPS 2014.
//! arXiv:1404.0736. Sainath, Kingsbury, Sindhwani, Arisoy, Ramabhadran. "Low-rank Matrix Factorization for Deep Neural Network Training
//! with High-dimensional Output Targets". ICASSP 2013. Denil, Shakibi, Dinh, Ranzato, de Freitas. "Predicting Parameters in Deep Learning".
//! NIPS 2013. arXiv:1306.0543.
//! Differs from the papers: singular values are split evenly over both factors, so that neither trains faster than the other.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_low_rank::svd::Svd;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 100);
//! let method: Svd = serde_json::from_value(serde_json::json!({ "layers": ["fc"], "ranks": 10 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 10 * (64 + 100), "instead of 64 * 100");
//! ```
//!
//! The decomposition alone, for a weight of any module:
//!
//! ```
//! use briquette_low_rank::svd;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::Device;
//!
//! let linear: Linear = LinearConfig::new(20, 30).init(&Device::flex());
//! let [first, second] = svd::decompose(linear.weight.val(), 20).unwrap();
//! let off = (first.matmul(second) - linear.weight.val()).abs().max().into_scalar::<f32>();
//! assert!(off < 1e-5);
//! ```

use briquette_core::error::Result;
use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;

use crate::algebra::{self, Matrix};
use crate::chain::{Layer, Link};
use crate::factorization::{Factorization, Factorized, Factors};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::range::{Leading, leading};
use crate::ranks::Spectrum;

/// Puts two layers in the place of one.
pub type Svd = Factorized<Truncated>;

/// The form of a truncated decomposition, with no settings of its own.
#[derive(Debug, Deserialize)]
pub struct Truncated {}

/// The modes of a kernel that index the columns of its unfolding.
const ACROSS: [usize; 3] = [FILTERS, HEIGHT, WIDTH];

impl Factorization for Truncated {
    const NAME: &'static str = "svd";
    const PAPER: &'static str =
        "Denton, Zaremba, Bruna, LeCun, Fergus, NIPS 2014, arXiv:1404.0736; Sainath et al., ICASSP 2013; Denil et al., NIPS 2013";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\nranks = { energy = 0.9 }\ntune = { epochs = 4 }";

    fn refuses(&self, layer: &Layer) -> Option<String> {
        (self.limits(layer)[0] == 1).then(|| "has the rank 1 already".into())
    }

    fn limits(&self, layer: &Layer) -> Vec<usize> {
        let [n, c, kh, kw] = layer.shape;
        vec![c.min(n * kh * kw)]
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        let ([n, c, ..], k) = (layer.shape, ranks[0]);
        let (first, second) = (layer.across("reduce", [k, c]), layer.whole("expand", [n, k], 1));
        if layer.pointwise() {
            // What the second layer would skip, the first need not compute.
            let first = Link { stride: layer.stride, padding: layer.padding, ..first };
            return vec![first, layer.across("expand", [n, k])];
        }
        vec![first, second]
    }

    fn spectra(&self, _: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        vec![Spectrum::of(&kernel.unfold(&[CHANNELS], &ACROSS))]
    }

    fn factors(&self, layer: &Layer, kernel: &Kernel, ranks: &[usize], seed: u64) -> Result<Factors> {
        let ([n, c, kh, kw], k) = (layer.shape, ranks[0]);
        let ([left, right], note) = balanced(&kernel.unfold(&[CHANNELS], &ACROSS), k, seed)?;
        let residual = (kernel.energy() - energy_of(&left, &right)).max(0.0);
        let first = Kernel::fold([k, c, 1, 1], &left, &[CHANNELS], &[FILTERS, HEIGHT, WIDTH]);
        let second = Kernel::fold([n, k, kh, kw], &right, &[CHANNELS], &ACROSS);
        Ok(Factors { kernels: vec![first, second], residual, note })
    }
}

/// The factors `[rows, rank]` and `[rank, columns]` of the best approximation of a matrix, by balanced singular values: ordinary Burn layers
/// take the first after the second, as `Linear` keeps its weight `[in, out]`.
///
/// # Errors
/// A rank that is not in `1..=min(rows, columns)`, and values that are not finite.
pub fn decompose(matrix: Tensor<2>, rank: usize) -> Result<[Tensor<2>; 2]> {
    let ([rows, columns], device) = (matrix.dims(), matrix.device());
    let values = briquette_core::coding::floats(matrix).into_iter().map(f64::from);
    let (factors, _) = balanced(&Matrix::from_row_iterator(rows, columns, values), rank, 0)?;
    Ok(factors.map(|factor| {
        let shape = [factor.nrows(), factor.ncols()];
        let values: Vec<f32> = factor.transpose().iter().map(|value| *value as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), &device)
    }))
}

/// `[rows, rank]` and `[rank, columns]`, each with the roots of the singular values, and what is to be said of them.
pub(crate) fn balanced(matrix: &Matrix, rank: usize, seed: u64) -> Result<([Matrix; 2], Option<String>)> {
    let Leading { svd, bound } = leading(matrix, rank, seed)?;
    let algebra::Svd { mut u, s, mut v } = svd;
    for ((mut u, mut v), s) in u.column_iter_mut().zip(v.column_iter_mut()).zip(&s) {
        u.scale_mut(s.sqrt());
        v.scale_mut(s.sqrt());
    }
    let note = bound.map(|bound| format!("found by a random range; no singular value that is missing exceeds {bound:.4}"));
    Ok(([u, v.transpose()], note))
}

/// `||L R||^2` for factors of orthogonal columns and rows.
pub(crate) fn energy_of(left: &Matrix, right: &Matrix) -> f64 {
    left.column_iter().zip(right.row_iter()).map(|(u, v)| u.norm_squared() * v.norm_squared()).sum()
}

#[cfg(test)]
mod tests {
    use briquette_handmade::refusal;
    use serde_json::json;

    use super::*;
    use crate::proof::{connected, convolutions, reproduces};

    #[test]
    fn full_rank_reproduces_the_layer() {
        reproduces::<Svd>(
            convolutions([1, 1]).into_iter().chain(convolutions([3, 2])).chain([connected()]).collect(),
            &json!({}),
        );
    }

    /// A 10 by 7 matrix and the error at each rank, by numpy.
    const MATRIX: [f64; 70] = [
        1.0509, 2.1866, -0.8736, 1.4529, -0.1284, 3.6561, -0.0069, -0.0504, -0.4552, 1.1584, -0.9879, -0.356, -0.5834, 0.8556,
        1.1015, 1.8965, -0.9363, 0.9871, -2.2035, 0.5961, 0.265, 0.7698, 1.9388, -1.4444, 1.4298, -0.5873, 2.8629, 0.0083,
        0.3809, -0.7722, 1.1988, -1.6686, -2.9037, -2.7982, 2.3392, 0.4313, -1.2043, 0.0402, -0.7835, -1.0582, -3.146, 0.8461,
        -1.7714, -4.852, 2.3641, -2.9609, 3.6085, -4.3836, 0.6363, 0.4291, 1.1165, 0.5347, -0.1609, -2.3093, 0.9082, 0.801,
        -0.3225, -0.7313, 0.862, -0.5441, -0.2392, -0.2398, -0.0733, -0.2807, -0.4706, -0.6042, 0.9197, 2.3113, 0.7325, -2.1064,
    ];
    const ERRORS: [f64; 7] = [7.637167278, 3.061442872, 1.56854907, 0.7786615585, 0.4839399358, 0.07242291293, 0.0];

    #[test]
    fn the_error_is_the_tail_of_the_spectrum() {
        let matrix = Matrix::from_row_slice(10, 7, &MATRIX);
        for (rank, error) in (1..).zip(ERRORS) {
            let ([left, right], note) = balanced(&matrix, rank, 0).unwrap();
            assert!(((&left * &right - &matrix).norm() - error).abs() < 1e-7 && note.is_none());
            assert!((left.norm() - right.norm()).abs() < 1e-9, "the scale is shared evenly");
        }
    }

    #[test]
    fn a_large_matrix_of_low_rank_is_found_by_a_random_range_and_its_error_is_bounded() {
        let (rows, columns) = (1100, 1030);
        let a = Matrix::from_fn(rows, 5, |i, k| ((i * (k + 3) * 7919 + k) % 1013) as f64 / 1013.0 - 0.5);
        let b = Matrix::from_fn(5, columns, |k, j| ((j * (k + 5) * 104_729 + 3 * k) % 997) as f64 / 997.0 - 0.5);
        let matrix = a * b;
        let ([left, right], note) = balanced(&matrix, 5, 1).unwrap();
        assert!((&left * &right - &matrix).norm() < 1e-4 * matrix.norm());
        assert!(note.unwrap().starts_with("found by a random range; no singular value that is missing exceeds 0.0"));
    }

    #[test]
    fn ranks_that_no_layer_has_are_refused_by_name() {
        let refused = |ranks: serde_json::Value| refusal::<Svd>(connected(), json!({ "layers": ["layer"], "ranks": ranks }));
        assert_eq!(refused(json!(10)), "node 'layer': rank 10 is not in 1..=9, all that its shape allows");
        assert_eq!(refused(json!([2, 2])), "node 'layer': `ranks` lists 2, but it has 1");
        assert!(decompose(Tensor::ones([3, 4], &burn::tensor::Device::flex()), 0).is_err());
    }
}
