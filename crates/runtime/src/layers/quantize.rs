//! Activations on a grid.

use super::{Channels, Constants, Extent, Kind, Parameters, Role, Runnable, Sign, Storable, Tensor};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Codes, Lies, Operation, PIECE, Threads, decoded};
use crate::{Error, Grid, Node};

/// `y = step (q - zero)` with the code `q = floor(clamp(x / step + zero, 0, levels - 1) + 1/2)`: activations on a uniform grid; tensor
/// `step` `[1]`, or `alpha` `[1]`, the grid's upper end ([`StepGradient::tensor`]). Two levels about the zero 1/2 give the sign, times half a
/// step.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Quantize {
    /// Number of codes, 2 to 65536.
    pub levels: u32,
    /// The code that stands for 0, or the middle of two codes: a multiple of 1/2.
    pub zero: f32,
    /// What trains the step.
    pub train: StepGradient,
}

/// What trains the step of a quantizer; inference does not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepGradient {
    /// Nothing: it stays.
    #[default]
    Fixed,
    /// `dy/dstep = q - zero - x / step` inside the grid and `q - zero` beyond its ends, scaled by one over the root of values times codes
    /// (Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", ICLR 2020).
    Learned,
    /// The clip value `alpha = step (levels - 1 - zero)`, the upper end, is what is trained and stored; its gradient is 1 beyond that end and 0
    /// elsewhere (Choi et al., "PACT", 2018).
    Clip,
}

impl StepGradient {
    /// The name of a quantizer's tensor.
    pub fn tensor(self) -> &'static str {
        match self {
            StepGradient::Fixed | StepGradient::Learned => "step",
            StepGradient::Clip => "alpha",
        }
    }

    /// What one step is of a quantizer's tensor: 1, or for a clip value the number of steps up to it.
    pub fn steps(self, levels: u32, zero: f32) -> f32 {
        match self {
            StepGradient::Fixed | StepGradient::Learned => 1.0,
            StepGradient::Clip => (levels - 1) as f32 - zero,
        }
    }
}

impl Kind for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn check(&self) -> Result<(), String> {
        Grid::uniform(self.levels, 1.0, self.zero).check(&[]).map_err(|error| error.to_string())
    }

    fn tensors(&self) -> Vec<Tensor> {
        vec![Tensor::required(self.train.tensor(), Extent::Exactly(vec![1]), Role::Apart)]
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        match self.zero.fract() == 0.0 {
            true => Channels::Kept,
            false => Channels::Disturbed("has no 0 to turn a masked channel into"),
        }
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        let tensor = (of.tensor)(self.train.tensor()).and_then(|(_, values)| values.first().copied());
        let step = tensor.map_or(1.0, |tensor| f64::from(self.step(tensor)));
        let (zero, last) = (f64::from(self.zero), f64::from(self.levels - 1));
        let value = |x: f64| step * (((x / step + zero).clamp(0.0, last) + 0.5).floor() - zero);
        inputs[0].iter().map(|known| known.map(value)).collect()
    }

    fn sign(&self) -> Sign {
        if self.zero == 0.0 { Sign::NotNegative } else { Sign::Any }
    }
}

impl Storable for Quantize {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_varint(self.levels as usize);
        out.put_varint((self.zero * 2.0) as usize);
        out.push(match self.train {
            StepGradient::Fixed => 0,
            StepGradient::Learned => 1,
            StepGradient::Clip => 2,
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let (levels, zero) = (reader.varint()?, reader.varint()?);
        let levels = u32::try_from(levels).map_err(|_| Error::corrupt(format!("a quantizer of {levels} levels")))?;
        let train = match reader.byte()? {
            0 => StepGradient::Fixed,
            1 => StepGradient::Learned,
            2 => StepGradient::Clip,
            other => return Err(Error::corrupt(format!("training {other} of a step"))),
        };
        let zero = zero as f32 / 2.0;
        Grid::uniform(levels, 1.0, zero).check(&[])?;
        Ok(Self { levels, zero, train })
    }
}

impl Runnable for Quantize {
    fn operation(&self, node: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(self.grid(node))
    }

    fn codes(&self, node: &Node, _: &[usize], _: &[usize]) -> Codes {
        Codes::Made(self.grid(node))
    }
}

impl Quantize {
    /// The step for this value of the tensor.
    pub fn step(&self, tensor: f32) -> f32 {
        tensor / self.train.steps(self.levels, self.zero)
    }

    fn grid(&self, node: &Node) -> Grid {
        let tensor = decoded(node, self.train.tensor())[0];
        Grid::uniform(self.levels, self.step(tensor), self.zero)
    }
}

impl Grid {
    /// The values of the nearest codes, in place, on a grid of one step.
    pub(crate) fn round(&self, values: &mut [f32]) {
        let (step, zero, last) = (self.steps[0], self.zeros[0], (self.levels - 1) as f32);
        values.iter_mut().for_each(|x| *x = step * (((*x / step + zero).clamp(0.0, last) + 0.5).floor() - zero));
    }
}

impl Operation for Grid {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn in_place(&self) -> bool {
        true
    }

    fn run(&self, _: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        threads.pieces(output, PIECE, |_, out| self.round(out));
    }
}
