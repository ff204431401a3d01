//! What a pass works with: data, a device, a seed, and the program around it.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use briquette_data::Dataset;
use briquette_runtime::Model;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::net::Net;
use crate::scan::Scan;
use crate::stored::Storage;
use crate::task::Task;
use crate::teaching::Distillation;
use crate::tradeoff::Tradeoff;

/// The data of a run. Epochs are chosen on `valid`; `test` is measured once per pass.
#[derive(Debug, Clone)]
pub struct Data {
    /// Training images.
    pub train: Dataset,
    /// Held back from the training images, or from the test images.
    pub valid: Dataset,
    /// Test images.
    pub test: Dataset,
}

/// What a pass works with.
pub struct Context<'a> {
    /// Where tensors live.
    pub device: Device,
    /// Seed of this pass.
    pub seed: u64,
    /// The data.
    pub data: &'a Data,
    /// The program around the passes.
    pub host: &'a mut dyn Host,
    /// Number of trainings begun in this pass; names their saved states.
    pub stage: usize,
    /// Epochs of all trainings of this pass.
    pub curve: Vec<Epoch>,
    /// What the pass found out, for the report.
    pub findings: Vec<Finding>,
    /// How containers are written from here on.
    pub storage: Storage,
    /// The objectives that recipes may name, by crate.
    pub distillations: &'static [&'static [Distillation]],
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("seed", &self.seed).field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// What a pass found out beside the network that it hands on.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// How the network does with one layer changed.
    Scan {
        /// Name of the files that show it, without an ending.
        file: String,
        /// The points.
        scan: Scan,
    },
    /// What the network does for what it costs.
    Tradeoff(Tradeoff),
    /// Something that the user should know of the network that comes out, such as a layer that was left as it is, and why.
    Note(String),
}

/// What happens while a pass runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// A training step or a batch of an evaluation is done.
    Step {
        /// What is being done, for example `epoch 3/12`.
        what: &'a str,
        /// Samples seen.
        done: usize,
        /// Samples in all.
        total: usize,
        /// Mean loss so far.
        loss: f64,
    },
    /// A training epoch is done.
    Epoch(&'a Epoch),
    /// Something the user should know.
    Note(&'a str),
}

/// What one epoch brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counted from 0 within its training.
    pub epoch: usize,
    /// Epochs of the training.
    pub of: usize,
    /// Learning rate at the end.
    pub lr: f64,
    /// Mean training loss.
    pub train_loss: f64,
    /// Training accuracy, measured while the weights changed.
    pub train_accuracy: f64,
    /// Accuracy on the validation split.
    pub valid_accuracy: f64,
    /// Wall-clock time, evaluation excluded.
    pub seconds: f64,
    /// Training images per second.
    pub images_per_s: f64,
}

/// Writes a state to where the host keeps it.
pub type StateWriter<'a> = dyn FnMut(&mut dyn Write) -> Result<()> + 'a;

/// A state that was saved.
pub struct Saved<'a> {
    /// The name that a user finds it by.
    pub name: String,
    /// What it holds.
    pub bytes: Box<dyn Read + 'a>,
}

