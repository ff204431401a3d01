//! Running an experiment: pass after pass, a row after each, a checkpoint after each, a report at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use briquette_core::context::{Context, Data, Finding};
use briquette_core::net::Net;
use briquette_core::promises::Promises;
use briquette_core::stored::Storage;
use briquette_core::streams::stream;
use briquette_data::Dataset;
use briquette_runtime::{Model, ValueFormat};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::config::{Config, ValidFrom};
use crate::host::RunHost;
use crate::memory::{self, shown};
use crate::report::{self, DataInfo, Metrics, Report, Row};
use crate::{device, files, host, measure, setup, timing};

/// Where a run works and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The run's folder; `runs/<config>-<hash>` without it.
    pub out: Option<PathBuf>,
    /// Where data is looked for first.
    pub data_dir: Option<PathBuf>,
    /// Go on where an earlier run stopped.
    pub resume: bool,
}

/// The container in a run's folder, which holds the network of the last pass.
pub(crate) const MODEL: &str = "model.brq";

/// The container of the first row's network.
pub(crate) const BASELINE: &str = "baseline.brq";

/// What a checkpoint knows beside the network.
#[derive(Debug, Serialize, Deserialize)]
struct Progress {
    config_hash: String,
    /// Passes that are done.
    done: usize,
    rows: Vec<Row>,
    storage: Storage,
    /// Checksums of the data.
    #[serde(default)]
    data: Vec<String>,
}

/// Runs a config to its end and writes the report; the folder and the report.
///
/// # Errors
/// Names the config, the pass and the method. What is done so far stays in the checkpoint.
pub fn run(config: &Config, options: &Options) -> Result<(PathBuf, Report)> {
    let hash = config.hash();
    let smoke = if config.smoke { "-smoke" } else { "" };
    let folder =
        options.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("{}{smoke}-{}", config.name(), &hash[..8])));
    if let Some(report) = finished(&folder, &hash, options.resume)? {
        tracing::info!("{} is finished; nothing to do", folder.display());
        return Ok((folder, report));
    }
    let (device, adapter) = device::open(&config.device)?;
    let (splits, data) = setup::data(&config.data, config.seed, options.data_dir.as_deref())?;
    let (train, valid, test) = (data.train.len(), data.valid.len(), data.test.len());
    let from = if valid_from(config) == ValidFrom::Test { " (of the test set)" } else { "" };
    tracing::info!("{}: {train} training, {valid} validation{from}, {test} test images of {}", config.name(), splits.name);

    let checkpoint = folder.join("checkpoint");
    [&folder, &checkpoint].into_iter().for_each(|folder| files::sweep(folder));
    let (mut progress, mut net) = match load_progress(&checkpoint, &hash)? {
        Some(progress) => {
            if progress.data != splits.sha256 {
                bail!(
                    "the data '{}' have changed since the run in {} began; `--out DIR` takes another folder",
                    splits.name,
                    folder.display()
                );
            }
            tracing::info!("resuming after {} of {} passes", progress.done, config.passes.len());
            let net = load_net(&net_file(&checkpoint, progress.done), &device)?;
            (progress, net)
        }
        None => {
            // What is measured on all training images is asked for where it is used only.
            let normalization = if setup::normalizes(&config.model) { Some(splits.normalization()?) } else { None };
            let net = setup::model(config, &splits.outline(), normalization, &device)?;
            // Not before everything that can be wrong with the config has been seen: what fails leaves no folder behind.
            std::fs::create_dir_all(&checkpoint).with_context(|| format!("cannot make {}", folder.display()))?;
            let (rows, data_sums) = (Vec::new(), splits.sha256.clone());
            let mut progress =
                Progress { config_hash: hash.clone(), done: 0, rows, storage: Storage::default(), data: data_sums };
            if config.model.file.is_some() || config.passes.is_empty() {
                // What is brought along is the baseline of the report.
                let mut host = RunHost::new(config, &splits, None, 0);
                let (row, bytes) = measure::row(&net, progress.storage, (0, "import"), &data, &device, &mut host)?;
                progress.push(row, &bytes, &net, &data.test, &folder)?;
            }
            save_progress(&checkpoint, &progress, &net)?;
            (progress, net)
        }
    };
    let imported = usize::from(config.model.file.is_some());
    while progress.done < config.passes.len() {
        let index = progress.done;
        let step = &config.passes[index];
        tracing::info!("pass {index}: {}", step.entry.name);
        let mut host = RunHost::new(config, &splits, Some(folder.clone()), index);
        let named = || format!("{}: pass {index} ({})", config.path.display(), step.entry.name);
        let mut cx = Context::new(&device, stream(config.seed, &format!("pass-{index}")), &data, &mut host);
        cx.storage = progress.storage;
        cx.distillations = crate::METHODS.distillations();
        let promises = if step.pass.replaces() { Promises::default() } else { Promises::of(&net) };
        let began = Instant::now();
        net = step.pass.run(net, &mut cx).with_context(named)?;
        net.shapes().and_then(|_| promises.check(&net)).with_context(named)?;
        let (curve, findings, storage) = (std::mem::take(&mut cx.curve), std::mem::take(&mut cx.findings), cx.storage);
        progress.storage = storage;
        let (mut row, bytes) =
            measure::row(&net, storage, (index + imported, step.entry.name), &data, &device, &mut host).with_context(named)?;
        row.valid_accuracy = curve.last().map(|epoch| epoch.valid_accuracy);
        for finding in findings {
            match finding {
                Finding::Scan { file, scan } => {
                    files::write(&folder.join(format!("{file}.svg")), report::plots::scan(&scan)?.as_bytes())?;
                    row.scan = Some(scan);
                }
                Finding::Tradeoff(tradeoff) => {
                    // That of the network that is handed on, whose samples leave where they do.
                    row.valid_accuracy = Some(tradeoff.chosen.accuracy);
                    row.tradeoff = Some(tradeoff);
                }
                Finding::Note(note) => row.notes.push(note),
            }
        }
        row.curve = curve.into_iter().map(Into::into).collect();
        row.seconds = began.elapsed().as_secs_f64();
        row.peak_memory = memory::peak();
        let accuracy = 100.0 * row.accuracy.unwrap_or(0.0);
        tracing::info!("  test {accuracy:.2} %, {} parameters of {}, {} bytes", row.nonzero, row.params, bytes.len());
        let peak = row.peak_memory.map(|peak| format!("peak memory {}", shown(peak)));
        let took: Vec<String> = peak.into_iter().chain(host.checkpoints()).collect();
        if !took.is_empty() {
            tracing::info!("  {}", took.join("; "));
        }
        files::write(&folder.join(MODEL), &bytes)?;
        progress.push(row, &bytes, &net, &data.test, &folder).with_context(named)?;
        progress.done += 1;
        save_progress(&checkpoint, &progress, &net)?;
        remove_states(&checkpoint, index);
    }
    let (_, bytes) = measure::size(&net, progress.storage, 0, "")?;
    files::write(&folder.join(MODEL), &bytes)?;
    let mut report = Report { adapter, ..summarize(config, &hash, progress.rows, &splits, &data)? };
    report.data.unlabelled = host::unlabelled(&folder)?;
    report::write(&folder, &report)?;
    Ok((folder, report))
}

