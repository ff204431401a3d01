//! Products of integers: weights of eight bits with a sign by activations of eight bits without, summed up in 32 bits, exactly.
//!
//! With steps and zero points, `w = s_w (q_w - z_w)` and `x = s_x (q_x - z_x)`, a product of real numbers over `k` places is
//!
//! ```text
//! sum w x = s_w s_x (sum q_w q_x - z_x sum q_w - z_w sum q_x + k z_w z_x)
//! ```
//!
//! The kernels compute the first sum; [`Weights::sums`] has the second, [`row_sums`] and [`column_sums`] have the third (B. Jacob et al.,
//! *Quantization and training of neural networks for efficient integer-arithmetic-only inference*, CVPR 2018, equation 7). Integers are exact in
//! whatever order they are summed up: every set of instructions and every number of threads has the same results.

mod scaling;

use crate::panels::{self, Bytes, Panels, Results, Rows, as_bytes};
use crate::windows::Windows;
use crate::words::WordIsa;
use crate::{Conv2d, Error, buffer::Target};

pub use scaling::Scaling;

/// A matrix of weights, `[rows, columns]`, packed for products.
///
/// ```
/// use briquette_kernels::integer::{Columns, Weights};
///
/// let weights = Weights::pack(2, 3, &[1, -2, 3, 127, 127, -128])?;
/// let mut out = [0; 4];
/// weights.times_rows(2, &[1, 2, 3, 255, 255, 255], &mut out, 1)?;
/// assert_eq!(out, [6, -3, 510, 32130]);
/// let columns = Columns { values: &[1, 255, 2, 255, 3, 255], stride: 2, count: 2 };
/// weights.times_columns(columns, &mut out, 1)?;
/// assert_eq!(out, [6, 510, -3, 32130]);
/// assert_eq!(weights.sums(), [2, 126]);
/// # Ok::<(), briquette_kernels::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Weights {
    rows: usize,
    columns: usize,
    sums: Vec<i32>,
    panels: Panels,
}

/// A matrix of activations whose columns are multiplied: `count` of them, neighbours, each value of a column `stride` after the one above it.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// The values, from the first column's first on.
    pub values: &'a [u8],
    /// Distance of the rows.
    pub stride: usize,
    /// Number of columns.
    pub count: usize,
}

impl Weights {
    /// Packs weights, row after row.
    ///
    /// # Errors
    /// When there are not `rows * columns` of them, or so many in a row that a sum may not fit 32 bits: where
    /// `255 * sum max(w, 0) > 2^31 - 1` or `255 * sum min(w, 0) < -2^31`.
    pub fn pack(rows: usize, columns: usize, values: &[i8]) -> Result<Self, Error> {
        Self::pack_on(WordIsa::of_this_machine(), rows, columns, values)
    }

    fn pack_on(isa: WordIsa, rows: usize, columns: usize, values: &[i8]) -> Result<Self, Error> {
        if rows.checked_mul(columns) != Some(values.len()) {
            return Err(Error(format!("{} weights for a matrix of {rows} rows and {columns} columns", values.len())));
        }
        let mut sums = Vec::with_capacity(rows);
        for row in 0..rows {
            let row = &values[row * columns..][..columns];
            let positive: i64 = row.iter().map(|w| i64::from(*w).max(0)).sum();
            let negative: i64 = row.iter().map(|w| i64::from(*w).min(0)).sum();
            if 255 * positive > i64::from(i32::MAX) || 255 * negative < i64::from(i32::MIN) {
                return Err(Error(format!(
                    "sums over {columns} columns may not fit 32 bits; split the columns into two products"
                )));
            }
            // Both fit, and have different signs.
            sums.push((positive + negative) as i32);
        }
        Ok(Self { rows, columns, sums, panels: Panels::pack(isa, rows, columns, as_bytes(values)) })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The sum of each row: what the zero point of activations multiplies.
    pub fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Bytes that they take in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + 4 * self.sums.len()
    }

