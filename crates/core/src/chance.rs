//! Randomness inside a forward pass: dropout, stochastic rounding, stochastic depth and pooling, noise. Every thread that trains has its own generator, which the training
//! seeds anew in every epoch; Burn's would be one for the whole process, so that two trainings in it disturbed each other.

use std::cell::RefCell;

use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::streams::standard_normal;

thread_local! {
    static GENERATOR: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(0));
}

/// Starts this thread's generator anew.
pub fn seed(seed: u64) {
    GENERATOR.with_borrow_mut(|generator| *generator = ChaCha8Rng::seed_from_u64(seed));
}

/// Draws from `[0, 1)` from this thread's generator.
pub fn uniform() -> f64 {
    GENERATOR.with_borrow_mut(RngExt::random)
}

/// Draws `count` of the numbers below `of`, each set as probable as any other; in ascending order.
pub fn some(of: usize, count: usize) -> Vec<usize> {
    // Each number in turn is among those that are still missing with the share that they have of what is left.
    let mut missing = count;
    let taken = |number: &usize| {
        let takes = uniform() * ((of - number) as f64) < missing as f64;
        missing -= usize::from(takes);
        takes
    };
    (0..of).filter(taken).collect()
}

/// Draws from `[0, 1)` for every place of a tensor, without gradients, from this thread's generator: the same on every device.
pub fn uniform_like<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    drawn_like(x, RngExt::random)
}

/// Draws from N(0, 1), as [`uniform_like`].
pub fn normal_like<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    drawn_like(x, |generator| standard_normal(generator) as f32)
}

fn drawn_like<const D: usize>(x: &Tensor<D>, mut draw: impl FnMut(&mut ChaCha8Rng) -> f32) -> Tensor<D> {
    let shape = x.shape();
    let draws = GENERATOR.with_borrow_mut(|generator| (0..shape.num_elements()).map(|_| draw(generator)).collect::<Vec<_>>());
    Tensor::from_data(TensorData::new(draws, shape), &x.device())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::values::floats;

    #[test]
    fn normal_draws_have_the_moments_of_a_standard_normal_and_follow_the_seed() {
        let drawn = |count: usize| {
            seed(5);
            floats(normal_like(&Tensor::<1>::zeros([count], &Device::flex())))
        };
        let draws = drawn(40_001);
        let mean = |power: i32| draws.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / draws.len() as f64;
        // Five deviations of each mean.
        let near = |found: f64, expected: f64, deviation: f64| (found - expected).abs() < 5.0 * deviation / 200.0;
        assert!(near(mean(1), 0.0, 1.0) && near(mean(2), 1.0, 2_f64.sqrt()) && near(mean(4), 3.0, 96_f64.sqrt()));
        let pairs = draws.chunks_exact(2).map(|pair| f64::from(pair[0] * pair[1])).sum::<f64>() / 20_000.0;
        assert!(near(pairs, 0.0, 2_f64.sqrt()));
        assert_eq!(drawn(40_001), draws);
        assert_eq!(drawn(7), draws[..7]);
    }
}
