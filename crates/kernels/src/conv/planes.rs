//! Images laid out so that every tap of a filter is a distance.

use std::cell::RefCell;

use super::Conv2d;
use crate::lanes::LANES;

/// How one group's channels of an image lie in the scratch buffer: rows with zeros around them, each row's columns sorted by their
/// remainder modulo the stride.
#[derive(Debug)]
pub(super) struct Planes {
    /// Channels, height and width of what is copied.
    pub(super) source: [usize; 3],
    /// Zeros above and to the left.
    margin: [usize; 2],
    rows: usize,
    /// Length of a row's part with one remainder.
    part: usize,
    phases: usize,
    /// Distance between the rows that neighbouring output rows begin in, in rows.
    step: usize,
}

impl Planes {
    /// The input of a convolution, and the distance of each tap `(channel, kh, kw)` in the order of a filter's weights.
    pub(super) fn of_input(conv: &Conv2d) -> (Self, Vec<usize>) {
        let [channels, height, width] = conv.input;
        let (rows, columns) = (height + 2 * conv.padding[0], width + 2 * conv.padding[1]);
        let this = Self {
            source: [channels / conv.groups, height, width],
            margin: conv.padding,
            rows,
            part: columns.div_ceil(conv.stride[1]),
            phases: conv.stride[1],
            step: conv.stride[0],
        };
        let taps = (0..this.source[0]).flat_map(|channel| {
            let this = &this;
            let at = move |kh: usize, kw: usize| this.at(channel, kh * conv.dilation[0], kw * conv.dilation[1]);
            (0..conv.kernel[0]).flat_map(move |kh| (0..conv.kernel[1]).map(move |kw| at(kh, kw)))
        });
        let taps = taps.collect();
        (this, taps)
    }

    /// The gradient of the output, as the gradient of the input reads it, and for each remainder of an input pixel's row and column modulo
    /// the stride the taps that reach such pixels.
    ///
    /// With `r = a + stride i`, `dx[r] = sum over kh of dy[i + o] w[kh]` for the taps whose `o = (a + padding - kh dilation) / stride` is whole.
    pub(super) fn of_gradient(conv: &Conv2d, out: [usize; 3]) -> (Self, Vec<Residue>) {
        let offset = |axis: usize, residue: usize, tap: usize| {
            let (stride, from) =
                (conv.stride[axis] as isize, (residue + conv.padding[axis]) as isize - (tap * conv.dilation[axis]) as isize);
            (from % stride == 0).then_some(from / stride)
        };
        let all = |axis: usize| -> Vec<isize> {
            (0..conv.stride[axis]).flat_map(|a| (0..conv.kernel[axis]).filter_map(move |tap| offset(axis, a, tap))).collect()
        };
        let margin = [0, 1].map(|axis| all(axis).into_iter().min().unwrap_or(0).min(0).unsigned_abs());
        let extent = [0, 1].map(|axis| {
            let farthest = all(axis).into_iter().max().unwrap_or(0).max(0).unsigned_abs();
            margin[axis] + out[axis + 1].max(conv.input[axis + 1].div_ceil(conv.stride[axis]) + farthest)
        });
        let source = [out[0] / conv.groups, out[1], out[2]];
        let this = Self { source, margin, rows: extent[0], part: extent[1], phases: 1, step: 1 };
        let mut residues = Vec::new();
        for a in 0..conv.stride[0].min(conv.input[1]) {
            for b in 0..conv.stride[1].min(conv.input[2]) {
                let mut residue = Residue { first: [a, b], taps: Vec::new(), picks: Vec::new() };
                for channel in 0..source[0] {
                    for (kh, kw) in (0..conv.kernel[0]).flat_map(|kh| (0..conv.kernel[1]).map(move |kw| (kh, kw))) {
                        if let (Some(row), Some(column)) = (offset(0, a, kh), offset(1, b, kw)) {
                            let [row, column] = [margin[0].wrapping_add_signed(row), margin[1].wrapping_add_signed(column)];
                            residue.taps.push(this.at(channel, row, column));
                            residue.picks.push((channel * conv.kernel[0] + kh) * conv.kernel[1] + kw);
                        }
                    }
                }
                residues.push(residue);
            }
        }
        (this, residues)
    }

