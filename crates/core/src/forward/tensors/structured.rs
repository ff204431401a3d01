//! Structural matrices.

use briquette_runtime::layers::Structured;
use burn::tensor::Tensor;

use super::Compute;
use crate::extension;
use crate::forward::Flow;
use crate::net::Value;
use crate::tensors::{Ranked, Tensors};

impl Compute for Structured {
    fn forward(&self, tensors: &Tensors, mut inputs: Vec<Flow>) -> Flow {
        let own = tensors.parameters.iter().filter(|parameter| parameter.name != "bias");
        let parameters = Tensor::cat(own.map(|parameter| parameter.values.flat()).collect(), 0);
        let bias = tensors.get("bias").map(Ranked::flat);
        let product = |x: Tensor<2>| {
            let y = extension::structured(self.structure, parameters.clone(), x);
            bias.clone().map_or(y.clone(), |bias| y + bias.unsqueeze())
        };
        match inputs.remove(0).value() {
            Value::Vector(x) => Flow::Vector(product(x)),
            Value::Map(x) => {
                let [batch, channels, height, width] = x.dims();
                let rows = x.permute([0, 2, 3, 1]).reshape([batch * height * width, channels]);
                let y = product(rows);
                let outputs = self.structure.features()[1];
                Flow::First(y.reshape([batch, height, width, outputs]).permute([0, 3, 1, 2]))
            }
        }
    }
}
