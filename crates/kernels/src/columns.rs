//! Loops over the channels of rows: a vector of channels at a time, down some rows.

// The loops read and write through pointers into slices whose lengths are checked first.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::buffer::Target;
use crate::lanes::{Isa, Lanes, Work};

/// Some rows of `channels` values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) channels: usize,
}

/// A vector of channels of some rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    rows: Rows,
    channel: usize,
    /// Channels of the vector; fewer than its lanes at the end of a row.
    count: usize,
}

/// Floats of the rows through which a column goes before the next one does: they stay in the first-level cache.
const NEAR: usize = 4096;

/// Rows whose sums are added up in single precision.
const ROWS: usize = 64;

/// Parts of all rows whose sums are made apart, whatever the number of threads.
const PARTS: usize = 16;

impl Rows {
    /// # Panics
    /// When one of the slices of rows does not reach the last row, or one of those of channels lacks a channel.
    #[inline(always)]
    pub(crate) fn check(&self, rows: &[usize], channels: &[usize]) {
        let end = (self.first + self.count) * self.channels;
        assert!(self.count == 0 || rows.iter().all(|len| *len >= end), "rows end too early: {rows:?}, {self:?}");
        assert!(
            self.count == 0 || channels.iter().all(|len| *len >= self.channels),
            "channels are missing: {channels:?}, {self:?}"
        );
    }

    /// The first value of a target, which holds the rows.
    #[inline(always)]
    pub(crate) fn of(&self, target: Target<'_>) -> *mut f32 {
        target.at(0, (self.first + self.count) * self.channels)
    }
}

/// What is done with a vector of channels of some rows. Traits in place of closures: only what is marked is inlined for certain, and vectors
/// live in registers only where everything is.
pub(crate) trait ColumnWork {
    /// # Safety
    /// Rows and channels were checked.
    unsafe fn column<L: Lanes>(&mut self, column: Column);
}

/// Two values of a row that are to be summed up.
pub(crate) trait Terms<L> {
    /// # Safety
    /// `place` is one of the column's.
    unsafe fn at(&self, column: &Column, place: usize) -> [L; 2];
}

/// Does the work for every vector of channels and every few rows.
///
/// # Safety
/// Rows and channels were checked against what the work reads and writes.
#[inline(always)]
pub(crate) unsafe fn each_column<L: Lanes>(rows: Rows, mut work: impl ColumnWork) {
    let step = (NEAR / rows.channels.max(1)).clamp(4, ROWS);
    let mut first = 0;
    while first < rows.count {
        let some = Rows { first: rows.first + first, count: step.min(rows.count - first), ..rows };
        let mut channel = 0;
        while channel < rows.channels {
            let count = L::COUNT.min(rows.channels - channel);
            // SAFETY: as the caller vouches.
            unsafe { work.column::<L>(Column { rows: some, channel, count }) };
            channel += count;
        }
        first += step;
    }
}

impl Column {
    /// The column's channels of a slice with one value for each channel.
    ///
    /// # Safety
    /// The slice has one value for each channel.
    #[inline(always)]
    pub(crate) unsafe fn channel<L: Lanes>(&self, values: &[f32]) -> L {
        // SAFETY: as the caller vouches.
        unsafe { self.load(values, self.channel) }
    }

    /// The column's channels of the row that begins at `place - channel`.
    ///
    /// # Safety
    /// The slice holds the row.
    #[inline(always)]
    pub(crate) unsafe fn load<L: Lanes>(&self, values: &[f32], place: usize) -> L {
        // SAFETY: as the caller vouches.
        unsafe {
            let at = values.as_ptr().add(place);
            if self.count == L::COUNT { L::load(at) } else { L::load_some(at, self.count) }
        }
    }

    /// Writes the column's channels of a row.
    ///
    /// # Safety
    /// `to` is writable there, and nobody else's.
    #[inline(always)]
    pub(crate) unsafe fn store<L: Lanes>(&self, vector: L, to: *mut f32, place: usize) {
        // SAFETY: as the caller vouches.
        unsafe {
            let at = to.add(place);
            if self.count == L::COUNT { vector.store(at) } else { vector.store_some(at, self.count) }
        }
    }

    /// The column's place in the first row, the distance to the next, and the number of rows.
    #[inline(always)]
    pub(crate) fn places(&self) -> (usize, usize, usize) {
        (self.rows.first * self.rows.channels + self.channel, self.rows.channels, self.rows.count)
    }

