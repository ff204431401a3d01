//! The rank that the data warrant: the global solution of empirical variational Bayes matrix factorization.
//!
//! A matrix `Y`, `[L, M]` with `L <= M`, is taken for `B A^T` and noise of variance `sigma^2`, with Gaussian priors on the columns of `A` and `B`
//! whose variances and `sigma^2` are estimated, too. Of the singular values `g_h` of `Y` those count that exceed `sqrt(M sigma^2 x*)`, where
//! `x* = (1 + t*)(1 + alpha / t*)`, `alpha = L / M`, and `t*` is the root of `Phi(t) + Phi(t / alpha)`, `Phi(z) = ln(1 + z) / z - 1/2`. They
//! shrink to `d_h = g_h t_h / x_h` with `x_h = g_h^2 / (M sigma^2)` and `t_h` the larger root of `x_h = (1 + t)(1 + alpha / t)`.
//!
//! The free energy as a function of `sigma^2` is, up to a constant,
//!
//! `F = L ln sigma^2 + ||Y||^2 / (M sigma^2) + sum over h of min(0, ln(1 + t_h) + alpha ln(1 + t_h / alpha) - t_h)`,
//!
//! in which singular values of zero and those left out of a truncated spectrum need no case of their own. With `u = ln sigma^2` its slope is
//! `L - ||Y||^2 / (M sigma^2) + sum of t_h` over what counts. `F` may have several minima, the more the squarer `Y`: its slope is followed
//! on a logarithmic grid, each rise through zero is found by bisection, and the lowest minimum wins.
//!
//! Nakajima, Sugiyama, Babacan, Tomioka. "Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization". JMLR 14, 2013;
//! Nakajima, Tomioka, Sugiyama, Babacan. "Condition for Perfect Dimensionality Recovery by Variational Bayesian PCA". JMLR 16, 2015.
//! Differs from the usual implementation: `t*` is exact instead of `2.5129 sqrt(alpha)`, and the search over `sigma^2` is global and relative to the
//! scale of `Y`.

/// What [`evbmf`] finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Evbmf {
    /// The number of singular values that count.
    pub rank: usize,
    /// The variance of the noise.
    pub sigma2: f64,
    /// What a singular value must exceed to count.
    pub threshold: f64,
    /// The shrunk singular values, falling, `rank` of them.
    pub posterior: Vec<f64>,
}

/// Steps of the logarithmic grid; 27 powers of e, the widest range there is, are then cut into pieces of 0.7 %.
const STEPS: usize = 4000;
/// The smallest variance looked at, as a share of the mean square; a matrix without noise has none.
const LEAST: f64 = 1e-12;

/// The factorization of a matrix of this `shape`, in either order, from its `singular` values, all or the largest, and `energy = ||Y||^2`. All
/// must be finite. A matrix of zeros has rank 0, variance 0.
pub fn evbmf(singular: &[f64], shape: [usize; 2], energy: f64) -> Evbmf {
    let mut singular = singular.to_vec();
    singular.sort_by(|a, b| b.total_cmp(a));
    let (l, m) = (shape[0].min(shape[1]) as f64, shape[0].max(shape[1]) as f64);
    let energy = energy.max(singular.iter().map(|g| g * g).sum());
    let mean = energy / (l * m);
    if !mean.is_normal() {
        return Evbmf { rank: 0, sigma2: 0.0, threshold: 0.0, posterior: Vec::new() };
    }
    let alpha = l / m;
    let squares = singular.iter().map(|g| g * g / (m * mean)).collect();
    let free = FreeEnergy { l, alpha, least: least(alpha), squares };
    let sigma2 = free.minimum() * mean;
    let threshold = (m * sigma2 * free.least).sqrt();
    let shrunk = |g: &f64| {
        let x = g * g / (m * sigma2);
        g * root(x, alpha) / x
    };
    let posterior: Vec<f64> = singular.iter().take_while(|g| **g > threshold).map(shrunk).collect();
    Evbmf { rank: posterior.len(), sigma2, threshold, posterior }
}

/// `x*`, the least `g^2 / (M sigma^2)` that counts.
fn least(alpha: f64) -> f64 {
    let phi = |z: f64| z.ln_1p() / z - 0.5;
    // Phi falls and is zero at 2.5129, so that the sum is positive at the first bound and negative at the second.
    let t = crossing(2.5 * alpha, 2.6, |t| phi(t) + phi(t / alpha) <= 0.0);
    (1.0 + t) * (1.0 + alpha / t)
}

/// The larger root `t` of `x = (1 + t)(1 + alpha / t)`.
fn root(x: f64, alpha: f64) -> f64 {
    let twice = x - 1.0 - alpha;
    (twice + (twice * twice - 4.0 * alpha).max(0.0).sqrt()) / 2.0
}

