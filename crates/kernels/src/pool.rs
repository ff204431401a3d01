//! Pooling of `[height, width, channels]` and its gradients.

// Results are not zeroed before they are written, and the loops read and write through pointers into slices whose lengths are checked.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::buffer::{Target, filled};
use crate::conv::{read, write};
use crate::lanes::{Isa, Lanes, Work};
use crate::{Error, Padding, count};

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
    /// Border on each side, less than the kernel.
    pub padding: Padding,
}

impl MaxPool2d {
    /// Height, width and channels of an output image.
    ///
    /// # Errors
    /// When the window does not fit.
    pub fn output(&self) -> Result<[usize; 3], Error> {
        let extent = |axis: usize| -> Option<usize> {
            let room = self.padding.around(axis, self.input[axis])?.checked_sub(self.kernel[axis])?;
            let reaches = self.padding.0[axis].iter().all(|border| *border < self.kernel[axis]);
            room.checked_div(self.stride[axis]).filter(|_| reaches)?.checked_add(1)
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
        let [input, len] = self.lengths()?;
        self.check(x.len(), input)?;
        let [rows, columns] = [self.windows(0, height), self.windows(1, width)];
        let run = |to: Target<'_>, taps: Target<'_>| {
            (0..self.batch * height).into_par_iter().for_each(|row| {
                let image = &x[row / height * self.input.iter().product::<usize>()..];
                let (first, rows) = (row * width * channels, rows[row % height]);
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
        let [input, len] = self.lengths()?;
        self.check(dy.len(), len)?;
        self.check(taps.len(), len)?;
        let [rows, columns] = [self.reaching(0, height), self.reaching(1, width)];
        let [in_height, in_width, _] = self.input;
        let run = |to: Target<'_>| {
            (0..self.batch * in_height).into_par_iter().for_each(|row| {
                let start = row / in_height * image;
                let (dy, taps) = (&dy[start..][..image], &taps[start..][..image]);
                let (first, rows) = (row * in_width * channels, rows[row % in_height]);
                Isa::of_this_machine().run(Winners { pool: self, dy, taps, width, rows, columns: &columns, first, to });
            });
        };
        // SAFETY: every row of every image is written, all pixels and channels of it.
        Ok(unsafe { filled(input, run) })
    }

    /// Values of the whole input and of the whole output.
    fn lengths(&self) -> Result<[usize; 2], Error> {
        let ([height, width, channels], [in_height, in_width, _]) = (self.output()?, self.input);
        Ok([count(&[self.batch, in_height, in_width, channels])?, count(&[self.batch, height, width, channels])?])
    }

    /// For each window, the rows or columns that are not padding.
    fn windows(&self, axis: usize, count: usize) -> Vec<Reached> {
        let of_window = |window: usize| {
            let start = window * self.stride[axis];
            let first = start.saturating_sub(self.padding.before(axis));
            let end = (start + self.kernel[axis]).saturating_sub(self.padding.before(axis)).min(self.input[axis]);
            Reached { first, end, tap: first + self.padding.before(axis) - start, step: 1 }
        };
        (0..count).map(of_window).collect()
    }

    /// For each row or column of the input, the windows that it lies in.
    fn reaching(&self, axis: usize, count: usize) -> Vec<Reached> {
        let (stride, kernel) = (self.stride[axis], self.kernel[axis]);
        let of_place = |place: usize| {
            let place = place + self.padding.before(axis);
            let first = (place + 1).saturating_sub(kernel).div_ceil(stride);
            let end = (place / stride + 1).min(count);
            let tap = if first < end { place - first * stride } else { 0 };
            Reached { first, end, tap, step: 0_isize.wrapping_sub_unsigned(stride) }
        };
        (0..self.input[axis]).map(of_place).collect()
    }

    fn check(&self, found: usize, wanted: usize) -> Result<(), Error> {
        if found == wanted { Ok(()) } else { Err(Error(format!("{found} values, {self:?} takes {wanted}"))) }
    }
}

/// Rows, columns or windows that follow each other, those from `first` to before `end`, and the taps that lie between them and what they are
/// seen from: those of the first, and `step` more from one to the next.
#[derive(Debug, Clone, Copy)]
struct Reached {
    first: usize,
    end: usize,
    tap: usize,
    step: isize,
}

impl Reached {
    /// Each place with its tap.
    #[inline(always)]
    fn each(self) -> impl Iterator<Item = (usize, usize)> {
        let Self { first, end, mut tap, step } = self;
        (first..end).map(move |place| {
            let of_place = tap;
            tap = tap.wrapping_add_signed(step);
            (place, of_place)
        })
    }
}

/// One row of windows.
struct Largest<'a> {
    pool: &'a MaxPool2d,
    image: &'a [f32],
    rows: Reached,
    columns: &'a [Reached],
    first: usize,
    to: Target<'a>,
    taps: Target<'a>,
}

impl Work for Largest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let [height, width, channels] = self.pool.input;
        assert!(self.image.len() >= height * width * channels, "the image ends too early");
        let inside = self.rows.end <= height && self.columns.iter().all(|columns| columns.end <= width);
        assert!(inside, "a window lies outside");
        let len = self.columns.len() * channels;
        let (to, taps) = (self.to.at(self.first, len), self.taps.at(self.first, len));
        for (pixel, columns) in self.columns.iter().enumerate() {
            let mut channel = 0;
            while channel < channels {
                let count = L::COUNT.min(channels - channel);
                let (mut best, mut at) = (L::splat(f32::NEG_INFINITY), L::splat(-1.0));
                for (row, tap_row) in self.rows.each() {
                    for (column, tap) in columns.each() {
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
    rows: Reached,
    columns: &'a [Reached],
    first: usize,
    to: Target<'a>,
}

impl Work for Winners<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let channels = self.pool.input[2];
        let reach = self.rows.end * self.width * channels;
        let across = self.columns.iter().all(|columns| columns.end <= self.width);
        assert!(reach <= self.dy.len() && reach <= self.taps.len() && across, "a window lies outside");
        let to = self.to.at(self.first, self.columns.len() * channels);
        for (pixel, columns) in self.columns.iter().enumerate() {
            let mut channel = 0;
            while channel < channels {
                let count = L::COUNT.min(channels - channel);
                let mut sum = L::splat(0.0);
                for (row, tap_row) in self.rows.each() {
                    for (column, tap) in columns.each() {
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
    ///
    /// # Errors
    /// Without a stride, and for more channels than can be counted.
    pub fn output(&self) -> Result<[usize; 3], Error> {
        let [height, width, channels] = self.input;
        let channels = self.before.checked_add(channels).and_then(|channels| channels.checked_add(self.after));
        match channels.filter(|_| self.stride > 0) {
            Some(channels) => Ok([height.div_ceil(self.stride), width.div_ceil(self.stride), channels]),
            None => Err(Error(format!("no such images: {self:?}"))),
        }
    }

    /// The images that stay.
    ///
    /// # Errors
    /// When the slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32]) -> Result<Vec<f32>, Error> {
        self.check(x.len(), self.input)?;
        let [rows, width, out] = self.output()?;
        let mut y = vec![0.0; count(&[self.batch, rows, width, out])?];
        y.par_chunks_mut(width * out).enumerate().for_each(|(row, y)| {
            let x = &x[self.source(rows, row)..];
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
        let [height, width, out] = self.output()?;
        self.check(dy.len(), [height, width, out])?;
        let [in_height, in_width, channels] = self.input;
        let mut dx = vec![0.0; count(&[self.batch, in_height, in_width, channels])?];
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

    /// Where the source of an output row begins, of which an image has `rows`.
    fn source(&self, rows: usize, row: usize) -> usize {
        let [height, width, channels] = self.input;
        (row / rows * height + row % rows * self.stride) * width * channels
    }

    fn check(&self, found: usize, image: [usize; 3]) -> Result<(), Error> {
        let [height, width, channels] = image;
        let wanted = count(&[self.batch, height, width, channels])?;
        if found == wanted { Ok(()) } else { Err(Error(format!("{found} values, {self:?} takes {wanted}"))) }
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
            let ([height, width], kernel, stride) = (pair(1, 9), pair(1, 5), pair(1, 4));
            let padding = Padding(kernel.map(|side| pair(0, 4).map(|border| border % side)));
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
                        let row = (r * stride[0] + kh).wrapping_sub(padding.before(0));
                        let column = (c * stride[1] + kw).wrapping_sub(padding.before(1));
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
        let pool = MaxPool2d { batch: 1, input: [2, 2, 1], kernel: [2, 2], stride: [2, 2], padding: Padding::NONE };
        let (y, taps) = pool.forward(&[1.0, f32::NAN, 3.0, 2.0]).unwrap();
        assert!(y[0].is_nan() || taps[0] == 1.0, "{y:?} {taps:?}");
        assert!(pool.forward(&[0.0; 3]).unwrap_err().to_string().contains("3 values"));
        assert!(MaxPool2d { padding: Padding([[0, 2], [0, 0]]), ..pool }.output().is_err());
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
        assert_eq!(shortcut.output().unwrap(), [3, 2, 6]);
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