impl Progress {
    /// Adds a row for the network in this container, its latency measured beside that of the first row's, on test images where an image's way follows from
    /// what it shows. What `cargo xtask remeasure` needs is kept in `rows/`.
    fn push(&mut self, mut row: Row, bytes: &[u8], net: &Net, test: &Dataset, folder: &Path) -> Result<()> {
        let baseline = folder.join(BASELINE);
        if self.rows.is_empty() {
            files::write(&baseline, bytes)?;
        }
        let first = std::fs::read(&baseline).with_context(|| format!("cannot read {}", baseline.display()))?;
        let first = Model::from_bytes(&first).with_context(|| baseline.display().to_string())?;
        let model = Model::from_bytes(bytes).context("the container that was just written cannot be read back")?;
        let inputs = timing::Inputs::between([&first, &model], || Ok(test.clone()))?;
        if timing::decides(&model) {
            row.notes.push(format!(
                "how long an image takes depends on where it leaves; times are means over {} test images",
                inputs.count
            ));
        }
        timing::beside(&first, &model, &inputs)?.into_row(&mut row);
        if let Some(kept) = small(net, self.storage, bytes) {
            let rows = folder.join("rows");
            std::fs::create_dir_all(&rows).with_context(|| format!("cannot make {}", rows.display()))?;
            files::write(&rows.join(format!("{}.brq", self.rows.len())), &kept)?;
        }
        self.rows.push(row);
        Ok(())
    }
}

/// Containers up to this size are kept for each row, and lie beside their records.
const SMALL: usize = 1_000_000;

/// The container, or that of the same network at half precision, if it is small. The engine takes as long for the one as for the other.
fn small(net: &Net, storage: Storage, bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() <= SMALL {
        return Some(bytes.to_vec());
    }
    let halved = || net.to_model(Storage { float: ValueFormat::F16, ..storage }).ok()?.to_bytes().ok();
    (bytes.len() <= 3 * SMALL).then(halved).flatten().filter(|half| half.len() <= SMALL)
}

