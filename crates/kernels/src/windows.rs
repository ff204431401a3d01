//! What the windows of a convolution see of an image, channels last, in rows of a matrix: taps row after row, the channels of a tap together.

use rayon::prelude::*;

use crate::{Conv2d, Error};

/// The windows of a convolution.
#[derive(Debug, Clone)]
pub(crate) struct Windows {
    shape: Conv2d,
    out: [usize; 3],
}

/// Bytes of unfolded windows that a task holds at once: they stay in the second-level cache.
const TILE: usize = 256 * 1024;

/// Fewest windows of a task where there are more.
const FEW: usize = 48;

/// Bytes of unfolded windows beyond which a task has fewer: windows may be long.
const MOST: usize = 64 << 20;

impl Windows {
    /// # Errors
    /// When the window does not fit, the groups do not divide, or there are too many values.
    pub(crate) fn new(shape: Conv2d) -> Result<Self, Error> {
        shape.sizes()?;
        Ok(Self { shape, out: shape.output()? })
    }

    /// Windows of an image.
    pub(crate) fn count(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Height, width and filters of an output image.
    pub(crate) fn output(&self) -> [usize; 3] {
        self.out
    }

    /// Values of an image.
    pub(crate) fn image(&self) -> usize {
        self.shape.input.iter().product()
    }

    pub(crate) fn shape(&self) -> &Conv2d {
        &self.shape
    }

    /// Values of a window, and filters, of a group.
    pub(crate) fn of_group(&self) -> (usize, usize) {
        (self.area() * self.channels(), self.shape.filters / self.shape.groups)
    }

    /// Taps of a filter.
    pub(crate) fn area(&self) -> usize {
        self.shape.kernel[0] * self.shape.kernel[1]
    }

    /// Channels of a group.
    pub(crate) fn channels(&self) -> usize {
        self.shape.input[2] / self.shape.groups
    }

    /// Whether each window is one pixel, so that the images are the rows already.
    pub(crate) fn are_pixels(&self) -> bool {
        let Conv2d { kernel, stride, padding, groups, .. } = self.shape;
        kernel == [1, 1] && stride == [1, 1] && padding.is_none() && groups == 1
    }

    /// Whether windows reach beyond the border.
    pub(crate) fn are_padded(&self) -> bool {
        !self.shape.padding.is_none()
    }

    /// The filters `[filters, channels / groups, kh, kw]` of a group, as rows of windows: where the value at a place of a row lies among the
    /// values of its filter.
    pub(crate) fn order(&self) -> Vec<usize> {
        let (area, channels) = (self.area(), self.channels());
        (0..area * channels).map(|place| place % channels * area + place / channels).collect()
    }

    /// Where a tap of a window lies along an axis, if inside the image.
    fn source(&self, axis: usize, window: usize, tap: usize) -> Option<usize> {
        let at =
            (window * self.shape.stride[axis] + tap * self.shape.dilation[axis]).checked_sub(self.shape.padding.before(axis));
        at.filter(|at| *at < self.shape.input[axis])
    }

    /// The image of each window of a batch from this one on, and where in the output it lies.
    pub(crate) fn places(&self, first: usize) -> impl Iterator<Item = (usize, [usize; 2])> {
        let [height, width, _] = self.out;
        let (mut image, window) = (first / self.count(), first % self.count());
        let (mut y, mut x) = (window / width, window % width);
        std::iter::repeat_with(move || {
            let place = (image, [y, x]);
            x += 1;
            if x == width {
                (y, x) = (y + 1, 0);
            }
            if y == height {
                (image, y) = (image + 1, 0);
            }
            place
        })
    }

    /// Calls `padded` with each tap of a window that lies beyond the border.
    pub(crate) fn outside(&self, [y, x]: [usize; 2], mut padded: impl FnMut(usize)) {
        for ky in 0..self.shape.kernel[0] {
            let inside = self.source(0, y, ky).is_some();
            (0..self.shape.kernel[1]).filter(|kx| !inside || self.source(1, x, *kx).is_none()).for_each(|kx| {
                padded(ky * self.shape.kernel[1] + kx);
            });
        }
    }

    /// Calls `run` with where in the image the values of a window lie, run after run, and how many there are; none of what lies beyond
    /// the border.
    #[inline(always)]
    pub(crate) fn runs(&self, [y, x]: [usize; 2], group: usize, mut run: impl FnMut(Option<usize>, usize)) {
        let Conv2d { input: [_, width, all], kernel: [height, across], .. } = self.shape;
        let channels = if self.shape.groups == 1 { all } else { self.channels() };
        let together = self.shape.dilation[1] == 1 && self.shape.groups == 1;
        let start = x * self.shape.stride[1];
        let before = self.shape.padding.before(1).saturating_sub(start).min(across);
        let inside = (width + self.shape.padding.before(1)).saturating_sub(start).min(across).max(before);
        for ky in 0..height {
            let Some(row) = self.source(0, y, ky) else {
                run(None, across * channels);
                continue;
            };
            if together {
                if before > 0 {
                    run(None, before * channels);
                }
                // Where nothing is inside, the place means nothing.
                let place = (row * width + (start + before).saturating_sub(self.shape.padding.before(1))) * channels;
                run(Some(place).filter(|_| inside > before), (inside - before) * channels);
                if inside < across {
                    run(None, (across - inside) * channels);
                }
            } else {
                for kx in 0..across {
                    let place = self.source(1, x, kx).map(|column| (row * width + column) * all + group * channels);
                    run(place, channels);
                }
            }
        }
    }

    /// Does a task for some windows of a batch at a time: those from the first on whose results, `[windows, filters]`, are handed to it, with
    /// rows of `bytes` bytes. Few windows are one task, which may itself use the threads.
    pub(crate) fn tasks<S: Default + Send>(
        &self,
        bytes: usize,
        out: &mut [i32],
        threads: usize,
        task: impl Fn(&mut S, usize, &mut [i32], usize) + Sync,
    ) {
        let filters = self.shape.filters;
        if out.is_empty() {
            return;
        }
        let windows = out.len() / filters;
        let most = (MOST / bytes.max(1)).max(1);
        if threads > 1 && windows <= FEW.min(most) {
            return task(&mut S::default(), 0, out, threads);
        }
        let fair = windows.div_ceil(4 * threads.max(1)).max(FEW);
        let some = (TILE / bytes.max(1)).clamp(FEW, 1 << 12).min(if threads > 1 { fair } else { windows }).next_multiple_of(12);
        let some = some.min(most);
        if threads <= 1 {
            let mut scratch = S::default();
            return out.chunks_mut(some * filters).enumerate().for_each(|(i, out)| task(&mut scratch, i * some, out, 1));
        }
        let pieces = out.par_chunks_mut(some * filters).enumerate();
        pieces.for_each_init(S::default, |scratch, (i, out)| task(scratch, i * some, out, 1));
    }

    /// Refuses what has other sizes than a batch.
    pub(crate) fn check(&self, batch: usize, x: usize, out: usize) -> Result<(), Error> {
        let sizes = (batch.checked_mul(self.image()), batch.checked_mul(self.count() * self.shape.filters));
        if sizes == (Some(x), Some(out)) {
            return Ok(());
        }
        let shape = &self.shape;
        Err(Error(format!("input and output have {x} and {out} values, {batch} images of {shape:?} take {sizes:?}")))
    }

    /// Refuses other weights than those of all filters.
    pub(crate) fn check_weights(&self, weights: usize) -> Result<(), Error> {
        let wanted = self.of_group().0 * self.shape.filters;
        if weights == wanted {
            return Ok(());
        }
        Err(Error(format!("{weights} weights for {:?}, which takes {wanted}", self.shape)))
    }
}

/// A convolution of integers by its definition, `[batch, height, width, filters]`: the sums of `product` over the taps, given the place of the
/// weight in `[filters, channels / groups, kh, kw]` and that of the pixel in `[batch, height, width, channels]`, none beyond the border.
#[cfg(test)]
pub(crate) fn by_definition(shape: &Conv2d, batch: usize, mut product: impl FnMut(usize, Option<usize>) -> i32) -> Vec<i32> {
    let [height, width, filters] = shape.output().unwrap();
    let [rows, columns, channels] = shape.input;
    let (each, area) = (channels / shape.groups, shape.kernel[0] * shape.kernel[1]);
    let mut sum = |place: usize| {
        let (image, y, x) = (place / filters / width / height, place / filters / width % height, place / filters % width);
        let filter = place % filters;
        let mut tap = |k: usize| {
            let (channel, ky, kx) = (k / area, k / shape.kernel[1] % shape.kernel[0], k % shape.kernel[1]);
            let row = (y * shape.stride[0] + ky * shape.dilation[0]).wrapping_sub(shape.padding.before(0));
            let column = (x * shape.stride[1] + kx * shape.dilation[1]).wrapping_sub(shape.padding.before(1));
            let channel = filter / (filters / shape.groups) * each + channel;
            let pixel = (row < rows && column < columns).then(|| ((image * rows + row) * columns + column) * channels + channel);
            product(filter * each * area + k, pixel)
        };
        (0..each * area).map(&mut tap).sum()
    };
    (0..batch * height * width * filters).map(&mut sum).collect()
}
