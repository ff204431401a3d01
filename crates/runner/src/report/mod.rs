//! The outcome of a run, as `report.json`, Markdown, a web page, plots and a table for the terminal.
//!
//! The types are the schema, version 1: fields may be added, none is renamed. Accuracies are shares in [0, 1] on the test split, bits
//! and bytes count everything that is needed to run the network.

mod content;
mod format;
mod html;
mod markdown;
mod metrics;
mod numbers;
pub(crate) mod plots;
#[cfg(test)]
mod sample;
mod shares;
mod table;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use briquette_core::scan::Scan;
use briquette_core::tradeoff::Tradeoff;
use serde::{Deserialize, Serialize};

pub use metrics::Metrics;

use crate::config::ValidFrom;
use crate::device::Adapter;

/// Version of the schema.
pub const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the schema, [`SCHEMA`].
    pub schema: u32,
    /// What the run is called.
    #[serde(default)]
    pub title: String,
    /// First comment line of the config: the expected result.
    #[serde(default)]
    pub expected: String,
    /// The command that makes this report again.
    #[serde(default)]
    pub command: String,
    /// When the run ended.
    #[serde(default)]
    pub date: String,
    /// When the latencies were measured, where that was later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remeasured: Option<String>,
    /// The config as TOML.
    pub config: String,
    /// Hash of the config with every override applied.
    pub config_hash: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Device that trained.
    pub device: String,
    /// What that device is, where it is not the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
    /// Whether epochs and data were cut down for a trial.
    pub smoke: bool,
    /// Versions of the programs involved.
    pub versions: BTreeMap<String, String>,
    /// The data.
    pub data: DataInfo,
    /// One row per pass.
    pub rows: Vec<Row>,
    /// First row against last row.
    pub metrics: Metrics,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            title: String::new(),
            expected: String::new(),
            command: String::new(),
            date: String::new(),
            remeasured: None,
            config: String::new(),
            config_hash: String::new(),
            seed: 0,
            device: String::new(),
            adapter: None,
            smoke: false,
            versions: BTreeMap::new(),
            data: DataInfo::default(),
            rows: Vec::new(),
            metrics: Metrics::default(),
        }
    }
}

/// The data of a run, in images.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DataInfo {
    /// Name of the set.
    pub name: String,
    /// Training images; those for validation are not among them.
    pub train: usize,
    /// Validation images.
    pub valid: usize,
    /// Test images; those for validation are not among them.
    pub test: usize,
    /// The split that gave the validation images.
    #[serde(default)]
    pub valid_from: ValidFrom,
    /// Checksums of the files.
    pub sha256: Vec<String>,
    /// Checksums of folders of images without labels that passes have read, by the config's names for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unlabelled: BTreeMap<String, String>,
}

/// The network after a pass. A plan knows less of it than a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Row {
    /// Number of the pass.
    pub pass: usize,
    /// Name of the method.
    pub method: String,
    /// Accuracy on the test split.
    pub accuracy: Option<f64>,
    /// Accuracy on the validation split.
    pub valid_accuracy: Option<f64>,
    /// Top-5 accuracy on the test split.
    pub top5: Option<f64>,
    /// Mean loss on the test split.
    pub loss: Option<f64>,
    /// Trainable values.
    pub params: usize,
    /// Trainable values that are not zero.
    pub nonzero: usize,
    /// Bits of everything that is stored.
    pub bits: u64,
    /// Size of the file.
    pub file_bytes: Option<u64>,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// Mean multiply-accumulates of the test images, of a network that skips work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_macs: Option<f64>,
    /// Median milliseconds of a batch, keyed `b<batch>t<threads>`.
    #[serde(deserialize_with = "numbers::map")]
    pub latency_ms: BTreeMap<String, f64>,
    /// First and third quartile of these milliseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latency_quartiles: BTreeMap<String, [f64; 2]>,
    /// Speed-up over the first row, whose network took turns with this one: first quartile, median and third quartile over the turns.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub speedup: BTreeMap<String, [f64; 3]>,
    /// Wall-clock time of the pass.
    #[serde(deserialize_with = "numbers::number")]
    pub seconds: f64,
    /// Highest resident memory of the process up to the end of the pass, in bytes; none where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// The layers that hold parameters.
    #[serde(default)]
    pub layers: Vec<LayerRow>,
    /// The epochs of the pass, if it trained.
    #[serde(default)]
    pub curve: Vec<Epoch>,
    /// What the pass found out about the layers one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<Scan>,
    /// What the network does for what it costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tradeoff: Option<Tradeoff>,
    /// What else it found out, such as layers that it left as they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A layer after a pass.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LayerRow {
    /// Name of its node.
    pub name: String,
    /// Kind of layer.
    pub kind: String,
    /// Shape of the weight, `[out, in / groups, kh, kw]` or `[out, in]`; empty without one.
    pub shape: Vec<usize>,
    /// Trainable values.
    pub params: usize,
    /// Trainable values that are not zero.
    pub nonzero: usize,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// Bits of everything that is stored.
    pub bits: u64,
    /// Mean bits of a non-zero weight's value, after coding.
    pub value_bits: Option<f64>,
    /// Mean bits of a non-zero weight's position, after coding.
    pub index_bits: Option<f64>,
    /// Entries of the shared codebook.
    pub codebook: Option<usize>,
    /// Bytes of everything that is stored.
    pub bytes: Option<u64>,
}

