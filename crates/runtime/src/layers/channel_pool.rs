//! Pooling over channels.

use super::shape::with_channels;
use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// Pools the maps of each `grid` at each pixel over windows that do not overlap. Of `[a, b]` the channel `(g a + i) b + j` is at row `i`
/// and column `j` of grid `g`; a window of `[s, t]` makes `[C a b, h, w]` to `[C floor(a / s) floor(b / t), h, w]`, in the same order. Rows
/// and columns that fill no window are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChannelPool {
    /// Rows and columns of a grid of channels.
    pub grid: [usize; 2],
    /// Rows and columns of a window.
    pub window: [usize; 2],
    /// What becomes of a window.
    pub reduction: Reduction,
}

/// What a window becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Its largest value.
    Max,
    /// The mean of its values.
    Mean,
}

impl ChannelPool {
    /// Rows and columns of windows in a grid.
    pub fn windows(&self) -> [usize; 2] {
        [self.grid[0] / self.window[0], self.grid[1] / self.window[1]]
    }

    /// The input channels of the window that makes an output channel.
    fn read(&self, output: usize) -> impl Iterator<Item = usize> {
        let ([rows, columns], [a, b], [s, t]) = (self.windows(), self.grid, self.window);
        let (grid, row, column) = (output / columns / rows, output / columns % rows, output % columns);
        (0..s).flat_map(move |i| (0..t).map(move |j| (grid * a + row * s + i) * b + column * t + j))
    }
}

impl Kind for ChannelPool {
    fn name(&self) -> &'static str {
        "channel-pool"
    }

    fn check(&self) -> Result<(), String> {
        let fits = |axis: usize| (1..=self.grid[axis]).contains(&self.window[axis]);
        match fits(0) && fits(1) && self.grid[0].checked_mul(self.grid[1]).is_some() {
            true => Ok(()),
            false => Err(format!("windows of {:?} in grids of {:?}, which they fit at least once", self.window, self.grid)),
        }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let (channels, [a, b], [rows, columns]) = (inputs[0].first().copied().unwrap_or(0), self.grid, self.windows());
        if !channels.is_multiple_of(a * b) {
            return Err(format!("{channels} channels are no multiple of the {a} by {b} of a grid"));
        }
        Ok(with_channels(channels / (a * b) * rows * columns, inputs[0]))
    }

    /// The channels of a grid stay or go together.
    fn channels(&self) -> Channels {
        let [rows, columns] = self.windows();
        Channels::Blocked { from: self.grid[0] * self.grid[1], to: rows * columns }
    }

    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants {
        let value = |output: usize| {
            let known: Option<Vec<f64>> = self.read(output).map(|channel| inputs[0][channel]).collect();
            known.map(|known| match self.reduction {
                Reduction::Max => known.into_iter().fold(f64::NEG_INFINITY, f64::max),
                Reduction::Mean => known.iter().sum::<f64>() / known.len() as f64,
            })
        };
        (0..of.channels).map(value).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }
}

impl Storable for ChannelPool {
    fn write(&self, out: &mut Vec<u8>) {
        [self.grid, self.window].iter().for_each(|pair| out.put_sizes(pair));
        out.push(match self.reduction {
            Reduction::Max => 0,
            Reduction::Mean => 1,
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let [grid, window] = [reader.sizes()?, reader.sizes()?];
        let reduction = match reader.byte()? {
            0 => Reduction::Max,
            1 => Reduction::Mean,
            other => return Err(Error::corrupt(format!("reduction {other} of channels"))),
        };
        Ok(Self { grid, window, reduction })
    }
}

impl Runnable for ChannelPool {
    fn operation(&self, _: &Node, input: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(Pooled { pool: *self, area: input[1..].iter().product() })
    }
}

#[derive(Debug)]
struct Pooled {
    pool: ChannelPool,
    /// Pixels of a channel.
    area: usize,
}

impl Operation for Pooled {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let size = inputs[0].len() / batch;
        let count = self.pool.window.iter().product::<usize>() as f32;
        threads.pieces(output, output.len() / batch, |number, out| {
            let input = &inputs[0][number * size..][..size];
            for (channel, out) in out.chunks_mut(self.area).enumerate() {
                let planes = self.pool.read(channel).map(|channel| &input[channel * self.area..][..self.area]);
                match self.pool.reduction {
                    Reduction::Max => {
                        out.fill(f32::NEG_INFINITY);
                        planes.for_each(|plane| out.iter_mut().zip(plane).for_each(|(most, x)| *most = most.max(*x)));
                    }
                    Reduction::Mean => {
                        out.fill(0.0);
                        planes.for_each(|plane| out.iter_mut().zip(plane).for_each(|(sum, x)| *sum += x));
                        out.iter_mut().for_each(|sum| *sum /= count);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_in_their_grid_and_what_fills_none_is_left_out() {
        let pool = ChannelPool { grid: [2, 5], window: [1, 2], reduction: Reduction::Max };
        assert_eq!(pool.windows(), [2, 2]);
        let read: Vec<Vec<usize>> = (0..8).map(|output| pool.read(output).collect()).collect();
        assert_eq!(read[..4], [[0, 1], [2, 3], [5, 6], [7, 8]]);
        assert_eq!(read[4..], [[10, 11], [12, 13], [15, 16], [17, 18]]);
        let whole = ChannelPool { grid: [2, 2], window: [2, 2], reduction: Reduction::Max };
        assert_eq!(whole.read(1).collect::<Vec<_>>(), [4, 5, 6, 7]);
    }

    #[test]
    fn constants_are_pooled_where_a_whole_window_is_known() {
        let constants = |reduction| {
            let pool = ChannelPool { grid: [1, 2], window: [1, 2], reduction };
            let tensor = |_: &str| None;
            let input = vec![Some(1.0), Some(-3.0), None, Some(2.0)];
            pool.constants(&[&input], &Parameters { channels: 2, pixels: 4, tensor: &tensor })
        };
        assert_eq!(constants(Reduction::Max), [Some(1.0), None]);
        assert_eq!(constants(Reduction::Mean), [Some(-1.0), None]);
    }

    #[test]
    fn grids_without_windows_are_refused() {
        for (grid, window) in [([2, 2], [3, 1]), ([0, 2], [0, 1]), ([2, 2], [0, 1]), ([usize::MAX, 2], [1, 1])] {
            assert!(ChannelPool { grid, window, reduction: Reduction::Mean }.check().is_err(), "{grid:?} {window:?}");
        }
    }
}