    /// `out[i][r] = sum over c of x[i][c] w[r][c]`, from `x` `[count, columns]` to `out` `[count, rows]`: a batch by a fully connected layer,
    /// or pixels by filters, channels last. With one thread on the caller's, else on those of the rayon pool in which this is called.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn times_rows(&self, count: usize, x: &[u8], out: &mut [i32], threads: usize) -> Result<(), Error> {
        let sizes = (count.checked_mul(self.columns), count.checked_mul(self.rows));
        if sizes != (Some(x.len()), Some(out.len())) {
            return Err(self.refuse(count, x.len(), out.len()));
        }
        self.multiply(x, count, Results { to: Target::of(out), offset: 0, stride: self.rows }, threads);
        Ok(())
    }

    fn multiply(&self, x: &[u8], count: usize, results: Results<'_>, threads: usize) {
        self.panels.times::<Bytes<true>>(Rows::new(x, count, self.columns), 0, results, threads);
    }

    /// `out[r][i] = sum over c of w[r][c] x[c][i]`, from `x` `[columns, count]` to `out` `[rows, count]`: filters by unfolded planes. Threads as
    /// in [`Weights::times_rows`], which is faster, for it need not put the activations into another order.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for; the last row of `x` may end with the last column.
    pub fn times_columns(&self, x: Columns<'_>, out: &mut [i32], threads: usize) -> Result<(), Error> {
        let Columns { values, stride, count } = x;
        let last = self.columns.checked_sub(1).filter(|_| count > 0);
        let reach = last.map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(count));
        let apart = self.columns <= 1 || stride >= count;
        if self.rows.checked_mul(count) != Some(out.len()) || reach.is_none_or(|reach| reach > values.len()) || !apart {
            return Err(self.refuse(count, values.len(), out.len()));
        }
        if count == 1 && stride == 1 {
            // One column is one row.
            return self.times_rows(1, &values[..self.columns], out, threads);
        }
        let results = Results { to: Target::of(out), offset: 0, stride: count };
        panels::Columns { bytes: values, stride, count, depth: self.columns }.times::<Bytes<false>>(
            &self.panels,
            results,
            threads,
        );
        Ok(())
    }

    fn refuse(&self, count: usize, x: usize, out: usize) -> Error {
        let (rows, columns) = (self.rows, self.columns);
        Error(format!(
            "activations and output have {x} and {out} values, {count} by weights of {rows} rows and {columns} columns"
        ))
    }
}

/// The sum of each row of activations `[rows, columns]`: what the zero point of weights multiplies.
///
/// # Errors
/// When a sum may not fit 32 bits.
pub fn row_sums(rows: usize, x: &[u8]) -> Result<Vec<i32>, Error> {
    let columns = x.len() / rows.max(1);
    fits(columns)?;
    Ok((0..rows).map(|row| x[row * columns..][..columns].iter().map(|x| i32::from(*x)).sum()).collect())
}

/// The sum of each of the columns over `rows` rows.
///
/// # Errors
/// When a sum may not fit 32 bits, or the values end before the last row's last column.
pub fn column_sums(rows: usize, x: Columns<'_>) -> Result<Vec<i32>, Error> {
    fits(rows)?;
    let mut sums = vec![0; x.count];
    for row in 0..rows {
        let start = row.saturating_mul(x.stride);
        let Some(row) = x.values.get(start..start.saturating_add(x.count)) else {
            return Err(Error(format!("{} values end before row {row} of {x:?}", x.values.len())));
        };
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += i32::from(*x));
    }
    Ok(sums)
}

fn fits(count: usize) -> Result<(), Error> {
    if count as u64 * 255 <= i32::MAX as u64 {
        Ok(())
    } else {
        Err(Error(format!("the sum of {count} bytes may not fit 32 bits")))
    }
}

/// A convolution of integers, its filters packed for products. Images are channels last, `[batch, height, width, channels]`.
#[derive(Debug, Clone)]
pub struct Convolution {
    windows: Windows,
    groups: Vec<Weights>,
}

