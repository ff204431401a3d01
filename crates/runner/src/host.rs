//! What happens around the passes of a run: progress on the terminal, states in the checkpoint folder, files in the run's folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use briquette_core::context::{Event, Host, Saved, StateWriter};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_data::{Dataset, Splits};
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use crate::config::{Config, ModelSpec};
use crate::memory::{self, shown};
use crate::run::{BASELINE, load_net, net_file};
use crate::{files, setup};

/// Set by Ctrl-C.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// The host of one pass of a run.
#[derive(Debug)]
pub struct RunHost<'a> {
    config: &'a Config,
    splits: &'a Splits,
    /// The run's folder; none while nothing may be written.
    folder: Option<PathBuf>,
    /// Number of the pass, part of its states' names.
    pass: usize,
    bar: ProgressBar,
    checkpoints: Checkpoints,
}

/// What the states of a pass took.
#[derive(Debug, Default)]
struct Checkpoints {
    count: u32,
    largest: u64,
    time: Duration,
}

impl Checkpoints {
    fn add(&mut self, bytes: u64, time: Duration) {
        self.count += 1;
        self.largest = self.largest.max(bytes);
        self.time += time;
        let peak = memory::peak().map_or(String::new(), |peak| format!("; peak memory {}", shown(peak)));
        tracing::debug!("  checkpoint of {} in {:.2} s{peak}", shown(bytes), time.as_secs_f64());
    }
}

impl<'a> RunHost<'a> {
    /// A host for the pass of this number.
    pub fn new(config: &'a Config, splits: &'a Splits, folder: Option<PathBuf>, pass: usize) -> Self {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("  {msg:28} [{bar:30}] {pos}/{len} {per_sec}, {eta} left");
        bar.set_style(style.expect("the template is well-formed").progress_chars("=> "));
        Self { config, splits, folder, pass, bar, checkpoints: Checkpoints::default() }
    }

    /// What the checkpoints took in room and time, if there were any.
    pub fn checkpoints(&self) -> Option<String> {
        let Checkpoints { count, largest, time } = &self.checkpoints;
        let each = time.as_secs_f64() / f64::from(*count);
        (*count > 0).then(|| format!("{count} checkpoints of up to {}, {each:.2} s each", shown(*largest)))
    }

    fn state(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("checkpoint").join(format!("pass{}-{key}.state", self.pass)))
    }

    /// Where a file or folder lies that the config names: in the run's folder, or beside the config.
    fn named(&self, name: &str, what: &str, is_one: fn(&Path) -> bool) -> Result<PathBuf> {
        let base = self.config.path.parent().unwrap_or(Path::new("")).to_path_buf();
        let tried: Vec<PathBuf> = self.folder.iter().chain([&base]).map(|folder| folder.join(name)).collect();
        let found = tried.iter().find(|path| is_one(path)).cloned();
        found.ok_or_else(|| {
            let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
            Error::Host(format!("no {what} {name}: tried {}", tried.join(", ")))
        })
    }

    /// Keeps the digest of a folder that the config names, which has to be that of earlier in the run.
    fn as_before(&self, name: &str, digest: String) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let mut sums = unlabelled(folder).map_err(|error| failed(&error))?;
        if sums.get(name).is_some_and(|before| *before != digest) {
            return Err(Error::Host(format!(
                "the images in '{name}' have changed since the run in {} began; `--out DIR` takes another folder",
                folder.display()
            )));
        }
        sums.insert(name.into(), digest);
        let bytes = serde_json::to_vec(&sums).map_err(|error| failed(&error.into()))?;
        files::write(&folder.join(UNLABELLED), &bytes).map_err(|error| failed(&error))
    }

    /// Where other runs beside this one look, too.
    fn shared(&self, key: &str) -> Option<PathBuf> {
        let runs = self.folder.as_ref()?.parent().unwrap_or(Path::new(""));
        Some(runs.join("teachers").join(format!("{key}.cache")))
    }
}

/// In a run's folder, digests of the folders of images without labels that it has read.
const UNLABELLED: &str = "checkpoint/unlabelled.json";

