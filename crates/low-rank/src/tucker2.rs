//! Tucker decompositions over filters and channels.
//!
//! A kernel `W` `[N, C, kh, kw]` becomes `W[n, c, y, x] = sum_ab U[n, a] G[a, b, y, x] V[c, b]`: a convolution by one pixel to `r_in` channels, the
//! core `G`, which has the stride, the padding and the dilation, and a convolution by one pixel to `N` filters, which has the bias. `U` and `V`
//! are orthonormal.
//!
//! Kim, Park, Yoo, Choi, Yang, Shin. "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications". ICLR 2016.
//! arXiv:1511.06530. The alternation is of De Lathauwer, De Moor, Vandewalle. "On the Best Rank-1 and Rank-(R1, R2, ..., RN) Approximation of
//! Higher-Order Tensors". SIAM J. Matrix Anal. Appl., 2000.
//!
//! Differs from the paper: `sweeps` of the alternation follow on the truncated decomposition, and singular values stay in the core. `ranks = [r_out,
//! r_in]`; a layer of three channels or fewer keeps them (Tucker-1) and has `r_out` alone.
//!
//! The paper tunes the whole network at a rate of 1e-3, a tenth of that after every 5 or 10 epochs, and finds nearly all of the accuracy
//! again after one.
//!
//! ```
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use briquette_low_rank::tucker2::Tucker2;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([8, 12, 12], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(16, 3).same());
//! b.global_avg_pool("pool", x);
//! let method: Tucker2 = serde_json::from_value(serde_json::json!({ "ranks": [6, 4] })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 4 * 8 + 6 * 4 * 9 + 16 * 6, "instead of 16 * 8 * 9");
//! ```
//!
//! The decomposition alone, of a kernel of any module:
//!
//! ```
//! use briquette_low_rank::kernel::Kernel;
//! use briquette_low_rank::tucker2::{self, Ranks};
//! use burn::nn::conv::{Conv2d, Conv2dConfig};
//! use burn::tensor::Device;
//!
//! let conv: Conv2d = Conv2dConfig::new([4, 6], [3, 3]).init(&Device::flex());
//! let kernel = Kernel::of(conv.weight.val());
//! let whole = tucker2::hosvd(&kernel, Ranks { output: 6, input: Some(4) }).unwrap();
//! assert!(whole.dense().distance(&kernel) < 1e-6);
//! ```

use briquette_core::error::{Error, Result};
use serde::Deserialize;

use crate::algebra::{Matrix, spectrum, svd};
use crate::chain::{Layer, Link};
use crate::compose::compose;
use crate::factorization::{self, Factorization, Factorized};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::ranks::Spectrum;

/// Puts three convolutions, or two, in the place of one.
pub type Tucker2 = Factorized<Core>;

/// The form of a Tucker decomposition.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Core {
    /// Rounds of the alternation.
    sweeps: Option<usize>,
}

/// Rounds where the config does not say.
const SWEEPS: usize = 5;
/// Up to so many channels stay as they are.
const FEW: usize = 3;

impl Factorization for Core {
    const NAME: &'static str = "tucker2";
    const PAPER: &'static str = "Kim, Park, Yoo, Choi, Yang, Shin, ICLR 2016, arXiv:1511.06530";
    const EXAMPLE: &'static str = "layers = [\"conv2\"]\nranks = { evbmf = 0.8 }\ntune = { epochs = 4 }";

    fn refuses(&self, layer: &Layer) -> Option<String> {
        let pointless = "has a kernel of one pixel, of which the core would be a matrix between two others; use svd for it";
        layer.pointwise().then(|| pointless.into())
    }

    /// `r_out` and `r_in`, of a few channels `r_out` alone.
    fn limits(&self, layer: &Layer) -> Vec<usize> {
        let [n, c, kh, kw] = layer.shape;
        if c <= FEW { vec![n.min(c * kh * kw)] } else { vec![n.min(c * kh * kw), c.min(n * kh * kw)] }
    }

    fn within(&self, layer: &Layer, ranks: &[usize]) -> Vec<usize> {
        let Ranks { output, input } = of(ranks, layer);
        std::iter::once(output).chain(input).collect()
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        let [n, c, ..] = layer.shape;
        let Ranks { output, input } = of(ranks, layer);
        let core = layer.whole("core", [output, input.unwrap_or(c)], 1);
        let first = input.map(|input| layer.across("reduce", [input, c]));
        first.into_iter().chain([core, layer.across("expand", [n, output])]).collect()
    }

