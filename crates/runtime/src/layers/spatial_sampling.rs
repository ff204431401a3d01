//! Some of the rows and columns of maps.

use super::{Channels, Constants, Kind, MAX_WINDOW, Parameters, Runnable, Sign, Storable, Window};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Pool};
use crate::{Error, Node};

/// While training, of each `grid` rows so many at random that `1 / stride` of them stay, in their order, and of the columns likewise: the same for all
/// channels and samples. Otherwise the mean of each `stride` by `stride` pixels. A last grid of fewer rows gives fewer, so that `[C, h, w]` becomes
/// `[C, floor(h / stride), floor(w / stride)]`.
///
/// Zhai, Wu, Kumar, Cheng, Lu, Zhang, Feris. "S3Pool: Pooling with Stochastic Spatial Sampling". CVPR 2017. arXiv:1611.05138.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SpatialSampling {
    /// Of how many rows or columns one stays.
    pub stride: usize,
    /// Rows or columns among which is drawn, a multiple of the stride.
    pub grid: usize,
}

impl SpatialSampling {
    /// What it is outside of training.
    pub fn mean(&self) -> Window {
        Window::square(self.stride)
    }
}

impl Kind for SpatialSampling {
    fn name(&self) -> &'static str {
        "spatial-sampling"
    }

    fn check(&self) -> Result<(), String> {
        match (1..=MAX_WINDOW).contains(&self.stride) && self.grid > 0 && self.grid.is_multiple_of(self.stride) {
            true => Ok(()),
            false => Err(format!(
                "a grid of {} for a stride of {}; it is a multiple of it, and the stride at most {MAX_WINDOW}",
                self.grid, self.stride
            )),
        }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        self.mean().shape(inputs[0])
    }

    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].clone()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn homogeneous(&self) -> bool {
        true
    }
}

impl Storable for SpatialSampling {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_sizes(&[self.stride, self.grid]);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let [stride, grid] = reader.sizes()?;
        Ok(Self { stride, grid })
    }
}

impl Runnable for SpatialSampling {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Pool::average(&self.mean(), false, [input[1], input[2]], [output[1], output[2]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_hold_whole_strides() {
        for (stride, grid) in [(0, 0), (2, 3), (2, 0), (MAX_WINDOW + 1, MAX_WINDOW + 1)] {
            assert!(SpatialSampling { stride, grid }.check().is_err(), "{stride} {grid}");
        }
        assert_eq!(SpatialSampling { stride: 2, grid: 4 }.shape(&[&[3, 7, 10]], None).unwrap(), [3, 3, 5]);
    }
}
