//! Max pooling and its gradient.

use rayon::prelude::*;

use crate::Error;

/// Max pooling of planes of `[height, width]`; padding never wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPool2d {
    /// Height and width of a plane.
    pub input: [usize; 2],
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Border on both sides, less than the kernel.
    pub padding: [usize; 2],
}

impl MaxPool2d {
    /// Height and width of an output plane.
    ///
    /// # Errors
    /// When the window does not fit.
    pub fn output(&self) -> Result<[usize; 2], Error> {
        let extent = |axis: usize| -> Option<usize> {
            let room = (self.input[axis] + 2 * self.padding[axis]).checked_sub(self.kernel[axis])?;
            room.checked_div(self.stride[axis]).filter(|_| self.padding[axis] < self.kernel[axis]).map(|steps| steps + 1)
        };
        match (extent(0), extent(1)) {
            (Some(height), Some(width)) => Ok([height, width]),
            _ => Err(Error(format!("the window does not fit: {self:?}"))),
        }
    }

    /// The largest value of each window and its place within the plane; of equals the first, and NaN is larger than any number.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32], y: &mut [f32], places: &mut [u32]) -> Result<(), Error> {
        let [height, width] = self.output()?;
        let (plane_x, plane_y) = (self.input[0] * self.input[1], height * width);
        if x.len() / plane_x != y.len() / plane_y || y.len() != places.len() || x.len() % plane_x + y.len() % plane_y != 0 {
            return Err(Error(format!("{} values do not pool to {} by {self:?}", x.len(), y.len())));
        }
        let spans = [0, 1].map(|axis| self.spans(axis, [height, width][axis]));
        let planes = y.par_chunks_mut(plane_y).zip(places.par_chunks_mut(plane_y)).zip(x.par_chunks(plane_x));
        planes.for_each(|((y, places), x)| {
            let windows = spans[0].iter().flat_map(|rows| spans[1].iter().map(move |columns| (rows, columns)));
            for ((y, place), (rows, columns)) in y.iter_mut().zip(places).zip(windows) {
                let (mut best, mut at) = (f32::NEG_INFINITY, rows.start * self.input[1] + columns.start);
                for row in rows.clone() {
                    let start = row * self.input[1] + columns.start;
                    for (offset, value) in x[start..][..columns.len()].iter().enumerate() {
                        if *value > best || value.is_nan() {
                            (best, at) = (*value, start + offset);
                        }
                    }
                }
                // A window of nothing but negative infinities keeps its first place.
                (*y, *place) = (best, at as u32);
            }
        });
        Ok(())
    }

    /// The gradient by the input, from the places of the largest values.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for, or a place lies outside its plane.
    pub fn gradient(&self, dy: &[f32], places: &[u32], dx: &mut [f32]) -> Result<(), Error> {
        let [height, width] = self.output()?;
        let (plane_x, plane_y) = (self.input[0] * self.input[1], height * width);
        let outside = places.iter().any(|place| *place as usize >= plane_x);
        if outside || dy.len() != places.len() || dx.len() / plane_x != dy.len() / plane_y {
            return Err(Error(format!("{} gradients do not go back to {} values by {self:?}", dy.len(), dx.len())));
        }
        dx.par_chunks_mut(plane_x).zip(dy.par_chunks(plane_y)).zip(places.par_chunks(plane_y)).for_each(|((dx, dy), places)| {
            dx.fill(0.0);
            dy.iter().zip(places).for_each(|(dy, place)| dx[*place as usize] += dy);
        });
        Ok(())
    }

    /// The rows or columns of each window that are not padding.
    fn spans(&self, axis: usize, count: usize) -> Vec<std::ops::Range<usize>> {
        let start = |index: usize| (index * self.stride[axis]).saturating_sub(self.padding[axis]);
        let end = |index: usize| (index * self.stride[axis] + self.kernel[axis] - self.padding[axis]).min(self.input[axis]);
        (0..count).map(|index| start(index)..end(index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn the_largest_wins_and_gets_the_gradient() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let mut tried = 0;
        for _ in 0..700 {
            let mut pair = |low: usize, high: usize| [rng.random_range(low..high), rng.random_range(low..high)];
            let pool = MaxPool2d { input: pair(1, 9), kernel: pair(1, 5), stride: pair(1, 4), padding: pair(0, 3) };
            let Ok([height, width]) = pool.output() else { continue };
            tried += 1;
            let planes = rng.random_range(0..4);
            let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (x, dy) = (noise(planes * pool.input[0] * pool.input[1]), noise(planes * height * width));
            let (mut y, mut places, mut dx) = (dy.clone(), vec![0; dy.len()], x.clone());
            pool.forward(&x, &mut y, &mut places).unwrap();
            pool.gradient(&dy, &places, &mut dx).unwrap();
            let mut expected_dx = vec![0.0; x.len()];
            for (i, y) in y.iter().enumerate() {
                let (plane, r, c) = (i / (height * width), i / width % height, i % width);
                let mut best = (f32::NEG_INFINITY, 0);
                for kh in 0..pool.kernel[0] {
                    for kw in 0..pool.kernel[1] {
                        let row = (r * pool.stride[0] + kh).wrapping_sub(pool.padding[0]);
                        let column = (c * pool.stride[1] + kw).wrapping_sub(pool.padding[1]);
                        if row < pool.input[0] && column < pool.input[1] {
                            let at = (plane * pool.input[0] + row) * pool.input[1] + column;
                            best = if x[at] > best.0 { (x[at], at) } else { best };
                        }
                    }
                }
                assert_eq!(*y, best.0, "{pool:?}");
                expected_dx[best.1] += dy[i];
            }
            assert_eq!(dx, expected_dx, "{pool:?}");
        }
        assert!(tried > 300);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let pool = MaxPool2d { input: [4, 4], kernel: [2, 2], stride: [2, 2], padding: [0, 0] };
        assert!(pool.forward(&[0.0; 16], &mut [0.0; 8], &mut [0; 8]).is_err());
        assert!(pool.gradient(&[0.0; 4], &[16; 4], &mut [0.0; 16]).is_err());
        assert!(
            MaxPool2d { padding: [2, 0], ..pool }.output().is_err() && MaxPool2d { stride: [0, 2], ..pool }.output().is_err()
        );
    }
}