fn valid_from(config: &Config) -> ValidFrom {
    config.data.valid_from.unwrap_or_default()
}

/// Whether a run may begin here: nothing is there, or an empty folder.
fn is_vacant(folder: &Path) -> bool {
    !folder.exists() || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// The report when the folder holds a finished run that may be resumed.
fn finished(folder: &Path, hash: &str, resume: bool) -> Result<Option<Report>> {
    let shown = folder.display();
    if !resume && !is_vacant(folder) {
        bail!("{shown} exists and is not empty; `--resume` goes on with it, `--out DIR` takes another folder, or remove it");
    }
    let finished = folder.join("report.json");
    if !finished.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&finished).with_context(|| finished.display().to_string())?;
    let report: Report = serde_json::from_str(&text).with_context(|| finished.display().to_string())?;
    if report.config_hash != hash {
        bail!("{shown} holds a run of another config or other settings; `--out DIR` takes another folder");
    }
    Ok(Some(report))
}

fn load_progress(checkpoint: &Path, hash: &str) -> Result<Option<Progress>> {
    let path = checkpoint.join("progress.json");
    if !path.exists() {
        return Ok(None);
    }
    let damaged = || format!("the checkpoint {} is damaged; remove the folder to start anew", path.display());
    let progress: Progress = serde_json::from_slice(&std::fs::read(&path).with_context(damaged)?).with_context(damaged)?;
    if progress.config_hash != hash {
        return Err(anyhow!("{} is of another config or other settings; `--out DIR` takes another folder", checkpoint.display()));
    }
    Ok(Some(progress))
}

pub(crate) fn load_net(path: &Path, device: &Device) -> Result<Net> {
    let damaged = || format!("the checkpoint {} cannot be read; remove the folder to start anew", path.display());
    let file = File::open(path).with_context(damaged)?;
    Net::read_state(&mut BufReader::with_capacity(1 << 20, file), device).with_context(damaged)
}

/// The network first, under a name of its own, then the progress that points at it: whatever is interrupted, one pair is whole.
fn save_progress(checkpoint: &Path, progress: &Progress, net: &Net) -> Result<()> {
    files::stream(&net_file(checkpoint, progress.done), |to| Ok(net.write_state(to)?))?;
    files::write(&checkpoint.join("progress.json"), &serde_json::to_vec(progress)?)?;
    if let Some(before) = progress.done.checked_sub(1) {
        let _ = std::fs::remove_file(net_file(checkpoint, before));
    }
    Ok(())
}

pub(crate) fn net_file(checkpoint: &Path, done: usize) -> PathBuf {
    checkpoint.join(format!("net-{done}.state"))
}

/// The states of a pass that is done are of no use any more; one that cannot be removed does no harm.
fn remove_states(checkpoint: &Path, pass: usize) {
    let prefix = format!("pass{pass}-");
    for entry in std::fs::read_dir(checkpoint).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn summarize(config: &Config, hash: &str, rows: Vec<Row>, splits: &briquette_data::Splits, data: &Data) -> Result<Report> {
    let metrics = match (rows.first(), rows.last()) {
        (Some(first), Some(last)) => Metrics::between(first, last),
        _ => bail!("the config has no pass and brings no model: nothing to report"),
    };
    let versions =
        BTreeMap::from([("briquette".to_string(), env!("CARGO_PKG_VERSION").to_string()), ("burn".into(), "0.22.1".into())]);
    Ok(Report {
        title: config.name(),
        expected: config.expected.clone(),
        command: command(config),
        date: timing::now()?,
        remeasured: None,
        config: config.text.clone(),
        config_hash: hash.to_string(),
        seed: config.seed,
        device: if config.device == "auto" { "flex".into() } else { config.device.clone() },
        adapter: None,
        smoke: config.smoke,
        versions,
        data: DataInfo {
            name: splits.name.clone(),
            train: data.train.len(),
            valid: data.valid.len(),
            test: data.test.len(),
            valid_from: valid_from(config),
            sha256: splits.sha256.clone(),
            unlabelled: BTreeMap::new(),
        },
        rows,
        metrics,
        schema: report::SCHEMA,
    })
}

fn command(config: &Config) -> String {
    let smoke = if config.smoke { " --smoke" } else { "" };
    let sets: String = config.sets.iter().map(|set| format!(" --set '{set}'")).collect();
    let device = config.other_device.as_ref().map(|device| format!(" --device {device}")).unwrap_or_default();
    format!("cargo xtask run {}{smoke}{device}{sets}", config.path.display())
}
