//! Blocks of weights that integer kernels and tensor cores read together.

use briquette_core::coding::Weight;

/// Blocks of `size` weights that follow each other within a filter `[in, kh, kw]`, the last of a run being shorter where the run does not
/// divide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    size: usize,
    /// Length of a run, and the distance of its weights in the filter.
    run: usize,
    stride: usize,
    fan_in: usize,
}

impl Blocks {
    /// Blocks along the fan-in, flattened as `[in, kh, kw]`.
    pub fn along_fan_in(weight: &Weight, size: usize) -> Self {
        let fan_in = weight.fan_in();
        Self { size, run: fan_in, stride: 1, fan_in }
    }

    /// Blocks along the input channels at one tap of a kernel; those of fully connected layers run along their inputs.
    pub fn along_channels(weight: &Weight, size: usize) -> Self {
        let run = if weight.shape.len() == 2 { weight.shape[0] } else { weight.shape[1] };
        Self { size, run, stride: weight.fan_in() / run.max(1), fan_in: weight.fan_in() }
    }

    /// Number of blocks in a filter.
    pub fn of_filter(&self) -> usize {
        self.stride * self.run.div_ceil(self.size)
    }

    /// The block of a place in `[out, fan-in]`.
    fn at(&self, place: usize) -> usize {
        let (filter, place) = (place / self.fan_in, place % self.fan_in);
        let (channel, tap) = (place / self.stride, place % self.stride);
        (filter * self.stride + tap) * self.run.div_ceil(self.size) + channel / self.size
    }

    /// The places of each block within a filter.
    pub fn places(&self) -> Vec<Vec<usize>> {
        let mut places = vec![Vec::new(); self.of_filter()];
        (0..self.fan_in).for_each(|place| places[self.at(place)].push(place));
        places
    }

    /// For each block the mean of what belongs to its weights, those that a mask removed counting as 0, and whether any is left.
    pub fn means<T: Copy + Into<f64>>(&self, weight: &Weight, each: &[T]) -> (Vec<f32>, Vec<bool>) {
        let filters = each.len() / self.fan_in.max(1);
        let mut sums = vec![(0.0, 0_usize, false); filters * self.of_filter()];
        let mask = weight.coding.mask.as_ref().map(|mask| weight.filtered(mask));
        for (place, score) in weight.filtered(each).iter().enumerate() {
            let kept = mask.as_ref().is_none_or(|mask| mask[place]);
            let (sum, count, open) = &mut sums[self.at(place)];
            *sum += if kept { (*score).into() } else { 0.0 };
            *count += 1;
            *open |= kept;
        }
        sums.into_iter().map(|(sum, count, open)| ((sum / count.max(1) as f64) as f32, open)).unzip()
    }

    /// What belongs to each block, for each of its weights in the order of the tensor's values.
    pub fn spread<T: Copy>(&self, weight: &Weight, each: &[T]) -> Vec<T> {
        weight.unfiltered((0..weight.values.len()).map(|place| each[self.at(place)]).collect())
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::weights;

    use super::*;
    use briquette_handmade::small;

    #[test]
    fn blocks_run_along_the_channels_of_one_tap_or_along_the_fan_in() {
        // [out 3, in 4, 2, 2] and, as Burn stores it, [in 12, out 5].
        let all = weights(&small());
        let conv = all.iter().find(|weight| weight.shape == [3, 4, 2, 2]).unwrap();
        let blocks = Blocks::along_channels(conv, 3);
        assert_eq!(blocks.places()[..4], [vec![0, 4, 8], vec![12], vec![1, 5, 9], vec![13]]);
        assert_eq!((blocks.of_filter(), blocks.at(16 + 13)), (8, 8 + 3));
        assert_eq!(Blocks::along_fan_in(conv, 3).places()[4..], [vec![12, 13, 14], vec![15]]);
        let fc = all.iter().find(|weight| weight.shape == [12, 5]).unwrap();
        assert_eq!(Blocks::along_channels(fc, 4), Blocks::along_fan_in(fc, 4));
        let (means, open) = Blocks::along_channels(fc, 4).means(fc, &fc.values);
        let filters = fc.filters();
        let mean = |block: &[f32]| block.iter().map(|w| f64::from(*w)).sum::<f64>() / 4.0;
        assert!(means.iter().zip(filters.chunks(4)).all(|(found, block)| (f64::from(*found) - mean(block)).abs() < 1e-7));
        assert!(open.iter().all(|open| *open));
        let spread = Blocks::along_channels(fc, 4).spread(fc, &means);
        assert!(fc.filtered(&spread).chunks(4).zip(&means).all(|(block, mean)| block.iter().all(|own| own == mean)));
    }
}
