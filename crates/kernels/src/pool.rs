//! Pooling of `[height, width, channels]` and its gradients.

// Results are not zeroed before they are written, and the loops read and write through pointers into slices whose lengths are checked.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::Error;
use crate::buffer::{Target, filled};
use crate::conv::{read, write};
use crate::lanes::{Isa, Lanes, Work};

/// Max pooling of images of `[height, width, channels]`; padding never wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPool2d {
    /// Number of images.
    pub batch: usize,
    /// Height, width and channels of an image.
    pub input: [usize; 3],
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Border on both sides, less than the kernel.
    pub padding: [usize; 2],
}

impl MaxPool2d {
    /// Height, width and channels of an output image.
    ///
    /// # Errors
    /// When the window does not fit.
    pub fn output(&self) -> Result<[usize; 3], Error> {
        let extent = |axis: usize| -> Option<usize> {
            let room = (self.input[axis] + 2 * self.padding[axis]).checked_sub(self.kernel[axis])?;
            room.checked_div(self.stride[axis]).filter(|_| self.padding[axis] < self.kernel[axis]).map(|steps| steps + 1)
        };
        match (extent(0), extent(1)) {
            (Some(height), Some(width)) => Ok([height, width, self.input[2]]),
            _ => Err(Error(format!("the window does not fit: {self:?}"))),
        }
    }

    /// The largest value of each window, and which tap of the window it was, as a number of the same kind so that vectors compare it. Of
    /// equals the first, and NaN is larger than any number.
    ///
    /// # Errors
    /// When the slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32]) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let [height, width, channels] = self.output()?;
        self.check(x.len(), self.batch * self.input.iter().product::<usize>())?;
        let [rows, columns] = [self.windows(0, height), self.windows(1, width)];
        let len = self.batch * height * width * channels;
        let run = |to: Target, taps: Target| {
            (0..self.batch * height).into_par_iter().for_each(|row| {
                let image = &x[row / height * self.input.iter().product::<usize>()..];
                let (first, rows) = (row * width * channels, &rows[row % height]);
                Isa::of_this_machine().run(Largest { pool: self, image, rows, columns: &columns, first, to, taps });
            });
        };
        let mut y = Vec::new();
        // SAFETY: every row of every image is written, all pixels and channels of it.
        let taps = unsafe { filled(len, |taps| y = filled(len, |to| run(to, taps))) };
        Ok((y, taps))
    }

    /// The gradient by the input, from the taps that won.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn gradient(&self, dy: &[f32], taps: &[f32]) -> Result<Vec<f32>, Error> {
        let [height, width, channels] = self.output()?;
        let image = height * width * channels;
        self.check(dy.len(), self.batch * image)?;
        self.check(taps.len(), self.batch * image)?;
        let [rows, columns] = [self.reaching(0, height), self.reaching(1, width)];
        let [in_height, in_width, _] = self.input;
        let run = |to: Target| {
            (0..self.batch * in_height).into_par_iter().for_each(|row| {
                let start = row / in_height * image;
                let (dy, taps) = (&dy[start..][..image], &taps[start..][..image]);
                let (first, rows) = (row * in_width * channels, &rows[row % in_height]);
                Isa::of_this_machine().run(Winners { pool: self, dy, taps, width, rows, columns: &columns, first, to });
            });
        };
        // SAFETY: every row of every image is written, all pixels and channels of it.
        Ok(unsafe { filled(self.batch * in_height * in_width * channels, run) })
    }

    /// For each window, the rows or columns that are not padding, each with its tap.
    fn windows(&self, axis: usize, count: usize) -> Vec<Vec<(usize, usize)>> {
        let reached = |window: usize, tap: usize| (window * self.stride[axis] + tap).checked_sub(self.padding[axis]);
        let of_window = |window: usize| {
            let taps = (0..self.kernel[axis]).filter_map(|tap| Some((reached(window, tap)?, tap)));
            taps.filter(|(row, _)| *row < self.input[axis]).collect()
        };
        (0..count).map(of_window).collect()
    }

    /// For each row or column of the input, the windows that it lies in, each with its tap.
    fn reaching(&self, axis: usize, count: usize) -> Vec<Vec<(usize, usize)>> {
        let mut reaching = vec![Vec::new(); self.input[axis]];
        for (window, rows) in self.windows(axis, count).into_iter().enumerate() {
            rows.into_iter().for_each(|(row, tap)| reaching[row].push((window, tap)));
        }
        reaching
    }

    fn check(&self, found: usize, wanted: usize) -> Result<(), Error> {
        if found == wanted { Ok(()) } else { Err(Error(format!("{found} values, {self:?} takes {wanted}"))) }
    }
}

