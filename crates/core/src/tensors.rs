//! Layers whose parameters Burn has no module for: tensors by name, of any rank.

use briquette_runtime::Layer;
use briquette_runtime::layers::Extent;
use burn::module::{Module, Param};
use burn::tensor::{Device, Gradients, Tensor};

use crate::error::{Error, Result};
use crate::stored::Stored;
use crate::values::floats;

/// A layer and its parameters.
#[derive(Module, Debug)]
pub struct Tensors {
    /// Those that it has, in the order in which its kind names them.
    pub parameters: Vec<Parameter>,
    /// What it computes.
    #[module(skip)]
    pub layer: Layer,
}

/// A parameter of a layer.
#[derive(Module, Debug)]
pub struct Parameter {
    /// Its values.
    pub values: Ranked,
    /// Its name within the layer.
    #[module(skip)]
    pub name: &'static str,
}

/// A tensor of any rank that a layer's parameter has.
#[derive(Module, Debug)]
pub enum Ranked {
    /// A vector.
    One(Param<Tensor<1>>),
    /// A matrix.
    Two(Param<Tensor<2>>),
    /// Three dimensions.
    Three(Param<Tensor<3>>),
    /// Filters.
    Four(Param<Tensor<4>>),
}

/// The same of a parameter, whatever its rank.
macro_rules! of_any_rank {
    ($values:expr, $param:ident => $what:expr) => {
        match $values {
            Ranked::One($param) => $what,
            Ranked::Two($param) => $what,
            Ranked::Three($param) => $what,
            Ranked::Four($param) => $what,
        }
    };
}

impl Tensors {
    pub(crate) fn new(layer: &Layer, parameters: Vec<Stored>, trains: bool, device: &Device) -> Result<Self> {
        let parameter = |stored: Stored| {
            let name = stored.name;
            Ok(Parameter { values: Ranked::new(stored, trains, device)?, name })
        };
        Ok(Self { parameters: parameters.into_iter().map(parameter).collect::<Result<_>>()?, layer: layer.clone() })
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Ranked> {
        self.parameters.iter().find(|parameter| parameter.name == name).map(|parameter| &parameter.values)
    }

    /// Whether the layer has the tensors that its kind takes, for an output of this shape.
    pub(crate) fn check(&self, output: &[usize]) -> std::result::Result<(), String> {
        for tensor in self.layer.kind().tensors() {
            let found = self.get(tensor.name).map(Ranked::shape);
            let expected = match tensor.shape {
                Extent::Free => found.clone(),
                Extent::Outputs => Some(output[..1].to_vec()),
                Extent::Exactly(shape) => Some(shape),
            };
            if found.is_some() && found != expected || found.is_none() && tensor.required {
                return Err(format!("{} has the shape {found:?}, expected {expected:?}", tensor.name));
            }
        }
        Ok(())
    }
}

impl Ranked {
    fn new(stored: Stored, trains: bool, device: &Device) -> Result<Self> {
        let rank = stored.shape.len();
        Ok(match rank {
            1 => Ranked::One(stored.param(device)?.set_require_grad(trains)),
            2 => Ranked::Two(stored.param(device)?.set_require_grad(trains)),
            3 => Ranked::Three(stored.param(device)?.set_require_grad(trains)),
            4 => Ranked::Four(stored.param(device)?.set_require_grad(trains)),
            _ => return Err(Error::State(format!("tensor '{}' of {rank} dimensions; there are one to four", stored.name))),
        })
    }

    /// Its shape.
    pub fn shape(&self) -> Vec<usize> {
        of_any_rank!(self, param => param.lazy_shape().as_slice().to_vec())
    }

    /// Its values, one after the other, in the graph.
    pub fn flat(&self) -> Tensor<1> {
        of_any_rank!(self, param => param.val().reshape([-1]))
    }

    /// Its gradient; none where the loss did not reach it.
    pub(crate) fn gradient(&self, gradients: &Gradients) -> Option<Vec<f32>> {
        of_any_rank!(self, param => param.val().grad(gradients).map(floats))
    }

    /// It on the host, under this name.
    pub(crate) fn stored(&self, name: &'static str) -> Stored {
        of_any_rank!(self, param => Stored::of(name, param))
    }
}
