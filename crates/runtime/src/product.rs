//! Matrices whose rows are put together from shared pieces.

use serde::{Deserialize, Serialize};

use crate::Error;

/// The most stages of a product.
pub(crate) const MAX_STAGES: usize = 16;
/// The most centroids of a block.
pub(crate) const MAX_CENTROIDS: usize = 1 << 16;

/// A matrix `[rows, columns]` cut into blocks of `width` columns, the last of which may be narrower. In every block each row is one of the
/// block's centroids, or with several stages a sum of one of each stage's: row `r` is `sum_s centroids_s[b, indices_s[b, r]]` in block `b`.
///
/// A tensor `[out, in, ...]` is the matrix of its first dimension, the rows, and all others, the columns; or, where the taps of a kernel share the
/// centroids, that of the rows `out * taps` and the columns `in`: the weight of output `o`, input `i` and tap `t` stands at `[o * taps + t, i]`.
///
/// Gong, Liu, Yang, Bourdev. "Compressing Deep Convolutional Networks using Vector Quantization". arXiv:1412.6115, 2014.
/// Wu, Leng, Wang, Hu, Cheng. "Quantized Convolutional Neural Networks for Mobile Devices". CVPR 2016: the taps' sharing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// Columns of a block, 1 to `columns`.
    pub width: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Taps that share centroids, the product of all dimensions of the tensor but the first two; or 1.
    pub taps: usize,
    /// 1 to 16 stages, in the order in which they are added up.
    pub stages: Vec<Stage>,
}

/// One term of a [`Product`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The centroids `[k, width]` of block after block: `k` times `columns` numbers in all, `k` at most 65536.
    pub centroids: Vec<f32>,
    /// The centroid of each row, `[blocks, rows]`.
    pub indices: Vec<u16>,
}

impl Product {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.stages.first().map_or(0, |stage| stage.indices.len() / self.blocks())
    }

    /// The centroids of a block in a stage.
    pub fn centroids(&self, stage: &Stage) -> usize {
        stage.centroids.len() / self.columns
    }

    /// Row and column of a position in the tensor, counted with the last dimension running fastest.
    pub fn matrix_place(&self, position: usize) -> (usize, usize) {
        let (output, rest) = (position / (self.columns * self.taps), position % (self.columns * self.taps));
        (output * self.taps + rest % self.taps, rest / self.taps)
    }

    /// The other way of [`Product::matrix_place`].
    pub fn position(&self, row: usize, column: usize) -> usize {
        (row / self.taps * self.columns + column) * self.taps + row % self.taps
    }

    /// Where in [`Stage::centroids`] the number is that stands at a row and a column.
    pub fn place(&self, stage: &Stage, row: usize, column: usize) -> usize {
        let (block, start) = (column / self.width, column / self.width * self.width);
        let width = self.width.min(self.columns - start);
        self.centroids(stage) * start + stage.indices[block * self.rows() + row] as usize * width + column - start
    }

    /// The stage whose [`Product::place`] this function gives, if it does so in this matrix; only the first column of a block is asked for.
    pub fn stage(
        (width, columns, rows): (usize, usize, usize),
        centroids: Vec<f32>,
        place: impl Fn(usize, usize) -> usize,
    ) -> Stage {
        let count = centroids.len() / columns;
        let starts = (0..columns).step_by(width);
        let index = |start: usize, row: usize| (place(row, start) - count * start) / width.min(columns - start);
        let indices =
            starts.flat_map(|start| (0..rows).map(move |row| (start, row))).map(|(start, row)| index(start, row) as u16);
        Stage { indices: indices.collect(), centroids }
    }

    /// The value at a position in the tensor.
    pub fn value(&self, position: usize) -> f32 {
        let (row, column) = self.matrix_place(position);
        let mut terms = self.stages.iter().map(|stage| stage.centroids[self.place(stage, row, column)]);
        let first = terms.next().unwrap_or(0.0);
        terms.fold(first, |sum, term| sum + term)
    }

    /// The tensor, with the last dimension running fastest.
    pub fn values(&self) -> Vec<f32> {
        (0..self.rows() * self.columns).map(|position| self.value(position)).collect()
    }

    /// Of the tensor's first dimension these indices.
    pub fn select(&self, outputs: &[usize]) -> Self {
        let all = self.rows();
        let kept = |stage: &Stage| {
            let blocks = stage.indices.chunks_exact(all);
            let outputs = |block: &[u16]| -> Vec<u16> {
                outputs.iter().flat_map(|output| &block[output * self.taps..(output + 1) * self.taps]).copied().collect()
            };
            Stage { centroids: stage.centroids.clone(), indices: blocks.flat_map(outputs).collect() }
        };
        Self { width: self.width, columns: self.columns, taps: self.taps, stages: self.stages.iter().map(kept).collect() }
    }

    /// Whether the product is a tensor of this shape.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn check(&self, shape: &[usize]) -> Result<(), Error> {
        let (rows, columns, taps) = matrix(shape, self.taps > 1)?;
        if self.taps != taps {
            return Err(Error::corrupt(format!("a product of {} taps for {shape:?}", self.taps)));
        }
        outline(columns, self.width, self.stages.len())?;
        if self.columns != columns {
            return Err(Error::corrupt(format!("a product of {} columns for {shape:?}", self.columns)));
        }
        for stage in &self.stages {
            let count = stage.centroids.len() / columns;
            if stage.centroids.len() != count * columns || stage.indices.len() != self.blocks() * rows {
                let found = [stage.centroids.len(), stage.indices.len()];
                return Err(Error::corrupt(format!("{} centroid values and {} indices for {shape:?}", found[0], found[1])));
            }
            centroids(count)?;
            if let Some(index) = stage.indices.iter().find(|index| **index as usize >= count) {
                return Err(Error::corrupt(format!("centroid {index} of {count}")));
            }
        }
        Ok(())
    }
}

/// Rows and columns of a tensor that a product may be, and the taps that share its centroids.
pub(crate) fn matrix(shape: &[usize], by_tap: bool) -> Result<(usize, usize, usize), Error> {
    let full = shape.iter().all(|size| *size > 0);
    match shape {
        [rows, inner @ ..] if full && !by_tap => Ok((*rows, inner.iter().product(), 1)),
        [outputs, inputs, taps @ ..] if full && taps.iter().product::<usize>() > 1 => {
            let taps = taps.iter().product::<usize>();
            Ok((outputs * taps, *inputs, taps))
        }
        _ if by_tap => Err(Error::corrupt(format!("a product whose taps share centroids, of the shape {shape:?}"))),
        _ => Err(Error::corrupt(format!("a product of the shape {shape:?}"))),
    }
}

/// Whether width and number of stages are allowed.
pub(crate) fn outline(columns: usize, width: usize, stages: usize) -> Result<(), Error> {
    if !(1..=columns).contains(&width) {
        return Err(Error::corrupt(format!("blocks of {width} of {columns} columns")));
    }
    if !(1..=MAX_STAGES).contains(&stages) {
        return Err(Error::corrupt(format!("a product of {stages} stages; it takes 1 to {MAX_STAGES}")));
    }
    Ok(())
}

/// Whether a block may have so many centroids.
pub(crate) fn centroids(count: usize) -> Result<(), Error> {
    match count {
        1..=MAX_CENTROIDS => Ok(()),
        _ => Err(Error::corrupt(format!("{count} centroids in a block; it takes 1 to {MAX_CENTROIDS}"))),
    }
}
