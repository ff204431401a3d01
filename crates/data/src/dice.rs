use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Uniform draws whose values no library update can change.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// Those of a stream of ChaCha8 with this seed.
    pub(crate) fn of(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// In `[low, high)`, one of 2^24 values.
    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.0.next_u32() >> 8) as f32 / (1_u32 << 24) as f32
    }

    /// In `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }
}
