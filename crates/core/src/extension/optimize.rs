//! Steps of optimizers, each in one pass over the weights.

use briquette_kernels::optimize;

use super::*;

/// A step of gradient descent; a type of this crate, as extensions want it.
#[derive(Debug, Clone, Copy)]
pub struct Sgd(optimize::Sgd);

/// A step of Adam.
#[derive(Debug, Clone, Copy)]
pub struct Adam(optimize::Adam);

/// The weights and the velocity after a step.
pub(crate) fn sgd_step<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<D>,
    velocity: Tensor<D>,
    step: optimize::Sgd,
) -> (Tensor<D>, Tensor<D>) {
    let [w, g, v] = [weights, gradient, velocity].map(Tensor::into_dispatch);
    let (w, v) = <Dispatch as Extension>::descend(w, g, v, Sgd(step));
    (Tensor::from_dispatch(w), Tensor::from_dispatch(v))
}

/// The weights and both moments after a step.
pub(crate) fn adam_step<const D: usize>(
    weights: Tensor<D>,
    gradient: Tensor<D>,
    [first, second]: [Tensor<D>; 2],
    step: optimize::Adam,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let [w, g, m, v] = [weights, gradient, first, second].map(Tensor::into_dispatch);
    let (w, m, v) = <Dispatch as Extension>::descend_adaptively(w, g, m, v, Adam(step));
    (Tensor::from_dispatch(w), [Tensor::from_dispatch(m), Tensor::from_dispatch(v)])
}

pub(super) fn descend(w: FlexTensor, g: &FlexTensor, v: FlexTensor, Sgd(sgd): Sgd) -> (FlexTensor, FlexTensor) {
    with_values(g, |g| with_values_mut(w, |w| with_values_mut(v, |v| sgd.step(w, g, v)).0))
}

pub(super) fn descend_adaptively(
    w: FlexTensor,
    g: &FlexTensor,
    m: FlexTensor,
    v: FlexTensor,
    Adam(adam): Adam,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let (w, (m, v)) = with_values(g, |g| {
        with_values_mut(w, |w| {
            let (m, (v, ())) = with_values_mut(m, |m| with_values_mut(v, |v| adam.step(w, g, m, v)));
            (m, v)
        })
    });
    (w, m, v)
}
