//! What happens around the passes of a run: progress on the terminal, states in the checkpoint folder, files in the run's folder.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use briquette_core::error::{Error, Result};
use briquette_core::pass::{Event, Host};
use indicatif::{ProgressBar, ProgressStyle};

use crate::files;

/// Set by Ctrl-C.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// The host of one pass of a run.
#[derive(Debug)]
pub struct RunHost {
    /// The run's folder; none while nothing may be written.
    folder: Option<PathBuf>,
    /// Where relative files are looked for after the run's folder.
    base: PathBuf,
    /// Number of the pass, part of its states' names.
    pass: usize,
    bar: ProgressBar,
}

impl RunHost {
    /// A host for the pass of this number.
    pub fn new(folder: Option<PathBuf>, base: PathBuf, pass: usize) -> Self {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("  {msg:28} [{bar:30}] {pos}/{len} {per_sec}, {eta} left");
        bar.set_style(style.expect("the template is well-formed").progress_chars("=> "));
        Self { folder, base, pass, bar }
    }

    fn state(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("checkpoint").join(format!("pass{}-{key}.state", self.pass)))
    }
}

impl Drop for RunHost {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Host for RunHost {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Step { what, done, total, loss } => {
                if done < self.bar.position() as usize || self.bar.length() != Some(total as u64) {
                    self.bar.reset();
                    self.bar.set_length(total as u64);
                }
                self.bar.set_position(done as u64);
                self.bar.set_message(format!("{what}, loss {loss:.4}"));
            }
            Event::Epoch(epoch) => {
                let line = format!(
                    "  epoch {:>3}/{}  loss {:.4}  train {:.2} %  valid {:.2} %  lr {:.2e}  {:.0} images/s",
                    epoch.epoch + 1,
                    epoch.of,
                    epoch.train_loss,
                    100.0 * epoch.train_accuracy,
                    100.0 * epoch.valid_accuracy,
                    epoch.lr,
                    epoch.images_per_s
                );
                self.bar.suspend(|| tracing::info!("{line}"));
            }
            Event::Note(note) => self.bar.suspend(|| tracing::info!("  {note}")),
            _ => {}
        }
    }

    fn stop_requested(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }

    fn saved(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        match self.state(key) {
            Some(path) if path.exists() => {
                std::fs::read(&path).map(Some).map_err(|error| Error::Host(format!("cannot read {}: {error}", path.display())))
            }
            _ => Ok(None),
        }
    }

    fn save(&mut self, key: &str, state: &[u8]) -> Result<()> {
        match self.state(key) {
            Some(path) => files::write(&path, state).map_err(|error| Error::Host(format!("{error:#}"))),
            None => Ok(()),
        }
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match &self.folder {
            Some(folder) => files::write(&folder.join(name), bytes).map_err(|error| Error::Host(format!("{error:#}"))),
            None => Ok(()),
        }
    }

    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let tried: Vec<PathBuf> = self.folder.iter().chain([&self.base]).map(|folder| folder.join(name)).collect();
        let found = tried.iter().find(|path| path.is_file()).ok_or_else(|| {
            let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
            Error::Host(format!("no file {name}: tried {}", tried.join(", ")))
        })?;
        std::fs::read(found).map_err(|error| Error::Host(format!("cannot read {}: {error}", found.display())))
    }
}