/// Digests of the folders of images without labels that the run in this folder has read, by the config's names for them.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn unlabelled(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let path = folder.join(UNLABELLED);
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let damaged = || format!("the checkpoint {} is damaged; remove the folder to start anew", path.display());
    serde_json::from_slice(&std::fs::read(&path).with_context(damaged)?).with_context(damaged)
}

fn open(path: Option<PathBuf>) -> Result<Option<Saved<'static>>> {
    let Some(path) = path.filter(|path| path.exists()) else { return Ok(None) };
    let name = path.display().to_string();
    match File::open(&path) {
        Ok(file) => Ok(Some(Saved { name, bytes: Box::new(BufReader::with_capacity(1 << 20, file)) })),
        Err(error) => Err(Error::Host(format!("cannot read {name}: {error}"))),
    }
}

fn failed(error: &anyhow::Error) -> Error {
    Error::Host(format!("{error:#}"))
}

impl Drop for RunHost<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Host for RunHost<'_> {
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
        }
    }

    fn stop_requested(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }

    fn saved(&mut self, key: &str) -> Result<Option<Saved<'_>>> {
        open(self.state(key))
    }

    fn save(&mut self, key: &str, state: &mut StateWriter<'_>) -> Result<()> {
        let Some(path) = self.state(key) else { return Ok(()) };
        let began = Instant::now();
        let bytes = files::stream(&path, |to| Ok(state(to)?)).map_err(|error| failed(&error))?;
        self.checkpoints.add(bytes, began.elapsed());
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match &self.folder {
            Some(folder) => files::write(&folder.join(name), bytes).map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }

    fn before(&mut self, device: &Device) -> Result<Net> {
        // What the pass began with is the checkpoint from which it would begin again.
        let folder = self.folder.as_ref().map(|folder| folder.join("checkpoint"));
        let path = folder.ok_or_else(|| Error::Host("a run that writes nothing keeps no network from before a pass".into()))?;
        load_net(&net_file(&path, self.pass), device).map_err(|error| failed(&error))
    }

    fn first(&mut self, device: &Device) -> Result<Net> {
        if self.config.model.file.is_none() {
            let detail = "the network from before the first pass was drawn at random, and teaches nothing";
            return Err(Error::Host(format!("{detail}; name another `teacher`, or start from a file")));
        }
        let folder = self.folder.as_ref().ok_or_else(|| Error::Host("a run that writes nothing keeps no network".into()))?;
        setup::container(&folder.join(BASELINE), &self.splits.outline(), device).map_err(|error| failed(&error))
    }

    fn model(&mut self, spec: &Map<String, Value>, device: &Device) -> Result<Net> {
        let read = serde_json::from_value::<ModelSpec>(spec.clone().into()).map_err(anyhow::Error::from);
        let built = read.and_then(|spec| setup::other_model(&spec, self.config, self.splits, device));
        built.map_err(|error| Error::Host(format!("`teacher`: {error:#}")))
    }

    fn kept(&mut self, key: &str) -> Result<Option<Saved<'_>>> {
        open(self.shared(key))
    }

    fn keep(&mut self, key: &str, content: &mut StateWriter<'_>) -> Result<()> {
        let Some(path) = self.shared(key) else { return Ok(()) };
        let folder = path.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).map_err(|error| Error::Host(format!("cannot make {}: {error}", folder.display())))?;
        files::stream(&path, |to| Ok(content(to)?)).map(drop).map_err(|error| failed(&error))
    }

    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let found = self.named(name, "file", Path::is_file)?;
        std::fs::read(&found).map_err(|error| Error::Host(format!("cannot read {}: {error}", found.display())))
    }

    fn unlabelled(&mut self, folder: &str, shape: [usize; 3]) -> Result<Dataset> {
        let (images, digest) = briquette_data::unlabelled(&self.named(folder, "folder", Path::is_dir)?, shape)?;
        self.as_before(folder, digest)?;
        Ok(images)
    }
}
