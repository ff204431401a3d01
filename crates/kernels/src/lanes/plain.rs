//! Plain Rust.

use super::Lanes;

const COUNT: usize = 8;

/// Eight floats; the compiler makes of them what the machine has.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; COUNT]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(other.0) {
            *lane = f(*lane, other);
        }
        Self(lanes)
    }
}

impl Lanes for Plain {
    type Pairs = [u32; COUNT];

    const COUNT: usize = COUNT;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; COUNT])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller vouches for COUNT readable floats; an array of floats has the alignment of one.
        Self(unsafe { *at.cast::<[f32; COUNT]>() })
    }

    #[inline(always)]
    unsafe fn load_some(at: *const f32, count: usize) -> Self {
        // SAFETY: the caller vouches for `count` readable floats.
        Self(std::array::from_fn(|i| if i < count { unsafe { *at.add(i) } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller vouches for COUNT writable floats.
        unsafe { *at.cast::<[f32; COUNT]>() = self.0 }
    }

    #[inline(always)]
    unsafe fn store_some(self, at: *mut f32, count: usize) {
        for (i, value) in self.0.into_iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` writable floats.
            unsafe { *at.add(i) = value };
        }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        self.multiply(factor).add(sum)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn subtract(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn divide(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn root(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn choose_if_larger(self, other: Self, then: Self, otherwise: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] > other.0[i] { then.0[i] } else { otherwise.0[i] }))
    }

    #[inline(always)]
    #[allow(clippy::float_cmp)] // Equality is what is asked for.
    fn choose_if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] == other.0[i] { then.0[i] } else { otherwise.0[i] }))
    }

    #[inline(always)]
    fn not_negative(self) -> u32 {
        self.0.into_iter().enumerate().fold(0, |bits, (i, lane)| bits | u32::from(lane >= 0.0) << i)
    }

    #[inline(always)]
    unsafe fn load_pairs(at: *const u32) -> [u32; COUNT] {
        // SAFETY: the caller vouches for COUNT readable pairs.
        unsafe { *at.cast::<[u32; COUNT]>() }
    }

    #[inline(always)]
    fn splat_pair(pair: u32) -> [u32; COUNT] {
        [pair; COUNT]
    }

    #[inline(always)]
    fn add_products(self, a: [u32; COUNT], b: [u32; COUNT]) -> Self {
        let mut lanes = self.0;
        for (i, lane) in lanes.iter_mut().enumerate() {
            // A bf16 is the upper half of a float.
            let [low, high] =
                [16, 0].map(|by| f32::from_bits(a[i] << by & 0xffff_0000) * f32::from_bits(b[i] << by & 0xffff_0000));
            *lane = *lane + low + high;
        }
        Self(lanes)
    }
}
