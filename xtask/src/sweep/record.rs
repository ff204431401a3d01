//! What a sweep measured: a compact record, one line for each point.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{Method, Sweep};

/// What a sweep measured.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) command: String,
    /// The config of the network that every method starts from, without data and seed.
    pub(super) start: String,
    pub(crate) points: Vec<Point>,
}

/// A run of one method.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) data: String,
    pub(crate) method: String,
    pub(crate) keep: f64,
    pub(crate) seed: u64,
    /// Of the sources it ran on.
    pub(super) commit: String,
    pub(super) date: String,
    pub(super) config: String,
    /// Why it could not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// One for the network at the start and one for each pass.
    pub(crate) rows: Vec<Row>,
    /// Of the last row.
    #[serde(flatten)]
    pub(crate) latency: Latency,
    /// When the latency was measured, where that was later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remeasured: Option<String>,
    /// The network at the start and the last, where they are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) containers: Vec<PathBuf>,
}

/// How fast a network is, keyed `b<batch>t<threads>`: first quartile, median and third quartile.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Milliseconds of a batch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ms: BTreeMap<String, [f64; 3]>,
    /// Speed-up over the network at the start, measured in turns with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) speedup: BTreeMap<String, [f64; 3]>,
}

/// The times of one size of batch on one number of threads, as `briquette bench --against` says them.
#[derive(Deserialize)]
pub(crate) struct Turns {
    batch: usize,
    threads: usize,
    median_ms: f64,
    quartiles_ms: [f64; 2],
    speedup: [f64; 3],
}

impl Latency {
    pub(crate) fn of(rows: &[Turns]) -> Self {
        let key = |row: &Turns| format!("b{}t{}", row.batch, row.threads);
        let ms = rows.iter().map(|row| (key(row), [row.quartiles_ms[0], row.median_ms, row.quartiles_ms[1]]));
        Self { ms: ms.collect(), speedup: rows.iter().map(|row| (key(row), row.speedup)).collect() }
    }
}

/// The figures of a report that a sweep keeps.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) method: String,
    pub(crate) accuracy: f64,
    pub(crate) params: usize,
    pub(crate) nonzero: usize,
    pub(crate) macs: u64,
    pub(crate) file_bytes: u64,
}

#[derive(Deserialize)]
pub(super) struct Report {
    pub(super) date: String,
    pub(super) rows: Vec<Measured>,
}

/// A row of a report.
#[derive(Deserialize)]
pub(super) struct Measured {
    #[serde(flatten)]
    pub(super) row: Row,
    latency_ms: BTreeMap<String, f64>,
    latency_quartiles: BTreeMap<String, [f64; 2]>,
    speedup: BTreeMap<String, [f64; 3]>,
}

impl Measured {
    pub(super) fn latency(&self) -> Latency {
        let quartiles = |(key, [low, high]): (&String, &[f64; 2])| Some((key.clone(), [*low, *self.latency_ms.get(key)?, *high]));
        Latency { ms: self.latency_quartiles.iter().filter_map(quartiles).collect(), speedup: self.speedup.clone() }
    }
}

/// A name that every file system takes.
pub(super) fn plain(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

impl Point {
    /// The container that the run started from, if it did from one.
    pub(super) fn model(&self) -> Option<String> {
        let config: toml::Table = toml::from_str(&self.config).ok()?;
        let model = &config["model"];
        let file = model.get("file").unwrap_or(model).as_str()?;
        file.ends_with(".brq").then(|| file.to_string())
    }

    /// Where the containers of the network at the start and of the last row are kept.
    pub(super) fn files(&self, sweep: &Sweep, folder: &Path) -> [PathBuf; 2] {
        let method = sweep.method.iter().find(|method| method.name == self.method);
        let own = method.is_some_and(|method| method.model.is_some());
        let start = if own { format!("{}-{}-start", self.data, self.method) } else { format!("{}-start", self.data) };
        let share = if method.is_some_and(Method::takes_a_share) { format!("-{}", self.keep) } else { String::new() };
        [start, format!("{}-{}{share}", self.data, self.method)].map(|name| folder.join(plain(&name) + ".brq"))
    }

    pub(super) fn line(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(|row| format!("{:.2} %", 100.0 * row.accuracy)).collect();
        let result = self.error.clone().unwrap_or_else(|| rows.join(" → "));
        format!("{} {} {} {}: {result}", self.data, self.method, self.keep, self.seed)
    }
}

impl Record {
    /// One line for each point, and no point that has not run.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let ran = self.points.iter().filter(|point| !point.rows.is_empty() || point.error.is_some());
        let lines: Vec<String> = ran.map(serde_json::to_string).collect::<Result<_, _>>()?;
        let (command, start) = (serde_json::to_string(&self.command)?, serde_json::to_string(&self.start)?);
        let text = format!("{{\"command\": {command},\n\"start\": {start},\n\"points\": [\n{}\n]}}\n", lines.join(",\n"));
        let whole = path.with_extension("json.new");
        std::fs::write(&whole, text).with_context(|| whole.display().to_string())?;
        std::fs::rename(&whole, path).with_context(|| path.display().to_string())
    }
}

/// The record at a path, where there is one.
pub(crate) fn read_record(path: &Path) -> Result<Option<Record>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).map(Some).with_context(|| path.display().to_string())
}
