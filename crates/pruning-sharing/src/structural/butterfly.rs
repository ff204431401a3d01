//! Butterfly matrices.
//!
//! A layer of `d` inputs becomes the product of `log2 n` sparse factors, `n` the next power of two: factor `l` mixes the features `i` and
//! `i + 2^l` by a learned matrix of two by two for each pair. All fast transforms of the kind of Cooley and Tukey are such products, among them
//! that of Hadamard, and in complex numbers, behind a permutation, that of Fourier. A block has `2 n log2 n` parameters and takes as many
//! multiplications; for more than `n` outputs further blocks stand below.
//!
//! Dao, Gu, Eichhorn, Rudra, Re. "Learning Fast Algorithms for Linear Transforms Using Butterfly Factorizations". ICML 2019. arXiv:1903.05895.
//! Differs from the paper: real factors, one product for each block, and no permutation, which here would only renumber the features of
//! the layers around.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_pruning_sharing::structural::butterfly::Butterfly;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 50);
//! let method: Butterfly = serde_json::from_value(serde_json::json!({ "layers": ["fc"], "init": "random" })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 2 * 64 * 6);
//! ```

use briquette_kernels::Structure;
use serde::Deserialize;

use crate::structural::structured::{Replacement, StructuralMatrix};

/// Replaces layers by products of butterfly factors.
pub type Butterfly = Replacement<Factors>;

/// The form of butterfly matrices, with no settings of its own.
#[derive(Debug, Deserialize)]
pub struct Factors {}

impl StructuralMatrix for Factors {
    const NAME: &'static str = "butterfly";
    const PAPER: &'static str = "Dao, Gu, Eichhorn, Rudra, Re, ICML 2019, arXiv:1903.05895";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\ninit = \"random\"\ntune = { epochs = 10 }";

    fn structure(&self, [inputs, outputs]: [usize; 2], _: u64) -> Structure {
        Structure::Butterfly { inputs, outputs }
    }

    fn degree(&self, structure: &Structure) -> usize {
        structure.features()[0].next_power_of_two().max(2).ilog2() as usize
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::structural::structured::proof::{fitted, holds, learns, leaves};

    #[test]
    fn replaced_layers_equal_their_dense_forms_here_and_in_the_engine() {
        holds::<Butterfly>(&json!({}));
        learns::<Butterfly>(&json!({}));
    }

    #[test]
    fn the_fit_comes_nearer_to_the_weight() {
        let [after, before] = leaves::<Butterfly>(&json!({}));
        assert!(after < 0.7 && after < 0.5 * before, "{after} and {before}");
    }

    #[test]
    fn the_fit_finds_the_hadamard_matrix_of_four() {
        let weight: Vec<f32> =
            (0..16_u32).map(|at| if ((at / 4) & (at % 4)).count_ones() % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let fitted = fitted::<Butterfly>(4, &weight, &json!({ "steps": 400 }));
        assert!(fitted.iter().zip(&weight).all(|(a, b)| (a - b).abs() < 1e-2), "{fitted:?}");
    }
}
