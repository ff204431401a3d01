//! Convolutions of 3 by 3 with fewer multiplications.
//!
//! `F(m, 3)` makes each `m` by `m` outputs of a channel from a tile `d` of `m + 2` by `m + 2` inputs as `A^T [(G g G^T) * (B^T d B)] A` with the kernel
//! `g`, `*` the product of entries: `(m + 2)^2` multiplications in place of `9 m^2`, 2.25, 4 and 5.06 times fewer for `m` of 2, 4 and 6. Transformed
//! tiles are summed over channels before they are transformed back. Its matrices interpolate polynomials at 0, 1, -1, 2, -2, 1/2, -1/2; they are kept
//! as exact fractions.
//!
//! In exact numbers this is the convolution. In single precision it differs from the sum of products by a multiple of rounding that grows with `m`:
//! relative to the largest output by at most 1e-5 for `m = 2` and 1e-4 for 4 and 6, where the largest of inputs and weights are about 1 and 2
//! channels are summed.
//!
//! Lavin, Gray. "Fast Algorithms for Convolutional Neural Networks". CVPR 2016. arXiv:1509.09308.
//!
//! ```
//! use briquette_dynamic_nets::winograd::Tile;
//!
//! assert_eq!(Tile::F4.multiplications(), [36, 144]);
//! // A map of ones, summed by a kernel of ones, without padding.
//! let y: Vec<f64> = Tile::F4.convolve(&[1.0; 36], [1, 6, 6], &[1.0; 9], 0);
//! assert!(y.len() == 16 && y.iter().all(|y| (y - 9.0).abs() < 1e-12));
//! ```

use std::ops::{Add, AddAssign, Div, Mul};

/// Side `m` of the tiles of outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// `F(2, 3)`.
    F2,
    /// `F(4, 3)`.
    F4,
    /// `F(6, 3)`.
    F6,
}

/// Single or double precision.
pub trait Real: Copy + Default + From<i16> + Add<Output = Self> + Mul<Output = Self> + Div<Output = Self> + AddAssign {}

impl Real for f32 {}
impl Real for f64 {}

/// A matrix of fractions, row by row: numerators, and the denominator of each row.
type Fractions = &'static [(&'static [i16], i16)];

impl Tile {
    /// `m`.
    pub fn side(self) -> usize {
        match self {
            Tile::F2 => 2,
            Tile::F4 => 4,
            Tile::F6 => 6,
        }
    }

    /// Multiplications for a tile of a channel, and those of the sum of products.
    pub fn multiplications(self) -> [usize; 2] {
        [(self.side() + 2).pow(2), 9 * self.side().pow(2)]
    }

    /// `A^T`, `G` and `B^T`.
    fn fractions(self) -> [Fractions; 3] {
        match self {
            Tile::F2 => [
                &[(&[1, 1, 1, 0], 1), (&[0, 1, -1, 1], 1)],
                &[(&[1, 0, 0], 1), (&[1, 1, 1], 2), (&[1, -1, 1], 2), (&[0, 0, 1], 1)],
                &[(&[1, 0, -1, 0], 1), (&[0, 1, 1, 0], 1), (&[0, -1, 1, 0], 1), (&[0, -1, 0, 1], 1)],
            ],
            Tile::F4 => [
                &[(&[1, 1, 1, 1, 1, 0], 1), (&[0, 1, -1, 2, -2, 0], 1), (&[0, 1, 1, 4, 4, 0], 1), (&[0, 1, -1, 8, -8, 1], 1)],
                &[(&[1, 0, 0], 4), (&[-1, -1, -1], 6), (&[-1, 1, -1], 6), (&[1, 2, 4], 24), (&[1, -2, 4], 24), (&[0, 0, 1], 1)],
                &[
                    (&[4, 0, -5, 0, 1, 0], 1),
                    (&[0, -4, -4, 1, 1, 0], 1),
                    (&[0, 4, -4, -1, 1, 0], 1),
                    (&[0, -2, -1, 2, 1, 0], 1),
                    (&[0, 2, -1, -2, 1, 0], 1),
                    (&[0, 4, 0, -5, 0, 1], 1),
                ],
            ],
            Tile::F6 => [
                &[
                    (&[1, 1, 1, 1, 1, 1, 1, 0], 1),
                    (&[0, 2, -2, 4, -4, 1, -1, 0], 2),
                    (&[0, 4, 4, 16, 16, 1, 1, 0], 4),
                    (&[0, 8, -8, 64, -64, 1, -1, 0], 8),
                    (&[0, 16, 16, 256, 256, 1, 1, 0], 16),
                    (&[0, 32, -32, 1024, -1024, 1, -1, 32], 32),
                ],
                &[
                    (&[1, 0, 0], 1),
                    (&[-2, -2, -2], 9),
                    (&[-2, 2, -2], 9),
                    (&[1, 2, 4], 90),
                    (&[1, -2, 4], 90),
                    (&[32, 16, 8], 45),
                    (&[32, -16, 8], 45),
                    (&[0, 0, 1], 1),
                ],
                &[
                    (&[4, 0, -21, 0, 21, 0, -4, 0], 4),
                    (&[0, 4, 4, -17, -17, 4, 4, 0], 4),
                    (&[0, -4, 4, 17, -17, -4, 4, 0], 4),
                    (&[0, 2, 1, -10, -5, 8, 4, 0], 4),
                    (&[0, -2, 1, 10, -5, -8, 4, 0], 4),
                    (&[0, 4, 8, -5, -10, 1, 2, 0], 2),
                    (&[0, -4, 8, 5, -10, -1, 2, 0], 2),
                    (&[0, -4, 0, 21, 0, -21, 0, 4], 4),
                ],
            ],
        }
    }

