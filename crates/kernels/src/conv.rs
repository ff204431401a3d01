//! Convolution and its gradients, without building the matrix of patches.
//!
//! Each image is copied once into a scratch buffer with its padding, columns sorted by their remainder modulo the stride. There every tap
//! `(channel, kh, kw)` of every filter is one distance, the same for all output pixels, and eight neighbouring output pixels of a row read
//! eight neighbouring floats. The inner loops of all three products then run over distances:
//!
//! - forward: `y[m][p] = b[m] + sum over taps k of w[m][k] * x[p + tap_k]`, six filters by two vectors of pixels in registers;
//! - gradient of the input: the same loop over the gradient of the output, once for each remainder of a pixel's place modulo the stride,
//!   with the taps that reach such pixels;
//! - gradient of the weights: `dw[m][k] = sum over p of dy[m][p] * x[p + tap_k]`, three filters by four taps in registers.

mod planes;
mod products;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::Error;
use crate::lanes::Isa;
use planes::{Planes, Residue, Slots, with_scratch};

/// A convolution of a batch: shapes and steps. `input` is `[channels, height, width]`, weights are `[filters, channels / groups, kh, kw]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Number of images.
    pub batch: usize,
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// Number of filters, all groups together.
    pub filters: usize,
    /// Height and width of a filter.
    pub kernel: [usize; 2],
    /// Step between windows, vertical and horizontal.
    pub stride: [usize; 2],
    /// Zeros on both sides, vertical and horizontal.
    pub padding: [usize; 2],
    /// Spacing between the taps of a filter.
    pub dilation: [usize; 2],
    /// Independent groups of channels.
    pub groups: usize,
}

/// Some pixels of the output channels and what they are computed from.
struct Part {
    taps: Vec<usize>,
    slots: Slots,
    /// The weights of these taps, packed.
    packed: Vec<f32>,
}

/// Parts of a batch whose weight gradients are summed apart, whatever the number of threads.
const PARTS: usize = 16;

impl Conv2d {
    /// Filters, height and width of an output image.
    ///
    /// # Errors
    /// When the window does not fit or the groups do not divide.
    pub fn output(&self) -> Result<[usize; 3], Error> {
        let [channels, height, width] = self.input;
        if self.groups == 0 || !channels.is_multiple_of(self.groups) || !self.filters.is_multiple_of(self.groups) {
            let detail = format!("{channels} channels and {} filters do not divide into {} groups", self.filters, self.groups);
            return Err(Error(detail));
        }
        let extent = |size: usize, axis: usize| -> Option<usize> {
            let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
            let span = kernel.checked_sub(1)?.checked_mul(dilation)? + 1;
            (size + 2 * self.padding[axis]).checked_sub(span)?.checked_div(stride).filter(|_| dilation > 0).map(|steps| steps + 1)
        };
        match (extent(height, 0), extent(width, 1)) {
            (Some(height), Some(width)) => Ok([self.filters, height, width]),
            _ => Err(Error(format!("a kernel of {:?} does not fit an image of {:?}: {self:?}", self.kernel, self.input))),
        }
    }

