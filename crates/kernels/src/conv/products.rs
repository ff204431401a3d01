//! Sums over runs of floats times weights in panels: the forward pass, and the gradient of the input.

// The loops read and write through pointers whose farthest reach is checked before they begin.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::geometry::{Cut, Segment, Size, Task, View};
use super::pack::pack;
use crate::Error;
use crate::buffer::Target;
use crate::lanes::{Isa, Lanes, Work};
use crate::operand::Operand;

/// Neighbouring filters whose weights lie together: for each place `k` of the sums, `vectors` vectors of filters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FilterPanel {
    /// The first filter, and how many there are; further lanes are zero.
    pub(crate) first: usize,
    pub(crate) filters: usize,
    pub(crate) vectors: usize,
}

/// The filters of a group in panels of two vectors, the last of one where that is enough. The panel that begins with filter `f` begins at
/// `f * depth` of the packed weights.
pub(crate) fn panels(filters: usize, lanes: usize) -> Vec<FilterPanel> {
    let panel = |first: usize| {
        let filters = (filters - first).min(2 * lanes);
        FilterPanel { first, filters, vectors: filters.div_ceil(lanes) }
    };
    (0..filters).step_by(2 * lanes).map(panel).collect()
}

/// Length of packed weights: `depth` places for every vector of filters.
pub(crate) fn packed_len(filters: usize, lanes: usize, depth: usize) -> usize {
    filters.next_multiple_of(lanes) * depth
}

/// What becomes of a sum before it is written: `y = rectify(sum * scale + bias + residual)`, each part as it is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// A factor for each filter.
    pub scale: Option<&'a [f32]>,
    /// A summand for each filter.
    pub bias: Option<&'a [f32]>,
    /// A summand for each result, laid out as they are.
    pub residual: Option<&'a [f32]>,
    /// Whether negative results become zero.
    pub rectify: bool,
}

impl<'a> Epilogue<'a> {
    /// A bias for each filter.
    pub fn biased(bias: &'a [f32]) -> Self {
        Self { bias: Some(bias), ..Self::default() }
    }

    pub(crate) fn check(&self, filters: usize, results: usize) -> Result<(), Error> {
        let parts = [("scale", self.scale, filters), ("bias", self.bias, filters), ("residual", self.residual, results)];
        for (name, part, wanted) in parts {
            if let Some(part) = part.filter(|part| part.len() != wanted) {
                return Err(Error(format!("a {name} of {} values for {filters} filters and {results} results", part.len())));
            }
        }
        Ok(())
    }
}

impl Epilogue<'_> {
    fn is_plain(&self) -> bool {
        self.scale.is_none() && self.bias.is_none() && self.residual.is_none() && !self.rectify
    }

    /// Finishes the results of the filters `first .. first + count` of one pixel, whose results begin at `place`.
    #[inline(always)]
    pub(crate) fn finish<L: Lanes, const V: usize>(&self, mut sums: [L; V], place: usize, first: usize, count: usize) -> [L; V] {
        if let Some(scale) = self.scale {
            let scale: [L; V] = read_slice(&scale[first..][..count]);
            for v in 0..V {
                sums[v] = sums[v].multiply(scale[v]);
            }
        }
        if let Some(bias) = self.bias {
            let bias: [L; V] = read_slice(&bias[first..][..count]);
            for v in 0..V {
                sums[v] = sums[v].add(bias[v]);
            }
        }
        if let Some(residual) = self.residual {
            let residual: [L; V] = read_slice(&residual[place + first..][..count]);
            for v in 0..V {
                sums[v] = sums[v].add(residual[v]);
            }
        }
        if self.rectify {
            for sum in &mut sums {
                *sum = sum.rectified();
            }
        }
        sums
    }
}

/// Places of the sums between which intermediate results are written: their weights stay in the first-level cache.
const DEPTH: usize = 256;

/// The source stays in the second-level cache beside weights and results.
const SIZE: Size = Size { floats: 64 * 1024, pixels: 768 };

/// Panels that a single pixel goes through at a time: eight sums hide the latency of the additions.
const ABREAST: usize = 4;

