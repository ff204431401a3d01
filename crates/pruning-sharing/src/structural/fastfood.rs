//! Adaptive Fastfood.
//!
//! A layer of `d` inputs becomes `S H G P H B x`: `H` the Walsh-Hadamard transform over `n`, the next power of two, divided by `sqrt n`, `S`,
//! `G` and `B` diagonals, `P` a random permutation. The three diagonals learn; for more than `n` outputs further blocks stand below. Storage
//! is `O(n)` and time `O(n log d)` for `n` outputs, instead of `O(n d)`.
//!
//! Yang, Moczulski, Denil, de Freitas, Smola, Song, Wang. "Deep Fried Convnets". ICCV 2015. arXiv:1412.7149; after Le, Sarlos, Smola.
//! "Fastfood". ICML 2013.
//! Differs from the paper: the layer's own non-linearity follows, no cosines of random features; besides training from scratch the
//! diagonals can be fitted to a trained layer; entries that meet only padding are not stored.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_pruning_sharing::structural::fastfood::Fastfood;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 100);
//! let method: Fastfood = serde_json::from_value(serde_json::json!({ "layers": ["fc"], "init": "random" })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 100 + 2 * 64 + 2 * 64);
//! ```

use briquette_kernels::Structure;
use serde::Deserialize;

use crate::structural::structured::{Replacement, StructuralMatrix};

/// Replaces layers by learned diagonals between Walsh-Hadamard transforms.
pub type Fastfood = Replacement<Diagonals>;

/// The form of Fastfood matrices, with no settings of its own.
#[derive(Debug, Deserialize)]
pub struct Diagonals {}

impl StructuralMatrix for Diagonals {
    const NAME: &'static str = "fastfood";
    const PAPER: &'static str = "Yang, Moczulski, Denil, de Freitas, Smola, Song, Wang, ICCV 2015, arXiv:1412.7149";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\ninit = \"random\"\ntune = { epochs = 10 }";

    fn structure(&self, [inputs, outputs]: [usize; 2], seed: u64) -> Structure {
        Structure::Fastfood { inputs, outputs, seed }
    }

    /// As in the original Fastfood: `S` of one size, `G` normal, `B` signs.
    fn draw(&self, structure: &Structure, normal: &mut dyn FnMut() -> f32) -> Vec<f32> {
        let counts = structure.parameters().into_iter().map(|parameter| parameter.count());
        let mut value = |which: usize| match which {
            0 => 1.0,
            1 => normal(),
            _ => 1.0_f32.copysign(normal()),
        };
        counts.enumerate().flat_map(|(which, count)| (0..count).map(|_| value(which)).collect::<Vec<_>>()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::structural::structured::proof::{holds, learns, leaves};

    #[test]
    fn replaced_layers_equal_their_dense_forms_here_and_in_the_engine() {
        holds::<Fastfood>(&json!({}));
    }

    #[test]
    fn all_three_diagonals_learn() {
        learns::<Fastfood>(&json!({}));
    }

    #[test]
    fn the_fit_comes_nearer_to_the_weight() {
        let [after, before] = leaves::<Fastfood>(&json!({}));
        assert!(after < 0.9 && after < 0.6 * before, "{after} and {before}");
    }
}
