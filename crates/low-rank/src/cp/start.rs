//! Where fits begin.

use briquette_core::streams::{standard_normal, stream};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::model::Model;
use super::tensor::Tensor;
use crate::algebra::{Matrix, eigen};

/// Start 0 takes the leading singular vectors of the unfoldings, as far as there are, the others and what is missing normal numbers. The
/// pivot's factor is left to the first update.
pub(super) fn start(tensor: &Tensor, rank: usize, number: usize, seed: u64) -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(stream(seed, &format!("cp start {number}")));
    let pivot = tensor.largest();
    let factor = |(mode, dim): (usize, &usize)| {
        let mut factor = Matrix::from_fn(rank, *dim, |_, _| standard_normal(&mut rng));
        if number == 0 && mode != pivot {
            let (_, vectors) = eigen(tensor.gram(mode));
            let known = rank.min(*dim);
            factor.rows_mut(0, known).copy_from(&vectors.columns(0, known).transpose());
        }
        factor
    };
    let mut model = Model::new(tensor.shape().iter().enumerate().map(factor).collect());
    model.weights.fill(0.0);
    model
}
