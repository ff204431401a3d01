//! Matrices of low displacement rank.
//!
//! With `Z_f` the shift down by one whose corner entry is `f`, a matrix `M` with `Z_1 M - M Z_-1 = sum_j g_j (J h_j)^T` over `r` terms (`J`
//! reverses a vector) is the Toeplitz-like matrix `M = 1/2 sum_j Z_1(g_j) Z_-1(h_j)`: circulant times skew-circulant, `Z_f(v)` being the
//! `f`-circulant matrix with the first column `v`. Every Toeplitz matrix and its inverse have `r <= 2`; the larger the rank, the nearer to
//! any matrix. A block of `n` by `n` has `2 n r` parameters and takes `O(r n log n)`.
//!
//! With `columns = q` in the place of a rank, the features are images of `p` rows by `q` pixels and the matrix is a two-level Toeplitz
//! matrix, whose entry from pixel `(j, l)` to pixel `(i, k)` depends on `i - j` and `k - l` alone: a convolution in two dimensions, with
//! `(2 p - 1)(2 q - 1)` parameters; `columns = 1` is a plain Toeplitz matrix.
//!
//! Sindhwani, Sainath, Kumar. "Structured Transforms for Small-Footprint Deep Learning". NIPS 2015. arXiv:1510.01722.
//! Differs from the paper: the fit takes the leading `r` singular vectors of the displacement of a trained layer, which is exact for a
//! matrix of that displacement rank, and goes on from there by least squares if `steps` says so. Missing rows of the last block are
//! continued so that they add nothing to the displacement; two-level matrices are fitted exactly, by the means of the entries that share a
//! parameter. Fewer outputs than inputs are the first rows of a square block, more are several blocks. Two levels are the most.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_pruning_sharing::structural::low_displacement::LowDisplacement;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 50);
//! let method: LowDisplacement = serde_json::from_value(serde_json::json!({ "layers": ["fc"], "rank": 3 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 3 * 2 * 64);
//! ```

use briquette_core::error::{Error, Result};
use briquette_kernels::Structure;
use serde::Deserialize;

use crate::structural::rank::low_rank;
use crate::structural::structured::{Replacement, StructuralMatrix};

/// Replaces layers by Toeplitz-like matrices.
pub type LowDisplacement = Replacement<Displacement>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Displacement {
    /// Displacement rank of each block.
    rank: Option<usize>,
    /// Pixels of a row of the images that two-level Toeplitz matrices take their features for.
    columns: Option<usize>,
    /// Most memory for the displacement of a block, which a fit of a `rank` begins with, in MiB.
    #[serde(default = "two_gibi")]
    memory_mib: usize,
}

fn two_gibi() -> usize {
    2048
}

impl StructuralMatrix for Displacement {
    const NAME: &'static str = "low-displacement";
    const PAPER: &'static str = "Sindhwani, Sainath, Kumar, NIPS 2015, arXiv:1510.01722";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\nrank = 4\ntune = { epochs = 10 }";

    fn check(&self) -> Result<()> {
        match (self.rank, self.columns) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            _ => Err(Error::Invalid("low-displacement takes either `rank` or `columns`".into())),
        }
    }

    fn structure(&self, [inputs, outputs]: [usize; 2], _: u64) -> Structure {
        match self.columns {
            Some(columns) => Structure::TwoLevelToeplitz { inputs, outputs, columns },
            None => Structure::ToeplitzLike { inputs, outputs, rank: self.rank.unwrap_or(1) },
        }
    }

    fn closest(&self, structure: &Structure, weight: &[f32]) -> Result<Option<Vec<f32>>> {
        let n = structure.features()[0];
        if let Structure::TwoLevelToeplitz { columns, .. } = *structure {
            return Ok(Some(weight.chunks(n * n).flat_map(|block| means(block, n, columns)).collect()));
        }
        // The displacement in single precision and again in double.
        let bytes = 12 * (n as u128).pow(2);
        if bytes > (self.memory_mib as u128) << 20 {
            let detail = format!(
                "low-displacement: the displacement of {n} by {n} takes {} MiB, `memory-mib` allows {}; raise it, or set `init = \"random\"`",
                bytes.div_ceil(1 << 20),
                self.memory_mib
            );
            return Err(Error::Invalid(detail));
        }
        let rank = self.rank.unwrap_or(1);
        let (mut g, mut h) = (Vec::new(), Vec::new());
        for block in weight.chunks(n * n) {
            let pairs = low_rank(&displacement(block, n), n, rank);
            g.extend(pairs.iter().flat_map(|(u, _)| u));
            h.extend(pairs.iter().flat_map(|(_, v)| v.iter().rev()));
            let missing = (rank - pairs.len()) * n;
            g.extend(vec![0.0; missing]);
            h.extend(vec![0.0; missing]);
        }
        Ok(Some([g, h].concat()))
    }
}

