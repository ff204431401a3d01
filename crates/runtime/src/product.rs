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
/// Gong, Liu, Yang, Bourdev. "Compressing Deep Convolutional Networks using Vector Quantization". arXiv:1412.6115, 2014.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// Columns of a block, 1 to `columns`.
    pub width: usize,
    /// Columns of the matrix: of a tensor, the product of all dimensions but the first.
    pub columns: usize,
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

    /// The value at a row and a column.
    pub fn value(&self, row: usize, column: usize) -> f32 {
        let mut terms = self.stages.iter().map(|stage| stage.centroids[self.place(stage, row, column)]);
        let first = terms.next().unwrap_or(0.0);
        terms.fold(first, |sum, term| sum + term)
    }

    /// The matrix, row by row.
    pub fn values(&self) -> Vec<f32> {
        (0..self.rows()).flat_map(|row| (0..self.columns).map(move |column| self.value(row, column))).collect()
    }

    /// The rows of these numbers.
    pub fn select(&self, rows: &[usize]) -> Self {
        let all = self.rows();
        let kept = |stage: &Stage| {
            let blocks = stage.indices.chunks_exact(all);
            let indices = blocks.flat_map(|block| rows.iter().map(|&row| block[row])).collect();
            Stage { centroids: stage.centroids.clone(), indices }
        };
        Self { width: self.width, columns: self.columns, stages: self.stages.iter().map(kept).collect() }
    }

    /// Whether the product is a matrix of this shape, of which all dimensions but the first are columns.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn check(&self, shape: &[usize]) -> Result<(), Error> {
        let (rows, columns) = matrix(shape)?;
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

/// Rows and columns of a tensor that a product may be.
pub(crate) fn matrix(shape: &[usize]) -> Result<(usize, usize), Error> {
    match shape {
        [rows, inner @ ..] if *rows > 0 && inner.iter().all(|size| *size > 0) => Ok((*rows, inner.iter().product())),
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
