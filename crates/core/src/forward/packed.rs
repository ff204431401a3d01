//! Evaluation of networks that skip work: behind a gate a value holds the samples that take its branch alone, closely packed and in their order, and
//! a node that no sample reaches is not run.

use std::collections::BTreeMap;

use briquette_runtime::branches::Branch;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::steps::{Step, steps};
use super::{Flow, takes};
use crate::coding::floats;
use crate::error::{Error, Result};
use crate::net::Net;

/// Of gates, by node: of each sample that reaches it, whether it leaves there.
pub type Decisions = BTreeMap<usize, Vec<bool>>;

/// Names of the steps of a forward pass, and how many samples each handed on.
pub type StepSamples = Vec<(String, usize)>;

impl Net {
    /// [`Net::forward`], with the number of samples that each step handed on, by the name of its first node: in a network that skips work, those that
    /// reached it.
    pub fn forward_counted(&self, input: Tensor<4>) -> (Tensor<2>, StepSamples) {
        let steps = self.fused(&input);
        let mut counts: StepSamples = steps.iter().map(|step| (self.nodes[step.node].name.clone(), 0)).collect();
        let packed = Packed::new(&input, Decisions::new());
        let output = self.run(input, &steps, Some(packed), |node, flow| {
            let place = steps.iter().position(|step| step.output == node);
            place.into_iter().for_each(|step| counts[step].1 = flow.len());
            flow
        });
        (output.vector(), counts)
    }

    /// [`Net::forward`] by these decisions in the place of the gates' own, each for all samples of the batch; what is computed for a gate's own
    /// decision alone is left out. Other gates decide as ever. A batch norm in training sees the samples that reach it.
    ///
    /// # Errors
    /// Names the node that is no gate, or one that some samples do not reach, and the gate that has too few decisions or too many.
    pub fn forward_decided(&self, input: Tensor<4>, decisions: Decisions) -> Result<Tensor<2>> {
        let ([batch, ..], paths) = (input.dims(), self.paths()?);
        for (&gate, decided) in &decisions {
            let Some(node) = self.nodes.get(gate) else {
                return Err(Error::Invalid(format!("there is no node {gate} to decide for")));
            };
            let detail = match () {
                () if node.op.layer().kind().branch() != Branch::Decides => "is no gate that could be decided for".into(),
                () if !paths.to(gate).is_empty() => "is a gate that only some samples reach; decide for those before it".into(),
                () if decided.len() != batch => format!("has {} decisions for {batch} samples", decided.len()),
                () => continue,
            };
            return Err(Error::node(&node.name, detail));
        }
        let steps = self.needed(self.fused(&input), &decisions);
        let packed = Packed::new(&input, decisions);
        Ok(self.run(input, &steps, Some(packed), |_, flow| flow).vector())
    }

    /// The steps for such an input.
    pub(super) fn fused(&self, input: &Tensor<4>) -> Vec<Step> {
        steps(self, takes(input).then(|| input.device().is_autodiff()))
    }

    /// The steps that the output needs where these decisions are known.
    fn needed(&self, mut steps: Vec<Step>, known: &Decisions) -> Vec<Step> {
        let mut needed = vec![false; self.nodes.len()];
        needed[self.nodes.len() - 1] = true;
        steps.reverse();
        steps.retain(|step| {
            if needed[step.output] && !known.contains_key(&step.node) {
                step.inputs.iter().chain(&step.residual).for_each(|input| needed[*input] = true);
            }
            needed[step.output]
        });
        steps.reverse();
        steps
    }
}

/// What is known of the samples of a forward pass that packs them.
pub(super) struct Packed {
    decisions: Decisions,
    device: Device,
}

impl Packed {
    pub(super) fn new(input: &Tensor<4>, decisions: Decisions) -> Self {
        Self { decisions, device: input.device() }
    }

