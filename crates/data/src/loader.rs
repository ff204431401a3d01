use std::{
    mem,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{Augment, Dataset, Error};

/// Batches each worker may hold ready.
const AHEAD: usize = 2;

/// Batches of a worker that are in memory at once: those that are ready, and the one that it makes.
pub(crate) const HELD: usize = AHEAD + 1;

/// Some samples, ready for a network's input layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Pixels / 255, `[len, c, h, w]`.
    pub images: Vec<f32>,
    /// Labels, `[len]`.
    pub labels: Vec<u16>,
    /// Which images of the set these are, `[len]`.
    pub ids: Vec<u32>,
    /// Number of samples.
    pub len: usize,
}

/// Where a worker's batches come out, and its thread.
type Worker = (Receiver<Result<Batch, Error>>, JoinHandle<()>);

/// Iterator over the batches of one epoch, read, decoded and augmented ahead of time by worker threads.
///
/// An image that cannot be read is an error in the place of its batch, after which the iterator ends: the first such image in the order of the epoch,
/// whichever thread met which first. Each worker makes two batches ahead and no more, so that memory does not grow with the set.
///
/// Order and content depend on the seed alone, never on the number of workers: the order of the samples is drawn from stream 0 of
/// ChaCha8 seeded with the epoch's seed, the augmentation of the sample at position `p` of that order from stream `p + 1`.
/// The threads start with the first batch and end when the loader is dropped.
#[derive(Debug)]
pub struct Loader {
    plan: Arc<Batches>,
    workers: usize,
    next: usize,
    end: usize,
    running: Vec<Worker>,
}

