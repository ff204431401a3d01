//! AVX2 with FMA, and AVX-512 F.

use std::arch::x86_64::*;

use super::{Lanes, Work};

/// # Safety
/// AVX2 and FMA were found.
#[target_feature(enable = "avx2,fma")]
pub(super) fn on_avx2<W: Work>(work: W) -> W::Output {
    work.run::<Avx2>()
}

/// # Safety
/// AVX-512 F was found.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn on_avx512<W: Work>(work: W) -> W::Output {
    work.run::<Avx512>()
}

/// # Safety
/// AVX-512 F and BF16 were found.
#[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
pub(super) fn on_avx512_bf16<W: Work>(work: W) -> W::Output {
    work.run::<Avx512Bf16>()
}

/// Implements [`Lanes`] by intrinsics that differ in their prefix alone. Values of the type exist only inside the functions above, so that
/// the instructions are there.
macro_rules! lanes {
    (
        $name:ident($register:ty), $pairs:ty, $count:literal, $set1:ident, $loadu:ident, $storeu:ident, $fmadd:ident, $add:ident, $sub:ident,
        $mul:ident, $div:ident, $sqrt:ident, $max:ident; $($rest:tt)*
    ) => {
        /// A register.
        #[derive(Clone, Copy)]
        pub(crate) struct $name($register);

        impl Lanes for $name {
            type Pairs = $pairs;

            const COUNT: usize = $count;

            #[inline(always)]
            fn splat(value: f32) -> Self {
                // SAFETY: values of this type exist only where the instructions were found.
                Self(unsafe { $set1(value) })
            }

            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                // SAFETY: as above; the caller vouches for COUNT readable floats, and the load needs no alignment.
                Self(unsafe { $loadu(at) })
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                // SAFETY: as above; the caller vouches for COUNT writable floats, and the store needs no alignment.
                unsafe { $storeu(at, self.0) }
            }

            #[inline(always)]
            fn multiply_add(self, factor: Self, sum: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { $fmadd(self.0, factor.0, sum.0) })
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { $add(self.0, other.0) })
            }

            #[inline(always)]
            fn subtract(self, other: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { $sub(self.0, other.0) })
            }

            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { $mul(self.0, other.0) })
            }

            #[inline(always)]
            fn divide(self, other: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { $div(self.0, other.0) })
            }

            #[inline(always)]
            fn root(self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { $sqrt(self.0) })
            }

            #[inline(always)]
            fn max(self, other: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { $max(self.0, other.0) })
            }

            $($rest)*
        }
    };
}

lanes! {
    Avx2(__m256), __m256i, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps,
    _mm256_div_ps, _mm256_sqrt_ps, _mm256_max_ps;

    #[inline(always)]
    unsafe fn load_some(at: *const f32, count: usize) -> Self {
        // SAFETY: as for `load`, of `count` floats: lanes whose mask is clear are not read.
        Self(unsafe { _mm256_maskload_ps(at, first(count)) })
    }

    #[inline(always)]
    unsafe fn store_some(self, at: *mut f32, count: usize) {
        // SAFETY: as for `store`, of `count` floats: lanes whose mask is clear are not written.
        unsafe { _mm256_maskstore_ps(at, first(count), self.0) }
    }

    #[inline(always)]
    fn choose_if_larger(self, other: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: as for `splat`.
        Self(unsafe { _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)) })
    }

    #[inline(always)]
    fn choose_if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: as for `splat`.
        Self(unsafe { _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0)) })
    }

    #[inline(always)]
    fn not_negative(self) -> u32 {
        // SAFETY: as for `splat`.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(self.0, _mm256_setzero_ps())).cast_unsigned() }
    }

    #[inline(always)]
    unsafe fn load_pairs(at: *const u32) -> __m256i {
        // SAFETY: as for `load`, of pairs.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    #[inline(always)]
    fn splat_pair(pair: u32) -> __m256i {
        // SAFETY: as for `splat`.
        unsafe { _mm256_set1_epi32(pair.cast_signed()) }
    }

    #[inline(always)]
    fn add_products(self, a: __m256i, b: __m256i) -> Self {
        // SAFETY: as for `splat`. A bf16 is the upper half of a float.
        unsafe {
            let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let [a_low, b_low] = [_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b)];
            let sum = _mm256_fmadd_ps(_mm256_castsi256_ps(a_low), _mm256_castsi256_ps(b_low), self.0);
            let [a, b] = [_mm256_and_si256(a, high), _mm256_and_si256(b, high)];
            Self(_mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum))
        }
    }
}

/// The mask of the first `count` of eight lanes.
#[inline(always)]
fn first(count: usize) -> __m256i {
    // SAFETY: called where AVX2 was found.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// AVX-512, which differs from model to model in the products of pairs.
macro_rules! avx512 {
    ($name:ident; $($products:tt)*) => {
        lanes! {
            $name(__m512), __m512i, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps,
            _mm512_div_ps, _mm512_sqrt_ps, _mm512_max_ps;

            #[inline(always)]
            unsafe fn load_some(at: *const f32, count: usize) -> Self {
                // SAFETY: as for `load`, of `count` floats: lanes whose mask is clear are not read.
                Self(unsafe { _mm512_maskz_loadu_ps(((1_u32 << count) - 1) as u16, at) })
            }

            #[inline(always)]
            unsafe fn store_some(self, at: *mut f32, count: usize) {
                // SAFETY: as for `store`, of `count` floats: lanes whose mask is clear are not written.
                unsafe { _mm512_mask_storeu_ps(at, ((1_u32 << count) - 1) as u16, self.0) }
            }

            #[inline(always)]
            fn choose_if_larger(self, other: Self, then: Self, otherwise: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0), otherwise.0, then.0) })
            }

            #[inline(always)]
            fn choose_if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
                // SAFETY: as for `splat`.
                Self(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0), otherwise.0, then.0) })
            }

            #[inline(always)]
            fn not_negative(self) -> u32 {
                // SAFETY: as for `splat`.
                u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, _mm512_setzero_ps()) })
            }

            #[inline(always)]
            unsafe fn load_pairs(at: *const u32) -> __m512i {
                // SAFETY: as for `load`, of pairs.
                unsafe { _mm512_loadu_si512(at.cast()) }
            }

            #[inline(always)]
            fn splat_pair(pair: u32) -> __m512i {
                // SAFETY: as for `splat`.
                unsafe { _mm512_set1_epi32(pair.cast_signed()) }
            }

            $($products)*
        }
    };
}

avx512! {
    Avx512;

    #[inline(always)]
    fn add_products(self, a: __m512i, b: __m512i) -> Self {
        // SAFETY: as for `splat`. A bf16 is the upper half of a float.
        unsafe {
            let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let [a_low, b_low] = [_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b)];
            let sum = _mm512_fmadd_ps(_mm512_castsi512_ps(a_low), _mm512_castsi512_ps(b_low), self.0);
            let [a, b] = [_mm512_and_si512(a, high), _mm512_and_si512(b, high)];
            Self(_mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum))
        }
    }
}

avx512! {
    Avx512Bf16;

    #[inline(always)]
    fn add_products(self, a: __m512i, b: __m512i) -> Self {
        // SAFETY: as for `splat`; both registers hold pairs of bf16.
        unsafe { Self(_mm512_dpbf16_ps(self.0, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))) }
    }
}
