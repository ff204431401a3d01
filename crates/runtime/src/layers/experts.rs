//! Mixture of experts.

use super::{Arity, Channels, Constants, Extent, Kind, Parameters, Role, Runnable, Sign, Storable, Tensor};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Epilogue, Geometry, Operation, Threads, decoded, product};
use crate::{Error, Node};

/// Of `n` fully connected layers, the experts, the `k` with the largest logits: with the two inputs `x` `[inputs]` and `h` `[n]`,
/// `y = sum_{i in T} g_i (W_i x + b_i)`, where `T` are the places of the `k` largest `h_i`, of equal ones the first, and `g` is the softmax of the `h_i` in
/// `T`. The other experts are not computed. Tensors `weights` `[n, outputs, inputs]` and optionally `biases` `[n outputs]`, those of one
/// expert after those of another in a vector, for what has more dimensions counts as weights.
///
/// Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean. "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer". ICLR 2017.
/// arXiv:1701.06538.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Experts {
    /// `n`: how many there are.
    pub experts: usize,
    /// `k`: how many a sample is computed by.
    pub chosen: usize,
    /// Features of `x`.
    pub inputs: usize,
    /// Features of `y`.
    pub outputs: usize,
}

impl Experts {
    /// The experts of a sample with these logits, and `g_i` of each.
    fn gates(&self, logits: &[f32]) -> Vec<(usize, f32)> {
        let places = largest(logits, self.chosen);
        let most = places.first().map_or(0.0, |place| logits[*place]);
        let shares: Vec<f32> = places.iter().map(|place| (logits[*place] - most).exp()).collect();
        let sum: f32 = shares.iter().sum();
        places.into_iter().zip(shares).map(|(place, share)| (place, share / sum)).collect()
    }
}

/// The places of the `count` largest values, the largest first and of equal ones the first.
pub fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    // Zeros of both signs are equal.
    places.sort_by(|a, b| (values[*b] + 0.0).total_cmp(&(values[*a] + 0.0)));
    places.truncate(count);
    places
}

impl Kind for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn check(&self) -> Result<(), String> {
        if self.experts < 2 || self.inputs == 0 || self.outputs == 0 {
            return Err(format!(
                "{} experts of {} inputs and {} outputs; there are two or more, with features",
                self.experts, self.inputs, self.outputs
            ));
        }
        match (1..=self.experts).contains(&self.chosen) {
            true => Ok(()),
            false => Err(format!(
                "a sample is computed by {} of {} experts; by one or more, and by no more than there are",
                self.chosen, self.experts
            )),
        }
    }

    fn arity(&self) -> Arity {
        Arity::Two
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (weights, biases) = (vec![self.experts, self.outputs, self.inputs], vec![self.experts.saturating_mul(self.outputs)]);
        vec![
            Tensor::required("weights", Extent::Exactly(weights), Role::Weight),
            Tensor { name: "biases", shape: Extent::Exactly(biases), role: Role::Beside, required: false },
        ]
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        match inputs[0] == [self.inputs] && inputs[1] == [self.experts] {
            true => Ok(vec![self.outputs]),
            false => Err(format!("{} experts of {} inputs do not take {inputs:?}", self.experts, self.inputs)),
        }
    }

    /// Of the chosen experts alone.
    fn macs(&self, weights: usize, _: &[usize]) -> u64 {
        (weights / self.experts * self.chosen) as u64
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "hands them to several experts, all of one shape", fixed: true }
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }
}

impl Storable for Experts {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_sizes(&[self.experts, self.chosen, self.inputs, self.outputs]);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let [experts, chosen, inputs, outputs] = reader.sizes()?;
        Ok(Self { experts, chosen, inputs, outputs })
    }
}

impl Runnable for Experts {
    fn operation(&self, node: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        let biases = decoded(node, "biases");
        let expert = |(number, weight): (usize, &[f32])| {
            let bias = biases.chunks(self.outputs).nth(number).unwrap_or_default().to_vec();
            product(Geometry::pixel(self.inputs), weight, Epilogue { bias, activation: None }, self.outputs)
        };
        let weights = decoded(node, "weights");
        Box::new(Mixture { layer: *self, experts: weights.chunks(self.outputs * self.inputs).enumerate().map(expert).collect() })
    }
}

#[derive(Debug)]
struct Mixture {
    layer: Experts,
    experts: Vec<Box<dyn Operation>>,
}

impl Operation for Mixture {
    fn bytes(&self) -> usize {
        self.experts.iter().map(|expert| expert.bytes()).sum()
    }

    /// Each expert computes the samples that chose it, together.
    fn run(&self, inputs: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        let Experts { experts, inputs: features, outputs, .. } = self.layer;
        let mut samples = vec![Vec::new(); experts];
        for (sample, logits) in inputs[1].chunks(experts).enumerate() {
            self.layer.gates(logits).into_iter().for_each(|(expert, gate)| samples[expert].push((sample, gate)));
        }
        output.fill(0.0);
        for (expert, samples) in self.experts.iter().zip(samples).filter(|(_, samples)| !samples.is_empty()) {
            let x: Vec<f32> =
                samples.iter().flat_map(|(sample, _)| &inputs[0][sample * features..][..features]).copied().collect();
            let mut y = vec![0.0; samples.len() * outputs];
            expert.run(&[&x], samples.len(), &mut y, threads);
            for ((sample, gate), y) in samples.iter().zip(y.chunks(outputs)) {
                output[sample * outputs..][..outputs].iter_mut().zip(y).for_each(|(sum, y)| *sum += gate * y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `moe-eval` of the reference values.
    #[test]
    fn gates_are_the_softmax_of_the_largest_logits() {
        let layer = Experts { experts: 5, chosen: 2, inputs: 3, outputs: 2 };
        let near = |logits: [f32; 5], expected: [(usize, f32); 2]| {
            for ((place, gate), (at, share)) in layer.gates(&logits).into_iter().zip(expected) {
                assert!(place == at && (gate - share).abs() < 2e-5, "{place} {gate}");
            }
        };
        near([-0.028407, -0.20357, 1.854668, -2.365035, -0.560529], [(2, 0.867964), (0, 0.132036)]);
        near([0.070555, 0.3571, -0.405606, 2.148337, -0.139193], [(3, 0.857079), (1, 0.142921)]);
        near([0.0, -0.0, 0.0, -1.0, 0.0], [(0, 0.5), (1, 0.5)]);
    }

    #[test]
    fn a_layer_costs_what_the_chosen_experts_do_and_cannot_choose_more_than_there_are() {
        let layer = Experts { experts: 5, chosen: 2, inputs: 3, outputs: 4 };
        assert_eq!(layer.macs(60, &[4]), 24);
        for (experts, chosen) in [(5, 6), (5, 0), (1, 1)] {
            assert!(Experts { experts, chosen, ..layer }.check().is_err());
        }
    }
}
