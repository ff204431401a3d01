//! Matrices of signs, a bit each.

// Loads go through pointers into slices whose lengths are checked first.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::Error;
use crate::lanes::{Isa, Lanes, Work};

/// Signs `[rows, columns]`: the one in column `c` of a row is bit `c % 64` of word `c / 64` of the row, 1 where it is set and -1 where it is not.
/// Each row begins with a word; bits behind its last column are not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    words: Vec<u64>,
}

/// Words that a task packs.
const PIECE: usize = 1 << 10;

impl Matrix {
    /// The signs of values `[rows, columns]`: set where `x >= 0`, so for either zero; not set for NaN.
    ///
    /// # Errors
    /// When there are not `rows * columns` values.
    pub fn of_signs(rows: usize, columns: usize, values: &[f32], threads: usize) -> Result<Self, Error> {
        Self::of_signs_on(Isa::of_this_machine(), rows, columns, values, threads)
    }

    pub(super) fn of_signs_on(isa: Isa, rows: usize, columns: usize, values: &[f32], threads: usize) -> Result<Self, Error> {
        check(rows, columns, values.len())?;
        let mut this = Self::empty(rows, columns);
        let width = this.words_of_row();
        let piece = |row: usize, piece: usize, to: &mut [u64]| {
            let values = &values[row * columns..][..columns];
            isa.run(Signs { values: &values[piece * PIECE * 64..values.len().min((piece * PIECE + to.len()) * 64)], to });
        };
        if threads <= 1 {
            for (row, to) in this.words.chunks_exact_mut(width.max(1)).enumerate() {
                to.chunks_mut(PIECE).enumerate().for_each(|(number, to)| piece(row, number, to));
            }
        } else {
            this.words.par_chunks_exact_mut(width.max(1)).enumerate().for_each(|(row, to)| {
                to.par_chunks_mut(PIECE).enumerate().for_each(|(number, to)| piece(row, number, to));
            });
        }
        Ok(this)
    }

    /// The signs of values `[columns, rows]`, turned around: an image whose channels are planes becomes one with channels last, where its
    /// pixels are whole words.
    ///
    /// # Errors
    /// When there are not `rows * columns` values.
    pub fn of_planes(rows: usize, columns: usize, values: &[f32]) -> Result<Self, Error> {
        Self::of_planes_on(Isa::of_this_machine(), rows, columns, values)
    }

    pub(super) fn of_planes_on(isa: Isa, rows: usize, columns: usize, values: &[f32]) -> Result<Self, Error> {
        check(rows, columns, values.len())?;
        let mut this = Self::empty(rows, columns);
        let width = this.words_of_row();
        for (word, first) in (0..columns).step_by(64).enumerate() {
            for row in (0..rows).step_by(64) {
                let mut block = [0; 64];
                let count = (rows - row).min(64);
                for (to, column) in block.iter_mut().zip(first..columns) {
                    isa.run(Signs { values: &values[column * rows + row..][..count], to: std::slice::from_mut(to) });
                }
                transpose(&mut block);
                this.words[row * width + word..]
                    .iter_mut()
                    .step_by(width)
                    .zip(&block[..count])
                    .for_each(|(to, word)| *to = *word);
            }
        }
        Ok(this)
    }

    /// From words as they lie in a matrix; what is set behind the last column does not count.
    ///
    /// # Errors
    /// When there are not `ceil(columns / 64)` words for each row.
    pub fn from_words(rows: usize, columns: usize, mut words: Vec<u64>) -> Result<Self, Error> {
        let width = columns.div_ceil(64);
        if rows.checked_mul(width) != Some(words.len()) {
            return Err(Error(format!("{} words for {rows} rows of {columns} signs, {width} words each", words.len())));
        }
        if !columns.is_multiple_of(64) {
            words.iter_mut().skip(width - 1).step_by(width).for_each(|last| *last &= (1 << (columns % 64)) - 1);
        }
        Ok(Self { rows, columns, words })
    }

    /// From as many bits as there are places, row after row.
    pub(super) fn of_bits(rows: usize, columns: usize, bits: impl Iterator<Item = bool>) -> Self {
        let mut this = Self::empty(rows, columns);
        let width = this.words_of_row();
        for (place, _) in bits.enumerate().filter(|(_, is_set)| *is_set) {
            let (row, column) = (place / columns, place % columns);
            this.words[row * width + column / 64] |= 1 << (column % 64);
        }
        this
    }

