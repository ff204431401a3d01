mod labelled;

use std::{fmt, sync::Arc};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{Error, Images, images::Pixels, loader::HELD};

/// Images of one shape with their labels: all of them, or a chosen few of a shared store.
///
/// Clones and subsets share the store, which need not be in memory: [`Dataset::pixel`] and [`Dataset::read`] fetch an image when it is asked for.
#[derive(Clone)]
pub struct Dataset {
    /// Name of the set and split.
    pub name: String,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Number of classes; labels are `0..classes`.
    pub classes: usize,
    images: Arc<dyn Images>,
    view: Option<Arc<Vec<u32>>>,
}

impl Dataset {
    /// Takes images wherever they lie.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use briquette_data::{Dataset, Error, Images};
    ///
    /// /// Grey images of 2x2 pixels, each of one value, drawn when they are asked for.
    /// #[derive(Debug)]
    /// struct Greys;
    ///
    /// impl Images for Greys {
    ///     fn len(&self) -> usize {
    ///         200
    ///     }
    ///
    ///     fn label(&self, i: usize) -> u16 {
    ///         (i / 100) as u16
    ///     }
    ///
    ///     fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error> {
    ///         pixels.fill(i as u8);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let greys = Dataset::new("greys", [1, 2, 2], 2, Arc::new(Greys))?;
    /// assert_eq!((greys.len(), greys.label(7), greys.pixel(7)?), (200, 0, vec![7; 4]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A shape without pixels, more images than 2^32 - 1, and labels that are not below `classes`.
    pub fn new(name: impl Into<String>, shape: [usize; 3], classes: usize, images: Arc<dyn Images>) -> Result<Self, Error> {
        let name = name.into();
        let fault = |what: String| Err(Error::Inconsistent { name: name.clone(), what });
        if pixels_of(shape).is_none() {
            return fault(format!("shape {shape:?} has no pixels or too many"));
        }
        if u32::try_from(images.len()).is_err() {
            return fault(format!("{} images are more than 2^32 - 1", images.len()));
        }
        if let Some(at) = (0..images.len()).find(|&at| usize::from(images.label(at)) >= classes) {
            return fault(format!("label {} of image {at} is not below the {classes} classes", images.label(at)));
        }
        Ok(Self { name, shape, classes, images, view: None })
    }

    /// Takes pixels `[n, c, h, w]` and `n` labels that are in memory already.
    ///
    /// # Errors
    /// As [`Dataset::new`], and pixels that are not of so many images of this shape.
    pub fn from_memory(
        name: impl Into<String>,
        shape: [usize; 3],
        classes: usize,
        images: Vec<u8>,
        labels: Vec<u16>,
    ) -> Result<Self, Error> {
        let name = name.into();
        // A shape that has none is refused by `new`.
        let size = pixels_of(shape).unwrap_or(0);
        if size > 0 && labels.len().checked_mul(size) != Some(images.len()) {
            let what = format!("{} labels of shape {shape:?} ask for other than {} bytes", labels.len(), images.len());
            return Err(Error::Inconsistent { name, what });
        }
        Self::new(name, shape, classes, Arc::new(Pixels { size, images, labels }))
    }

    /// Number of samples in view.
    pub fn len(&self) -> usize {
        self.view.as_ref().map_or_else(|| self.images.len(), |view| view.len())
    }

    /// Whether no sample is in view.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of sample `i`, `[c, h, w]`. Panics if `i` is not below [`Dataset::len`].
    ///
    /// # Errors
    /// As [`Images::read`].
    pub fn pixel(&self, i: usize) -> Result<Vec<u8>, Error> {
        let mut pixels = vec![0; self.size()];
        self.read(i, &mut pixels)?;
        Ok(pixels)
    }

    /// Writes the pixels of sample `i`, `[c, h, w]`, over `pixels`. Panics if `i` is not below [`Dataset::len`], or if `pixels` has another length.
    ///
    /// # Errors
    /// As [`Images::read`].
    pub fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error> {
        assert_eq!(pixels.len(), self.size(), "one byte for each pixel and channel");
        self.images.read(self.stored(i), pixels)
    }

    /// Label of sample `i`. Panics if `i` is not below [`Dataset::len`].
    pub fn label(&self, i: usize) -> u16 {
        self.images.label(self.stored(i))
    }

