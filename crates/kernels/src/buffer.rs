//! Memory that kernels write before anybody reads it.

// A new buffer's contents are declared written once a kernel has written them all.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// Where a kernel puts its results, borrowed for as long as `'a`; tasks on several threads write to places of their own.
pub(crate) struct Target<'a, T = f32> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Target<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Target<'_, T> {}

// SAFETY: it is a pointer into a buffer that is borrowed for its lifetime; each task writes where no other task writes, and nobody reads
// meanwhile.
unsafe impl<T: Send> Send for Target<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<'_, T> {}

impl<'a, T> Target<'a, T> {
    /// All of `values`.
    pub(crate) fn of(values: &'a mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    /// The place of the results from `offset` on, of which a task writes at most `len`.
    ///
    /// # Panics
    /// When they do not lie inside.
    #[inline]
    pub(crate) fn at(self, offset: usize, len: usize) -> *mut T {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} results from {offset} on lie outside {}", self.len);
        // SAFETY: the sum is inside the buffer, as was just checked.
        unsafe { self.start.add(offset) }
    }
}

/// A new vector of results, not zeroed first. In the tests of this crate it is full of [`POISON`] instead, of which nothing may be left.
///
/// # Safety
/// `write` writes every element.
pub(crate) unsafe fn filled(len: usize, write: impl FnOnce(Target<'_>)) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    if cfg!(test) {
        values.spare_capacity_mut()[..len].iter_mut().for_each(|value| {
            value.write(f32::from_bits(POISON));
        });
    }
    write(Target { start: values.as_mut_ptr(), len, borrowed: PhantomData });
    // SAFETY: the capacity is `len`, and the caller vouches that all was written.
    unsafe { values.set_len(len) };
    if cfg!(test) {
        // What was computed of poison is a quiet NaN of the same payload.
        let left = values.iter().position(|value| value.to_bits() | QUIET == POISON | QUIET);
        assert_eq!(left, None, "a result of {len} was not written, or made of one that was not");
    }
    values
}

/// A signalling NaN that no computation makes.
const POISON: u32 = 0x7fa5_5aa5;
/// What makes a NaN quiet.
const QUIET: u32 = 0x0040_0000;

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn places_lie_inside_their_buffer_also_where_sums_wrap_around() {
        let outside = |offset: usize, len: usize| {
            catch_unwind(|| {
                let mut values = [0_u8; 8];
                Target::of(&mut values).at(offset, len)
            })
            .is_err()
        };
        assert!(!outside(0, 8) && !outside(8, 0) && !outside(3, 5));
        assert!(outside(4, 5) && outside(9, 0));
        assert!(outside(usize::MAX, 1) && outside(usize::MAX - 2, 8) && outside(8, usize::MAX));
    }

    #[test]
    fn a_result_that_no_task_writes_is_found() {
        let with_a_gap = |gap: usize| {
            // SAFETY: the gap was filled with poison before.
            catch_unwind(|| unsafe {
                filled(5, |to| (0..5).filter(|i| *i != gap).for_each(|i| to.at(i, 1).write(i as f32)));
            })
            .is_err()
        };
        assert!((0..5).all(with_a_gap) && !with_a_gap(5));
        // SAFETY: as above.
        let added = catch_unwind(|| unsafe { filled(1, |to| *to.at(0, 1) += 1.0) });
        assert!(added.is_err(), "a sum that begins with what was there");
    }
}