    /// What a step gives for the samples that reach it; nothing where none does.
    pub(super) fn take(&mut self, net: &Net, step: &Step, inputs: Vec<Option<Flow>>, residual: Option<Flow>) -> Option<Flow> {
        let (mut inputs, gate) = (inputs.into_iter(), step.inputs.last());
        let decided = |decisions: &Decisions| gate.and_then(|gate| decisions.get(gate).cloned()).unwrap_or_default();
        match net.nodes[step.node].op.layer().kind().branch() {
            Branch::Stays => Some(net.take(step, inputs.collect::<Option<_>>()?, residual)),
            Branch::Decides => {
                if let Some(known) = self.decisions.get(&step.node) {
                    let leaves: Vec<f32> = known.iter().map(|leaves| f32::from(u8::from(*leaves))).collect();
                    let shape = [leaves.len(), 1];
                    return Some(Flow::Vector(Tensor::from_data(TensorData::new(leaves, shape), &self.device)));
                }
                let decision = net.take(step, inputs.collect::<Option<_>>()?, None);
                let leaves = floats(decision.clone().vector()).into_iter().map(|leaves| leaves != 0.0).collect();
                self.decisions.insert(step.node, leaves);
                Some(decision)
            }
            Branch::Keeps { leaving } => {
                let x = inputs.next().flatten()?;
                let decided = decided(&self.decisions);
                let kept: Vec<usize> = (0..decided.len()).filter(|sample| decided[*sample] == leaving).collect();
                match kept.len() {
                    0 => None,
                    all if all == decided.len() => Some(x),
                    _ => Some(x.samples(kept)),
                }
            }
            Branch::Joins => match (inputs.next().flatten(), inputs.next().flatten()) {
                (Some(left), Some(on)) => Some(left.joined(on, &decided(&self.decisions))),
                (left, on) => left.or(on),
            },
        }
    }
}

impl Flow {
    pub(super) fn len(&self) -> usize {
        match self {
            Flow::First(x) | Flow::Last(x) => x.dims()[0],
            Flow::Vector(x) => x.dims()[0],
        }
    }

    /// These samples, in this order.
    fn samples(self, which: Vec<usize>) -> Self {
        let count = which.len();
        let which: Vec<i64> = which.into_iter().map(|sample| sample as i64).collect();
        let which = |device: &Device| Tensor::<1, Int>::from_data(TensorData::new(which, [count]), device);
        match self {
            Flow::First(x) => Flow::First(x.clone().select(0, which(&x.device()))),
            Flow::Last(x) => Flow::Last(x.clone().select(0, which(&x.device()))),
            Flow::Vector(x) => Flow::Vector(x.clone().select(0, which(&x.device()))),
        }
    }

    /// The samples that left and those that went on, as they were before.
    fn joined(self, on: Self, leaves: &[bool]) -> Self {
        let (mut left, mut behind) = (0..self.len(), self.len()..leaves.len());
        let order = leaves.iter().filter_map(|leaves| if *leaves { left.next() } else { behind.next() }).collect();
        let both = match (self, on) {
            (Flow::Vector(left), on) => Flow::Vector(Tensor::cat(vec![left, on.vector()], 0)),
            (Flow::Last(left), Flow::Last(on)) => Flow::Last(Tensor::cat(vec![left, on], 0)),
            (left, on) => Flow::First(Tensor::cat(vec![left.first(), on.first()], 0)),
        };
        both.samples(order)
    }
}

#[cfg(test)]
mod tests {
    use briquette_runtime::Engine;
    use briquette_runtime::layers::{Gate, Measure, Merge, Route};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::builder::Builder;
    use crate::random_nets::{agree, noise, on_an_edge, random_net};
    use crate::stored::Storage;

    fn batch(net: &Net, values: &[f32]) -> Tensor<4> {
        let shape = net.input_shape();
        let count = values.len() / shape.iter().product::<usize>();
        Tensor::from_data(TensorData::new(values.to_vec(), [count, shape[0], shape[1], shape[2]]), &net.device())
    }

    /// What the network gives where all samples take every branch.
    fn whole(net: &Net, values: &[f32]) -> Vec<f32> {
        let input = batch(net, values);
        let steps = net.fused(&input);
        floats(net.run(input, &steps, None, |_, flow| flow).vector())
    }