/// A task's share of a product.
pub(crate) struct Correlation<'a, O: Operand> {
    pub(crate) source: &'a [O::Value],
    /// For pixels of one kind what their first tap reaches in the source, and their place among those of `to`, counted from `start`.
    pub(crate) pixels: Vec<(&'a [u32], &'a [u32], &'a [Segment])>,
    pub(crate) start: usize,
    /// Some panels of the group, and the packed weights of all, `depth` places for each filter.
    pub(crate) panels: &'a [FilterPanel],
    pub(crate) weights: &'a [O::Weight],
    pub(crate) depth: usize,
    pub(crate) epilogue: &'a Epilogue<'a>,
    /// The group's first filter among those of all groups, and their number.
    pub(crate) filter: usize,
    pub(crate) row: usize,
    pub(crate) to: Target<'a>,
}

impl<O: Operand> Work for Correlation<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (bases, places, segments) in &self.pixels {
            let (Some(base), Some(place)) = (bases.iter().max(), places.iter().max()) else { continue };
            let reach = segments.iter().map(|segment| segment.offset + segment.len.next_multiple_of(O::PER)).max().unwrap_or(0);
            let last = segments.iter().map(|segment| segment.weight + segment.len.div_ceil(O::PER)).max().unwrap_or(0);
            assert!(*base as usize + reach <= self.source.len() && last <= self.depth, "a tap lies outside its buffer");
            assert_eq!(bases.len(), places.len());
            let blocks = blocks(segments, O::PER);
            // A single pixel leaves room in registers for panels side by side.
            let whole = self.panels.iter().take_while(|panel| panel.filters == 2 * L::COUNT).count();
            let (fours, others) = self.panels.split_at(if bases.len() == 1 { whole - whole % ABREAST } else { 0 });
            for four in fours.chunks_exact(ABREAST) {
                let (first, filters) = (self.filter + four[0].first, ABREAST * 2 * L::COUNT);
                let weights = &self.weights[four[0].first * self.depth..][..filters * self.depth];
                assert!(first + filters <= self.row, "no such filters");
                let to = self.to.at((self.start + places[0] as usize) * self.row + first, filters);
                for (index, segments) in blocks.iter().enumerate() {
                    let ends = [index == 0, index + 1 == blocks.len()];
                    let share = Share { bases, places, segments, weights, filters, first, ends };
                    // SAFETY: the farthest run, its weights in each of the panels, and all of their results were checked.
                    unsafe { self.abreast::<L>(&share, to) };
                }
            }
            for panel in others {
                let weights = &self.weights[panel.first * self.depth..][..panel.vectors * L::COUNT * self.depth];
                let first = self.filter + panel.first;
                assert!(first + panel.filters <= self.row, "no such filters");
                // The farthest result of the panel lies inside; `at` checks it.
                self.to.at((self.start + *place as usize) * self.row + first, panel.filters);
                let to = self.to.at(self.start * self.row + first, panel.filters);
                for (index, segments) in blocks.iter().enumerate() {
                    let ends = [index == 0, index + 1 == blocks.len()];
                    let share = Share { bases, places, segments, weights, filters: panel.filters, first, ends };
                    // SAFETY: the farthest run of the farthest base, its weights, and the farthest result were checked.
                    unsafe {
                        match (panel.vectors, panel.filters.is_multiple_of(L::COUNT)) {
                            (1, true) => self.tiles::<L, 8, 1, true>(&share, to),
                            (1, false) => self.tiles::<L, 8, 1, false>(&share, to),
                            (_, true) => self.tiles::<L, 6, 2, true>(&share, to),
                            (_, false) => self.tiles::<L, 6, 2, false>(&share, to),
                        }
                    }
                }
            }
        }
    }
}

/// One panel by one block of the sums.
struct Share<'a, O: Operand> {
    bases: &'a [u32],
    places: &'a [u32],
    segments: &'a [Segment],
    /// The panel's weights.
    weights: &'a [O::Weight],
    /// Filters of the panel, and its first one among those of all groups.
    filters: usize,
    first: usize,
    /// Whether the block is the first, and whether it is the last.
    ends: [bool; 2],
}

