//! What convolutions and fully connected layers have in common: a weight, a bias, and which axis is which.

use burn::module::{Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::coding::coding_of;
use crate::net::{Node, Op};

/// A convolution or a fully connected layer, seen alike. Tensors are in four dimensions, in the order in which Burn keeps them:
/// `[out, in / groups, kh, kw]`, and `[in, out, 1, 1]` of a fully connected layer.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    weight: Weight<'a>,
    /// One value for each output.
    pub bias: Option<&'a Param<Tensor<1>>>,
    /// Axis of the outputs.
    pub outputs: usize,
    /// Axis of the inputs.
    pub inputs: usize,
    /// Groups of channels.
    pub groups: usize,
}

#[derive(Debug, Clone, Copy)]
enum Weight<'a> {
    Filters(&'a Param<Tensor<4>>),
    Matrix(&'a Param<Tensor<2>>),
}

impl Node {
    /// Its weight and bias, if it is a convolution or a fully connected layer.
    pub fn dense(&self) -> Option<Dense<'_>> {
        match &self.op {
            Op::Conv2d(conv) => Some(Dense {
                weight: Weight::Filters(&conv.weight),
                bias: conv.bias.as_ref(),
                outputs: 0,
                inputs: 1,
                groups: conv.groups,
            }),
            Op::Linear(linear) => Some(Dense {
                weight: Weight::Matrix(&linear.weight),
                bias: linear.bias.as_ref(),
                outputs: 1,
                inputs: 0,
                groups: 1,
            }),
            Op::BatchNorm(_) | Op::Tensors(_) | Op::Fixed(_) => None,
        }
    }

    /// Has a convolution or fully connected layer compute with what `weight` and `bias` make of its own, which are leaves of the graph no more.
    pub fn pass_through(&mut self, weight: impl FnOnce(Tensor<4>) -> Tensor<4>, bias: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        let Some(dense) = self.dense() else { return };
        let new = weight(dense.weight());
        let bias = dense.bias.map(|own| value(bias(own.val())));
        match &mut self.op {
            Op::Conv2d(conv) => (conv.weight, conv.bias) = (value(new), bias),
            Op::Linear(linear) => {
                let shape = linear.weight.lazy_shape().dims::<2>();
                (linear.weight, linear.bias) = (value(new.reshape(shape)), bias);
            }
            Op::BatchNorm(_) | Op::Tensors(_) | Op::Fixed(_) => {}
        }
    }
}

/// A value of the graph as a parameter.
fn value<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), tensor)
}

impl Dense<'_> {
    /// The id of the weight.
    pub fn id(&self) -> ParamId {
        match self.weight {
            Weight::Filters(weight) => weight.id,
            Weight::Matrix(weight) => weight.id,
        }
    }

    /// The weight that the network computes with.
    pub fn weight(&self) -> Tensor<4> {
        match self.weight {
            Weight::Filters(weight) => weight.val(),
            Weight::Matrix(weight) => raised(weight.val()),
        }
    }

    /// The weight before its coding is applied.
    pub fn base(&self) -> Tensor<4> {
        match self.weight {
            Weight::Filters(weight) => weight.base(),
            Weight::Matrix(weight) => raised(weight.base()),
        }
    }

    /// Which of the weights stay, if a mask says so.
    pub fn mask(&self) -> Option<Vec<bool>> {
        match self.weight {
            Weight::Filters(weight) => coding_of(weight).mask,
            Weight::Matrix(weight) => coding_of(weight).mask,
        }
    }

    /// The gradient of the weight; none where the loss did not reach it.
    pub fn gradient(&self, gradients: &GradientsParams) -> Option<Tensor<4>> {
        match self.weight {
            Weight::Filters(weight) => gradients.get::<4>(weight.id),
            Weight::Matrix(weight) => gradients.get::<2>(weight.id).map(raised),
        }
    }
}

/// A matrix in four dimensions.
fn raised(matrix: Tensor<2>) -> Tensor<4> {
    let [rows, columns] = matrix.dims();
    matrix.reshape([rows, columns, 1, 1])
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use crate::builder::{Builder, Conv};
    use crate::values::floats;

    fn net() -> crate::net::Net {
        let mut b = Builder::new([4, 5, 5], 3, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(6, 3).groups(2).no_bias());
        let x = b.batch_norm("norm", x);
        let x = b.flatten("flat", x);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    }

    #[test]
    fn axes_are_those_of_outputs_and_inputs_and_other_layers_have_none() {
        let net = net();
        let seen = net.nodes.iter().filter_map(|node| {
            let dense = node.dense()?;
            let sizes = dense.weight().dims();
            Some((node.name.as_str(), sizes[dense.outputs], sizes[dense.inputs], dense.groups, dense.bias.is_some()))
        });
        assert_eq!(seen.collect::<Vec<_>>(), [("conv", 6, 2, 2, false), ("fc", 3, 54, 1, true)]);
    }

    #[test]
    fn what_passes_through_is_computed_with_and_has_the_gradient_of_its_own() {
        let device = Device::flex();
        let net = net();
        let mut doubled = net.deep_clone().train();
        let leaves = doubled.clone();
        for node in &mut doubled.nodes {
            node.pass_through(|weight| weight.mul_scalar(2.0), |bias| bias.add_scalar(1.0));
        }
        let x = Tensor::<4>::ones([2, 4, 5, 5], &device.autodiff());
        let gradients = doubled.forward(x).sum().backward();
        let gradients = GradientsParams::from_grads(gradients, &leaves);
        for (own, other) in leaves.nodes.iter().zip(&doubled.nodes) {
            let (Some(own), Some(other)) = (own.dense(), other.dense()) else { continue };
            let twice: Vec<f32> = floats(own.weight()).iter().map(|w| 2.0 * w).collect();
            assert_eq!(floats(other.weight()), twice);
            assert!(own.gradient(&gradients).is_some_and(|gradient| gradient.dims() == own.weight().dims()));
            let bias = other.bias.map(|bias| floats(bias.val()));
            assert!(bias.is_none_or(|bias| bias.iter().all(|b| *b == 1.0)));
        }
    }
}
