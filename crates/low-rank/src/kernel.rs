//! A convolution's kernel on the host.

use burn::tensor::{Device, Tensor, TensorData};

use crate::algebra::Matrix;

/// A kernel `[filters, channels, height, width]` in double precision, the last dimension fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Filters, channels (of a group), height, width.
    pub shape: [usize; 4],
    /// Its values.
    pub values: Vec<f64>,
}

/// Filters, the first mode of a kernel.
pub const FILTERS: usize = 0;
/// Channels, the second.
pub const CHANNELS: usize = 1;
/// Rows of a filter, the third.
pub const HEIGHT: usize = 2;
/// Columns of a filter, the fourth.
pub const WIDTH: usize = 3;

impl Kernel {
    /// The kernel with these values.
    ///
    /// # Panics
    /// If their number is not that of the shape.
    pub fn new(shape: [usize; 4], values: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "a kernel of shape {shape:?}");
        Self { shape, values }
    }

    /// A kernel on a device.
    pub fn of(tensor: Tensor<4>) -> Self {
        let shape = tensor.dims();
        Self::new(shape, briquette_core::coding::floats(tensor).into_iter().map(f64::from).collect())
    }

    /// On a device, in single precision.
    pub fn tensor(&self, device: &Device) -> Tensor<4> {
        let values: Vec<f32> = self.values.iter().map(|value| *value as f32).collect();
        Tensor::from_data(TensorData::new(values, self.shape), device)
    }

    /// The matrix whose rows are indexed by the modes `rows` and whose columns by the others in their order, the first named mode slowest.
    pub fn unfold(&self, rows: &[usize], columns: &[usize]) -> Matrix {
        let strides = self.strides();
        let offsets = |modes: &[usize]| {
            modes.iter().fold(vec![0], |offsets, &mode| {
                let along = |offset: usize| (0..self.shape[mode]).map(move |at| offset + at * strides[mode]);
                offsets.into_iter().flat_map(along).collect::<Vec<usize>>()
            })
        };
        let (down, across) = (offsets(rows), offsets(columns));
        Matrix::from_fn(down.len(), across.len(), |i, j| self.values[down[i] + across[j]])
    }

    /// The kernel of this shape whose [`Kernel::unfold`] is `matrix`.
    pub fn fold(shape: [usize; 4], matrix: &Matrix, rows: &[usize], columns: &[usize]) -> Self {
        let mut kernel = Self { shape, values: (0..shape.iter().product::<usize>()).map(|at| at as f64).collect() };
        let places = kernel.unfold(rows, columns);
        places.iter().zip(matrix).for_each(|(place, value)| kernel.values[*place as usize] = *value);
        kernel
    }

    /// `sum w^2`.
    pub fn energy(&self) -> f64 {
        self.values.iter().map(|w| w * w).sum()
    }

    /// The root of the sum of squared differences.
    pub fn distance(&self, other: &Self) -> f64 {
        self.values.iter().zip(&other.values).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }

    fn strides(&self) -> [usize; 4] {
        let [_, c, h, w] = self.shape;
        [c * h * w, h * w, w, 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unfolded_folds_back_and_rows_are_slowest_first() {
        let shape = [2, 3, 2, 2];
        let kernel = Kernel::new(shape, (0..24).map(f64::from).collect());
        let matrix = kernel.unfold(&[CHANNELS, HEIGHT], &[WIDTH, FILTERS]);
        assert_eq!(matrix.shape(), (6, 4));
        assert_eq!(matrix[(1, 0)], 2.0, "channel 0, row 1, column 0 of filter 0");
        assert_eq!(matrix[(2, 3)], 17.0, "channel 1, row 0, column 1 of filter 1");
        assert_eq!(Kernel::fold(shape, &matrix, &[CHANNELS, HEIGHT], &[WIDTH, FILTERS]), kernel);
    }
}