impl<O: Operand> Correlation<'_, O> {
    /// All pixels, `P` at a time, by a panel of `V` vectors, `WHOLE` or with lanes that are no filters.
    ///
    /// # Safety
    /// Every run of the block is readable from every base, the weights hold `V` vectors for each place of the runs, and the panel's
    /// filters are writable from `to` on at every place.
    #[inline(always)]
    unsafe fn tiles<L: Lanes, const P: usize, const V: usize, const WHOLE: bool>(&self, share: &Share<'_, O>, to: *mut f32) {
        let (bases, places) = (share.bases.as_chunks::<P>(), share.places.as_chunks::<P>());
        for (bases, places) in bases.0.iter().zip(places.0) {
            // SAFETY: as the caller vouches.
            unsafe { self.tile::<L, P, V, WHOLE>(share, bases, places, to) };
        }
        // SAFETY: as the caller vouches.
        unsafe {
            match bases.1.len() {
                0 => {}
                1 => self.last::<L, 1, V, WHOLE>(share, bases.1, places.1, to),
                2 => self.last::<L, 2, V, WHOLE>(share, bases.1, places.1, to),
                3 | 4 => self.last::<L, 4, V, WHOLE>(share, bases.1, places.1, to),
                _ => self.last::<L, P, V, WHOLE>(share, bases.1, places.1, to),
            }
        }
    }

    /// A tile of at most `P` pixels, of which the last is computed several times: each time the same result goes to the same place.
    ///
    /// # Safety
    /// As for [`Correlation::tiles`]; there is a pixel.
    #[inline(always)]
    unsafe fn last<L: Lanes, const P: usize, const V: usize, const WHOLE: bool>(
        &self,
        share: &Share<'_, O>,
        bases: &[u32],
        places: &[u32],
        to: *mut f32,
    ) {
        let pixel = |i: usize| i.min(bases.len() - 1);
        let (bases, places) = (std::array::from_fn(|i| bases[pixel(i)]), std::array::from_fn(|i| places[pixel(i)]));
        // SAFETY: as the caller vouches.
        unsafe { self.tile::<L, P, V, WHOLE>(share, &bases, &places, to) };
    }

    /// # Safety
    /// As for [`Correlation::tiles`].
    #[inline(always)]
    unsafe fn tile<L: Lanes, const P: usize, const V: usize, const WHOLE: bool>(
        &self,
        share: &Share<'_, O>,
        bases: &[u32; P],
        places: &[u32; P],
        to: *mut f32,
    ) {
        let filters = if WHOLE { V * L::COUNT } else { share.filters };
        let (mut starts, mut results) = ([self.source.as_ptr(); P], [to; P]);
        for i in 0..P {
            // SAFETY: as the caller vouches.
            unsafe {
                starts[i] = starts[i].add(bases[i] as usize);
                results[i] = to.add(places[i] as usize * self.row);
            }
        }
        // SAFETY: as the caller vouches.
        let mut sums = unsafe { products::<O, L, P, V>(starts, share.segments, share.weights.as_ptr()) };
        if !share.ends[0] {
            // All are read before one is written, for pixels may repeat.
            for i in 0..P {
                // SAFETY: the block before wrote the panel's results.
                sums[i] = unsafe { resumed(sums[i], results[i], filters) };
            }
        }
        for i in 0..P {
            // SAFETY: as the caller vouches.
            unsafe { self.put(share, places[i], share.first, filters, results[i], sums[i]) };
        }
    }

    /// One pixel by [`ABREAST`] whole panels of two vectors, which follow each other.
    ///
    /// # Safety
    /// As for [`Correlation::tiles`], with the first panel's results at `to`.
    #[inline(always)]
    unsafe fn abreast<L: Lanes>(&self, share: &Share<'_, O>, to: *mut f32) {
        let mut sums = [[L::splat(0.0); 2]; ABREAST];
        let panel = 2 * L::COUNT * self.depth;
        for segment in share.segments {
            // SAFETY: the caller vouches for every run and its weights in every panel.
            unsafe {
                let from = self.source.as_ptr().add(share.bases[0] as usize + segment.offset);
                let weights = share.weights.as_ptr().add(segment.weight * 2 * L::COUNT);
                for k in 0..segment.len.div_ceil(O::PER) {
                    let x = O::splat::<L>(from.add(k * O::PER));
                    for (number, sums) in sums.iter_mut().enumerate() {
                        let weights = weights.add(number * panel + k * 2 * L::COUNT);
                        sums[0] = O::multiply_add(O::load::<L>(weights), x, sums[0]);
                        sums[1] = O::multiply_add(O::load::<L>(weights.add(L::COUNT)), x, sums[1]);
                    }
                }
            }
        }
        for (number, mut sums) in sums.into_iter().enumerate() {
            let (offset, count) = (number * 2 * L::COUNT, 2 * L::COUNT);
            // SAFETY: the caller vouches for the results of every panel, which the block before wrote.
            unsafe {
                if !share.ends[0] {
                    sums = resumed(sums, to.add(offset), count);
                }
                self.put(share, share.places[0], share.first + offset, count, to.add(offset), sums);
            }
        }
    }

    /// Puts the sums for the filters `first .. first + count` of a pixel where its results are, finished after the last block.
    ///
    /// # Safety
    /// They are writable at `to`.
    #[inline(always)]
    unsafe fn put<L: Lanes, const V: usize>(
        &self,
        share: &Share<'_, O>,
        place: u32,
        first: usize,
        count: usize,
        to: *mut f32,
        mut sums: [L; V],
    ) {
        if share.ends[1] && !self.epilogue.is_plain() {
            sums = self.epilogue.finish(sums, (self.start + place as usize) * self.row, first, count);
        }
        // SAFETY: as the caller vouches.
        unsafe { write(to, count, sums) };
    }

    /// Computes on these instructions. One place for all products: their loops are long to compile.
    #[inline(never)]
    pub(crate) fn on(self, isa: Isa) {
        isa.run(self);
    }
}

