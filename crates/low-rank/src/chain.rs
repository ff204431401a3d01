//! Convolutions one after the other, as one.

use crate::algebra::Matrix;
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};

/// The kernel `W[n, c, y, x] = sum B[n, r, y2, x2] A[r, c, y1, x1]`, over `r`, `y1 + y2 = y` and `x1 + x2 = x`, that convolves as `first`, `A`,
/// and then `second`, `B`, do: `[N, R, h2, w2]` after `[R, C, h1, w1]` is `[N, C, h1 + h2 - 1, w1 + w2 - 1]`.
///
/// # Panics
/// If the second does not read as many channels as the first has filters.
pub fn compose(first: &Kernel, second: &Kernel) -> Kernel {
    let ([r, c, h1, w1], [n, channels, h2, w2]) = (first.shape, second.shape);
    assert_eq!(r, channels, "a kernel of {channels} channels after one of {r} filters");
    let [h, w] = [h1 + h2 - 1, w1 + w2 - 1];
    let right = first.unfold(&[FILTERS], &[CHANNELS, HEIGHT, WIDTH]);
    let product: Matrix = second.unfold(&[FILTERS, HEIGHT, WIDTH], &[CHANNELS]) * right;
    let mut values = vec![0.0; n * c * h * w];
    for (row, of_second) in product.row_iter().enumerate() {
        let (n, y2, x2) = (row / (h2 * w2), row / w2 % h2, row % w2);
        for (column, value) in of_second.iter().enumerate() {
            let (c_at, y1, x1) = (column / (h1 * w1), column / w1 % h1, column % w1);
            values[((n * c + c_at) * h + y1 + y2) * w + x1 + x2] += value;
        }
    }
    Kernel::new([n, c, h, w], values)
}

/// A convolution in groups as one without: each filter is zero on the channels of other groups.
///
/// # Panics
/// If the groups do not divide the filters.
pub fn ungrouped(kernel: &Kernel, groups: usize) -> Kernel {
    let [n, c, h, w] = kernel.shape;
    assert!(groups > 0 && n.is_multiple_of(groups), "{n} filters in {groups} groups");
    let mut values = Vec::with_capacity(groups * kernel.values.len());
    for (filter, own) in kernel.values.chunks_exact(c * h * w).enumerate() {
        let start = values.len() + filter / (n / groups) * own.len();
        values.resize(start, 0.0);
        values.extend_from_slice(own);
        values.resize((filter + 1) * groups * own.len(), 0.0);
    }
    Kernel::new([n, groups * c, h, w], values)
}

/// The convolution by one pixel whose output `i` is the channel `order[i]`.
pub fn permutation(order: &[usize]) -> Kernel {
    let count = order.len();
    let values = order.iter().flat_map(|from| (0..count).map(move |at| if at == *from { 1.0 } else { 0.0 }));
    Kernel::new([count, count, 1, 1], values.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_kernels_are_one_whose_taps_add_up() {
        let first = Kernel::new([2, 1, 2, 1], vec![1.0, 2.0, 0.0, 1.0]);
        let second = Kernel::new([1, 2, 1, 2], vec![1.0, -1.0, 3.0, 0.5]);
        // Tap (y, x) is B[0] A[0, y] + B[1] A[1, y].
        assert_eq!(compose(&first, &second), Kernel::new([1, 1, 2, 2], vec![1.0, -1.0, 5.0, -1.5]));
        let squared = compose(&Kernel::new([1, 1, 1, 2], vec![1.0, 1.0]), &Kernel::new([1, 1, 1, 2], vec![1.0, 1.0]));
        assert_eq!(squared, Kernel::new([1, 1, 1, 3], vec![1.0, 2.0, 1.0]));
    }

    #[test]
    fn groups_and_permutations_are_zeros_and_ones() {
        let grouped = Kernel::new([2, 2, 1, 1], vec![1.0, 2.0, 3.0, 4.0]);
        let whole = ungrouped(&grouped, 2);
        assert_eq!(whole, Kernel::new([2, 4, 1, 1], vec![1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]));
        let turned = compose(&permutation(&[3, 2, 1, 0]), &whole);
        assert_eq!(turned.values, [0.0, 0.0, 2.0, 1.0, 4.0, 3.0, 0.0, 0.0]);
    }
}
