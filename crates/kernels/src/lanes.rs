//! Eight floats at a time: the vector types over which every kernel is written, and the choice among them.

// Kernels read through pointers whose range was checked once, before their loops.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Floats in a vector.
pub(crate) const LANES: usize = 8;

/// The instructions that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust; the twin that the others are tested against.
    Portable,
    /// AVX2 and FMA.
    Avx2,
}

impl Isa {
    /// The best that this machine has. `BRIQUETTE_ISA=portable` asks for the portable kernels.
    pub(crate) fn of_this_machine() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| {
            if std::env::var_os("BRIQUETTE_ISA").is_some_and(|wanted| wanted == "portable") {
                return Isa::Portable;
            }
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Isa::Avx2;
            }
            Isa::Portable
        })
    }
}

impl Isa {
    /// Runs plain loops compiled for these instructions: what is inlined into it is vectorized for them.
    pub(crate) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            Isa::Portable => work(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the instructions were detected.
            Isa::Avx2 => unsafe { run_avx2(work) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 => unreachable!("AVX2 is only detected on x86-64"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// A vector of [`LANES`] floats.
pub(crate) trait Lanes: Copy {
    /// The same number in each lane.
    fn splat(value: f32) -> Self;
    /// # Safety
    /// `at` points to [`LANES`] readable floats.
    unsafe fn load(at: *const f32) -> Self;
    /// `self * factor + sum`.
    fn multiply_add(self, factor: Self, sum: Self) -> Self;
    /// The lanes in order.
    fn to_array(self) -> [f32; LANES];

    /// The sum of the lanes, pairwise.
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.to_array();
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// The portable vector.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; LANES]);

impl Lanes for Plain {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller vouches for LANES readable floats; an array of floats has the alignment of one.
        Self(unsafe { *at.cast::<[f32; LANES]>() })
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + sum.0[i]))
    }

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps};

    use super::{LANES, Lanes};

    /// A register of AVX. Values exist only inside functions that were entered after AVX2 and FMA had been detected.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    impl Lanes for Avx2 {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: the type is used only where AVX2 and FMA are there.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: as above; the caller vouches for LANES readable floats, and the load needs no alignment.
            Self(unsafe { _mm256_loadu_ps(at) })
        }

        #[inline(always)]
        fn multiply_add(self, factor: Self, sum: Self) -> Self {
            // SAFETY: the type is used only where AVX2 and FMA are there.
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, sum.0) })
        }

        #[inline(always)]
        fn to_array(self) -> [f32; LANES] {
            let mut lanes = [0.0; LANES];
            // SAFETY: the array holds LANES floats, and the store needs no alignment.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), self.0) };
            lanes
        }
    }
}
