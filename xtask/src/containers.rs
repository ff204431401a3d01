//! Containers that lie beside their records, so that a faster engine renews latencies without any training.
//!
//! A run leaves the small ones in `rows/`. Those of a report `NAME.json` become `NAME-<row>.brq`; a sweep keeps those of its first seed in a folder of
//! its own name and says in each point which two are compared.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::sweep::{Latency, Record, Turns, read_record};
use crate::{say, table_ii, tables, training_speed};

/// Copies the report of a finished run to `docs/records/PAGE/NAME.json`, its small containers beside it, in the place of those that were there.
///
/// # Errors
/// When the run is not finished, or a file cannot be copied.
pub(crate) fn record(arguments: &[String]) -> Result<ExitCode> {
    let [run, record] = arguments else { bail!("usage: cargo xtask record RUN docs/records/PAGE/NAME.json") };
    let (run, record) = (Path::new(run), Path::new(record));
    let Some(stem) = record.file_stem().filter(|_| record.extension().is_some_and(|ending| ending == "json")) else {
        bail!("{} does not end in .json", record.display());
    };
    let report = run.join("report.json");
    if !report.is_file() {
        bail!("{} is not there: the run is not finished", report.display());
    }
    let folder = record.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let prefix = format!("{}-", stem.to_string_lossy());
    for old in tables::entries(folder)? {
        let name = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let row = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".brq"));
        if row.is_some_and(|row| row.bytes().all(|byte| byte.is_ascii_digit())) {
            std::fs::remove_file(&old).with_context(|| old.display().to_string())?;
        }
    }
    copy(&report, record)?;
    let rows = run.join("rows");
    for kept in if rows.is_dir() { tables::entries(&rows)? } else { Vec::new() } {
        let name = kept.file_name().unwrap_or_default().to_string_lossy().into_owned();
        copy(&kept, &folder.join(prefix.clone() + &name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps the first and the last container of a finished run as `start` and `last`, relative to the root; none where the last one is not small. A
/// network of the repository that the run started from stands for itself.
///
/// # Errors
/// When a file cannot be copied.
pub(crate) fn keep(root: &Path, run: &Path, model: Option<&str>, [start, last]: [PathBuf; 2]) -> Result<Vec<PathBuf>> {
    let rows = root.join(run).join("rows");
    let report: Rows = serde_json::from_slice(&std::fs::read(root.join(run).join("report.json"))?)?;
    let [first_kept, last_kept] = [0, report.rows.len().saturating_sub(1)].map(|row| rows.join(format!("{row}.brq")));
    let committed = model.map(PathBuf::from).filter(|model| !model.starts_with("target") && root.join(model).is_file());
    if !last_kept.is_file() || (committed.is_none() && !first_kept.is_file()) {
        return Ok(Vec::new());
    }
    copy(&last_kept, &root.join(&last))?;
    let start = match committed {
        Some(model) => model,
        None => {
            copy(&first_kept, &root.join(&start))?;
            start
        }
    };
    Ok(vec![start, last])
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<serde::de::IgnoredAny>,
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let said = || format!("cannot copy {} to {}", from.display(), to.display());
    std::fs::create_dir_all(to.parent().unwrap_or(Path::new("."))).with_context(said)?;
    std::fs::copy(from, to).map(drop).with_context(said)
}

/// Renews the latencies of every record of a page that has its containers. `briquette` starts the binary.
///
/// # Errors
/// An unknown page, records that do not read, containers that the engine refuses.
pub(crate) fn remeasure(arguments: &[String], root: &Path, briquette: &dyn Fn() -> Command) -> Result<ExitCode> {
    let [page] = arguments else { bail!("usage: cargo xtask remeasure PAGE") };
    let folder = root.join("docs/records").join(page);
    if [training_speed::NAME, table_ii::NAME].contains(&page.as_str()) || !folder.is_dir() {
        bail!("docs/records/{page} holds no records of runs");
    }
    for path in tables::entries(&folder)?.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "json")) {
        let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if path.with_extension("toml").exists() {
            let mut record = read_record(&path)?.with_context(|| shown.clone())?;
            let measured = points(&mut record, root, briquette).with_context(|| shown.clone())?;
            record.write(&path)?;
            say(&format!("{shown}: {measured} of {} points", record.points.len()));
        } else if path.with_file_name(format!("{}-0.brq", path.file_stem().unwrap_or_default().to_string_lossy())).exists() {
            let output = output(briquette().arg("remeasure").arg(&path)).with_context(|| shown.clone())?;
            say(&format!("{shown}: {}", String::from_utf8_lossy(&output).trim()));
        } else {
            say(&format!("{shown}: keeps no containers, left as it is"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The part of what `briquette bench` says that a record keeps.
#[derive(Deserialize)]
struct Said {
    date: String,
    rows: Vec<Turns>,
}

fn points(record: &mut Record, root: &Path, briquette: &dyn Fn() -> Command) -> Result<usize> {
    let mut measured = 0;
    for point in &mut record.points {
        let [first, last] = &point.containers[..] else { continue };
        let output = output(briquette().current_dir(root).args(["--json", "bench"]).arg(last).arg("--against").arg(first))?;
        let said: Said = serde_json::from_slice(&output)?;
        point.latency = Latency::of(&said.rows);
        point.remeasured = Some(said.date);
        measured += 1;
    }
    Ok(measured)
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().context("cannot run briquette")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(root: &Path, rows: &[usize]) -> PathBuf {
        let run = PathBuf::from("target/run");
        std::fs::create_dir_all(root.join(&run).join("rows")).unwrap();
        std::fs::write(root.join(&run).join("report.json"), r#"{ "rows": [{}, {}, {}] }"#).unwrap();
        rows.iter().for_each(|row| std::fs::write(root.join(&run).join(format!("rows/{row}.brq")), [*row as u8]).unwrap());
        run
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("briquette-containers-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_first_and_the_last_container_are_kept_where_the_last_is_small() {
        let root = folder("keep");
        let names = || ["docs/page/sweep/start.brq", "docs/page/sweep/cut.brq"].map(PathBuf::from);
        let run = finished(&root, &[0, 1]);
        assert!(keep(&root, &run, None, names()).unwrap().is_empty() && !root.join("docs").exists());
        let run = finished(&root, &[0, 2]);
        assert_eq!(keep(&root, &run, Some("target/start/model.brq"), names()).unwrap(), names());
        assert_eq!(names().map(|name| std::fs::read(root.join(name)).unwrap()), [[0], [2]]);
        // A network that lies in the repository is not kept twice.
        std::fs::create_dir_all(root.join("models")).unwrap();
        std::fs::write(root.join("models/net.brq"), [9]).unwrap();
        let kept = keep(&root, &run, Some("models/net.brq"), names()).unwrap();
        assert_eq!(kept, ["models/net.brq", "docs/page/sweep/cut.brq"].map(PathBuf::from));
    }

    #[test]
    fn a_record_has_the_containers_of_its_own_run_alone() {
        let root = folder("record");
        let (run, record_path) = (root.join(finished(&root, &[0, 2])), root.join("page/net.json"));
        std::fs::create_dir_all(root.join("page")).unwrap();
        for old in ["net-1.brq", "net-56-0.brq", "other-0.brq"] {
            std::fs::write(root.join("page").join(old), []).unwrap();
        }
        record(&[run.display().to_string(), record_path.display().to_string()]).unwrap();
        let names: Vec<String> = tables::entries(&root.join("page"))
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["net-0.brq", "net-2.brq", "net-56-0.brq", "net.json", "other-0.brq"]);
    }
}
