//! Mixture of experts.

use briquette_runtime::layers::Experts;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::Compute;
use crate::forward::Flow;
use crate::gating::softmax_of_largest;
use crate::tensors::{Ranked, Tensors};

/// Each expert computes the samples that chose it, together.
impl Compute for Experts {
    fn forward(&self, tensors: &Tensors, mut inputs: Vec<Flow>) -> Flow {
        let (x, logits) = (inputs.remove(0).vector(), inputs.remove(0).vector());
        let ([batch, _], device) = (x.dims(), x.device());
        let tensor = |name: &str, of_one: usize| {
            let values = tensors.get(name).map(Ranked::flat)?;
            Some(move |expert: usize| values.clone().narrow(0, expert * of_one, of_one))
        };
        let weights = tensor("weights", self.outputs * self.inputs).expect("the tensors of a network are checked before it runs");
        let biases = tensor("biases", self.outputs);
        let (gates, chosen) = softmax_of_largest(logits, self.chosen);
        let mut y = Tensor::<2>::zeros([batch, self.outputs], &device);
        for expert in 0..self.experts {
            let samples: Vec<i32> =
                (0..batch).filter(|sample| chosen[*sample].contains(&expert)).map(|sample| sample as i32).collect();
            if samples.is_empty() {
                continue;
            }
            let count = samples.len();
            let samples = Tensor::<1, Int>::from_data(TensorData::new(samples, [count]), &device);
            let weight = weights(expert).reshape([self.outputs, self.inputs]);
            let own = x.clone().select(0, samples.clone()).matmul(weight.transpose());
            let own = biases.as_ref().map_or(own.clone(), |biases| own + biases(expert).unsqueeze());
            let gate = gates.clone().select(0, samples.clone()).slice([0..count, expert..expert + 1]);
            y = y.select_assign(0, samples, own * gate, IndexingUpdateOp::Add);
        }
        Flow::Vector(y)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::builder::Builder;
    use crate::coding::{Coding, floats};
    use crate::net::Op;
    use crate::stored::{Storage, Stored};
    use briquette_runtime::{Engine, Model};

    /// The inputs, gates and outputs of `moe-noisy-top-k-1` of the reference values, whose noisy logits are the logits here.
    const X: [f32; 18] = [
        -0.468, -0.823, -0.065, -0.713, 0.906, 0.766, 0.826, -1.324, -1.752, 1.002, 0.545, 1.895, -0.769, -1.403, -0.632, -0.559,
        -1.233, -0.44,
    ];
    const LOGITS: [f32; 30] = [
        -0.388109, -0.227221, 2.263366, -2.426123, -0.650633, -1.60737, -1.612949, 0.781549, 1.476755, -0.2705, 2.238958,
        -0.275206, -0.857008, -2.118088, 0.744419, 0.809704, 2.015624, -0.687648, 2.407868, -0.373756, -0.824333, -0.745852,
        2.848601, -3.897441, -1.069301, 1.107505, -0.30913, 2.070317, -3.550574, -0.619494,
    ];
    const WEIGHTS: [f32; 30] = [
        0.52, 0.404, -0.402, -0.697, 0.646, -0.276, -0.379, 1.968, 0.202, 0.373, 0.981, 0.736, 1.411, -0.127, 0.553, -0.816,
        0.539, -2.218, -0.906, -1.462, -0.678, 1.523, -0.226, -0.879, -0.972, 0.054, 0.061, 1.174, 1.144, 0.386,
    ];
    const BIASES: [f32; 10] = [0.534, 0.544, -0.267, -0.403, -0.225, -0.615, 1.424, 1.138, -0.655, 0.962];
    const Y: [f32; 12] = [
        -0.886073, -0.601425, -0.156272, -0.96507, 0.625502, -0.377038, -0.608268, 1.288403, -1.518355, 0.572775, -0.817933,
        0.181785,
    ];

    const LAYER: Experts = Experts { experts: 5, chosen: 2, inputs: 3, outputs: 2 };

    fn op(weights: &[f32]) -> Op {
        let stored = |name, shape: &[usize], base: &[f32]| Stored {
            name,
            shape: shape.to_vec(),
            base: base.to_vec(),
            coding: Coding::default(),
        };
        let tensors = vec![stored("weights", &[5, 2, 3], weights), stored("biases", &[10], &BIASES)];
        Op::built("experts", &LAYER.into(), tensors, &Device::flex()).unwrap()
    }

    fn computed(weights: &[f32], device: &Device) -> (Tensor<2>, Op) {
        let op = op(weights);
        let Op::Tensors(tensors) = &op else { unreachable!() };
        let vector = |values: &[f32], columns: usize| {
            Flow::Vector(Tensor::from_data(TensorData::new(values.to_vec(), [6, columns]), device))
        };
        (LAYER.forward(tensors, vec![vector(&X, 3), vector(&LOGITS, 5)]).vector(), op)
    }

    fn near(found: &[f32], expected: &[f32]) {
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-5),
            "{found:?} {expected:?}"
        );
    }

    #[test]
    fn outputs_are_those_of_the_reference() {
        near(&floats(computed(&WEIGHTS, &Device::flex()).0), &Y);
    }

    /// Expert 0 is chosen by sample 2 and 5, expert 4 by sample 2 alone: infinite, they spoil these, and no other, for none is multiplied by 0.
    #[test]
    fn experts_that_are_not_chosen_are_not_computed() {
        let mut weights = WEIGHTS;
        weights[..6].fill(f32::MAX);
        weights[24..].fill(f32::MAX);
        let mut b = Builder::new([8, 1, 1], 1, &Device::flex());
        let flat = b.flatten("flatten", b.input());
        let x = b.fixed("x", &[flat], briquette_runtime::layers::ChannelSlice { start: 0, len: 3 });
        let logits = b.fixed("logits", &[flat], briquette_runtime::layers::ChannelSlice { start: 3, len: 5 });
        b.push("experts", &[x, logits], op(&weights));
        let net = b.finish().unwrap();
        let images: Vec<f32> = X.chunks(3).zip(LOGITS.chunks(5)).flat_map(|(x, logits)| [x, logits].concat()).collect();
        let burn = floats(net.forward(Tensor::from_data(TensorData::new(images.clone(), [6, 8, 1, 1]), &Device::flex())));
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let engine = Engine::new(&Model::from_bytes(&bytes).unwrap(), 2).unwrap();
        let alone: Vec<f32> = images.chunks(8).flat_map(|image| engine.run(image, 1).unwrap()).collect();
        for found in [burn, engine.run(&images, 6).unwrap(), alone] {
            let (spoilt, whole) = ([2, 5], [0, 1, 3, 4]);
            assert!(
                spoilt.iter().all(|sample| found[2 * sample..][..2].iter().any(|y| y.is_nan() || y.abs() > 1e30)),
                "{found:?}"
            );
            whole.iter().for_each(|sample| near(&found[2 * sample..][..2], &Y[2 * sample..][..2]));
        }
    }
}
