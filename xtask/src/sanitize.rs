//! The kernels' tests under AddressSanitizer, which sees every read and write beyond a buffer.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{exit_code, root, say};

/// Only a nightly compiler builds with a sanitizer.
pub(crate) fn run(rest: &[String]) -> Result<ExitCode> {
    let nightly = |program: &str| {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", program]).current_dir(root());
        command
    };
    let version = nightly("rustc").arg("-vV").output().context("cannot run rustup, which brings the nightly toolchain")?;
    let text = String::from_utf8_lossy(&version.stdout);
    let Some(host) = text.lines().find_map(|line| line.strip_prefix("host: ")).filter(|_| version.status.success()) else {
        bail!("there is no nightly toolchain; `rustup toolchain install nightly --profile minimal` brings it");
    };
    say(&format!("the kernels' tests under AddressSanitizer on {host}"));
    let mut tests = nightly("cargo");
    // With a target of its own, build scripts and macros stay without the sanitizer.
    tests.args(["test", "--release", "--package", "briquette-kernels", "--lib", "--target", host]).args(rest);
    exit_code(tests.env("CARGO_TARGET_DIR", root().join("target/sanitize")).env("RUSTFLAGS", "-Zsanitizer=address"))
}
