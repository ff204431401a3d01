//! Convolutions and fully connected layers: a product of the weights with the columns that the windows see.

use super::kernel::Kernel;
use super::matrix::Matrix;
use super::operation::Operation;
use super::threads::Threads;
use crate::{Activation, Padding};

/// Floats of unfolded windows that a task holds at once, and the most where windows are so long that few of them fit.
const TILE: usize = 1 << 18;
const LONGEST_TILE: usize = 1 << 24;
/// Pieces of an output that are listed at once, unless those of one group are more.
const PIECES: usize = 1 << 20;
/// Rows of a fully connected layer that a task computes.
const ROWS: usize = 64;

/// What follows the products of a layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Epilogue {
    /// One per output channel, or none.
    pub(crate) bias: Vec<f32>,
    pub(crate) activation: Option<Activation>,
}

impl Epilogue {
    pub(crate) fn apply(&self, channel: usize, values: &mut [f32]) {
        if let Some(bias) = self.bias.get(channel) {
            values.iter_mut().for_each(|value| *value += bias);
        }
        if let Some(activation) = self.activation {
            activation.apply(values);
        }
    }

    /// Takes over the scale and shift of `out` channels, or of fewer that are runs of as many of these each, which a regrouping makes of them; the
    /// scale of each of the `out`, or none when it cannot. The weights are left to the layer.
    pub(crate) fn fold(&mut self, out: usize, scale: &[f32], shift: &[f32]) -> Option<Vec<f32>> {
        // Between them may stand a flattening, after which a channel is another thing.
        if self.activation.is_some() || scale.is_empty() || !out.is_multiple_of(scale.len()) {
            return None;
        }
        let run = out / scale.len();
        let bias = |channel: usize| self.bias.get(channel).copied().unwrap_or(0.0);
        self.bias = (0..out).map(|channel| bias(channel) * scale[channel / run] + shift[channel / run]).collect();
        Some(scale.iter().flat_map(|scale| std::iter::repeat_n(*scale, run)).collect())
    }
}

/// The geometry of a convolution; all pairs are `[vertical, horizontal]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) channels: usize,
    pub(crate) input: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) padding: Padding,
    pub(crate) dilation: [usize; 2],
    pub(crate) groups: usize,
}

impl Geometry {
    /// Of a fully connected layer, which is a convolution of a single pixel.
    pub(crate) fn pixel(channels: usize) -> Self {
        let one = [1, 1];
        Self { channels, input: one, output: one, kernel: one, stride: one, padding: Padding::NONE, dilation: one, groups: 1 }
    }

