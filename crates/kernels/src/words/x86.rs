//! AVX2, and AVX-512 BW without and with VNNI and VPOPCNTDQ.

use std::arch::x86_64::*;

use super::{WordWork, Words};

/// # Safety
/// AVX2 was found.
#[target_feature(enable = "avx2")]
pub(super) fn on_avx2<T: WordWork>(work: T) -> T::Output {
    work.run::<Avx2>()
}

/// # Safety
/// AVX-512 F and BW were found.
#[target_feature(enable = "avx512f,avx512bw,avx2")]
pub(super) fn on_avx512<T: WordWork>(work: T) -> T::Output {
    work.run::<Avx512>()
}

/// # Safety
/// AVX-512 F, BW and VNNI were found.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2")]
pub(super) fn on_avx512_vnni<T: WordWork>(work: T) -> T::Output {
    work.run::<Avx512Vnni>()
}

/// # Safety
/// AVX-512 F, BW, VNNI and VPOPCNTDQ were found.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vpopcntdq,avx2")]
pub(super) fn on_avx512_popcnt<T: WordWork>(work: T) -> T::Output {
    work.run::<Avx512Popcnt>()
}

/// Implements [`Words`] by intrinsics that differ in their prefix alone. Values of the type exist only inside the functions above, so that
/// the instructions are there.
macro_rules! words {
    ($name:ident($register:ty), $tile:expr, $count:literal, $set1:ident, $loadu:ident, $storeu:ident, $add:ident, $sub:ident; $($rest:tt)*) => {
        /// A register.
        #[derive(Clone, Copy)]
        pub(crate) struct $name($register);

        impl Words for $name {
            type Counts = $register;

            const COUNT: usize = $count;
            const TILE: (usize, usize) = $tile;

            #[inline(always)]
            fn splat(word: u32) -> Self {
                // SAFETY: values of this type exist only where the instructions were found.
                Self(unsafe { $set1(word.cast_signed()) })
            }

            #[inline(always)]
            unsafe fn load(at: *const u32) -> Self {
                // SAFETY: as above; the caller vouches for COUNT readable words, and the load needs no alignment.
                Self(unsafe { $loadu(at.cast()) })
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut u32) {
                // SAFETY: as above; the caller vouches for COUNT writable words, and the store needs no alignment.
                unsafe { $storeu(at.cast(), self.0) }
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
            unsafe fn interleave(rows: [*const u8; 4], to: *mut u32) {
                // SAFETY: as for `splat`; the caller vouches for sixteen bytes and words.
                unsafe {
                    let [a, b, c, d] = rows.map(|row| _mm_loadu_si128(row.cast()));
                    let pairs = [_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)];
                    let words = [
                        _mm_unpacklo_epi16(pairs[0], pairs[2]),
                        _mm_unpackhi_epi16(pairs[0], pairs[2]),
                        _mm_unpacklo_epi16(pairs[1], pairs[3]),
                        _mm_unpackhi_epi16(pairs[1], pairs[3]),
                    ];
                    for (i, words) in words.into_iter().enumerate() {
                        _mm_storeu_si128(to.add(4 * i).cast(), words);
                    }
                }
            }

            #[inline(always)]
            fn none() -> $register {
                Self::splat(0).0
            }

            $($rest)*
        }
    };
}

/// Products of bytes as those of pairs of 16-bit numbers, the even bytes and the odd ones apart. `vpmaddubsw` would saturate.
macro_rules! products_of_pairs {
    ($and:ident, $set1:ident, $srli16:ident, $srai16:ident, $slli16:ident, $madd:ident, $add:ident) => {
        #[inline(always)]
        fn add_products(self, unsigned: Self, signed: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe {
                let even = $madd($and(unsigned.0, $set1(0xff)), $srai16::<8>($slli16::<8>(signed.0)));
                let odd = $madd($srli16::<8>(unsigned.0), $srai16::<8>(signed.0));
                Self($add($add(self.0, even), odd))
            }
        }
    };
}

/// Set bits of each half of a byte looked up, and added up in bytes.
macro_rules! counts_of_halves {
    ($and:ident, $xor:ident, $set8:ident, $set16:ident, $srli16:ident, $shuffle:ident, $table:expr, $add8:ident, $maddubs:ident, $madd:ident) => {
        // A byte holds 255, and eight bits are counted at a time.
        const MOST: usize = 31;

        #[inline(always)]
        fn count(counts: Self::Counts, a: Self, b: Self) -> Self::Counts {
            // SAFETY: as for `splat`.
            unsafe {
                let (differing, low) = ($xor(a.0, b.0), $set8(15));
                let of_low = $shuffle($table, $and(differing, low));
                let of_high = $shuffle($table, $and($srli16::<4>(differing), low));
                $add8(counts, $add8(of_low, of_high))
            }
        }

        #[inline(always)]
        fn counted(counts: Self::Counts) -> Self {
            // SAFETY: as for `splat`. Neither twice 255 nor four times saturates.
            Self(unsafe { $madd($maddubs(counts, $set8(1)), $set16(1)) })
        }
    };
}