/// One row of windows.
struct Largest<'a> {
    pool: &'a MaxPool2d,
    image: &'a [f32],
    rows: &'a [(usize, usize)],
    columns: &'a [Vec<(usize, usize)>],
    first: usize,
    to: Target,
    taps: Target,
}

impl Work for Largest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let [height, width, channels] = self.pool.input;
        assert!(self.image.len() >= height * width * channels, "the image ends too early");
        let len = self.columns.len() * channels;
        let (to, taps) = (self.to.at(self.first, len), self.taps.at(self.first, len));
        for (pixel, columns) in self.columns.iter().enumerate() {
            let mut channel = 0;
            while channel < channels {
                let count = L::COUNT.min(channels - channel);
                let (mut best, mut at) = (L::splat(f32::NEG_INFINITY), L::splat(-1.0));
                for (row, tap_row) in self.rows {
                    for (column, tap) in columns {
                        let start = (row * width + column) * channels + channel;
                        // SAFETY: rows and columns are those of the image, whose length was checked.
                        let [x]: [L; 1] = unsafe { read(self.image.as_ptr().add(start), count) };
                        let tap = L::splat((tap_row * self.pool.kernel[1] + tap) as f32);
                        // Larger than the best, or NaN, or the first of the window.
                        at =
                            x.choose_if_larger(best, tap, x.choose_if_equal(x, L::splat(0.0).choose_if_larger(at, tap, at), tap));
                        best = x.choose_if_larger(best, x, x.choose_if_equal(x, best, x));
                    }
                }
                // SAFETY: the row has room for its pixels' channels.
                unsafe {
                    write(to.add(pixel * channels + channel), count, [best]);
                    write(taps.add(pixel * channels + channel), count, [at]);
                }
                channel += count;
            }
        }
    }
}

/// One row of the gradient by the input.
struct Winners<'a> {
    pool: &'a MaxPool2d,
    dy: &'a [f32],
    taps: &'a [f32],
    width: usize,
    rows: &'a [(usize, usize)],
    columns: &'a [Vec<(usize, usize)>],
    first: usize,
    to: Target,
}

impl Work for Winners<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let channels = self.pool.input[2];
        let reach = self.rows.iter().map(|(row, _)| (row + 1) * self.width * channels).max().unwrap_or(0);
        let across = self.columns.iter().flatten().all(|(column, _)| *column < self.width);
        assert!(reach <= self.dy.len() && reach <= self.taps.len() && across, "a window lies outside");
        let to = self.to.at(self.first, self.columns.len() * channels);
        for (pixel, columns) in self.columns.iter().enumerate() {
            let mut channel = 0;
            while channel < channels {
                let count = L::COUNT.min(channels - channel);
                let mut sum = L::splat(0.0);
                for (row, tap_row) in self.rows {
                    for (column, tap) in columns {
                        let start = (row * self.width + column) * channels + channel;
                        // SAFETY: rows and columns were checked above.
                        let ([dy], [at]): ([L; 1], [L; 1]) =
                            unsafe { (read(self.dy.as_ptr().add(start), count), read(self.taps.as_ptr().add(start), count)) };
                        let tap = L::splat((tap_row * self.pool.kernel[1] + tap) as f32);
                        sum = sum.add(at.choose_if_equal(tap, dy, L::splat(0.0)));
                    }
                }
                // SAFETY: the row has room for its pixels' channels.
                unsafe { write(to.add(pixel * channels + channel), count, [sum]) };
                channel += count;
            }
        }
    }
}

