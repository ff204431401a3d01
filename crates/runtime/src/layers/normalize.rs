//! Normalization of the input.

use super::shape::map;
use super::{Channels, Constants, Kind, Parameters, Runnable, Setting, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// `y_c = (x_c - mean_c) / std_c`: input normalization that travels inside the network.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Normalize {
    /// One mean per channel, in the input's unit (pixels divided by 255).
    pub mean: Vec<f32>,
    /// One deviation per channel.
    pub std: Vec<f32>,
}

impl Kind for Normalize {
    fn name(&self) -> &'static str {
        "normalize"
    }

    fn check(&self) -> Result<(), String> {
        let Self { mean, std } = self;
        if mean.iter().chain(std).any(|value| !value.is_finite()) || std.iter().any(|std| *std <= 0.0) {
            return Err(format!("means {mean:?} and deviations {std:?}; they are finite, deviations positive"));
        }
        Ok(())
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        if map(inputs[0])?[0] != self.mean.len() || self.mean.len() != self.std.len() {
            return Err(format!("{} means and {} deviations for the input {:?}", self.mean.len(), self.std.len(), inputs[0]));
        }
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        Channels::Disturbed("turns a masked channel into something else than zeros")
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }

    fn settings(&self) -> Vec<Setting> {
        let wide = |numbers: &[f32]| numbers.iter().map(|number| f64::from(*number)).collect::<Vec<_>>();
        let divides = |number: f64| number.is_finite() && number != 0.0;
        vec![Setting::finite("mean", wide(&self.mean)), Setting::new("std", wide(&self.std), divides)]
    }
}

impl Storable for Normalize {
    fn write(&self, out: &mut Vec<u8>) {
        for list in [&self.mean, &self.std] {
            out.put_varint(list.len());
            list.iter().for_each(|value| out.put_f32(*value));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut floats = || -> Result<Vec<f32>, Error> {
            let count = reader.varint()?;
            (0..count).map(|_| reader.f32()).collect()
        };
        Ok(Self { mean: floats()?, std: floats()? })
    }
}

impl Runnable for Normalize {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(self.clone())
    }
}

impl Operation for Normalize {
    fn in_place(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        4 * (self.mean.len() + self.std.len())
    }

    fn run(&self, _: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let sample = output.len() / batch;
        threads.pieces(output, sample, |_, out| {
            let area = out.len() / self.mean.len();
            for ((mean, std), values) in self.mean.iter().zip(&self.std).zip(out.chunks_mut(area)) {
                values.iter_mut().for_each(|x| *x = (*x - mean) / std);
            }
        });
    }
}
