//! The inner loops, for every instruction set.

// The loops read through pointers whose farthest reach is checked before they begin.
#![allow(unsafe_code)]

use super::planes::{Planes, Slot, Slots};
#[cfg(target_arch = "x86_64")]
use crate::lanes::Avx2;
use crate::lanes::{Isa, LANES, Lanes, Plain};

/// Filters and vectors of pixels in registers: 6 x 2 sums, 2 vectors of pixels and 2 weights fill the sixteen registers of AVX. With 4 x 3
/// sums the compiler keeps two weights as well and spills a sum, which costs half of the speed.
const FILTERS: usize = 6;
const VECTORS: usize = 2;

/// Filters and taps in registers for the gradient of the weights.
const OUTER_FILTERS: usize = 3;
const OUTER_TAPS: usize = 4;

/// Weights `[filters, taps]` of each group as `[filters / 6, taps, 6]`, filled up with zeros.
pub(super) fn pack_filters(w: &[f32], filters: usize, groups: usize) -> Vec<f32> {
    let (per_group, taps) = (filters / groups, w.len() / filters.max(1));
    let mut packed = vec![0.0; groups * packed_len(per_group, taps)];
    for group in 0..groups {
        let to = &mut packed[group * packed_len(per_group, taps)..];
        for filter in 0..per_group {
            let from = &w[(group * per_group + filter) * taps..][..taps];
            let start = filter / FILTERS * FILTERS * taps + filter % FILTERS;
            from.iter().enumerate().for_each(|(tap, value)| to[start + tap * FILTERS] = *value);
        }
    }
    packed
}

pub(super) fn packed_len(filters: usize, taps: usize) -> usize {
    filters.next_multiple_of(FILTERS) * taps
}

/// The filters as the gradient of the input needs them: `[group][channel][picks]`, of each channel the weights of all filters of its group
/// that `picks` names.
pub(super) fn turn(w: &[f32], filters: usize, channels: usize, groups: usize, area: usize, picks: &[usize]) -> Vec<f32> {
    let (filters, channels) = (filters / groups, channels / groups);
    let mut turned = Vec::with_capacity(groups * channels * picks.len());
    for group in w.chunks_exact((filters * channels * area).max(1)) {
        for channel in 0..channels {
            turned.extend(picks.iter().map(|pick| group[(pick / area * channels + channel) * area + pick % area]));
        }
    }
    turned
}

/// How many images' scratch buffers of this length stay in the second-level cache.
pub(super) fn images_together(len: usize) -> usize {
    (96 * 1024 / len.max(1)).clamp(1, 16)
}

