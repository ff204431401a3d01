//! Which taps of a filter reach an image from a pixel, and how a batch is cut into tasks.

use std::ops::Range;

use super::Conv2d;

/// How the pixels of a product's target see its source.
#[derive(Debug)]
pub(super) struct View {
    /// Height and width of a source image.
    source: [usize; 2],
    /// Channels of a source pixel in one group.
    pub(super) channels: usize,
    /// Height and width of a target image.
    target: [usize; 2],
    /// Channels of a target pixel in one group.
    pub(super) filters: usize,
    pub(super) groups: usize,
    /// Taps of a filter, and of each of its rows.
    pub(super) area: usize,
    row: usize,
    /// Whether the weights are read the other way, `[source channels, target channels]` and from the last tap to the first, as for the
    /// gradient of the input.
    pub(super) turned: bool,
    /// Rows and columns of the target by the taps that reach the source from there.
    classes: [Vec<Class>; 2],
}

/// Rows or columns from which the same taps reach the source: those of the border lack the taps that would reach beyond.
#[derive(Debug)]
struct Class {
    /// The taps in the order of what they reach, with the distance from what the first one reaches.
    taps: Vec<Reach>,
    /// Rows or columns of the target, and what the first tap reaches from there.
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reach {
    tap: usize,
    distance: usize,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    target: usize,
    source: usize,
}

/// A run of values at a distance from what a pixel's first tap reaches, and the place of its weights among those of a filter. A place holds
/// as many weights as are multiplied at a time; an odd last value shares its place with a zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) weight: usize,
}

/// Pixels from which the same taps reach the source, image after image.
#[derive(Debug, Default)]
pub(super) struct Pixels {
    /// What the first tap reaches from each.
    bases: Vec<u32>,
    /// Where each lies in the target, counted in pixels.
    places: Vec<u32>,
    /// How many of them an image has.
    each: usize,
    /// What the taps reach.
    segments: Vec<Segment>,
}

/// Part of a batch: some images, and the rows of the target that a table of pixels describes.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) images: Range<usize>,
    /// Which table.
    pub(super) table: usize,
}

/// How a batch is cut: a table of pixels for each piece of an image, and the tasks.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) tables: Vec<Vec<Pixels>>,
    pub(super) tasks: Vec<Task>,
}

/// How large a task may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Floats of its source.
    pub(super) floats: usize,
    /// Pixels of its target: enough that even the rare kinds fill a tile of registers, and that reading the weights is worth while.
    pub(super) pixels: usize,
}

/// Least number of tasks, where there is as much to do: enough to keep many threads busy to the end.
const TASKS: usize = 16;

impl View {
    /// The input as the output sees it: the tap `k` of the output row `r` reaches the input row `r stride + k dilation - padding before`.
    pub(super) fn of_input(conv: &Conv2d, out: [usize; 3]) -> Self {
        let reached = |axis: usize, row: usize, tap: usize| {
            let row = (row * conv.stride[axis] + tap * conv.dilation[axis]).checked_sub(conv.padding.before(axis))?;
            (row < conv.input[axis]).then_some(row)
        };
        Self {
            source: [conv.input[0], conv.input[1]],
            channels: conv.input[2] / conv.groups,
            target: [out[0], out[1]],
            filters: conv.filters / conv.groups,
            turned: false,
            ..Self::with_classes(conv, |axis| classes(out[axis], conv.kernel[axis], |row, tap| reached(axis, row, tap)))
        }
    }

    /// The gradient of the output as the gradient of the input sees it: the tap `k` of the input row `r` reaches the output row
    /// `(r + padding before - k dilation) / stride`, where that is whole.
    pub(super) fn of_gradient(conv: &Conv2d, out: [usize; 3]) -> Self {
        let reached = |axis: usize, row: usize, tap: usize| {
            let row = (row + conv.padding.before(axis)).checked_sub(tap * conv.dilation[axis])?;
            (row.is_multiple_of(conv.stride[axis]) && row / conv.stride[axis] < out[axis]).then(|| row / conv.stride[axis])
        };
        let of_axis = |axis: usize| classes(conv.input[axis], conv.kernel[axis], |row, tap| reached(axis, row, tap));
        Self {
            source: [out[0], out[1]],
            channels: conv.filters / conv.groups,
            target: [conv.input[0], conv.input[1]],
            filters: conv.input[2] / conv.groups,
            turned: true,
            ..Self::with_classes(conv, of_axis)
        }
    }

    fn with_classes(conv: &Conv2d, of_axis: impl Fn(usize) -> Vec<Class>) -> Self {
        Self {
            source: [0; 2],
            channels: 0,
            target: [0; 2],
            filters: 0,
            groups: conv.groups,
            area: conv.kernel[0] * conv.kernel[1],
            row: conv.kernel[1],
            turned: false,
            classes: [of_axis(0), of_axis(1)],
        }
    }

