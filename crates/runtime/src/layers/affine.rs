//! A scale and a shift of each channel.

use super::{Channels, Constants, Extent, Kind, Parameters, Role, Runnable, Sign, Storable, Tensor};
use crate::bytes::Reader;
use crate::engine::{Lies, Operation, Threads, decoded};
use crate::{Activation, Error, Node};

/// `y_c = scale_c x_c + shift_c` for each channel `c`; tensors `shift` `[channels]` and optionally `scale` `[channels]`, without which it
/// is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Affine;

impl Kind for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn tensors(&self) -> Vec<Tensor> {
        let scale = Tensor { name: "scale", shape: Extent::Outputs, role: Role::Beside, required: false };
        vec![scale, Tensor::required("shift", Extent::Outputs, Role::Beside)]
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    /// A channel that is masked has no shift.
    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        let [scale, shift] = ["scale", "shift"].map(|name| (of.tensor)(name).unwrap_or_default().1);
        let value = |(c, value): (usize, &Option<f64>)| {
            let scale = scale.get(c).map_or(1.0, |scale| f64::from(*scale));
            let shift = shift.get(c).map_or(0.0, |shift| f64::from(*shift));
            let known = if scale == 0.0 { Some(0.0) } else { *value };
            known.map(|value| scale * value + shift)
        };
        inputs[0].iter().enumerate().map(value).collect()
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }
}

impl Storable for Affine {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Runnable for Affine {
    fn operation(&self, node: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        let [scale, shift] = scale_and_shift(node);
        Box::new(ScaleShift { scale, shift, activation: None, last: false })
    }

    fn merge(&self, node: &Node, before: &mut dyn Operation) -> bool {
        let [scale, shift] = scale_and_shift(node);
        before.fold(&scale, &shift)
    }
}

fn scale_and_shift(node: &Node) -> [Vec<f32>; 2] {
    let [mut scale, shift] = ["scale", "shift"].map(|name| decoded(node, name));
    scale.resize(shift.len(), 1.0);
    [scale, shift]
}

/// `x * scale + shift` per channel.
#[derive(Debug)]
pub(super) struct ScaleShift {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
    pub(super) activation: Option<Activation>,
    /// Whether maps lie channels last.
    pub(super) last: bool,
}

impl Operation for ScaleShift {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn lie_last(&mut self) {
        self.last = true;
    }

    fn in_place(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        4 * (self.scale.len() + self.shift.len())
    }

    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        Some(&mut self.activation)
    }

    fn run(&self, _: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let sample = output.len() / batch;
        threads.pieces(output, sample, |_, out| {
            let channels = self.scale.len();
            if self.last {
                for pixel in out.chunks_mut(channels) {
                    pixel.iter_mut().zip(&self.scale).zip(&self.shift).for_each(|((x, scale), shift)| *x = *x * scale + shift);
                }
            } else {
                let area = out.len() / channels;
                for ((scale, shift), values) in self.scale.iter().zip(&self.shift).zip(out.chunks_mut(area)) {
                    values.iter_mut().for_each(|x| *x = *x * scale + shift);
                }
            }
            if let Some(activation) = self.activation {
                activation.apply(out);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scale_of_zero_hides_is_the_shift() {
        let constants = |scale: Option<Vec<f32>>| {
            let tensor = |name: &str| match name {
                "scale" => scale.clone().map(|scale| (vec![3], scale)),
                _ => Some((vec![3], vec![0.5, 1.0, -1.0])),
            };
            Affine.constants(&[&vec![Some(2.0), None, None]], &Parameters { channels: 3, pixels: 1, tensor: &tensor })
        };
        assert_eq!(constants(Some(vec![3.0, 0.0, 2.0])), [Some(6.5), Some(1.0), None]);
        assert_eq!(constants(None), [Some(2.5), None, None]);
    }
}