    fn empty(rows: usize, columns: usize) -> Self {
        Self { rows, columns, words: vec![0; rows * columns.div_ceil(64)] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All words, row after row.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Words of a row.
    pub fn words_of_row(&self) -> usize {
        self.columns.div_ceil(64)
    }

    /// Whether the sign at a place is 1.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn is_set(&self, row: usize, column: usize) -> bool {
        assert!(column < self.columns, "no column {column} among {}", self.columns);
        self.words[row * self.words_of_row() + column / 64] >> (column % 64) & 1 == 1
    }
}

fn check(rows: usize, columns: usize, values: usize) -> Result<(), Error> {
    if rows.checked_mul(columns) == Some(values) {
        return Ok(());
    }
    Err(Error(format!("{values} values for {rows} rows of {columns} signs")))
}

/// Signs of values that fill some words, the last one perhaps in part.
struct Signs<'a> {
    values: &'a [f32],
    to: &'a mut [u64],
}

impl Work for Signs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (values, to) in self.values.chunks(64).zip(self.to) {
            let (mut word, mut at) = (0, 0);
            while at < values.len() {
                let count = L::COUNT.min(values.len() - at);
                // SAFETY: `count` values are left in the slice.
                let lanes = unsafe {
                    let from = values.as_ptr().add(at);
                    if count == L::COUNT { L::load(from) } else { L::load_some(from, count) }
                };
                word |= u64::from(lanes.not_negative()) << at;
                at += count;
            }
            // Lanes without a value are zero, which is not negative.
            *to = if values.len() < 64 { word & ((1 << values.len()) - 1) } else { word };
        }
    }
}

/// Turns bit `c` of word `r` into bit `r` of word `c` (H. S. Warren, *Hacker's Delight*, 2nd edition 2012, section 7-3).
fn transpose(block: &mut [u64; 64]) {
    let (mut half, mut mask) = (32, 0xffff_ffff_u64);
    while half > 0 {
        let mut row = 0;
        while row < 64 {
            let swapped = ((block[row] >> half) ^ block[row + half]) & mask;
            block[row] ^= swapped << half;
            block[row + half] ^= swapped;
            row = (row + half + 1) & !half;
        }
        half /= 2;
        mask ^= mask << half;
    }
}

/// Puts runs of bits one after the other into the words of a row.
pub(super) struct Writer<'a> {
    to: &'a mut [u64],
    word: usize,
    /// Bits of the next word, and how many there are.
    bits: u64,
    count: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(to: &'a mut [u64]) -> Self {
        Self { to, word: 0, bits: 0, count: 0 }
    }

    /// The `len` bits of `from` from `place` on, or as many that are not set.
    #[inline]
    pub(super) fn push(&mut self, from: &[u64], place: Option<usize>, len: usize) {
        if let Some(place) = place.filter(|place| self.count == 0 && place.is_multiple_of(64)) {
            let whole = len / 64;
            self.to[self.word..][..whole].copy_from_slice(&from[place / 64..][..whole]);
            self.word += whole;
            return self.push_some(from, Some(place + 64 * whole), len - 64 * whole);
        }
        self.push_some(from, place, len);
    }

    #[inline]
    fn push_some(&mut self, from: &[u64], place: Option<usize>, len: usize) {
        let mut done = 0;
        while done < len {
            let count = (len - done).min(64);
            let bits = place.map_or(0, |place| read(from, place + done, count));
            self.bits |= bits << self.count;
            if self.count + count >= 64 {
                self.to[self.word] = self.bits;
                self.word += 1;
                // What did not fit any more; a shift by 64 would shift nothing.
                self.bits = if self.count == 0 { 0 } else { bits >> (64 - self.count) };
                self.count = self.count + count - 64;
            } else {
                self.count += count;
            }
            done += count;
        }
    }

    /// Fills the last word with bits that are not set.
    pub(super) fn finish(self) {
        if self.count > 0 {
            self.to[self.word] = self.bits;
        }
    }
}

/// `count` bits from `place` on, at least one and at most 64.
#[inline]
fn read(from: &[u64], place: usize, count: usize) -> u64 {
    let (word, bit) = (place / 64, place % 64);
    let mut bits = from[word] >> bit;
    if bit + count > 64 {
        bits |= from[word + 1] << (64 - bit);
    }
    if count < 64 { bits & ((1 << count) - 1) } else { bits }
}
