//! PyTorch beside us: a process of its own that runs the same nets on demand.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use briquette_runner::steps::Mode;

/// Memory formats in which PyTorch runs each net; the better one counts.
pub(crate) const FORMATS: [&str; 2] = ["nchw", "channels-last"];

/// A Python process with PyTorch, idle between orders.
pub(crate) struct Peer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// PyTorch's version.
    pub(crate) version: String,
}

impl Peer {
    /// Starts PyTorch in this Python, on its device of this name.
    pub(crate) fn start(python: &Path, threads: usize, device: &str) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", include_str!("peer.py"), &threads.to_string(), device])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipe to the peer") };
        let mut this = Self { child, orders, answers: BufReader::new(answers), version: String::new() };
        this.version = this.answer().with_context(|| format!("{}: PyTorch does not start", python.display()))?;
        Ok(this)
    }

    /// The seconds of some steps, after one that is not counted; on a device that computes while the host goes on, their mean.
    pub(crate) fn steps(&mut self, net: &str, mode: Mode, batch: usize, steps: usize, format: &str) -> Result<Vec<f64>> {
        writeln!(self.orders, "{net} {mode} {batch} {steps} {format}").context("the peer is gone")?;
        self.answer()
    }

    fn answer<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the peer ended with {line:?}; what it wrote above says why"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
