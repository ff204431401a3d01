//! Convolutions of few weights: each weight is multiplied with a line of pixels at a time.
//!
//! Maps lie channels first, `[channels, height, width]`. They are copied into planes with their padding, one for each remainder of rows and of columns modulo
//! the stride, so that the next pixel of an output is the next one in a plane whatever the stride. The output is computed as one line
//! over rows of that width, of which those that end a row and begin the next are left out:
//!
//! `line[p] = sum over weights of weight * planes[offset + p]`, eight vectors of pixels in registers for all weights of a filter.
//!
//! Elsen, Dukhan, Gale, Simonyan. "Fast Sparse ConvNets". CVPR 2020. arXiv:1911.09723, for pixels in lanes and weights one after the other.

// The loops read through pointers whose farthest reach is checked before they begin.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::conv::{Conv2d, Epilogue};
use crate::lanes::{Isa, Lanes, Work};
use crate::{Error, count};

/// A convolution whose zeros are left out.
#[derive(Debug)]
pub struct Sparse {
    conv: Conv2d,
    /// Height and width of the output.
    out: [usize; 2],
    /// Height and width of a plane.
    plane: [usize; 2],
    isa: Isa,
    /// Of each filter, where its weights begin; and where the last one's end.
    starts: Vec<usize>,
    /// What a weight multiplies first.
    offsets: Vec<u32>,
    weights: Vec<f32>,
}

/// Vectors of pixels in registers.
const VECTORS: usize = 8;

/// Values that planes may have beside two for each of the image.
const MOST: usize = 1 << 20;

/// Floats of the longest vector: a line may be read so far beyond its end.
const LONGEST: usize = 16;

impl Sparse {
    /// Of the weights `[filters, channels / groups, kh, kw]`; the number of images is each run's own.
    ///
    /// # Errors
    /// When they have not the length that the shapes ask for, or planes would have many times the values of the image.
    pub fn new(conv: Conv2d, w: &[f32]) -> Result<Self, Error> {
        Self::new_on(Isa::of_this_machine(), conv, w)
    }

