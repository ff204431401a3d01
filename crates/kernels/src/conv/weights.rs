//! The gradient of the weights.

// The loops read through pointers whose farthest reach is checked before they begin.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::geometry::{Cut, Segment, Size, Task, View};
use super::pack::unpack;
use super::products::{FilterPanel, packed_len, panels, read, write};
use crate::lanes::{Isa, Lanes, Work};
use crate::operand::Operand;

/// Pixels whose sums stay in registers: what they read stays in the first-level cache from one tile to the next.
const PIXELS: usize = 128;

/// The sums are read and written once for each kind of pixels in a task, which should be many.
const SIZE: Size = Size { floats: 256 * 1024, pixels: 2048 };

/// Parts of a batch whose gradients are summed apart, whatever the number of threads, and floats that they may take together.
const PARTS: usize = 16;
const PARTIAL: usize = 1 << 22;

/// A task's share of the gradient: adds `sum over pixels of x[base + offset] dy[place][filter]` to each panel's sums, `[k][filters]`.
pub(crate) struct Outer<'a, O: Operand> {
    pub(crate) source: &'a [O::Value],
    /// For pixels of one kind what their first tap reaches in the source, their place in the gradient of the output, and what all taps reach.
    pub(crate) pixels: Vec<(&'a [u32], &'a [u32], &'a [Segment])>,
    /// The gradient of the output from the place 0 on, and the number of its filters.
    pub(crate) dy: &'a [f32],
    pub(crate) row: usize,
    /// The group's first filter among those of all groups.
    pub(crate) filter: usize,
    pub(crate) panels: Vec<(FilterPanel, &'a mut [f32])>,
}

impl<O: Operand> Work for Outer<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let mut panels = std::mem::take(&mut self.panels);
        let (mut distances, mut rows) = (Vec::new(), Vec::new());
        let mut gradients = vec![O::Weight::default(); PIXELS * 2 * L::COUNT];
        for (bases, places, segments) in &self.pixels {
            let (Some(base), Some(place)) = (bases.iter().max(), places.iter().max()) else { continue };
            let reach = segments.iter().map(|segment| segment.offset + segment.len).max().unwrap_or(0);
            assert!(*base as usize + reach <= self.source.len(), "a tap lies outside its buffer");
            assert!((*place as usize + 1) * self.row <= self.dy.len(), "the gradient ends too early");
            assert_eq!(bases.len(), places.len());
            distances.clear();
            rows.clear();
            for segment in *segments {
                distances.extend(segment.offset..segment.offset + segment.len);
                rows.extend(segment.weight..segment.weight + segment.len);
            }
            for (bases, places) in bases.chunks(PIXELS).zip(places.chunks(PIXELS)) {
                for (panel, to) in &mut panels {
                    let share = Share { bases, places, distances: &distances, rows: &rows };
                    match panel.vectors {
                        1 => self.tiles::<L, 8, 1>(&share, panel, to, &mut gradients),
                        _ => self.tiles::<L, 6, 2>(&share, panel, to, &mut gradients),
                    }
                }
            }
        }
    }
}

/// Some pixels of one kind, the distances of what they reach, and which sums that goes to.
struct Share<'a> {
    bases: &'a [u32],
    places: &'a [u32],
    distances: &'a [usize],
    rows: &'a [usize],
}

impl<O: Operand> Outer<'_, O> {
    /// All distances, `K` at a time, by one panel of `V` vectors. The panel's gradients are copied to one place first: rows of many filters
    /// lie so far apart that they would drive each other out of the first-level cache.
    #[inline(always)]
    fn tiles<L: Lanes, const K: usize, const V: usize>(
        &self,
        share: &Share<'_>,
        panel: &FilterPanel,
        to: &mut [f32],
        gradients: &mut [O::Weight],
    ) {
        let (width, first) = (V * L::COUNT, self.filter + panel.first);
        let row = |place: &u32| &self.dy[*place as usize * self.row + first..][..panel.filters];
        for (places, gradients) in share.places.chunks(O::PER).zip(gradients.chunks_exact_mut(width)) {
            O::weights(row(&places[0]), places.get(1).map(row), gradients);
        }
        assert!(share.places.len().div_ceil(O::PER) * width <= gradients.len(), "more pixels than a block has");
        for (distances, rows) in share.distances.chunks(K).zip(share.rows.chunks(K)) {
            // The last tile computes its last sums several times rather than read elsewhere.
            let mut starts = [self.source.as_ptr(); K];
            for (i, start) in starts.iter_mut().enumerate() {
                // SAFETY: `run` checked that the farthest run of the farthest base lies inside the source.
                *start = unsafe { start.add(distances[i.min(distances.len() - 1)]) };
            }
            // SAFETY: as for `starts`; there are gradients for every base.
            let sums = unsafe { products::<O, L, K, V>(starts, share.bases, gradients.as_ptr()) };
            for (row, sums) in rows.iter().zip(sums) {
                let to = &mut to[row * width..][..width];
                // SAFETY: the slice holds V vectors.
                unsafe {
                    let mut total: [L; V] = read(to.as_ptr(), width);
                    for v in 0..V {
                        total[v] = total[v].add(sums[v]);
                    }
                    write(to.as_mut_ptr(), width, total);
                }
            }
        }
    }
}

