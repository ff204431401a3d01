//! Windows of pooling layers.

use super::shape::{extent, map};
use crate::Error;
use crate::bytes::{Put as _, Reader};

/// Largest height and width of a pooling window: the places of a window can be counted in single precision.
pub const MAX_WINDOW: usize = 1 << 12;

/// A pooling window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// `[height, width]`.
    pub kernel: [usize; 2],
    /// Step, `[vertical, horizontal]`.
    pub stride: [usize; 2],
    /// Border on both sides, `[vertical, horizontal]`; less than the kernel.
    pub padding: [usize; 2],
}

impl Window {
    /// A square window without padding whose stride is its size.
    pub fn square(size: usize) -> Self {
        Self { kernel: [size; 2], stride: [size; 2], padding: [0; 2] }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.kernel.iter().any(|side| *side > MAX_WINDOW) {
            return Err(format!("a window of {:?}; its sides are at most {MAX_WINDOW}", self.kernel));
        }
        Ok(())
    }

    pub(super) fn shape(&self, input: &[usize]) -> Result<Vec<usize>, String> {
        let [c, h, w] = map(input)?;
        let fits = |axis: usize| self.padding[axis] < self.kernel[axis];
        let oh = extent(h, self.kernel[0], self.stride[0], self.padding[0], 1);
        let ow = extent(w, self.kernel[1], self.stride[1], self.padding[1], 1);
        match (oh, ow, fits(0) && fits(1)) {
            (Some(oh), Some(ow), true) => Ok(vec![c, oh, ow]),
            _ => Err(format!("window {self:?} does not fit the input {input:?}")),
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        [self.kernel, self.stride, self.padding].iter().for_each(|pair| out.put_sizes(pair));
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { kernel: reader.sizes()?, stride: reader.sizes()?, padding: reader.sizes()? })
    }
}