/// The mean of each channel over the pixels of each image: `[batch, pixels, channels]` to `[batch, channels]`.
///
/// # Panics
/// If `x` does not hold whole images.
pub fn channel_means(x: &[f32], pixels: usize, channels: usize) -> Vec<f32> {
    let image = pixels * channels;
    assert!(image > 0 && x.len().is_multiple_of(image), "{} values are no images of {pixels} by {channels}", x.len());
    let mut y = vec![0.0; x.len() / pixels];
    y.par_chunks_mut(channels).zip(x.par_chunks(image)).for_each(|(y, x)| {
        x.chunks_exact(channels).for_each(|x| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
        y.iter_mut().for_each(|y| *y /= pixels as f32);
    });
    y
}

/// The gradient of [`channel_means`] by its input.
///
/// # Panics
/// If `dy` does not hold whole rows.
pub fn channel_means_gradient(dy: &[f32], pixels: usize, channels: usize) -> Vec<f32> {
    assert!(channels > 0 && dy.len().is_multiple_of(channels), "{} values are no rows of {channels}", dy.len());
    let rows =
        dy.par_chunks(channels).flat_map_iter(|dy| (0..pixels).flat_map(move |_| dy.iter().map(move |dy| dy / pixels as f32)));
    rows.collect()
}

/// Every `stride`-th row and column of images, between `before` and `after` channels of zeros: the parameter-free shortcut of residual
/// networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PadShortcut {
    /// Number of images.
    pub batch: usize,
    /// Height, width and channels of an image.
    pub input: [usize; 3],
    /// Step between rows and columns that stay.
    pub stride: usize,
    /// Zero channels in front.
    pub before: usize,
    /// Zero channels behind.
    pub after: usize,
}

impl PadShortcut {
    /// Height, width and channels of an output image.
    pub fn output(&self) -> [usize; 3] {
        let [height, width, channels] = self.input;
        [height.div_ceil(self.stride), width.div_ceil(self.stride), self.before + channels + self.after]
    }

