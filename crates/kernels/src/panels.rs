//! Rows of words times rows of words: what integer and one-bit products have in common.
//!
//! One operand lies in panels, so that a vector holds the same word of neighbouring rows; the other is read where it lies, one word in all
//! lanes. The sums of some rows by a panel are in registers.

// The loops read and write through pointers whose farthest reach is checked before they begin.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use rayon::prelude::*;

use crate::buffer::Target;
use crate::words::{INTERLEAVED, WordIsa, WordWork, Words};

/// What is summed up of a word of a panel and a word of a row.
pub(crate) trait Factors: Send + Sync {
    /// Sums of a few words.
    type Sums<W: Words>: Copy;

    /// Words whose sums [`Factors::Sums`] hold at most.
    fn most<W: Words>() -> usize;
    /// No sums yet.
    fn none<W: Words>() -> Self::Sums<W>;
    /// One more word.
    fn add<W: Words>(sums: Self::Sums<W>, panel: W, row: W) -> Self::Sums<W>;
    /// `result` and the sums of a few words.
    fn finish<W: Words>(result: W, sums: Self::Sums<W>) -> W;
}

/// Signed bytes by unsigned ones: the signed ones in panels, or in rows.
pub(crate) struct Bytes<const SIGNED_PANELS: bool>;

/// Bits; each word in which they differ takes two from the result.
pub(crate) struct Bits;

impl<const SIGNED_PANELS: bool> Factors for Bytes<SIGNED_PANELS> {
    type Sums<W: Words> = W;

    #[inline(always)]
    fn most<W: Words>() -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn none<W: Words>() -> W {
        W::splat(0)
    }

    #[inline(always)]
    fn add<W: Words>(sums: W, panel: W, row: W) -> W {
        if SIGNED_PANELS { sums.add_products(row, panel) } else { sums.add_products(panel, row) }
    }

    #[inline(always)]
    fn finish<W: Words>(result: W, sums: W) -> W {
        result.add(sums)
    }
}

impl Factors for Bits {
    type Sums<W: Words> = W::Counts;

    #[inline(always)]
    fn most<W: Words>() -> usize {
        W::MOST
    }

    #[inline(always)]
    fn none<W: Words>() -> W::Counts {
        W::none()
    }

    #[inline(always)]
    fn add<W: Words>(sums: W::Counts, panel: W, row: W) -> W::Counts {
        W::count(sums, panel, row)
    }

    #[inline(always)]
    fn finish<W: Words>(result: W, sums: W::Counts) -> W {
        let differing = W::counted(sums);
        result.subtract(differing).subtract(differing)
    }
}

/// Some neighbouring rows in a panel of one, two or four vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPanel {
    /// The first row, and how many there are; further lanes are zero.
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) vectors: usize,
}

/// Rows of bytes in panels, which are those of one set of instructions.
#[derive(Debug, Clone)]
pub(crate) struct Panels {
    isa: WordIsa,
    rows: usize,
    /// Words of a row.
    depth: usize,
    panels: Vec<RowPanel>,
    /// The panel that begins with row `r` begins at `r * depth`.
    words: Vec<u32>,
}

/// Rows that are read where they lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) count: usize,
    /// Bytes from a row to the next, and from a word to the next.
    pub(crate) row: usize,
    pub(crate) word: usize,
    /// Whole words of a row, and the bytes of one more.
    pub(crate) words: usize,
    pub(crate) rest: usize,
}

/// Where results go: those of a row lie together, from `offset` on, and `stride` after those of the row before.
#[derive(Clone, Copy)]
pub(crate) struct Results<'a> {
    pub(crate) to: Target<'a, i32>,
    pub(crate) offset: usize,
    pub(crate) stride: usize,
}

/// Words of a sum between which intermediate results are written: a panel's part stays in the second-level cache beside the rows.
const DEPTH: usize = 512;

/// Bytes of the rows of a task, which stay in the second-level cache.
const NEAR: usize = 256 * 1024;

