//! Maps of one channel under each other.

use super::shape::map;
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Codes, Operation, Threads};
use crate::{Error, Node};

/// Of `[C n, h, w]`, where each of `C` channels has `n` maps, makes `[C, n h, w]`: the maps of a channel stand under each other, so that what is
/// done to a channel, such as a batch norm, is done to all of them alike. Or `back` from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Regroup {
    /// Maps of a channel, `n`.
    pub maps: usize,
    /// Whether map `t` of channel `c` is at `t C + c`, so that the maps of a channel lie apart; otherwise it is at `c n + t`.
    pub apart: bool,
    /// Whether maps that stand under each other become channels again.
    pub back: bool,
}

impl Kind for Regroup {
    fn name(&self) -> &'static str {
        "regroup"
    }

    fn check(&self) -> Result<(), String> {
        if self.maps == 0 { Err("channels of 0 maps".into()) } else { Ok(()) }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let ([c, h, w], n) = (map(inputs[0])?, self.maps);
        let misfit = |what: &str, found: usize| Err(format!("{found} {what}, where each channel has {n} maps"));
        match (self.back, c.is_multiple_of(n), h.is_multiple_of(n)) {
            (false, true, _) => Ok(vec![c / n, h.saturating_mul(n), w]),
            (true, _, true) => Ok(vec![c.saturating_mul(n), h / n, w]),
            (false, false, _) => misfit("channels", c),
            (true, _, false) => misfit("rows", h),
        }
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "keeps all maps of a channel together", fixed: true }
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        let (input, n) = (inputs[0], self.maps);
        let place =
            |channel: usize, map: usize, channels: usize| if self.apart { map * channels + channel } else { channel * n + map };
        if self.back {
            let channel = |at: usize| if self.apart { at % input.len() } else { at / n };
            return (0..of.channels).map(|at| input[channel(at)]).collect();
        }
        let one = |channel: usize| {
            let first = input[place(channel, 0, of.channels)];
            first.filter(|_| (1..n).all(|map| input[place(channel, map, of.channels)] == first))
        };
        (0..of.channels).map(one).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for Regroup {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_varint(self.maps);
        out.push(u8::from(self.apart) | u8::from(self.back) << 1);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let maps = reader.varint()?;
        match reader.byte()? {
            flags @ 0..4 => Ok(Self { maps, apart: flags & 1 == 1, back: flags & 2 == 2 }),
            flags => Err(Error::corrupt(format!("flags of a regrouping {flags:08b}"))),
        }
    }
}

/// Maps that follow each other stand under each other already.
impl Runnable for Regroup {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(match self.back {
            true => Transposed { rows: input[0], columns: self.maps, area: output[1] * output[2] },
            false => Transposed { rows: self.maps, columns: output[0], area: input[1] * input[2] },
        })
    }

    fn identity(&self) -> bool {
        !self.apart
    }

    fn codes(&self, _: &Node, _: &[usize], _: &[usize]) -> Codes {
        Codes::Kept
    }
}

/// Of `[rows, columns, area]` makes `[columns, rows, area]`.
#[derive(Debug)]
struct Transposed {
    rows: usize,
    columns: usize,
    area: usize,
}

impl Operation for Transposed {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let sample = output.len() / batch;
        threads.pieces(output, sample, |number, out| {
            let input = &inputs[0][number * sample..][..sample];
            for (at, map) in out.chunks_mut(self.area).enumerate() {
                let from = at % self.rows * self.columns + at / self.rows;
                map.copy_from_slice(&input[from * self.area..][..self.area]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_constant_where_all_its_maps_are_alike() {
        let constants = |regroup: Regroup, input: Constants, channels: usize| {
            regroup.constants(&[&input], &Parameters { channels, pixels: 1, tensor: &|_| None })
        };
        let near = Regroup { maps: 2, apart: false, back: false };
        assert_eq!(constants(near, vec![Some(1.0), Some(1.0), Some(1.0), None], 2), [Some(1.0), None]);
        let apart = Regroup { apart: true, ..near };
        assert_eq!(constants(apart, vec![Some(1.0), Some(2.0), Some(1.0), Some(3.0)], 2), [Some(1.0), None]);
        let input = vec![Some(1.0), None];
        assert_eq!(constants(Regroup { back: true, ..near }, input.clone(), 4), [Some(1.0), Some(1.0), None, None]);
        assert_eq!(constants(Regroup { back: true, ..apart }, input, 4), [Some(1.0), None, Some(1.0), None]);
    }
}