    /// The images that stay.
    ///
    /// # Errors
    /// When the slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32]) -> Result<Vec<f32>, Error> {
        self.check(x.len(), self.input)?;
        let [_, width, out] = self.output();
        let mut y = vec![0.0; self.batch * self.output().iter().product::<usize>()];
        y.par_chunks_mut(width * out).enumerate().for_each(|(row, y)| {
            let x = &x[self.source(row)..];
            for (y, x) in y.chunks_exact_mut(out).zip(x.chunks(self.stride * self.input[2])) {
                y[self.before..][..self.input[2]].copy_from_slice(&x[..self.input[2]]);
            }
        });
        Ok(y)
    }

    /// The gradient by the input.
    ///
    /// # Errors
    /// When the slice has not the length that the shapes ask for.
    pub fn gradient(&self, dy: &[f32]) -> Result<Vec<f32>, Error> {
        let [height, width, out] = self.output();
        self.check(dy.len(), self.output())?;
        let [in_height, in_width, channels] = self.input;
        let mut dx = vec![0.0; self.batch * in_height * in_width * channels];
        dx.par_chunks_mut(in_width * channels).enumerate().for_each(|(row, dx)| {
            let (image, row) = (row / in_height, row % in_height);
            if row.is_multiple_of(self.stride) {
                let dy = &dy[(image * height + row / self.stride) * width * out..][..width * out];
                for (dx, dy) in dx.chunks_mut(self.stride * channels).zip(dy.chunks_exact(out)) {
                    dx[..channels].copy_from_slice(&dy[self.before..][..channels]);
                }
            }
        });
        Ok(dx)
    }

    /// Where the source of an output row begins.
    fn source(&self, row: usize) -> usize {
        let [height, width, channels] = self.input;
        let rows = self.output()[0];
        (row / rows * height + row % rows * self.stride) * width * channels
    }

    fn check(&self, found: usize, image: [usize; 3]) -> Result<(), Error> {
        let wanted = self.batch * image.iter().product::<usize>();
        if found == wanted && self.stride > 0 { Ok(()) } else { Err(Error(format!("{found} values, {self:?} takes {wanted}"))) }
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
        for _ in 0..1500 {
            let mut pair = |low: usize, high: usize| [rng.random_range(low..high), rng.random_range(low..high)];
            let ([height, width], kernel, stride, padding) = (pair(1, 9), pair(1, 5), pair(1, 4), pair(0, 3));
            let channels = [1, 3, 8, 19][rng.random_range(0..4)];
            let pool = MaxPool2d { batch: rng.random_range(0..4), input: [height, width, channels], kernel, stride, padding };
            let Ok(out) = pool.output() else { continue };
            tried += 1;
            // Few different values make equals, of which the first wins.
            let mut noise = |count: usize| (0..count).map(|_| f32::from(rng.random_range(-3..3_i8))).collect::<Vec<f32>>();
            let (mut x, dy) = (noise(pool.batch * height * width * channels), noise(pool.batch * out.iter().product::<usize>()));
            x.iter_mut().step_by(37).for_each(|x| *x = f32::NEG_INFINITY);
            let (y, taps) = pool.forward(&x).unwrap();
            let dx = pool.gradient(&dy, &taps).unwrap();
            let mut expected_dx = vec![0.0; x.len()];
            for (i, y) in y.iter().enumerate() {
                let (image, r, c, channel) =
                    (i / out.iter().product::<usize>(), i / (out[1] * channels) % out[0], i / channels % out[1], i % channels);
                let mut best: Option<(f32, usize)> = None;
                for kh in 0..kernel[0] {
                    for kw in 0..kernel[1] {
                        let row = (r * stride[0] + kh).wrapping_sub(padding[0]);
                        let column = (c * stride[1] + kw).wrapping_sub(padding[1]);
                        if row < height && column < width {
                            let at = ((image * height + row) * width + column) * channels + channel;
                            if best.is_none_or(|(best, _)| x[at] > best) {
                                best = Some((x[at], at));
                            }
                        }
                    }
                }
                let (best, at) = best.expect("a window is never padding alone");
                assert_eq!(*y, best, "{pool:?}");
                expected_dx[at] += dy[i];
            }
            assert_eq!(dx, expected_dx, "{pool:?}");
        }
        assert!(tried >= 500, "{tried}");
    }

    #[test]
    fn nan_is_larger_than_any_number() {
        let pool = MaxPool2d { batch: 1, input: [2, 2, 1], kernel: [2, 2], stride: [2, 2], padding: [0, 0] };
        let (y, taps) = pool.forward(&[1.0, f32::NAN, 3.0, 2.0]).unwrap();
        assert!(y[0].is_nan() || taps[0] == 1.0, "{y:?} {taps:?}");
        assert!(pool.forward(&[0.0; 3]).unwrap_err().to_string().contains("3 values"));
        assert!(MaxPool2d { padding: [2, 2], ..pool }.output().is_err());
    }

    #[test]
    fn means_and_shortcuts_have_the_gradients_of_their_definition() {
        let x: Vec<f32> = (0..2 * 5 * 4 * 3).map(|i| ((i * 37) % 23) as f32 - 11.0).collect();
        let means = channel_means(&x, 20, 3);
        assert!((means[4] - x[60..].iter().skip(1).step_by(3).sum::<f32>() / 20.0).abs() < 1e-5);
        let dy = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let dx = channel_means_gradient(&dy, 20, 3);
        assert!(dx.len() == x.len() && dx[61] == 5.0 / 20.0);

        let shortcut = PadShortcut { batch: 2, input: [5, 4, 3], stride: 2, before: 1, after: 2 };
        assert_eq!(shortcut.output(), [3, 2, 6]);
        let y = shortcut.forward(&x).unwrap();
        let place = |n: usize, r: usize, c: usize, f: usize| ((n * 3 + r) * 2 + c) * 6 + f;
        assert_eq!(y[place(1, 2, 1, 1 + 2)], x[((5 + 4) * 4 + 2) * 3 + 2]);
        assert!(y[place(1, 2, 1, 0)] == 0.0 && y[place(1, 2, 1, 4)] == 0.0);
        let dy: Vec<f32> = (0..y.len()).map(|i| i as f32).collect();
        let dx = shortcut.gradient(&dy).unwrap();
        let (forward, backward): (f32, f32) =
            (y.iter().zip(&dy).map(|(a, b)| a * b).sum(), x.iter().zip(&dx).map(|(a, b)| a * b).sum());
        assert_eq!(forward, backward);
    }
}
