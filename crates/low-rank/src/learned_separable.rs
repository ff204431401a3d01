//! Learned separable filters.
//!
//! The planes of a kernel `[N, C, kh, kw]`, one for each channel of each filter, are the rows of `X` `[N C, kh kw]`. A bank of `M` filters `F_j`
//! `[kh, kw]` that all planes share is learned with what each plane takes of it, `A` `[N C, M]`:
//!
//! `min 1/2 ||X - A F||^2 + lambda sum_j ||F_j||_*`, the columns of `A` of length 1 at most,
//!
//! by gradient steps of `F`, after each of which the proximal step of the nuclear norm, [`svt`], takes `lambda / L` off the singular values of
//! each filter, and of `A`, after which columns are shortened. With steps of `1 / L`, `L` the largest curvature, the objective never rises
//! (Bolte, Sabach, Teboulle, Math. Program., 2014). The penalty drives the filters to rank 1, that is to a column times a row. What is left of
//! higher ranks is then cut, filters that the penalty has emptied begin anew at what is left over, and least squares in turns for columns,
//! rows and `A` take back what the penalty took off.
//!
//! As layers: `vertical`, `kh x 1`, and `horizontal`, `1 x kw`, each channel by itself, and `mix`, by one pixel, with the bias; stride, padding
//! and dilation of the height belong to the first, those of the width to the second.
//!
//! Rigamonti, Sironi, Lepetit, Fua. "Learning Separable Filters". CVPR 2013; the approximation of a given bank by few filters as in Sironi, Tekin,
//! Rigamonti, Lepetit, Fua. "Learning Separable Filters". IEEE TPAMI, 2015.
//! Differs from the papers: what is approximated are the planes of a trained kernel instead of images; bounds on `A` take the place of its
//! l1 norm, for every plane may use every filter.
//!
//! ```
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use briquette_low_rank::learned_separable::LearnedSeparable;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([4, 12, 12], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(16, 5).same());
//! b.global_avg_pool("pool", x);
//! let method: LearnedSeparable = serde_json::from_value(serde_json::json!({ "ranks": 3 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 4 * 3 * (5 + 5) + 16 * 4 * 3, "instead of 16 * 4 * 25");
//! ```

use briquette_core::error::{Error, Result};
use nalgebra::DVector;
use serde::Deserialize;

use crate::algebra::{Matrix, eigen, solve, svd};
use crate::bn_low_rank::unsplit;
use crate::chain::{Layer, Link};
use crate::compose::{compose, ungrouped};
use crate::cp::{self, Fitted, Tensor};
use crate::factorization::{self, Factorization, Factorized};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::ranks::Spectrum;

/// Puts a bank of separable filters that all channels share, and a convolution by one pixel, in the place of convolutions.
pub type LearnedSeparable = Factorized<Learned>;

/// The form of a learned bank; the rank is its number of filters `M`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Learned {
    /// `lambda`, as a share of the largest singular value of `X`.
    penalty: Option<f64>,
    /// Steps of the descent.
    steps: Option<usize>,
}

/// The penalty where the config does not say.
const PENALTY: f64 = 0.1;
/// Steps where the config does not say.
const STEPS: usize = 100;

impl Factorization for Learned {
    const NAME: &'static str = "learned-separable";
    const PAPER: &'static str = "Rigamonti, Sironi, Lepetit, Fua, CVPR 2013; Sironi et al., TPAMI 2015";
    const EXAMPLE: &'static str = "layers = [\"conv2\"]\nranks = { fraction = 0.2 }\ntune = { epochs = 4 }";

    fn check(&self) -> Result<()> {
        match self.penalty {
            Some(penalty) if !(penalty.is_finite() && penalty >= 0.0) => {
                Err(Error::Invalid(format!("learned-separable: a `penalty` of {penalty}; it is a number from 0")))
            }
            _ => Ok(()),
        }
    }

