//! Optimizers whose steps are one pass over the weights where our kernels take them, and the same formulas elsewhere.

use std::collections::HashMap;

use briquette_kernels::optimize::{Adam, Sgd};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use super::{Optimizer, Recipe};
use crate::archive::{Archive, Reader, Writer};
use crate::error::Result;
use crate::extension::{adam_step, sgd_step, takes};
use crate::values::floats;

impl Recipe {
    /// The optimizer, before its first step. Weight decay applies to tensors of rank 2 or more unless the recipe says that all decay.
    pub fn optimizer(&self) -> Descent {
        let decay = self.weight_decay as f32;
        let rule = match self.optimizer {
            Optimizer::Sgd => Rule::Sgd(Sgd { rate: 0.0, momentum: self.momentum as f32, nesterov: self.nesterov, decay }),
            Optimizer::Adam | Optimizer::Adamw => {
                let (decay, decoupled) = if self.optimizer == Optimizer::Adamw { (0.0, decay) } else { (decay, 0.0) };
                Rule::Adam(Adam { rate: 0.0, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-5, decay, decoupled, time: 0 })
            }
        };
        Descent { rule, vectors_decay: self.decay_all, moments: HashMap::new() }
    }
}

/// An optimizer with what it remembers of each parameter.
#[derive(Debug, Clone)]
pub struct Descent {
    rule: Rule,
    /// Whether biases and normalization parameters decay too.
    vectors_decay: bool,
    moments: HashMap<ParamId, Moments>,
}

/// How a parameter steps.
#[derive(Debug, Clone, Copy)]
enum Rule {
    Sgd(Sgd),
    Adam(Adam),
}

/// What an optimizer remembers of a parameter: its steps so far, and the velocity or both moments, flat.
#[derive(Debug, Clone, Default)]
struct Moments {
    time: u32,
    tensors: Vec<Tensor<1>>,
}

impl Descent {
    /// The module after a step at this rate, in which the parameters that have a gradient take part.
    pub fn step<M: Module>(&mut self, rate: f64, module: M, gradients: GradientsParams) -> M {
        module.map(&mut Steps { descent: self, rate: rate as f32, gradients })
    }

    /// Keeps what is remembered of the module's parameters.
    ///
    /// # Errors
    /// Those of the archive.
    pub fn keep<M: Module>(&mut self, module: &M, archive: &mut Archive<'_>) -> Result<()> {
        match archive {
            Archive::To(writer) => self.write(module, writer),
            Archive::From(reader) => {
                let device = module.devices().into_iter().next().unwrap_or_default().inner();
                self.read(module, reader, &device)
            }
        }
    }

    /// Writes what is remembered of the module's parameters, in their order.
    pub(super) fn write<M: Module>(&self, module: &M, to: &mut Writer<'_>) -> Result<()> {
        let mut visitor = Each(
            |id, _| {
                let none = Moments::default();
                let moments = self.moments.get(&id).unwrap_or(&none);
                to.numbers([moments.time])?;
                moments.tensors.iter().try_for_each(|tensor| to.numbers(floats(tensor.clone())))
            },
            Ok(()),
        );
        module.visit(&mut visitor);
        visitor.1
    }

    /// Reads what [`Descent::write`] has written for a module of the same parameters.
    pub(super) fn read<M: Module>(&mut self, module: &M, from: &mut Reader<'_>, device: &Device) -> Result<()> {
        let tensors = match self.rule {
            Rule::Sgd(_) => 1,
            Rule::Adam(_) => 2,
        };
        let mut visitor = Each(
            |id, count| {
                let time = from.numbers::<u32>(1)?[0];
                let tensor = |_| Ok(Tensor::from_data(TensorData::new(from.numbers::<f32>(count)?, [count]), device));
                if time > 0 {
                    let tensors = (0..tensors).map(tensor).collect::<Result<_>>()?;
                    self.moments.insert(id, Moments { time, tensors });
                }
                Ok(())
            },
            Ok(()),
        );
        module.visit(&mut visitor);
        visitor.1
    }
}

