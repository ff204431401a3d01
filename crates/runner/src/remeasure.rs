//! Renews the latencies of a committed record, and nothing else in it, from the containers beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use briquette_data::Locations;
use briquette_runtime::Model;

use crate::files;
use crate::report::{Metrics, Report};
use crate::timing::{Inputs, Times, beside, now};

/// The container of a row of a record: `NAME-<row>.brq` beside `NAME.json`.
pub fn container(record: &Path, row: usize) -> PathBuf {
    let stem = record.file_stem().unwrap_or_default().to_string_lossy();
    record.with_file_name(format!("{stem}-{row}.brq"))
}

/// Measures the rows of a report anew and writes it back; how many rows that were. A row without a container loses its latency, which would be of another
/// engine. The report's data are opened where a network decides for each image what it computes.
///
/// # Errors
/// When the report does not read, the container of its first row, beside which the others are measured, is not there, or data are needed that are not.
pub fn remeasure(path: &Path, data_dir: Option<&Path>) -> Result<usize> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut report: Report = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let first = container(path, 0);
    if !first.exists() {
        bail!(
            "{}: {} is not there, beside which its rows are measured; `cargo xtask record` keeps it",
            path.display(),
            first.display()
        );
    }
    let (baseline, mut measured) = (model(&first)?, 0);
    for (index, row) in report.rows.iter_mut().enumerate() {
        let kept = container(path, index);
        let times = match kept.exists() {
            true => {
                let (model, data) =
                    (model(&kept)?, || Ok(briquette_data::open(&report.data.name, &Locations::from_env(data_dir))?.test));
                beside(&baseline, &model, &Inputs::between([&baseline, &model], data)?)?
            }
            false => Times::default(),
        };
        measured += usize::from(!times.ms.is_empty());
        times.into_row(row);
    }
    if let Some((first, last)) = report.rows.first().zip(report.rows.last()) {
        report.metrics.delta = Metrics::between(first, last).delta;
    }
    report.remeasured = Some(now()?);
    files::write(path, &serde_json::to_vec_pretty(&report)?)?;
    Ok(measured)
}

fn model(path: &Path) -> Result<Model> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Model::from_bytes(&bytes).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Row;
    use briquette_core::stored::Storage;
    use briquette_core::zoo::{Arch, Wanted};
    use burn::tensor::Device;
    use std::collections::BTreeMap;

    #[test]
    fn latencies_are_renewed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.json");
        let row = |pass: usize| Row {
            pass,
            accuracy: Some(0.5 + pass as f64 / 8.0),
            latency_ms: BTreeMap::from([("b1t99".to_string(), 7.0)]),
            speedup: BTreeMap::from([("b1t99".to_string(), [1.0; 3])]),
            ..Row::default()
        };
        let before = Report { title: "net".into(), date: "then".into(), rows: (0..3).map(row).collect(), ..Report::default() };
        std::fs::write(&path, serde_json::to_vec(&before).unwrap()).unwrap();
        let error = remeasure(&path, None).unwrap_err().to_string();
        assert!(error.contains("net-0.brq is not there"), "{error}");

        let arch = Arch::named("lenet300").unwrap();
        let net = arch.build(&Wanted { width: 0.05, ..arch.wanted() }, &Device::flex()).unwrap();
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        [0, 2].iter().for_each(|row| std::fs::write(container(&path, *row), &bytes).unwrap());
        assert_eq!(remeasure(&path, None).unwrap(), 2);

        let mut after: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert!(after.remeasured.take().is_some());
        assert!(
            after.rows[0].latency_ms.contains_key("b1t1")
                && after.metrics.delta == Metrics::between(&after.rows[0], &after.rows[2]).delta
        );
        assert!(after.rows[1].latency_ms.is_empty() && after.rows[1].speedup.is_empty());
        assert!(after.rows.iter().all(|row| !row.latency_ms.contains_key("b1t99")));
        after.rows.iter_mut().for_each(|row| Times::default().into_row(row));
        let mut expected = before;
        expected.rows.iter_mut().for_each(|row| Times::default().into_row(row));
        after.metrics.delta.clear();
        assert_eq!(after, expected);
    }
}