    /// `y = x * w + bias`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) -> Result<(), Error> {
        self.forward_with(Isa::of_this_machine(), x, w, bias, y)
    }

    pub(crate) fn forward_with(&self, isa: Isa, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) -> Result<(), Error> {
        let out = self.check(x.len(), w.len(), y.len())?;
        if bias.is_some_and(|bias| bias.len() != self.filters) {
            return Err(Error(format!("a bias of {} values for {} filters", bias.map_or(0, <[f32]>::len), self.filters)));
        }
        let (planes, taps) = Planes::of_input(self);
        let slots = Slots::new(&planes, [out[1], out[2]], [0, 0], [1, 1]);
        let part = Part { taps, slots, packed: products::pack_filters(w, self.filters, self.groups) };
        self.correlate(isa, (&planes, x), &[part], bias, (self.filters, y));
        Ok(())
    }

    /// The gradient of the loss by the input: `dx` from `dy`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn input_gradient(&self, dy: &[f32], w: &[f32], dx: &mut [f32]) -> Result<(), Error> {
        self.input_gradient_with(Isa::of_this_machine(), dy, w, dx)
    }

    pub(crate) fn input_gradient_with(&self, isa: Isa, dy: &[f32], w: &[f32], dx: &mut [f32]) -> Result<(), Error> {
        let out = self.check(dx.len(), w.len(), dy.len())?;
        let (planes, residues) = Planes::of_gradient(self, out);
        let [channels, height, width] = self.input;
        let area = self.kernel[0] * self.kernel[1];
        let parts = residues.into_iter().map(|Residue { first, taps, picks }| {
            let turned = products::turn(w, self.filters, channels, self.groups, area, &picks);
            let slots = Slots::new(&planes, [height, width], first, self.stride);
            Part { taps, slots, packed: products::pack_filters(&turned, channels, self.groups) }
        });
        let parts: Vec<Part> = parts.collect();
        self.correlate(isa, (&planes, dy), &parts, None, (channels, dx));
        Ok(())
    }

    /// One image after the other through the scratch buffer, from which each part computes its pixels of the output channels.
    fn correlate(
        &self,
        isa: Isa,
        (planes, from): (&Planes, &[f32]),
        parts: &[Part],
        bias: Option<&[f32]>,
        (channels, to): (usize, &mut [f32]),
    ) {
        let (group_from, filters) = (planes.source.iter().product::<usize>(), channels / self.groups);
        let group_to = to.len() / self.batch.max(1) / self.groups;
        if to.is_empty() || group_from == 0 {
            return;
        }
        to.par_chunks_mut(group_to * self.groups).zip(from.par_chunks(group_from * self.groups)).for_each(|(to, from)| {
            with_scratch(planes.len(), |scratch| {
                for (group, to) in to.chunks_mut(group_to).enumerate() {
                    planes.fill(&from[group * group_from..][..group_from], scratch);
                    let bias = bias.map(|bias| &bias[group * filters..][..filters]);
                    for Part { taps, slots, packed } in parts {
                        let packed = &packed[group * products::packed_len(filters, taps.len())..];
                        products::correlate(isa, scratch, taps, slots, packed, bias, to);
                    }
                }
            });
        });
    }

    /// The gradient of the loss by the weights: `dw` from `x` and `dy`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn weight_gradient(&self, x: &[f32], dy: &[f32], dw: &mut [f32]) -> Result<(), Error> {
        self.weight_gradient_with(Isa::of_this_machine(), x, dy, dw)
    }

    pub(crate) fn weight_gradient_with(&self, isa: Isa, x: &[f32], dy: &[f32], dw: &mut [f32]) -> Result<(), Error> {
        let out = self.check(x.len(), dw.len(), dy.len())?;
        dw.fill(0.0);
        if self.batch == 0 || dw.is_empty() {
            return Ok(());
        }
        let (planes, taps) = Planes::of_input(self);
        let rows = Planes::of_rows(self, out);
        let slots = Slots::new(&planes, [out[1], out[2]], [0, 0], [1, 1]);
        let (image_x, image_y) = (x.len() / self.batch, dy.len() / self.batch);
        let part = self.batch.div_ceil(PARTS);
        let sums: Vec<Vec<f32>> = (x.par_chunks(part * image_x).zip(dy.par_chunks(part * image_y)))
            .map(|(x, dy)| {
                let mut sum = vec![0.0; dw.len()];
                let together = products::images_together(planes.len() + rows.len());
                for (x, dy) in x.chunks(together * image_x).zip(dy.chunks(together * image_y)) {
                    for (group, sum) in sum.chunks_mut(dw.len() / self.groups).enumerate() {
                        self.add_weight_gradient(isa, (&planes, &taps, x), (&rows, dy), group, &slots, sum);
                    }
                }
                sum
            })
            .collect();
        for sum in sums {
            dw.iter_mut().zip(sum).for_each(|(total, part)| *total += part);
        }
        Ok(())
    }

    /// Adds one group's gradient over a few images that fit the cache together.
    fn add_weight_gradient(
        &self,
        isa: Isa,
        (planes, taps, x): (&Planes, &[usize], &[f32]),
        (rows, dy): (&Planes, &[f32]),
        group: usize,
        slots: &Slots,
        sum: &mut [f32],
    ) {
        let sizes = [planes, rows].map(|p| p.source.iter().product::<usize>());
        let images = x.len() / (sizes[0] * self.groups);
        with_scratch(images * (planes.len() + rows.len()), |scratch| {
            let (scratch_x, scratch_y) = scratch.split_at_mut(images * planes.len());
            for image in 0..images {
                let start = image * self.groups + group;
                planes.fill(&x[start * sizes[0]..][..sizes[0]], &mut scratch_x[image * planes.len()..][..planes.len()]);
                rows.fill(&dy[start * sizes[1]..][..sizes[1]], &mut scratch_y[image * rows.len()..][..rows.len()]);
            }
            products::outer(isa, (scratch_x, planes, taps), (scratch_y, rows), images, slots, sum);
        });
    }

    fn check(&self, x: usize, w: usize, y: usize) -> Result<[usize; 3], Error> {
        let out = self.output()?;
        let wanted = [
            self.batch * self.input.iter().product::<usize>(),
            self.filters * (self.input[0] / self.groups) * self.kernel[0] * self.kernel[1],
            self.batch * out.iter().product::<usize>(),
        ];
        if [x, w, y] == wanted {
            return Ok(out);
        }
        Err(Error(format!("input, weights and output have {x}, {w} and {y} values, {self:?} takes {wanted:?}")))
    }
}