    /// Adds the sums of two terms over the rows to `to`, `[channels, 2]`.
    ///
    /// # Safety
    /// Rows and channels were checked against what the terms read.
    #[inline(always)]
    pub(crate) unsafe fn add_sums<L: Lanes>(&self, to: &mut [f64], terms: &impl Terms<L>) {
        // Several sums side by side hide the latency of the additions.
        let mut sums = [[L::splat(0.0); 2]; 4];
        let (mut place, step, count) = self.places();
        for _ in 0..count / 4 {
            for sums in &mut sums {
                // SAFETY: the place is one of the column's.
                let [a, b] = unsafe { terms.at(self, place) };
                *sums = [sums[0].add(a), sums[1].add(b)];
                place += step;
            }
        }
        for _ in 0..count % 4 {
            // SAFETY: the place is one of the column's.
            let [a, b] = unsafe { terms.at(self, place) };
            sums[0] = [sums[0][0].add(a), sums[0][1].add(b)];
            place += step;
        }
        for term in 0..2 {
            let sum = sums[0][term].add(sums[1][term]).add(sums[2][term].add(sums[3][term]));
            let mut lanes = [0.0; 16];
            // SAFETY: no vector has more than sixteen lanes.
            unsafe { sum.store(lanes.as_mut_ptr()) };
            for (lane, sum) in lanes[..self.count].iter().enumerate() {
                to[2 * (self.channel + lane) + term] += f64::from(*sum);
            }
        }
    }
}

/// Two sums for each channel over all rows, `[channels, 2]`: `part` adds those of some rows.
pub(crate) fn sums(rows: usize, channels: usize, part: impl Fn(Rows, &mut [f64]) + Sync) -> Vec<f64> {
    let each = rows.div_ceil(PARTS).max(ROWS);
    let of_part = |first: usize| {
        let mut sums = vec![0.0; 2 * channels];
        part(Rows { first, count: each.min(rows - first), channels }, &mut sums);
        sums
    };
    let firsts: Vec<usize> = (0..rows).step_by(each).collect();
    let parts: Vec<Vec<f64>> = firsts.into_par_iter().map(of_part).collect();
    let mut all = vec![0.0; 2 * channels];
    for part in parts {
        all.iter_mut().zip(part).for_each(|(all, part)| *all += part);
    }
    all
}

/// The sum of each channel over all rows: the gradient by a bias.
///
/// # Panics
/// If `values` is not a number of rows.
pub fn column_sums(values: &[f32], channels: usize) -> Vec<f32> {
    struct Sums<'a>(&'a [f32], Rows, &'a mut [f64]);

    impl Work for Sums<'_> {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self) {
            self.1.check(&[self.0.len()], &[]);
            // SAFETY: the slice holds every row.
            unsafe { each_column::<L>(self.1, self) };
        }
    }

    impl ColumnWork for Sums<'_> {
        #[inline(always)]
        unsafe fn column<L: Lanes>(&mut self, column: Column) {
            // SAFETY: as the caller vouches.
            unsafe { column.add_sums::<L>(self.2, &Values(self.0)) };
        }
    }

    struct Values<'a>(&'a [f32]);

    impl<L: Lanes> Terms<L> for Values<'_> {
        #[inline(always)]
        unsafe fn at(&self, column: &Column, place: usize) -> [L; 2] {
            // SAFETY: as the caller vouches.
            [unsafe { column.load(self.0, place) }, L::splat(0.0)]
        }
    }

    let rows = values.len() / channels.max(1);
    assert_eq!(rows * channels, values.len(), "the values are no rows of {channels}");
    let all = sums(rows, channels, |rows, to| Isa::of_this_machine().run(Sums(values, rows, to)));
    all.iter().step_by(2).map(|sum| *sum as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_channels_are_those_of_their_values() {
        for (rows, channels) in [(0, 3), (1, 1), (70, 3), (1000, 17), (33, 64)] {
            let values: Vec<f32> = (0..rows * channels).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
            for (channel, sum) in column_sums(&values, channels).iter().enumerate() {
                let wanted: f64 = values.iter().skip(channel).step_by(channels).map(|v| f64::from(*v)).sum();
                assert!((f64::from(*sum) - wanted).abs() < 1e-3, "{rows} {channels}: {sum} {wanted}");
            }
        }
    }
}
