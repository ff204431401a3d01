//! Batch normalization.

use briquette_kernels::{Moments, norm};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::nn::BatchNorm;

use super::*;

/// What is added to the variance, and whether a rectifier follows.
#[derive(Debug, Clone, Copy)]
pub struct Normalizing {
    epsilon: f32,
    rectify: bool,
}

/// Batch normalization of a map that lies channels last, a residual sum and a rectifier after it: by the batch's own moments while training,
/// which also move the running ones, and by those afterwards. None for a frozen layer in a training graph: its moments are constants,
/// which our gradient does not take them for.
pub(crate) fn normalize(norm: &BatchNorm, x: Tensor<4>, residual: Option<Tensor<4>>, rectify: bool) -> Option<Tensor<4>> {
    let moments = match (x.device().is_autodiff(), norm.training.is_enabled()) {
        (true, true) => moments_of_batch(norm, &x),
        (false, _) => Tensor::stack::<2>(vec![norm.running_mean.value_sync(), norm.running_var.value_sync()], 0),
        (true, false) => return None,
    };
    let [gamma, beta] = [&norm.gamma, &norm.beta].map(|param| param.val().into_dispatch());
    let (x, moments) = (x.into_dispatch(), moments.into_dispatch());
    let normalizing = Normalizing { epsilon: norm.epsilon as f32, rectify };
    let y = <Dispatch as Extension>::batch_normalize(x, gamma, beta, moments, Maybe::of(residual), normalizing);
    Some(Tensor::from_dispatch(y))
}

/// Mean and variance over the batch, `[2, channels]`; the running ones follow them.
fn moments_of_batch(norm: &BatchNorm, x: &Tensor<4>) -> Tensor<2> {
    let moments = Tensor::<2>::from_dispatch(<Dispatch as Extension>::batch_moments(x.clone().into_dispatch())).detach();
    let [_, channels] = moments.dims();
    for (row, running) in [&norm.running_mean, &norm.running_var].into_iter().enumerate() {
        let now = moments.clone().narrow(0, row, 1).reshape([channels]).mul_scalar(norm.momentum);
        let before = running.value_sync().to_device(&moments.device()).mul_scalar(1.0 - norm.momentum);
        running.update(before.add(now).detach());
    }
    moments
}

/// Means in the first row, variances in the second.
pub(super) fn moments(x: &FlexTensor) -> FlexTensor {
    let Moments { mean, variance } = with_values(x, |values| timed("batch-norm", || shape(x).moments(values))).expect(CHECKED);
    let channels = mean.len();
    tensor([mean, variance].concat(), [2, channels])
}

pub(super) fn forward(
    x: &FlexTensor,
    [gamma, beta, moments]: [&FlexTensor; 3],
    residual: &Maybe<Flex>,
    normalizing: Normalizing,
) -> FlexTensor {
    let (norm, moments) = (shape(x), read_moments(moments));
    let y = with_values(x, |x| {
        with_values(gamma, |gamma| {
            let normalization =
                norm::Normalization { moments: &moments, gamma, epsilon: normalizing.epsilon, rectify: normalizing.rectify };
            with_values(beta, |beta| {
                residual.with_values(|residual| timed("batch-norm", || norm.forward(x, &normalization, beta, residual)))
            })
        })
    });
    tensor::<4>(y.expect(CHECKED), x.shape().dims())
}

fn shape(x: &FlexTensor) -> briquette_kernels::BatchNorm {
    let [batch, height, width, channels] = x.shape().dims();
    briquette_kernels::BatchNorm { rows: batch * height * width, channels }
}

/// The other way of [`moments`].
fn read_moments(moments: &FlexTensor) -> Moments {
    with_values(moments, |values| {
        let (mean, variance) = values.split_at(values.len() / 2);
        Moments { mean: mean.to_vec(), variance: variance.to_vec() }
    })
}

/// The gradients of batch normalization in training, with a residual (four parents) or without one (three).
#[derive(Debug)]
struct Normalization<const PARENTS: usize>;

#[derive(Debug, Clone)]
struct State {
    x: FlexTensor,
    y: FlexTensor,
    gamma: FlexTensor,
    moments: FlexTensor,
    normalizing: Normalizing,
}

impl<const PARENTS: usize> Backward<Flex, PARENTS> for Normalization<PARENTS> {
    type State = State;

