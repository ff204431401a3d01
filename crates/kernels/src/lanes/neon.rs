//! NEON: two registers of four floats, so that a vector fills as many channels as elsewhere.

use std::arch::aarch64::*;

use super::{Lanes, Work};

/// # Safety
/// NEON was found.
#[target_feature(enable = "neon")]
pub(super) fn on_neon<W: Work>(work: W) -> W::Output {
    work.run::<Neon>()
}

/// Two registers. Values exist only inside the function above.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t, float32x4_t);

impl Lanes for Neon {
    type Pairs = (uint32x4_t, uint32x4_t);

    const COUNT: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: values of this type exist only where NEON was found.
        unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: as above; the caller vouches for eight readable floats.
        unsafe { Self(vld1q_f32(at), vld1q_f32(at.add(4))) }
    }

    #[inline(always)]
    unsafe fn load_some(at: *const f32, count: usize) -> Self {
        let mut all = [0.0; 8];
        for (i, lane) in all.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` readable floats.
            *lane = unsafe { *at.add(i) };
        }
        // SAFETY: the array holds eight floats.
        unsafe { Self::load(all.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: as above; the caller vouches for eight writable floats.
        unsafe {
            vst1q_f32(at, self.0);
            vst1q_f32(at.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_some(self, at: *mut f32, count: usize) {
        let mut all = [0.0; 8];
        // SAFETY: the array holds eight floats.
        unsafe { self.store(all.as_mut_ptr()) };
        for (i, lane) in all.into_iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` writable floats.
            unsafe { *at.add(i) = lane };
        }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { Self(vfmaq_f32(sum.0, self.0, factor.0), vfmaq_f32(sum.1, self.1, factor.1)) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { Self(vaddq_f32(self.0, other.0), vaddq_f32(self.1, other.1)) }
    }

    #[inline(always)]
    fn subtract(self, other: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { Self(vsubq_f32(self.0, other.0), vsubq_f32(self.1, other.1)) }
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { Self(vmulq_f32(self.0, other.0), vmulq_f32(self.1, other.1)) }
    }

    #[inline(always)]
    fn divide(self, other: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { Self(vdivq_f32(self.0, other.0), vdivq_f32(self.1, other.1)) }
    }

    #[inline(always)]
    fn root(self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { Self(vsqrtq_f32(self.0), vsqrtq_f32(self.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.choose_if_larger(other, self, other)
    }

    #[inline(always)]
    fn choose_if_larger(self, other: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe {
            Self(
                vbslq_f32(vcgtq_f32(self.0, other.0), then.0, otherwise.0),
                vbslq_f32(vcgtq_f32(self.1, other.1), then.1, otherwise.1),
            )
        }
    }

    #[inline(always)]
    fn choose_if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe {
            Self(
                vbslq_f32(vceqq_f32(self.0, other.0), then.0, otherwise.0),
                vbslq_f32(vceqq_f32(self.1, other.1), then.1, otherwise.1),
            )
        }
    }

    #[inline(always)]
    fn not_negative(self) -> u32 {
        const BITS: [u32; 4] = [1, 2, 4, 8];
        // SAFETY: as for `splat`; the array holds four words.
        unsafe {
            let bits = vld1q_u32(BITS.as_ptr());
            let of = |lanes| vaddvq_u32(vandq_u32(vcgeq_f32(lanes, vdupq_n_f32(0.0)), bits));
            of(self.0) | of(self.1) << 4
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(at: *const u32) -> Self::Pairs {
        // SAFETY: as for `splat`; the caller vouches for eight readable pairs.
        unsafe { (vld1q_u32(at), vld1q_u32(at.add(4))) }
    }

    #[inline(always)]
    fn splat_pair(pair: u32) -> Self::Pairs {
        // SAFETY: as for `splat`.
        unsafe { (vdupq_n_u32(pair), vdupq_n_u32(pair)) }
    }

    #[inline(always)]
    fn add_products(self, a: Self::Pairs, b: Self::Pairs) -> Self {
        // SAFETY: as for `splat`. A bf16 is the upper half of a float.
        unsafe {
            let low = |pairs| vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs));
            let high = |pairs| vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff_0000)));
            let sum = |sum, a, b| vfmaq_f32(vfmaq_f32(sum, low(a), low(b)), high(a), high(b));
            Self(sum(self.0, a.0, b.0), sum(self.1, a.1, b.1))
        }
    }
}