/// `sums` added to what a block before wrote.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
unsafe fn resumed<L: Lanes, const V: usize>(mut sums: [L; V], from: *const f32, count: usize) -> [L; V] {
    // SAFETY: as the caller vouches.
    let before: [L; V] = unsafe { read(from, count) };
    for v in 0..V {
        sums[v] = before[v].add(sums[v]);
    }
    sums
}

/// The products of `segments` with the weights, for `P` pixels.
///
/// # Safety
/// Every segment is readable from every start, and its weights, `V` vectors for each place.
#[inline(always)]
unsafe fn products<O: Operand, L: Lanes, const P: usize, const V: usize>(
    starts: [*const O::Value; P],
    segments: &[Segment],
    weights: *const O::Weight,
) -> [[L; V]; P] {
    let mut sums = [[L::splat(0.0); V]; P];
    for segment in segments {
        let mut from = starts;
        for from in &mut from {
            // SAFETY: the caller vouches for every segment from every start.
            *from = unsafe { from.add(segment.offset) };
        }
        // SAFETY: the caller vouches for the weights of every segment.
        let mut weights = unsafe { weights.add(segment.weight * V * L::COUNT) };
        for k in 0..segment.len.div_ceil(O::PER) {
            // SAFETY: the caller vouches for the weights of every place.
            let mut some = [unsafe { O::load::<L>(weights) }; V];
            for (v, some) in some.iter_mut().enumerate().skip(1) {
                // SAFETY: as above.
                *some = unsafe { O::load::<L>(weights.add(v * L::COUNT)) };
            }
            // SAFETY: one past the last vector at most.
            weights = unsafe { weights.add(V * L::COUNT) };
            for p in 0..P {
                // SAFETY: inside the segment.
                let x = unsafe { O::splat::<L>(from[p].add(k * O::PER)) };
                for v in 0..V {
                    sums[p][v] = O::multiply_add(some[v], x, sums[p][v]);
                }
            }
        }
    }
    sums
}

/// `count` floats in `V` vectors.
///
/// # Safety
/// They are readable, and more than fill `V - 1` vectors.
#[inline(always)]
pub(crate) unsafe fn read<L: Lanes, const V: usize>(from: *const f32, count: usize) -> [L; V] {
    let mut vectors = [L::splat(0.0); V];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller vouches for `count` floats.
        *vector = unsafe {
            match count - v * L::COUNT {
                left if left < L::COUNT => L::load_some(from.add(v * L::COUNT), left),
                _ => L::load(from.add(v * L::COUNT)),
            }
        };
    }
    vectors
}

