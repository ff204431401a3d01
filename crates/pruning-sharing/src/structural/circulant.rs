//! Circulant matrices.
//!
//! A layer `W x` of `d` inputs becomes `C(r) D x`: `C(r)` the circulant matrix with the first column `r`, `D` a diagonal of random signs. The
//! product is a circular convolution, `C(r) v = F^-1 (F r . F v)` with the discrete Fourier transform `F`, and so are the gradients:
//! `dr = F^-1 (conj(F v) . F dy)` and `dv = F^-1 (conj(F r) . F dy)`. Of `k < d` outputs the first `k` entries count; for `k > d` further
//! circulant matrices, each with its signs, stand below. Storage is `d ceil(k / d)` instead of `d k`, time `O(d log d)` for each block.
//!
//! Cheng, Yu, Feris, Kumar, Choudhary, Chang. "An Exploration of Parameter Redundancy in Deep Networks with Circulant Projections". ICCV 2015.
//! arXiv:1502.03436.
//! Differs from the paper: besides training from scratch, `r` can begin as the least-squares fit to a trained layer, the mean over each
//! circular diagonal of `W D`; the input is not reshaped, for any size has its transform.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_pruning_sharing::structural::circulant::Circulant;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 100);
//! let method: Circulant = serde_json::from_value(serde_json::json!({ "layers": ["fc"] })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 2 * 64, "instead of 64 * 100");
//! ```

use briquette_core::error::Result;
use briquette_kernels::Structure;
use serde::Deserialize;

use crate::structural::structured::{Replacement, StructuralMatrix, descent};

/// Replaces layers by blocks of circulant matrices.
pub type Circulant = Replacement<Blocks>;

/// The form of circulant matrices, with no settings of its own.
#[derive(Debug, Deserialize)]
pub struct Blocks {}

impl StructuralMatrix for Blocks {
    const NAME: &'static str = "circulant";
    const PAPER: &'static str = "Cheng, Yu, Feris, Kumar, Choudhary, Chang, ICCV 2015, arXiv:1502.03436";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\ntune = { epochs = 10 }";

    fn structure(&self, [inputs, outputs]: [usize; 2], seed: u64) -> Structure {
        Structure::Circulant { inputs, outputs, seed }
    }

    fn closest(&self, structure: &Structure, weight: &[f32]) -> Result<Option<Vec<f32>>> {
        let [inputs, outputs] = structure.features();
        // At r = 0 the gradient sums -2 W D over each diagonal, of which every row of a block holds one entry.
        let (_, mut r) = descent(structure, &vec![0.0; structure.count()], &mut |row, column| weight[row * inputs + column])?;
        for (block, r) in r.chunks_exact_mut(inputs).enumerate() {
            let rows = inputs.min(outputs - block * inputs) as f32;
            r.iter_mut().for_each(|r| *r /= -2.0 * rows);
        }
        Ok(Some(r))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::structural::structured::proof::{fitted, holds, learns, leaves};

    #[test]
    fn replaced_layers_equal_their_dense_forms_here_and_in_the_engine() {
        holds::<Circulant>(&json!({}));
        learns::<Circulant>(&json!({}));
    }

    #[test]
    fn a_circulant_matrix_times_the_signs_is_fitted_exactly() {
        // Fewer and more outputs than inputs; the signs show in the dense form of any such matrix.
        for (inputs, outputs) in [(6, 4), (6, 6), (5, 13)] {
            let noise: Vec<f32> = (0..inputs * outputs).map(|i| ((i * i * 7 + 3) % 17) as f32 / 8.0 - 1.0).collect();
            let once = fitted::<Circulant>(inputs, &noise, &json!({}));
            let twice = fitted::<Circulant>(inputs, &once, &json!({}));
            assert!(once.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-5));
            for (at, w) in once.iter().enumerate() {
                let (block, i, j) = (at / inputs / inputs, at / inputs % inputs, at % inputs);
                let next = (block * inputs + (i + 1) % inputs) * inputs + (j + 1) % inputs;
                assert!(once.get(next).is_none_or(|next| (w.abs() - next.abs()).abs() < 1e-5), "{inputs} {outputs} {at}");
            }
        }
    }

    #[test]
    fn no_step_improves_on_the_closed_form() {
        let [after, before] = leaves::<Circulant>(&json!({}));
        assert!(before < 1.0 && after > before - 1e-6, "{after} and {before}");
    }
}
