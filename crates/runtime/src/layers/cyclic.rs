//! Quarter turns of maps, in four views.

use super::shape::{map, with_channels};
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::Reader;
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// What is added to a mean of squares before the root is taken, so that the gradient of a root at 0 is 0.
pub const TINY: f64 = 1e-12;

/// Operations on four views of an image, turned by `k` quarters counterclockwise, `k = 0 .. 4`. The views are four blocks of channels, `[4 C, h, w]`,
/// where the paper has them stacked along the batch; maps are square, and features `[4 C]` are views of one pixel. `T_k` turns a map.
///
/// Dieleman, De Fauw, Kavukcuoglu. "Exploiting Cyclic Symmetry in Convolutional Neural Networks". ICML 2016. arXiv:1602.02660.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cyclic {
    /// `[C, h, w]` to its views: view `k` is `T_k x`.
    Slice,
    /// `[4 C, h, w]` to views of four times as many channels, `[16 C, h, w]`: block `j` of view `k` is `T_-j` of view `k + j` modulo 4.
    Roll,
    /// View 0 of the rolled ones, `[4 C, h, w]`: views are views no more, but channels.
    Stack,
    /// `[4 C, h, w]` to the mean of the `T_-k` of view `k`, `[C, h, w]`.
    Mean,
    /// To their largest.
    Max,
    /// To the root of the mean of their squares and [`TINY`].
    Rms,
}

impl Cyclic {
    /// Channels of the output of four of the input.
    fn of_four(self) -> usize {
        match self {
            Cyclic::Slice | Cyclic::Roll => 16,
            Cyclic::Stack => 4,
            Cyclic::Mean | Cyclic::Max | Cyclic::Rms => 1,
        }
    }

    /// How many maps of the input each map of the output is made of.
    fn views(self) -> usize {
        match self {
            Cyclic::Slice | Cyclic::Roll | Cyclic::Stack => 1,
            Cyclic::Mean | Cyclic::Max | Cyclic::Rms => 4,
        }
    }

    /// The map of the input, and its quarter turns, of which map `at` of `maps` is made, or the `view`th of these.
    fn read(self, maps: usize, at: usize, view: usize) -> (usize, usize) {
        match self {
            Cyclic::Slice => (at % (maps / 4), at / (maps / 4)),
            Cyclic::Roll => {
                let channels = maps / 16;
                let (k, j, c) = (at / (4 * channels), at / channels % 4, at % channels);
                ((k + j) % 4 * channels + c, (4 - j) % 4)
            }
            Cyclic::Stack => (at, (4 - at / (maps / 4)) % 4),
            Cyclic::Mean | Cyclic::Max | Cyclic::Rms => (view * maps + at, (4 - view) % 4),
        }
    }

    /// What becomes of the values of four views.
    fn pooled(self, values: [f64; 4]) -> f64 {
        match self {
            Cyclic::Slice | Cyclic::Roll | Cyclic::Stack => values[0],
            Cyclic::Mean => values.iter().sum::<f64>() / 4.0,
            Cyclic::Max => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
            Cyclic::Rms => (values.iter().map(|value| value * value).sum::<f64>() / 4.0 + TINY).sqrt(),
        }
    }
}

/// The place from which quarter turns, counterclockwise, bring what is then at row `y` and column `x` of a square.
pub(crate) fn before_turns(side: usize, turns: usize, [mut y, mut x]: [usize; 2]) -> [usize; 2] {
    for _ in 0..turns {
        (y, x) = (x, side - 1 - y);
    }
    [y, x]
}

