//! Values within bounds.

use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Lies, Operation, PIECE, Threads};
use crate::{Error, Node};

/// `y = min(max(x, low), high)`, where there are bounds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Clip {
    /// The least value.
    pub low: Option<f32>,
    /// The largest value.
    pub high: Option<f32>,
}

impl Clip {
    /// Both bounds, infinite where there is none.
    pub fn bounds(&self) -> [f32; 2] {
        [self.low.unwrap_or(f32::NEG_INFINITY), self.high.unwrap_or(f32::INFINITY)]
    }
}

impl Kind for Clip {
    fn name(&self) -> &'static str {
        "clip"
    }

    fn check(&self) -> Result<(), String> {
        let [low, high] = self.bounds();
        let finite = self.low.into_iter().chain(self.high).all(f32::is_finite);
        match finite && low <= high {
            true => Ok(()),
            false => Err(format!("bounds of {low} and {high}; they are finite, and the first is not above the second")),
        }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        let [low, high] = self.bounds();
        match low <= 0.0 && high >= 0.0 {
            true => Channels::Kept,
            false => Channels::Disturbed("turns a masked channel into something else than zeros"),
        }
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        let [low, high] = self.bounds().map(f64::from);
        inputs[0].iter().map(|known| known.map(|value| value.clamp(low, high))).collect()
    }

    fn sign(&self) -> Sign {
        let [low, high] = self.bounds();
        match (low >= 0.0, high >= 0.0) {
            (true, _) => Sign::NotNegative,
            (false, true) => Sign::AsInputs,
            (false, false) => Sign::Any,
        }
    }
}

impl Storable for Clip {
    fn write(&self, out: &mut Vec<u8>) {
        for bound in [self.low, self.high] {
            out.push(u8::from(bound.is_some()));
            bound.into_iter().for_each(|bound| out.put_f32(bound));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut bound = || Ok::<_, Error>(if reader.truth()? { Some(reader.f32()?) } else { None });
        Ok(Self { low: bound()?, high: bound()? })
    }
}

impl Runnable for Clip {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(*self)
    }
}

impl Operation for Clip {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn in_place(&self) -> bool {
        true
    }

    fn run(&self, _: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        let [low, high] = self.bounds();
        threads.pieces(output, PIECE, |_, out| out.iter_mut().for_each(|x| *x = x.clamp(low, high)));
    }
}