    fn new_on(isa: Isa, conv: Conv2d, w: &[f32]) -> Result<Self, Error> {
        let conv = Conv2d { batch: 1, ..conv };
        let ([image, weights, _], [height, width, _]) = (conv.sizes()?, conv.output()?);
        if w.len() != weights {
            return Err(Error(format!("{} weights, {conv:?} takes {weights}", w.len())));
        }
        let side = |axis: usize| {
            let around = conv.padding.around(axis, conv.input[axis]);
            around
                .map(|size| size.div_ceil(conv.stride[axis]))
                .ok_or_else(|| Error(format!("the padding is too large: {conv:?}")))
        };
        let plane = [side(0)?, side(1)?];
        let area = count(&plane)?;
        let planes = count(&[area, conv.stride[0], conv.stride[1], conv.input[2]])?;
        if planes > MOST + 2 * image || u32::try_from(planes + VECTORS * LONGEST).is_err() {
            return Err(Error(format!("an image of {image} values takes planes of {planes} with its padding: {conv:?}")));
        }
        let [kernel_height, kernel_width] = conv.kernel;
        let (fan_in, each) = (conv.input[2] / conv.groups, conv.filters / conv.groups);
        let mut made = Self { conv, out: [height, width], plane, isa, starts: vec![0], offsets: Vec::new(), weights: Vec::new() };
        for (filter, taps) in w.chunks_exact((fan_in * kernel_height * kernel_width).max(1)).enumerate() {
            for (tap, weight) in taps.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                let (channel, row, column) =
                    (tap / (kernel_height * kernel_width), tap / kernel_width % kernel_height, tap % kernel_width);
                let [row, column] = [row * conv.dilation[0], column * conv.dilation[1]];
                let plane_of_tap = made.plane_of(filter / each * fan_in + channel, row, column);
                made.offsets.push((plane_of_tap * area + row / conv.stride[0] * plane[1] + column / conv.stride[1]) as u32);
                made.weights.push(*weight);
            }
            made.starts.push(made.weights.len());
        }
        Ok(made)
    }

    /// The plane that has this row and column of a channel's padded map.
    fn plane_of(&self, channel: usize, row: usize, column: usize) -> usize {
        let [down, across] = self.conv.stride;
        (channel * down + row % down) * across + column % across
    }

    /// Bytes of the weights as they lie in memory.
    pub fn bytes(&self) -> usize {
        8 * self.starts.len() + 8 * self.weights.len()
    }

    /// Multiplies the weights of each filter by its factor.
    ///
    /// # Panics
    /// If there is not one for each filter.
    pub fn scale_filters(&mut self, factors: &[f32]) {
        assert_eq!(factors.len(), self.conv.filters, "a factor for each filter");
        for (ends, factor) in self.starts.windows(2).zip(factors) {
            self.weights[ends[0]..ends[1]].iter_mut().for_each(|weight| *weight *= factor);
        }
    }

    /// `y = x * w`, and what the epilogue makes of it: `[batch, filters, height, width]` from `[batch, channels, height, width]`. The caller's thread does it
    /// all, or, `parallel`, those of the rayon pool that it is in; the results are the same.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32], epilogue: &Epilogue<'_>, y: &mut [f32], parallel: bool) -> Result<(), Error> {
        let [image, _, map] = self.conv.sizes()?;
        let batch = y.len().checked_div(map).unwrap_or(0);
        if x.len() != count(&[batch, image])? || y.len() != batch * map {
            return Err(Error(format!("input and output have {} and {} values, {:?}", x.len(), y.len(), self.conv)));
        }
        epilogue.check(self.conv.filters, y.len())?;
        let pixels = map / self.conv.filters.max(1);
        let filter = |scratch: &mut Vec<f32>, planes: &[f32], number: usize, y: &mut [f32]| {
            let filter = number % self.conv.filters;
            let of_filter = self.starts[filter]..self.starts[filter + 1];
            self.isa.run(Line {
                planes,
                offsets: &self.offsets[of_filter.clone()],
                weights: &self.weights[of_filter],
                scale: epilogue.scale.map_or(1.0, |scale| scale[filter]),
                bias: epilogue.bias.map_or(0.0, |bias| bias[filter]),
                residual: epilogue.residual.map(|residual| &residual[number * pixels..][..pixels]),
                rectify: epilogue.rectify,
                out: self.out,
                width: self.plane[1],
                line: scratch,
                y,
            });
        };
        if parallel && batch == 1 {
            let mut planes = Vec::new();
            self.copy(x, &mut planes);
            let filters = y.par_chunks_mut(pixels.max(1)).enumerate();
            filters.for_each_init(Vec::new, |line, (number, y)| filter(line, &planes, number, y));
            return Ok(());
        }
        let of_image = |(planes, line): &mut (Vec<f32>, Vec<f32>), (number, y): (usize, &mut [f32])| {
            self.copy(&x[number * image..][..image], planes);
            let filters = y.chunks_mut(pixels.max(1)).enumerate();
            filters.for_each(|(place, y)| filter(line, planes, number * self.conv.filters + place, y));
        };
        if parallel {
            y.par_chunks_mut(map.max(1)).enumerate().for_each_init(Default::default, of_image);
        } else {
            let mut scratch = Default::default();
            y.chunks_mut(map.max(1)).enumerate().for_each(|image| of_image(&mut scratch, image));
        }
        Ok(())
    }

    /// Copies an image into planes.
    fn copy(&self, image: &[f32], planes: &mut Vec<f32>) {
        let ([height, width, _], [down, across], [rows, columns]) = (self.conv.input, self.conv.stride, self.plane);
        let (area, padding) = (rows * columns, self.conv.padding);
        planes.clear();
        planes.resize(self.conv.input[2] * down * across * area + VECTORS * LONGEST, 0.0);
        let [above, left] = [padding.before(0), padding.before(1)];
        for (number, row) in image.chunks(width.max(1)).enumerate() {
            let (channel, y) = (number / height, number % height + above);
            if across == 1 {
                planes[self.plane_of(channel, y, 0) * area + y / down * columns + left..][..width].copy_from_slice(row);
                continue;
            }
            for first in 0..across.min(width) {
                let x = first + left;
                let to = &mut planes[self.plane_of(channel, y, x) * area + y / down * columns + x / across..];
                to.iter_mut().zip(row[first..].iter().step_by(across)).for_each(|(to, value)| *to = *value);
            }
        }
    }
}

