//! Stochastic gradient Langevin dynamics.

use std::collections::HashSet;

use briquette_core::chance::normal_like;
use briquette_core::net::Net;
use briquette_core::training::{Choose, Descent, Optimizer, Projection, Recipe, Schedule};
use briquette_core::values::plain;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// A Markov chain of a module's parameters, whose states come to be samples of their posterior as its steps become short.
///
/// A step is one of gradient descent on the mean loss of a batch, at the rate `epsilon N / 2` and with the decay `lambda / N` of all parameters, with draws
/// from `N(0, epsilon)` behind it, which come from [`chance`](briquette_core::chance). Parameters that have no gradient stay.
///
/// Welling, Teh. "Bayesian Learning via Stochastic Gradient Langevin Dynamics". ICML 2011.
#[derive(Debug, Clone)]
pub struct Langevin {
    recipe: Recipe,
    descent: Descent,
    noise: Noise,
}

impl Langevin {
    /// A chain with steps of the size `epsilon`, for `samples` training samples, where each parameter has the prior `N(0, 1 / prior)`.
    pub fn new(epsilon: f64, prior: f64, samples: usize) -> Self {
        let samples = samples as f64;
        let recipe = Recipe {
            optimizer: Optimizer::Sgd,
            momentum: 0.0,
            lr: epsilon * samples / 2.0,
            schedule: Schedule::Constant,
            weight_decay: prior / samples,
            decay_all: true,
            choose: Choose::Last,
            ..Recipe::default()
        };
        Self { descent: recipe.optimizer(), recipe, noise: Noise { deviation: epsilon.sqrt(), moved: HashSet::new() } }
    }

    /// The module after a step, by the gradients of the mean of `-ln p(y | x, theta)` over a batch.
    pub fn step<M: Module>(&mut self, module: M, gradients: GradientsParams) -> M {
        self.noise.follow(&module, &gradients);
        let module = self.descent.step(self.recipe.lr, module, gradients);
        module.map(&mut self.noise)
    }

    /// The training that is the chain alone, on the batches of another one.
    pub(super) fn burn_in(&self, epochs: usize, like: &Recipe) -> Recipe {
        Recipe { epochs, batch: like.batch, augment: like.augment.clone(), ..self.recipe.clone() }
    }

    /// What stands behind each step of that training.
    pub(super) fn noise(&self) -> Noise {
        self.noise.clone()
    }
}

/// Draws that are added to the parameters that took a step.
#[derive(Debug, Clone)]
pub(super) struct Noise {
    deviation: f64,
    moved: HashSet<ParamId>,
}

impl Noise {
    fn follow<M: Module>(&mut self, module: &M, gradients: &GradientsParams) {
        self.moved.clear();
        module.visit(&mut Moved { gradients, found: &mut self.moved });
    }
}

impl Projection for Noise {
    fn see(&mut self, net: &Net, gradients: &GradientsParams, _: f64) {
        self.follow(net, gradients);
    }

    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        net.map(self)
    }
}

impl ModuleMapper for Noise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.moved.contains(&param.id) {
            return param;
        }
        param.map(|old| {
            let trained = old.is_require_grad();
            let old = plain(old);
            let noise = normal_like(&old).mul_scalar(self.deviation);
            Tensor::from_inner(old + noise).set_require_grad(trained)
        })
    }
}

/// Finds the parameters that have a gradient.
struct Moved<'a> {
    gradients: &'a GradientsParams,
    found: &'a mut HashSet<ParamId>,
}

impl ModuleVisitor for Moved<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.gradients.get::<D>(param.id).is_some() {
            self.found.insert(param.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::chance;
    use briquette_core::values::floats;
    use burn::tensor::{Device, TensorData};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::golden::{golden, near};

    const GOLDEN: &str = include_str!("../golden/bayesian_dark_knowledge.txt");

    #[derive(Module, Debug)]
    struct Chains {
        theta: Param<Tensor<1>>,
    }

    fn of(values: Vec<f32>) -> Tensor<1> {
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &Device::flex().autodiff())
    }