    /// The gradient of the output with rows filled up with zeros to whole vectors.
    pub(super) fn of_rows(conv: &Conv2d, out: [usize; 3]) -> Self {
        let source = [out[0] / conv.groups, out[1], out[2]];
        Self { source, margin: [0, 0], rows: out[1], part: out[2].next_multiple_of(LANES), phases: 1, step: 1 }
    }

    fn at(&self, channel: usize, row: usize, column: usize) -> usize {
        channel * self.plane() + row * self.part * self.phases + column % self.phases * self.part + column / self.phases
    }

    /// Floats of the buffer; the last vector of the last row may reach beyond the last plane.
    pub(super) fn len(&self) -> usize {
        self.source[0] * self.plane() + LANES
    }

    /// Distance between channels.
    pub(super) fn plane(&self) -> usize {
        self.rows * self.part * self.phases
    }

    /// Where the output row `row` begins.
    pub(super) fn row(&self, row: usize) -> usize {
        self.at(0, row * self.step, 0)
    }

    /// Copies one group's channels of an image; all else becomes zero.
    pub(super) fn fill(&self, image: &[f32], scratch: &mut [f32]) {
        scratch.fill(0.0);
        let [channels, height, width] = self.source;
        for (channel, row) in (0..channels).flat_map(|channel| (0..height).map(move |row| (channel, row))) {
            let from = &image[(channel * height + row) * width..][..width];
            let start = self.at(channel, row + self.margin[0], 0);
            let to = &mut scratch[start..][..self.part * self.phases];
            if self.phases == 1 {
                to[self.margin[1]..][..width].copy_from_slice(from);
            } else {
                for (value, column) in from.iter().zip(self.margin[1]..) {
                    to[column % self.phases * self.part + column / self.phases] = *value;
                }
            }
        }
    }
}

/// The input pixels `first + stride * i`, and what their gradient is made of.
#[derive(Debug)]
pub(super) struct Residue {
    /// The first row and column.
    pub(super) first: [usize; 2],
    /// Distances in the scratch buffer.
    pub(super) taps: Vec<usize>,
    /// For each tap, its place among the weights `[filter of the group][kh][kw]` that belong to one channel.
    pub(super) picks: Vec<usize>,
}

/// Eight neighbouring pixels of an output row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Where they read in the scratch buffer at the distance 0.
    pub(super) base: usize,
    /// The first one's place in the output channel.
    pub(super) at: usize,
    /// How many are pixels; the rest fill the vector.
    pub(super) len: usize,
}

/// Output pixels in vectors: `first + stride * i` in rows and columns of an output channel of `size`.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) all: Vec<Slot>,
    /// Pixels of an output channel.
    pub(super) pixels: usize,
    /// Distance of neighbouring pixels of a vector in the output.
    pub(super) stride: usize,
}

impl Slots {
    pub(super) fn new(planes: &Planes, size: [usize; 2], first: [usize; 2], stride: [usize; 2]) -> Self {
        let [rows, columns] = [0, 1].map(|axis| (size[axis] - first[axis]).div_ceil(stride[axis]));
        let in_row = |row: usize| {
            let start = (first[0] + row * stride[0]) * size[1] + first[1];
            let slot = move |column: usize| Slot {
                base: planes.row(row) + column,
                at: start + column * stride[1],
                len: LANES.min(columns - column),
            };
            (0..columns).step_by(LANES).map(slot)
        };
        Self { all: (0..rows).flat_map(in_row).collect(), pixels: size[0] * size[1], stride: stride[1] }
    }

    /// The farthest read at the distance 0.
    pub(super) fn reach(&self) -> usize {
        self.all.iter().map(|slot| slot.base + LANES).max().unwrap_or(0)
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends this thread's buffer, which only grows. Its contents are whatever was there.
pub(super) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out while in use: a kernel that is called from within finds an empty one and makes its own.
    let mut buffer = SCRATCH.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = work(&mut buffer[..len]);
    SCRATCH.replace(buffer);
    result
}
