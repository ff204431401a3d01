//! Matrices of low displacement rank.
//!
//! With `Z_f` the shift down by one whose corner entry is `f`, a matrix `M` with `Z_1 M - M Z_-1 = sum_j g_j (J h_j)^T` over `r` terms (`J`
//! reverses a vector) is the Toeplitz-like matrix `M = 1/2 sum_j Z_1(g_j) Z_-1(h_j)`: circulant times skew-circulant, `Z_f(v)` being the
//! `f`-circulant matrix with the first column `v`. Every Toeplitz matrix and its inverse have `r <= 2`; the larger the rank, the nearer to
//! any matrix. A block of `n` by `n` has `2 n r` parameters and takes `O(r n log n)`.
//!
//! Sindhwani, Sainath, Kumar. "Structured Transforms for Small-Footprint Deep Learning". NIPS 2015. arXiv:1510.01722.
//! Differs from the paper: the fit takes the leading `r` singular vectors of the displacement of a trained layer, which is exact for a
//! matrix of that displacement rank, and goes on from there by least squares if `steps` says so. Missing rows of the last block are
//! continued so that they add nothing to the displacement. Fewer outputs than inputs are the first rows of a square block, more are
//! several blocks. Multi-level Toeplitz matrices are left out: convolutions are.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_pruning_sharing::low_displacement::LowDisplacement;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 50);
//! let method: LowDisplacement = serde_json::from_value(serde_json::json!({ "layers": ["fc"], "rank": 3 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 3 * 2 * 64);
//! ```

use briquette_core::error::Result;
use briquette_kernels::Structure;
use serde::Deserialize;

use crate::parts::rank::low_rank;
use crate::parts::structured::{Form, Replacement};

/// Replaces layers by Toeplitz-like matrices.
pub type LowDisplacement = Replacement<Displacement>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
pub struct Displacement {
    /// Displacement rank of each block.
    rank: usize,
}

impl Form for Displacement {
    const NAME: &'static str = "low-displacement";
    const PAPER: &'static str = "Sindhwani, Sainath, Kumar, NIPS 2015, arXiv:1510.01722";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\nrank = 4\ntune = { epochs = 10 }";

    fn structure(&self, [inputs, outputs]: [usize; 2], _: u64) -> Structure {
        Structure::ToeplitzLike { inputs, outputs, rank: self.rank }
    }

    fn closest(&self, structure: &Structure, weight: &[f32]) -> Result<Option<Vec<f32>>> {
        let n = structure.features()[0];
        let (mut g, mut h) = (Vec::new(), Vec::new());
        for block in weight.chunks(n * n) {
            let pairs = low_rank(&displacement(block, n), n, self.rank);
            g.extend(pairs.iter().flat_map(|(u, _)| u));
            h.extend(pairs.iter().flat_map(|(_, v)| v.iter().rev()));
            let missing = (self.rank - pairs.len()) * n;
            g.extend(vec![0.0; missing]);
            h.extend(vec![0.0; missing]);
        }
        Ok(Some([g, h].concat()))
    }
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
    use crate::parts::structured::proof::{fitted, holds, learns, leaves};

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
    fn steps_of_least_squares_come_nearer_to_the_weight() {
        let [after, before] = leaves::<LowDisplacement>(&json!({ "rank": 2 }));
        assert!(after < 1.0 && after < before, "{after} and {before}");
    }
}