    fn matrices<T: Real>(self) -> [Vec<Vec<T>>; 3] {
        let row = |(row, divisor): &(&[i16], i16)| row.iter().map(|value| T::from(*value) / T::from(*divisor)).collect();
        self.fractions().map(|matrix| matrix.iter().map(row).collect())
    }

    /// The transformed kernels `G g G^T`, `[filters * channels, (m + 2)^2]`, of `weight` `[filters, channels, 3, 3]`.
    pub fn kernels<T: Real>(self, weight: &[T]) -> Vec<T> {
        let [_, g, _] = self.matrices();
        weight.chunks_exact(9).flat_map(|kernel| both_sides(&g, kernel)).collect()
    }

    /// The transformed tile `B^T d B` of `(m + 2)^2` inputs.
    pub fn tile<T: Real>(self, inputs: &[T]) -> Vec<T> {
        let [_, _, bt] = self.matrices();
        both_sides(&bt, inputs)
    }

    /// The convolution of a sample `x` `[channels, height, width]` with `weight` `[filters, channels, 3, 3]`, stride 1 and so many zeros on each side:
    /// `[filters, height + 2 padding - 2, width + 2 padding - 2]`.
    ///
    /// # Panics
    /// If a slice has another length than its shape, or no window lies inside.
    pub fn convolve<T: Real>(self, x: &[T], [channels, height, width]: [usize; 3], weight: &[T], padding: usize) -> Vec<T> {
        assert_eq!((x.len(), weight.len() % (9 * channels)), (channels * height * width, 0), "slices fit their shapes");
        assert!(height + 2 * padding > 2 && width + 2 * padding > 2, "a window lies inside");
        let ([at, _, bt], m) = (self.matrices::<T>(), self.side());
        let (side, filters) = (m + 2, weight.len() / (9 * channels));
        let (rows, columns) = (height + 2 * padding - 2, width + 2 * padding - 2);
        let kernels = self.kernels(weight);
        let pixel = |channel: usize, row: usize, column: usize| match (row.checked_sub(padding), column.checked_sub(padding)) {
            (Some(row), Some(column)) if row < height && column < width => x[(channel * height + row) * width + column],
            (Some(_) | None, Some(_) | None) => T::default(),
        };
        let mut y = vec![T::default(); filters * rows * columns];
        for top in (0..rows).step_by(m) {
            for left in (0..columns).step_by(m) {
                let tiles: Vec<Vec<T>> = (0..channels)
                    .map(|channel| {
                        let inputs = (0..side * side).map(|at| pixel(channel, top + at / side, left + at % side));
                        both_sides(&bt, &inputs.collect::<Vec<_>>())
                    })
                    .collect();
                for filter in 0..filters {
                    let mut sums = vec![T::default(); side * side];
                    for (channel, tile) in tiles.iter().enumerate() {
                        let kernel = &kernels[(filter * channels + channel) * side * side..];
                        sums.iter_mut().zip(kernel).zip(tile).for_each(|((sum, u), v)| *sum += *u * *v);
                    }
                    for (place, value) in both_sides(&at, &sums).into_iter().enumerate() {
                        let (row, column) = (top + place / m, left + place % m);
                        if row < rows && column < columns {
                            y[(filter * rows + row) * columns + column] = value;
                        }
                    }
                }
            }
        }
        y
    }
}

