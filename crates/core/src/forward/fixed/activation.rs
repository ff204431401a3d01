//! Element-wise functions.

use briquette_runtime::Activation;
use burn::tensor::{Tensor, activation};

use super::Forward;
use crate::extension::{self, takes};
use crate::forward::Flow;

impl Forward for Activation {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::First(x) => Flow::First(activate(*self, x)),
            Flow::Last(x) => Flow::Last(activate(*self, x)),
            Flow::Vector(x) => Flow::Vector(activate(*self, x)),
        }
    }
}

fn activate<const D: usize>(function: Activation, x: Tensor<D>) -> Tensor<D> {
    match function {
        Activation::Relu if takes(&x) => extension::rectify(x),
        Activation::Relu => activation::relu(x),
        Activation::LeakyRelu { slope } => activation::leaky_relu(x, slope),
        Activation::Relu6 => activation::relu6(x),
        Activation::Sigmoid => activation::sigmoid(x),
        Activation::Tanh => activation::tanh(x),
        Activation::Gelu => activation::gelu(x),
        Activation::Silu => activation::silu(x),
    }
}
