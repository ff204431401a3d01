//! Convolution.

use super::shape::{extent, map, padded};
use super::{Channels, Constants, Extent, Kind, Layer, Parameters, Role, Runnable, Sign, Storable, Tensor};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Codes, Epilogue, Geometry, Operation, decoded, product};
use crate::{Coded, Error, Node, Padding};

/// Cross-correlation; tensors `weight` `[out, in / groups, kh, kw]` and optionally `bias` `[out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Conv2d {
    /// Step between windows, `[vertical, horizontal]`.
    pub stride: [usize; 2],
    /// Zeros around the input.
    pub padding: Padding,
    /// Spacing between kernel taps.
    pub dilation: [usize; 2],
    /// Input and output channels are split into this many independent groups.
    pub groups: usize,
}

impl Kind for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn tensors(&self) -> Vec<Tensor> {
        vec![Tensor::required("weight", Extent::Free, Role::Weight), Tensor::bias()]
    }

    fn shape(&self, inputs: &[&[usize]], weight: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let [c, h, w] = map(inputs[0])?;
        let Some(&[out, fan, kh, kw]) = weight else {
            return Err(format!("weight must be [out, in / groups, kh, kw], is {weight:?}"));
        };
        if self.groups == 0 || fan.checked_mul(self.groups) != Some(c) || out == 0 || !out.is_multiple_of(self.groups) {
            return Err(format!("weight {weight:?} in {} group(s) does not take {c} channels", self.groups));
        }
        let [ph, pw] = padded(self.padding, [c, h, w])?;
        let along = |axis: usize, size, kernel| extent(size, kernel, self.stride[axis], self.dilation[axis]);
        match (along(0, ph, kh), along(1, pw, kw)) {
            (Some(oh), Some(ow)) => Ok(vec![out, oh, ow]),
            _ => Err(format!("kernel {kh}x{kw} does not fit the input {:?}", inputs[0])),
        }
    }

    fn channels(&self) -> Channels {
        Channels::Made { groups: self.groups }
    }

    /// A depthwise convolution has as many groups as channels.
    fn with_channels(&self, input: &[usize], _: &[usize]) -> Option<Layer> {
        let depthwise = self.groups > 1 && self.groups == input.len();
        depthwise.then(|| Self { groups: input.iter().sum(), ..*self }.into())
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        of_filters(inputs[0], of, self.groups, !self.padding.is_none())
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }
}

/// Filters without weights give their bias; others a constant where all that they read is one, unless padding comes between.
pub(super) fn of_filters(input: &Constants, of: &Parameters<'_>, groups: usize, padded: bool) -> Constants {
    let Some((shape, weight)) = (of.tensor)("weight") else { return of.unknown() };
    let bias = (of.tensor)("bias").map(|(_, bias)| bias);
    let [out, fan_in] = [shape[0], shape[1]];
    let area = weight.len() / (out * fan_in);
    let value = |filter: usize| {
        let start = filter / (out / groups) * fan_in;
        let mut sum = bias.as_ref().map_or(0.0, |bias| f64::from(bias[filter]));
        for (c, taps) in weight[filter * fan_in * area..][..fan_in * area].chunks_exact(area).enumerate() {
            if taps.iter().all(|w| *w == 0.0) {
                continue;
            }
            let read = input[start + c].filter(|read| !padded || *read == 0.0)?;
            sum += read * taps.iter().map(|w| f64::from(*w)).sum::<f64>();
        }
        Some(sum)
    };
    (0..out).map(value).collect()
}

impl Storable for Conv2d {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_sizes(&self.stride);
        out.put_padding(self.padding);
        out.put_sizes(&self.dilation);
        out.put_varint(self.groups);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { stride: reader.sizes()?, padding: reader.padding()?, dilation: reader.sizes()?, groups: reader.varint()? })
    }
}

impl Runnable for Conv2d {
    fn operation(&self, node: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        let epilogue = Epilogue { bias: decoded(node, "bias"), activation: None };
        product(self.geometry(node, input, output), &decoded(node, "weight"), epilogue, output[0])
    }

    fn codes(&self, node: &Node, input: &[usize], output: &[usize]) -> Codes {
        Codes::Taken(self.geometry(node, input, output))
    }
}

impl Conv2d {
    fn geometry(&self, node: &Node, input: &[usize], output: &[usize]) -> Geometry {
        let kernel = match node.tensor("weight").map(Coded::shape) {
            Some(&[_, _, kh, kw]) => [kh, kw],
            _ => [1, 1],
        };
        let Self { stride, padding, dilation, groups } = *self;
        let (input, channels) = ([input[1], input[2]], input[0]);
        Geometry { channels, input, output: [output[1], output[2]], kernel, stride, padding, dilation, groups }
    }
}