/// Least number of tasks, where there is as much to do.
const TASKS: usize = 8;

/// Products that one thread computes sooner than it wakes another.
const SMALL: usize = 1 << 17;

/// Rows in panels of as many vectors as the instructions can, the last ones smaller.
fn panels(rows: usize, (lanes, vectors): (usize, usize)) -> Vec<RowPanel> {
    let mut all = Vec::new();
    let mut first = 0;
    while first < rows {
        let left = rows - first;
        // Three vectors are two and one.
        let vectors = [4, 2, 1].into_iter().find(|v| *v <= vectors && (*v == 1 || left > (v - 1) * lanes)).unwrap_or(1);
        all.push(RowPanel { first, count: left.min(vectors * lanes), vectors });
        first += vectors * lanes;
    }
    all
}

impl Panels {
    /// Packs rows of `width` bytes; those that fill the last word of a row are zero.
    pub(crate) fn pack(isa: WordIsa, rows: usize, width: usize, bytes: &[u8]) -> Self {
        let (lanes, vectors) = isa.widths();
        let depth = width.div_ceil(4);
        let panels = panels(rows, (lanes, vectors));
        let mut words = vec![0; rows.next_multiple_of(lanes) * depth];
        for panel in panels.iter().filter(|_| depth > 0) {
            let to = &mut words[panel.first * depth..];
            for (lane, row) in bytes[panel.first * width..].chunks_exact(width).take(panel.count).enumerate() {
                for (to, bytes) in to[lane..].iter_mut().step_by(panel.vectors * lanes).zip(row.chunks(4)) {
                    *to = word(bytes);
                }
            }
        }
        Self { isa, rows, depth, panels, words }
    }

    /// Bytes that the panels take in memory.
    pub(crate) fn bytes(&self) -> usize {
        4 * self.words.len()
    }

    /// The words of a panel.
    fn words(&self, panel: &RowPanel) -> &[u32] {
        let len = panel.vectors * self.isa.widths().0 * self.depth;
        &self.words[panel.first * self.depth..][..len]
    }

    /// The rows of a panel as those that are read where they lie.
    pub(crate) fn as_rows(&self, panel: &RowPanel) -> Rows<'_> {
        let word = 4 * panel.vectors * self.isa.widths().0;
        Rows { bytes: as_bytes(self.words(panel)), count: panel.count, row: 4, word, words: self.depth, rest: 0 }
    }

    /// What `F` sums up of each of `rows` by each row in the panels, added to `begin`.
    pub(crate) fn times<F: Factors>(&self, rows: Rows<'_>, begin: i32, results: Results<'_>, threads: usize) {
        let each = (NEAR / rows.row.max(1)).clamp(12, 1 << 12);
        let product = |first: usize, count: usize, panel: &RowPanel| Product::<F> {
            rows: rows.part(first, count),
            panel: self.words(panel),
            vectors: panel.vectors,
            columns: panel.count,
            begin,
            results: Results { offset: results.offset + first * results.stride + panel.first, ..results },
            factors: PhantomData,
        };
        if threads <= 1 || self.rows * rows.count * self.depth < SMALL {
            for first in (0..rows.count).step_by(each) {
                self.panels.iter().for_each(|panel| self.isa.run(product(first, each.min(rows.count - first), panel)));
            }
            return;
        }
        // Few rows share the panels.
        let each = each.min(rows.count.div_ceil(TASKS).next_multiple_of(12));
        let tasks = rows.count.div_ceil(each).max(1);
        let some = self.panels.len().div_ceil(TASKS.div_ceil(tasks)).max(1);
        let jobs: Vec<(usize, &[RowPanel])> =
            (0..rows.count).step_by(each).flat_map(|first| self.panels.chunks(some).map(move |panels| (first, panels))).collect();
        jobs.into_par_iter().for_each(|(first, panels)| {
            panels.iter().for_each(|panel| self.isa.run(product(first, each.min(rows.count - first), panel)));
        });
    }
}