    /// Threads that should make batches of so many images: one where reading is a copy, else as many as compute, but no more than hold
    /// 512 MiB together. How many there are changes no batch.
    pub fn workers(&self, batch: usize) -> usize {
        if self.images.in_memory() {
            return 1;
        }
        let bytes = batch.saturating_mul(self.size()).saturating_mul(size_of::<f32>()).saturating_mul(HELD);
        rayon::current_num_threads().min(AHEAD_BYTES / bytes.max(1)).max(1)
    }

    /// The samples at `positions` of this view, in that order. Panics if one is not below [`Dataset::len`].
    #[must_use]
    pub fn subset(&self, positions: &[usize]) -> Self {
        let view = positions.iter().map(|&i| self.stored(i) as u32).collect();
        Self { view: Some(Arc::new(view)), ..self.clone() }
    }

    /// The first `n` samples, or all if there are fewer.
    #[must_use]
    pub fn take(&self, n: usize) -> Self {
        self.subset(&(0..n.min(self.len())).collect::<Vec<_>>())
    }

    /// Sets `valid` samples aside (all, if there are fewer): `(train, valid)`.
    ///
    /// Each class gives its share, rounded by largest remainder; which samples it gives is drawn from stream 0 of ChaCha8 seeded
    /// with `seed`. Both halves keep the order of the set.
    #[must_use]
    pub fn split(&self, valid: usize, seed: u64) -> (Self, Self) {
        let mut members = vec![Vec::new(); self.classes];
        (0..self.len()).for_each(|i| members[usize::from(self.label(i))].push(i));
        let quota = shares(&members.iter().map(Vec::len).collect::<Vec<_>>(), valid);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut kept, mut held) = (Vec::new(), Vec::new());
        for (class, &quota) in members.iter_mut().zip(&quota) {
            class.shuffle(&mut rng);
            held.extend_from_slice(&class[..quota]);
            kept.extend_from_slice(&class[quota..]);
        }
        kept.sort_unstable();
        held.sort_unstable();
        (self.subset(&kept), self.subset(&held))
    }

    /// Samples of each class.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        (0..self.len()).for_each(|i| counts[usize::from(self.label(i))] += 1);
        counts
    }

    /// Mean and standard deviation of each channel, of pixels / 255. Every image is read once, by all threads, and none is kept.
    ///
    /// # Errors
    /// As [`Images::read`]; of several images that cannot be read, the first.
    pub fn statistics(&self) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let [channels, height, width] = self.shape;
        let none = || (vec![[0_u64; 256]; channels], vec![0; self.size()]);
        let count = |(mut counts, mut pixels): (Vec<[u64; 256]>, Vec<u8>), i: usize| {
            self.read(i, &mut pixels)?;
            for (plane, counts) in pixels.chunks_exact(height * width).zip(&mut counts) {
                plane.iter().for_each(|&pixel| counts[usize::from(pixel)] += 1);
            }
            Ok((counts, pixels))
        };
        // Whole numbers: whichever thread counts what, the sums are the same.
        let add = |(mut counts, pixels): (Vec<[u64; 256]>, Vec<u8>), (others, _): (Vec<[u64; 256]>, Vec<u8>)| {
            counts.as_flattened_mut().iter_mut().zip(others.as_flattened()).for_each(|(count, other)| *count += other);
            Ok((counts, pixels))
        };
        let counted = (0..self.len()).into_par_iter().try_fold(none, count).try_reduce(none, add);
        let (counts, _) = counted.map_err(|error| self.unread().unwrap_or(error))?;
        Ok(counts.iter().map(moments).unzip())
    }

    /// What is said of the first image that cannot be read, whichever thread meets one first.
    fn unread(&self) -> Option<Error> {
        let read = |pixels: &mut Vec<u8>, i| self.read(i, pixels).err();
        (0..self.len()).into_par_iter().map_init(|| vec![0; self.size()], read).find_map_first(|error| error)
    }

    /// Bytes of an image.
    fn size(&self) -> usize {
        self.shape.iter().product()
    }

    fn stored(&self, i: usize) -> usize {
        self.view.as_ref().map_or(i, |view| view[i] as usize)
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("name", &self.name)
            .field("shape", &self.shape)
            .field("classes", &self.classes)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Most bytes of batches that wait for the training step, or are being made, where several threads make them.
const AHEAD_BYTES: usize = 512 << 20;

/// Pixels of an image, if it has any and their number can be told.
fn pixels_of(shape: [usize; 3]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side)).filter(|&pixels| pixels > 0)
}

