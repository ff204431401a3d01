//! Fully connected layer.

use super::conv2d::of_filters;
use super::{Channels, Constants, Extent, Kind, Parameters, Role, Runnable, Sign, Storable, Tensor};
use crate::bytes::Reader;
use crate::engine::{Codes, Epilogue, Geometry, Operation, decoded, product};
use crate::{Error, Node};

/// `y = W x + b`; tensors `weight` `[out, in]` and optionally `bias` `[out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Linear;

impl Kind for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn tensors(&self) -> Vec<Tensor> {
        vec![Tensor::required("weight", Extent::Free, Role::Weight), Tensor::bias()]
    }

    fn shape(&self, inputs: &[&[usize]], weight: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let Some(&[out, fan]) = weight else {
            return Err(format!("weight must be [out, in], is {weight:?}"));
        };
        if *inputs[0] != [fan] || out == 0 {
            return Err(format!("weight {weight:?} does not take the input {:?}", inputs[0]));
        }
        Ok(vec![out])
    }

    fn channels(&self) -> Channels {
        Channels::Made { groups: 1 }
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        of_filters(inputs[0], of, 1, false)
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }
}

impl Storable for Linear {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Linear {
    fn operation(&self, node: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        let epilogue = Epilogue { bias: decoded(node, "bias"), activation: None };
        product(Geometry::pixel(input[0]), &decoded(node, "weight"), epilogue, output[0])
    }

    fn codes(&self, _: &Node, input: &[usize], _: &[usize]) -> Codes {
        Codes::Taken(Geometry::pixel(input[0]))
    }
}