/// Columns of bytes that are rows of products: `count` of them, of `depth` bytes that lie `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) count: usize,
    pub(crate) depth: usize,
}

impl Columns<'_> {
    /// What `F` sums up of each row in `panels` by each of the columns, which are put into panels first.
    pub(crate) fn times<F: Factors>(&self, panels: &Panels, results: Results<'_>, threads: usize) {
        let isa = panels.isa;
        let (lanes, vectors) = isa.widths();
        let width = lanes * vectors;
        let job = |scratch: &mut Vec<u32>, first: usize, rows: &[RowPanel]| {
            let count = width.min(self.count - first);
            let vectors = self::panels(count, (lanes, vectors));
            for columns in vectors {
                let first = first + columns.first;
                let len = columns.vectors * lanes * panels.depth;
                scratch.resize(len.max(scratch.len()), 0);
                let to = &mut scratch[..len];
                isa.run(Interleave { columns: *self, first, count: columns.count, width: columns.vectors * lanes, to });
                for panel in rows {
                    isa.run(Product::<F> {
                        rows: panels.as_rows(panel),
                        panel: &scratch[..len],
                        vectors: columns.vectors,
                        columns: columns.count,
                        begin: 0,
                        results: Results { offset: results.offset + panel.first * results.stride + first, ..results },
                        factors: PhantomData,
                    });
                }
            }
        };
        if threads <= 1 || panels.rows * self.count * panels.depth < SMALL {
            let mut scratch = Vec::new();
            (0..self.count).step_by(width).for_each(|first| job(&mut scratch, first, &panels.panels));
            return;
        }
        let some = panels.panels.len().div_ceil(TASKS.div_ceil(self.count.div_ceil(width).max(1))).max(1);
        let jobs: Vec<(usize, &[RowPanel])> = (0..self.count)
            .step_by(width)
            .flat_map(|first| panels.panels.chunks(some).map(move |panels| (first, panels)))
            .collect();
        jobs.into_par_iter().for_each_init(Vec::new, |scratch, (first, rows)| job(scratch, first, rows));
    }
}

/// Puts some columns into a panel.
struct Interleave<'a> {
    columns: Columns<'a>,
    first: usize,
    count: usize,
    width: usize,
    to: &'a mut [u32],
}

impl WordWork for Interleave<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Words>(self) {
        let Columns { bytes, stride, depth, .. } = self.columns;
        let row = |row: usize| &bytes[row * stride + self.first..][..self.count];
        for (group, to) in self.to.chunks_exact_mut(self.width).enumerate() {
            let (to, rest) = to.split_at_mut(self.count);
            rest.fill(0);
            let place = 4 * group;
            if place + 4 <= depth {
                let rows: [&[u8]; 4] = std::array::from_fn(|i| row(place + i));
                let whole = self.count - self.count % INTERLEAVED;
                for first in (0..whole).step_by(INTERLEAVED) {
                    // SAFETY: each row and `to` have `count` values, of which as many are left.
                    unsafe { W::interleave(rows.map(|row| row.as_ptr().add(first)), to.as_mut_ptr().add(first)) };
                }
                for (lane, to) in to.iter_mut().enumerate().skip(whole) {
                    *to = u32::from_ne_bytes(rows.map(|row| row[lane]));
                }
            } else {
                for (lane, to) in to.iter_mut().enumerate() {
                    let mut word = [0; 4];
                    (place..depth).zip(&mut word).for_each(|(place, byte)| *byte = row(place)[lane]);
                    *to = u32::from_ne_bytes(word);
                }
            }
        }
    }
}

impl<'a> Rows<'a> {
    /// Rows of `width` bytes, one after the other.
    pub(crate) fn new(bytes: &'a [u8], count: usize, width: usize) -> Self {
        Self { bytes, count, row: width, word: 4, words: width / 4, rest: width % 4 }
    }

    fn part(self, first: usize, count: usize) -> Self {
        Self { bytes: &self.bytes[first * self.row..], count, ..self }
    }
}