/// `to[m][p] = bias[m] + sum over k of packed[m][k] * scratch[p + taps[k]]`.
pub(super) fn correlate(
    isa: Isa,
    scratch: &[f32],
    taps: &[usize],
    slots: &Slots,
    packed: &[f32],
    bias: Option<&[f32]>,
    to: &mut [f32],
) {
    let reach = taps.iter().max().map_or(0, |farthest| farthest + slots.reach());
    let filters = to.len() / slots.pixels.max(1);
    assert!(reach <= scratch.len() && packed_len(filters, taps.len()) <= packed.len(), "a tap lies outside its buffer");
    match isa {
        Isa::Portable => correlate_with::<Plain>(scratch, taps, slots, packed, bias, to),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instructions were detected.
        Isa::Avx2 => unsafe { correlate_avx2(scratch, taps, slots, packed, bias, to) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 => unreachable!("AVX2 is only detected on x86-64"),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn correlate_avx2(scratch: &[f32], taps: &[usize], slots: &Slots, packed: &[f32], bias: Option<&[f32]>, to: &mut [f32]) {
    correlate_with::<Avx2>(scratch, taps, slots, packed, bias, to);
}

#[inline(always)]
fn correlate_with<L: Lanes>(
    scratch: &[f32],
    taps: &[usize],
    slots: &Slots,
    packed: &[f32],
    bias: Option<&[f32]>,
    to: &mut [f32],
) {
    let filters = to.len() / slots.pixels.max(1);
    for some in slots.all.chunks(VECTORS) {
        let bases: [usize; VECTORS] = std::array::from_fn(|i| some[i.min(some.len() - 1)].base);
        for first in (0..filters).step_by(FILTERS) {
            let weights = &packed[first * taps.len()..][..FILTERS * taps.len()];
            let mut sums = [[L::splat(0.0); VECTORS]; FILTERS];
            // SAFETY: `correlate` checked that the farthest tap of the farthest slot lies inside the scratch buffer.
            unsafe {
                match filters - first {
                    1 | 2 => tile::<L, 2>(scratch.as_ptr(), taps, weights, bases, &mut sums),
                    3 | 4 => tile::<L, 4>(scratch.as_ptr(), taps, weights, bases, &mut sums),
                    _ => tile::<L, FILTERS>(scratch.as_ptr(), taps, weights, bases, &mut sums),
                }
            }
            for (filter, sums) in sums.iter().enumerate().take(filters - first) {
                let start = bias.map_or(0.0, |bias| bias[first + filter]);
                let row = &mut to[(first + filter) * slots.pixels..][..slots.pixels];
                for (slot, sum) in some.iter().zip(sums) {
                    write(slot, slots.stride, *sum, start, row);
                }
            }
        }
    }
}

#[inline(always)]
fn write<L: Lanes>(slot: &Slot, stride: usize, sum: L, start: f32, row: &mut [f32]) {
    let values = sum.to_array();
    if stride == 1 {
        row[slot.at..][..slot.len].iter_mut().zip(values).for_each(|(to, value)| *to = value + start);
    } else {
        row[slot.at..].iter_mut().step_by(stride).zip(&values[..slot.len]).for_each(|(to, value)| *to = value + start);
    }
}

/// The first `F` of six filters on two vectors of pixels.
///
/// # Safety
/// `scratch` is readable for [`LANES`] floats from every base plus every tap.
#[inline(always)]
unsafe fn tile<L: Lanes, const F: usize>(
    scratch: *const f32,
    taps: &[usize],
    weights: &[f32],
    bases: [usize; VECTORS],
    to: &mut [[L; VECTORS]; FILTERS],
) {
    let mut sums = [[L::splat(0.0); VECTORS]; F];
    // SAFETY: the caller vouches for every base.
    let starts = bases.map(|base| unsafe { scratch.add(base) });
    for (tap, weights) in taps.iter().zip(weights.as_chunks::<FILTERS>().0) {
        // SAFETY: the caller vouches for every base plus every tap.
        let pixels = starts.map(|start| unsafe { L::load(start.add(*tap)) });
        for filter in 0..F {
            let weight = L::splat(weights[filter]);
            for vector in 0..VECTORS {
                sums[filter][vector] = pixels[vector].multiply_add(weight, sums[filter][vector]);
            }
        }
    }
    to[..F].copy_from_slice(&sums);
}

/// Adds `sum over images and p of dy[m][p] * x[p + taps[k]]` to `to[m][k]`.
pub(super) fn outer(
    isa: Isa,
    (x, planes, taps): (&[f32], &Planes, &[usize]),
    (dy, rows): (&[f32], &Planes),
    images: usize,
    slots: &Slots,
    to: &mut [f32],
) {
    let farthest = taps.iter().max().map_or(0, |farthest| farthest + slots.reach());
    let wide = slots.all.len() * LANES;
    assert!(farthest <= planes.len() && wide <= rows.plane(), "a tap lies outside its buffer");
    assert!(images * planes.len() <= x.len() && images * rows.len() <= dy.len(), "an image lies outside its buffer");
    match isa {
        Isa::Portable => outer_with::<Plain>((x, planes, taps), (dy, rows), images, slots, to),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instructions were detected.
        Isa::Avx2 => unsafe { outer_avx2((x, planes, taps), (dy, rows), images, slots, to) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 => unreachable!("AVX2 is only detected on x86-64"),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn outer_avx2(x: (&[f32], &Planes, &[usize]), dy: (&[f32], &Planes), images: usize, slots: &Slots, to: &mut [f32]) {
    outer_with::<Avx2>(x, dy, images, slots, to);
}

#[inline(always)]
fn outer_with<L: Lanes>(
    (x, planes, distances): (&[f32], &Planes, &[usize]),
    (dy, rows): (&[f32], &Planes),
    images: usize,
    slots: &Slots,
    to: &mut [f32],
) {
    let taps = distances.len();
    let filters = rows.source[0];
    for first in (0..filters).step_by(OUTER_FILTERS) {
        // The last tiles compute some sums twice rather than read beyond the end; only the wanted ones are added.
        let channels: [usize; OUTER_FILTERS] = std::array::from_fn(|i| (first + i).min(filters - 1) * rows.plane());
        for tap in (0..taps).step_by(OUTER_TAPS) {
            let some: [usize; OUTER_TAPS] = std::array::from_fn(|i| distances[(tap + i).min(taps - 1)]);
            let mut sums = [[L::splat(0.0); OUTER_TAPS]; OUTER_FILTERS];
            for image in 0..images {
                let (x, dy) = (&x[image * planes.len()..], &dy[image * rows.len()..]);
                // SAFETY: `outer` checked the farthest tap, the last vector of the rows, and the last image.
                unsafe { outer_tile::<L>(x.as_ptr(), dy.as_ptr(), some, channels, slots, &mut sums) };
            }
            for (filter, sums) in sums.iter().enumerate().take(filters - first) {
                let row = &mut to[(first + filter) * taps + tap..][..OUTER_TAPS.min(taps - tap)];
                row.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum.sum());
            }
        }
    }
}

/// Three filters' gradients times four taps, over all pixels of an image.
///
/// # Safety
/// `x` is readable for [`LANES`] floats from every slot's base plus every distance, `dy` from every channel for as many vectors as there
/// are slots.
#[inline(always)]
unsafe fn outer_tile<L: Lanes>(
    x: *const f32,
    dy: *const f32,
    distances: [usize; OUTER_TAPS],
    channels: [usize; OUTER_FILTERS],
    slots: &Slots,
    sums: &mut [[L; OUTER_TAPS]; OUTER_FILTERS],
) {
    let mut now = *sums;
    // SAFETY: the caller vouches for every channel and distance.
    let (rows, starts) = unsafe { (channels.map(|channel| dy.add(channel)), distances.map(|distance| x.add(distance))) };
    for (index, slot) in slots.all.iter().enumerate() {
        // SAFETY: the caller vouches for every channel and slot.
        let gradients = rows.map(|row| unsafe { L::load(row.add(index * LANES)) });
        for (tap, start) in starts.iter().enumerate() {
            // SAFETY: the caller vouches for every base plus every distance.
            let pixels = unsafe { L::load(start.add(slot.base)) };
            for (sums, gradient) in now.iter_mut().zip(gradients) {
                sums[tap] = gradient.multiply_add(pixels, sums[tap]);
            }
        }
    }
    *sums = now;
}