    pub(super) fn positions(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Pixels of the output as one line over the rows of the padded input, every `stride`th of its columns.
    fn line(&self) -> usize {
        let width = self.padding.around(1, self.input[1]).unwrap_or(usize::MAX).div_ceil(self.stride[1]);
        (self.output[0] - 1).saturating_mul(width).saturating_add(self.output[1])
    }

    /// Where tap `tap` of output `position` reads along an axis, if inside the input.
    fn source(&self, axis: usize, position: usize, tap: usize) -> Option<usize> {
        (position * self.stride[axis] + tap * self.dilation[axis])
            .checked_sub(self.padding.before(axis))
            .filter(|source| *source < self.input[axis])
    }

    /// Output columns whose tap `tap` reads inside the input.
    fn inside(&self, tap: usize) -> std::ops::Range<usize> {
        let offset = tap * self.dilation[1];
        let start = self.padding.before(1).saturating_sub(offset).div_ceil(self.stride[1]);
        let end = (self.input[1] + self.padding.before(1)).saturating_sub(offset).div_ceil(self.stride[1]).min(self.output[1]);
        start.min(end)..end
    }
}

/// What computes a convolution, or a fully connected layer as one of a single pixel, of this weight `[out, in / groups * kh * kw]`.
pub(crate) fn product(geometry: Geometry, weight: &[f32], epilogue: Epilogue, out: usize) -> Box<dyn Operation> {
    let kept = weight.iter().filter(|weight| **weight != 0.0).count();
    let below = |share: f64| (kept as f64) < share * weight.len() as f64;
    let pixel = geometry.input == [1, 1] && geometry.kernel == [1, 1] && geometry.groups == 1 && geometry.padding.is_none();
    if pixel {
        let dense = if below(Dense::SPARSE_BELOW) { None } else { Kernel::dense(&geometry, weight, &epilogue, out) };
        return match dense {
            Some(dense) => Box::new(dense),
            None => Box::new(Dense::new(out, geometry.channels, weight.to_vec(), epilogue)),
        };
    }
    let depth = weight.len() / out;
    let live: usize = weight.chunks(out / geometry.groups * depth).map(|weight| live_taps(weight, depth).len()).sum();
    let thin = live as f64 <= THIN_BELOW * (depth * geometry.groups) as f64;
    // What a line has beyond its pixels is computed for nothing.
    let lines = geometry.positions() as f64 / geometry.line() as f64;
    let short = geometry.kernel[1] * geometry.channels / geometry.groups < SHORT;
    let sparse_below = if short { 1.0 } else { SPARSE_BELOW } * lines;
    let sparse = || below(sparse_below).then(|| Kernel::sparse(&geometry, weight, &epilogue, out)).flatten();
    let dense = || (!thin).then(|| Kernel::dense(&geometry, weight, &epilogue, out)).flatten();
    match sparse().or_else(dense) {
        Some(kernel) => Box::new(kernel),
        None => Box::new(Convolution::new(geometry, weight, epilogue, out)),
    }
}

/// Share of weights, in lines that are all pixels, below which one by one they are faster than all of them in panels.
const SPARSE_BELOW: f64 = 0.5;

/// Runs of a row of a filter so short that panels are half as fast.
const SHORT: usize = 16;

/// Share of taps up to which leaving out the others is faster than panels of all.
const THIN_BELOW: f64 = 0.5;

/// Which taps are not zero in all filters.
fn live_taps(weight: &[f32], depth: usize) -> Vec<usize> {
    (0..depth).filter(|tap| weight.chunks(depth).any(|row| row[*tap] != 0.0)).collect()
}

/// A convolution by unfolding windows into columns, tile by tile.
#[derive(Debug)]
struct Convolution {
    geometry: Geometry,
    /// One for each group of channels.
    parts: Vec<Part>,
    epilogue: Epilogue,
    out: usize,
}

/// The filters of one group of channels.
#[derive(Debug)]
struct Part {
    /// `[out / groups, taps]`.
    weight: Matrix,
    /// Which of the `in / groups * kh * kw` taps the weight has columns for.
    taps: Vec<usize>,
}

impl Part {
    /// From the weight `[out / groups, depth]`.
    fn new(weight: &[f32], depth: usize) -> Self {
        let mut taps = live_taps(weight, depth);
        if taps.is_empty() {
            taps.push(0);
        }
        let kept = weight.chunks(depth).flat_map(|row| taps.iter().map(|tap| row[*tap])).collect();
        Self { weight: Matrix::new(weight.len() / depth, taps.len(), kept, 0.0), taps }
    }
}

impl Convolution {
    /// From the weight `[out, in / groups * kh * kw]`; taps that are zero in all filters of a group are left out there.
    fn new(geometry: Geometry, weight: &[f32], epilogue: Epilogue, out: usize) -> Self {
        let depth = weight.len() / out;
        let parts = weight.chunks(out / geometry.groups * depth).map(|weight| Part::new(weight, depth)).collect();
        Self { geometry, parts, epilogue, out }
    }

    /// Some groups of some samples, from this one on, in tiles of so many positions.
    fn groups(&self, input: &[f32], output: &mut [f32], first_group: usize, tile: usize, threads: &Threads) {
        let g = &self.geometry;
        let (positions, rows) = (g.positions(), self.out / g.groups);
        let tiles = positions.div_ceil(tile);
        let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
        for group in output.chunks_mut(rows * positions) {
            let first = tasks.len();
            tasks.resize_with(first + tiles, || Vec::with_capacity(rows));
            for plane in group.chunks_mut(positions) {
                plane.chunks_mut(tile).enumerate().for_each(|(number, piece)| tasks[first + number].push(piece));
            }
        }
        let group_size = g.channels / g.groups * g.input[0] * g.input[1];
        // A window of one pixel sees the input itself.
        let pointwise = g.kernel == [1, 1] && g.stride == [1, 1] && g.padding.is_none();
        threads.each(tasks.into_iter().enumerate().collect(), |scratch: &mut Vec<f32>, (number, mut planes)| {
            let (sample_group, tile_number) = (first_group + number / tiles, number % tiles);
            let group = sample_group % g.groups;
            let Part { weight, taps } = &self.parts[group];
            let depth = taps.len();
            let input = &input[sample_group * group_size..][..group_size];
            let (begin, width) = (tile_number * tile, planes[0].len());
            scratch.resize(scratch.len().max((depth + rows) * width), 0.0);
            let (columns, product) = scratch.split_at_mut(depth * width);
            let product = &mut product[..rows * width];
            if pointwise && depth * g.groups == g.channels {
                weight.times(0, &input[begin..], positions, width, product);
            } else {
                unfold(g, taps, input, begin, width, columns);
                weight.times(0, columns, width, width, product);
            }
            for (row, (plane, product)) in planes.iter_mut().zip(product.chunks(width)).enumerate() {
                plane.copy_from_slice(product);
                self.epilogue.apply(group * rows + row, plane);
            }
        });
    }
}

impl Operation for Convolution {
    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.weight.bytes()).sum::<usize>() + 4 * self.epilogue.bias.len()
    }

    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        Some(&mut self.epilogue.activation)
    }

    fn fold(&mut self, scale: &[f32], shift: &[f32]) -> bool {
        let Some(scale) = self.epilogue.fold(self.out, scale, shift) else { return false };
        let rows = self.out / self.parts.len();
        self.parts.iter_mut().zip(scale.chunks(rows)).for_each(|(part, factors)| part.weight.scale_rows(factors));
        true
    }

    /// `[batch, channels, h, w]` to `[batch, out, oh, ow]`.
    fn run(&self, inputs: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        let g = &self.geometry;
        let positions = g.positions();
        let deepest = self.parts.iter().map(|part| part.taps.len()).max().unwrap_or(1);
        let tile = (TILE / deepest).clamp(64, 2048).min(LONGEST_TILE / deepest).clamp(1, positions);
        let tiles = positions.div_ceil(tile);
        let rows = self.out / g.groups;
        let some = (PIECES / (rows * tiles)).max(1);
        for (part, output) in output.chunks_mut(some * rows * positions).enumerate() {
            self.groups(inputs[0], output, part * some, tile, threads);
        }
    }
}

