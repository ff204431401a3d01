//! NEON: two registers of four words, so that a vector fills as many columns as elsewhere; without and with the products of DotProd and I8MM,
//! whose intrinsics are not stable yet.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{WordWork, Words};

/// # Safety
/// NEON was found.
#[target_feature(enable = "neon")]
pub(super) fn on_neon<T: WordWork>(work: T) -> T::Output {
    work.run::<Neon>()
}

/// # Safety
/// NEON and DotProd were found.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn on_neon_dot<T: WordWork>(work: T) -> T::Output {
    work.run::<NeonDot>()
}

/// # Safety
/// NEON and I8MM were found.
#[target_feature(enable = "neon,i8mm")]
pub(super) fn on_neon_i8mm<T: WordWork>(work: T) -> T::Output {
    work.run::<NeonI8mm>()
}

/// Implements [`Words`]; models differ in the products of four bytes of two registers, added to a third.
macro_rules! neon {
    ($name:ident, $products:ident) => {
        /// Two registers. Values exist only inside its function above.
        #[derive(Clone, Copy)]
        pub(crate) struct $name(uint32x4_t, uint32x4_t);

        impl $name {
            #[inline(always)]
            fn zip(self, other: Self, f: impl Fn(uint32x4_t, uint32x4_t) -> uint32x4_t) -> Self {
                Self(f(self.0, other.0), f(self.1, other.1))
            }
        }

        impl Words for $name {
            type Counts = (uint8x16_t, uint8x16_t);

            const COUNT: usize = 8;
            const TILE: (usize, usize) = (2, 4);
            // A byte holds 255, and eight bits are counted at a time.
            const MOST: usize = 31;

            #[inline(always)]
            fn splat(word: u32) -> Self {
                // SAFETY: values of this type exist only where NEON was found.
                unsafe { Self(vdupq_n_u32(word), vdupq_n_u32(word)) }
            }

            #[inline(always)]
            unsafe fn load(at: *const u32) -> Self {
                // SAFETY: as above; the caller vouches for eight readable words.
                unsafe { Self(vld1q_u32(at), vld1q_u32(at.add(4))) }
            }

            #[inline(always)]
            unsafe fn load_some(at: *const u32, count: usize) -> Self {
                let mut all = [0; 8];
                for (i, lane) in all.iter_mut().enumerate().take(count) {
                    // SAFETY: the caller vouches for `count` readable words.
                    *lane = unsafe { *at.add(i) };
                }
                // SAFETY: the array holds eight words.
                unsafe { Self::load(all.as_ptr()) }
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut u32) {
                // SAFETY: as above; the caller vouches for eight writable words.
                unsafe {
                    vst1q_u32(at, self.0);
                    vst1q_u32(at.add(4), self.1);
                }
            }

            #[inline(always)]
            unsafe fn store_some(self, at: *mut u32, count: usize) {
                let mut all = [0; 8];
                // SAFETY: the array holds eight words.
                unsafe { self.store(all.as_mut_ptr()) };
                for (i, lane) in all.into_iter().enumerate().take(count) {
                    // SAFETY: the caller vouches for `count` writable words.
                    unsafe { *at.add(i) = lane };
                }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: as for `splat`.
                self.zip(other, |a, b| unsafe { vaddq_u32(a, b) })
            }

            #[inline(always)]
            fn subtract(self, other: Self) -> Self {
                // SAFETY: as for `splat`.
                self.zip(other, |a, b| unsafe { vsubq_u32(a, b) })
            }

            #[inline(always)]
            fn add_products(self, unsigned: Self, signed: Self) -> Self {
                let add = |sum, unsigned, signed| {
                    // SAFETY: as for `splat`.
                    unsafe {
                        let (unsigned, signed) = (vreinterpretq_u8_u32(unsigned), vreinterpretq_s8_u32(signed));
                        vreinterpretq_u32_s32($products(vreinterpretq_s32_u32(sum), unsigned, signed))
                    }
                };
                Self(add(self.0, unsigned.0, signed.0), add(self.1, unsigned.1, signed.1))
            }

            #[inline(always)]
            unsafe fn interleave(rows: [*const u8; 4], to: *mut u32) {
                // SAFETY: as for `splat`; the caller vouches for sixteen bytes and words.
                unsafe {
                    let rows = rows.map(|row| vld1q_u8(row));
                    vst4q_u8(to.cast(), uint8x16x4_t(rows[0], rows[1], rows[2], rows[3]));
                }
            }

            #[inline(always)]
            fn none() -> Self::Counts {
                // SAFETY: as for `splat`.
                unsafe { (vdupq_n_u8(0), vdupq_n_u8(0)) }
            }

            #[inline(always)]
            fn count(counts: Self::Counts, a: Self, b: Self) -> Self::Counts {
                // SAFETY: as for `splat`.
                let add = |counts, a, b| unsafe { vaddq_u8(counts, vcntq_u8(vreinterpretq_u8_u32(veorq_u32(a, b)))) };
                (add(counts.0, a.0, b.0), add(counts.1, a.1, b.1))
            }

            #[inline(always)]
            fn counted(counts: Self::Counts) -> Self {
                // SAFETY: as for `splat`.
                let sum = |counts| unsafe { vpaddlq_u16(vpaddlq_u8(counts)) };
                Self(sum(counts.0), sum(counts.1))
            }
        }
    };
}

neon!(Neon, products);
neon!(NeonDot, products_of_halves);
neon!(NeonI8mm, products_at_once);

/// A product of an unsigned and a signed byte fits 16 bits; the even bytes and the odd ones are apart.
#[inline(always)]
fn products(sum: int32x4_t, unsigned: uint8x16_t, signed: int8x16_t) -> int32x4_t {
    // SAFETY: called where NEON was found.
    unsafe {
        let (unsigned, signed) = (vreinterpretq_u16_u8(unsigned), vreinterpretq_s16_s8(signed));
        let even = vreinterpretq_s16_u16(vandq_u16(unsigned, vdupq_n_u16(0xff)));
        let odd = vreinterpretq_s16_u16(vshrq_n_u16::<8>(unsigned));
        let sum = vpadalq_s16(sum, vmulq_s16(even, vshrq_n_s16::<8>(vshlq_n_s16::<8>(signed))));
        vpadalq_s16(sum, vmulq_s16(odd, vshrq_n_s16::<8>(signed)))
    }
}

/// `sdot` multiplies signed bytes: the half of an unsigned one, twice, and the rest are such.
#[inline(always)]
fn products_of_halves(mut sum: int32x4_t, unsigned: uint8x16_t, signed: int8x16_t) -> int32x4_t {
    // SAFETY: called where NEON and DotProd were found; the instruction touches no memory.
    unsafe {
        let half = vshrq_n_u8::<1>(unsigned);
        for part in [half, half, vandq_u8(unsigned, vdupq_n_u8(1))] {
            asm!(
                "sdot {sum:v}.4s, {part:v}.16b, {signed:v}.16b",
                sum = inlateout(vreg) sum,
                part = in(vreg) part,
                signed = in(vreg) signed,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
    }
    sum
}

/// `usdot` multiplies unsigned bytes by signed ones.
#[inline(always)]
fn products_at_once(mut sum: int32x4_t, unsigned: uint8x16_t, signed: int8x16_t) -> int32x4_t {
    // SAFETY: called where NEON and I8MM were found; the instruction touches no memory.
    unsafe {
        asm!(
            "usdot {sum:v}.4s, {unsigned:v}.16b, {signed:v}.16b",
            sum = inlateout(vreg) sum,
            unsigned = in(vreg) unsigned,
            signed = in(vreg) signed,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