/// A slice in `V` vectors, of which it more than fills `V - 1`.
#[inline(always)]
pub(crate) fn read_slice<L: Lanes, const V: usize>(values: &[f32]) -> [L; V] {
    assert!(values.len() <= V * L::COUNT);
    // SAFETY: the slice is readable.
    unsafe { read(values.as_ptr(), values.len()) }
}

/// The other way of [`read`].
///
/// # Safety
/// As for [`read`], for writing.
#[inline(always)]
pub(crate) unsafe fn write<L: Lanes, const V: usize>(to: *mut f32, count: usize, vectors: [L; V]) {
    for (v, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the caller vouches for `count` floats.
        unsafe {
            match count - v * L::COUNT {
                left if left < L::COUNT => vector.store_some(to.add(v * L::COUNT), left),
                _ => vector.store(to.add(v * L::COUNT)),
            }
        }
    }
}

/// Cuts the runs into blocks of about equal depths; there is at least one block.
fn blocks(segments: &[Segment], per: usize) -> Vec<Vec<Segment>> {
    let depth: usize = segments.iter().map(|segment| segment.len.div_ceil(per)).sum();
    let most = depth.div_ceil(depth.div_ceil(DEPTH).max(1)).max(1);
    let mut blocks = vec![Vec::new()];
    let mut room = most;
    for segment in segments {
        let mut left = *segment;
        while left.len > 0 {
            if room == 0 {
                blocks.push(Vec::new());
                room = most;
            }
            let len = left.len.min(room * per);
            blocks.last_mut().expect("there is one").push(Segment { len, ..left });
            let places = len.div_ceil(per);
            left = Segment { offset: left.offset + len, len: left.len - len, weight: left.weight + places };
            room -= places;
        }
    }
    blocks
}

impl View {
    /// Computes every target pixel from the source and the weights, whose filters lie as the view says.
    pub(super) fn correlate<O: Operand>(
        &self,
        isa: Isa,
        batch: usize,
        from: &[f32],
        w: &[f32],
        epilogue: &Epilogue<'_>,
        to: Target<'_>,
    ) {
        let lanes = isa.lanes();
        let (panels, weights) = (panels(self.filters, lanes), pack::<O>(self, w, lanes));
        let cut = self.cut(batch, panels.len(), O::PER);
        self.products::<O>(isa, &O::values(from), (&panels, &weights), &cut, epilogue, to, true);
    }

    /// How a batch is cut for so many panels.
    pub(super) fn cut(&self, batch: usize, panels: usize, per: usize) -> Cut {
        self.tasks(batch, panels, SIZE, per)
    }

    /// [`View::correlate`] on packed weights.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn products<O: Operand>(
        &self,
        isa: Isa,
        from: &[O::Value],
        (panels, weights): (&[FilterPanel], &[O::Weight]),
        cut: &Cut,
        epilogue: &Epilogue<'_>,
        to: Target<'_>,
        parallel: bool,
    ) {
        let Cut { tables, tasks } = cut;
        let each = weights.len() / self.groups;
        let job = |(task, group, panels): (&Task, usize, &[FilterPanel])| {
            let (source, start) = self.start(task, group, from);
            let correlation = Correlation::<O> {
                source,
                pixels: tables[task.table].iter().map(|kind| kind.of(task.images.len())).collect(),
                start,
                panels,
                weights: &weights[group * each..][..each],
                depth: self.depth(O::PER),
                epilogue,
                filter: group * self.filters,
                row: self.filters * self.groups,
                to,
            };
            correlation.on(isa);
        };
        // Few tasks share the panels of each.
        let shares = if parallel { super::geometry::shares(tasks.len() * self.groups) } else { 1 };
        let least = if self.pixels_of_target() == 1 { ABREAST } else { 1 };
        let some = panels.len().div_ceil(shares).max(least);
        let jobs = (tasks.iter())
            .flat_map(|task| (0..self.groups).map(move |group| (task, group)))
            .flat_map(|(task, group)| panels.chunks(some).map(move |panels| (task, group, panels)));
        if parallel {
            jobs.collect::<Vec<_>>().into_par_iter().for_each(job);
        } else {
            jobs.for_each(job);
        }
    }
}