/// A fully connected layer of few weights.
#[derive(Debug)]
struct Dense {
    /// `[out, in]`.
    weight: Matrix,
    epilogue: Epilogue,
    out: usize,
}

impl Dense {
    /// As [`Convolution::SPARSE_BELOW`]; higher, because a single sample is bound by memory, where leaving out zeros pays sooner.
    const SPARSE_BELOW: f64 = 0.2;

    /// The layer with this weight `[out, fan_in]`.
    fn new(out: usize, fan_in: usize, weight: Vec<f32>, epilogue: Epilogue) -> Self {
        Self { weight: Matrix::new(out, fan_in, weight, Self::SPARSE_BELOW), epilogue, out }
    }

    /// `columns` `[in, batch]` to `product` `[out, batch]`.
    fn rows(&self, columns: &[f32], batch: usize, product: &mut [f32], threads: &Threads) {
        threads.pieces(product, ROWS * batch, |number, rows| {
            self.weight.times(number * ROWS, columns, batch, batch, rows);
            rows.chunks_mut(batch).enumerate().for_each(|(row, values)| self.epilogue.apply(number * ROWS + row, values));
        });
    }
}

impl Operation for Dense {
    fn bytes(&self) -> usize {
        self.weight.bytes() + 4 * self.epilogue.bias.len()
    }

    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        Some(&mut self.epilogue.activation)
    }

    fn fold(&mut self, scale: &[f32], shift: &[f32]) -> bool {
        let Some(scale) = self.epilogue.fold(self.out, scale, shift) else { return false };
        self.weight.scale_rows(&scale);
        true
    }

    /// `[batch, in]` to `[batch, out]`.
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        if batch == 1 {
            return self.rows(inputs[0], batch, output, threads);
        }
        let columns = transpose(inputs[0], batch);
        let mut product = vec![0.0; output.len()];
        self.rows(&columns, batch, &mut product, threads);
        transpose_into(&product, self.out, output);
    }
}

/// Columns `[taps, width]` that the windows at `begin..begin + width` see.
fn unfold(g: &Geometry, taps: &[usize], input: &[f32], begin: usize, width: usize, columns: &mut [f32]) {
    let area = g.kernel[0] * g.kernel[1];
    for (tap, column) in taps.iter().zip(columns.chunks_mut(width)) {
        let (channel, tap) = (tap / area, tap % area);
        let (ky, kx) = (tap / g.kernel[1], tap % g.kernel[1]);
        let plane = &input[channel * g.input[0] * g.input[1]..][..g.input[0] * g.input[1]];
        let inside = g.inside(kx);
        let mut position = begin;
        let mut rest = column;
        while !rest.is_empty() {
            let (oy, ox) = (position / g.output[1], position % g.output[1]);
            let (piece, after) = rest.split_at_mut(rest.len().min(g.output[1] - ox));
            position += piece.len();
            rest = after;
            let end = ox + piece.len();
            let (from, to) = (inside.start.clamp(ox, end), inside.end.clamp(ox, end));
            let Some(iy) = g.source(0, oy, ky).filter(|_| from < to) else {
                piece.fill(0.0);
                continue;
            };
            piece[..from - ox].fill(0.0);
            piece[to - ox..].fill(0.0);
            let piece = &mut piece[from - ox..to - ox];
            let row = &plane[iy * g.input[1] + from * g.stride[1] + kx * g.dilation[1] - g.padding.before(1)..];
            if g.stride[1] == 1 {
                piece.copy_from_slice(&row[..to - from]);
            } else {
                piece.iter_mut().zip(row.iter().step_by(g.stride[1])).for_each(|(out, value)| *out = *value);
            }
        }
    }
}

/// As [`transpose_into`], into a new vector.
fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    transpose_into(values, rows, &mut out);
    out
}

/// `[rows, columns]` to `[columns, rows]`.
pub(super) fn transpose_into(values: &[f32], rows: usize, out: &mut [f32]) {
    let columns = values.len() / rows;
    for (row, values) in values.chunks(columns).enumerate() {
        values.iter().zip(out[row..].iter_mut().step_by(rows)).for_each(|(value, out)| *out = *value);
    }
}
