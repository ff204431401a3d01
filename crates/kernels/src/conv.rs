//! Convolution and its gradients, channels last.
//!
//! Images are `[height, width, channels]`, so that the channels that a row of a filter reaches from one output pixel lie one after the
//! other: `kernel width * channels` floats in a run, or one run for each tap where taps are spaced. Taps that reach beyond the border are
//! left out: pixels are sorted by the taps that are left, and for each kind every run is a distance from what the first tap reaches.
//! Nothing is copied. The loops of all three products go over these runs:
//!
//! - forward: `y[p][f] = sum over k of x[p + k] w[k][f]`, six pixels by two vectors of filters in registers, over weights packed in panels;
//! - gradient of the input: the same over the gradient of the output, where stride makes further kinds of pixels;
//! - gradient of the weights: `dw[k][f] = sum over p of x[p + k] dy[p][f]`, six places of `k` by two vectors of filters in registers.

// Results are not zeroed before they are written; each product says why it writes them all.
#![allow(unsafe_code)]

mod depthwise;
mod geometry;
mod pack;
mod packed;
mod products;
#[cfg(test)]
pub(crate) mod tests;
mod weights;

use crate::buffer::filled;
use crate::lanes::Isa;
use crate::operand::{Half, Precision, Single};
use crate::{Error, Padding, count};
use geometry::View;

pub(crate) use geometry::Segment;
pub use packed::Packed;
pub use products::Epilogue;
pub(crate) use products::{Correlation, FilterPanel, packed_len, panels, read, write};
pub(crate) use weights::{Job, Outer, jobs, parts};

/// A convolution of a batch: shapes and steps. Images are `[height, width, channels]`, weights `[filters, channels / groups, kh, kw]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Number of images.
    pub batch: usize,
    /// Height, width and channels of an image.
    pub input: [usize; 3],
    /// Number of filters, all groups together.
    pub filters: usize,
    /// Height and width of a filter.
    pub kernel: [usize; 2],
    /// Step between windows, vertical and horizontal.
    pub stride: [usize; 2],
    /// Zeros around an image.
    pub padding: Padding,
    /// Spacing between the taps of a filter.
    pub dilation: [usize; 2],
    /// Independent groups of channels.
    pub groups: usize,
    /// Precision of the factors; depthwise convolutions, which memory bounds, are always single.
    pub precision: Precision,
}

impl Conv2d {
    /// Height, width and filters of an output image.
    ///
    /// # Errors
    /// When the window does not fit, the groups do not divide, or a size is beyond what can be counted.
    pub fn output(&self) -> Result<[usize; 3], Error> {
        let [height, width, channels] = self.input;
        if self.groups == 0 || !channels.is_multiple_of(self.groups) || !self.filters.is_multiple_of(self.groups) {
            let detail = format!("{channels} channels and {} filters do not divide into {} groups", self.filters, self.groups);
            return Err(Error(detail));
        }
        let extent = |size: usize, axis: usize| -> Option<usize> {
            let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
            let span = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
            let room = self.padding.around(axis, size)?.checked_sub(span)?;
            room.checked_div(stride).filter(|_| dilation > 0)?.checked_add(1)
        };
        match (extent(height, 0), extent(width, 1)) {
            (Some(height), Some(width)) => Ok([height, width, self.filters]),
            _ => Err(Error(format!("a kernel of {:?} does not fit an image of {:?}: {self:?}", self.kernel, self.input))),
        }
    }

