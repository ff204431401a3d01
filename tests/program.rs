//! The binary under test, and configs small enough to run whole.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Trains, prunes, shares and codes a small network on a few embedded images.
pub(crate) const SMALL: &str = r#"# a few seconds
model = "lenet300"
data = { name = "glyphs", train = 900, test = 200 }
seed = 5

[[pass]]
method = "train"
epochs = 4
batch = 32

[[pass]]
method = "magnitude"
keep = { rest = 0.2 }
rounds = 2
tune = { epochs = 2, batch = 32 }

[[pass]]
method = "filter-l1"
ratio = { fc1 = 0.1 }

[[pass]]
method = "kmeans-sharing"
bits = 4
tune = { epochs = 2, batch = 32 }

[[pass]]
method = "encode"
coder = "entropy"
"#;

/// A folder with a config in it; gone when dropped.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
}

impl Bench {
    pub(crate) fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("small.toml"), config).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `briquette` with these arguments, working in the folder, without network.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_briquette-under-test"));
        command.args(arguments).current_dir(self.folder.path()).env("BRIQUETTE_OFFLINE", "1");
        command
    }

    pub(crate) fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard error and exit code of a call that must fail without a panic.
    pub(crate) fn refusal(&self, arguments: &[&str]) -> (String, i32) {
        let output = self.call(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?} went through");
        assert!(!text.contains("panicked"), "{text}");
        (text, output.status.code().unwrap())
    }
}

/// The rows of a finished run without what differs from run to run: times and memory.
pub(crate) fn rows(folder: &Path) -> serde_json::Value {
    let text = std::fs::read(folder.join("report.json")).unwrap();
    let mut report: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for row in report["rows"].as_array_mut().unwrap() {
        let row = row.as_object_mut().unwrap();
        row.remove("seconds");
        ["latency_ms", "latency_quartiles", "speedup", "peak_memory"].iter().for_each(|name| drop(row.remove(*name)));
        for epoch in row.get_mut("curve").and_then(|curve| curve.as_array_mut()).into_iter().flatten() {
            let epoch = epoch.as_object_mut().unwrap();
            epoch.remove("seconds");
            epoch.remove("images_per_s");
        }
    }
    report["rows"].take()
}