/// One filter of one image.
struct Line<'a> {
    planes: &'a [f32],
    offsets: &'a [u32],
    weights: &'a [f32],
    scale: f32,
    bias: f32,
    residual: Option<&'a [f32]>,
    rectify: bool,
    out: [usize; 2],
    /// Width of a plane.
    width: usize,
    line: &'a mut Vec<f32>,
    y: &'a mut [f32],
}

impl Work for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let [height, columns] = self.out;
        let len = (height.saturating_sub(1) * self.width + columns).next_multiple_of(L::COUNT);
        let farthest = self.offsets.iter().max().map_or(0, |offset| *offset as usize);
        assert!(farthest + len <= self.planes.len() && self.offsets.len() == self.weights.len(), "a line ends beyond its plane");
        self.line.resize(len.max(self.line.len()), 0.0);
        let mut first = 0;
        while first < len {
            // SAFETY: the line from the farthest offset on was checked, and `line` has as many places.
            first += unsafe {
                match (len - first) / L::COUNT {
                    VECTORS.. => sums::<L, VECTORS>(self.planes, self.offsets, self.weights, first, self.line),
                    4.. => sums::<L, 4>(self.planes, self.offsets, self.weights, first, self.line),
                    2.. => sums::<L, 2>(self.planes, self.offsets, self.weights, first, self.line),
                    _ => sums::<L, 1>(self.planes, self.offsets, self.weights, first, self.line),
                }
            };
        }
        for (row, y) in self.y.chunks_mut(columns.max(1)).enumerate() {
            y.iter_mut().zip(&self.line[row * self.width..]).for_each(|(y, sum)| *y = sum * self.scale + self.bias);
            if let Some(residual) = self.residual {
                y.iter_mut().zip(&residual[row * columns..]).for_each(|(y, residual)| *y += residual);
            }
            if self.rectify {
                // As vectors do it: what is not a number stays none.
                y.iter_mut().for_each(|y| *y = if 0.0 > *y { 0.0 } else { *y });
            }
        }
    }
}

