//! Images laid out so that every tap of a filter is a distance.

use std::cell::RefCell;

use super::Conv2d;
use crate::lanes::LANES;

/// How one group's channels of an image lie in the scratch buffer: rows with their padding, each row's columns sorted by their
/// remainder modulo the stride.
#[derive(Debug)]
pub(super) struct Planes {
    /// Channels, height and width of what is copied.
    pub(super) source: [usize; 3],
    /// Distance of each tap `(channel, kh, kw)`, in the order of a filter's weights.
    pub(super) taps: Vec<usize>,
    /// Distance between the rows that neighbouring output rows begin in.
    step: usize,
    rows: usize,
    /// Length of a row's part with one remainder.
    part: usize,
    phases: usize,
    /// Where the first row and column of the source come to lie; negative when they are cropped.
    origin: [isize; 2],
    /// Distance between neighbouring rows and columns of the source.
    spread: [usize; 2],
}

impl Planes {
    /// The input of a convolution.
    pub(super) fn of_input(conv: &Conv2d) -> Self {
        let [channels, height, width] = conv.input;
        let (rows, columns) = (height + 2 * conv.padding[0], width + 2 * conv.padding[1]);
        let origin = [conv.padding[0] as isize, conv.padding[1] as isize];
        Self::new([channels / conv.groups, height, width], [rows, columns], origin, [1, 1], conv, conv.stride)
    }

    /// The gradient of the output, spread apart by the stride, as the input of the turned filters.
    pub(super) fn of_gradient(conv: &Conv2d, out: [usize; 3]) -> Self {
        let span = |axis: usize| (conv.kernel[axis] - 1) * conv.dilation[axis];
        let origin = [0, 1].map(|axis| span(axis) as isize - conv.padding[axis] as isize);
        let size = [conv.input[1] + span(0), conv.input[2] + span(1)];
        Self::new([out[0] / conv.groups, out[1], out[2]], size, origin, conv.stride, conv, [1, 1])
    }

    /// The gradient of the output with rows filled up with zeros to whole vectors.
    pub(super) fn of_rows(conv: &Conv2d, out: [usize; 3]) -> Self {
        let columns = out[2].next_multiple_of(LANES);
        let alone = Conv2d { kernel: [1, 1], ..*conv };
        Self::new([out[0] / conv.groups, out[1], out[2]], [out[1], columns], [0, 0], [1, 1], &alone, [1, 1])
    }

    fn new(
        source: [usize; 3],
        size: [usize; 2],
        origin: [isize; 2],
        spread: [usize; 2],
        conv: &Conv2d,
        stride: [usize; 2],
    ) -> Self {
        let phases = stride[1];
        let part = size[1].div_ceil(phases);
        let row = part * phases;
        let plane = size[0] * row;
        let mut taps = Vec::with_capacity(source[0] * conv.kernel[0] * conv.kernel[1]);
        for channel in 0..source[0] {
            for kh in 0..conv.kernel[0] {
                for column in (0..conv.kernel[1]).map(|kw| kw * conv.dilation[1]) {
                    taps.push(channel * plane + kh * conv.dilation[0] * row + column % phases * part + column / phases);
                }
            }
        }
        Self { source, taps, step: stride[0] * row, rows: size[0], part, phases, origin, spread }
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
        row * self.step
    }

    /// Copies one group's channels of an image; all else becomes zero.
    pub(super) fn fill(&self, image: &[f32], scratch: &mut [f32]) {
        scratch.fill(0.0);
        let [channels, height, width] = self.source;
        let columns = self.part * self.phases;
        // The source's columns that are not cropped.
        let place = |index: usize, axis: usize| self.origin[axis] + (index * self.spread[axis]) as isize;
        let kept = |index: usize, axis: usize, limit: usize| usize::try_from(place(index, axis)).ok().filter(|at| *at < limit);
        let whole = self.phases == 1 && self.spread[1] == 1 && self.origin[1] >= 0 && self.origin[1] as usize + width <= columns;
        for channel in 0..channels {
            for row in 0..height {
                let Some(at) = kept(row, 0, self.rows) else { continue };
                let from = &image[(channel * height + row) * width..][..width];
                let to = &mut scratch[channel * self.plane() + at * columns..][..columns];
                if whole {
                    to[self.origin[1] as usize..][..width].copy_from_slice(from);
                    continue;
                }
                for (column, value) in from.iter().enumerate() {
                    if let Some(at) = kept(column, 1, columns) {
                        to[at % self.phases * self.part + at / self.phases] = *value;
                    }
                }
            }
        }
    }
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

/// All output pixels in vectors.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) all: Vec<Slot>,
    /// Pixels of an output channel.
    pub(super) pixels: usize,
}

impl Slots {
    pub(super) fn new(planes: &Planes, [height, width]: [usize; 2]) -> Self {
        let in_row = |row: usize| {
            let slot = move |column: usize| (planes.row(row) + column, row * width + column, LANES.min(width - column));
            (0..width).step_by(LANES).map(slot)
        };
        let all = (0..height).flat_map(in_row).map(|(base, at, len)| Slot { base, at, len }).collect();
        Self { all, pixels: height * width }
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
