//! Tasks over a fixed number of threads.

use std::fmt;

use rayon::prelude::*;

use crate::Error;

/// Slices shorter than this are worked on in place: waking a thread costs more.
const SMALL: usize = 1 << 13;

/// One thread, the caller's, or a pool.
pub(crate) struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    pub(crate) fn new(threads: usize) -> Result<Self, Error> {
        match threads {
            0 => Err(Error::NoThreads),
            1 => Ok(Self(None)),
            _ => rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map(|pool| Self(Some(pool)))
                .map_err(|error| Error::Threads { threads, reason: error.to_string() }),
        }
    }

    /// Does every task; each thread makes itself scratch buffers first.
    pub(crate) fn each<S: Default, T: Send>(&self, tasks: Vec<T>, work: impl Fn(&mut S, T) + Send + Sync) {
        match &self.0 {
            Some(pool) if tasks.len() > 1 => pool.install(|| tasks.into_par_iter().for_each_init(S::default, work)),
            _ => {
                let mut scratch = S::default();
                tasks.into_iter().for_each(|task| work(&mut scratch, task));
            }
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Does work that splits itself among the threads, whose number it is told.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce(usize) -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(|| work(pool.current_num_threads())),
            None => work(1),
        }
    }

    /// Hands out `data` in pieces of `size`, each with its number.
    pub(crate) fn pieces(&self, data: &mut [f32], size: usize, work: impl Fn(usize, &mut [f32]) + Send + Sync) {
        match &self.0 {
            Some(pool) if data.len() > size && data.len() >= SMALL => {
                pool.install(|| data.par_chunks_mut(size).enumerate().for_each(|(number, piece)| work(number, piece)));
            }
            _ => data.chunks_mut(size).enumerate().for_each(|(number, piece)| work(number, piece)),
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({})", self.count())
    }
}
