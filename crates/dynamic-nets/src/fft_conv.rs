//! Convolutions as products of spectra.
//!
//! The rows of a padded map stand behind each other, as one signal of `n = (h + 2 p) (w + 2 p)` values, and a kernel's rows in the same distance, so
//! that the sum over taps is a correlation in one dimension: `y = F^-1 [sum_c F(x_c) conj(F(g_c))]`, of which the places where no window crosses the
//! end of a row are the outputs. A sample of `C` channels takes `C` transforms, `N C n / 2` products of complex numbers for `N` filters, and `N`
//! transforms back; those of the kernels are made once.
//!
//! In single precision it differs from the sum of products by at most 1e-5 of the largest output, where the largest of inputs and weights are about
//! 2 and 50 products are summed.
//!
//! Mathieu, Henaff, LeCun. "Fast Training of Convolutional Networks through FFTs". ICLR 2014. arXiv:1312.5851.
//! Differs from the paper: one transform over all rows in place of one in two dimensions.
//!
//! ```
//! use briquette_dynamic_nets::fft_conv::convolve;
//!
//! // A map of ones, summed by a kernel of ones, without padding.
//! let y: Vec<f64> = convolve(&[1.0; 36], [1, 6, 6], &[1.0; 25], [5, 5], 0);
//! assert!(y.len() == 4 && y.iter().all(|y| (y - 25.0).abs() < 1e-12));
//! ```

use realfft::num_complex::Complex;
use realfft::{FftNum, RealFftPlanner};

/// The convolution of a sample `x` `[channels, height, width]` with `weight` `[filters, channels, kernel...]`, stride 1 and so many zeros on each side:
/// `[filters, height + 2 padding - kernel[0] + 1, width + 2 padding - kernel[1] + 1]`.
///
/// # Panics
/// If a slice has another length than its shape, or no window lies inside.
pub fn convolve<T: FftNum>(
    x: &[T],
    [channels, height, width]: [usize; 3],
    weight: &[T],
    kernel: [usize; 2],
    padding: usize,
) -> Vec<T> {
    let taps = kernel[0] * kernel[1];
    assert_eq!((x.len(), weight.len() % (channels * taps)), (channels * height * width, 0), "slices fit their shapes");
    let (high, wide) = (height + 2 * padding, width + 2 * padding);
    assert!((1..=high).contains(&kernel[0]) && (1..=wide).contains(&kernel[1]), "a window lies inside");
    let (rows, columns) = (high - kernel[0] + 1, wide - kernel[1] + 1);
    let mut planner = RealFftPlanner::<T>::new();
    let (there, back) = (planner.plan_fft_forward(high * wide), planner.plan_fft_inverse(high * wide));
    let mut signal = vec![T::zero(); high * wide];
    let mut spectrum = |plane: &[T], width: usize, first: usize| -> Vec<Complex<T>> {
        signal.fill(T::zero());
        plane.chunks(width).enumerate().for_each(|(row, values)| signal[first + row * wide..][..width].copy_from_slice(values));
        let mut spectrum = there.make_output_vec();
        there.process(&mut signal, &mut spectrum).expect("the buffers have the plan's sizes");
        spectrum
    };
    let maps: Vec<_> = x.chunks(height * width).map(|map| spectrum(map, width, padding * wide + padding)).collect();
    let kernels: Vec<_> = weight.chunks(taps).map(|taps| spectrum(taps, kernel[1], 0)).collect();
    let size = T::from_usize(high * wide).expect("a size is a number");
    let filter = |kernels: &[Vec<Complex<T>>]| {
        let mut sums = back.make_input_vec();
        for (map, kernel) in maps.iter().zip(kernels) {
            sums.iter_mut().zip(map).zip(kernel).for_each(|((sum, x), g)| *sum = *sum + *x * g.conj());
        }
        // The sum of all values, and with an even number that with alternating signs, are real but for rounding.
        sums[0].im = T::zero();
        if (high * wide).is_multiple_of(2) {
            sums[high * wide / 2].im = T::zero();
        }
        let mut values = back.make_output_vec();
        back.process(&mut sums, &mut values).expect("the buffers have the plan's sizes");
        let row = |row: usize| values[row * wide..][..columns].iter().map(|value| *value / size).collect::<Vec<_>>();
        (0..rows).flat_map(row).collect::<Vec<_>>()
    };
    kernels.chunks(channels).flat_map(filter).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The lines of reference values: input, weight and output.
    pub(crate) fn golden(text: &str) -> [Vec<f64>; 3] {
        let lines: Vec<Vec<f64>> =
            text.lines().map(|line| line.split(' ').map(|value| value.parse().unwrap()).collect()).collect();
        lines.try_into().unwrap()
    }

    /// The sum of products.
    pub(crate) fn direct(
        x: &[f64],
        [channels, height, width]: [usize; 3],
        weight: &[f64],
        [kh, kw]: [usize; 2],
        padding: usize,
    ) -> Vec<f64> {
        let (rows, columns) = (height + 2 * padding + 1 - kh, width + 2 * padding + 1 - kw);
        let at = |c: usize, row: usize, column: usize| match (row.checked_sub(padding), column.checked_sub(padding)) {
            (Some(row), Some(column)) if row < height && column < width => x[(c * height + row) * width + column],
            (Some(_) | None, Some(_) | None) => 0.0,
        };
        let value = |filter: usize, place: usize| -> f64 {
            let (row, column) = (place / columns, place % columns);
            (0..channels * kh * kw)
                .map(|tap| {
                    weight[filter * channels * kh * kw + tap] * at(tap / (kh * kw), row + tap / kw % kh, column + tap % kw)
                })
                .sum()
        };
        let filters = weight.len() / (channels * kh * kw);
        (0..filters).flat_map(|filter| (0..rows * columns).map(move |place| (filter, place))).map(|(f, p)| value(f, p)).collect()
    }

    /// `fft-conv` of the reference values: a map of 7 by 7 with two channels, two kernels of 5 by 5, padding 2.
    #[test]
    fn products_of_spectra_give_the_convolution() {
        let [x, weight, expected] = golden(include_str!("goldens/fft_conv.txt"));
        let found = convolve(&x, [2, 7, 7], &weight, [5, 5], 2);
        assert!(found.len() == 98 && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-8), "{found:?}");
        let single = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<_>>();
        let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        let found = convolve(&single(&x), [2, 7, 7], &single(&weight), [5, 5], 2);
        assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5 * largest));
    }

    #[test]
    fn maps_and_kernels_of_any_size_are_convolved() {
        let values = |count: usize| (0..count).map(|i| ((i * i * 37) % 101) as f64 / 50.0 - 1.0).collect::<Vec<_>>();
        for (height, width, kernel, padding) in
            [(3, 3, [3, 3], 0), (5, 9, [1, 4], 1), (7, 4, [5, 2], 2), (1, 1, [3, 3], 1), (6, 6, [1, 1], 0)]
        {
            let (x, weight) = (values(2 * height * width), values(3 * 2 * kernel[0] * kernel[1]));
            let expected = direct(&x, [2, height, width], &weight, kernel, padding);
            let found = convolve(&x, [2, height, width], &weight, kernel, padding);
            assert!(found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-10));
        }
    }
}