    fn spectra(&self, _: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        let count = if kernel.shape[CHANNELS] <= FEW { 1 } else { 2 };
        [FILTERS, CHANNELS][..count].iter().map(|mode| Spectrum::of(&unfolded(kernel, *mode))).collect()
    }

    fn factors(&self, layer: &Layer, kernel: &Kernel, ranks: &[usize], _: u64) -> Result<factorization::Factors> {
        let found = hooi(kernel, of(ranks, layer), self.sweeps.unwrap_or(SWEEPS))?;
        // The outer factors are orthonormal.
        let residual = (kernel.energy() - found.core.energy()).max(0.0);
        let kernels = found.input.into_iter().chain([found.core, found.output]).collect();
        Ok(factorization::Factors { kernels, residual, note: None })
    }
}

/// Ranks beyond which nothing is gained are cut, so that a large one may stand beside a small one.
fn of(ranks: &[usize], layer: &Layer) -> Ranks {
    Ranks { output: ranks[0], input: ranks.get(1).copied() }.within(layer.shape)
}

/// The ranks of a decomposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    /// `r_out`, filters of the core.
    pub output: usize,
    /// `r_in`, channels of the core; none leaves the channels as they are (Tucker-1), which suits a first layer with its few channels.
    pub input: Option<usize>,
}

impl Ranks {
    /// These ranks, cut to those beyond which the error of a kernel of this shape does not fall: `r_out` to `min(N, r_in kh kw)`, `r_in` to
    /// `min(C, r_out kh kw)`.
    #[must_use]
    pub fn within(self, [n, c, h, w]: [usize; 4]) -> Self {
        let output = self.output.min(n).min(self.input.unwrap_or(c).min(c) * h * w);
        Self { output, input: self.input.map(|rank| rank.min(c).min(output * h * w)) }
    }
}

/// The kernels of a decomposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// `V` `[r_in, C, 1, 1]`; none in Tucker-1.
    pub input: Option<Kernel>,
    /// `G` `[r_out, r_in, kh, kw]`, in Tucker-1 `[r_out, C, kh, kw]`.
    pub core: Kernel,
    /// `U` `[N, r_out, 1, 1]`.
    pub output: Kernel,
}

impl Factors {
    /// The kernel that the factors make.
    pub fn dense(&self) -> Kernel {
        let core = compose(&self.core, &self.output);
        self.input.as_ref().map_or(core.clone(), |input| compose(input, &core))
    }
}

/// The singular values of the unfoldings `[N, C kh kw]` and `[C, N kh kw]`, falling. The squares beyond the ranks bound the squared error of
/// [`hosvd`].
pub fn spectra(kernel: &Kernel) -> [Vec<f64>; 2] {
    [FILTERS, CHANNELS].map(|mode| spectrum(&unfolded(kernel, mode)))
}

/// The truncated higher-order singular value decomposition: `U` and `V` are the leading left singular vectors of the two unfoldings.
///
/// # Errors
/// For a rank that is zero or beyond [`Ranks::within`], and a kernel that is not finite.
pub fn hosvd(kernel: &Kernel, ranks: Ranks) -> Result<Factors> {
    check(kernel, ranks)?;
    let input = ranks.input.map(|rank| leading(kernel, CHANNELS, rank));
    Ok(factors(kernel, &leading(kernel, FILTERS, ranks.output), input.as_ref()))
}

/// Higher-order orthogonal iteration from [`hosvd`]: each of `U` and `V` in turn becomes the best for the other, `sweeps` times, so that the
/// error never rises. Tucker-1 is optimal from the start.
///
/// # Errors
/// As [`hosvd`].
pub fn hooi(kernel: &Kernel, ranks: Ranks, sweeps: usize) -> Result<Factors> {
    let Some(rank) = ranks.input else { return hosvd(kernel, ranks) };
    check(kernel, ranks)?;
    let (mut output, mut input) = (leading(kernel, FILTERS, ranks.output), leading(kernel, CHANNELS, rank));
    for _ in 0..sweeps {
        output = leading(&projected(kernel, CHANNELS, &input), FILTERS, ranks.output);
        input = leading(&projected(kernel, FILTERS, &output), CHANNELS, rank);
    }
    Ok(factors(kernel, &output, Some(&input)))
}