/// Some rows by one panel.
struct Product<'a, F> {
    rows: Rows<'a>,
    panel: &'a [u32],
    vectors: usize,
    /// Lanes of the panel that are results.
    columns: usize,
    /// What sums begin with.
    begin: i32,
    results: Results<'a>,
    factors: PhantomData<F>,
}

impl<F: Factors> WordWork for Product<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<W: Words>(self) {
        let (rows, vectors) = (&self.rows, self.vectors);
        let Some(last) = rows.count.checked_sub(1) else { return };
        let reach = match (rows.words, rows.rest) {
            (words, 0) => words.checked_sub(1).map_or(0, |words| words * rows.word + 4),
            (words, rest) => words * rows.word + rest,
        };
        assert!(reach == 0 || last * rows.row + reach <= rows.bytes.len(), "a row ends too early");
        let depth = rows.words + usize::from(rows.rest > 0);
        assert!(depth * vectors * W::COUNT <= self.panel.len() && rows.rest < 4, "the panel is too short");
        assert!(self.columns <= vectors * W::COUNT && self.columns > (vectors - 1) * W::COUNT, "the panel has other columns");
        self.results.to.at(self.results.offset + last * self.results.stride, self.columns);
        // SAFETY: the farthest word of the farthest row, all words of the panel and the farthest result were just checked.
        unsafe {
            match (vectors, W::TILE.1) {
                (1, 6) => self.tiles::<W, 6, 1>(),
                (2, 6) => self.tiles::<W, 6, 2>(),
                (4, 6) => self.tiles::<W, 6, 4>(),
                (1, _) => self.tiles::<W, 4, 1>(),
                (2, _) => self.tiles::<W, 4, 2>(),
                (4, _) => self.tiles::<W, 4, 4>(),
                _ => unreachable!("panels have one, two or four vectors"),
            }
        }
    }
}

impl<F: Factors> Product<'_, F> {
    /// All rows, `P` at a time, by a panel of `V` vectors, part after part of the words.
    ///
    /// # Safety
    /// Rows, panel and results were checked.
    #[inline(always)]
    unsafe fn tiles<W: Words, const P: usize, const V: usize>(&self) {
        let mut first = 0;
        loop {
            let words = DEPTH.min(self.rows.words - first);
            let rest = if first + words == self.rows.words { self.rows.rest } else { 0 };
            let part = Part { first, words, rest };
            let whole = self.rows.count - self.rows.count % P;
            for row in (0..whole).step_by(P) {
                // SAFETY: as the caller vouches.
                unsafe { self.tile::<W, P, V>(part, std::array::from_fn(|i| row + i)) };
            }
            // SAFETY: as above. The last tile computes its last row several times: each time the same result goes to the same place.
            match self.rows.count - whole {
                0 => {}
                1 => unsafe { self.tile::<W, 1, V>(part, [whole]) },
                _ => unsafe { self.tile::<W, P, V>(part, std::array::from_fn(|i| (whole + i).min(self.rows.count - 1))) },
            }
            first += words;
            if first == self.rows.words {
                return;
            }
        }
    }

    /// # Safety
    /// As for [`Product::tiles`]; `rows` are some of the rows.
    #[inline(always)]
    unsafe fn tile<W: Words, const P: usize, const V: usize>(&self, part: Part, rows: [usize; P]) {
        let to = self.results.to.at(0, 0).cast::<u32>();
        let mut places = [to; P];
        let mut starts = [self.rows.bytes.as_ptr(); P];
        for i in 0..P {
            // SAFETY: the caller vouches for words and results of each row.
            unsafe {
                places[i] = to.add(self.results.offset + rows[i] * self.results.stride);
                starts[i] = starts[i].add(rows[i] * self.rows.row + part.first * self.rows.word);
            }
        }
        let mut sums = [[W::splat(self.begin.cast_unsigned()); V]; P];
        if part.first > 0 {
            for (sums, place) in sums.iter_mut().zip(places) {
                for (v, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the part before wrote the results.
                    *sum = unsafe {
                        match self.columns - v * W::COUNT {
                            left if left < W::COUNT => W::load_some(place.add(v * W::COUNT), left),
                            _ => W::load(place.add(v * W::COUNT)),
                        }
                    };
                }
            }
        }
        // SAFETY: the panel holds `V` vectors for each word, and the caller vouches for the rows.
        let sums = unsafe {
            let panel = self.panel.as_ptr().add(part.first * V * W::COUNT);
            sums_of::<F, W, P, V>(starts, self.rows.word, panel, part, sums)
        };
        for (sums, place) in sums.into_iter().zip(places) {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the caller vouches for the results.
                unsafe {
                    match self.columns - v * W::COUNT {
                        left if left < W::COUNT => sum.store_some(place.add(v * W::COUNT), left),
                        _ => sum.store(place.add(v * W::COUNT)),
                    }
                }
            }
        }
    }
}

