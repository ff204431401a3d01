//! Policies that choose among a few options for each layer of a network.

use briquette_core::values::floats;
use burn::tensor::{Device, Tensor, TensorData, activation};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adam::Adam;

/// Two layers of LSTM cells and a soft-max over the options at each step. It reads the steps in both directions at once, or in order, with the option chosen before.
pub(super) struct Policy {
    both: bool,
    options: usize,
    parameters: Vec<Parameter>,
    rng: ChaCha8Rng,
}

struct Parameter {
    shape: [usize; 2],
    values: Vec<f32>,
    adam: Adam,
}

/// Weights of the inputs, of the state, and biases, each for the input gate, the forget gate, the candidate and the output gate.
type Cell<'a> = &'a [Tensor<2>];

/// The state of a cell: what it gives, and what it keeps.
type State = (Tensor<2>, Tensor<2>);

impl Policy {
    /// For steps described by so many numbers; `both` directions, or in order. `rate` is that of the steps of Adam.
    pub(super) fn new(numbers: usize, options: usize, both: bool, rate: f32, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let cell = |inputs: usize| [[inputs, 4 * HIDDEN], [HIDDEN, 4 * HIDDEN], [1, 4 * HIDDEN]];
        let shapes: Vec<[usize; 2]> = match both {
            true => [cell(numbers), cell(numbers), cell(2 * HIDDEN), cell(2 * HIDDEN)].concat(),
            false => [cell(numbers + options), cell(HIDDEN)].concat(),
        };
        let width = if both { 2 * HIDDEN } else { HIDDEN };
        let reach = 1.0 / (HIDDEN as f32).sqrt();
        let mut drawn = |shape: [usize; 2]| {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| reach * (2.0 * rng.random::<f32>() - 1.0)).collect();
            Parameter { shape, adam: Adam::new(values.len(), rate), values }
        };
        let parameters = shapes.into_iter().chain([[width, options], [1, options]]).map(&mut drawn).collect();
        Self { both, options, parameters, rng }
    }

    /// Choices for these steps, drawn.
    pub(super) fn draw(&mut self, steps: &[Vec<f32>]) -> Vec<usize> {
        let (tensors, mut rng) = (self.tensors(&Device::flex()), self.rng.clone());
        let (choices, _) = self.walk(&tensors, steps, &mut |_, probabilities| {
            let (draw, mut sum) = (rng.random::<f32>(), 0.0);
            let chosen = probabilities.iter().position(|probability| {
                sum += probability;
                draw < sum
            });
            chosen.unwrap_or(probabilities.len() - 1)
        });
        self.rng = rng;
        choices
    }

    /// One step of REINFORCE: up the mean over these choices of their advantage times the gradient of the logarithm of their probability.
    pub(super) fn learn(&mut self, steps: &[Vec<f32>], rollouts: &[(Vec<usize>, f64)]) {
        let tensors: Vec<Tensor<2>> = self.tensors(&Device::flex().autodiff()).into_iter().map(Tensor::require_grad).collect();
        let terms = rollouts.iter().filter_map(|(choices, advantage)| {
            let (_, probability) = self.walk(&tensors, steps, &mut |step, _| choices[step]);
            probability.map(|log| log.mul_scalar(-advantage / rollouts.len() as f64))
        });
        let Some(loss) = terms.reduce(|sum, term| sum + term) else { return };
        let gradients = loss.backward();
        for (parameter, tensor) in self.parameters.iter_mut().zip(&tensors) {
            if let Some(gradient) = tensor.grad(&gradients) {
                parameter.adam.step(&mut parameter.values, &floats(gradient));
            }
        }
    }

    fn tensors(&self, device: &Device) -> Vec<Tensor<2>> {
        let of = |own: &Parameter| Tensor::from_data(TensorData::new(own.values.clone(), own.shape), device);
        self.parameters.iter().map(of).collect()
    }

    /// What `choose` makes of the probabilities at each step, and the logarithm of the probability of all these choices.
    fn walk(
        &self,
        tensors: &[Tensor<2>],
        steps: &[Vec<f32>],
        choose: &mut dyn FnMut(usize, &[f32]) -> usize,
    ) -> (Vec<usize>, Option<Tensor<2>>) {
        let device = tensors[0].device();
        let row = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &device);
        let (cells, head) = tensors.split_at(tensors.len() - 2);
        let cells: Vec<Cell<'_>> = cells.chunks_exact(3).collect();
        let (mut choices, mut probability): (Vec<usize>, Option<Tensor<2>>) = (Vec::new(), None);
        let mut take = |step: usize, hidden: Tensor<2>| {
            let logarithms = activation::log_softmax(hidden.matmul(head[0].clone()) + head[1].clone(), 1);
            let probabilities: Vec<f32> = floats(logarithms.clone()).into_iter().map(f32::exp).collect();
            let chosen = choose(step, &probabilities);
            let log = logarithms.narrow(1, chosen, 1);
            probability = Some(probability.take().map_or(log.clone(), |sum| sum + log));
            choices.push(chosen);
            chosen
        };
        if self.both {
            let mut inputs: Vec<Tensor<2>> = steps.iter().map(|step| row(step)).collect();
            for layer in cells.chunks_exact(2) {
                let onwards = through(layer[0], inputs.iter());
                let mut back = through(layer[1], inputs.iter().rev());
                back.reverse();
                inputs = onwards.into_iter().zip(back).map(|(a, b)| Tensor::cat(vec![a, b], 1)).collect();
            }
            for (step, hidden) in inputs.into_iter().enumerate() {
                take(step, hidden);
            }
        } else {
            let mut states: Vec<Option<State>> = vec![None; cells.len()];
            let mut before = None;
            for (step, numbers) in steps.iter().enumerate() {
                let option = (0..self.options).map(|option| if before == Some(option) { 1.0 } else { 0.0 });
                let mut hidden = row(&numbers.iter().copied().chain(option).collect::<Vec<f32>>());
                for (cell, state) in cells.iter().zip(&mut states) {
                    let next = advanced(cell, hidden, state.take());
                    hidden = next.0.clone();
                    *state = Some(next);
                }
                before = Some(take(step, hidden));
            }
        }
        (choices, probability)
    }
}

