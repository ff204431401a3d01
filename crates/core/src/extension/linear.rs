//! Fully connected layers.

use briquette_kernels::{Epilogue, Linear as Shapes, Precision, column_sums};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::nn::Linear;

use super::*;

/// Whether a rectifier follows, and the precision of the factors.
#[derive(Debug, Clone, Copy)]
pub struct Finish {
    rectify: bool,
    precision: Precision,
}

/// The layer's output for `[rows, inputs]`, rectified or not.
pub(crate) fn linear(layer: &Linear, x: Tensor<2>, rectify: bool) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), layer.weight.val().into_dispatch());
    let bias = Maybe::of(layer.bias.as_ref().map(Param::val));
    let finish = Finish { rectify, precision: precision() };
    Tensor::from_dispatch(<Dispatch as Extension>::multiply(x, weight, bias, finish))
}

fn shapes(x: &FlexTensor, weight: &FlexTensor, precision: Precision) -> Shapes {
    let ([rows, inputs], [_, outputs]) = (x.shape().dims(), weight.shape().dims());
    Shapes { rows, inputs, outputs, precision }
}

pub(super) fn forward(x: &FlexTensor, weight: &FlexTensor, bias: &Maybe<Flex>, finish: Finish) -> FlexTensor {
    let shapes = shapes(x, weight, finish.precision);
    let y = with_values(x, |x| {
        with_values(weight, |w| {
            bias.with_values(|bias| {
                timed("linear", || shapes.forward(x, w, &Epilogue { bias, rectify: finish.rectify, ..Epilogue::default() }))
            })
        })
    });
    tensor(y.expect(CHECKED), [shapes.rows, shapes.outputs])
}

/// The gradients of a layer with a bias (three parents) or without one (two).
#[derive(Debug)]
struct Multiplication<const PARENTS: usize>;

#[derive(Debug, Clone)]
struct State {
    x: FlexTensor,
    weight: FlexTensor,
    /// The output, where a rectifier looks at its sign.
    y: Option<FlexTensor>,
    precision: Precision,
}

impl<const PARENTS: usize> Backward<Flex, PARENTS> for Multiplication<PARENTS> {
    type State = State;

    fn backward(self, ops: Ops<State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut parents = ops.parents.into_iter();
        let mut parent = || parents.next().flatten();
        let (of_x, of_weight, of_bias) = (parent(), parent(), parent());
        let State { x, weight, y, precision } = ops.state;
        let dy = pointwise::through(y.as_ref(), grads.consume::<Flex>(&ops.node));
        let shapes = shapes(&x, &weight, precision);
        with_values(&dy, |dy| {
            if let Some(node) = of_bias {
                grads.register::<Flex>(node.id, tensor(column_sums(dy, shapes.outputs), [shapes.outputs]));
            }
            if let Some(node) = of_weight {
                let dw = with_values(&x, |x| timed("linear weight'", || shapes.weight_gradient(x, dy))).expect(CHECKED);
                grads.register::<Flex>(node.id, tensor(dw, [shapes.inputs, shapes.outputs]));
            }
            if let Some(node) = of_x {
                let dx = with_values(&weight, |w| timed("linear'", || shapes.input_gradient(dy, w))).expect(CHECKED);
                grads.register::<Flex>(node.id, tensor(dx, [shapes.rows, shapes.inputs]));
            }
        });
    }
}

pub(super) fn record<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    weight: FloatTensor<Autodiff<Flex, C>>,
    bias: Maybe<Autodiff<Flex, C>>,
    finish: Finish,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = forward(x.primitive(), weight.primitive(), &bias.primitive(), finish);
    let nodes = [x.node(), weight.node()];
    let state = State {
        x: x.into_primitive(),
        weight: weight.into_primitive(),
        y: finish.rectify.then(|| y.clone()),
        precision: finish.precision,
    };
    match bias {
        Maybe::Absent => record_with::<C, 2>(Multiplication.prepare::<C>(nodes).compute_bound().stateful(), state, y),
        Maybe::Present(bias) => {
            let [x, weight] = nodes;
            record_with::<C, 3>(Multiplication.prepare::<C>([x, weight, bias.node()]).compute_bound().stateful(), state, y)
        }
    }
}

fn record_with<C: CheckpointStrategy, const N: usize>(
    prepared: OpsKind<Multiplication<N>, Flex, State, C, N>,
    state: State,
    y: FlexTensor,
) -> FloatTensor<Autodiff<Flex, C>> {
    match prepared {
        OpsKind::Tracked(prep) => prep.finish(state, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::{Distribution, activation};

    use super::*;
    use crate::coding::floats;

    #[test]
    fn outputs_and_gradients_are_those_of_burn() {
        let device = Device::flex();
        device.seed(6);
        let device = device.autodiff();
        for (bias, rectified) in [(true, false), (false, true), (true, true)] {
            let layer: Linear = LinearConfig::new(37, 21).with_bias(bias).init(&device);
            let x = Tensor::<2>::random([11, 37], Distribution::Normal(0.0, 1.0), &device).require_grad();
            let run = |y: Tensor<2>| {
                let grads = y.clone().powi_scalar(2).sum().backward();
                let of_bias = layer.bias.as_ref().map_or(Vec::new(), |bias| floats(bias.grad(&grads).unwrap()));
                [floats(y.inner()), floats(x.grad(&grads).unwrap()), floats(layer.weight.grad(&grads).unwrap()), of_bias]
            };
            let plain = layer.forward(x.clone());
            let (ours, burns) =
                (run(linear(&layer, x.clone(), rectified)), run(if rectified { activation::relu(plain) } else { plain }));
            for (ours, burns) in ours.iter().zip(&burns) {
                let scale = burns.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
                assert!(ours.len() == burns.len() && ours.iter().zip(burns).all(|(a, b)| (a - b).abs() <= 1e-5 * scale));
            }
        }
    }
}