    /// `y = x * w`, and what the epilogue makes of it: `[batch, height, width, filters]`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32], w: &[f32], epilogue: &Epilogue<'_>) -> Result<Vec<f32>, Error> {
        self.forward_on(Isa::of_this_machine(), x, w, epilogue)
    }

    fn forward_on(&self, isa: Isa, x: &[f32], w: &[f32], epilogue: &Epilogue<'_>) -> Result<Vec<f32>, Error> {
        let (out, [_, _, len]) = (self.output()?, self.lengths()?);
        self.check(x.len(), w.len(), len)?;
        epilogue.check(self.filters, len)?;
        // SAFETY: every pixel of the output is of the one grid, and every filter is in a panel.
        Ok(unsafe {
            filled(len, |to| match (self.is_depthwise(), self.precision) {
                (true, _) => self.depthwise_forward(isa, x, w, epilogue, to),
                (_, Precision::F32) => View::of_input(self, out).correlate::<Single>(isa, self.batch, x, w, epilogue, to),
                (_, Precision::Bf16) => View::of_input(self, out).correlate::<Half>(isa, self.batch, x, w, epilogue, to),
            })
        })
    }

    /// The gradient of the loss by the input: `dx` from `dy`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn input_gradient(&self, dy: &[f32], w: &[f32]) -> Result<Vec<f32>, Error> {
        self.input_gradient_on(Isa::of_this_machine(), dy, w)
    }

    fn input_gradient_on(&self, isa: Isa, dy: &[f32], w: &[f32]) -> Result<Vec<f32>, Error> {
        let (out, [len, ..]) = (self.output()?, self.lengths()?);
        self.check(len, w.len(), dy.len())?;
        let plain = Epilogue::default();
        // SAFETY: the grids of all remainders modulo the stride cover every pixel of the input.
        Ok(unsafe {
            filled(len, |to| match (self.is_depthwise(), self.precision) {
                (true, _) => self.depthwise_input_gradient(isa, dy, w, to),
                (_, Precision::F32) => View::of_gradient(self, out).correlate::<Single>(isa, self.batch, dy, w, &plain, to),
                (_, Precision::Bf16) => View::of_gradient(self, out).correlate::<Half>(isa, self.batch, dy, w, &plain, to),
            })
        })
    }

    /// The gradient of the loss by the weights: `dw` from `x` and `dy`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn weight_gradient(&self, x: &[f32], dy: &[f32]) -> Result<Vec<f32>, Error> {
        self.weight_gradient_on(Isa::of_this_machine(), x, dy)
    }

    fn weight_gradient_on(&self, isa: Isa, x: &[f32], dy: &[f32]) -> Result<Vec<f32>, Error> {
        let (out, [_, len, _]) = (self.output()?, self.lengths()?);
        self.check(x.len(), len, dy.len())?;
        Ok(match (self.is_depthwise(), self.precision) {
            (true, _) => self.depthwise_weight_gradient(isa, x, dy),
            (_, Precision::F32) => View::of_input(self, out).weight_gradient::<Single>(isa, self.batch, x, dy),
            (_, Precision::Bf16) => View::of_input(self, out).weight_gradient::<Half>(isa, self.batch, x, dy),
        })
    }

    /// A filter for each channel.
    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.input[2] && self.groups == self.filters
    }

    /// Values of an input image, of the weights, and of an output image.
    ///
    /// # Errors
    /// As [`Conv2d::output`], and when there are too many to have places of 32 bits in an image, or an address in memory.
    pub(crate) fn sizes(&self) -> Result<[usize; 3], Error> {
        let [kernel_height, kernel_width] = self.kernel;
        let (input, output) = (count(&self.input)?, count(&self.output()?)?);
        if u32::try_from(input).is_err() || u32::try_from(output).is_err() {
            return Err(Error(format!("images of {input} and {output} values are too large, at most 2^32 - 1 each: {self:?}")));
        }
        Ok([input, count(&[self.filters, self.input[2] / self.groups, kernel_height, kernel_width])?, output])
    }

    /// Values of the whole input, of the weights, and of the whole output.
    fn lengths(&self) -> Result<[usize; 3], Error> {
        let [input, weights, output] = self.sizes()?;
        Ok([count(&[self.batch, input])?, weights, count(&[self.batch, output])?])
    }

    fn check(&self, x: usize, w: usize, y: usize) -> Result<(), Error> {
        let wanted = self.lengths()?;
        if [x, w, y] == wanted {
            return Ok(());
        }
        Err(Error(format!("input, weights and output have {x}, {w} and {y} values, {self:?} takes {wanted:?}")))
    }
}
