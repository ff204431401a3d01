//! Blocks of weights with the inverse of their curvature, and the order in which weights are deleted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Weights that know of each other.
pub(super) struct Block {
    /// Where they are in the layer.
    pub(super) places: Vec<usize>,
    pub(super) weights: Vec<f64>,
    pub(super) inverse: Inverse,
}

impl Block {
    /// The weight whose deletion costs least, after its saliency; deleted ones are zero.
    pub(super) fn cheapest(&self) -> Option<(f64, usize)> {
        let saliency = |q: usize| self.weights[q].powi(2) / (2.0 * self.inverse.at(q, q));
        let alive = (0..self.weights.len()).filter(|q| self.weights[*q] != 0.0);
        alive.map(|q| (saliency(q), q)).min_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// Deletes a weight and moves the others.
    pub(super) fn delete(&mut self, q: usize) {
        let column = self.inverse.remove(q);
        let step = self.weights[q] / column[q];
        self.weights.iter_mut().zip(&column).for_each(|(w, h)| *w -= step * h);
        self.weights[q] = 0.0;
    }
}

/// The cheapest deletion of a block; ordered by saliency, then by block.
#[derive(Debug, PartialEq)]
struct Deletion {
    saliency: f64,
    block: usize,
    q: usize,
}

impl Eq for Deletion {}

impl Ord for Deletion {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.saliency.total_cmp(&other.saliency).then(self.block.cmp(&other.block))
    }
}

impl PartialOrd for Deletion {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Deletes as many weights, each the cheapest of all blocks, of equals that of the first. A deletion changes its own block alone, so that a
/// heap holds the cheapest of each.
pub(super) fn delete(blocks: &mut [Block], count: usize) {
    let next = |(block, found): (usize, &Block)| found.cheapest().map(|(saliency, q)| Reverse(Deletion { saliency, block, q }));
    let mut cheapest: BinaryHeap<Reverse<Deletion>> = blocks.iter().enumerate().filter_map(next).collect();
    for _ in 0..count {
        let Some(Reverse(Deletion { block, q, .. })) = cheapest.pop() else { return };
        blocks[block].delete(q);
        cheapest.extend(next((block, &blocks[block])));
    }
}

/// The inverse of a symmetric matrix, row by row.
pub(super) struct Inverse {
    size: usize,
    entries: Vec<f64>,
}

impl Inverse {
    /// Of `damping` times the identity.
    pub(super) fn new(size: usize, damping: f64) -> Self {
        let entries = (0..size * size).map(|i| if i % (size + 1) == 0 { 1.0 / damping } else { 0.0 });
        Self { size, entries: entries.collect() }
    }

    pub(super) fn at(&self, row: usize, column: usize) -> f64 {
        self.entries[row * self.size + column]
    }

    /// After `x x^T / count` is added to the matrix; `y` is scratch memory.
    pub(super) fn add(&mut self, x: &[f64], count: f64, y: &mut Vec<f64>) {
        if x.iter().all(|x| *x == 0.0) {
            return;
        }
        let dot = |row: &[f64]| row.iter().zip(x).map(|(h, x)| h * x).sum::<f64>();
        y.clear();
        y.extend(self.entries.chunks(self.size).map(dot));
        self.subtract(y, count + dot(y));
    }

    /// After row and column `q` are taken out of the matrix, where zeros take their place; returns the column of the inverse before.
    pub(super) fn remove(&mut self, q: usize) -> Vec<f64> {
        let column = self.entries[q * self.size..][..self.size].to_vec();
        self.subtract(&column, column[q]);
        for i in 0..self.size {
            self.entries[q * self.size + i] = 0.0;
            self.entries[i * self.size + q] = 0.0;
        }
        column
    }

    /// Subtracts `y y^T / divisor`.
    fn subtract(&mut self, y: &[f64], divisor: f64) {
        for (row, factor) in self.entries.chunks_mut(self.size).zip(y).filter(|(_, factor)| **factor != 0.0) {
            let factor = factor / divisor;
            row.iter_mut().zip(y).for_each(|(h, y)| *h -= factor * y);
        }
    }
}
