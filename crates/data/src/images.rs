//! Where the pixels and labels of a set lie.

use std::fmt;

use crate::Error;

/// Images of one shape with their labels, wherever they lie: in memory, in files, in archives. A [`crate::Dataset`] rests on one of these.
///
/// Images are read one at a time, by several threads at once and again in each epoch; what `read` gives for an image must not change.
pub trait Images: fmt::Debug + Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Label of image `i`; known without reading the image. Panics if `i` is not below [`Images::len`].
    fn label(&self, i: usize) -> u16;

    /// Writes the pixels of image `i`, `[c, h, w]`, over all of `pixels`. Panics if `i` is not below [`Images::len`].
    ///
    /// # Errors
    /// Names the file that cannot be read, or holds an image of another size than when the set was opened.
    fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error>;

    /// Whether reading is no more than a copy, so that one thread keeps up with any training.
    fn in_memory(&self) -> bool {
        false
    }
}

/// Decoded pixels, `[n, c, h, w]`, of `size` to an image, with their labels.
pub(crate) struct Pixels {
    pub(crate) size: usize,
    pub(crate) images: Vec<u8>,
    pub(crate) labels: Vec<u16>,
}

impl Images for Pixels {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, i: usize) -> u16 {
        self.labels[i]
    }

    fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error> {
        pixels.copy_from_slice(&self.images[i * self.size..][..self.size]);
        Ok(())
    }

    fn in_memory(&self) -> bool {
        true
    }
}

impl fmt::Debug for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pixels").field("len", &self.labels.len()).field("size", &self.size).finish_non_exhaustive()
    }
}
