//! Kernels that numpy and tensorly decomposed: normal numbers, but for `RAND` falling along each mode, and a planted partition.

use crate::kernel::Kernel;

/// `[8, 6, 3, 3]`.
pub(crate) const DECAY: &str = include_str!("golden/decay.txt");
/// `[6, 4, 5, 5]`.
pub(crate) const FIVE: &str = include_str!("golden/five.txt");
/// `[8, 6, 3, 3]`.
pub(crate) const RAND: &str = include_str!("golden/rand.txt");
/// `[12, 8, 3, 3]`.
pub(crate) const BICLUSTER: &str = include_str!("golden/bicluster.txt");
/// `[12, 20]`.
pub(crate) const MATRIX: &str = include_str!("golden/matrix.txt");

/// The numbers of a text.
pub(crate) fn numbers(text: &str) -> Vec<f64> {
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// The kernel of a text.
pub(crate) fn kernel(shape: [usize; 4], text: &str) -> Kernel {
    Kernel::new(shape, numbers(text))
}

/// Whether the two differ by less than `tolerance` of the second or of 1.
pub(crate) fn near(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * b.abs().max(1.0)
}
