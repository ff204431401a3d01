//! Blocks of a circulant matrix times signs.

use realfft::num_complex::Complex32;

use super::transform::{Fourier, add_correlation};
use super::{Draws, Operator};

/// `y_b = C(r_b) D_b x`: by the convolution theorem `F y_b = F r_b . F D_b x`. The gradients are correlations:
/// `D_b dx = F^-1 (conj(F r_b) . F dy_b)` and `dr_b = F^-1 (conj(F D_b x) . F dy_b)`.
pub(super) struct Circulant {
    inputs: usize,
    outputs: usize,
    fourier: Fourier,
    signs: Vec<f32>,
    spectra: Vec<Complex32>,
}

impl Circulant {
    pub(super) fn new(inputs: usize, outputs: usize, seed: u64, r: &[f32]) -> Self {
        let fourier = Fourier::new(inputs);
        let signs = Draws(seed).signs(r.len());
        let spectra = fourier.spectra(r, inputs);
        Self { inputs, outputs, fourier, signs, spectra }
    }

    fn blocks(&self) -> impl Iterator<Item = (&[f32], &[Complex32])> {
        self.signs.chunks_exact(self.inputs).zip(self.spectra.chunks_exact(self.fourier.spectrum_len()))
    }
}

impl Operator for Circulant {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let mut room = self.fourier.room();
        let mut of_x = vec![Complex32::default(); self.fourier.spectrum_len()];
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            for (y, (signs, of_r)) in y.chunks_mut(self.inputs).zip(self.blocks()) {
                self.fourier.forward(x.iter().zip(signs).map(|(x, sign)| x * sign), &mut of_x, &mut room);
                let product = self.fourier.inverse(of_x.iter().zip(of_r).map(|(x, r)| x * r), &mut room);
                y.copy_from_slice(&product[..y.len()]);
            }
        }
    }

    fn sums(&self) -> usize {
        2 * self.spectra.len()
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let len = self.fourier.spectrum_len();
        let mut room = self.fourier.room();
        let (mut of_x, mut of_dy) = (vec![Complex32::default(); len], vec![Complex32::default(); len]);
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(self.inputs));
        for ((x, dy), dx) in rows {
            dx.fill(0.0);
            for ((dy, (signs, of_r)), sums) in dy.chunks(self.inputs).zip(self.blocks()).zip(sums.chunks_exact_mut(2 * len)) {
                self.fourier.forward(x.iter().zip(signs).map(|(x, sign)| x * sign), &mut of_x, &mut room);
                self.fourier.forward(dy.iter().copied(), &mut of_dy, &mut room);
                add_correlation(sums, &of_x, of_dy.iter().copied());
                let back = self.fourier.inverse(of_dy.iter().zip(of_r).map(|(dy, r)| r.conj() * dy), &mut room);
                dx.iter_mut().zip(back).zip(signs).for_each(|((dx, back), sign)| *dx += back * sign);
            }
        }
    }

    fn gradient(&self, sums: Vec<f32>) -> Vec<f32> {
        self.fourier.rows(&sums, self.inputs)
    }

    fn held(&self) -> usize {
        self.signs.len() + 2 * self.spectra.len()
    }
}