    /// Cuts a batch into tasks, by shapes alone: some images whole, or some rows of one; and for each piece of an image a table of its
    /// pixels. A task of fewer images has the first pixels of each kind. Each task may be shared among jobs for some of so many `panels`, and
    /// `per` weights share a place.
    pub(super) fn tasks(&self, batch: usize, panels: usize, size: Size, per: usize) -> Cut {
        let image = self.source.iter().product::<usize>() * self.channels * self.groups;
        let (rows, pixels) = (self.target[0], self.target.iter().product::<usize>());
        let wanted = TASKS.div_ceil((panels * self.groups).max(1));
        let bands = image.div_ceil(size.floats).max(wanted.div_ceil(batch.max(1))).min(rows).max(1);
        let most = (size.floats / image.max(1)).min(size.pixels.div_ceil(pixels.max(1))).min(batch.div_ceil(wanted)).max(1);
        let images = if bands == 1 { batch.div_ceil(batch.div_ceil(most).max(1)).max(1) } else { 1 };
        let band = rows.div_ceil(bands).max(1);
        let tables: Vec<Vec<Pixels>> =
            (0..rows).step_by(band).map(|row| self.pixels(images, row..(row + band).min(rows), per)).collect();
        let task = |first: usize| {
            let images = first..(first + images).min(batch);
            (0..tables.len()).map(move |table| Task { images: images.clone(), table })
        };
        let tasks = (0..batch).step_by(images).flat_map(task).collect();
        Cut { tables, tasks }
    }

    /// The pixels of some rows of the first images of a batch, by what they reach.
    fn pixels(&self, images: usize, rows: Range<usize>, per: usize) -> Vec<Pixels> {
        let pairs = self.classes[0].iter().flat_map(|row| self.classes[1].iter().map(move |column| (row, column)));
        let of_pair = |(row, column): (&Class, &Class)| {
            let rows: Vec<&Place> = row.places.iter().filter(|place| rows.contains(&place.target)).collect();
            let mut pixels = Pixels { each: rows.len() * column.places.len(), ..Pixels::default() };
            for (image, row) in (0..images).flat_map(|image| rows.iter().map(move |row| (image, row))) {
                for column in &column.places {
                    let source = (image * self.source[0] + row.source) * self.source[1] + column.source;
                    let target = (image * self.target[0] + row.target) * self.target[1] + column.target;
                    pixels.bases.push((source * self.channels * self.groups) as u32);
                    pixels.places.push(target as u32);
                }
            }
            let reaches = row.taps.iter().flat_map(|row| column.taps.iter().map(move |column| (row, column)));
            for (row, column) in reaches {
                let offset = (row.distance * self.source[1] + column.distance) * self.channels * self.groups;
                let weight = self.position(row.tap * self.row + column.tap) * self.channels.div_ceil(per);
                match pixels.segments.last_mut() {
                    Some(last)
                        if self.channels.is_multiple_of(per)
                            && (last.offset + last.len, last.weight + last.len / per) == (offset, weight) =>
                    {
                        last.len += self.channels;
                    }
                    _ => pixels.segments.push(Segment { offset, len: self.channels, weight }),
                }
            }
            pixels
        };
        pairs.map(of_pair).filter(|pixels| pixels.each > 0).collect()
    }

    /// Pixels of a target image.
    pub(super) fn pixels_of_target(&self) -> usize {
        self.target.iter().product()
    }

    /// The place of a tap among the packed weights.
    pub(super) fn position(&self, tap: usize) -> usize {
        if self.turned { self.area - 1 - tap } else { tap }
    }

    /// Places of the weights of one filter, `per` weights in each.
    pub(super) fn depth(&self, per: usize) -> usize {
        self.area * self.channels.div_ceil(per)
    }

    /// The source from a task's first image and a group's first channel on, and the place of that image in the target, in pixels.
    pub(super) fn start<'a, T>(&self, task: &Task, group: usize, from: &'a [T]) -> (&'a [T], usize) {
        let image = self.source.iter().product::<usize>() * self.channels * self.groups;
        let start = (task.images.start * image + group * self.channels).min(from.len());
        (&from[start..], task.images.start * self.target.iter().product::<usize>())
    }
}

impl Pixels {
    /// Bases and places of the first `images`, and what their taps reach.
    pub(super) fn of(&self, images: usize) -> (&[u32], &[u32], &[Segment]) {
        (&self.bases[..images * self.each], &self.places[..images * self.each], &self.segments)
    }
}

/// Groups the rows (or columns) of the target by the taps for which `reached` tells a row of the source.
fn classes(rows: usize, taps: usize, reached: impl Fn(usize, usize) -> Option<usize>) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::new();
    for target in 0..rows {
        let mut all: Vec<(usize, usize)> = (0..taps).filter_map(|tap| Some((reached(target, tap)?, tap))).collect();
        all.sort_unstable();
        let source = all.first().map_or(0, |(source, _)| *source);
        let taps: Vec<Reach> = all.into_iter().map(|(row, tap)| Reach { tap, distance: row - source }).collect();
        let place = Place { target, source };
        match classes.iter_mut().find(|class| class.taps == taps) {
            Some(class) => class.places.push(place),
            None => classes.push(Class { taps, places: vec![place] }),
        }
    }
    classes
}

/// Into how many shares each of `tasks` is cut, so that there are enough.
pub(super) fn shares(tasks: usize) -> usize {
    TASKS.div_ceil(tasks.max(1))
}