    fn refuses(&self, layer: &Layer) -> Option<String> {
        unsplit(layer)
    }

    /// With one filter for each tap any plane is exact.
    fn limits(&self, layer: &Layer) -> Vec<usize> {
        let [n, c, kh, kw] = layer.shape;
        vec![(kh * kw).min(n * c)]
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        let [n, c, ..] = layer.shape;
        let maps = c * ranks[0];
        vec![
            layer.along(0, "vertical", [maps, 1], c),
            layer.along(1, "horizontal", [maps, 1], maps),
            layer.across("mix", [n, maps]),
        ]
    }

    fn spectra(&self, _: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        vec![Spectrum::of(&planes(kernel))]
    }

    fn factors(&self, _: &Layer, kernel: &Kernel, ranks: &[usize], _: u64) -> Result<factorization::Factors> {
        let found = separable(kernel, ranks[0], self.penalty.unwrap_or(PENALTY), self.steps.unwrap_or(STEPS))?;
        let residual = found.error.powi(2);
        Ok(factorization::Factors { kernels: vec![found.vertical, found.horizontal, found.mix], residual, note: None })
    }

    fn shorten(&mut self) {
        self.steps = Some(self.steps.unwrap_or(STEPS).min(10));
    }
}

/// `U max(S - threshold, 0) V^T`, the matrix `G` of the least `1/2 ||G - F||^2 + threshold ||G||_*`, for `F = U S V^T`.
pub fn svt(filter: &Matrix, threshold: f64) -> Matrix {
    let mut parts = svd(filter);
    parts.u.column_iter_mut().zip(&parts.s).for_each(|(mut u, s)| u *= (s - threshold).max(0.0));
    parts.u * parts.v.transpose()
}

/// A bank of filters and what each plane takes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    /// `F_j`, `[kh, kw]` each.
    pub filters: Vec<Matrix>,
    /// `A`, `[N C, M]`.
    pub shares: Matrix,
}

impl Bank {
    /// The `M` filters, of any rank, that approximate the planes best: the leading right singular vectors times their singular values.
    ///
    /// # Errors
    /// When `count` is not in `1..=min(N C, kh kw)`, and for a kernel that is not finite.
    pub fn of(kernel: &Kernel, count: usize) -> Result<Self> {
        let [n, c, height, width] = kernel.shape;
        let most = (n * c).min(height * width);
        if !(1..=most).contains(&count) {
            return Err(Error::Invalid(format!(
                "{count} filters for the planes of a kernel {:?}; take 1 to {most}",
                kernel.shape
            )));
        }
        if let Some(value) = kernel.values.iter().find(|value| !value.is_finite()) {
            return Err(Error::Invalid(format!("a kernel holds the weight {value}")));
        }
        let parts = svd(&planes(kernel));
        let filter = |j: usize| Matrix::from_row_slice(height, width, (parts.v.column(j) * parts.s[j]).as_slice());
        Ok(Self { filters: (0..count).map(filter).collect(), shares: parts.u.columns(0, count).into_owned() })
    }

    /// Takes `steps` steps of filters and of shares on the objective, `lambda` being `penalty` times the largest singular value of `X`: at 1 and
    /// above the best filters are zero. Returns the objective before and after each step.
    ///
    /// # Errors
    /// For a penalty that is negative or not finite.
    pub fn learn(&mut self, kernel: &Kernel, penalty: f64, steps: usize) -> Result<Vec<f64>> {
        if !(penalty.is_finite() && penalty >= 0.0) {
            return Err(Error::Invalid(format!("a penalty of {penalty}; it is a number from 0")));
        }
        let planes = planes(kernel);
        let lambda = penalty * curvature(&planes.tr_mul(&planes)).sqrt();
        let mut trace = vec![self.objective(&planes, lambda)];
        for _ in 0..steps {
            self.step(&planes, lambda);
            trace.push(self.objective(&planes, lambda));
        }
        Ok(trace)
    }