    fn backward(self, ops: Ops<State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut parents = ops.parents.into_iter();
        let mut parent = || parents.next().flatten();
        let [of_x, of_gamma, of_beta, of_residual] = [parent(), parent(), parent(), parent()];
        let State { x, y, gamma, moments, normalizing } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let (norm, moments) = (shape(&x), read_moments(&moments));
        let found = with_values(&x, |x| {
            with_values(&y, |y| {
                with_values(&dy, |dy| {
                    with_values(&gamma, |gamma| {
                        let normalization = norm::Normalization {
                            moments: &moments,
                            gamma,
                            epsilon: normalizing.epsilon,
                            rectify: normalizing.rectify,
                        };
                        timed("batch-norm'", || norm.gradients(x, y, dy, &normalization, of_residual.is_some()))
                    })
                })
            })
        });
        let found = found.expect(CHECKED);
        if let (Some(node), Some(residual)) = (of_residual, found.residual) {
            grads.register::<Flex>(node.id, tensor::<4>(residual, x.shape().dims()));
        }
        if let Some(node) = of_x {
            grads.register::<Flex>(node.id, tensor::<4>(found.x, x.shape().dims()));
        }
        for (node, sums) in [(of_gamma, found.gamma), (of_beta, found.beta)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(sums, [norm.channels]));
            }
        }
    }
}

pub(super) fn record<C: CheckpointStrategy>(
    [x, gamma, beta]: [FloatTensor<Autodiff<Flex, C>>; 3],
    moments: FlexTensor,
    residual: Maybe<Autodiff<Flex, C>>,
    normalizing: Normalizing,
) -> FloatTensor<Autodiff<Flex, C>> {
    let y = forward(x.primitive(), [gamma.primitive(), beta.primitive(), &moments], &residual.primitive(), normalizing);
    let nodes = [x.node(), gamma.node(), beta.node()];
    let state = State { x: x.into_primitive(), y: y.clone(), gamma: gamma.into_primitive(), moments, normalizing };
    match residual {
        Maybe::Absent => finish::<C, 3>(nodes, state, y),
        Maybe::Present(residual) => {
            let [x, gamma, beta] = nodes;
            finish::<C, 4>([x, gamma, beta, residual.node()], state, y)
        }
    }
}

fn finish<C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    state: State,
    y: FlexTensor,
) -> FloatTensor<Autodiff<Flex, C>> {
    match Normalization::<N>.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::{Distribution, activation};

    use super::*;
    use crate::coding::floats;

    #[test]
    fn normalization_is_that_of_burn_in_training_and_afterwards() {
        let device = Device::flex();
        device.seed(3);
        let device = device.autodiff();
        for (add, rectified) in [(false, false), (false, true), (true, true)] {
            let fresh = || -> BatchNorm { burn::nn::BatchNormConfig::new(5).init(&device) };
            let (ours, burns) = (fresh(), fresh());
            let random = |deviation| Tensor::<4>::random([4, 5, 3, 7], Distribution::Normal(0.5, deviation), &device);
            let (x, residual, factors) = (random(2.0).require_grad(), random(1.0).require_grad(), random(1.0));
            let run = |norm: &BatchNorm, y: Tensor<4>| {
                let grads = (y.clone() * factors.clone()).sum().backward();
                let gradients = [&norm.gamma, &norm.beta].map(|param| floats(param.grad(&grads).unwrap()));
                let running = [&norm.running_mean, &norm.running_var].map(|state| floats(state.value_sync()));
                let by_residual = residual.grad(&grads).map_or(Vec::new(), floats);
                let maps = vec![floats(y.inner()), floats(x.grad(&grads).unwrap()), by_residual];
                [maps, gradients.to_vec(), running.to_vec()].concat()
            };
            let plain = |norm: &BatchNorm, x: Tensor<4>, residual: Tensor<4>| {
                let y = norm.forward(x);
                let y = if add { y + residual } else { y };
                if rectified { activation::relu(y) } else { y }
            };
            let fused = |norm: &BatchNorm, x: Tensor<4>, residual: Tensor<4>| {
                let residual = add.then(|| channels_last(residual));
                channels_first(normalize(norm, channels_last(x), residual, rectified).unwrap())
            };
            let (a, b) =
                (run(&ours, fused(&ours, x.clone(), residual.clone())), run(&burns, plain(&burns, x.clone(), residual.clone())));
            let near = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4);
            assert!(a.iter().zip(&b).all(|(a, b)| near(a, b)), "{a:?}\n{b:?}");
            let (ours, x, residual) = (ours.valid(), x.inner(), residual.inner());
            let (a, b) = (fused(&ours, x.clone(), residual.clone()), plain(&ours, x, residual));
            assert!(near(&floats(a), &floats(b)));
        }
    }
}
