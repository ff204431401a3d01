use std::{fmt, sync::Arc};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::Error;

/// Images of one shape with their labels: all of them, or a chosen few of a shared store.
///
/// Clones and subsets share the pixels. [`Dataset::images`] and [`Dataset::labels`] are the whole store; [`Dataset::pixel`],
/// [`Dataset::label`] and [`Dataset::len`] speak of the samples in view.
#[derive(Clone)]
pub struct Dataset {
    /// Name of the set and split.
    pub name: String,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Number of classes; labels are `0..classes`.
    pub classes: usize,
    /// Pixels of the store, `[n, c, h, w]`.
    pub images: Arc<Vec<u8>>,
    /// Labels of the store, `[n]`.
    pub labels: Arc<Vec<u16>>,
    view: Option<Arc<Vec<u32>>>,
}

impl Dataset {
    /// Takes pixels `[n, c, h, w]` and `n` labels that are in memory already.
    pub fn from_memory(
        name: impl Into<String>,
        shape: [usize; 3],
        classes: usize,
        images: Vec<u8>,
        labels: Vec<u16>,
    ) -> Result<Self, Error> {
        let name = name.into();
        let fault = |what: String| Err(Error::Inconsistent { name: name.clone(), what });
        let pixels = match shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side)) {
            Some(pixels) if pixels > 0 => pixels,
            _ => return fault(format!("shape {shape:?} has no pixels or too many")),
        };
        if labels.len().checked_mul(pixels) != Some(images.len()) {
            return fault(format!("{} labels of shape {shape:?} ask for other than {} bytes", labels.len(), images.len()));
        }
        if u32::try_from(labels.len()).is_err() {
            return fault(format!("{} images are more than 2^32 - 1", labels.len()));
        }
        if let Some(at) = labels.iter().position(|&label| usize::from(label) >= classes) {
            return fault(format!("label {} of image {at} is not below the {classes} classes", labels[at]));
        }
        Ok(Self { name, shape, classes, images: Arc::new(images), labels: Arc::new(labels), view: None })
    }

    /// Number of samples in view.
    pub fn len(&self) -> usize {
        self.view.as_ref().map_or(self.labels.len(), |view| view.len())
    }

    /// Whether no sample is in view.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of sample `i`, `[c, h, w]`. Panics if `i` is not below [`Dataset::len`].
    pub fn pixel(&self, i: usize) -> &[u8] {
        let size: usize = self.shape.iter().product();
        &self.images[self.stored(i) * size..][..size]
    }

    /// Label of sample `i`. Panics if `i` is not below [`Dataset::len`].
    pub fn label(&self, i: usize) -> u16 {
        self.labels[self.stored(i)]
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

    /// Mean and standard deviation of each channel, of pixels / 255.
    pub fn statistics(&self) -> (Vec<f32>, Vec<f32>) {
        let [channels, height, width] = self.shape;
        let mut counts = vec![[0_u64; 256]; channels];
        for i in 0..self.len() {
            for (plane, counts) in self.pixel(i).chunks_exact(height * width).zip(&mut counts) {
                plane.iter().for_each(|&pixel| counts[usize::from(pixel)] += 1);
            }
        }
        counts.iter().map(moments).unzip()
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
        assert_eq!((few.len(), few.label(0), few.pixel(0), few.pixel(1)), (2, 1, &[2, 3][..], &[6, 7][..]));
        assert_eq!(few.take(9).len(), 2);
    }

    #[test]
    fn split_is_seeded_stratified_and_whole() {
        let set = toy(&[0, 0, 0, 0, 1, 1, 2, 0, 1, 1]);
        let (train, valid) = set.split(5, 1);
        assert_eq!((train.len(), valid.len()), (5, 5));
        assert_eq!(valid.class_counts()[1], 2);
        let pixels = |set: &Dataset| (0..set.len()).map(|i| set.pixel(i)[0]).collect::<Vec<_>>();
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
        assert_eq!(set.statistics(), (vec![0.5, 1.0], vec![0.5, 0.0]));
    }
}