/// The products of all pixels.
///
/// # Safety
/// `starts` are readable at every base, and there are `V` vectors of gradients for every base, or pair of bases.
#[inline(always)]
unsafe fn products<O: Operand, L: Lanes, const K: usize, const V: usize>(
    starts: [*const O::Value; K],
    bases: &[u32],
    mut gradients: *const O::Weight,
) -> [[L; V]; K] {
    let mut sums = [[L::splat(0.0); V]; K];
    for bases in bases.chunks(O::PER) {
        // An odd last pixel is its own neighbour, with a gradient of zero.
        let (base, next) = (bases[0] as usize, bases[bases.len() - 1] as usize);
        // SAFETY: the caller vouches for the gradients of every base.
        let mut some = [unsafe { O::load::<L>(gradients) }; V];
        for (v, some) in some.iter_mut().enumerate().skip(1) {
            // SAFETY: as above.
            *some = unsafe { O::load::<L>(gradients.add(v * L::COUNT)) };
        }
        // SAFETY: one past the last vector at most.
        gradients = unsafe { gradients.add(V * L::COUNT) };
        for k in 0..K {
            // SAFETY: the caller vouches for every base from every start.
            let x = unsafe { O::splat_two::<L>(starts[k].add(base), starts[k].add(next)) };
            for v in 0..V {
                sums[k][v] = O::multiply_add(some[v], x, sums[k][v]);
            }
        }
    }
    sums
}

/// What one thread does of a gradient: some panels of a group, over the tasks of one part of the batch.
pub(crate) struct Job<'a> {
    pub(crate) part: usize,
    pub(crate) group: usize,
    pub(crate) panels: Vec<(FilterPanel, &'a mut [f32])>,
}

/// The jobs that fill the sums of the panels of every group, in `parts` copies that are added up at the end.
pub(crate) fn jobs<'a>(
    partial: &'a mut [f32],
    (parts, groups): (usize, usize),
    panels: &[FilterPanel],
    lanes: usize,
    depth: usize,
) -> Vec<Job<'a>> {
    let some = panels.len().div_ceil(super::geometry::shares(parts * groups)).max(1);
    let mut rest = partial;
    let mut jobs = Vec::new();
    for (part, group) in (0..parts).flat_map(|part| (0..groups).map(move |group| (part, group))) {
        for panels in panels.chunks(some) {
            let mut mine = Vec::with_capacity(panels.len());
            for panel in panels {
                let (to, after) = rest.split_at_mut(panel.vectors * lanes * depth);
                mine.push((*panel, to));
                rest = after;
            }
            jobs.push(Job { part, group, panels: mine });
        }
    }
    jobs
}

/// How many copies of sums of this length are made.
pub(crate) fn parts(len: usize, tasks: usize) -> usize {
    (PARTIAL / len.max(1)).clamp(1, PARTS).min(tasks.max(1))
}

impl View {
    /// The gradient of weights that lie as the network holds them. The view is one of the input.
    pub(super) fn weight_gradient<O: Operand>(&self, isa: Isa, batch: usize, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (lanes, depth, filters) = (isa.lanes(), self.depth(1), self.filters * self.groups);
        let mut dw = vec![0.0; filters * depth];
        let panels = panels(self.filters, lanes);
        let Cut { tables, tasks } = self.tasks(batch, panels.len(), SIZE, 1);
        let x = O::values(x);
        let total = self.groups * packed_len(self.filters, lanes, depth);
        let parts = parts(total, tasks.len());
        let mut partial = vec![0.0; parts * total];
        let tasks: Vec<&[Task]> = tasks.chunks(tasks.len().div_ceil(parts).max(1)).collect();
        let jobs = jobs(&mut partial, (parts, self.groups), &panels, lanes, depth);
        jobs.into_par_iter().for_each(|Job { part, group, mut panels }| {
            for task in tasks.get(part).copied().unwrap_or_default() {
                let (source, start) = self.start(task, group, &x);
                isa.run(Outer::<O> {
                    source,
                    pixels: tables[task.table].iter().map(|kind| kind.of(task.images.len())).collect(),
                    dy: &dy[start * filters..],
                    row: filters,
                    filter: group * self.filters,
                    panels: panels.iter_mut().map(|(panel, to)| (*panel, &mut **to)).collect(),
                });
            }
        });
        unpack(self, &partial, lanes, &mut dw);
        dw
    }
}
