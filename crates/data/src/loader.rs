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

use crate::{Augment, Dataset};

/// Batches each worker may hold ready.
const AHEAD: usize = 2;

/// Some samples, ready for a network's input layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Pixels / 255, `[len, c, h, w]`.
    pub images: Vec<f32>,
    /// Labels, `[len]`.
    pub labels: Vec<u16>,
    /// Number of samples.
    pub len: usize,
}

/// Iterator over the batches of one epoch, made ahead of time by worker threads.
///
/// Order and content depend on the seed alone, never on the number of workers: the order of the samples is drawn from stream 0 of
/// ChaCha8 seeded with the epoch's seed, the augmentation of the sample at position `p` of that order from stream `p + 1`.
/// The threads start with the first batch and end when the loader is dropped.
#[derive(Debug)]
pub struct Loader {
    plan: Arc<Plan>,
    workers: usize,
    next: usize,
    end: usize,
    running: Vec<(Receiver<Batch>, JoinHandle<()>)>,
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
            Self::new(data, batch, Plan { data: data.clone(), order, batch, augment: Some((augment, rng)) }, workers);
        if loader.end > 1 && batch > 1 && data.len() % batch == 1 {
            loader.end -= 1;
        }
        loader
    }

    /// Goes through all of `data` in its own order, unchanged: for evaluation. Panics if `batch` is zero.
    pub fn ordered(data: &Dataset, batch: usize) -> Self {
        let order = (0..data.len() as u32).collect();
        Self::new(data, batch, Plan { data: data.clone(), order, batch, augment: None }, 1)
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

    fn new(data: &Dataset, batch: usize, plan: Plan, workers: usize) -> Self {
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
                (first + worker..end).step_by(step).map(|index| plan.make(index)).all(|batch| sender.send(batch).is_ok());
            };
            (receiver, thread::spawn(make))
        };
        self.running = (0..step).map(spawn).collect();
    }
}

impl Iterator for Loader {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        if self.next >= self.end {
            return None;
        }
        if self.workers == 0 {
            self.next += 1;
            return Some(self.plan.make(self.next - 1));
        }
        if self.running.is_empty() {
            self.start();
        }
        // Each worker's channel is served in turn, the next one always first.
        let (receiver, thread) = self.running.remove(0);
        let Ok(batch) = receiver.recv() else {
            std::panic::resume_unwind(thread.join().expect_err("a worker ends early only by a panic"));
        };
        self.running.push((receiver, thread));
        self.next += 1;
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
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
struct Plan {
    data: Dataset,
    order: Vec<u32>,
    batch: usize,
    augment: Option<(Augment, ChaCha8Rng)>,
}

impl Plan {
    fn make(&self, index: usize) -> Batch {
        let start = index * self.batch;
        let samples = &self.order[start..self.order.len().min(start + self.batch)];
        let mut images = Vec::with_capacity(samples.len() * self.data.shape.iter().product::<usize>());
        for (position, &sample) in (start as u64..).zip(samples) {
            let pixels = self.data.pixel(sample as usize);
            match &self.augment {
                Some((augment, rng)) => {
                    let mut rng = rng.clone();
                    rng.set_stream(position + 1);
                    augment.apply(pixels, self.data.shape, &mut rng, &mut images);
                }
                None => images.extend(pixels.iter().map(|&pixel| f32::from(pixel) / 255.0)),
            }
        }
        let labels = samples.iter().map(|&sample| self.data.label(sample as usize)).collect();
        Batch { images, labels, len: samples.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy(n: usize) -> Dataset {
        let images = (0..n * 4).map(|i| (i * 7) as u8).collect();
        Dataset::from_memory("toy", [1, 2, 2], 1000, images, (0..n).map(|i| i as u16).collect()).expect("consistent")
    }

    fn train(n: usize, batch: usize, seed: u64, workers: usize) -> Loader {
        Loader::train(&toy(n), batch, Augment { pad_crop: 1, flip: true }, seed, workers)
    }

    #[test]
    fn the_number_of_workers_changes_nothing() {
        let one: Vec<Batch> = train(103, 8, 5, 0).collect();
        for workers in [1, 2, 3, 40] {
            assert_eq!(train(103, 8, 5, workers).collect::<Vec<_>>(), one);
        }
        assert_ne!(train(103, 8, 6, 2).collect::<Vec<_>>(), one);
    }

    #[test]
    fn an_epoch_visits_every_sample_once() {
        let mut labels: Vec<u16> = train(103, 8, 5, 2).flat_map(|batch| batch.labels).collect();
        assert_ne!(labels, (0..103).collect::<Vec<u16>>());
        labels.sort_unstable();
        assert_eq!(labels, (0..103).collect::<Vec<u16>>());
    }

    #[test]
    fn short_last_batches() {
        let sizes = |loader: Loader| loader.map(|batch| batch.len).collect::<Vec<_>>();
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
        let batch = Loader::ordered(&toy(9), 4).nth(1).expect("three batches");
        assert_eq!(batch.labels, [4, 5, 6, 7]);
        assert_eq!(batch.images[1], 119.0 / 255.0);
    }

    #[test]
    fn an_epoch_can_go_on_where_it_stopped() {
        let whole: Vec<Batch> = train(50, 8, 5, 2).collect();
        assert_eq!(train(50, 8, 5, 3).starting_at(4).collect::<Vec<_>>(), whole[4..]);
        assert_eq!(train(50, 8, 5, 3).starting_at(99).count(), 0);
    }

    #[test]
    fn a_loader_dropped_early_ends_its_threads() {
        let mut loader = train(1000, 2, 1, 3);
        loader.next();
        drop(loader);
    }
}
