//! Real numbers out of sums of integers.

use crate::lanes::{Isa, Lanes, Work};

/// Filters and windows that change places at a time.
const TILE: usize = 16;

/// What a sum stands for: `scale_r (factor sum_r + offset_r - factor zero_r sum_last)` for the filter `r`, where the last sum of a window is that of
/// its inputs, if weights have zeros.
#[derive(Debug, Clone)]
pub struct Scaling {
    filters: usize,
    factor: i32,
    windows: bool,
    // Each up to a whole number of tiles.
    scales: Vec<f32>,
    offsets: Vec<i32>,
    zeros: Vec<i32>,
}

impl Scaling {
    /// With an offset for each scale, and with a zero for each if the sums have that of the inputs behind them.
    ///
    /// # Panics
    /// If they differ in number.
    pub fn new(factor: i32, scales: &[f32], offsets: &[i32], zeros: Option<&[i32]>) -> Self {
        let filters = scales.len();
        assert!(
            offsets.len() == filters && zeros.is_none_or(|zeros| zeros.len() == filters),
            "one for each of {filters} filters"
        );
        Self {
            filters,
            factor,
            windows: zeros.is_some(),
            scales: padded(scales),
            offsets: padded(offsets),
            zeros: padded(zeros.unwrap_or(&vec![0; filters])),
        }
    }

    /// Multiplies the scale of each filter.
    pub fn multiply(&mut self, factors: &[f32]) {
        self.scales.iter_mut().zip(factors).for_each(|(scale, factor)| *scale *= factor);
    }

    /// Sums of a window.
    pub fn stride(&self) -> usize {
        self.filters + usize::from(self.windows)
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        4 * (self.scales.len() + self.offsets.len() + self.zeros.len())
    }

    /// From the sums of an image's windows, `[positions, stride]`, to `out` `[filters, positions]`.
    ///
    /// # Panics
    /// If the slices are not of these sizes.
    pub fn channels_first(&self, sums: &[i32], out: &mut [f32]) {
        let positions = sums.len() / self.stride();
        assert!(sums.len() == positions * self.stride() && out.len() == positions * self.filters, "sums for each result");
        Isa::of_this_machine().run(Place { scaling: self, sums, positions, out });
    }
}

fn padded<T: Copy + Default>(values: &[T]) -> Vec<T> {
    let mut all = values.to_vec();
    all.resize(values.len().next_multiple_of(TILE), T::default());
    all
}

struct Place<'a> {
    scaling: &'a Scaling,
    sums: &'a [i32],
    positions: usize,
    out: &'a mut [f32],
}

impl Work for Place<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { scaling, sums, positions, out } = self;
        let (stride, factor) = (scaling.stride(), scaling.factor);
        let (scales, offsets) = (scaling.scales.as_chunks::<TILE>().0, scaling.offsets.as_chunks::<TILE>().0);
        let zeros = scaling.zeros.as_chunks::<TILE>().0;
        let (mut results, mut turned) = ([[0.0; TILE]; TILE], [[0.0; TILE]; TILE]);
        for first in (0..positions).step_by(TILE) {
            let count = TILE.min(positions - first);
            for (tile, ((scales, offsets), zeros)) in scales.iter().zip(offsets).zip(zeros).enumerate() {
                let row = tile * TILE;
                // Copies, so that no store can change them.
                let (scales, offsets, zeros) = (*scales, *offsets, *zeros);
                for (sums, results) in sums[first * stride..].chunks_exact(stride).zip(&mut results[..count]) {
                    let inputs = if scaling.windows { factor.wrapping_mul(sums[stride - 1]) } else { 0 };
                    let mut own = [0; TILE];
                    match sums[row..].first_chunk() {
                        Some(sums) => own = *sums,
                        None => own[..stride - row].copy_from_slice(&sums[row..]),
                    }
                    *results = std::array::from_fn(|lane| {
                        let sum = factor.wrapping_mul(own[lane]).wrapping_add(offsets[lane]);
                        scales[lane] * sum.wrapping_sub(zeros[lane].wrapping_mul(inputs)) as f32
                    });
                }
                transpose(&results, &mut turned);
                for (plane, results) in out[row * positions..].chunks_exact_mut(positions).zip(&turned) {
                    match plane[first..].first_chunk_mut() {
                        Some(plane) => *plane = *results,
                        None => plane[first..].copy_from_slice(&results[..count]),
                    }
                }
            }
        }
    }
}

/// Four by four, which vectors of every machine shuffle in registers.
#[inline(always)]
fn transpose(tile: &[[f32; TILE]; TILE], turned: &mut [[f32; TILE]; TILE]) {
    for row in (0..TILE).step_by(4) {
        for column in (0..TILE).step_by(4) {
            let four: [[f32; 4]; 4] =
                std::array::from_fn(|i| *tile[row + i][column..].first_chunk().expect("four divides a tile's side"));
            for i in 0..4 {
                let to = turned[column + i][row..].first_chunk_mut().expect("four divides a tile's side");
                *to = [four[0][i], four[1][i], four[2][i], four[3][i]];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_scales_and_turns_sums_around() {
        for (filters, positions, windows) in [(16, 32, false), (10, 1, false), (37, 23, true), (16, 19, true), (3, 100, false)] {
            let scales: Vec<f32> = (0..filters).map(|r| 0.3 + r as f32).collect();
            let offsets: Vec<i32> = (0..filters as i32).map(|r| 7 * r - 50).collect();
            let zeros: Vec<i32> = (0..filters as i32).map(|r| r % 5 - 2).collect();
            let scaling = Scaling::new(2, &scales, &offsets, windows.then_some(&zeros[..]));
            let stride = scaling.stride();
            let sums: Vec<i32> = (0..(positions * stride) as i32).map(|i| i * 31 % 1009 - 400).collect();
            let expected = |i: usize| {
                let (row, window) = (i / positions, &sums[i % positions * stride..][..stride]);
                let inputs = if windows { zeros[row] * window[filters] } else { 0 };
                scales[row] * (2 * window[row] + offsets[row] - 2 * inputs) as f32
            };
            for isa in Isa::all() {
                let mut out = vec![f32::NAN; positions * filters];
                isa.run(Place { scaling: &scaling, sums: &sums, positions, out: &mut out });
                assert!(out.iter().enumerate().all(|(i, out)| *out == expected(i)), "{filters} {positions} {isa:?}");
            }
        }
    }
}