impl std::fmt::Debug for Saved<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The program around the passes: it shows progress, keeps states and writes files, so that the core need not.
pub trait Host {
    /// Something happened.
    fn event(&mut self, event: Event<'_>);
    /// Whether the user asked to stop.
    fn stop_requested(&self) -> bool;
    /// The state last saved under this key by this run, before it was interrupted.
    ///
    /// # Errors
    /// When it cannot be read.
    fn saved(&mut self, key: &str) -> Result<Option<Saved<'_>>>;
    /// Keeps under this key, atomically, the state that `state` writes, which it is asked for once.
    ///
    /// # Errors
    /// When it cannot be written.
    fn save(&mut self, key: &str, state: &mut StateWriter<'_>) -> Result<()>;
    /// Writes a file that the user asked for, atomically.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()>;
    /// Reads a file that the user named.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, name: &str) -> Result<Vec<u8>>;
    /// The images in a folder that the user named, of whose classes nothing is known, in the shape `[channels, height, width]`: see
    /// [`briquette_data::unlabelled`].
    ///
    /// # Errors
    /// When they cannot be read, or are of another shape.
    fn unlabelled(&mut self, folder: &str, _shape: [usize; 3]) -> Result<Dataset> {
        Err(Error::Host(format!("cannot read the images in {folder}: this host has no folders")))
    }
    /// The network as it was before the pass, on this device: the teacher of a training that names no other.
    ///
    /// # Errors
    /// Where it was not kept, or cannot be read.
    fn before(&mut self, _device: &Device) -> Result<Net> {
        Err(not_kept())
    }
    /// The network that the run started from, on this device.
    ///
    /// # Errors
    /// Where it was not kept, cannot be read, or nothing has trained it.
    fn first(&mut self, _device: &Device) -> Result<Net> {
        Err(Error::Host(
            "the network from before the first pass is not kept here; name the `teacher` of `distill` by its file".into(),
        ))
    }
    /// A network as `model` of a config describes it, with the weights of its file, on this device.
    ///
    /// # Errors
    /// What cannot be built or read.
    fn model(&mut self, _spec: &serde_json::Map<String, serde_json::Value>, _device: &Device) -> Result<Net> {
        Err(Error::Host("this host builds no networks; name the `teacher` of `distill` by the file of a container".into()))
    }
    /// What was kept under this key by this run or another one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn kept(&mut self, _key: &str) -> Result<Option<Saved<'_>>> {
        Ok(None)
    }
    /// Keeps under this key, atomically, what is of use to later runs too.
    ///
    /// # Errors
    /// When it cannot be written.
    fn keep(&mut self, _key: &str, _content: &mut StateWriter<'_>) -> Result<()> {
        Ok(())
    }
}

/// What a host says that has no network from before the pass.
fn not_kept() -> Error {
    Error::Host("the network from before the pass is not kept here; name the `teacher` of `distill`".into())
}

/// A host that shows nothing and keeps nothing: for tests and for programs that only want the result.
#[derive(Debug, Default)]
pub struct Silent;

impl Host for Silent {
    fn event(&mut self, _: Event<'_>) {}

    fn stop_requested(&self) -> bool {
        false
    }

    fn saved(&mut self, _: &str) -> Result<Option<Saved<'_>>> {
        Ok(None)
    }

    fn save(&mut self, _: &str, _: &mut StateWriter<'_>) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, name: &str, _: &[u8]) -> Result<()> {
        Err(Error::Host(format!("cannot write {name}: this host has no files")))
    }

    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        Err(Error::Host(format!("cannot read {name}: this host has no files")))
    }
}

/// A host that keeps states and files in memory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// What passes have saved, by key.
    pub states: BTreeMap<String, Vec<u8>>,
    /// What passes have written or may read, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The network as it was before the pass, for trainings that learn from it.
    pub before: Option<Net>,
    /// What is of use to later runs, by key.
    pub kept: BTreeMap<String, Vec<u8>>,
    /// Images without labels, by the name of their folder.
    pub unlabelled: BTreeMap<String, Dataset>,
}

impl Host for Memory {
    fn before(&mut self, _: &Device) -> Result<Net> {
        self.before.as_ref().map(Net::deep_clone).ok_or_else(not_kept)
    }

    fn unlabelled(&mut self, folder: &str, _: [usize; 3]) -> Result<Dataset> {
        let found = self.unlabelled.get(folder).cloned();
        found.ok_or_else(|| Error::Host(format!("cannot read the images in {folder}: there is no such folder")))
    }

    fn event(&mut self, _: Event<'_>) {}

    fn stop_requested(&self) -> bool {
        false
    }

    fn saved(&mut self, key: &str) -> Result<Option<Saved<'_>>> {
        Ok(self.states.get(key).map(|bytes| Saved { name: key.into(), bytes: Box::new(bytes.as_slice()) }))
    }