    /// Of networks drawn at random: the same as where nothing is skipped, in batches and alone, for as many samples as the engine computes.
    #[test]
    fn packed_samples_are_computed_as_among_all() {
        let (mut parted, mut idle) = (0, 0);
        for seed in 0..150 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let net = random_net(&mut rng);
            let image: usize = net.input_shape().iter().product();
            let input = noise(&mut rng, 6 * image);
            if on_an_edge(&net, &input) {
                continue;
            }
            let (output, counts) = net.forward_counted(batch(&net, &input));
            let together = floats(output);
            assert!(agree(&together, &whole(&net, &input)), "seed {seed}");
            assert_eq!(together, floats(net.forward(batch(&net, &input))), "seed {seed}");
            let alone: Vec<f32> = input.chunks(image).flat_map(|image| floats(net.forward(batch(&net, image)))).collect();
            assert!(agree(&together, &alone), "seed {seed}");
            let model = net.to_model(Storage::default()).unwrap();
            let (_, expected) = Engine::new(&model, 1).unwrap().run_counted(&input, 6).unwrap();
            for (step, samples) in &counts {
                let node = &net.nodes[net.index(step).unwrap()];
                let same = expected.iter().find(|(name, _)| name == step).filter(|_| node.dense().is_some());
                same.into_iter().for_each(|(_, expected)| assert_eq!(samples, expected, "seed {seed}: {step}"));
            }
            parted += usize::from(counts.iter().any(|(_, samples)| (1..6).contains(samples)));
            idle += usize::from(counts.iter().any(|(_, samples)| *samples == 0));
        }
        assert!(parted > 10 && idle > 10, "{parted} parted, {idle} with idle steps");
    }

    /// A vector of two that goes through `a` where it leaves, and through `b` where it goes on, by the logit of `c`.
    fn forked() -> Net {
        let mut b = Builder::new([2, 1, 1], 7, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let logit = b.linear("c", x, 1);
        let gate = b.fixed("gate", &[logit], Gate { measure: Measure::Sigmoid, threshold: 0.5 });
        let [left, on] = [("a", true), ("b", false)].map(|(name, leaving)| {
            let x = b.fixed(&format!("to-{name}"), &[x, gate], Route { leaving });
            b.linear(name, x, 2)
        });
        b.fixed("merge", &[left, on, gate], Merge);
        b.finish().unwrap()
    }

    #[test]
    fn given_decisions_are_gone_by_and_no_others_are_made() {
        let mut net = forked();
        let gate = net.index("gate").unwrap();
        let input = [0.5, -1.0, 2.0, 0.25, -0.75, 1.5];
        let all =
            |net: &Net, leaves: bool| floats(net.forward_decided(batch(net, &input), [(gate, vec![leaves; 3])].into()).unwrap());
        let (left, on) = (all(&net, true), all(&net, false));
        // A logit that is not a number would let no sample leave.
        let at = net.index("c").unwrap();
        let mut parameters = net.nodes[at].parameters();
        parameters.iter_mut().for_each(|parameter| parameter.base.fill(f32::NAN));
        net.nodes[at] = net.nodes[at].clone().with(parameters, &Device::flex()).unwrap();
        let decided = |decisions: Decisions| net.forward_decided(batch(&net, &input), decisions).map(floats);
        let mixed = decided([(gate, vec![true, false, true])].into()).unwrap();
        assert_eq!(mixed, [&left[..2], &on[2..4], &left[4..]].concat());
        assert_eq!(floats(net.forward(batch(&net, &input))), on);
        let refused = |gate, count| decided([(gate, vec![true; count])].into()).unwrap_err().to_string();
        assert_eq!(refused(gate, 2), "node 'gate': has 2 decisions for 3 samples");
        assert_eq!(refused(at, 3), "node 'c': is no gate that could be decided for");
        assert_eq!(refused(99, 3), "there is no node 99 to decide for");
    }
}