impl Loader {
    /// Goes through `data` once in an order drawn from `seed`, with random changes to the images.
    ///
    /// A last batch that is short is delivered unless it holds a single sample, which batch normalization cannot use.
    /// With no workers, batches are made on the calling thread. Panics if `batch` is zero.
    pub fn train(data: &Dataset, batch: usize, augment: Augment, seed: u64, workers: usize) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut order: Vec<u32> = (0..data.len() as u32).collect();
        order.shuffle(&mut rng.clone());
        let mut loader =
            Self::new(data, batch, Batches { data: data.clone(), order, batch, augment: Some((augment, rng)) }, workers);
        if loader.end > 1 && batch > 1 && data.len() % batch == 1 {
            loader.end -= 1;
        }
        loader
    }

    /// Goes through all of `data` in its own order, unchanged: for evaluation. Panics if `batch` is zero.
    pub fn ordered(data: &Dataset, batch: usize) -> Self {
        let order = (0..data.len() as u32).collect();
        Self::new(data, batch, Batches { data: data.clone(), order, batch, augment: None }, data.workers(batch))
    }

    /// Leaves out the last batch if it is short.
    #[must_use]
    pub fn drop_last(mut self) -> Self {
        self.end = self.plan.order.len() / self.plan.batch;
        self
    }

    /// Leaves out the first `batches`, as if they had been taken: a stopped epoch goes on from there. To be called before `next`.
    #[must_use]
    pub fn starting_at(mut self, batches: usize) -> Self {
        self.next = batches.min(self.end);
        self
    }

    fn new(data: &Dataset, batch: usize, plan: Batches, workers: usize) -> Self {
        assert!(batch > 0, "a batch holds at least one sample");
        Self { plan: Arc::new(plan), workers, next: 0, end: data.len().div_ceil(batch), running: Vec::new() }
    }

    /// Worker `w` of `n` makes batches `w`, `w + n`, `w + 2n`, ... and hands them over through a channel of its own.
    fn start(&mut self) {
        let (first, end, step) = (self.next, self.end, self.workers.min(self.end - self.next));
        let spawn = |worker: usize| {
            let (sender, receiver) = sync_channel(AHEAD);
            let plan = Arc::clone(&self.plan);
            let make = move || {
                let made = (first + worker..end).step_by(step).map(|index| plan.make(index));
                // Nobody reads on behind an error, and nobody listens any more once the loader is dropped.
                for batch in made {
                    let failed = batch.is_err();
                    if sender.send(batch).is_err() || failed {
                        break;
                    }
                }
            };
            (receiver, thread::spawn(make))
        };
        self.running = (0..step).map(spawn).collect();
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let batch = if self.workers == 0 { self.plan.make(self.next) } else { self.receive() };
        self.next = if batch.is_ok() { self.next + 1 } else { self.end };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl Loader {
    fn receive(&mut self) -> Result<Batch, Error> {
        if self.running.is_empty() {
            self.start();
        }
        // Each worker's channel is served in turn, the next one always first.
        let (receiver, thread) = self.running.remove(0);
        let Ok(batch) = receiver.recv() else {
            std::panic::resume_unwind(thread.join().expect_err("a worker ends early by a panic or behind an error"));
        };
        self.running.push((receiver, thread));
        batch
    }
}

impl ExactSizeIterator for Loader {}

impl Drop for Loader {
    fn drop(&mut self) {
        let (receivers, threads): (Vec<_>, Vec<_>) = mem::take(&mut self.running).into_iter().unzip();
        drop(receivers);
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

#[derive(Debug)]
struct Batches {
    data: Dataset,
    order: Vec<u32>,
    batch: usize,
    augment: Option<(Augment, ChaCha8Rng)>,
}

impl Batches {
    fn make(&self, index: usize) -> Result<Batch, Error> {
        let start = index * self.batch;
        let samples = &self.order[start..self.order.len().min(start + self.batch)];
        let size = self.data.shape.iter().product::<usize>();
        let (mut images, mut pixels) = (Vec::with_capacity(samples.len() * size), vec![0; size]);
        for (position, &sample) in (start as u64..).zip(samples) {
            self.data.read(sample as usize, &mut pixels)?;
            match &self.augment {
                Some((augment, rng)) => {
                    let mut rng = rng.clone();
                    rng.set_stream(position + 1);
                    augment.apply(&pixels, self.data.shape, &mut rng, &mut images);
                }
                None => images.extend(pixels.iter().map(|&pixel| f32::from(pixel) / 255.0)),
            }
        }
        let labels = samples.iter().map(|&sample| self.data.label(sample as usize)).collect();
        Ok(Batch { images, labels, ids: samples.to_vec(), len: samples.len() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Images;

    fn toy(n: usize) -> Dataset {
        let images = (0..n * 4).map(|i| (i * 7) as u8).collect();
        Dataset::from_memory("toy", [1, 2, 2], 1000, images, (0..n).map(|i| i as u16).collect()).expect("consistent")
    }

    fn train(n: usize, batch: usize, seed: u64, workers: usize) -> Loader {
        Loader::train(&toy(n), batch, Augment { pad_crop: 1, flip: true }, seed, workers)
    }

    fn all(loader: Loader) -> Vec<Batch> {
        loader.collect::<Result<_, _>>().expect("memory")
    }

    #[test]
    fn the_number_of_workers_changes_nothing() {
        let one = all(train(103, 8, 5, 0));
        for workers in [1, 2, 3, 40] {
            assert_eq!(all(train(103, 8, 5, workers)), one);
        }
        assert_ne!(all(train(103, 8, 6, 2)), one);
    }

    #[test]
    fn an_epoch_visits_every_sample_once() {
        let mut labels: Vec<u16> = all(train(103, 8, 5, 2)).into_iter().flat_map(|batch| batch.labels).collect();
        assert_ne!(labels, (0..103).collect::<Vec<u16>>());
        labels.sort_unstable();
        assert_eq!(labels, (0..103).collect::<Vec<u16>>());
    }

    #[test]
    fn short_last_batches() {
        let sizes = |loader: Loader| all(loader).iter().map(|batch| batch.len).collect::<Vec<_>>();
        assert_eq!(sizes(train(10, 4, 0, 2)), [4, 4, 2]);
        assert_eq!(sizes(train(10, 4, 0, 2).drop_last()), [4, 4]);
        assert_eq!(sizes(train(9, 4, 0, 2)), [4, 4]);
        assert_eq!(sizes(train(1, 4, 0, 2)), [1]);
        assert_eq!(sizes(train(2, 1, 0, 2)), [1, 1]);
        assert_eq!(sizes(train(0, 4, 0, 2)), [0; 0]);
        assert_eq!(sizes(Loader::ordered(&toy(9), 4)), [4, 4, 1]);
        assert_eq!(train(10, 4, 0, 2).len(), 3);
    }

    #[test]
    fn evaluation_keeps_order_and_pixels() {
        let batch = &all(Loader::ordered(&toy(9), 4))[1];
        assert_eq!(batch.labels, [4, 5, 6, 7]);
        assert_eq!(batch.images[1], 119.0 / 255.0);
    }

    #[test]
    fn an_epoch_can_go_on_where_it_stopped() {
        let whole = all(train(50, 8, 5, 2));
        assert_eq!(all(train(50, 8, 5, 3).starting_at(4)), whole[4..]);
        assert_eq!(train(50, 8, 5, 3).starting_at(99).count(), 0);
    }

    #[test]
    fn a_loader_dropped_early_ends_its_threads() {
        let mut loader = train(1000, 2, 1, 3);
        loader.next().expect("a batch").expect("memory");
        drop(loader);
    }

    /// Four images to a batch, of which those that are named cannot be read.
    #[derive(Debug)]
    struct Holes(Vec<usize>);

    impl Images for Holes {
        fn len(&self) -> usize {
            40
        }

        fn label(&self, _: usize) -> u16 {
            0
        }

        fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error> {
            pixels.fill(i as u8);
            if self.0.contains(&i) { Err(Error::malformed(format!("{i}.png"), "a hole")) } else { Ok(()) }
        }
    }

    #[test]
    fn what_cannot_be_read_is_one_error_in_its_place_and_the_first_of_several() {
        let set = Dataset::new("holes", [1, 1, 1], 1, Arc::new(Holes(vec![38, 21, 23]))).expect("consistent");
        let ordered = |workers| {
            let mut loader = Loader::ordered(&set, 4);
            loader.workers = workers;
            loader
        };
        for workers in [0, 1, 2, 3, 7] {
            let found: Vec<_> = ordered(workers).collect();
            assert_eq!(found.len(), 6);
            assert!(found[..5].iter().all(Result::is_ok));
            assert_eq!(found[5].as_ref().expect_err("a hole").to_string(), "21.png: a hole");
            assert!(ordered(workers).starting_at(6).collect::<Vec<_>>()[3].is_err());
        }
    }

    /// Counts how many images have been read.
    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);

    impl Images for Counted {
        fn len(&self) -> usize {
            100_000
        }

        fn label(&self, _: usize) -> u16 {
            0
        }

        fn read(&self, _: usize, _: &mut [u8]) -> Result<(), Error> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    #[test]
    fn no_more_is_read_than_is_taken_and_held() {
        let read = Arc::new(AtomicUsize::new(0));
        let set = Dataset::new("counted", [1, 1, 1], 1, Arc::new(Counted(Arc::clone(&read)))).expect("consistent");
        let mut loader = Loader::train(&set, 10, Augment::default(), 1, 3);
        (0..20).for_each(|_| drop(loader.next().expect("a batch")));
        drop(loader);
        // A worker that has handed over a batch just now may have begun another one.
        assert!((200..=10 * (20 + 3 * (HELD + 1))).contains(&read.load(Ordering::SeqCst)), "{read:?}");
    }
}
