//! Values on a uniform grid.

use serde::{Deserialize, Serialize};

use crate::bytes::{Put as _, Reader};
use crate::{Error, stream};

/// The most codes of a grid.
const MAX_LEVELS: u32 = 1 << 16;

/// A uniform grid: the code `q` in `0..levels` stands for the value `step_c (q - zero_c)`, where `c` is the index along `axis`, or 0 without
/// one. Two levels about the zero 1/2 are the binary values `-step/2` and `step/2`, three about the zero 1 are ternary, 255 about 127 the
/// symmetric 8-bit integers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Number of codes, 2 to 65536.
    pub levels: u32,
    /// The dimension along which steps and zeros differ; none when the tensor has one of each.
    pub axis: Option<usize>,
    /// Distances between neighbouring values; positive.
    pub steps: Vec<f32>,
    /// The codes, or the middles between two codes, that stand for 0: multiples of 1/2 from 0 to `levels - 1`.
    pub zeros: Vec<f32>,
}

impl Grid {
    /// One grid for a whole tensor.
    pub fn uniform(levels: u32, step: f32, zero: f32) -> Self {
        Self { levels, axis: None, steps: vec![step], zeros: vec![zero] }
    }

    /// The value of a code of channel `c`.
    pub fn value(&self, c: usize, code: u16) -> f32 {
        self.steps[c] * (f32::from(code) - self.zeros[c])
    }

    /// The code of channel `c` whose value is nearest to `value`; of two, the higher.
    pub fn nearest(&self, c: usize, value: f32) -> u16 {
        let code = (value / self.steps[c] + self.zeros[c]).clamp(0.0, (self.levels - 1) as f32);
        // The cast makes 0 of what is not a number.
        (code + 0.5) as u16
    }

    /// Bits of a code before its coder.
    pub fn bits(&self) -> u32 {
        stream::width(self.levels as usize)
    }

    /// Whether the grid makes sense for a tensor of this shape.
    ///
    /// # Errors
    /// Says what does not.
    pub fn check(&self, shape: &[usize]) -> Result<(), Error> {
        let channels = match self.axis {
            None => 1,
            Some(axis) => *shape.get(axis).ok_or_else(|| Error::corrupt(format!("a grid along axis {axis} of {shape:?}")))?,
        };
        if !(2..=MAX_LEVELS).contains(&self.levels) {
            return Err(Error::corrupt(format!("a grid of {} levels; it takes 2 to {MAX_LEVELS}", self.levels)));
        }
        if self.steps.len() != channels || self.zeros.len() != channels {
            let found = [self.steps.len(), self.zeros.len()];
            return Err(Error::corrupt(format!("{} steps and {} zeros of a grid for {channels}", found[0], found[1])));
        }
        if let Some(step) = self.steps.iter().find(|step| !(step.is_finite() && **step > 0.0)) {
            return Err(Error::corrupt(format!("a grid of the step {step}")));
        }
        let last = (self.levels - 1) as f32;
        match self.zeros.iter().find(|zero| !((0.0..=last).contains(*zero) && (**zero * 2.0).fract() == 0.0)) {
            Some(zero) => Err(Error::corrupt(format!("a grid with 0 at the code {zero} of {}", self.levels))),
            None => Ok(()),
        }
    }

    /// The channel of each position of a tensor of this shape.
    pub fn channel_of(&self, shape: &[usize]) -> impl Fn(usize) -> usize + use<> {
        let (inner, channels) = match self.axis {
            None => (1, 1),
            Some(axis) => (shape[axis + 1..].iter().product(), shape[axis]),
        };
        move |position| position / inner % channels
    }

    /// Appends levels, axis, steps and zeros.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_varint(self.levels as usize);
        out.push(self.axis.map_or(0, |axis| axis as u8 + 1));
        self.steps.iter().for_each(|step| out.put_f32(*step));
        let shared = self.shared_zero();
        out.push(u8::from(shared));
        let zeros = if shared { &self.zeros[..1] } else { &self.zeros };
        zeros.iter().for_each(|zero| out.put_varint((zero * 2.0) as usize));
    }

    /// Reads [`Grid::write`] for a tensor of this shape.
    pub(crate) fn read(reader: &mut Reader<'_>, shape: &[usize]) -> Result<Self, Error> {
        let levels = reader.varint()?;
        let levels = u32::try_from(levels).map_err(|_| Error::corrupt(format!("a grid of {levels} levels")))?;
        let axis = usize::from(reader.byte()?).checked_sub(1);
        let channels = axis.map_or(Some(1), |axis| shape.get(axis).copied());
        let channels = channels.ok_or_else(|| Error::corrupt(format!("a grid along axis {axis:?} of {shape:?}")))?;
        let bytes = reader.bytes(channels.saturating_mul(4))?;
        let steps = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let zero = |reader: &mut Reader<'_>| Ok(reader.varint()? as f32 / 2.0);
        let shared = reader.byte()?;
        let zeros = match shared {
            1 if channels > 0 => vec![zero(reader)?; channels],
            0 => (0..channels).map(|_| zero(reader)).collect::<Result<_, Error>>()?,
            other => return Err(Error::corrupt(format!("a shared zero of {other}"))),
        };
        let grid = Self { levels, axis, steps, zeros };
        grid.check(shape)?;
        match grid.shared_zero() == (shared == 1) {
            true => Ok(grid),
            false => Err(Error::corrupt("a grid repeats its zero")),
        }
    }

    /// Bits that [`Grid::write`] appends.
    pub(crate) fn stored_bits(&self) -> u64 {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        8 * bytes.len() as u64
    }

    fn shared_zero(&self) -> bool {
        !self.zeros.is_empty() && self.zeros.iter().all(|zero| *zero == self.zeros[0])
    }
}
