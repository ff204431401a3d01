//! Values that share what a hash of their place says.

use serde::{Deserialize, Serialize};

use crate::Error;

/// Values of which none has an index: the value at position `i` of a tensor, the last dimension running fastest, is
/// `s(i) buckets[h(i)]`, where bucket `h` and sign `s` are those of [`Hashed::place`].
///
/// Chen, Wilson, Tyree, Weinberger, Chen. "Compressing Neural Networks with the Hashing Trick". ICML 2015. arXiv:1504.04788.
/// Differs from the paper: one hash gives bucket and sign, and it is that of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
/// Number Generators", OOPSLA 2014) instead of xxHash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hashed {
    /// What the hash depends on besides the position.
    pub seed: u64,
    /// The shared values, at most 2^31.
    pub buckets: Vec<f32>,
}

impl Hashed {
    /// Twice the bucket of a position among `buckets`, plus 1 if its sign is negative. With 64-bit numbers that wrap around:
    /// `x = seed + (position + 1) 0x9e3779b97f4a7c15`, `x = (x ^ x >> 30) 0xbf58476d1ce4e5b9`, `x = (x ^ x >> 27) 0x94d049bb133111eb`,
    /// `x = x ^ x >> 31`; the bucket is `(x >> 32) buckets >> 32`, the sign the lowest bit of `x`.
    pub fn place(seed: u64, position: usize, buckets: usize) -> u32 {
        let mut x = seed.wrapping_add((position as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let bucket = ((x >> 32) * buckets as u64) >> 32;
        (bucket << 1 | x & 1) as u32
    }

    /// The value of a [`Hashed::place`].
    pub fn at(buckets: &[f32], place: u32) -> f32 {
        let value = buckets[place as usize / 2];
        if place.is_multiple_of(2) { value } else { -value }
    }

    /// The value at a position.
    pub fn value(&self, position: usize) -> f32 {
        Self::at(&self.buckets, Self::place(self.seed, position, self.buckets.len()))
    }

    /// Whether these are buckets that a file may have.
    pub(crate) fn check(buckets: usize) -> Result<(), Error> {
        match buckets {
            0 => Err(Error::corrupt("hashed values without buckets")),
            found if found > MAX_BUCKETS => Err(Error::Limit { what: "buckets", found: found as u64, limit: MAX_BUCKETS as u64 }),
            _ => Ok(()),
        }
    }
}

/// The most buckets: a place has 32 bits.
const MAX_BUCKETS: usize = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_specification() {
        // The first outputs of SplitMix64 from the states 0 and 1234567, as its authors' program prints them.
        let x: [u64; 3] = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        let place = |x: u64, buckets: u64| ((((x >> 32) * buckets) >> 32) << 1 | x & 1) as u32;
        for buckets in [1, 7, 1000] {
            let found = [0, 1, 2].map(|position| Hashed::place(0, position, buckets));
            assert_eq!(found, x.map(|x| place(x, buckets as u64)));
        }
        assert_eq!(Hashed::place(1_234_567, 0, 1 << 31) / 2, (6_457_827_717_110_365_317_u64 >> 33) as u32);
    }

    #[test]
    fn buckets_and_signs_are_spread_evenly() {
        let (count, buckets) = (100_000, 64);
        let mut counts = vec![0_i32; 2 * buckets];
        (0..count).for_each(|i| counts[Hashed::place(9, i, buckets) as usize] += 1);
        let mean = count as f64 / (2 * buckets) as f64;
        let chi: f64 = counts.iter().map(|count| (f64::from(*count) - mean).powi(2) / mean).sum();
        // 127 degrees of freedom: mean 127, deviation 16.
        assert!((127.0 - chi).abs() < 5.0 * 16.0, "{chi}");
    }
}
