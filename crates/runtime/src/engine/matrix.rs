//! Weights as a matrix, dense or compressed by rows, times dense columns.

/// Columns that one pass over a sparse row keeps in registers.
const LANES: usize = 32;

/// A weight matrix `[rows, columns]`.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    rows: usize,
    columns: usize,
    entries: Entries,
}

#[derive(Debug, Clone)]
enum Entries {
    Dense(Vec<f32>),
    /// Row `r` has the column numbers and values at `starts[r]..starts[r + 1]`.
    Sparse {
        starts: Vec<usize>,
        numbers: Vec<u32>,
        values: Vec<f32>,
    },
}

impl Matrix {
    /// From row-major values; leaves the zeros out if the share of the others is less than `sparse_below`.
    pub(crate) fn new(rows: usize, columns: usize, values: Vec<f32>, sparse_below: f64) -> Self {
        let nonzero = values.iter().filter(|value| **value != 0.0).count();
        let sparse = (nonzero as f64) < sparse_below * values.len() as f64;
        Self { rows, columns, entries: if sparse { compress(columns, nonzero, &values) } else { Entries::Dense(values) } }
    }

    /// Bytes that it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.entries {
            Entries::Dense(values) => 4 * values.len(),
            Entries::Sparse { starts, numbers, values } => 8 * starts.len() + 4 * numbers.len() + 4 * values.len(),
        }
    }

    /// Multiplies each row by its factor.
    pub(crate) fn scale_rows(&mut self, factors: &[f32]) {
        for (row, factor) in factors.iter().enumerate().take(self.rows) {
            let values = match &mut self.entries {
                Entries::Dense(values) => &mut values[row * self.columns..(row + 1) * self.columns],
                Entries::Sparse { starts, values, .. } => &mut values[starts[row]..starts[row + 1]],
            };
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }

    /// Rows `first..` of the matrix times `right` `[columns, width]`, whose rows lie `stride` apart, as many as `out`
    /// `[rows, width]` has.
    pub(crate) fn times(&self, first: usize, right: &[f32], stride: usize, width: usize, out: &mut [f32]) {
        let rows = out.len() / width;
        assert!(first + rows <= self.rows && out.len() == rows * width && width <= stride);
        assert!(right.len() >= (self.columns - 1) * stride + width);
        match &self.entries {
            Entries::Dense(values) => dense(&values[first * self.columns..], self.columns, right, stride, width, out),
            Entries::Sparse { starts, numbers, values } if width == 1 && stride == 1 => {
                for (row, out) in out.iter_mut().enumerate() {
                    let range = starts[first + row]..starts[first + row + 1];
                    *out = dot(&numbers[range.clone()], &values[range], right);
                }
            }
            Entries::Sparse { starts, numbers, values } => {
                let row = |row: usize| {
                    let range = starts[first + row]..starts[first + row + 1];
                    (&numbers[range.clone()], &values[range])
                };
                let mut column = 0;
                while column + LANES <= width {
                    (0..rows).for_each(|r| lanes::<LANES>(row(r), &right[column..], stride, &mut out[r * width + column..]));
                    column += LANES;
                }
                while column + 4 <= width {
                    (0..rows).for_each(|r| lanes::<4>(row(r), &right[column..], stride, &mut out[r * width + column..]));
                    column += 4;
                }
                while column < width {
                    (0..rows).for_each(|r| lanes::<1>(row(r), &right[column..], stride, &mut out[r * width + column..]));
                    column += 1;
                }
            }
        }
    }
}

fn compress(columns: usize, nonzero: usize, values: &[f32]) -> Entries {
    let mut starts = vec![0];
    let (mut numbers, mut kept) = (Vec::with_capacity(nonzero), Vec::with_capacity(nonzero));
    for row in values.chunks(columns) {
        for (number, value) in row.iter().enumerate().filter(|(_, value)| **value != 0.0) {
            numbers.push(number as u32);
            kept.push(*value);
        }
        starts.push(kept.len());
    }
    Entries::Sparse { starts, numbers, values: kept }
}

/// `N` neighbouring columns of one row of the product; each column's sum runs in the same order whatever `N` is.
fn lanes<const N: usize>((numbers, values): (&[u32], &[f32]), right: &[f32], stride: usize, out: &mut [f32]) {
    let mut sums = [0.0_f32; N];
    for (number, value) in numbers.iter().zip(values) {
        let right: &[f32; N] = right[*number as usize * stride..].first_chunk().expect("the caller checked the size");
        for lane in 0..N {
            sums[lane] += value * right[lane];
        }
    }
    out[..N].copy_from_slice(&sums);
}

/// A sparse row times one vector, in four independent sums.
fn dot(numbers: &[u32], values: &[f32], right: &[f32]) -> f32 {
    let (number_groups, number_rest) = numbers.as_chunks::<4>();
    let (value_groups, value_rest) = values.as_chunks::<4>();
    let mut sums = [0.0_f32; 4];
    for (numbers, values) in number_groups.iter().zip(value_groups) {
        for lane in 0..4 {
            sums[lane] += values[lane] * right[numbers[lane] as usize];
        }
    }
    let rest: f32 = number_rest.iter().zip(value_rest).map(|(number, value)| value * right[*number as usize]).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

fn dense(left: &[f32], depth: usize, right: &[f32], stride: usize, width: usize, out: &mut [f32]) {
    let rows = out.len() / width;
    assert!(left.len() >= rows * depth && right.len() >= (depth - 1) * stride + width);
    // SAFETY: all three matrices are row-major and lie inside their slices: `out` holds `rows * width` floats, `left` at least
    // `rows * depth`, and `right` reaches its last element `(depth - 1) * stride + width - 1`, as asserted here. `out` is borrowed
    // mutably, so that it overlaps neither of the others.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            width,
            depth,
            out.as_mut_ptr(),
            1,
            width as isize,
            false,
            left.as_ptr(),
            1,
            depth as isize,
            right.as_ptr(),
            1,
            stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dense_and_sparse_agree_with_the_definition(
            (rows, columns, width) in (1_usize..9, 1_usize..40, 1_usize..70),
            keep in 1_usize..9,
            extra in 0_usize..3,
        ) {
            let values: Vec<f32> = (0..rows * columns).map(|i| if i % keep == 0 { (i * 7 % 13) as f32 - 6.0 } else { 0.0 }).collect();
            let stride = width + extra;
            let right: Vec<f32> = (0..columns * stride).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
            let matrix = Matrix::new(rows, columns, values.clone(), 0.3);
            let mut out = vec![f32::NAN; rows * width];
            matrix.times(0, &right, stride, width, &mut out);
            let mut last = vec![f32::NAN; width];
            matrix.times(rows - 1, &right, stride, width, &mut last);
            prop_assert_eq!(&last, &out[(rows - 1) * width..]);
            for (i, value) in out.iter().enumerate() {
                let (row, column) = (i / width, i % width);
                let expected: f32 = (0..columns).map(|k| values[row * columns + k] * right[k * stride + column]).sum();
                // Small integers: every order of summation is exact.
                prop_assert_eq!(*value, expected);
            }
        }
    }
}
