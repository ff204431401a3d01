//! Windows of pooling layers.

use super::shape::{extent, map, padded};
use crate::bytes::{Put as _, Reader};
use crate::{Error, Padding};

/// Largest height and width of a pooling window: the places of a window can be counted in single precision.
pub const MAX_WINDOW: usize = 1 << 12;

/// A pooling window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// `[height, width]`.
    pub kernel: [usize; 2],
    /// Step, `[vertical, horizontal]`.
    pub stride: [usize; 2],
    /// Border on each side, less than the kernel.
    pub padding: Padding,
    /// Whether a last window that reaches beyond the border counts, if it begins inside the input or what lies before it; otherwise the
    /// rows and columns that it would see are left out.
    pub ceil: bool,
}

impl Window {
    /// A window without padding, all of which lies inside.
    pub fn new(kernel: [usize; 2], stride: [usize; 2]) -> Self {
        Self { kernel, stride, padding: Padding::NONE, ceil: false }
    }

    /// A square window without padding whose stride is its size.
    pub fn square(size: usize) -> Self {
        Self::new([size; 2], [size; 2])
    }

    /// The padding with which as many windows lie inside as there are outputs: `ceil` grows it below and on the right.
    pub fn grown(&self, input: [usize; 2]) -> Padding {
        let mut padding = self.padding;
        for (axis, sides) in padding.0.iter_mut().enumerate().filter(|_| self.ceil) {
            let last = self.count(axis, input[axis]).unwrap_or(1).saturating_sub(1).saturating_mul(self.stride[axis]);
            let reach = last.saturating_add(self.kernel[axis]).saturating_sub(sides[0]).saturating_sub(input[axis]);
            sides[1] = sides[1].max(reach);
        }
        padding
    }

    /// Rows or columns of the output at `position` that a mean over inputs of this size counts where it counts padding: those beyond it, which
    /// only `ceil` reaches, are none.
    pub fn counted(&self, axis: usize, position: usize, size: usize) -> usize {
        let first = position * self.stride[axis];
        let end = self.padding.around(axis, size).unwrap_or(usize::MAX);
        (first + self.kernel[axis]).min(end) - first
    }

    /// Number of outputs along an axis of this size, or none when the window does not fit once.
    fn count(&self, axis: usize, size: usize) -> Option<usize> {
        let (stride, before) = (self.stride[axis], self.padding.before(axis));
        let padded = self.padding.around(axis, size)?;
        if !self.ceil {
            return extent(padded, self.kernel[axis], stride, 1);
        }
        let all = extent(padded.checked_add(stride.checked_sub(1)?)?, self.kernel[axis], stride, 1)?;
        let begins_inside = (all - 1).checked_mul(stride)? < size.checked_add(before)?;
        if begins_inside { Some(all) } else { Some(all - 1).filter(|count| *count > 0) }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.kernel.iter().any(|side| *side > MAX_WINDOW) {
            return Err(format!("a window of {:?}; its sides are at most {MAX_WINDOW}", self.kernel));
        }
        Ok(())
    }

    pub(super) fn shape(&self, input: &[usize]) -> Result<Vec<usize>, String> {
        let [c, h, w] = map(input)?;
        let reaches = |axis: usize| self.padding.0[axis].iter().all(|border| *border < self.kernel[axis]);
        match (self.count(0, h), self.count(1, w), reaches(0) && reaches(1)) {
            (Some(oh), Some(ow), true) => padded(self.grown([h, w]), [c, h, w]).map(|_| vec![c, oh, ow]),
            _ => Err(format!("window {self:?} does not fit the input {input:?}")),
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        [self.kernel, self.stride].iter().for_each(|pair| out.put_sizes(pair));
        out.put_padding(self.padding);
        out.push(u8::from(self.ceil));
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { kernel: reader.sizes()?, stride: reader.sizes()?, padding: reader.padding()?, ceil: reader.truth()? })
    }
}