    /// The rank of each filter, a singular value counting from `1e-6` of the largest of all filters.
    pub fn ranks(&self) -> Vec<usize> {
        let spectra: Vec<Vec<f64>> = self.filters.iter().map(|filter| svd(filter).s).collect();
        let floor = spectra.iter().flatten().copied().fold(0.0, f64::max) * 1e-6;
        spectra.iter().map(|spectrum| spectrum.iter().filter(|s| **s > floor).count()).collect()
    }

    fn objective(&self, planes: &Matrix, lambda: f64) -> f64 {
        let nuclear: f64 = self.filters.iter().map(|filter| svd(filter).s.iter().sum::<f64>()).sum();
        0.5 * (planes - &self.shares * rows(&self.filters)).norm_squared() + lambda * nuclear
    }

    fn step(&mut self, planes: &Matrix, lambda: f64) {
        let filters = rows(&self.filters);
        let along = curvature(&self.shares.tr_mul(&self.shares));
        if along > 0.0 {
            let moved = &filters - self.shares.tr_mul(&(&self.shares * &filters - planes)) / along;
            for (filter, row) in self.filters.iter_mut().zip(moved.row_iter()) {
                let (height, width) = filter.shape();
                *filter = svt(&Matrix::from_row_iterator(height, width, row.iter().copied()), lambda / along);
            }
        }
        let filters = rows(&self.filters);
        let along = curvature(&(&filters * filters.transpose()));
        if along > 0.0 {
            self.shares -= (&self.shares * &filters - planes) * filters.transpose() / along;
            self.shares.column_iter_mut().for_each(|mut column| column /= column.norm().max(1.0));
        }
    }
}

/// `X`.
fn planes(kernel: &Kernel) -> Matrix {
    let [n, c, height, width] = kernel.shape;
    Matrix::from_row_slice(n * c, height * width, &kernel.values)
}

/// A row for each filter, the columns of the filter fastest.
fn rows(filters: &[Matrix]) -> Matrix {
    let taps: Vec<f64> = filters.iter().flat_map(|filter| filter.transpose().as_slice().to_vec()).collect();
    Matrix::from_row_slice(filters.len(), taps.len() / filters.len(), &taps)
}

/// The largest eigenvalue.
fn curvature(gram: &Matrix) -> f64 {
    eigen(gram.clone()).0.first().copied().unwrap_or(0.0)
}

/// The kernels of a bank of separable filters that all channels share.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// `||W - W~||`.
    pub error: f64,
    /// `C`, the groups of `vertical`.
    pub channels: usize,
    /// `[C M, 1, kh, 1]`, in `C` groups.
    pub vertical: Kernel,
    /// `[C M, 1, 1, kw]`, in `C M` groups.
    pub horizontal: Kernel,
    /// `[N, C M, 1, 1]`.
    pub mix: Kernel,
}

impl Factors {
    /// The kernel that the layers make.
    pub fn dense(&self) -> Kernel {
        let vertical = ungrouped(&self.vertical, self.channels);
        compose(&compose(&vertical, &ungrouped(&self.horizontal, self.horizontal.shape[FILTERS])), &self.mix)
    }
}

