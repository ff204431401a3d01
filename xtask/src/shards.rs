//! Trains on generated images in tar shards and prints the most memory that the process took: ten times as many images take no more.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, say};

/// Training images of the sets, each in the proportion of `glyphs` with a sixth as many test images.
const SIZES: [usize; 2] = [10_000, 100_000];

/// Writes the sets below `target/shards`, unless they are there, and runs a small config on each.
pub(crate) fn run(root: &Path, briquette: &dyn Fn() -> Command) -> Result<ExitCode> {
    let folder = root.join("target/shards");
    for train in SIZES {
        let set = folder.join(train.to_string());
        if !set.is_dir() {
            generate(&set, train)?;
        }
        let (shards, embedded) = (format!("shards:{}", set.display()), "glyphs".to_string());
        for (what, name) in [("in shards", shards), ("in memory", embedded)] {
            let peak = peak(&folder, &name, train, briquette)?;
            say(&format!("{train} training images {what}: peak memory {:.1} MB", peak as f64 / 1e6));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn generate(set: &Path, train: usize) -> Result<()> {
    let counts = [train, train / 6].map(|count| count.to_string());
    let mut example = cargo();
    example.args(["run", "-p", "briquette-data", "--example", "shards", "--"]).arg(set).args(counts);
    if example.status().context("cannot run cargo")?.success() { Ok(()) } else { bail!("no shards could be written") }
}

/// Highest memory of a training of one epoch, in bytes.
fn peak(folder: &Path, data: &str, train: usize, briquette: &dyn Fn() -> Command) -> Result<u64> {
    let (config, out) = (folder.join("shards.toml"), folder.join("run"));
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
    }
    let data = toml::Value::from(data);
    let head = format!("# flat memory\nmodel = \"lenet5\"\ndata = {{ name = {data}, train = {train}, test = {} }}\n", train / 6);
    std::fs::write(&config, head + "[[pass]]\nmethod = \"train\"\nepochs = 1\n").with_context(|| config.display().to_string())?;
    let output = briquette().arg("run").arg(&config).arg("--out").arg(&out).output().context("cannot run briquette")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let report = std::fs::read(out.join("report.json")).with_context(|| out.display().to_string())?;
    let report: serde_json::Value = serde_json::from_slice(&report)?;
    report["rows"][0]["peak_memory"].as_u64().context("this system does not tell a process's memory")
}