/// An epoch of training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Epoch {
    /// Counted from 0 within its training.
    pub epoch: usize,
    /// Learning rate.
    #[serde(deserialize_with = "numbers::number")]
    pub lr: f64,
    /// Mean training loss; not a number where training diverged.
    #[serde(deserialize_with = "numbers::number")]
    pub train_loss: f64,
    /// Training accuracy.
    #[serde(deserialize_with = "numbers::number")]
    pub train_accuracy: f64,
    /// Accuracy on the validation split.
    pub valid_accuracy: Option<f64>,
    /// Wall-clock time.
    #[serde(deserialize_with = "numbers::number")]
    pub seconds: f64,
    /// Training images per second.
    #[serde(deserialize_with = "numbers::number")]
    pub images_per_s: f64,
}

impl From<briquette_core::context::Epoch> for Epoch {
    fn from(e: briquette_core::context::Epoch) -> Self {
        Self {
            epoch: e.epoch,
            lr: e.lr,
            train_loss: e.train_loss,
            train_accuracy: e.train_accuracy,
            valid_accuracy: Some(e.valid_accuracy),
            seconds: e.seconds,
            images_per_s: e.images_per_s,
        }
    }
}

impl Report {
    /// The passes as an aligned table for the terminal.
    pub fn table(&self) -> String {
        content::passes(self).keep(content::CONSOLE).text()
    }
}

/// Writes `report.json`, `report.md`, `report.html` and the plots. Each file is written whole or not at all; `report.json` comes last,
/// so that where it lies the others lie too.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write(dir: &Path, report: &Report) -> Result<()> {
    let plots = report.plots().context("cannot draw the plots")?;
    let page = report.html(&plots).context("cannot make report.html")?;
    let mut markdown = report.markdown();
    for (name, svg) in &plots {
        crate::files::write(&dir.join(name), svg.as_bytes())?;
        markdown += &format!("\n![{}]({name})\n", name.trim_end_matches(".svg"));
    }
    crate::files::write(&dir.join("report.md"), markdown.as_bytes())?;
    crate::files::write(&dir.join("report.html"), page.as_bytes())?;
    crate::files::write(&dir.join("report.json"), &serde_json::to_vec_pretty(report)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut report = sample::report();
        report.rows[1].scan = Some(sample::scan());
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &report).unwrap();
        let json = std::fs::read(dir.path().join("report.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Report>(&json).unwrap(), report);
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(
            names,
            ["curves.svg", "layers.svg", "passes.svg", "report.html", "report.json", "report.md", "sensitivity.svg"]
        );
        let markdown = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
        assert!(markdown.starts_with(&report.markdown()) && markdown.contains("![curves](curves.svg)"));
    }

    #[test]
    fn the_schema_of_version_1_is_read() {
        let text = r#"{"schema":1,"config":"","config_hash":"","seed":7,"device":"flex","smoke":false,"versions":{"burn":"0.22.1"},
            "data":{"name":"mnist","train":55000,"valid":5000,"test":10000,"sha256":["00"]},
            "rows":[{"pass":0,"method":"train","accuracy":0.9921,"top5":null,"loss":0.03,"params":431080,"nonzero":431080,
                     "bits":13794560,"file_bytes":1725012,"macs":2293000,"latency_ms":{"b1t1":0.21},"seconds":312.4,"layers":[]}],
            "metrics":{"alpha_params":12.0,"alpha_bits":39.1,"alpha_bytes":39.0,"beta_survey":38.0,"saving":0.974,"delta":{"b1t1":3.1},
                       "macs_ratio":6.2}}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!((report.rows[0].accuracy, report.metrics.delta["b1t1"]), (Some(0.9921), 3.1));
    }

    #[test]
    fn a_diverged_training_still_makes_a_readable_report() {
        let mut report = sample::report();
        report.rows[0].curve[1].train_loss = f64::NAN;
        report.rows[0].loss = Some(f64::INFINITY);
        report.rows[0].latency_ms.insert("b9t9".into(), f64::NAN);
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &report).unwrap();
        let back: Report = serde_json::from_slice(&std::fs::read(dir.path().join("report.json")).unwrap()).unwrap();
        assert!(back.rows[0].curve[1].train_loss.is_nan() && back.rows[0].loss.is_none());
        assert!(!back.rows[0].latency_ms.contains_key("b9t9"));
    }

    #[test]
    fn little_to_tell_is_told_without_panic() {
        let full = sample::report();
        for rows in [0, 1] {
            let mut report = Report { rows: full.rows[..rows].to_vec(), ..full.clone() };
            report.metrics = Metrics::default();
            for row in &mut report.rows {
                *row = Row { method: "train".into(), ..Row::default() };
            }
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &report).unwrap();
            assert!(report.plots().unwrap().is_empty());
            assert_eq!(report.table().lines().count(), 2 + rows);
        }
    }
}
