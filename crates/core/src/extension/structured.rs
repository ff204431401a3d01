//! Structural matrices.

use briquette_kernels::structured::Prepared;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::*;

/// `[rows, inputs]` times the matrix of these parameters, one after the other.
pub(crate) fn structured(structure: Structure, parameters: Tensor<1>, x: Tensor<2>) -> Tensor<2> {
    let multiply = match is_flex(&x.device().inner()) {
        true => <Dispatch as Extension>::multiply_structured,
        false => <Dispatch as Hosted>::multiply_structured,
    };
    Tensor::from_dispatch(multiply(x.into_dispatch(), parameters.into_dispatch(), structure))
}

pub(super) fn prepare(structure: Structure, mut parameters: &[f32]) -> Prepared {
    let shapes = structure.parameters();
    let each = shapes.iter().map(|parameter| parameters.split_off(..parameter.count()).expect(CHECKED));
    structure.prepare(&each.collect::<Vec<_>>()).expect(CHECKED)
}

pub(super) fn forward(x: &FlexTensor, parameters: &FlexTensor, structure: Structure) -> FlexTensor {
    let [rows, _] = x.shape().dims();
    let work = |x: &[f32], p: &[f32]| timed("structured", || prepare(structure, p).forward(x).expect(CHECKED));
    tensor(with_values(x, |x| with_values(parameters, |p| work(x, p))), [rows, structure.features()[1]])
}

/// The gradients by the input and by the parameters.
#[derive(Debug)]
struct Product;

#[derive(Debug, Clone)]
struct State {
    x: FlexTensor,
    parameters: FlexTensor,
    structure: Structure,
}

impl Backward<Flex, 2> for Product {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let State { x, parameters, structure } = ops.state;
        let [of_x, of_parameters] = ops.parents;
        let dy = grads.consume::<Flex>(&ops.node);
        let work =
            |x: &[f32], p: &[f32], dy: &[f32]| timed("structured'", || prepare(structure, p).backward(x, dy).expect(CHECKED));
        let found = with_values(&x, |x| with_values(&parameters, |p| with_values(&dy, |dy| work(x, p, dy))));
        if let Some(node) = of_x {
            grads.register::<Flex>(node.id, tensor(found.input, x.shape().dims::<2>()));
        }
        if let Some(node) = of_parameters {
            grads.register::<Flex>(node.id, tensor(found.parameters, [structure.count()]));
        }
    }
}

pub(super) fn record<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    parameters: FloatTensor<Autodiff<Flex, C>>,
    structure: Structure,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = forward(x.primitive(), parameters.primitive(), structure);
    match Product.prepare::<C>([x.node(), parameters.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            prep.finish(State { x: x.into_primitive(), parameters: parameters.into_primitive(), structure }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Int};

    use super::*;
    use crate::coding::floats;

    #[test]
    fn outputs_and_gradients_are_those_of_a_dense_circulant_matrix_in_burn() {
        let (inputs, outputs, rows) = (6, 10, 5);
        let structure = Structure::Circulant { inputs, outputs, seed: 4 };
        let device = Device::flex();
        device.seed(2);
        let device = device.autodiff();
        let noise = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let (x, r) = (noise([rows, inputs]).require_grad(), Param::from_tensor(noise([2, inputs])));
        let bias = Param::from_tensor(noise([1, outputs]).reshape([outputs]));
        // With r = (1, 0, ...) the blocks of a structure with whole blocks are their signs.
        let whole = Structure::Circulant { inputs, outputs: 2 * inputs, seed: 4 };
        let units: Vec<f32> = (0..2 * inputs).map(|i| if i % inputs == 0 { 1.0 } else { 0.0 }).collect();
        let diagonals = whole.dense(&[&units]).unwrap();
        let entries = || (0..outputs).flat_map(|i| (0..inputs).map(move |j| (i / inputs, i % inputs, j)));
        let places: Vec<i64> = entries().map(|(b, i, j)| (b * inputs + (inputs + i - j) % inputs) as i64).collect();
        let signs: Vec<f32> = entries().map(|(b, _, j)| diagonals[(b * inputs + j) * inputs + j]).collect();
        assert!(signs.contains(&1.0) && signs.contains(&-1.0));
        let places: Tensor<1, Int> = Tensor::from_data(TensorData::from(places.as_slice()), &device);
        let signs = Tensor::<1>::from_data(TensorData::from(signs.as_slice()), &device);
        let dense = (r.val().reshape([2 * inputs]).select(0, places) * signs).reshape([outputs, inputs]);

        let run = |y: Tensor<2>| {
            let grads = y.clone().powi_scalar(2).sum().backward();
            let [x, r, bias] = [
                floats(x.grad(&grads).unwrap()),
                floats(r.val().grad(&grads).unwrap()),
                floats(bias.val().grad(&grads).unwrap()),
            ];
            [floats(y.inner()), x, r, bias]
        };
        let ours = run(structured(structure, r.val().reshape([-1]), x.clone()) + bias.val().unsqueeze());
        let burns = run(x.clone().matmul(dense.transpose()) + bias.val().unsqueeze());
        for (ours, burns) in ours.iter().zip(&burns) {
            let scale = burns.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
            assert!(ours.len() == burns.len() && ours.iter().zip(burns).all(|(a, b)| (a - b).abs() <= 1e-5 * scale));
        }
    }
}
