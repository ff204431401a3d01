//! Blocks of low displacement rank.

use realfft::num_complex::Complex32;

use super::Operator;
use super::transform::{Fourier, add_correlation};

/// `y_b = 1/2 sum_j Z_1(g_j) Z_-1(h_j) x`. The skew-circulant product is `t = c_low - c_high` with both halves of the full convolution `c`
/// of `h` and `x`, by a transform of twice the size; the circulant one is a product of spectra, so that the sum needs one way back.
pub(super) struct ToeplitzLike {
    inputs: usize,
    outputs: usize,
    rank: usize,
    single: Fourier,
    double: Fourier,
    of_g: Vec<Complex32>,
    of_h: Vec<Complex32>,
}

impl ToeplitzLike {
    pub(super) fn new(inputs: usize, outputs: usize, rank: usize, [g, h]: [&[f32]; 2]) -> Self {
        let (single, double) = (Fourier::new(inputs), Fourier::new(2 * inputs));
        let (of_g, of_h) = (single.spectra(g, inputs), double.spectra(h, inputs));
        Self { inputs, outputs, rank, single, double, of_g, of_h }
    }

    /// The spectra of the terms of each block.
    fn terms(&self, block: usize) -> impl Iterator<Item = (usize, &[Complex32], &[Complex32])> {
        let (single, double) = (self.single.spectrum_len(), self.double.spectrum_len());
        let numbers = block * self.rank..(block + 1) * self.rank;
        numbers.map(move |j| (j, &self.of_g[j * single..][..single], &self.of_h[j * double..][..double]))
    }
}

impl Operator for ToeplitzLike {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let zeros = |fourier: &Fourier| vec![Complex32::default(); fourier.spectrum_len()];
        let (mut single, mut double) = (self.single.room(), self.double.room());
        let (mut of_x, mut of_t, mut of_y) = (zeros(&self.double), zeros(&self.single), zeros(&self.single));
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            self.double.forward(x.iter().copied(), &mut of_x, &mut double);
            for (block, y) in y.chunks_mut(self.inputs).enumerate() {
                of_y.fill(Complex32::default());
                for (_, of_g, of_h) in self.terms(block) {
                    let c = self.double.inverse(of_x.iter().zip(of_h).map(|(x, h)| x * h), &mut double);
                    let (low, high) = c.split_at(self.inputs);
                    self.single.forward(low.iter().zip(high).map(|(a, b)| a - b), &mut of_t, &mut single);
                    of_y.iter_mut().zip(&of_t).zip(of_g).for_each(|((y, t), g)| *y += t * g * 0.5);
                }
                let product = self.single.inverse(of_y.iter().copied(), &mut single);
                y.copy_from_slice(&product[..y.len()]);
            }
        }
    }

    fn sums(&self) -> usize {
        2 * (self.of_g.len() + self.of_h.len())
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let zeros = |fourier: &Fourier| vec![Complex32::default(); fourier.spectrum_len()];
        let (len, long) = (self.single.spectrum_len(), self.double.spectrum_len());
        let (mut single, mut double) = (self.single.room(), self.double.room());
        let (mut of_x, mut of_dc, mut of_dx) = (zeros(&self.double), zeros(&self.double), zeros(&self.double));
        let (mut of_t, mut of_dy) = (zeros(&self.single), zeros(&self.single));
        let (dg, dh) = sums.split_at_mut(2 * self.of_g.len());
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(self.inputs));
        for ((x, dy), dx) in rows {
            self.double.forward(x.iter().copied(), &mut of_x, &mut double);
            of_dx.fill(Complex32::default());
            for (block, dy) in dy.chunks(self.inputs).enumerate() {
                self.single.forward(dy.iter().map(|dy| 0.5 * dy), &mut of_dy, &mut single);
                for (j, of_g, of_h) in self.terms(block) {
                    let c = self.double.inverse(of_x.iter().zip(of_h).map(|(x, h)| x * h), &mut double);
                    let (low, high) = c.split_at(self.inputs);
                    self.single.forward(low.iter().zip(high).map(|(a, b)| a - b), &mut of_t, &mut single);
                    add_correlation(&mut dg[2 * j * len..][..2 * len], &of_t, of_dy.iter().copied());
                    let dt = self.single.inverse(of_dy.iter().zip(of_g).map(|(dy, g)| g.conj() * dy), &mut single);
                    let dc = dt.iter().copied().chain(dt.iter().map(|dt| -dt));
                    self.double.forward(dc, &mut of_dc, &mut double);
                    add_correlation(&mut dh[2 * j * long..][..2 * long], &of_x, of_dc.iter().copied());
                    of_dx.iter_mut().zip(&of_dc).zip(of_h).for_each(|((dx, dc), h)| *dx += h.conj() * dc);
                }
            }
            let back = self.double.inverse(of_dx.iter().copied(), &mut double);
            dx.copy_from_slice(&back[..self.inputs]);
        }
    }

    fn gradient(&self, sums: Vec<f32>) -> Vec<f32> {
        let (dg, dh) = sums.split_at(2 * self.of_g.len());
        [self.single.rows(dg, self.inputs), self.double.rows(dh, self.inputs)].concat()
    }

    fn held(&self) -> usize {
        self.sums()
    }
}
