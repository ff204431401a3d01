//! Values of tensors and parameters: on the host, without gradients, and new ones for a module that is being trained.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;

/// The module with these values, flat and without gradients, in the place of the parameters' own. Ids and codings stay, so that the
/// optimizer and the masks go on.
pub fn replace<M: Module>(module: M, values: HashMap<ParamId, Tensor<1>>) -> M {
    module.map(&mut Values(values))
}

struct Values(HashMap<ParamId, Tensor<1>>);

impl ModuleMapper for Values {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(new) = self.0.remove(&param.id) else { return param };
        param.map(|old| {
            let new = new.reshape(old.shape());
            if old.is_autodiff() { Tensor::from_inner(new).set_require_grad(old.is_require_grad()) } else { new }
        })
    }
}

/// A tensor without its gradients.
pub fn plain<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.is_autodiff() { tensor.inner() } else { tensor }
}

/// The values of a tensor on the host.
pub fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("the data was converted to f32")
}