/// Where `after` becomes true between two positive numbers, to rounding.
fn crossing(mut low: f64, mut high: f64, after: impl Fn(f64) -> bool) -> f64 {
    loop {
        let middle = (low * high).sqrt();
        if middle <= low || middle >= high {
            return high;
        }
        if after(middle) { high = middle } else { low = middle }
    }
}

/// `F` of variances `s` in units of the mean square of `Y`, where `||Y||^2 / (M s)` is `L / s`.
struct FreeEnergy {
    l: f64,
    alpha: f64,
    /// `x*`.
    least: f64,
    /// `x_h` at `s = 1`, falling.
    squares: Vec<f64>,
}

impl FreeEnergy {
    /// The `t_h` of what counts.
    fn roots(&self, s: f64) -> impl Iterator<Item = f64> {
        self.squares.iter().map(move |square| square / s).take_while(|x| *x > self.least).map(|x| root(x, self.alpha))
    }

    fn at(&self, s: f64) -> f64 {
        let gain = |t: f64| t.ln_1p() + self.alpha * (t / self.alpha).ln_1p() - t;
        self.l * (s.ln() + 1.0 / s) + self.roots(s).map(gain).sum::<f64>()
    }

    /// The derivative by `ln s`.
    fn slope(&self, s: f64) -> f64 {
        self.l * (1.0 - 1.0 / s) + self.roots(s).sum::<f64>()
    }

    /// The least variance that the global minimum may have: beyond `L / (1 + alpha)` singular values nothing counts.
    fn lower(&self) -> f64 {
        let most = (((self.l / (1.0 + self.alpha)).ceil() as usize).max(1) - 1).min(self.squares.len());
        let next = self.squares.get(most).map_or(0.0, |square| square / self.least);
        let rest = self.l - self.squares[..most].iter().sum::<f64>();
        next.max(rest / (self.l - most as f64)).clamp(LEAST, 1.0)
    }

    /// The variance of the lowest minimum.
    fn minimum(&self) -> f64 {
        let lower = self.lower();
        let at = |step: usize| lower.powf(1.0 - step as f64 / STEPS as f64);
        let slopes: Vec<bool> = (0..=STEPS).map(|step| self.slope(at(step)) >= 0.0).collect();
        let rises = (0..STEPS).filter(|step| !slopes[*step] && slopes[step + 1]);
        let minima = rises.map(|step| crossing(at(step), at(step + 1), |s| self.slope(s) >= 0.0));
        // The slope is never negative at the mean square, so that a lower end that is no minimum has one above it.
        let ends = slopes[0].then_some(lower);
        ends.into_iter().chain(minima).min_by(|a, b| self.at(*a).total_cmp(&self.at(*b))).unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::algebra::{Matrix, spectrum};

    /// Lines of name, shape, rank, sigma^2, threshold (0 where none is given) and singular values, from a grid search in double precision.
    const GOLDENS: &str = include_str!("evbmf/goldens.txt");

    struct Golden {
        name: &'static str,
        shape: [usize; 2],
        rank: usize,
        sigma2: f64,
        threshold: f64,
        singular: Vec<f64>,
    }

    fn goldens() -> Vec<Golden> {
        let read = |line: &'static str| {
            let (name, numbers) = line.split_once(' ').unwrap();
            let numbers: Vec<f64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
            let shape = [numbers[0] as usize, numbers[1] as usize];
            let (rank, singular) = (numbers[2] as usize, numbers[5..].to_vec());
            Golden { name, shape, rank, sigma2: numbers[3], threshold: numbers[4], singular }
        };
        GOLDENS.lines().map(read).collect()
    }

    fn of(golden: &Golden) -> Evbmf {
        evbmf(&golden.singular, golden.shape, golden.singular.iter().map(|g| g * g).sum())
    }

    fn near(a: f64, b: f64, tolerance: f64) -> bool {
        (a - b).abs() <= tolerance * b.abs()
    }

    #[test]
    fn the_threshold_is_that_of_the_exact_root() {
        let table = [
            (1.0, 4.910814965),
            (0.75, 4.271868694),
            (0.5, 3.563122962),
            (0.25, 2.719054606),
            (1.0 / 9.0, 2.103858873),
            (0.05, 1.728263426),
            (0.01, 1.328227529),
        ];
        assert!(table.into_iter().all(|(alpha, x)| near(least(alpha), x, 1e-9)));
        // The free energy of a component vanishes there, which makes F continuous.
        let (alpha, t) = (0.25, root(least(0.25), 0.25));
        assert!((f64::ln_1p(t) + alpha * f64::ln_1p(t / alpha) - t).abs() < 1e-12);
    }

