//! The kernels' tests under AddressSanitizer, which sees every read and write beyond a buffer.

use std::process::ExitCode;

use anyhow::Result;

use crate::{exit_code, nightly, root, say};

/// Only a nightly compiler builds with a sanitizer.
pub(crate) fn run(rest: &[String]) -> Result<ExitCode> {
    let host = nightly::host()?;
    say(&format!("the kernels' tests under AddressSanitizer on {host}"));
    let mut tests = nightly::command("cargo");
    // With a target of its own, build scripts and macros stay without the sanitizer.
    tests.args(["test", "--release", "--package", "briquette-kernels", "--lib", "--target", &host]).args(rest);
    exit_code(tests.env("CARGO_TARGET_DIR", root().join("target/sanitize")).env("RUSTFLAGS", "-Zsanitizer=address"))
}
