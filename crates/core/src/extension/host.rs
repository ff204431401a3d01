//! Gradients of ours where our kernels do not compute: values are fetched from the device, the CPU computes, and what it finds goes back. That is
//! slow, and gives the numbers of `flex`. Burn's operations have no other gradients than their own, on any device.

use briquette_kernels::grid;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::{Shape, try_read_sync};

use super::structured::prepare;
use super::*;

/// What every backend learns.
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"), NdArray: cfg(feature = "ndarray"))]
pub trait Hosted: Backend {
    /// As [`Extension::multiply_structured`].
    fn multiply_structured(x: FloatTensor<Self>, parameters: FloatTensor<Self>, structure: Structure) -> FloatTensor<Self>;

    /// As [`Extension::coarsen`].
    fn coarsen(x: FloatTensor<Self>, noise: FloatTensor<Self>, levels: Levels) -> FloatTensor<Self>;
}

macro_rules! hosted {
    ($backend:ty) => {
        impl Hosted for $backend {
            fn multiply_structured(x: FloatTensor<Self>, p: FloatTensor<Self>, structure: Structure) -> FloatTensor<Self> {
                product::<Self>(&x, &p, structure)
            }

            fn coarsen(x: FloatTensor<Self>, _: FloatTensor<Self>, _: Levels) -> FloatTensor<Self> {
                x
            }
        }
    };
}

hosted!(Flex);
#[cfg(feature = "cube")]
hosted!(burn::backend::Cube);
#[cfg(feature = "ndarray")]
hosted!(burn::backend::NdArray);

impl<B: Backend, C: CheckpointStrategy> Hosted for Autodiff<B, C> {
    fn multiply_structured(x: FloatTensor<Self>, parameters: FloatTensor<Self>, structure: Structure) -> FloatTensor<Self> {
        let y = product::<B>(x.primitive(), parameters.primitive(), structure);
        match Product.prepare::<C>([x.node(), parameters.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.into_primitive(), parameters.into_primitive(), structure), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn coarsen(x: FloatTensor<Self>, noise: FloatTensor<Self>, levels: Levels) -> FloatTensor<Self> {
        let y = x.primitive().clone();
        match Coarse.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((noise.into_primitive(), levels), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

fn fetch<B: Backend>(tensor: &FloatTensor<B>) -> Vec<f32> {
    let data = try_read_sync(B::float_into_data(tensor.clone())).expect("outside a browser a read ends");
    data.expect("the device has just computed these values").convert::<f32>().try_into_vec().expect("they are floats now")
}

fn send<B: Backend>(values: Vec<f32>, shape: impl Into<Shape>, like: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(values, shape), &like.device())
}

fn product<B: Backend>(x: &FloatTensor<B>, parameters: &FloatTensor<B>, structure: Structure) -> FloatTensor<B> {
    let rows = x.shape()[0];
    let y = prepare(structure, &fetch::<B>(parameters)).forward(&fetch::<B>(x)).expect(CHECKED);
    send::<B>(y, [rows, structure.features()[1]], x)
}

/// The gradients by the input and by the parameters.
#[derive(Debug)]
struct Product;

impl<B: Backend> Backward<B, 2> for Product {
    type State = (FloatTensor<B>, FloatTensor<B>, Structure);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, parameters, structure) = ops.state;
        let [of_x, of_parameters] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let prepared = prepare(structure, &fetch::<B>(&parameters));
        let found = prepared.backward(&fetch::<B>(&x), &fetch::<B>(&dy)).expect(CHECKED);
        if let Some(node) = of_x {
            grads.register::<B>(node.id, send::<B>(found.input, x.shape(), &x));
        }
        if let Some(node) = of_parameters {
            grads.register::<B>(node.id, send::<B>(found.parameters, [structure.count()], &x));
        }
    }
}

#[derive(Debug)]
struct Coarse;

impl<B: Backend> Backward<B, 1> for Coarse {
    type State = (FloatTensor<B>, Levels);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            let (noise, levels) = ops.state;
            let rounded = coarse(&fetch::<B>(&dy), &fetch::<B>(&noise), dy.shape().as_slice(), levels);
            grads.register::<B>(node.id, send::<B>(rounded, dy.shape(), &dy));
        }
    }
}

/// Gradients `[samples, ...]` of fewer values.
pub(super) fn coarse(gradient: &[f32], noise: &[f32], shape: &[usize], levels: Levels) -> Vec<f32> {
    match levels {
        Levels::OfSample { bits } => grid::coarse(gradient, noise, shape[1..].iter().product(), bits),
        Levels::OfFormat { step, end } => grid::in_format(gradient, noise, step, end),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::coding::floats;

    #[test]
    fn structural_products_on_the_way_of_other_devices_are_those_of_flex() {
        let structure = Structure::Butterfly { inputs: 6, outputs: 10 };
        let device = Device::flex();
        device.seed(3);
        let device = device.autodiff();
        let x = Tensor::<2>::random([4, 6], Distribution::Normal(0.0, 1.0), &device).require_grad();
        let p = Tensor::<1>::random([structure.count()], Distribution::Normal(0.0, 1.0), &device).require_grad();
        let ours = <Dispatch as Extension>::multiply_structured(x.clone().into_dispatch(), p.clone().into_dispatch(), structure);
        let hosted = <Dispatch as Hosted>::multiply_structured(x.clone().into_dispatch(), p.clone().into_dispatch(), structure);
        let [ours, hosted] = [ours, hosted].map(|y| {
            let y = Tensor::<2>::from_dispatch(y);
            let grads = y.clone().powi_scalar(2).sum().backward();
            [floats(y.inner()), floats(x.grad(&grads).unwrap()), floats(p.grad(&grads).unwrap())]
        });
        assert!(ours.iter().all(|values| values.iter().any(|v| *v != 0.0)));
        assert_eq!(ours, hosted);
    }

    #[test]
    fn gradients_of_few_bits_on_the_way_of_other_devices_are_those_of_flex() {
        let device = Device::flex();
        device.seed(4);
        let device = device.autodiff();
        let x = Tensor::<2>::random([3, 20], Distribution::Normal(0.0, 1.0), &device).require_grad();
        let noise = Tensor::<2>::random([3, 20], Distribution::Uniform(0.0, 1.0), &device);
        let levels = Levels::OfSample { bits: 2 };
        let gradient = |y| {
            let grads = Tensor::<2>::from_dispatch(y).powi_scalar(2).sum().backward();
            floats(x.grad(&grads).unwrap())
        };
        let [x1, n1] = [x.clone(), noise.clone()].map(Tensor::into_dispatch);
        let ours = gradient(<Dispatch as Extension>::coarsen(x1, n1, levels));
        let [x2, n2] = [x.clone(), noise].map(Tensor::into_dispatch);
        assert_eq!(gradient(<Dispatch as Hosted>::coarsen(x2, n2, levels)), ours);
        let plain: Vec<f32> = floats(x.clone().inner()).iter().map(|x| 2.0 * x).collect();
        assert!(ours.iter().zip(plain).any(|(a, b)| (a - b).abs() > 1e-3));
    }
}
