//! What products are made of: single precision, or bf16 with sums in single precision.

// Loads go through pointers; each product checks their reach before its loops.
#![allow(unsafe_code)]

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;

use crate::lanes::Lanes;

/// In which precision the factors of products are; sums are always single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// bf16: eight bits of significand, the range of single precision. Factors are rounded to nearest even; machines with AVX-512 BF16
    /// multiply two of them at a time.
    Bf16,
}

/// A kind of factors.
pub(crate) trait Operand: 'static {
    /// A value of an image.
    type Value: Copy + Send + Sync;
    /// As many weights as a lane multiplies at a time.
    type Weight: Copy + Default + Send + Sync;
    /// A vector of weights.
    type Vector<L: Lanes>: Copy;
    /// Products that a lane sums up at a time.
    const PER: usize;

    /// The values of an image, with as many after them as the last product may read too much.
    fn values(x: &[f32]) -> Cow<'_, [Self::Value]>;
    /// Weights that are multiplied at a time; the second counts for pairs only.
    fn weight(first: f32, second: f32) -> Self::Weight;
    /// The weights of some lanes, to be multiplied with values from two places; the second counts for pairs only.
    fn weights(first: &[f32], second: Option<&[f32]>, to: &mut [Self::Weight]);
    /// # Safety
    /// `at` points to a readable vector of weights.
    unsafe fn load<L: Lanes>(at: *const Self::Weight) -> Self::Vector<L>;
    /// The `PER` values from `at` on, in each lane.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn splat<L: Lanes>(at: *const Self::Value) -> Self::Vector<L>;
    /// Values from two places, in each lane; the second counts for pairs only.
    ///
    /// # Safety
    /// Both are readable.
    unsafe fn splat_two<L: Lanes>(first: *const Self::Value, second: *const Self::Value) -> Self::Vector<L>;
    /// `weights * values + sum`.
    fn multiply_add<L: Lanes>(weights: Self::Vector<L>, values: Self::Vector<L>, sum: L) -> L;
}

/// Single precision.
pub(crate) struct Single;

impl Operand for Single {
    type Value = f32;
    type Weight = f32;
    type Vector<L: Lanes> = L;
    const PER: usize = 1;

    fn values(x: &[f32]) -> Cow<'_, [f32]> {
        Cow::Borrowed(x)
    }

    #[inline(always)]
    fn weight(first: f32, _: f32) -> f32 {
        first
    }

    #[inline(always)]
    fn weights(first: &[f32], _: Option<&[f32]>, to: &mut [f32]) {
        to[..first.len()].copy_from_slice(first);
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const f32) -> L {
        // SAFETY: as the caller vouches.
        unsafe { L::load(at) }
    }

    #[inline(always)]
    unsafe fn splat<L: Lanes>(at: *const f32) -> L {
        // SAFETY: as the caller vouches.
        L::splat(unsafe { *at })
    }

    #[inline(always)]
    unsafe fn splat_two<L: Lanes>(first: *const f32, _: *const f32) -> L {
        // SAFETY: as the caller vouches.
        L::splat(unsafe { *first })
    }

    #[inline(always)]
    fn multiply_add<L: Lanes>(weights: L, values: L, sum: L) -> L {
        weights.multiply_add(values, sum)
    }
}

/// Pairs of bf16.
pub(crate) struct Half;

impl Operand for Half {
    type Value = u16;
    type Weight = u32;
    type Vector<L: Lanes> = L::Pairs;
    const PER: usize = 2;

    fn values(x: &[f32]) -> Cow<'_, [u16]> {
        let mut values: Vec<u16> = x.par_iter().with_min_len(1 << 14).map(|x| bf16::from_f32(*x).to_bits()).collect();
        // Of an odd number of channels the last pair reaches one value too far, where its weight is zero.
        values.push(0);
        Cow::Owned(values)
    }

    #[inline(always)]
    fn weight(first: f32, second: f32) -> u32 {
        u32::from(bf16::from_f32(first).to_bits()) | u32::from(bf16::from_f32(second).to_bits()) << 16
    }

    #[inline(always)]
    fn weights(first: &[f32], second: Option<&[f32]>, to: &mut [u32]) {
        for (lane, (first, to)) in first.iter().zip(to).enumerate() {
            *to = Self::weight(*first, second.map_or(0.0, |second| second[lane]));
        }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const u32) -> L::Pairs {
        // SAFETY: as the caller vouches.
        unsafe { L::load_pairs(at) }
    }

    #[inline(always)]
    unsafe fn splat<L: Lanes>(at: *const u16) -> L::Pairs {
        // SAFETY: as the caller vouches; the two values need not lie at a multiple of four bytes.
        L::splat_pair(u32::from_le(unsafe { at.cast::<u32>().read_unaligned() }))
    }

    #[inline(always)]
    unsafe fn splat_two<L: Lanes>(first: *const u16, second: *const u16) -> L::Pairs {
        // SAFETY: as the caller vouches.
        L::splat_pair(unsafe { u32::from(*first) | u32::from(*second) << 16 })
    }

    #[inline(always)]
    fn multiply_add<L: Lanes>(weights: L::Pairs, values: L::Pairs, sum: L) -> L {
        sum.add_products(weights, values)
    }
}

/// Rounds values as products in bf16 do.
#[cfg(test)]
pub(crate) fn round_to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
}