    #[test]
    fn spectra_have_the_ranks_and_variances_of_a_global_search() {
        for golden in goldens() {
            let found = of(&golden);
            assert_eq!(found.rank, golden.rank, "{}", golden.name);
            assert!(near(found.sigma2, golden.sigma2, 2e-7), "{}: {} and {}", golden.name, found.sigma2, golden.sigma2);
            let threshold = golden.threshold == 0.0 || near(found.threshold, golden.threshold, 1e-7);
            assert!(threshold, "{}: {} and {}", golden.name, found.threshold, golden.threshold);
        }
    }

    #[test]
    fn what_counts_shrinks_to_the_posterior() {
        let posterior = |name: &str| of(goldens().iter().find(|golden| golden.name == name).unwrap()).posterior;
        let agree = |name: &str, values: &[f64]| posterior(name).iter().zip(values).all(|(a, b)| near(*a, *b, 1e-6));
        assert!(agree("m01", &[12.078138, 7.8522005, 5.5120472]));
        assert!(agree("m03", &[14.367692, 8.6460439]));
        assert!(agree("m06", &[59.885121, 46.766662, 26.919354]));
        assert!(agree("m11", &[27.441608, 17.13789, 15.511331, 13.090015, 10.47514]));
    }

    #[test]
    fn the_solution_scales_with_the_matrix_and_transposes_with_it() {
        for golden in goldens() {
            let (one, [rows, columns]) = (of(&golden), golden.shape);
            for scale in [1e-3, 1e3, 1e-30] {
                let scaled: Vec<f64> = golden.singular.iter().map(|g| g * scale).collect();
                let other = evbmf(&scaled, [columns, rows], scaled.iter().map(|g| g * g).sum());
                assert_eq!(other.rank, one.rank, "{} by {scale}", golden.name);
                assert!(near(other.sigma2, one.sigma2 * scale * scale, 1e-9), "{} by {scale}", golden.name);
            }
        }
    }

    #[test]
    fn a_truncated_spectrum_and_the_energy_say_the_same_as_all_of_it() {
        for golden in goldens() {
            let energy = golden.singular.iter().map(|g| g * g).sum();
            let all = of(&golden);
            // What counts and one more; of kernels without noise nothing is left over.
            let short = evbmf(&golden.singular[..(all.rank + 1).max(golden.singular.len() * 9 / 10)], golden.shape, energy);
            assert_eq!(short.rank, all.rank, "{}", golden.name);
            assert!(near(short.sigma2, all.sigma2, 1e-9), "{}", golden.name);
        }
    }

    #[test]
    fn zeros_have_rank_zero() {
        for shape in [[6, 40], [1, 1], [0, 4]] {
            let found = evbmf(&vec![0.0; shape[0]], shape, 0.0);
            assert_eq!(found, Evbmf { rank: 0, sigma2: 0.0, threshold: 0.0, posterior: vec![] });
        }
    }

    /// Columns that are orthonormal, from noise.
    fn orthonormal(rows: usize, columns: usize, rng: &mut ChaCha8Rng) -> Matrix {
        Matrix::from_fn(rows, columns, |_, _| briquette_core::streams::standard_normal(rng)).qr().q()
    }

    #[test]
    fn planted_ranks_are_recovered_in_all_of_a_hundred_matrices() {
        let mut rng = ChaCha8Rng::seed_from_u64(1234);
        for case in 0..100 {
            let l = rng.random_range(10..=60);
            let m = rng.random_range(l..=200);
            let rank = rng.random_range(0..=l / 4);
            let sigma = 10.0_f64.powf(rng.random_range(-1.0..1.0));
            let edge = sigma * (m as f64 * least(l as f64 / m as f64)).sqrt();
            let (mut u, v) = (orthonormal(l, rank, &mut rng), orthonormal(m, rank, &mut rng));
            u.column_iter_mut().for_each(|mut column| column.scale_mut(edge * rng.random_range(1.5..4.0)));
            let noise = Matrix::from_fn(l, m, |_, _| sigma * briquette_core::streams::standard_normal(&mut rng));
            let y = noise + u * v.transpose();
            let found = evbmf(&spectrum(&y), [l, m], y.norm_squared());
            assert_eq!(found.rank, rank, "case {case}: {l} by {m}");
            // A hundred draws, the fewest there are, have a mean square that is off by 14 % as a rule.
            assert!(near(found.sigma2, sigma * sigma, 0.4), "case {case}: {} and {}", found.sigma2, sigma * sigma);
        }
    }
}
