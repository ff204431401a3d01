//! Products of signs, a bit each: over `k` places `sum a b = k - 2 popcount(a xor b)` where a bit that is set is 1 and one that is not is -1
//! (I. Hubara et al., *Binarized neural networks*, NeurIPS 2016; M. Rastegari et al., *XNOR-Net*, ECCV 2016). The scaling factors of the latter
//! are the caller's. Results are exact integers, the same on every set of instructions and any number of threads.

mod matrix;
#[cfg(test)]
mod tests;

use crate::panels::{self, Panels, Results, Rows, as_bytes};
use crate::windows::Windows;
use crate::words::WordIsa;
use crate::{Conv2d, Error, buffer::Target, count};

pub use matrix::Matrix;

/// A matrix of signs `[rows, columns]`, packed for products.
///
/// ```
/// use briquette_kernels::bits::{Matrix, Weights};
///
/// let weights = Weights::pack(&Matrix::of_signs(1, 3, &[0.5, -0.5, -2.0], 1)?)?;
/// let mut out = [0; 2];
/// weights.times(&Matrix::of_signs(2, 3, &[1.0, -1.0, -1.0, 3.0, 0.0, -0.1], 1)?, &mut out, 1)?;
/// assert_eq!(out, [3, 1]);
/// # Ok::<(), briquette_kernels::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Weights {
    rows: usize,
    columns: usize,
    panels: Panels,
}

impl Weights {
    /// Packs a matrix.
    ///
    /// # Errors
    /// When a sum over its columns may not fit 32 bits.
    pub fn pack(signs: &Matrix) -> Result<Self, Error> {
        Self::pack_on(WordIsa::of_this_machine(), signs)
    }

    fn pack_on(isa: WordIsa, signs: &Matrix) -> Result<Self, Error> {
        let (rows, columns) = (signs.rows(), signs.columns());
        if i32::try_from(columns).is_err() {
            return Err(Error(format!("sums over {columns} columns may not fit 32 bits; split the columns into two products")));
        }
        Ok(Self { rows, columns, panels: Panels::pack(isa, rows, 8 * signs.words_of_row(), as_bytes(signs.words())) })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that they take in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// `out[i][r] = sum over c of x[i][c] w[r][c]`, from `x` `[count, columns]` to `out` `[count, rows]`. With one thread on the caller's, else on
    /// those of the rayon pool in which this is called.
    ///
    /// # Errors
    /// When the activations have other columns or the output another length than the shapes ask for.
    pub fn times(&self, x: &Matrix, out: &mut [i32], threads: usize) -> Result<(), Error> {
        if x.columns() != self.columns || x.rows().checked_mul(self.rows) != Some(out.len()) {
            let (rows, columns, shape) = (self.rows, self.columns, [x.rows(), x.columns()]);
            return Err(Error(format!("signs {shape:?} by weights [{rows}, {columns}] into {} results", out.len())));
        }
        self.multiply(x.words(), x.rows(), Results { to: Target::of(out), offset: 0, stride: self.rows }, threads);
        Ok(())
    }

    fn multiply(&self, words: &[u64], count: usize, results: Results<'_>, threads: usize) {
        let rows = Rows::new(as_bytes(words), count, 8 * self.columns.div_ceil(64));
        self.panels.times::<panels::Bits>(rows, self.columns as i32, results, threads);
    }
}

/// A convolution of signs, its filters packed for products. What lies beyond the border is zero, neither 1 nor -1.
#[derive(Debug, Clone)]
pub struct Convolution {
    windows: Windows,
    groups: Vec<Weights>,
    /// The sum of the signs of each tap of each filter, `[taps, filters]`.
    taps: Vec<i32>,
}

impl Convolution {
    /// Packs filters, a matrix `[filters, channels / groups * kh * kw]` in the order `[channels / groups, kh, kw]`. The shape's batch and precision
    /// mean nothing.
    ///
    /// # Errors
    /// When the shape does not hold together or has other weights, or as in [`Weights::pack`].
    pub fn pack(shape: Conv2d, signs: &Matrix) -> Result<Self, Error> {
        Self::pack_on(WordIsa::of_this_machine(), shape, signs)
    }

    fn pack_on(isa: WordIsa, shape: Conv2d, signs: &Matrix) -> Result<Self, Error> {
        let windows = Windows::new(shape)?;
        let (depth, filters) = windows.of_group();
        if [signs.rows(), signs.columns()] != [shape.filters, depth] {
            return Err(Error(format!("signs [{}, {}] are no weights of {shape:?}", signs.rows(), signs.columns())));
        }
        let order = windows.order();
        let groups = (0..shape.groups).map(|group| {
            let rows =
                (group * filters..(group + 1) * filters).map(|row| order.iter().map(move |place| signs.is_set(row, *place)));
            Weights::pack_on(isa, &Matrix::of_bits(filters, depth, rows.flatten()))
        });
        let groups = groups.collect::<Result<_, _>>()?;
        let (area, channels) = (windows.area(), windows.channels());
        let of_tap = |tap: usize, filter: usize| {
            let set = (0..channels).filter(|channel| signs.is_set(filter, channel * area + tap)).count();
            2 * set as i32 - channels as i32
        };
        let taps = (0..area).flat_map(|tap| (0..shape.filters).map(move |filter| of_tap(tap, filter))).collect();
        Ok(Self { windows, groups, taps })
    }

    /// Height, width and filters of an output image.
    pub fn output(&self) -> [usize; 3] {
        self.windows.output()
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(Weights::bytes).sum::<usize>() + 4 * self.taps.len()
    }

    /// From images, a matrix `[batch, height * width * channels]`, to `out` `[batch, height, width, filters]`. Threads as in [`Weights::times`].
    ///
    /// # Errors
    /// When the images or the output have another size than the shapes ask for.
    pub fn forward(&self, x: &Matrix, out: &mut [i32], threads: usize) -> Result<(), Error> {
        let windows = &self.windows;
        windows.check(x.rows(), count(&[x.rows(), x.columns()])?, out.len())?;
        let ((depth, filters), stride, image) = (windows.of_group(), windows.shape().filters, x.words_of_row());
        let width = depth.div_ceil(64);
        windows.tasks(8 * width, out, threads, |scratch: &mut Vec<u64>, first, out, threads| {
            let count = out.len() / stride;
            scratch.resize(scratch.len().max(count * width), 0);
            let rows = &mut scratch[..count * width];
            let to = Target::of(out);
            for (group, weights) in self.groups.iter().enumerate() {
                for ((sample, window), row) in windows.places(first).zip(rows.chunks_exact_mut(width.max(1))) {
                    let image = &x.words()[sample * image..][..image];
                    let mut row = matrix::Writer::new(row);
                    windows.runs(window, group, |place, len| row.push(image, place, len));
                    row.finish();
                }
                weights.multiply(rows, count, Results { to, offset: group * filters, stride }, threads);
            }
            if windows.are_padded() {
                self.correct(first, out);
            }
        });
        Ok(())
    }

    /// Takes back what the taps beyond the border brought, whose bits are not set: the sum of their weights' signs, negative.
    fn correct(&self, first: usize, out: &mut [i32]) {
        let (windows, filters) = (&self.windows, self.windows.shape().filters);
        for ((_, window), out) in windows.places(first).zip(out.chunks_exact_mut(filters)) {
            windows.outside(window, |tap| {
                out.iter_mut().zip(&self.taps[tap * filters..][..filters]).for_each(|(out, signs)| *out += signs);
            });
        }
    }
}
