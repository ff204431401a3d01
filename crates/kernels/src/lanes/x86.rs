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

/// Implements [`Lanes`] by intrinsics that differ in their prefix alone. Values of the type exist only inside the functions above, so that
/// the instructions are there.
macro_rules! lanes {
    (
        $name:ident($register:ty), $count:literal, $set1:ident, $loadu:ident, $storeu:ident, $fmadd:ident, $add:ident, $sub:ident,
        $mul:ident, $div:ident, $sqrt:ident, $max:ident; $($rest:tt)*
    ) => {
        /// A register.
        #[derive(Clone, Copy)]
        pub(crate) struct $name($register);

        impl Lanes for $name {
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
    Avx2(__m256), 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps,
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
}

/// The mask of the first `count` of eight lanes.
#[inline(always)]
fn first(count: usize) -> __m256i {
    // SAFETY: called where AVX2 was found.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

lanes! {
    Avx512(__m512), 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps,
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
}