    fn save(&mut self, key: &str, state: &mut StateWriter<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        state(&mut bytes)?;
        self.states.insert(key.into(), bytes);
        Ok(())
    }

    fn kept(&mut self, key: &str) -> Result<Option<Saved<'_>>> {
        Ok(self.kept.get(key).map(|bytes| Saved { name: key.into(), bytes: Box::new(bytes.as_slice()) }))
    }

    fn keep(&mut self, key: &str, content: &mut StateWriter<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        content(&mut bytes)?;
        self.kept.insert(key.into(), bytes);
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.files.insert(name.into(), bytes.into());
        Ok(())
    }

    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let found = self.files.get(name).cloned();
        found.ok_or_else(|| Error::Host(format!("cannot read {name}: no pass has written it")))
    }
}

/// The host of what is only tried: what it keeps and writes is dropped.
struct Aside<'a>(&'a mut dyn Host);

impl Host for Aside<'_> {
    fn event(&mut self, event: Event<'_>) {
        self.0.event(event);
    }

    fn stop_requested(&self) -> bool {
        self.0.stop_requested()
    }

    fn saved(&mut self, _: &str) -> Result<Option<Saved<'_>>> {
        Ok(None)
    }

    fn save(&mut self, _: &str, _: &mut StateWriter<'_>) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _: &str, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        self.0.read(name)
    }

    fn unlabelled(&mut self, folder: &str, shape: [usize; 3]) -> Result<Dataset> {
        self.0.unlabelled(folder, shape)
    }

    fn before(&mut self, device: &Device) -> Result<Net> {
        self.0.before(device)
    }

    fn first(&mut self, device: &Device) -> Result<Net> {
        self.0.first(device)
    }

    fn model(&mut self, spec: &serde_json::Map<String, serde_json::Value>, device: &Device) -> Result<Net> {
        self.0.model(spec, device)
    }

    fn kept(&mut self, key: &str) -> Result<Option<Saved<'_>>> {
        self.0.kept(key)
    }

    fn keep(&mut self, key: &str, content: &mut StateWriter<'_>) -> Result<()> {
        self.0.keep(key, content)
    }
}

impl<'a> Context<'a> {
    /// A context whose curve and stages are at their start.
    pub fn new(device: &Device, seed: u64, data: &'a Data, host: &'a mut dyn Host) -> Self {
        Self {
            device: device.clone(),
            seed,
            data,
            host,
            stage: 0,
            curve: Vec::new(),
            findings: Vec::new(),
            storage: Storage::default(),
            distillations: &[],
        }
    }

    /// Tells the user something at once, and again in the report.
    pub fn note(&mut self, text: String) {
        self.host.event(Event::Note(&text));
        self.findings.push(Finding::Note(text));
    }

    /// Does what is only tried: what it finds out, keeps and writes is dropped, so that nothing of it outlives the trial.
    ///
    /// # Errors
    /// Those of the trial.
    pub fn aside<T>(&mut self, tried: impl FnOnce(&mut Context<'_>) -> Result<T>) -> Result<T> {
        let mut host = Aside(self.host);
        let mut aside = Context::new(&self.device, self.seed, self.data, &mut host);
        aside.storage = self.storage;
        aside.distillations = self.distillations;
        tried(&mut aside)
    }

    /// The network in a container that the user named, for the images and classes of the data at hand.
    ///
    /// # Errors
    /// When the file cannot be read, holds no sound network, or one for something else.
    pub fn load(&mut self, file: &str) -> Result<Net> {
        let bytes = self.host.read(file)?;
        let loaded = Model::from_bytes(&bytes).map_err(Error::from).and_then(|model| Net::from_model(&model, &self.device));
        let loaded = loaded.map_err(|source| Error::File { file: file.into(), source: Box::new(source) })?;
        let fits = Task::of(&loaded)?.check(&self.data.train);
        fits.map_err(|error| Error::Invalid(format!("{file}: {error}")))?;
        Ok(loaded)
    }
}
