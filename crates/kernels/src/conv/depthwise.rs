//! Depthwise convolution: each channel has one filter, so that vectors run over channels and no sums over channels are left.

// The loops read and write through pointers whose farthest reach is checked before they begin.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::products::{read, write};
use super::{Conv2d, Epilogue};
use crate::buffer::Target;
use crate::lanes::{Isa, Lanes, Work};

/// For every target row or column, the source rows or columns that reach it and by which tap.
pub(super) type Axis = Vec<Vec<(usize, usize)>>;

/// Vectors of channels whose sums are in registers together.
const VECTORS: usize = 4;

/// Images whose weight gradients are summed apart, whatever the number of threads.
const PARTS: usize = 16;

impl Conv2d {
    /// As the output sees the input, or, turned around, as the gradient of the input sees that of the output.
    pub(super) fn axis(&self, axis: usize, turned: bool, out: usize) -> Axis {
        let mut seen = vec![Vec::new(); if turned { self.input[axis] } else { out }];
        for (place, tap) in (0..out).flat_map(|place| (0..self.kernel[axis]).map(move |tap| (place, tap))) {
            let source = (place * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.padding.before(axis));
            if let Some(source) = source.filter(|source| *source < self.input[axis]) {
                let (target, source) = if turned { (source, place) } else { (place, source) };
                seen[target].push((source, tap));
            }
        }
        seen
    }

    pub(super) fn depthwise_forward(&self, isa: Isa, x: &[f32], w: &[f32], epilogue: &Epilogue<'_>, to: Target<'_>) {
        let out = self.output().expect("the shapes were checked");
        let axes = [self.axis(0, false, out[0]), self.axis(1, false, out[1])];
        let weights = transposed(w, self.filters);
        self.gather(isa, self.batch, x, [self.input[0], self.input[1]], &axes, &weights, epilogue, to, true);
    }

    pub(super) fn depthwise_input_gradient(&self, isa: Isa, dy: &[f32], w: &[f32], to: Target<'_>) {
        let out = self.output().expect("the shapes were checked");
        let axes = [self.axis(0, true, out[0]), self.axis(1, true, out[1])];
        let weights = transposed(w, self.filters);
        self.gather(isa, self.batch, dy, [out[0], out[1]], &axes, &weights, &Epilogue::default(), to, true);
    }

    /// Every target pixel from the source pixels that reach it, by weights `[taps, channels]`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn gather(
        &self,
        isa: Isa,
        batch: usize,
        from: &[f32],
        size: [usize; 2],
        axes: &[Axis; 2],
        weights: &[f32],
        epilogue: &Epilogue<'_>,
        to: Target<'_>,
        parallel: bool,
    ) {
        let channels = self.filters;
        let of_row = |row: usize| {
            let (image, row) = (row / axes[0].len(), row % axes[0].len());
            let source = &from[image * size[0] * size[1] * channels..][..size[0] * size[1] * channels];
            let first = (image * axes[0].len() + row) * axes[1].len();
            isa.run(Gather {
                source,
                width: size[1],
                rows: &axes[0][row],
                columns: &axes[1],
                kernel_width: self.kernel[1],
                weights,
                channels,
                epilogue,
                first,
                to,
            });
        };
        let rows = 0..batch * axes[0].len();
        if parallel { rows.into_par_iter().for_each(of_row) } else { rows.for_each(of_row) }
    }

    pub(super) fn depthwise_weight_gradient(&self, isa: Isa, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let out = self.output().expect("the shapes were checked");
        let (channels, area) = (self.filters, self.kernel[0] * self.kernel[1]);
        let axes = [self.axis(0, false, out[0]), self.axis(1, false, out[1])];
        let (image_x, image_y) = (self.input.iter().product::<usize>().max(1), out.iter().product::<usize>().max(1));
        let each = self.batch.div_ceil(PARTS).max(1);
        let parts: Vec<Vec<f32>> = (x.par_chunks(each * image_x).zip(dy.par_chunks(each * image_y)))
            .map(|(x, dy)| {
                let mut sums = vec![0.0; area * channels];
                for (x, dy) in x.chunks_exact(image_x).zip(dy.chunks_exact(image_y)) {
                    isa.run(Sums { x, dy, width: self.input[1], axes: &axes, kernel: self.kernel, channels, to: &mut sums });
                }
                sums
            })
            .collect();
        let mut dw = vec![0.0; channels * area];
        for (place, dw) in dw.iter_mut().enumerate() {
            *dw = parts.iter().map(|part| part[place % area * channels + place / area]).sum();
        }
        dw
    }
}

