//! Batch normalization.

use briquette_kernels::Moments;
use burn::backend::TensorMetadata;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::nn::BatchNorm;

use super::*;

/// Batch normalization: by the batch's own moments while training, which also move the running ones, and by those afterwards.
pub(crate) fn normalize(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    let device = x.device();
    if !takes(&x) {
        return norm.forward(x);
    }
    let moments = match (device.is_autodiff(), norm.training.is_enabled()) {
        (true, true) => moments_of_batch(norm, &x),
        (false, _) => Tensor::stack::<2>(vec![norm.running_mean.value_sync(), norm.running_var.value_sync()], 0),
        // A frozen layer in a training graph: its moments are constants, which the gradient below does not take them for.
        (true, false) => return norm.forward(x),
    };
    let [gamma, beta] = [&norm.gamma, &norm.beta].map(|param| param.val().into_dispatch());
    let (x, moments) = (x.into_dispatch(), moments.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::batch_normalize(x, gamma, beta, moments, norm.epsilon as f32))
}

/// Mean and variance over the batch, `[2, channels]`; the running ones follow them.
fn moments_of_batch(norm: &BatchNorm, x: &Tensor<4>) -> Tensor<2> {
    let moments = Tensor::<2>::from_dispatch(<Dispatch as Kernels>::batch_moments(x.clone().into_dispatch())).detach();
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
    let Moments { mean, variance } = with_values(x, |values| shape_of(x).0.moments(values));
    let channels = mean.len();
    FlexTensor::from_data(TensorData::new([mean, variance].concat(), [2, channels]))
}

pub(super) fn forward(x: &FlexTensor, gamma: &FlexTensor, beta: &FlexTensor, moments: &FlexTensor, epsilon: f32) -> FlexTensor {
    let ((norm, dims), moments) = (shape_of(x), read_moments(moments));
    made(dims, |y| {
        with_values(x, |x| {
            with_values(gamma, |gamma| with_values(beta, |beta| norm.forward(x, &moments, gamma, beta, epsilon, y)));
        });
    })
}

fn shape_of(x: &FlexTensor) -> (briquette_kernels::BatchNorm, [usize; 4]) {
    let dims @ [batch, channels, height, width] = x.shape().dims();
    (briquette_kernels::BatchNorm { batch, channels, pixels: height * width }, dims)
}

/// The other way of [`moments`].
fn read_moments(moments: &FlexTensor) -> Moments {
    with_values(moments, |values| {
        let (mean, variance) = values.split_at(values.len() / 2);
        Moments { mean: mean.to_vec(), variance: variance.to_vec() }
    })
}

/// The gradients of batch normalization in training.
#[derive(Debug)]
struct Normalization;

impl Backward<Flex, 3> for Normalization {
    type State = (FlexTensor, FlexTensor, FlexTensor, f32);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [of_x, of_gamma, of_beta] = ops.parents;
        let (x, gamma, moments, epsilon) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let ((norm, dims), moments) = (shape_of(&x), read_moments(&moments));
        let mut sums = (Vec::new(), Vec::new());
        let dx = made(dims, |dx| {
            with_values(&x, |x| {
                with_values(&dy, |dy| {
                    sums = with_values(&gamma, |gamma| norm.gradients(x, dy, &moments, gamma, epsilon, dx));
                });
            });
        });
        let vector = |values: Vec<f32>| {
            let len = values.len();
            FlexTensor::from_data(TensorData::new(values, [len]))
        };
        if let Some(node) = of_x {
            grads.register::<Flex>(node.id, dx);
        }
        for (node, sums) in [(of_gamma, sums.0), (of_beta, sums.1)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, vector(sums));
            }
        }
    }
}

pub(super) fn record<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    gamma: FloatTensor<Autodiff<Flex, C>>,
    beta: FloatTensor<Autodiff<Flex, C>>,
    moments: FlexTensor,
    epsilon: f32,
) -> FloatTensor<Autodiff<Flex, C>> {
    let prepared = Normalization.prepare::<C>([x.node(), gamma.node(), beta.node()]).compute_bound().stateful();
    let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
    let y = forward(&x, &gamma, beta.primitive(), &moments, epsilon);
    match prepared {
        OpsKind::Tracked(prep) => prep.finish((x, gamma, moments, epsilon), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Distribution;

    use super::*;
    use crate::coding::floats;

    #[test]
    fn normalization_is_that_of_burn_in_training_and_afterwards() {
        let device = Device::flex();
        device.seed(3);
        let device = device.autodiff();
        let fresh = || -> BatchNorm { burn::nn::BatchNormConfig::new(5).init(&device) };
        let (ours, burns) = (fresh(), fresh());
        let x = Tensor::<4>::random([4, 5, 3, 7], Distribution::Normal(1.0, 2.0), &device).require_grad();
        let factors = Tensor::<4>::random([4, 5, 3, 7], Distribution::Normal(0.0, 1.0), &device);
        let run = |norm: &BatchNorm, y: Tensor<4>| {
            let grads = (y.clone() * factors.clone()).sum().backward();
            let gradients = [&norm.gamma, &norm.beta].map(|param| floats(param.grad(&grads).unwrap()));
            let running = [&norm.running_mean, &norm.running_var].map(|state| floats(state.value_sync()));
            [vec![floats(y.inner()), floats(x.grad(&grads).unwrap())], gradients.to_vec(), running.to_vec()].concat()
        };
        let (a, b) = (run(&ours, normalize(&ours, x.clone())), run(&burns, burns.forward(x.clone())));
        let near = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4);
        assert!(a.iter().zip(&b).all(|(a, b)| near(a, b)), "{a:?}\n{b:?}");
        let (ours, x) = (ours.valid(), x.inner());
        assert!(near(&floats(normalize(&ours, x.clone())), &floats(ours.forward(x))));
    }
}
