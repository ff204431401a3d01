//! Toeplitz blocks within a block Toeplitz matrix.

use realfft::num_complex::Complex32;

use super::Operator;
use super::transform::{Fourier, add_correlation};

/// `y[i, k] = sum over j, l of t[i - j + p - 1, k - l + q - 1] x[j, l]` for images `[p, q]`. One transform of one dimension does it: rows lie so
/// far apart that none runs into the next, and of the `3 p - 2` rows of the full convolution those that wrap around are not looked at.
pub(super) struct TwoLevels {
    columns: usize,
    rows: usize,
    outputs: usize,
    fourier: Fourier,
    of_t: Vec<Complex32>,
}

impl TwoLevels {
    pub(super) fn new(inputs: usize, outputs: usize, columns: usize, t: &[f32]) -> Self {
        let rows = inputs / columns;
        let mut this = Self { columns, rows, outputs, fourier: Fourier::new(2 * rows * apart(columns)), of_t: Vec::new() };
        let kernels = t.chunks_exact((2 * rows - 1) * (2 * columns - 1));
        let kernels = kernels.flat_map(|kernel| this.spread(kernel, 2 * columns - 1, [0, 0])).collect::<Vec<_>>();
        this.of_t = this.fourier.spectra(&kernels, 2 * rows * apart(columns));
        this
    }

    /// An image of rows of this length in the places of the transform, `shift` down and to the right.
    fn spread(&self, image: &[f32], row: usize, [down, right]: [usize; 2]) -> Vec<f32> {
        let stride = apart(self.columns);
        let mut places = vec![0.0; 2 * self.rows * stride];
        for (number, row) in image.chunks(row).enumerate() {
            places[(down + number) * stride + right..][..row.len()].copy_from_slice(row);
        }
        places
    }

    /// From where the outputs lie in the transform.
    fn corner(&self) -> [usize; 2] {
        [self.rows - 1, self.columns - 1]
    }

    fn gather(&self, places: &[f32], [down, right]: [usize; 2], row: usize, image: &mut [f32]) {
        for (number, row) in image.chunks_mut(row).enumerate() {
            row.copy_from_slice(&places[(down + number) * apart(self.columns) + right..][..row.len()]);
        }
    }

    fn zeros(&self) -> Vec<Complex32> {
        vec![Complex32::default(); self.fourier.spectrum_len()]
    }
}

/// Distance of the rows: the length of a row of the full convolution.
fn apart(columns: usize) -> usize {
    3 * columns - 2
}

impl Operator for TwoLevels {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (mut room, mut of_x) = (self.fourier.room(), self.zeros());
        let inputs = self.rows * self.columns;
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(self.outputs)) {
            self.fourier.forward(self.spread(x, self.columns, [0, 0]).into_iter(), &mut of_x, &mut room);
            for (y, of_t) in y.chunks_mut(inputs).zip(self.of_t.chunks_exact(of_x.len())) {
                let places = self.fourier.inverse(of_x.iter().zip(of_t).map(|(x, t)| x * t), &mut room);
                self.gather(places, self.corner(), self.columns, y);
            }
        }
    }

    fn sums(&self) -> usize {
        2 * self.of_t.len()
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let (mut room, mut of_x, mut of_dy, mut of_dx) = (self.fourier.room(), self.zeros(), self.zeros(), self.zeros());
        let (inputs, len) = (self.rows * self.columns, of_x.len());
        let rows = x.chunks_exact(inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(inputs));
        for ((x, dy), dx) in rows {
            self.fourier.forward(self.spread(x, self.columns, [0, 0]).into_iter(), &mut of_x, &mut room);
            of_dx.fill(Complex32::default());
            for (block, dy) in dy.chunks(inputs).enumerate() {
                self.fourier.forward(self.spread(dy, self.columns, self.corner()).into_iter(), &mut of_dy, &mut room);
                add_correlation(&mut sums[2 * block * len..][..2 * len], &of_x, of_dy.iter().copied());
                let of_t = &self.of_t[block * len..][..len];
                of_dx.iter_mut().zip(&of_dy).zip(of_t).for_each(|((dx, dy), t)| *dx += t.conj() * dy);
            }
            let places = self.fourier.inverse(of_dx.iter().copied(), &mut room);
            self.gather(places, [0, 0], self.columns, dx);
        }
    }

    fn gradient(&self, sums: Vec<f32>) -> Vec<f32> {
        let (rows, columns) = (2 * self.rows - 1, 2 * self.columns - 1);
        let mut gradient = Vec::new();
        for places in
            self.fourier.rows(&sums, 2 * self.rows * apart(self.columns)).chunks_exact(2 * self.rows * apart(self.columns))
        {
            let mut kernel = vec![0.0; rows * columns];
            self.gather(places, [0, 0], columns, &mut kernel);
            gradient.extend(kernel);
        }
        gradient
    }

    fn held(&self) -> usize {
        self.sums()
    }
}
