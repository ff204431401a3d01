//! Renews the latencies of a committed record, and nothing else in it, from the containers beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use briquette_data::Dataset;
use briquette_runtime::Model;

use crate::config::{DataSpec, ValidFrom};
use crate::report::{DataInfo, Metrics, Report};
use crate::timing::{Inputs, Times, beside, now};
use crate::{files, setup};

/// The container of a row of a record: `NAME-<row>.brq` beside `NAME.json`.
pub fn container(record: &Path, row: usize) -> PathBuf {
    let stem = record.file_stem().unwrap_or_default().to_string_lossy();
    record.with_file_name(format!("{stem}-{row}.brq"))
}

/// Measures the rows of a report anew and writes it back; how many rows that were. A row without a container loses its latency, which would be of another
/// engine. The run's test images are opened where a network decides for each image what it computes.
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
                let (model, data) = (model(&kept)?, || tested(&report.data, report.seed, data_dir));
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

/// The test images of a run with these data and this seed.
fn tested(data: &DataInfo, seed: u64, data_dir: Option<&Path>) -> Result<Dataset> {
    let DataInfo { train, valid, test, valid_from, .. } = *data;
    let [train, test] = match valid_from {
        ValidFrom::Train => [train + valid, test],
        ValidFrom::Test => [train, test + valid],
    };
    let (train, test, valid, valid_from) = (Some(train), Some(test), Some(valid), Some(valid_from));
    let spec = DataSpec { name: data.name.clone(), train, test, smoke: None, valid, valid_from };
    Ok(setup::data(&spec, seed, data_dir)?.1.test)
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
    fn images_are_those_that_the_run_was_tested_on() {
        for valid_from in [ValidFrom::Train, ValidFrom::Test] {
            let (name, valid_from) = ("glyphs".to_string(), Some(valid_from));
            let spec = DataSpec { name, train: Some(120), test: Some(60), smoke: None, valid: None, valid_from };
            let (splits, run) = setup::data(&spec, 7, None).unwrap();
            let info = DataInfo {
                name: splits.name,
                train: run.train.len(),
                valid: run.valid.len(),
                test: run.test.len(),
                valid_from: valid_from.unwrap(),
                ..DataInfo::default()
            };
            let images = |set: &Dataset| (0..set.len()).map(|image| set.pixel(image).unwrap()).collect::<Vec<_>>();
            assert_eq!(images(&tested(&info, 7, None).unwrap()), images(&run.test));
        }
    }

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