/// `M x M^T` of a square `x`.
fn both_sides<T: Real>(matrix: &[Vec<T>], x: &[T]) -> Vec<T> {
    let side = matrix[0].len();
    let dot =
        |row: &[T], values: &mut dyn Iterator<Item = T>| row.iter().zip(values).fold(T::default(), |sum, (a, b)| sum + *a * b);
    let left: Vec<Vec<T>> = matrix
        .iter()
        .map(|row| (0..side).map(|column| dot(row, &mut (0..side).map(|at| x[at * side + column]))).collect())
        .collect();
    left.iter().flat_map(|values| matrix.iter().map(|row| dot(row, &mut values.iter().copied())).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fft_conv::tests::{direct, golden};

    const TILES: [Tile; 3] = [Tile::F2, Tile::F4, Tile::F6];

    /// `winograd` of the reference values: a map of 8 by 8 with two channels, three filters, padding 1.
    #[test]
    fn every_tile_gives_the_convolution() {
        let [x, weight, expected] = golden(include_str!("goldens/winograd.txt"));
        let single = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<_>>();
        let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        for (tile, tolerance) in TILES.into_iter().zip([1e-5, 1e-4, 1e-4]) {
            let double = tile.convolve(&x, [2, 8, 8], &weight, 1);
            assert!(double.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-8), "{tile:?}");
            let single = tile.convolve(&single(&x), [2, 8, 8], &single(&weight), 1);
            assert!(single.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < tolerance * largest), "{tile:?}");
        }
    }

    /// `tile_F(2,3)` of the reference values.
    #[test]
    fn tiles_and_kernels_are_transformed_as_in_the_paper() {
        let d = [0.0, 0.0, 0.0, 0.0, 0.0, 0.647, 0.498, -1.212, 0.0, -0.095, 0.197, 1.086, 0.0, -0.01, -0.541, -0.944];
        let v = [
            0.197, -0.102, -0.292, -1.181, -0.695, 1.247, 0.143, -0.678, 0.301, -1.043, 0.441, 3.04, 1.039, -1.696, -0.382, 0.925,
        ];
        let g = [1.821, 0.091, -0.747, 0.417, -0.155, 0.177, 0.914, -2.219, -2.656];
        let u = [
            1.821, 0.5825, 0.4915, -0.747, 1.576, -0.58925, 0.55225, -1.613, 1.159, -0.80875, 0.17775, -1.79, 0.914, -1.9805,
            0.2385, -2.656,
        ];
        for (found, expected) in [(Tile::F2.tile(&d), v), (Tile::F2.kernels(&g), u)] {
            assert!(found.iter().zip(expected).all(|(a, b): (&f64, f64)| (a - b).abs() < 1e-8), "{found:?}");
        }
        assert_eq!(TILES.map(Tile::multiplications), [[16, 36], [36, 144], [64, 324]]);
    }

    /// Where tiles reach beyond the map, and without padding.
    #[test]
    fn maps_of_any_size_are_convolved() {
        let values = |count: usize| (0..count).map(|i| ((i * i * 37) % 101) as f64 / 50.0 - 1.0).collect::<Vec<_>>();
        for tile in TILES {
            for (height, width, padding) in [(3, 3, 0), (5, 9, 1), (7, 4, 2), (1, 1, 1)] {
                let (x, weight) = (values(2 * height * width), values(3 * 2 * 9));
                let expected = direct(&x, [2, height, width], &weight, [3, 3], padding);
                let found = tile.convolve(&x, [2, height, width], &weight, padding);
                assert!(
                    found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-10),
                    "{tile:?}"
                );
            }
        }
    }
}