/// `count` separable filters for all planes of a kernel, learned by so many steps at this penalty.
///
/// # Errors
/// As [`Bank::of`] and [`Bank::learn`].
pub fn separable(kernel: &Kernel, count: usize, penalty: f64, steps: usize) -> Result<Factors> {
    let mut bank = Bank::of(kernel, count)?;
    bank.learn(kernel, penalty, steps)?;
    let left = bank.filters.iter().zip(bank.ranks()).filter(|(_, rank)| *rank > 0);
    let mut filters: Vec<[DVector<f64>; 2]> = left.map(|(filter, _)| leading(filter)).collect();
    let ([n, c, height, width], planes) = (kernel.shape, planes(kernel));
    while filters.len() < count {
        let most = svd(&(&planes - shares(&planes, &filters) * products(&filters, height * width))).v;
        filters.push(leading(&Matrix::from_row_slice(height, width, most.column(0).as_slice())));
    }
    let side = |length: usize, at: usize| Matrix::from_fn(length, count, |i, j| filters[j][at][i]);
    let tensor = Tensor::of(kernel, &[&[FILTERS, CHANNELS], &[HEIGHT], &[WIDTH]])?;
    let Fitted { factors, error, .. } =
        cp::refine(&tensor, &[shares(&planes, &filters), side(height, 0), side(width, 1)], SWEEPS)?;
    Ok(Factors {
        error: error * tensor.energy().sqrt(),
        channels: c,
        vertical: Kernel::new([c * count, 1, height, 1], factors[1].as_slice().repeat(c)),
        horizontal: Kernel::new([c * count, 1, 1, width], factors[2].as_slice().repeat(c)),
        mix: Kernel::new([n, c * count, 1, 1], factors[0].transpose().as_slice().to_vec()),
    })
}

/// Most sweeps over columns, rows and `A`.
const SWEEPS: usize = 500;

/// `A` of the least squares for these filters.
fn shares(planes: &Matrix, filters: &[[DVector<f64>; 2]]) -> Matrix {
    if filters.is_empty() {
        return Matrix::zeros(planes.nrows(), 0);
    }
    let products = products(filters, planes.ncols());
    solve(&products * products.transpose(), &(&products * planes.transpose())).transpose()
}

/// A row for each filter, a column times a row, the columns of the filter fastest.
fn products(filters: &[[DVector<f64>; 2]], taps: usize) -> Matrix {
    Matrix::from_fn(filters.len(), taps, |j, tap| {
        let [column, row] = &filters[j];
        column[tap / row.len()] * row[tap % row.len()]
    })
}

/// The column and the row whose product is nearest to the filter, the column of length 1.
fn leading(filter: &Matrix) -> [DVector<f64>; 2] {
    let parts = svd(filter);
    [parts.u.column(0).into_owned(), parts.v.column(0) * parts.s[0]]
}

#[cfg(test)]
mod tests {
    use briquette_handmade::run;
    use serde_json::json;

    use crate::proof::{apart, convolutions, outputs, planted};
    use briquette_core::streams::standard_normal;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::golden::{self, near};

    fn decay() -> Kernel {
        golden::kernel([8, 6, 3, 3], golden::DECAY)
    }