/// Some whole words of the rows, and the bytes of the word after them.
#[derive(Debug, Clone, Copy)]
struct Part {
    first: usize,
    words: usize,
    rest: usize,
}

/// Adds what `F` sums up of the words from `starts` on, `step` bytes apart, by those of the panel.
///
/// # Safety
/// The words of the part are readable from each start, and `V` vectors for each of them from `panel` on.
#[inline(always)]
unsafe fn sums_of<F: Factors, W: Words, const P: usize, const V: usize>(
    starts: [*const u8; P],
    step: usize,
    panel: *const u32,
    part: Part,
    mut sums: [[W; V]; P],
) -> [[W; V]; P] {
    let mut word = 0;
    while word < part.words {
        let end = part.words.min(word.saturating_add(F::most::<W>()));
        let mut some = [[F::none::<W>(); V]; P];
        while word < end {
            // SAFETY: as the caller vouches.
            let vectors = unsafe { vectors::<W, V>(panel.add(word * V * W::COUNT)) };
            for p in 0..P {
                // SAFETY: as the caller vouches.
                let row = W::splat(unsafe { starts[p].add(word * step).cast::<u32>().read_unaligned() });
                for v in 0..V {
                    some[p][v] = F::add(some[p][v], vectors[v], row);
                }
            }
            word += 1;
        }
        for p in 0..P {
            for v in 0..V {
                sums[p][v] = F::finish(sums[p][v], some[p][v]);
            }
        }
    }
    if part.rest > 0 {
        // SAFETY: as the caller vouches.
        let vectors = unsafe { vectors::<W, V>(panel.add(part.words * V * W::COUNT)) };
        for p in 0..P {
            // SAFETY: as the caller vouches, of `rest` bytes.
            let bytes = unsafe { std::slice::from_raw_parts(starts[p].add(part.words * step), part.rest) };
            let row = W::splat(self::word(bytes));
            for v in 0..V {
                sums[p][v] = F::finish(sums[p][v], F::add(F::none::<W>(), vectors[v], row));
            }
        }
    }
    sums
}

/// # Safety
/// `V` vectors are readable.
#[inline(always)]
unsafe fn vectors<W: Words, const V: usize>(at: *const u32) -> [W; V] {
    let mut vectors = [W::splat(0); V];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: as the caller vouches.
        *vector = unsafe { W::load(at.add(v * W::COUNT)) };
    }
    vectors
}

/// At most four bytes, as they lie in memory, and zeros after them.
#[inline(always)]
fn word(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    u32::from_ne_bytes(word)
}

/// Numbers as the bytes that they are in memory.
pub(crate) fn as_bytes<T: Number>(values: &[T]) -> &[u8] {
    // SAFETY: every byte of a `Number` is initialized, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// What may be read as bytes.
///
/// # Safety
/// Every byte of every value is initialized: there is no padding.
pub(crate) unsafe trait Number: Copy {}
// SAFETY: integers have no padding.
unsafe impl Number for i8 {}
// SAFETY: as above.
unsafe impl Number for u32 {}
// SAFETY: as above.
unsafe impl Number for u64 {}