/// `[channels, taps]` to `[taps, channels]`.
pub(super) fn transposed(w: &[f32], channels: usize) -> Vec<f32> {
    let area = w.len() / channels.max(1);
    (0..w.len()).map(|place| w[place % channels * area + place / channels]).collect()
}

/// One row of target pixels.
struct Gather<'a> {
    source: &'a [f32],
    width: usize,
    rows: &'a [(usize, usize)],
    columns: &'a Axis,
    kernel_width: usize,
    weights: &'a [f32],
    channels: usize,
    epilogue: &'a Epilogue<'a>,
    first: usize,
    to: Target<'a>,
}

impl Work for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let pixels = self.source.len() / self.channels.max(1);
        let seen = self.rows.iter().all(|(row, _)| (row + 1) * self.width <= pixels);
        let columns = self.columns.iter().flatten().all(|(column, tap)| *column < self.width && *tap < self.kernel_width);
        let taps = self.rows.iter().all(|(_, tap)| (tap + 1) * self.kernel_width * self.channels <= self.weights.len());
        assert!(seen && columns && taps, "a tap lies outside its buffer");
        for (column, taps) in self.columns.iter().enumerate() {
            let to = self.to.at((self.first + column) * self.channels, self.channels);
            let mut channel = 0;
            while channel < self.channels {
                // SAFETY: as many channels as are left are read and written.
                channel += unsafe {
                    match self.channels - channel {
                        left if left >= VECTORS * L::COUNT => {
                            self.pixel::<L, VECTORS>(taps, column, channel, VECTORS * L::COUNT, to)
                        }
                        left => self.pixel::<L, 1>(taps, column, channel, left.min(L::COUNT), to),
                    }
                };
            }
        }
    }
}

impl Gather<'_> {
    /// `count` channels of one pixel, which fill `V` vectors or are less than one; returns `count`.
    ///
    /// # Safety
    /// They are channels, and `to` is the pixel's place.
    #[inline(always)]
    unsafe fn pixel<L: Lanes, const V: usize>(
        &self,
        taps: &[(usize, usize)],
        column: usize,
        channel: usize,
        count: usize,
        to: *mut f32,
    ) -> usize {
        let mut sums = [L::splat(0.0); V];
        for (row, tap_row) in self.rows {
            for (column, tap) in taps {
                let source = (row * self.width + column) * self.channels + channel;
                let weight = (tap_row * self.kernel_width + tap) * self.channels + channel;
                // SAFETY: `run` checked rows, columns and taps; the caller vouches for the channels.
                let (x, w): ([L; V], [L; V]) =
                    unsafe { (read(self.source.as_ptr().add(source), count), read(self.weights.as_ptr().add(weight), count)) };
                for v in 0..V {
                    sums[v] = x[v].multiply_add(w[v], sums[v]);
                }
            }
        }
        let sums = self.epilogue.finish(sums, (self.first + column) * self.channels, channel, count);
        // SAFETY: the caller vouches for the channels and the place.
        unsafe { write(to.add(channel), count, sums) };
        count
    }
}

/// One image's gradient of the weights, `[taps, channels]`.
struct Sums<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    width: usize,
    axes: &'a [Axis; 2],
    kernel: [usize; 2],
    channels: usize,
    to: &'a mut [f32],
}

impl Work for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let out_width = self.axes[1].len();
        for (place, to) in self.to.chunks_mut(self.channels.max(1)).enumerate() {
            let tap = [place / self.kernel[1], place % self.kernel[1]];
            let by = |axis: usize| {
                let places = self.axes[axis].iter().enumerate();
                places.flat_map(move |(place, seen)| {
                    seen.iter().filter(move |(_, t)| *t == tap[axis]).map(move |(s, _)| (place, *s))
                })
            };
            for (row, source_row) in by(0) {
                for (column, source_column) in by(1) {
                    let x = &self.x[(source_row * self.width + source_column) * self.channels..][..self.channels];
                    let dy = &self.dy[(row * out_width + column) * self.channels..][..self.channels];
                    let mut channel = 0;
                    while channel < self.channels {
                        let count = (self.channels - channel).min(L::COUNT);
                        // SAFETY: `count` channels are left in all three slices.
                        unsafe {
                            let [x]: [L; 1] = read(x.as_ptr().add(channel), count);
                            let [dy]: [L; 1] = read(dy.as_ptr().add(channel), count);
                            let [sum]: [L; 1] = read(to.as_ptr().add(channel), count);
                            write(to.as_mut_ptr().add(channel), count, [x.multiply_add(dy, sum)]);
                        }
                        channel += count;
                    }
                }
            }
        }
    }
}
