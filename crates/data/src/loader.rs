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
/// An image that cannot be read is an error in the place of its batch, after which the iterator ends, so that its length is zero from then on: the first
/// such image in the order of the epoch, whichever thread met which first. Each worker makes two batches ahead and no more, so that memory does not grow with the set.
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
        let mut loader = Self::new(
            data,
            batch,
            Batches { data: data.clone(), order, batch, augment: Some((augment, rng)), drawn: None },
            workers,
        );
        if loader.end > 1 && batch > 1 && data.len() % batch == 1 {
            loader.end -= 1;
        }
        loader
    }

    /// Goes through all of `data` in its own order, unchanged: for evaluation. Panics if `batch` is zero.
    pub fn ordered(data: &Dataset, batch: usize) -> Self {
        let order = (0..data.len() as u32).collect();
        Self::new(data, batch, Batches { data: data.clone(), order, batch, augment: None, drawn: None }, data.workers(batch))
    }

    /// Draws the augmentation of each image from `seed` and its number in the set, in the place of its position in the order: with one seed an image is
    /// augmented alike in every epoch and every run. To be called before `next`.
    #[must_use]
    pub fn drawn(mut self, seed: u64) -> Self {
        if let Some(plan) = Arc::get_mut(&mut self.plan) {
            plan.drawn = Some(ChaCha8Rng::seed_from_u64(seed));
        }
        self
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
        let left = self.end.saturating_sub(self.next);
        (left, Some(left))
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
            // Who catches the panic must not be given other batches in the place of those that are lost.
            self.next = self.end;
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
    /// Of which each image has a stream by its number.
    drawn: Option<ChaCha8Rng>,
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
                    let (mut rng, stream) = match &self.drawn {
                        Some(drawn) => (drawn.clone(), u64::from(sample)),
                        None => (rng.clone(), position),
                    };
                    rng.set_stream(stream + 1);
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
mod tests;
