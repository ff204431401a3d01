//! Memory that kernels write before anybody reads it.

// A new buffer's contents are declared written once a kernel has written them all.
#![allow(unsafe_code)]

/// Where a kernel puts its results; tasks on several threads write to places of their own.
pub(crate) struct Target<T = f32> {
    start: *mut T,
    len: usize,
}

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Target<T> {}

// SAFETY: it is a pointer into a buffer that outlives the kernel; each task writes where no other task writes, and nobody reads meanwhile.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    /// All of `values`.
    pub(crate) fn of(values: &mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// The place of the results from `offset` on, of which a task writes at most `len`.
    ///
    /// # Panics
    /// When they do not lie inside.
    pub(crate) fn at(self, offset: usize, len: usize) -> *mut T {
        assert!(offset + len <= self.len, "{len} results from {offset} on lie outside {}", self.len);
        // SAFETY: the sum is inside the buffer, as was just checked.
        unsafe { self.start.add(offset) }
    }
}

/// A new vector of results, not zeroed first.
///
/// # Safety
/// `write` writes every element.
pub(crate) unsafe fn filled(len: usize, write: impl FnOnce(Target)) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    write(Target { start: values.as_mut_ptr(), len });
    // SAFETY: the capacity is `len`, and the caller vouches that all was written.
    unsafe { values.set_len(len) };
    values
}