/// Shows every parameter's id and count of values, up to the first error.
struct Each<F>(F, Result<()>);

impl<F: FnMut(ParamId, usize) -> Result<()>> ModuleVisitor for Each<F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.1.is_ok() {
            self.1 = (self.0)(param.id, param.lazy_shape().num_elements());
        }
    }
}

/// A step of each parameter that has a gradient.
struct Steps<'a> {
    descent: &'a mut Descent,
    rate: f32,
    gradients: GradientsParams,
}

impl ModuleMapper for Steps<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return param };
        let rule = if D < 2 && !self.descent.vectors_decay { self.descent.rule.without_decay() } else { self.descent.rule };
        let moments = self.descent.moments.entry(param.id).or_default();
        param.map(|old| {
            let trained = old.is_require_grad();
            Tensor::from_inner(rule.step(self.rate, old.inner(), gradient, moments)).set_require_grad(trained)
        })
    }
}

impl Rule {
    fn without_decay(self) -> Self {
        match self {
            Rule::Sgd(sgd) => Rule::Sgd(Sgd { decay: 0.0, ..sgd }),
            Rule::Adam(adam) => Rule::Adam(Adam { decay: 0.0, decoupled: 0.0, ..adam }),
        }
    }

    /// The parameter after a step by its gradient.
    fn step<const D: usize>(self, rate: f32, w: Tensor<D>, g: Tensor<D>, moments: &mut Moments) -> Tensor<D> {
        moments.time += 1;
        let mut before = std::mem::take(&mut moments.tensors).into_iter();
        let mut moment = || before.next().map_or_else(|| w.zeros_like(), |moment| moment.reshape(w.shape()));
        match self {
            Rule::Sgd(sgd) => {
                let velocity = moment();
                let (w, velocity) = descend(Sgd { rate, ..sgd }, w, g, velocity);
                moments.tensors = vec![velocity.reshape([-1])];
                w
            }
            Rule::Adam(adam) => {
                let both = [moment(), moment()];
                let (w, both) = adapt(Adam { rate, time: moments.time as i32, ..adam }, w, g, both);
                moments.tensors = both.map(|moment| moment.reshape([-1])).into();
                w
            }
        }
    }
}

/// A step of gradient descent with momentum: the weights and their velocity.
fn descend<const D: usize>(sgd: Sgd, w: Tensor<D>, g: Tensor<D>, velocity: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
    if takes(&w) {
        return sgd_step(w, g, velocity, sgd);
    }
    let g = if sgd.decay > 0.0 { g + w.clone().mul_scalar(sgd.decay) } else { g };
    let velocity = velocity.mul_scalar(sgd.momentum) + g.clone();
    let step = if sgd.nesterov { velocity.clone().mul_scalar(sgd.momentum) + g } else { velocity.clone() };
    (w - step.mul_scalar(sgd.rate), velocity)
}

/// A step of Adam, with decay in the gradient or apart from it: the weights and both moments.
fn adapt<const D: usize>(adam: Adam, w: Tensor<D>, g: Tensor<D>, [first, second]: [Tensor<D>; 2]) -> (Tensor<D>, [Tensor<D>; 2]) {
    if takes(&w) {
        return adam_step(w, g, [first, second], adam);
    }
    let g = if adam.decay > 0.0 { g + w.clone().mul_scalar(adam.decay) } else { g };
    let first = first.mul_scalar(adam.beta_1) + g.clone().mul_scalar(1.0 - adam.beta_1);
    let second = second.mul_scalar(adam.beta_2) + g.powi_scalar(2).mul_scalar(1.0 - adam.beta_2);
    let root = second.clone().div_scalar(1.0 - adam.beta_2.powi(adam.time)).sqrt();
    let step = first.clone().mul_scalar(adam.rate / (1.0 - adam.beta_1.powi(adam.time))) / root.add_scalar(adam.epsilon);
    (w.mul_scalar(1.0 - adam.rate * adam.decoupled) - step, [first, second])
}

