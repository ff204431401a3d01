//! What every binary around the runner needs: a log, a pool of threads, and something to print on.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Prints on stdout. Who reads it may stop reading, as `head` does.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the output"),
        _ => Ok(()),
    }
}

/// Prints a value, as one JSON document where that is asked for.
///
/// # Errors
/// When it does not serialize, or as [`print()`].
pub fn show(value: &(impl Serialize + Display), json: bool) -> Result<()> {
    print(&if json { serde_json::to_string_pretty(value)? } else { value.to_string() })
}

/// Runs everything on a thread of the pool whose threads the kernels share. From outside, each parallel region would wake all of the pool's
/// threads, which the system likes to put on one core for a millisecond or more, while a thread of the pool wakes only the others.
///
/// # Errors
/// When the threads do not start, and those of the work.
pub fn on_a_pool_thread<T: Send, E: From<anyhow::Error> + Send>(
    threads: Option<u16>,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    // Without a number of its own, rayon counts the cores. Networks are deep and debug builds are greedy: as much stack as the main thread has.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.map_or(0, usize::from)).stack_size(8 << 20);
    pool.build_global().context("cannot start the threads; fewer may do, as in `--threads 1`")?;
    let mut result = None;
    rayon::scope(|_| result = Some(work()));
    result.expect("the scope has run the work")
}

/// Starts the log on stderr.
pub fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("BRIQUETTE_LOG").unwrap_or_else(|_| EnvFilter::new("warn,briquette_runner=info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().with_target(false);
    log.with_level(false).with_ansi(false).init();
}