fn check(kernel: &Kernel, ranks: Ranks) -> Result<()> {
    let most = ranks.within(kernel.shape);
    if ranks.output == 0 || ranks.input == Some(0) || ranks != most {
        let what = |rank: Option<usize>| rank.map_or("no".into(), |rank| rank.to_string());
        let (found, most) = ((ranks.output, what(ranks.input)), (most.output, what(most.input)));
        return Err(Error::Invalid(format!(
            "{} output and {} input ranks of a kernel {:?}; they are at least 1, and with these at most {} and {}",
            found.0, found.1, kernel.shape, most.0, most.1
        )));
    }
    match kernel.values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::Invalid(format!("a kernel holds the weight {value}"))),
        None => Ok(()),
    }
}

/// The matrix with a row for each index of the mode.
fn unfolded(kernel: &Kernel, mode: usize) -> Matrix {
    kernel.unfold(&[mode], &[FILTERS + CHANNELS - mode, HEIGHT, WIDTH])
}

/// The leading left singular vectors of the mode's unfolding.
fn leading(kernel: &Kernel, mode: usize, rank: usize) -> Matrix {
    svd(&unfolded(kernel, mode)).u.columns(0, rank).into_owned()
}

/// The product of the mode with the transposed basis, as many long as that has columns.
fn projected(kernel: &Kernel, mode: usize, basis: &Matrix) -> Kernel {
    let mut shape = kernel.shape;
    shape[mode] = basis.ncols();
    Kernel::fold(shape, &basis.tr_mul(&unfolded(kernel, mode)), &[mode], &[FILTERS + CHANNELS - mode, HEIGHT, WIDTH])
}