impl Kind for Cyclic {
    fn name(&self) -> &'static str {
        match self {
            Cyclic::Slice => "cyclic-slice",
            Cyclic::Roll => "cyclic-roll",
            Cyclic::Stack => "cyclic-stack",
            Cyclic::Mean => "cyclic-mean",
            Cyclic::Max => "cyclic-max",
            Cyclic::Rms => "cyclic-rms",
        }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let input = inputs[0];
        if input.len() != 1 || *self == Cyclic::Slice {
            let [_, h, w] = map(input)?;
            if h != w {
                return Err(format!(
                    "turns square maps, got {input:?}; crop or pad the images, or choose strides that leave squares"
                ));
            }
        }
        let channels = input[0];
        if *self != Cyclic::Slice && !channels.is_multiple_of(4) {
            return Err(format!("{channels} channels are no four views"));
        }
        let channels =
            if *self == Cyclic::Slice { channels.saturating_mul(4) } else { (channels / 4).saturating_mul(self.of_four()) };
        Ok(with_channels(channels, input))
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "turns the views of a channel into each other", fixed: true }
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        let value = |at: usize| {
            let mut values = [0.0; 4];
            for (view, value) in values.iter_mut().enumerate().take(self.views()) {
                *value = inputs[0][self.read(of.channels, at, view).0]?;
            }
            Some(self.pooled(values))
        };
        (0..of.channels).map(value).collect()
    }

    fn sign(&self) -> Sign {
        if *self == Cyclic::Rms { Sign::NotNegative } else { Sign::AsInputs }
    }
}

impl Storable for Cyclic {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let all = [Cyclic::Slice, Cyclic::Roll, Cyclic::Stack, Cyclic::Mean, Cyclic::Max, Cyclic::Rms];
        let number = reader.byte()?;
        all.get(usize::from(number)).copied().ok_or_else(|| Error::corrupt(format!("operation {number} on views")))
    }
}

impl Runnable for Cyclic {
    fn operation(&self, _: &Node, _: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Turned { of: *self, maps: output[0], side: output.get(1).copied().unwrap_or(1) })
    }
}

#[derive(Debug)]
struct Turned {
    of: Cyclic,
    /// Maps of the output.
    maps: usize,
    side: usize,
}

impl Operation for Turned {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let (size, area) = (inputs[0].len() / batch, self.side * self.side);
        threads.pieces(output, output.len() / batch, |number, out| {
            let input = &inputs[0][number * size..][..size];
            for (at, map) in out.chunks_mut(area).enumerate() {
                let views: Vec<(usize, usize)> = (0..self.of.views()).map(|view| self.of.read(self.maps, at, view)).collect();
                for (pixel, value) in map.iter_mut().enumerate() {
                    let read = |&(from, turns): &(usize, usize)| {
                        let [y, x] = before_turns(self.side, turns, [pixel / self.side, pixel % self.side]);
                        input[from * area + y * self.side + x]
                    };
                    *value = match views[..] {
                        [ref one] => read(one),
                        _ => {
                            let mut values = [0.0; 4];
                            values.iter_mut().zip(&views).for_each(|(value, view)| *value = f64::from(read(view)));
                            self.of.pooled(values) as f32
                        }
                    };
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_go_where_their_maps_go() {
        let constants = |of: Cyclic, input: &[Option<f64>], channels: usize| {
            of.constants(&[&input.to_vec()], &Parameters { channels, pixels: 1, tensor: &|_| None })
        };
        let four = [Some(1.0), Some(-2.0), None, Some(4.0)];
        assert_eq!(constants(Cyclic::Slice, &four[..1], 4), [Some(1.0); 4]);
        assert_eq!(constants(Cyclic::Stack, &four, 4), four);
        let rolled = constants(Cyclic::Roll, &four, 16);
        assert_eq!((&rolled[..4], &rolled[4..8]), (&four[..], &[four[1], four[2], four[3], four[0]][..]));
        assert_eq!(constants(Cyclic::Mean, &four, 1), [None]);
        let known = [Some(1.0), Some(-2.0), Some(5.0), Some(4.0)];
        let pooled = [Cyclic::Mean, Cyclic::Max, Cyclic::Rms].map(|of| constants(of, &known, 1)[0].unwrap());
        assert_eq!(pooled[..2], [2.0, 5.0]);
        assert!((pooled[2] - 11.5_f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn what_does_not_turn_is_refused() {
        let refused = |of: Cyclic, shape: &[usize]| of.shape(&[shape], None).unwrap_err();
        assert!(refused(Cyclic::Slice, &[1, 4, 5]).contains("turns square maps"));
        assert!(refused(Cyclic::Roll, &[8, 4, 5]).contains("turns square maps"));
        assert!(refused(Cyclic::Slice, &[8]).contains("takes a feature map"));
        assert_eq!(refused(Cyclic::Max, &[6, 4, 4]), "6 channels are no four views");
        assert_eq!(Cyclic::Roll.shape(&[&[8]], None).unwrap(), [32]);
    }
}
