//! Sums of Kronecker products.
//!
//! A layer's matrix becomes `sum_t A_t (x) B_t` over a few terms, `A` `[m1, n1]` and `B` `[m2, n2]` with `m1 m2` outputs and `n1 n2` inputs. With
//! the input as a matrix `X` `[n1, n2]` the output is `sum_t A_t X B_t^T`, and a term has `m1 n1 + m2 n2` parameters instead of their product.
//! Rearranged so that the block `(i, j)` of `W` is the row `(i, j)`, the layer's matrix is near a matrix of rank `t` just where it is near such a
//! sum, so that the fit is a truncated singular value decomposition (Van Loan, Pitsianis 1993).
//!
//! Zhou, Wu, Wu, Zhou. "Exploiting Local Structures with the Kronecker Layer in Convolutional Networks". arXiv:1512.09194, 2015.
//! Differs from the paper: `m1 m2` may exceed the outputs and `n1 n2` the inputs, what is too much being left out or padded with zeros, which
//! the fit treats as zeros of `W`; fully connected layers and convolutions by one pixel only, no rectifiers between factors.
//!
//! ```
//! use briquette_core::{builder::Builder, cost::Cost, pass::Pass};
//! use briquette_pruning_sharing::structural::kronecker::Kronecker;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 100);
//! let method: Kronecker = serde_json::from_value(serde_json::json!({ "layers": ["fc"], "terms": 2 })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 2 * (10 * 8 + 10 * 8));
//! ```

use briquette_core::error::Result;
use briquette_kernels::Structure;
use serde::Deserialize;

use crate::structural::rank::low_rank;
use crate::structural::structured::{Replacement, StructuralMatrix};

/// Replaces layers by sums of Kronecker products.
pub type Kronecker = Replacement<Terms>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Terms {
    /// Terms of the sum.
    terms: usize,
    /// Rows and columns of the left factor; by default the roots of outputs and inputs, rounded up. The right one follows.
    left: Option<[usize; 2]>,
}

impl StructuralMatrix for Terms {
    const NAME: &'static str = "kronecker";
    const PAPER: &'static str = "Zhou, Wu, Wu, Zhou, arXiv:1512.09194";
    const EXAMPLE: &'static str = "layers = [\"fc1\"]\nterms = 4\nleft = [15, 28]\ntune = { epochs = 10 }";

    fn structure(&self, [inputs, outputs]: [usize; 2], _: u64) -> Structure {
        let root = |size: usize| (size as f64).sqrt().ceil() as usize;
        let left = self.left.unwrap_or_else(|| [root(outputs), root(inputs)]);
        let right = [outputs.div_ceil(left[0].max(1)), inputs.div_ceil(left[1].max(1))];
        Structure::Kronecker { inputs, outputs, left, right, terms: self.terms }
    }

    fn closest(&self, structure: &Structure, weight: &[f32]) -> Result<Option<Vec<f32>>> {
        let Structure::Kronecker { inputs, outputs, left, right, terms } = *structure else { return Ok(None) };
        let columns = right[0] * right[1];
        let entry = |at: usize| {
            let (block, inside) = (at / columns, at % columns);
            let row = block / left[1] * right[0] + inside / right[1];
            let column = block % left[1] * right[1] + inside % right[1];
            if row < outputs && column < inputs { weight[row * inputs + column] } else { 0.0 }
        };
        let rearranged: Vec<f32> = (0..left[0] * left[1] * columns).map(entry).collect();
        let mut pairs = low_rank(&rearranged, columns, terms);
        pairs.resize(terms, (vec![0.0; left[0] * left[1]], vec![0.0; columns]));
        let (a, b): (Vec<Vec<f32>>, Vec<Vec<f32>>) = pairs.into_iter().unzip();
        Ok(Some([a.concat(), b.concat()].concat()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::structural::structured::proof::{fitted, holds, learns, leaves, net};
    use briquette_handmade::refusal;

    #[test]
    fn replaced_layers_equal_their_dense_forms_here_and_in_the_engine() {
        holds::<Kronecker>(&json!({ "terms": 2 }));
        learns::<Kronecker>(&json!({ "terms": 2 }));
    }

    #[test]
    fn a_kronecker_product_is_fitted_exactly_by_one_term() {
        let (a, b) = ([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]], [[2.0, 1.0, -1.0], [0.25, 0.0, 4.0]]);
        let entry = |i: usize, j: usize| a[i / 2][j / 3] * b[i % 2][j % 3];
        let weight: Vec<f32> = (0..36).map(|at| entry(at / 6, at % 6)).collect();
        let fitted = fitted::<Kronecker>(6, &weight, &json!({ "terms": 1, "left": [3, 2] }));
        assert!(fitted.iter().zip(&weight).all(|(a, b)| (a - b).abs() < 1e-5), "{fitted:?}");
    }

    #[test]
    fn all_terms_give_any_matrix_and_fewer_the_nearest() {
        let left = |terms: usize, steps: usize| leaves::<Kronecker>(&json!({ "terms": terms, "left": [4, 10] }))[steps];
        // 4 * 10 by 3 * 8: full rank takes 24 terms.
        assert!(left(24, 1) < 1e-8, "{}", left(24, 1));
        assert!(left(8, 1) < left(2, 1) && left(2, 1) < 1.0);
        // There is no padding, so that steps improve on the decomposition by no more than it stopped short.
        assert!(left(2, 0) > left(2, 1) - 1e-3, "{} and {}", left(2, 0), left(2, 1));
    }

    #[test]
    fn factors_of_no_sense_are_refused() {
        for wrong in [json!({ "terms": 0 }), json!({ "terms": 1, "left": [0, 3] })] {
            let settings = crate::structural::structured::proof::with(&wrong, json!({ "layers": ["fc1"] }));
            let refused = refusal::<Kronecker>(net(), settings);
            assert!(refused.starts_with("node 'fc1': Kronecker"), "{refused}");
        }
    }
}