/// The numbers of set bits of 0 to 15.
#[inline(always)]
fn table() -> __m128i {
    // SAFETY: called where AVX2 was found.
    unsafe { _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4) }
}

words! {
    Avx2(__m256i), (2, 4), 8, _mm256_set1_epi32, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_add_epi32, _mm256_sub_epi32;

    products_of_pairs! {
        _mm256_and_si256, _mm256_set1_epi16, _mm256_srli_epi16, _mm256_srai_epi16, _mm256_slli_epi16, _mm256_madd_epi16, _mm256_add_epi32
    }

    counts_of_halves! {
        _mm256_and_si256, _mm256_xor_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_srli_epi16, _mm256_shuffle_epi8,
        _mm256_broadcastsi128_si256(table()), _mm256_add_epi8, _mm256_maddubs_epi16, _mm256_madd_epi16
    }

    #[inline(always)]
    unsafe fn load_some(at: *const u32, count: usize) -> Self {
        // SAFETY: as for `load`, of `count` words: lanes whose mask is clear are not read.
        Self(unsafe { _mm256_maskload_epi32(at.cast(), first(count)) })
    }

    #[inline(always)]
    unsafe fn store_some(self, at: *mut u32, count: usize) {
        // SAFETY: as for `store`, of `count` words: lanes whose mask is clear are not written.
        unsafe { _mm256_maskstore_epi32(at.cast(), first(count), self.0) }
    }
}

/// The mask of the first `count` of eight lanes.
#[inline(always)]
fn first(count: usize) -> __m256i {
    // SAFETY: called where AVX2 was found.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// AVX-512, which differs from model to model in products and counts.
macro_rules! avx512 {
    ($name:ident, $tile:expr; $($rest:tt)*) => {
        words! {
            $name(__m512i), $tile, 16, _mm512_set1_epi32, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_add_epi32, _mm512_sub_epi32;

            #[inline(always)]
            unsafe fn load_some(at: *const u32, count: usize) -> Self {
                // SAFETY: as for `load`, of `count` words: lanes whose mask is clear are not read.
                Self(unsafe { _mm512_maskz_loadu_epi32(((1_u32 << count) - 1) as u16, at.cast()) })
            }

            #[inline(always)]
            unsafe fn store_some(self, at: *mut u32, count: usize) {
                // SAFETY: as for `store`, of `count` words: lanes whose mask is clear are not written.
                unsafe { _mm512_mask_storeu_epi32(at.cast(), ((1_u32 << count) - 1) as u16, self.0) }
            }

            $($rest)*
        }
    };
}

/// Counts without VPOPCNTDQ.
macro_rules! avx512_counts {
    () => {
        counts_of_halves! {
            _mm512_and_si512, _mm512_xor_si512, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_srli_epi16, _mm512_shuffle_epi8,
            _mm512_broadcast_i32x4(table()), _mm512_add_epi8, _mm512_maddubs_epi16, _mm512_madd_epi16
        }
    };
}

/// Products of four bytes at a time.
macro_rules! vnni_products {
    () => {
        #[inline(always)]
        fn add_products(self, unsigned: Self, signed: Self) -> Self {
            // SAFETY: as for `splat`. The sum of the four products does not saturate.
            Self(unsafe { _mm512_dpbusd_epi32(self.0, unsigned.0, signed.0) })
        }
    };
}

avx512! {
    Avx512, (4, 4);

    products_of_pairs! {
        _mm512_and_si512, _mm512_set1_epi16, _mm512_srli_epi16, _mm512_srai_epi16, _mm512_slli_epi16, _mm512_madd_epi16, _mm512_add_epi32
    }

    avx512_counts!();
}

avx512! {
    Avx512Vnni, (4, 6);

    vnni_products!();

    avx512_counts!();
}

avx512! {
    Avx512Popcnt, (4, 6);

    const MOST: usize = usize::MAX;

    vnni_products!();

    #[inline(always)]
    fn count(counts: __m512i, a: Self, b: Self) -> __m512i {
        // SAFETY: as for `splat`.
        unsafe { _mm512_add_epi32(counts, _mm512_popcnt_epi32(_mm512_xor_si512(a.0, b.0))) }
    }

    #[inline(always)]
    fn counted(counts: __m512i) -> Self {
        Self(counts)
    }
}