/// Divides `wanted` among classes in proportion to `counts`: floors first, then one each by largest remainder.
fn shares(counts: &[usize], wanted: usize) -> Vec<usize> {
    let total: usize = counts.iter().sum();
    let wanted = wanted.min(total);
    let exact = |class: usize| counts[class] as u128 * wanted as u128;
    let mut shares: Vec<usize> = (0..counts.len()).map(|class| (exact(class) / total.max(1) as u128) as usize).collect();
    let left = wanted - shares.iter().sum::<usize>();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&class| std::cmp::Reverse(exact(class) % total.max(1) as u128));
    order.iter().take(left).for_each(|&class| shares[class] += 1);
    shares
}

fn moments(counts: &[u64; 256]) -> (f32, f32) {
    let mean_of = |value: fn(f64) -> f64| {
        let sum: f64 = (0..=255_u8).zip(counts).map(|(pixel, &count)| count as f64 * value(f64::from(pixel))).sum();
        sum / counts.iter().sum::<u64>().max(1) as f64
    };
    let (mean, square) = (mean_of(|x| x), mean_of(|x| x * x));
    ((mean / 255.0) as f32, ((square - mean * mean).max(0.0).sqrt() / 255.0) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy(labels: &[u16]) -> Dataset {
        let images = (0..labels.len() * 2).map(|i| i as u8).collect();
        Dataset::from_memory("toy", [2, 1, 1], 3, images, labels.to_vec()).expect("consistent")
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refuse = |shape, images: usize, labels: &[u16]| {
            Dataset::from_memory("mine", shape, 3, vec![0; images], labels.to_vec()).expect_err("inconsistent").to_string()
        };
        assert!(refuse([1, 2, 2], 7, &[0, 1]).contains("2 labels"));
        assert!(refuse([1, 2, 2], 8, &[0, 3]).contains("label 3 of image 1"));
        assert!(refuse([1, 0, 2], 0, &[]).contains("no pixels"));
        assert!(refuse([usize::MAX, 2, 2], 0, &[]).contains("too many"));
    }

    #[test]
    fn subsets_of_subsets_look_through() {
        let few = toy(&[0, 1, 2, 0]).subset(&[3, 1, 0]).subset(&[1, 0]);
        assert_eq!(
            (few.len(), few.label(0), few.pixel(0).expect("memory"), few.pixel(1).expect("memory")),
            (2, 1, vec![2, 3], vec![6, 7])
        );
        assert_eq!(few.take(9).len(), 2);
    }

    #[test]
    fn split_is_seeded_stratified_and_whole() {
        let set = toy(&[0, 0, 0, 0, 1, 1, 2, 0, 1, 1]);
        let (train, valid) = set.split(5, 1);
        assert_eq!((train.len(), valid.len()), (5, 5));
        assert_eq!(valid.class_counts()[1], 2);
        let pixels = |set: &Dataset| (0..set.len()).map(|i| set.pixel(i).expect("memory")[0]).collect::<Vec<_>>();
        let mut all = [pixels(&train), pixels(&valid)].concat();
        all.sort_unstable();
        assert_eq!(all, pixels(&set));
        assert_eq!(pixels(&set.split(5, 1).0), pixels(&train));
        assert!((2..40).any(|seed| pixels(&set.split(5, seed).0) != pixels(&train)));
        assert_eq!(set.split(99, 0).1.len(), 10);
        assert!(set.take(0).split(1, 0).1.is_empty());
    }

    #[test]
    fn statistics_are_per_channel() {
        let set = Dataset::from_memory("two", [2, 1, 1], 1, vec![0, 255, 255, 255], vec![0, 0]).expect("consistent");
        assert_eq!(set.statistics().expect("memory"), (vec![0.5, 1.0], vec![0.5, 0.0]));
    }

    /// Images of which the early ones take their time; the 60th cannot be read, nor can those of the second half.
    #[derive(Debug)]
    struct Broken;

    impl Images for Broken {
        fn len(&self) -> usize {
            400
        }

        fn label(&self, _: usize) -> u16 {
            0
        }

        fn read(&self, i: usize, _: &mut [u8]) -> Result<(), Error> {
            std::thread::sleep(std::time::Duration::from_millis(if i < 100 { 2 } else { 0 }));
            if i == 60 || i >= 200 { Err(Error::malformed(format!("{i}.png"), "a hole")) } else { Ok(()) }
        }
    }

    #[test]
    fn of_several_images_that_cannot_be_read_statistics_name_the_first() {
        let set = Dataset::new("broken", [1, 1, 1], 1, Arc::new(Broken)).expect("consistent");
        for threads in [1, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let error = pool.install(|| set.statistics()).expect_err("broken").to_string();
            assert_eq!(error, "60.png: a hole", "{threads} threads");
        }
    }
}
