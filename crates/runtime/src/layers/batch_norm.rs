//! Batch normalization.

use super::affine::ScaleShift;
use super::{Channels, Constants, Extent, Kind, Parameters, Role, Runnable, Setting, Sign, Storable, Tensor};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, decoded};
use crate::{Error, Node};

/// Inference form of batch normalization; tensors `gamma`, `beta`, `mean`, `var`, each `[channels]`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f64,
}

impl Kind for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn check(&self) -> Result<(), String> {
        match self.epsilon {
            epsilon if epsilon.is_finite() && epsilon > 0.0 => Ok(()),
            epsilon => Err(format!("an epsilon of {epsilon}; it is finite and positive")),
        }
    }

    fn tensors(&self) -> Vec<Tensor> {
        let roles = [("gamma", Role::Beside), ("beta", Role::Beside), ("mean", Role::Apart), ("var", Role::Apart)];
        roles.map(|(name, role)| Tensor::required(name, Extent::Outputs, role)).to_vec()
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        let [gamma, beta, mean, var] = ["gamma", "beta", "mean", "var"].map(|name| (of.tensor)(name).unwrap_or_default().1);
        let at = |values: &[f32], c: usize| values.get(c).map_or(0.0, |value| f64::from(*value));
        let value = |(c, value): (usize, &Option<f64>)| {
            let (gamma, beta) = (at(&gamma, c), at(&beta, c));
            if gamma == 0.0 {
                return Some(beta);
            }
            value.map(|value| beta + gamma * (value - at(&mean, c)) / (at(&var, c) + self.epsilon).sqrt())
        };
        inputs[0].iter().enumerate().map(value).collect()
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }

    fn settings(&self) -> Vec<Setting> {
        vec![Setting::finite("epsilon", [self.epsilon])]
    }

    fn usable(&self, tensor: &str, value: f32) -> bool {
        value.is_finite() && (tensor != "var" || (f64::from(value) + self.epsilon).sqrt().recip().is_finite())
    }
}

impl Storable for BatchNorm {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_f64(self.epsilon);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { epsilon: reader.f64()? })
    }
}

impl Runnable for BatchNorm {
    fn operation(&self, node: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        let (scale, shift) = self.scale_and_shift(node);
        Box::new(ScaleShift { scale, shift, activation: None, last: false })
    }

    fn merge(&self, node: &Node, before: &mut dyn Operation) -> bool {
        let (scale, shift) = self.scale_and_shift(node);
        before.fold(&scale, &shift)
    }
}

impl BatchNorm {
    fn scale_and_shift(&self, node: &Node) -> (Vec<f32>, Vec<f32>) {
        let [gamma, beta, mean, var] = ["gamma", "beta", "mean", "var"].map(|name| decoded(node, name));
        let channel = |c: usize| {
            let scale = f64::from(gamma[c]) / (f64::from(var[c]) + self.epsilon).sqrt();
            (scale as f32, (f64::from(beta[c]) - f64::from(mean[c]) * scale) as f32)
        };
        (0..gamma.len()).map(channel).unzip()
    }
}