    fn chains(values: Vec<f32>) -> Chains {
        Chains { theta: Param::from_tensor(of(values)) }
    }

    /// A step by gradients that a loss has.
    fn after(chain: &mut Langevin, at: Chains, loss: impl Fn(Tensor<1>) -> Tensor<1>) -> Chains {
        let gradients = GradientsParams::from_grads(loss(at.theta.val()).backward(), &at);
        chain.step(at, gradients)
    }

    #[test]
    fn a_step_is_the_golden_one() {
        // The mean loss of three samples whose log-likelihoods have the gradients (0.5, -0.1), (0.2, 0.4) and (-0.3, 0.6).
        let loss = |theta: Tensor<1>| (theta * of(vec![-0.4 / 3.0, -0.9 / 3.0])).sum();
        let mut chain = Langevin::new(0.01, 2.5, 30);
        chain.noise.deviation = 0.0;
        let moved = floats(after(&mut chain, chains(vec![0.3, -0.2]), loss).theta.val());
        let next: Vec<f32> = moved.iter().zip([0.7, -1.3]).map(|(theta, noise)| theta + 0.1 * noise).collect();
        near(&next, &golden(GOLDEN, "next"), 2e-5);
    }

    #[test]
    fn chains_on_a_gaussian_have_the_moments_of_the_closed_form() {
        const CHAINS: usize = 20_000;
        let x = golden(GOLDEN, "x");
        let (variance, prior, mean) = (2.0, 1.0 / 1.5, 0.728_671_9);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        // As many steps as leave nothing of the start; of all samples, and of five that are drawn with replacement.
        for (epsilon, steps, whole, fifth) in [(0.05, 40, 0.108_173_08, 0.187_585_37), (0.1, 20, 0.127_840_9, 0.315_542_7)] {
            for (expected, count) in [(whole, x.len()), (fifth, 5)] {
                chance::seed(11);
                let (mut chain, mut at) = (Langevin::new(epsilon, prior, x.len()), chains(vec![0.0; CHAINS]));
                for _ in 0..steps {
                    let mut batch = |_| match count == x.len() {
                        true => x.iter().sum::<f32>() / x.len() as f32,
                        false => (0..count).map(|_| x[rng.random_range(0..x.len())]).sum::<f32>() / count as f32,
                    };
                    let means = of((0..CHAINS).map(&mut batch).collect());
                    at = after(&mut chain, at, |theta| (theta - means.clone()).square().sum().div_scalar(2.0 * variance));
                }
                let found = floats(at.theta.val());
                let mean_of =
                    |value: &dyn Fn(f64) -> f64| found.iter().map(|theta| value(f64::from(*theta))).sum::<f64>() / CHAINS as f64;
                let centre = mean_of(&|theta| theta);
                let spread = mean_of(&|theta| (theta - centre).powi(2));
                // Five deviations of what so many chains tell.
                assert!((centre - mean).abs() < 5.0 * (expected / CHAINS as f64).sqrt(), "{epsilon} {count}: {centre}");
                assert!((spread / expected - 1.0).abs() < 5.0 * (2.0 / CHAINS as f64).sqrt(), "{epsilon} {count}: {spread}");
            }
        }
    }

    #[test]
    fn what_has_no_gradient_stays() {
        #[derive(Module, Debug)]
        struct Two {
            moves: Param<Tensor<1>>,
            stays: Param<Tensor<1>>,
        }
        let two = Two { moves: chains(vec![1.0]).theta, stays: chains(vec![1.0]).theta };
        let gradients = GradientsParams::from_grads(two.moves.val().sum().backward(), &two);
        let two = Langevin::new(0.01, 1.0, 10).step(two, gradients);
        assert!(floats(two.stays.val()) == [1.0] && floats(two.moves.val()) != [1.0] && two.moves.val().is_require_grad());
    }
}
