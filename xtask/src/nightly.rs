//! The nightly toolchain, which alone builds with sanitizers.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::root;

/// A program of the toolchain.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]).current_dir(root());
    command
}

/// The machine that it compiles for.
pub(crate) fn host() -> Result<String> {
    let version = command("rustc").arg("-vV").output().context("cannot run rustup, which brings the nightly toolchain")?;
    let text = String::from_utf8_lossy(&version.stdout);
    match text.lines().find_map(|line| line.strip_prefix("host: ")).filter(|_| version.status.success()) {
        Some(host) => Ok(host.to_string()),
        None => bail!("there is no nightly toolchain; `rustup toolchain install nightly --profile minimal` brings it"),
    }
}
