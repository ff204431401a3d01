//! ACDC: diagonals between cosine transforms.
//!
//! A layer becomes `A_K C^-1 D_K C P_K ... A_1 C^-1 D_1 C x`: `A_k` and `D_k` learned diagonals, `C` the orthonormal discrete cosine transform
//! over `n`, the larger of inputs and outputs, `P_k` a random permutation between factors. With enough factors such a product comes near any
//! matrix; it has `2 K n` parameters and takes `O(K n log n)`. The diagonals begin at `N(1, sigma^2)`, near the identity, so that deep
//! products train.
//!
//! Moczulski, Denil, Appleyard, de Freitas. "ACDC: A Structured Efficient Linear Layer". ICLR 2016. arXiv:1511.05946.
//! Differs from the paper: no rectifiers and no biases stand between the factors, so that the layer stays linear and can be fitted to a
//! trained one; the common scale of the diagonals `A` is chosen so that the matrix begins with the size of the weight.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_pruning_sharing::structural::acdc::Acdc;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 50);
//! let method: Acdc = serde_json::from_value(serde_json::json!({ "layers": ["fc"], "depth": 3 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 3 * 2 * 64);
//! ```

use briquette_core::error::{Error, Result};
use briquette_kernels::Structure;
use serde::Deserialize;

use crate::structural::structured::{Replacement, StructuralMatrix};

/// Replaces layers by learned diagonals between cosine transforms.
pub type Acdc = Replacement<Cascade>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cascade {
    /// Number of factors `A C^-1 D C`.
    depth: usize,
    /// Deviation of the diagonals from 1 at the beginning.
    #[serde(default = "sigma")]
    sigma: f32,
}

fn sigma() -> f32 {
    0.1
}

impl StructuralMatrix for Cascade {
    const NAME: &'static str = "acdc";
    const PAPER: &'static str = "Moczulski, Denil, Appleyard, de Freitas, ICLR 2016, arXiv:1511.05946";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\ndepth = 4\ninit = \"random\"\ntune = { epochs = 10 }";

    fn check(&self) -> Result<()> {
        if self.sigma.is_finite() {
            Ok(())
        } else {
            Err(Error::Invalid(format!("acdc: sigma must be finite, is {}", self.sigma)))
        }
    }

    fn structure(&self, [inputs, outputs]: [usize; 2], seed: u64) -> Structure {
        Structure::Acdc { inputs, outputs, layers: self.depth, seed }
    }

    fn draw(&self, structure: &Structure, normal: &mut dyn FnMut() -> f32) -> Vec<f32> {
        (0..structure.count()).map(|_| 1.0 + self.sigma * normal()).collect()
    }

    fn degree(&self, _: &Structure) -> usize {
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::structural::structured::proof::{holds, learns, leaves, net};
    use briquette_handmade::refusal;

    #[test]
    fn replaced_layers_equal_their_dense_forms_here_and_in_the_engine() {
        holds::<Acdc>(&json!({ "depth": 1 }));
        holds::<Acdc>(&json!({ "depth": 4 }));
        learns::<Acdc>(&json!({ "depth": 4 }));
    }

    #[test]
    fn more_factors_come_nearer_to_the_weight() {
        let left = |depth: usize| leaves::<Acdc>(&json!({ "depth": depth }))[0];
        let (shallow, deep) = (left(1), left(6));
        assert!(shallow < 1.0 && deep < 0.8 * shallow, "{deep} and {shallow}");
    }

    #[test]
    fn a_depth_of_no_sense_is_refused() {
        let none = refusal::<Acdc>(net(), json!({ "layers": ["fc1"], "depth": 0 }));
        assert!(none.starts_with("node 'fc1': ") && none.ends_with("at least one layer, rank or term"), "{none}");
    }
}
