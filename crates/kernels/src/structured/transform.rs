//! Transforms of one row.

use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

/// The discrete Fourier transform of real values, and back.
#[derive(Clone)]
pub(super) struct Fourier {
    size: usize,
    there: Arc<dyn RealToComplex<f32>>,
    back: Arc<dyn ComplexToReal<f32>>,
}

/// What the transform works in.
pub(super) struct Room {
    real: Vec<f32>,
    complex: Vec<Complex32>,
    scratch: Vec<Complex32>,
}

impl Fourier {
    pub(super) fn new(size: usize) -> Self {
        let mut planner = RealFftPlanner::new();
        Self { size, there: planner.plan_fft_forward(size), back: planner.plan_fft_inverse(size) }
    }

    /// Length of a spectrum; the rest is conjugate.
    pub(super) fn spectrum_len(&self) -> usize {
        self.size / 2 + 1
    }

    pub(super) fn room(&self) -> Room {
        let scratch = self.there.get_scratch_len().max(self.back.get_scratch_len());
        let zero = Complex32::default();
        Room { real: vec![0.0; self.size], complex: vec![zero; self.spectrum_len()], scratch: vec![zero; scratch] }
    }

    /// The spectrum of the values, after which zeros follow.
    pub(super) fn forward(&self, values: impl Iterator<Item = f32>, spectrum: &mut [Complex32], room: &mut Room) {
        let mut len = 0;
        room.real.iter_mut().zip(values).for_each(|(to, value)| {
            *to = value;
            len += 1;
        });
        room.real[len..].fill(0.0);
        let scratch = &mut room.scratch[..self.there.get_scratch_len()];
        self.there.process_with_scratch(&mut room.real, spectrum, scratch).expect("the buffers have the plan's sizes");
    }

    /// The values of the spectrum, divided by their number.
    pub(super) fn inverse<'a>(&self, spectrum: impl Iterator<Item = Complex32>, room: &'a mut Room) -> &'a [f32] {
        let scale = 1.0 / self.size as f32;
        room.complex.iter_mut().zip(spectrum).for_each(|(to, value)| *to = value * scale);
        // Sums of conjugate terms are real but for rounding, which the transform would refuse.
        room.complex[0].im = 0.0;
        if self.size.is_multiple_of(2) {
            room.complex[self.size / 2].im = 0.0;
        }
        let scratch = &mut room.scratch[..self.back.get_scratch_len()];
        self.back.process_with_scratch(&mut room.complex, &mut room.real, scratch).expect("the buffers have the plan's sizes");
        &room.real
    }

    /// The spectra of rows of at most the transform's size.
    pub(super) fn spectra(&self, values: &[f32], row: usize) -> Vec<Complex32> {
        let len = self.spectrum_len();
        let mut spectra = vec![Complex32::default(); values.len() / row * len];
        let mut room = self.room();
        for (spectrum, values) in spectra.chunks_exact_mut(len).zip(values.chunks_exact(row)) {
            self.forward(values.iter().copied(), spectrum, &mut room);
        }
        spectra
    }

    /// The first `row` values of each spectrum, whose parts alternate.
    pub(super) fn rows(&self, spectra: &[f32], row: usize) -> Vec<f32> {
        let mut room = self.room();
        let of_spectrum = |spectrum: &[f32]| self.inverse(complex(spectrum), &mut room)[..row].to_vec();
        spectra.chunks_exact(2 * self.spectrum_len()).flat_map(of_spectrum).collect()
    }
}

/// Adds `conj(a) b` to a spectrum whose parts alternate.
pub(super) fn add_correlation(sums: &mut [f32], a: &[Complex32], b: impl Iterator<Item = Complex32>) {
    for ((sums, a), b) in sums.chunks_exact_mut(2).zip(a).zip(b) {
        let product = a.conj() * b;
        sums[0] += product.re;
        sums[1] += product.im;
    }
}

fn complex(parts: &[f32]) -> impl Iterator<Item = Complex32> {
    parts.chunks_exact(2).map(|pair| Complex32::new(pair[0], pair[1]))
}

/// The Walsh-Hadamard transform in place, divided by the root of its size, a power of two; its own inverse.
pub(super) fn hadamard(values: &mut [f32]) {
    let size = values.len();
    let mut half = 1;
    while half < size {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
    let scale = 1.0 / (size as f32).sqrt();
    values.iter_mut().for_each(|value| *value *= scale);
}