#[cfg(test)]
mod tests {
    use burn::optim::decay::WeightDecayConfig;
    use burn::optim::momentum::MomentumConfig;
    use burn::optim::{AdamConfig, AdamWConfig, SgdConfig};

    use super::*;

    /// The weights after three steps by gradients that follow from them.
    fn after(mut step: impl FnMut(Tensor<2>, Tensor<2>) -> Tensor<2>) -> Vec<f32> {
        let mut w = Tensor::<2>::from_floats([[0.5, -1.0, 2.0], [0.1, 0.0, -0.3]], &Device::flex());
        for number in 0..3 {
            let g = w.clone().powi_scalar(2).add_scalar(f64::from(number) - 0.7);
            w = step(w, g);
        }
        floats(w)
    }

    fn ours(rule: Rule) -> Vec<f32> {
        let mut moments = Moments::default();
        after(|w, g| rule.step(0.1, w, g, &mut moments))
    }

    fn burns<O: burn::optim::Optimizer>(optimizer: &O) -> Vec<f32> {
        let mut state = None;
        after(|w, g| {
            let (w, new) = optimizer.step(0.1, w, g, state.take());
            state = new;
            w
        })
    }

    #[test]
    fn steps_are_those_of_burn_with_and_without_kernels() {
        let near = |ours: Vec<f32>, burns: Vec<f32>| {
            assert!(ours.iter().zip(&burns).all(|(a, b)| (a - b).abs() < 2e-5), "{ours:?} {burns:?}");
        };
        for nesterov in [false, true] {
            let momentum = MomentumConfig::new().with_momentum(0.8).with_dampening(0.0).with_nesterov(nesterov);
            let sgd = SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(WeightDecayConfig::new(0.01)));
            near(ours(Rule::Sgd(Sgd { rate: 0.0, momentum: 0.8, nesterov, decay: 0.01 })), burns(&sgd.build()));
        }
        let adam = Adam { rate: 0.0, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-5, decay: 0.01, decoupled: 0.0, time: 0 };
        let decaying = AdamConfig::new().with_weight_decay(Some(WeightDecayConfig::new(0.01)));
        near(ours(Rule::Adam(adam)), burns(&decaying.build()));
        let adamw = Adam { decay: 0.0, decoupled: 0.02, ..adam };
        near(ours(Rule::Adam(adamw)), burns(&AdamWConfig::new().with_weight_decay(0.02).build()));
    }

    #[test]
    fn vectors_decay_only_where_the_recipe_says_so() {
        let layer = || burn::nn::LinearConfig::new(3, 2).init(&Device::flex()).train();
        let after = |decay_all: bool| {
            let layer = layer();
            let [weight, bias] = [&layer.weight.val().flatten::<1>(0, 1), &layer.bias.as_ref().unwrap().val()]
                .map(|tensor| floats(tensor.clone().inner()));
            let recipe = Recipe { optimizer: Optimizer::Adamw, weight_decay: 0.5, decay_all, ..Recipe::default() };
            // Nothing but the decay moves them.
            let loss = (layer.weight.val().sum() + layer.bias.as_ref().unwrap().val().sum()).mul_scalar(0.0);
            let gradients = GradientsParams::from_grads(loss.backward(), &layer);
            let stepped = recipe.optimizer().step(0.1, layer, gradients);
            let moved = |before: Vec<f32>, after: Vec<f32>| before.iter().zip(&after).all(|(a, b)| (b - 0.95 * a).abs() < 1e-6);
            [
                moved(weight, floats(stepped.weight.val().flatten::<1>(0, 1).inner())),
                moved(bias, floats(stepped.bias.unwrap().val().inner())),
            ]
        };
        assert_eq!((after(false), after(true)), ([true, false], [true, true]));
    }
}