/// What a cell gives at each of these steps.
fn through<'a>(cell: Cell<'_>, inputs: impl Iterator<Item = &'a Tensor<2>>) -> Vec<Tensor<2>> {
    let mut state = None;
    let step = |input: &Tensor<2>| {
        let next = advanced(cell, input.clone(), state.take());
        state = Some(next.clone());
        next.0
    };
    inputs.map(step).collect()
}

/// `c' = f c + i g`, `h' = o tanh(c')`, where the gates are of `x W + h U + b`.
fn advanced(cell: Cell<'_>, input: Tensor<2>, state: Option<State>) -> State {
    let mut gates = input.matmul(cell[0].clone()) + cell[2].clone();
    if let Some((given, _)) = &state {
        gates = gates + given.clone().matmul(cell[1].clone());
    }
    let gate = |at: usize| gates.clone().narrow(1, at * HIDDEN, HIDDEN);
    let mut kept = activation::sigmoid(gate(0)) * activation::tanh(gate(2));
    if let Some((_, before)) = state {
        kept = kept + activation::sigmoid(gate(1)) * before;
    }
    (activation::sigmoid(gate(3)) * activation::tanh(kept.clone()), kept)
}

/// Units of a cell.
const HIDDEN: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    /// Both policies learn to choose, for each of five steps, the option that its number asks for.
    #[test]
    fn what_is_rewarded_becomes_probable() {
        let steps: Vec<Vec<f32>> = (0..5).map(|step| vec![step as f32 / 4.0, if step % 2 == 0 { 1.0 } else { -1.0 }]).collect();
        for both in [true, false] {
            let mut policy = Policy::new(2, 2, both, if both { 0.02 } else { 0.03 }, 7);
            let worth =
                |choices: &[usize]| choices.iter().enumerate().filter(|(step, choice)| **choice == step % 2).count() as f64 / 5.0;
            let mean = |policy: &mut Policy| (0..20).map(|_| worth(&policy.draw(&steps))).sum::<f64>() / 20.0;
            let (before, mut baseline) = (mean(&mut policy), 0.5);
            for _ in 0..200 {
                let drawn: Vec<Vec<usize>> = (0..5).map(|_| policy.draw(&steps)).collect();
                let rewards: Vec<f64> = drawn.iter().map(|choices| worth(choices)).collect();
                let advantages = rewards.iter().map(|reward| reward - baseline);
                policy.learn(&steps, &drawn.iter().cloned().zip(advantages).collect::<Vec<_>>());
                baseline += 0.2 * (rewards.iter().sum::<f64>() / 5.0 - baseline);
            }
            let after = mean(&mut policy);
            assert!(before < 0.75 && after > 0.9, "{both}: from {before} to {after}");
        }
    }

    #[test]
    fn the_probabilities_of_all_choices_add_up() {
        let steps = vec![vec![0.3], vec![-0.7]];
        for both in [true, false] {
            let policy = Policy::new(1, 3, both, 0.1, 1);
            let tensors = policy.tensors(&Device::flex());
            let log = |choices: [usize; 2]| {
                let (_, log) = policy.walk(&tensors, &steps, &mut |step, _| choices[step]);
                floats(log.unwrap())[0]
            };
            let all: f32 = (0..9).map(|code| log([code / 3, code % 3]).exp()).sum();
            assert!((all - 1.0).abs() < 1e-5, "{all}");
        }
    }
}
