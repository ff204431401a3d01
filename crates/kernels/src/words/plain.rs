//! Plain Rust.

use super::{INTERLEAVED, Words};

const COUNT: usize = 8;

/// Eight words; the compiler makes of them what the machine has.
#[derive(Clone, Copy)]
pub(crate) struct Plain([u32; COUNT]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(other.0) {
            *lane = f(*lane, other);
        }
        Self(lanes)
    }
}

impl Words for Plain {
    type Counts = Self;

    const COUNT: usize = COUNT;
    const TILE: (usize, usize) = (1, 4);
    const MOST: usize = usize::MAX;

    #[inline(always)]
    fn splat(word: u32) -> Self {
        Self([word; COUNT])
    }

    #[inline(always)]
    unsafe fn load(at: *const u32) -> Self {
        // SAFETY: the caller vouches for COUNT readable words; an array of words has the alignment of one.
        Self(unsafe { *at.cast::<[u32; COUNT]>() })
    }

    #[inline(always)]
    unsafe fn load_some(at: *const u32, count: usize) -> Self {
        // SAFETY: the caller vouches for `count` readable words.
        Self(std::array::from_fn(|i| if i < count { unsafe { *at.add(i) } } else { 0 }))
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u32) {
        // SAFETY: the caller vouches for COUNT writable words.
        unsafe { *at.cast::<[u32; COUNT]>() = self.0 }
    }

    #[inline(always)]
    unsafe fn store_some(self, at: *mut u32, count: usize) {
        for (i, word) in self.0.into_iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` writable words.
            unsafe { *at.add(i) = word };
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_add)
    }

    #[inline(always)]
    fn subtract(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_sub)
    }

    #[inline(always)]
    fn add_products(self, unsigned: Self, signed: Self) -> Self {
        let products = unsigned.zip(signed, |unsigned, signed| {
            let product = |byte: u32| {
                let (unsigned, signed) = ((unsigned >> (8 * byte)) as u8, (signed >> (8 * byte)) as i8);
                (i32::from(unsigned) * i32::from(signed)).cast_unsigned()
            };
            product(0).wrapping_add(product(1)).wrapping_add(product(2)).wrapping_add(product(3))
        });
        self.add(products)
    }

    #[inline(always)]
    unsafe fn interleave(rows: [*const u8; 4], to: *mut u32) {
        for column in 0..INTERLEAVED {
            // SAFETY: the caller vouches for as many bytes and words.
            unsafe { *to.add(column) = u32::from_ne_bytes(rows.map(|row| *row.add(column))) };
        }
    }

    #[inline(always)]
    fn none() -> Self {
        Self([0; COUNT])
    }

    #[inline(always)]
    fn count(counts: Self, a: Self, b: Self) -> Self {
        counts.add(a.zip(b, |a, b| (a ^ b).count_ones()))
    }

    #[inline(always)]
    fn counted(counts: Self) -> Self {
        counts
    }
}