/// The sums of `V` vectors of a line from `first` on; how many values they are.
///
/// # Safety
/// As many values are readable from `first` on behind every offset, and writable in `line`.
#[inline(always)]
unsafe fn sums<L: Lanes, const V: usize>(
    planes: &[f32],
    offsets: &[u32],
    weights: &[f32],
    first: usize,
    line: &mut [f32],
) -> usize {
    let mut sums = [L::splat(0.0); V];
    for (offset, weight) in offsets.iter().zip(weights) {
        let weight = L::splat(*weight);
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as the caller vouches.
            let x = unsafe { L::load(planes.as_ptr().add(*offset as usize + first + v * L::COUNT)) };
            *sum = x.multiply_add(weight, *sum);
        }
    }
    for (v, sum) in sums.into_iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { sum.store(line.as_mut_ptr().add(first + v * L::COUNT)) };
    }
    V * L::COUNT
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::conv::tests::PLAIN;
    use crate::{Padding, Precision};

    #[test]
    fn each_is_its_definition_on_every_instruction_set() {
        for seed in 0..300 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut draw = |least: usize, most: usize| rng.random_range(least..=most);
            let groups = draw(1, 3);
            let conv = Conv2d {
                batch: draw(0, 3),
                input: [draw(1, 13), draw(1, 13), groups * draw(1, 4)],
                filters: groups * draw(1, 5),
                kernel: [draw(1, 4), draw(1, 4)],
                stride: [draw(1, 3), if seed % 5 == 0 { draw(1, 20) } else { draw(1, 3) }],
                padding: Padding([[draw(0, 2), draw(0, 2)], [draw(0, 2), draw(0, 2)]]),
                dilation: [draw(1, 2), draw(1, 2)],
                groups,
                precision: Precision::F32,
            };
            let Ok([height, width, _]) = conv.output() else { continue };
            let [image, weights, map] = conv.sizes().unwrap();
            let mut noise = |count: usize, zeros: f64| -> Vec<f32> {
                (0..count).map(|_| if rng.random_bool(zeros) { 0.0 } else { rng.random_range(-1.0..1.0) }).collect()
            };
            let (x, w, residual) = (noise(conv.batch * image, 0.0), noise(weights, 0.7), noise(conv.batch * map, 0.0));
            let (scale, bias) = (noise(conv.filters, 0.0), noise(conv.filters, 0.0));
            let ([h, wide, channels], [kh, kw], fan_in) = (conv.input, conv.kernel, conv.input[2] / groups);
            let at = |image_number: usize, filter: usize, row: usize, column: usize| {
                let mut sum = 0.0_f64;
                for (c, ky, kx) in (0..fan_in).flat_map(|c| (0..kh).flat_map(move |ky| (0..kw).map(move |kx| (c, ky, kx)))) {
                    let place = |axis: usize, at: usize, tap: usize| {
                        (at * conv.stride[axis] + tap * conv.dilation[axis]).checked_sub(conv.padding.before(axis))
                    };
                    if let (Some(y), Some(x_at)) = (place(0, row, ky), place(1, column, kx))
                        && y < h
                        && x_at < wide
                    {
                        let channel = filter / (conv.filters / groups) * fan_in + c;
                        let x = x[((image_number * channels + channel) * h + y) * wide + x_at];
                        sum += f64::from(x) * f64::from(w[((filter * fan_in + c) * kh + ky) * kw + kx]);
                    }
                }
                sum
            };
            let epilogue = Epilogue { scale: Some(&scale), bias: Some(&bias), residual: Some(&residual), rectify: true };
            for isa in Isa::all() {
                let mut sparse = Sparse::new_on(isa, conv, &w).unwrap();
                let [mut plain, mut all, mut shared] = [(); 3].map(|()| vec![f32::NAN; conv.batch * map]);
                sparse.forward(&x, &Epilogue::default(), &mut plain, false).unwrap();
                sparse.forward(&x, &epilogue, &mut all, false).unwrap();
                sparse.forward(&x, &epilogue, &mut shared, true).unwrap();
                assert!(all == shared, "{conv:?} on threads");
                sparse.scale_filters(&scale);
                sparse.forward(&x, &Epilogue { scale: None, ..epilogue }, &mut shared, false).unwrap();
                for place in 0..plain.len() {
                    let (column, row) = (place % width, place / width % height);
                    let (filter, number) = (place / (width * height) % conv.filters, place / map);
                    let sum = at(number, filter, row, column);
                    let wanted = (sum * f64::from(scale[filter]) + f64::from(bias[filter] + residual[place])).max(0.0);
                    let near = |found: f32, wanted: f64| (f64::from(found) - wanted).abs() < 1e-5 * (1.0 + wanted.abs());
                    let fits = near(plain[place], sum) && near(all[place], wanted) && near(shared[place], wanted);
                    assert!(fits, "{conv:?} on {isa:?}, {place}: {} {} not {sum} {wanted}", plain[place], all[place]);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_shapes() {
        let conv = Conv2d { input: [2, 2, 1], filters: 1, kernel: [1, 1], ..PLAIN };
        assert!(Sparse::new(conv, &[1.0; 2]).is_err());
        assert!(Sparse::new(Conv2d { padding: Padding([[usize::MAX, 1], [0, 0]]), ..conv }, &[1.0]).is_err());
        assert!(Sparse::new(Conv2d { padding: Padding([[1 << 30; 2]; 2]), stride: [1 << 31; 2], ..conv }, &[1.0]).is_err());
        assert!(
            Sparse::new(Conv2d { padding: Padding::all(600), ..conv }, &[1.0])
                .unwrap_err()
                .to_string()
                .contains("planes of 1444804")
        );
        let far = Conv2d { input: [1500, 1500, 1], stride: [1499; 2], ..conv };
        assert!(Sparse::new(far, &[1.0]).unwrap_err().to_string().contains("planes of"));
        let sparse = Sparse::new(conv, &[1.0]).unwrap();
        assert!(sparse.forward(&[0.0; 3], &Epilogue::default(), &mut [0.0; 4], false).is_err());
        assert!(sparse.forward(&[0.0; 4], &Epilogue::biased(&[0.0; 2]), &mut [0.0; 4], false).is_err());
    }
}