fn factors(kernel: &Kernel, output: &Matrix, input: Option<&Matrix>) -> Factors {
    let core = projected(kernel, FILTERS, output);
    Factors {
        core: input.map_or(core.clone(), |input| projected(&core, CHANNELS, input)),
        // Columns are contiguous in a matrix and rows in a kernel, so that V is turned by keeping its values.
        input: input.map(|input| Kernel::new([input.ncols(), input.nrows(), 1, 1], input.as_slice().to_vec())),
        output: Kernel::new([output.nrows(), output.ncols(), 1, 1], output.transpose().as_slice().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::golden::{self, near};
    use crate::proof::{convolutions, reproduces};

    /// Ranks of filters and channels, errors of the HOSVD and of the iteration; numpy and tensorly found them.
    type Row = (usize, usize, f64, f64);

    const ROWS: [([usize; 4], &str, &[Row]); 3] = [
        (
            [8, 6, 3, 3],
            golden::DECAY,
            &[
                (8, 6, 0.0, 0.0),
                (6, 5, 0.1610439672, 0.1610373262),
                (4, 3, 0.4830651543, 0.4825070263),
                (3, 3, 0.627535177, 0.622116728),
                (2, 2, 1.121871983, 1.115917149),
                (1, 1, 1.770229362, 1.65619359),
            ],
        ),
        (
            [6, 4, 5, 5],
            golden::FIVE,
            &[
                (6, 4, 0.0, 0.0),
                (4, 3, 0.7868179533, 0.785779788),
                (3, 3, 1.004774035, 0.999453167),
                (2, 2, 1.417471903, 1.412907384),
                (1, 1, 2.059781943, 2.044454375),
            ],
        ),
        (
            [8, 6, 3, 3],
            golden::RAND,
            &[
                (8, 6, 0.0, 0.0),
                (6, 5, 1.528581397, 1.477239296),
                (4, 3, 2.394094499, 2.325793158),
                (3, 3, 2.540070072, 2.496718286),
                (2, 2, 2.823796967, 2.771679822),
                (1, 1, 3.052231531, 3.0044692),
            ],
        ),
    ];

    #[test]
    fn errors_are_those_of_numpy_and_tensorly_and_within_the_bound() {
        for (shape, text, rows) in ROWS {
            let kernel = golden::kernel(shape, text);
            let tails = spectra(&kernel);
            for &(output, input, of_hosvd, of_hooi) in rows {
                let ranks = Ranks { output, input: Some(input) };
                let start = hosvd(&kernel, ranks).unwrap();
                let error = start.dense().distance(&kernel);
                assert!(near(error, of_hosvd, 1e-8), "{ranks:?}: {error} and {of_hosvd}");
                let tail = |mode: usize, rank: usize| tails[mode][rank..].iter().map(|s| s * s).sum::<f64>();
                assert!(error * error <= tail(0, output) + tail(1, input) + 1e-12);
                assert_eq!(start.core.shape[..2], [output, input]);
                let mut last = error;
                for sweeps in [1, 2, 5, 20] {
                    let error = hooi(&kernel, ranks, sweeps).unwrap().dense().distance(&kernel);
                    assert!(error <= last + 1e-9, "{ranks:?}, {sweeps} sweeps: {error} after {last}");
                    last = error;
                }
                let end = hooi(&kernel, ranks, 300).unwrap().dense().distance(&kernel);
                assert!(near(end, of_hooi, 1e-8), "{ranks:?}: {end} and {of_hooi}");
            }
        }
    }

    #[test]
    fn spectra_are_those_of_numpy() {
        let [output, input] = spectra(&golden::kernel([8, 6, 3, 3], golden::DECAY));
        let wanted =
            [1.601337652, 1.06263066, 0.6133610525, 0.4335730987, 0.2116760418, 0.1080341318, 0.06428870493, 0.04385684867];
        assert!(output.iter().zip(wanted).all(|(a, b)| near(*a, b, 1e-9)), "{output:?}");
        let wanted = [1.431776318, 1.218015939, 0.7802631013, 0.3430587924, 0.2003023251, 0.14153117];
        assert!(input.iter().zip(wanted).all(|(a, b)| near(*a, b, 1e-9)), "{input:?}");
    }

    #[test]
    fn of_the_filters_alone_the_error_is_the_tail_and_the_bases_are_orthonormal() {
        let kernel = golden::kernel([8, 6, 3, 3], golden::DECAY);
        let [spectrum, _] = spectra(&kernel);
        let found = hooi(&kernel, Ranks { output: 3, input: None }, 4).unwrap();
        assert_eq!((found.input.as_ref(), found.core.shape), (None, [3, 6, 3, 3]));
        let tail: f64 = spectrum[3..].iter().map(|s| s * s).sum();
        assert!(near(found.dense().distance(&kernel), tail.sqrt(), 1e-9));
        let found = hosvd(&kernel, Ranks { output: 3, input: Some(2) }).unwrap();
        let u = found.output.unfold(&[CHANNELS], &[FILTERS]);
        let v = found.input.unwrap().unfold(&[FILTERS], &[CHANNELS]);
        for basis in [u, v] {
            assert!((&basis * basis.transpose() - Matrix::identity(basis.nrows(), basis.nrows())).norm() < 1e-12);
        }
    }

    #[test]
    fn ranks_that_a_kernel_does_not_have_and_values_that_are_no_numbers_are_refused() {
        let kernel = golden::kernel([8, 6, 3, 3], golden::DECAY);
        for ranks in [(0, Some(1)), (1, Some(0)), (9, None), (8, Some(7)), (1, Some(10))] {
            let ranks = Ranks { output: ranks.0, input: ranks.1 };
            assert!(hosvd(&kernel, ranks).is_err() && hooi(&kernel, ranks, 1).is_err(), "{ranks:?}");
            if ranks.output > 0 && ranks.input != Some(0) {
                hosvd(&kernel, ranks.within(kernel.shape)).unwrap();
            }
        }
        // Two filters of one channel by one pixel: no rank is above 1.
        let thin = Kernel::new([2, 1, 1, 1], vec![3.0, 4.0]);
        let error = hosvd(&thin, Ranks { output: 2, input: Some(1) }).unwrap_err().to_string();
        assert!(error.contains("at most 1 and 1"), "{error}");
        let broken = Kernel::new([2, 1, 1, 1], vec![3.0, f64::NAN]);
        assert!(hosvd(&broken, Ranks { output: 1, input: Some(1) }).unwrap_err().to_string().contains("the weight NaN"));
    }

    #[test]
    fn three_convolutions_compute_what_one_did_at_full_rank() {
        reproduces::<Tucker2>(convolutions([3, 2]), &json!({}));
    }
}
