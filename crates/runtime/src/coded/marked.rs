//! Values that carry their mask in the sign of their zeros.

use std::borrow::Cow;

use half::f16;
use rayon::prelude::*;

use super::{Mask, elements};
use crate::gaps::Gaps;
use crate::{Coder, Error, stream};

/// Values that say themselves whether they are masked: masked ones are the positive zero, kept zeros the negative one.
pub(super) struct Marked<'a> {
    pub(super) values: Cow<'a, [f32]>,
    pub(super) masked: bool,
}

impl<'a> Marked<'a> {
    /// Values of this shape under a mask, rounded to 16 bits first if `half`.
    pub(super) fn new(shape: &[usize], values: &'a [f32], mask: Option<&[bool]>, half: bool) -> Result<Self, Error> {
        let count = elements(shape)?;
        if let Some(found) = [Some(values.len()), mask.map(<[bool]>::len)].into_iter().flatten().find(|found| *found != count) {
            return Err(Error::Count { shape: shape.to_vec(), values: found });
        }
        let mask = mask.filter(|mask| mask.contains(&false));
        let marked = |i: usize| {
            let value = if half { f16::from_f32(values[i]).to_f32() } else { values[i] };
            match mask.map(|mask| mask[i]) {
                Some(false) => 0.0,
                Some(true) if value == 0.0 => -0.0,
                _ => value,
            }
        };
        let places = || (0..count).into_par_iter().with_min_len(stream::TASK);
        let changed = places().any(|i| marked(i).to_bits() != values[i].to_bits());
        let values = if changed { places().map(marked).collect::<Vec<_>>().into() } else { Cow::Borrowed(values) };
        Ok(Self { values, masked: mask.is_some() })
    }

    /// What a form stores, with its place.
    pub(super) fn stored(&self, sparse: bool) -> impl Iterator<Item = (usize, f32)> {
        self.values.iter().copied().enumerate().filter(move |(_, value)| !sparse || is_kept(*value))
    }

    /// Whether a form may store this value as that one without taking it for masked, or the reverse.
    pub(super) fn is(&self, found: f32, value: f32, sparse: bool) -> bool {
        found == value && (sparse || !self.masked || is_kept(found) == is_kept(value))
    }

    /// The mask of a form.
    pub(super) fn mask(&self, sparse: bool, coder: Coder) -> Mask {
        match (self.masked, sparse) {
            (false, _) => Mask::None,
            (true, false) => Mask::Zeros,
            (true, true) => Mask::Gaps(Gaps::of(&self.values, coder)),
        }
    }

    /// Which values are kept.
    pub(super) fn kept(&self) -> Option<Vec<bool>> {
        self.masked.then(|| self.values.iter().copied().map(is_kept).collect())
    }
}

/// Whether a marked value is kept.
pub(crate) fn is_kept(value: f32) -> bool {
    value.to_bits() != 0
}
