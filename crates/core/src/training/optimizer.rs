//! Optimizers whose steps are one pass over the weights where our kernels take them, and the same formulas elsewhere.

use briquette_kernels::optimize::{Adam, Sgd};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdaptiveMomentumState, LearningRate, ModuleOptimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};

use super::{Optimizer, Recipe};
use crate::kernels::{adam_step, sgd_step, takes};
use crate::net::Net;

impl Recipe {
    /// The optimizer for this network. Weight decay applies to tensors of rank 2 or more unless the recipe says that all decay.
    pub fn optimizer(&self, net: &Net) -> ModuleOptimizer {
        let vectors = ParamGroup::from_paths(vector_paths(net));
        let split = !self.decay_all && self.weight_decay > 0.0;
        let decay = self.weight_decay as f32;
        match self.optimizer {
            Optimizer::Sgd => {
                let sgd =
                    |decay: f32| Momentum(Sgd { rate: 0.0, momentum: self.momentum as f32, nesterov: self.nesterov, decay });
                let all = ModuleOptimizer::from(sgd(decay));
                if split { all.with_group(vectors, sgd(0.0), None) } else { all }
            }
            Optimizer::Adam | Optimizer::Adamw => {
                let decoupled = self.optimizer == Optimizer::Adamw;
                let adam = |decay: f32| {
                    let (decay, decoupled) = if decoupled { (0.0, decay) } else { (decay, 0.0) };
                    Adaptive(Adam { rate: 0.0, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-5, decay, decoupled, time: 0 })
                };
                let all = ModuleOptimizer::from(adam(decay));
                if split { all.with_group(vectors, adam(0.0), None) } else { all }
            }
        }
    }
}

/// Gradient descent with momentum.
#[derive(Debug, Clone)]
struct Momentum(Sgd);

#[derive(Debug, Clone)]
struct Velocity<const D: usize>(Tensor<D>);

impl<const D: usize> RecordState for Velocity<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_tensor(prefix, "velocity", self.0.to_data());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self(Tensor::from_data(src.take_tensor(prefix, "velocity")?, device)))
    }
}

impl burn::optim::Optimizer for Momentum {
    type State<const D: usize> = Velocity<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        w: Tensor<D>,
        g: Tensor<D>,
        state: Option<Velocity<D>>,
    ) -> (Tensor<D>, Option<Velocity<D>>) {
        let sgd = Sgd { rate: rate as f32, ..self.0 };
        let velocity = state.map_or_else(|| w.zeros_like(), |state| state.0);
        let (w, velocity) = if takes(&w) {
            sgd_step(w, g, velocity, sgd)
        } else {
            let g = if sgd.decay > 0.0 { g + w.clone().mul_scalar(sgd.decay) } else { g };
            let velocity = velocity.mul_scalar(sgd.momentum) + g.clone();
            let step = if sgd.nesterov { velocity.clone().mul_scalar(sgd.momentum) + g } else { velocity.clone() };
            (w - step.mul_scalar(sgd.rate), velocity)
        };
        (w, Some(Velocity(velocity)))
    }

    fn to_device<const D: usize>(state: Velocity<D>, device: &Device) -> Velocity<D> {
        Velocity(state.0.to_device(device))
    }
}

/// Adam, with decay in the gradient or apart from it.
#[derive(Debug, Clone)]
struct Adaptive(Adam);

impl burn::optim::Optimizer for Adaptive {
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        w: Tensor<D>,
        g: Tensor<D>,
        state: Option<AdaptiveMomentumState<D>>,
    ) -> (Tensor<D>, Option<AdaptiveMomentumState<D>>) {
        let (time, first, second) = match state {
            Some(state) => (state.time + 1, state.moment_1, state.moment_2),
            None => (1, w.zeros_like(), w.zeros_like()),
        };
        let adam = Adam { rate: rate as f32, time: time as i32, ..self.0 };
        let (w, [first, second]) = if takes(&w) {
            adam_step(w, g, [first, second], adam)
        } else {
            let g = if adam.decay > 0.0 { g + w.clone().mul_scalar(adam.decay) } else { g };
            let first = first.mul_scalar(adam.beta_1) + g.clone().mul_scalar(1.0 - adam.beta_1);
            let second = second.mul_scalar(adam.beta_2) + g.powi_scalar(2).mul_scalar(1.0 - adam.beta_2);
            let root = second.clone().div_scalar(1.0 - adam.beta_2.powi(adam.time)).sqrt();
            let step = first.clone().mul_scalar(adam.rate / (1.0 - adam.beta_1.powi(adam.time))) / root.add_scalar(adam.epsilon);
            (w.mul_scalar(1.0 - adam.rate * adam.decoupled) - step, [first, second])
        };
        (w, Some(AdaptiveMomentumState::new(time, first, second)))
    }

    fn to_device<const D: usize>(state: AdaptiveMomentumState<D>, device: &Device) -> AdaptiveMomentumState<D> {
        state.to_device(device)
    }
}

/// Paths of the parameters of rank 1: biases, normalization, centroids.
fn vector_paths(net: &Net) -> Vec<String> {
    #[derive(Default)]
    struct Paths {
        path: Vec<String>,
        vectors: Vec<String>,
    }

    impl ModuleVisitor for Paths {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
            if D < 2 {
                self.vectors.push(self.path.join("."));
            }
        }
    }

    let mut paths = Paths::default();
    net.visit(&mut paths);
    paths.vectors
}

#[cfg(test)]
mod tests {
    use burn::optim::decay::WeightDecayConfig;
    use burn::optim::momentum::MomentumConfig;
    use burn::optim::{AdamConfig, AdamWConfig, SgdConfig};

    use super::*;
    use crate::coding::floats;

    /// The weights after three steps by gradients that follow from them.
    fn after<O: burn::optim::Optimizer>(optimizer: &O) -> Vec<f32> {
        let device = Device::flex();
        let mut w = Tensor::<2>::from_floats([[0.5, -1.0, 2.0], [0.1, 0.0, -0.3]], &device);
        let mut state = None;
        for step in 0..3 {
            let g = w.clone().powi_scalar(2).add_scalar(f64::from(step) - 0.7);
            (w, state) = optimizer.step(0.1, w, g, state);
        }
        floats(w)
    }

    #[test]
    fn steps_are_those_of_burn_with_and_without_kernels() {
        let near = |ours: Vec<f32>, burns: Vec<f32>| {
            assert!(ours.iter().zip(&burns).all(|(a, b)| (a - b).abs() < 2e-5), "{ours:?} {burns:?}");
        };
        for nesterov in [false, true] {
            let momentum = MomentumConfig::new().with_momentum(0.8).with_dampening(0.0).with_nesterov(nesterov);
            let burns = SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(WeightDecayConfig::new(0.01)));
            near(after(&Momentum(Sgd { rate: 0.0, momentum: 0.8, nesterov, decay: 0.01 })), after(&burns.build()));
        }
        let adam = Adam { rate: 0.0, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-5, decay: 0.01, decoupled: 0.0, time: 0 };
        let burns = AdamConfig::new().with_weight_decay(Some(WeightDecayConfig::new(0.01)));
        near(after(&Adaptive(adam)), after(&burns.build()));
        let adamw = Adam { decay: 0.0, decoupled: 0.02, ..adam };
        near(after(&Adaptive(adamw)), after(&AdamWConfig::new().with_weight_decay(0.02).build()));
    }
}
