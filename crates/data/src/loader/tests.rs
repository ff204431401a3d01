use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::Images;

fn toy(n: usize) -> Dataset {
    let images = (0..n * 4).map(|i| (i * 7) as u8).collect();
    Dataset::from_memory("toy", [1, 2, 2], 1000, images, (0..n).map(|i| i as u16).collect()).expect("consistent")
}

fn train(n: usize, batch: usize, seed: u64, workers: usize) -> Loader {
    Loader::train(&toy(n), batch, Augment { pad_crop: 1, flip: true }, seed, workers)
}

fn on(workers: usize, mut loader: Loader) -> Loader {
    loader.workers = workers;
    loader
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

/// How a loader is left behind, its threads reading slowly: `after` batches have been taken.
fn dropped(holes: Vec<usize>, workers: usize, after: usize) {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let images = Arc::new(Holes { holes, pause: Duration::from_millis(3) });
        let set = Dataset::new("holes", [1, 1, 1], 1, images.clone()).expect("consistent");
        let mut loader = Loader::train(&set, 1, Augment::default(), 1, workers);
        loader.by_ref().take(after).for_each(drop);
        let threads = loader.running.len();
        drop((loader, set));
        done.send((threads, Arc::strong_count(&images))).expect("somebody waits");
    });
    let (threads, held) = ended.recv_timeout(Duration::from_secs(60)).expect("dropping a loader must come to an end");
    assert_eq!((threads, held), (if after == 0 { 0 } else { workers }, 1), "{workers} workers after {after} batches");
}

#[test]
fn a_loader_dropped_early_ends_its_threads() {
    for workers in [0, 1, 3] {
        for after in [0, 1, 7] {
            dropped(Vec::new(), workers, after);
            // Nobody takes the errors that wait, nor those that are about to come.
            dropped((0..40).collect(), workers, after);
        }
    }
}

#[test]
fn the_length_is_what_is_left_wherever_a_loader_begins_and_ends() {
    let mut loader = train(10, 4, 0, 2);
    for left in [3, 2, 1, 0, 0] {
        assert_eq!((loader.len(), loader.next().is_some()), (left, left > 0));
    }
    let cut = train(10, 4, 0, 2).starting_at(3).drop_last();
    assert_eq!((cut.len(), cut.count()), (0, 0));
    let images = Holes { holes: vec![9], pause: Duration::ZERO };
    let set = Dataset::new("holes", [1, 1, 1], 1, Arc::new(images)).expect("consistent");
    for workers in [0, 3] {
        let mut loader = on(workers, Loader::ordered(&set, 4));
        assert_eq!(loader.by_ref().take_while(Result::is_ok).count(), 2);
        assert_eq!((loader.len(), loader.next().is_none(), loader.size_hint()), (0, true, (0, Some(0))));
    }
}

/// Panics where it should read.
#[derive(Debug)]
struct Panics;

impl Images for Panics {
    fn len(&self) -> usize {
        9
    }

    fn label(&self, _: usize) -> u16 {
        0
    }

    fn read(&self, i: usize, _: &mut [u8]) -> Result<(), Error> {
        assert!(i != 4, "a bug of image 4");
        Ok(())
    }
}

#[test]
fn a_panic_of_a_worker_is_the_caller_s_and_ends_the_epoch() {
    let set = Dataset::new("panics", [1, 1, 1], 1, Arc::new(Panics)).expect("consistent");
    let mut loader = on(3, Loader::ordered(&set, 1));
    assert_eq!(loader.by_ref().take(4).filter(Result::is_ok).count(), 4);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loader.next())).expect_err("the worker's panic");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a bug of image 4"));
    assert!(loader.len() == 0 && loader.next().is_none());
}

/// Images of which those that are named cannot be read.
#[derive(Debug)]
struct Holes {
    holes: Vec<usize>,
    pause: Duration,
}

impl Images for Holes {
    fn len(&self) -> usize {
        40
    }

    fn label(&self, _: usize) -> u16 {
        0
    }

    fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error> {
        std::thread::sleep(self.pause);
        pixels.fill(i as u8);
        if self.holes.contains(&i) { Err(Error::malformed(format!("{i}.png"), "a hole")) } else { Ok(()) }
    }
}

#[test]
fn what_cannot_be_read_is_one_error_in_its_place_and_the_first_of_several() {
    let images = Holes { holes: vec![38, 21, 23], pause: Duration::ZERO };
    let set = Dataset::new("holes", [1, 1, 1], 1, Arc::new(images)).expect("consistent");
    let ordered = |workers| on(workers, Loader::ordered(&set, 4));
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