/// The means of the entries of a two-level Toeplitz matrix that share a parameter, from rows `[rows, n]`; 0 where there are none.
fn means(block: &[f32], n: usize, columns: usize) -> Vec<f32> {
    let (rows, wide) = (n / columns, 2 * columns - 1);
    let mut sums = vec![(0.0_f64, 0_u32); (2 * rows - 1) * wide];
    for (at, entry) in block.iter().enumerate() {
        let (to, from) = (at / n, at % n);
        let (down, right) = (rows - 1 + to / columns - from / columns, columns - 1 + to % columns - from % columns);
        let sum = &mut sums[down * wide + right];
        *sum = (sum.0 + f64::from(*entry), sum.1 + 1);
    }
    sums.into_iter().map(|(sum, count)| (sum / f64::from(count.max(1))) as f32).collect()
}

/// `Z_1 M - M Z_-1` for `M` `[n, n]` that begins with these rows; each further row is the one before times `Z_-1^-1`.
fn displacement(rows: &[f32], n: usize) -> Vec<f32> {
    let mut m = rows.to_vec();
    while m.len() < n * n {
        let last = m[m.len() - n..].to_vec();
        m.push(-last[n - 1]);
        m.extend(&last[..n - 1]);
    }
    let entry = |i: usize, j: usize| {
        let turned = if j + 1 < n { m[i * n + j + 1] } else { -m[i * n] };
        m[(i + n - 1) % n * n + j] - turned
    };
    (0..n * n).map(|at| entry(at / n, at % n)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::structural::structured::proof::{fitted, holds, learns, leaves};

    #[test]
    fn replaced_layers_equal_their_dense_forms_here_and_in_the_engine() {
        holds::<LowDisplacement>(&json!({ "rank": 3 }));
        learns::<LowDisplacement>(&json!({ "rank": 2 }));
    }

    #[test]
    fn the_displacement_has_the_rank() {
        let n = 12;
        let weight: Vec<f32> = (0..n * n).map(|i| ((i * i * 5 + 2) % 23) as f32 / 11.0 - 1.0).collect();
        let fitted = fitted::<LowDisplacement>(n, &weight, &json!({ "rank": 3 }));
        let displacement = displacement(&fitted, n);
        let squares = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>();
        let left = |rank: usize| {
            let pairs = low_rank(&displacement, n, rank);
            let near = |at: usize| pairs.iter().map(|(u, v)| u[at / n] * v[at % n]).sum::<f32>();
            squares(&(0..n * n).map(|at| displacement[at] - near(at)).collect::<Vec<_>>()) / squares(&displacement)
        };
        assert!(left(3) < 1e-8 && left(2) > 1e-3, "{} and {}", left(3), left(2));
    }

    #[test]
    fn a_toeplitz_matrix_of_any_shape_is_fitted_exactly_by_rank_two() {
        for (inputs, outputs) in [(9, 9), (9, 5), (6, 15)] {
            let diagonal = |d: usize| ((d * d * 3 + 1) % 13) as f32 / 6.0 - 1.0;
            let weight: Vec<f32> = (0..outputs * inputs).map(|at| diagonal(at / inputs + inputs - at % inputs)).collect();
            let fitted = fitted::<LowDisplacement>(inputs, &weight, &json!({ "rank": 2 }));
            assert!(fitted.iter().zip(&weight).all(|(a, b)| (a - b).abs() < 1e-4), "{inputs} {outputs}: {fitted:?} {weight:?}");
        }
    }

    #[test]
    fn two_levels_hold_learn_and_are_fitted_by_means() {
        // Both layers' inputs, 6 and 80, are images of rows of 2 pixels.
        holds::<LowDisplacement>(&json!({ "columns": 2 }));
        learns::<LowDisplacement>(&json!({ "columns": 2 }));
        let weight: Vec<f32> = (0..12 * 12).map(|i| ((i * i * 5 + 2) % 23) as f32 / 11.0 - 1.0).collect();
        let once = fitted::<LowDisplacement>(12, &weight, &json!({ "columns": 4 }));
        let again = fitted::<LowDisplacement>(12, &once, &json!({ "columns": 4 }));
        let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        assert!(off(&once, &again) < 1e-8, "a matrix of this form is its own fit");
        // The rest is orthogonal to the fit, as that of any projection.
        let rest: f32 = weight.iter().zip(&once).map(|(w, m)| (w - m) * m).sum();
        assert!(rest.abs() < 1e-3, "{rest}");
        let both = briquette_handmade::refusal::<LowDisplacement>(
            crate::structural::structured::proof::net(),
            json!({ "layers": ["fc1"], "rank": 2, "columns": 2 }),
        );
        assert_eq!(both, "low-displacement takes either `rank` or `columns`");
    }

    #[test]
    fn a_displacement_beyond_the_memory_is_refused() {
        let form = |memory_mib| Displacement { rank: Some(1), columns: None, memory_mib };
        let structure = form(1).structure([400, 2], 0);
        // 12 bytes for each of 400 by 400 entries.
        let refused = form(1).closest(&structure, &[0.5; 800]).unwrap_err().to_string();
        let facts = "low-displacement: the displacement of 400 by 400 takes 2 MiB, `memory-mib` allows 1; ";
        assert_eq!(refused, format!("{facts}raise it, or set `init = \"random\"`"));
        assert!(form(2).closest(&structure, &[0.5; 800]).is_ok());
    }

    #[test]
    fn steps_of_least_squares_come_nearer_to_the_weight() {
        let [after, before] = leaves::<LowDisplacement>(&json!({ "rank": 2 }));
        assert!(after < 1.0 && after < before, "{after} and {before}");
    }
}