impl Convolution {
    /// Packs filters `[filters, channels / groups, kh, kw]`. The shape's batch and precision mean nothing.
    ///
    /// # Errors
    /// When the shape does not hold together or has another number of weights, or as in [`Weights::pack`].
    pub fn pack(shape: Conv2d, values: &[i8]) -> Result<Self, Error> {
        Self::pack_on(WordIsa::of_this_machine(), shape, values)
    }

    fn pack_on(isa: WordIsa, shape: Conv2d, values: &[i8]) -> Result<Self, Error> {
        let windows = Windows::new(shape)?;
        windows.check_weights(values.len())?;
        let (order, (depth, filters)) = (windows.order(), windows.of_group());
        let groups = (0..shape.groups).map(|group| {
            let of_group = &values[group * filters * depth..][..filters * depth];
            let ordered: Vec<i8> =
                (0..filters).flat_map(|filter| order.iter().map(move |place| of_group[filter * depth + place])).collect();
            Weights::pack_on(isa, filters, depth, &ordered)
        });
        Ok(Self { groups: groups.collect::<Result<_, _>>()?, windows })
    }

    /// Height, width and filters of an output image.
    pub fn output(&self) -> [usize; 3] {
        self.windows.output()
    }

    /// The sum of each filter: what the zero point of activations multiplies.
    pub fn sums(&self) -> Vec<i32> {
        self.groups.iter().flat_map(|group| group.sums.iter().copied()).collect()
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(Weights::bytes).sum()
    }

    /// From `x` `[batch, height, width, channels]` to `out` `[batch, height, width, filters]`, where the border is padded with `zero`, the zero
    /// point of the activations: `sum q_w (q_x - zero) = out - zero * sums`, also at the border. Threads as in [`Weights::times_rows`].
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn forward(&self, batch: usize, x: &[u8], zero: u8, out: &mut [i32], threads: usize) -> Result<(), Error> {
        let windows = &self.windows;
        windows.check(batch, x.len(), out.len())?;
        if windows.are_pixels() {
            return self.groups[0].times_rows(batch * windows.count(), x, out, threads);
        }
        let ((depth, filters), stride) = (windows.of_group(), windows.shape().filters);
        windows.tasks(depth, out, threads, |scratch: &mut Vec<u8>, first, out, threads| {
            let count = out.len() / stride;
            scratch.resize(scratch.len().max(count * depth), 0);
            let rows = &mut scratch[..count * depth];
            let to = Target::of(out);
            for (group, weights) in self.groups.iter().enumerate() {
                for ((sample, window), row) in windows.places(first).zip(rows.chunks_exact_mut(depth.max(1))) {
                    let image = &x[sample * windows.image()..][..windows.image()];
                    unfold(windows, image, zero, window, group, row);
                }
                weights.multiply(rows, count, Results { to, offset: group * filters, stride }, threads);
            }
        });
        Ok(())
    }
}

/// What a window sees of a group's channels; `zero` beyond the border.
fn unfold(windows: &Windows, image: &[u8], zero: u8, window: [usize; 2], group: usize, mut row: &mut [u8]) {
    windows.runs(window, group, |place, len| {
        let (to, rest) = std::mem::take(&mut row).split_at_mut(len);
        row = rest;
        match place {
            Some(place) => copy(&image[place..][..len], to),
            None => to.fill(zero),
        }
    });
}

/// Copies the runs of usual layers, three pixels of 16 or 32 channels or one of more, in registers: a call would take longer.
#[inline(always)]
fn copy(from: &[u8], to: &mut [u8]) {
    match to.len() {
        16 => in_place::<16>(from, to),
        32 => in_place::<32>(from, to),
        48 => in_place::<48>(from, to),
        64 => in_place::<64>(from, to),
        96 => in_place::<96>(from, to),
        _ => to.copy_from_slice(from),
    }
}

#[inline(always)]
fn in_place<const N: usize>(from: &[u8], to: &mut [u8]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut::<N>()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests;