    #[test]
    fn the_proximal_step_minimizes_what_defines_it() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut noise = |rows: usize, columns: usize| Matrix::from_fn(rows, columns, |_, _| standard_normal(&mut rng));
        let nuclear = |matrix: &Matrix| svd(matrix).s.iter().sum::<f64>();
        for (rows, columns) in [(3, 3), (5, 5), (2, 4), (4, 1)] {
            let filter = noise(rows, columns);
            for threshold in [0.0, 0.3, 1.0, 100.0] {
                let found = svt(&filter, threshold);
                let objective = |matrix: &Matrix| 0.5 * (matrix - &filter).norm_squared() + threshold * nuclear(matrix);
                for size in [1e-4, 0.01, 0.3] {
                    let other = &found + noise(rows, columns) * size;
                    assert!(objective(&found) <= objective(&other) + 1e-12);
                }
                // What was taken off is the threshold times a subgradient of the nuclear norm.
                let taken = &filter - &found;
                assert!(svd(&taken).s[0] <= threshold + 1e-9 && near(taken.dot(&found), threshold * nuclear(&found), 1e-9));
            }
        }
    }

    #[test]
    fn the_objective_never_rises() {
        for penalty in [0.0, 0.01, 0.2, 0.7] {
            let trace = Bank::of(&decay(), 5).unwrap().learn(&decay(), penalty, 200).unwrap();
            assert!(trace.windows(2).all(|two| two[1] <= two[0] + 1e-12), "{penalty}: {trace:?}");
            assert_eq!(trace.len(), 201);
            // Without a penalty the singular vectors are the best already.
            assert!(if penalty > 0.0 { trace[200] < trace[0] * 0.99 } else { near(trace[200], trace[0], 1e-9) }, "{penalty}");
        }
    }

    #[test]
    fn the_penalty_drives_filters_to_rank_1_and_at_last_to_nothing() {
        let ranks = |penalty: f64| {
            let mut bank = Bank::of(&decay(), 4).unwrap();
            bank.learn(&decay(), penalty, 2000).unwrap();
            bank.ranks()
        };
        assert_eq!(ranks(0.0), [3; 4]);
        let some = ranks(0.05);
        assert!(some.iter().any(|rank| *rank > 1) && some.iter().sum::<usize>() < 12, "{some:?}");
        let all = ranks(0.5);
        assert!(all.iter().all(|rank| *rank <= 1) && all.contains(&1), "{all:?}");
        assert_eq!(ranks(1.01), [0; 4]);
    }

    #[test]
    fn separable_filters_err_little_more_than_the_best_that_tensorly_found() {
        let decayed = [1.556392252, 1.176990998, 0.8572312469, 0.566074029];
        let random = [2.894146565, 2.603409385, 2.286461781, 1.937849085];
        for (text, best) in [(golden::DECAY, decayed), (golden::RAND, random)] {
            let kernel = golden::kernel([8, 6, 3, 3], text);
            for (count, best) in (1..).zip(best) {
                for penalty in [0.2, 2.0] {
                    let factors = separable(&kernel, count, penalty, 300).unwrap();
                    let error = factors.dense().distance(&kernel);
                    assert!(error < best * 1.03, "{count}, {penalty}: {error} and {best}");
                    assert!(error > best * 0.97, "{count}, {penalty}: {error} and {best}");
                }
            }
        }
    }

    #[test]
    fn as_many_filters_as_taps_are_exact() {
        let kernel = Kernel::new([5, 4, 2, 3], (0..120).map(|at| f64::from(at * at % 37) - 15.0).collect());
        let factors = separable(&kernel, 6, 0.2, 100).unwrap();
        assert!(factors.dense().distance(&kernel) < 1e-6 * kernel.energy().sqrt());
        assert_eq!([factors.vertical.shape, factors.horizontal.shape], [[24, 1, 2, 1], [24, 1, 1, 3]]);
        assert_eq!(factors.mix.shape, [5, 24, 1, 1]);
    }

    #[test]
    fn counts_and_penalties_of_no_sense_are_refused() {
        assert!(separable(&decay(), 0, 0.1, 1).is_err() && separable(&decay(), 10, 0.1, 1).is_err());
        assert!(separable(&decay(), 1, -0.1, 1).is_err() && separable(&decay(), 1, f64::NAN, 1).is_err());
        let broken = Kernel::new([1, 1, 1, 2], vec![1.0, f64::NAN]);
        assert!(separable(&broken, 1, 0.1, 1).unwrap_err().to_string().contains("the weight NaN"));
        let zeros = separable(&Kernel::new([2, 2, 3, 3], vec![0.0; 36]), 2, 0.1, 3).unwrap();
        assert_eq!(zeros.dense().energy(), 0.0);
    }

    #[test]
    fn planes_of_two_separable_filters_are_computed_by_two() {
        for net in planted(convolutions([3, 2]), 2) {
            let settings = json!({ "ranks": 2, "break-even": "off", "penalty": 0.01 });
            let grouped = net.nodes[1].op.weight_shape().unwrap()[1] == 2;
            let settings = if grouped { json!({ "ranks": 4, "break-even": "off", "penalty": 0.01 }) } else { settings };
            let chained = run::<LearnedSeparable>(net.deep_clone(), settings).unwrap();
            let off = apart(&outputs(&chained), &outputs(&net));
            assert!(off < 1e-3, "{:?}: {off}", net.nodes[1].op.layer());
        }
    }
}
