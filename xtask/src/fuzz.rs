//! The readers of files from outside under libFuzzer and AddressSanitizer.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{nightly, root, say};

/// The readers, as `fuzz/targets.rs` names them.
const TARGETS: [&str; 8] = ["container", "checkpoint", "safetensors", "idx", "cifar", "shards", "config", "state"];

/// Marks at every branch, by which libFuzzer sees what is new.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
];

/// Seconds for each target, unless the arguments say otherwise.
const SECONDS: u32 = 600;

/// Largest file, memory of the whole process, and largest single allocation, in bytes and twice in MiB.
const LIMITS: [&str; 3] = ["-max_len=8192", "-rss_limit_mb=2048", "-malloc_limit_mb=512"];

/// Fuzzes the targets that are named, or all, one after the other. What was found is in the repository afterwards, as a test.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (names, seconds) = parse(arguments)?;
    let host = nightly::host()?;
    let folder = root().join("fuzz");
    let target = root().join("target/fuzz");
    let mut build = nightly::command("cargo");
    build.args(["build", "--release", "--target", &host]).current_dir(&folder);
    build.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", FLAGS.join(" "));
    if !build.status().context("cannot run cargo")?.success() {
        bail!("the fuzz targets do not build");
    }
    let program = target.join(host).join("release/readers");
    let mut found = Vec::new();
    for name in names {
        say(&format!("{name}: {seconds} s"));
        if !one(&program, name, seconds)? {
            found.push(name);
        }
    }
    if found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("faults in {}: mend them; their files in fuzz/corpus are tests from now on", found.join(", ")));
    Ok(ExitCode::FAILURE)
}

/// Whether a target comes back from everything that it is given for so long.
fn one(program: &Path, name: &str, seconds: u32) -> Result<bool> {
    // What libFuzzer keeps grows from run to run; what it begins with is written by the program itself, or in the repository.
    let grown = root().join("target/fuzz/corpus").join(name);
    let kept = root().join("fuzz/corpus").join(name);
    for folder in [&grown, &kept] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut fuzz = Command::new(program);
    fuzz.arg(&grown).arg(&kept).args(LIMITS).arg(format!("-max_total_time={seconds}"));
    fuzz.arg("-timeout=20").arg("-print_final_stats=1").arg(format!("-artifact_prefix={}/", kept.display()));
    fuzz.env("BRIQUETTE_FUZZ", name).env("BRIQUETTE_SEEDS", &grown).env("RAYON_NUM_THREADS", "1");
    Ok(fuzz.status().with_context(|| format!("cannot run {}", program.display()))?.success())
}

fn parse(arguments: &[String]) -> Result<(Vec<&'static str>, u32)> {
    let (mut names, mut seconds) = (Vec::new(), SECONDS);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let value = arguments.next().map(String::as_str).unwrap_or_default();
            seconds = value.parse().with_context(|| format!("--seconds takes a number, not {value:?}"))?;
        } else if let Some(name) = TARGETS.iter().find(|name| *name == argument) {
            names.push(*name);
        } else {
            bail!("no target {argument:?}; there are {}", TARGETS.join(", "));
        }
    }
    Ok((if names.is_empty() { TARGETS.to_vec() } else { names }, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_that_the_fuzzer_knows() {
        let text = std::fs::read_to_string(root().join("fuzz/targets.rs")).expect("it is in the repository");
        let known = TARGETS.iter().filter(|name| text.contains(&format!("=> \"{name}\",")));
        assert_eq!((known.count(), text.matches("=> \"").count()), (TARGETS.len(), TARGETS.len()));
    }

    #[test]
    fn targets_and_seconds_are_taken_in_any_order() {
        let parse = |text: &str| parse(&text.split_whitespace().map(str::to_string).collect::<Vec<_>>());
        assert_eq!(parse("").expect("all"), (TARGETS.to_vec(), 600));
        assert_eq!(parse("idx --seconds 5 cifar").expect("two"), (vec!["idx", "cifar"], 5));
        assert!(parse("--seconds").is_err() && parse("index").expect_err("unknown").to_string().contains("there are container"));
    }
}
