//! Orchestrates builds, runs, checks and benchmarks. Verbs that are not listed here go to the binary `briquette`, built with the features
//! that the wanted device needs.

mod containers;
mod decompositions;
mod fuzz;
mod nightly;
mod peer;
mod plot;
mod sanitize;
mod shards;
mod sweep;
mod sweep_table;
mod table_ii;
mod tables;
mod training_speed;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let verb = arguments.first().map_or("help", String::as_str);
    let result = match verb {
        "help" | "-h" | "--help" => help(),
        "test" => test(&arguments[1..]),
        "check" => check(),
        "bench" if names_a_file(&arguments) => briquette(&arguments),
        "bench" => bench(with_default(&arguments, "training")),
        "table" => write_generated(),
        "smoke" => smoke(&arguments[1..]),
        "sweep" => with_copy(&arguments, |briquette| sweep::run(&arguments[1..], &root(), briquette)),
        "record" => containers::record(&arguments[1..]),
        "remeasure" => with_copy(&[], |briquette| containers::remeasure(&arguments[1..], &root(), briquette)),
        "shards" => with_copy(&[], |briquette| shards::run(&root(), briquette)),
        "sanitize" => sanitize::run(&arguments[1..]),
        "fuzz" => fuzz::run(&arguments[1..]),
        _ => briquette(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stderr)] // A tool for developers speaks on stderr; stdout belongs to the verbs.
fn say(text: &str) {
    eprintln!("{text}");
}

fn help() -> Result<ExitCode> {
    say("cargo xtask <verb>\n\n  \
         run CONFIG, plan CONFIG, methods, models, data, inspect, eval, bench FILE, verify, import\n             \
         the verbs of `briquette`; `cargo xtask run --help` lists a verb's options\n  \
         test       all tests; `--device D` the training of tests/devices.rs on that device\n  \
         check      format, lints, documentation, generated pages up to date\n  \
         bench      training speed and memory; `--peer` puts PyTorch beside it, `--device D` is tried instead of the CPU; `bench --help` lists what else is measured for developers\n  \
         smoke      a trial run of every config, or of those named\n  \
         sweep      runs what docs/records/PAGE/NAME.toml describes and NAME.json lacks; `--jobs N` points at once, `--device D`\n  \
         record     copies a run's report and small containers to docs/records/PAGE/NAME.json\n  \
         remeasure  renews the latencies in the records of a page from the containers beside them\n  \
         shards     the memory of a training on 10,000 and on 100,000 generated images\n  \
         sanitize   the kernels' tests under AddressSanitizer; needs a nightly toolchain\n  \
         fuzz       the readers of files under libFuzzer, 600 s each; `--seconds N`; targets by name; needs a nightly toolchain\n  \
         table      writes docs/tables and the README's results from docs/records, and docs/methods.md");
    briquette(&["help".to_string()])
}

/// Builds `briquette`, then runs it by itself, so that its output is not mixed with cargo's and its exit code is its own.
fn briquette(arguments: &[String]) -> Result<ExitCode> {
    build(arguments)?;
    let mut command = Command::new(binary("briquette"));
    environment(command.args(arguments));
    exit_code(&mut command)
}

/// Whether a container is named, and not what developers measure.
fn names_a_file(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument.ends_with(".brq")) || arguments.get(1).is_some_and(|name| Path::new(name).is_file())
}

/// Builds the benchmarks for developers and runs one of them.
fn bench(arguments: Vec<String>) -> Result<ExitCode> {
    let arguments = peer::with_peer(arguments)?;
    build(&arguments)?;
    let mut command = Command::new(binary("briquette-bench"));
    environment(command.args(&arguments[1..]));
    exit_code(&mut command)
}

fn build(arguments: &[String]) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--workspace", "--bins"]);
    if let Some(feature) = feature(arguments)? {
        build.args(["--features", feature]);
    }
    if build.status().context("cannot run cargo")?.success() { Ok(()) } else { bail!("briquette does not build") }
}

fn binary(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("debug").join(name)
}

/// The device in the arguments.
fn device_of(arguments: &[String]) -> Option<String> {
    arguments.iter().enumerate().find_map(|(i, a)| match a.strip_prefix("--device") {
        Some("") => arguments.get(i + 1).cloned(),
        Some(rest) => rest.strip_prefix('=').map(str::to_string),
        None => None,
    })
}

/// The feature that the device in the arguments or in the config asks for.
fn feature(arguments: &[String]) -> Result<Option<&'static str>> {
    let device = match (device_of(arguments), arguments) {
        (Some(device), _) => device,
        (None, [verb, config, ..]) if (verb == "run" || verb == "plan") && config.ends_with(".toml") => {
            let text = std::fs::read_to_string(config).unwrap_or_default();
            let table = text.parse::<toml::Table>().unwrap_or_default();
            table.get("device").and_then(toml::Value::as_str).unwrap_or("auto").to_string()
        }
        _ => "auto".into(),
    };
    match device.split(':').next().unwrap_or_default() {
        "ndarray" => Ok(Some("ndarray")),
        "wgpu" => Ok(Some("wgpu")),
        "vulkan" => Ok(Some("vulkan")),
        "cuda" => Ok(Some("cuda")),
        "remote" => bail!("device '{device}': remote devices are not built yet"),
        _ => Ok(None),
    }
}

/// The training of `tests/devices.rs` on this device, in a build that has it.
fn test_on(device: &str, arguments: &[String]) -> Result<ExitCode> {
    let Some(feature) = feature(arguments)? else { bail!("'{device}' is what every test runs on, or no device that there is") };
    if let Some(other) = arguments.iter().find(|argument| !argument.starts_with("--device") && *argument != device) {
        bail!("`test --device {device}` runs one test and takes no '{other}'");
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--features", &format!("briquette-tests/{feature}"), "--test", "tests"]);
    environment(command.args(["--", "devices::", "--nocapture"]).env("BRIQUETTE_TEST_DEVICE", device));
    exit_code(&mut command)
}

/// Tests that need data sets or checkpoints are marked as ignored; they run when both folders are at hand.
fn test(rest: &[String]) -> Result<ExitCode> {
    if let Some(device) = device_of(rest) {
        return test_on(&device, rest);
    }
    let mut command = cargo();
    environment(command.args(["test", "--workspace"]).args(rest));
    let set = |variable: &str| std::env::var_os(variable).is_some() || command.get_envs().any(|(name, _)| name == variable);
    if set("BRIQUETTE_DATA") && set("BRIQUETTE_MODELS") {
        if !rest.iter().any(|argument| argument == "--") {
            command.arg("--");
        }
        command.arg("--include-ignored");
    } else {
        say("BRIQUETTE_DATA and BRIQUETTE_MODELS name no folders: tests that need data are skipped and counted as ignored");
    }
    exit_code(&mut command)
}

/// A trial run of every config, or of those named, one after the other; what they write goes to `target/smoke`.
fn smoke(names: &[String]) -> Result<ExitCode> {
    let named = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut configs = tables::entries(&root().join("configs"))?;
    configs.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    if let Some(unknown) = names.iter().find(|&name| configs.iter().all(|path| named(path) != *name)) {
        bail!("configs/{unknown}.toml does not exist");
    }
    configs.retain(|path| names.is_empty() || names.contains(&named(path)));
    build(&[])?;
    let mut failed = 0;
    for config in &configs {
        let name = named(config);
        let out = root().join("target/smoke").join(&name);
        if out.exists() {
            std::fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
        }
        let began = std::time::Instant::now();
        let mut run = Command::new(binary("briquette"));
        environment(run.arg("run").arg(config).arg("--smoke").arg("--out").arg(&out));
        let output = run.output().context("cannot run briquette")?;
        let seconds = began.elapsed().as_secs();
        if output.status.success() {
            say(&format!("{name}: done in {seconds} s"));
        } else {
            failed += 1;
            let log = String::from_utf8_lossy(&output.stderr);
            say(&format!("{name}: failed after {seconds} s: {}", log.lines().last().unwrap_or_default()));
        }
    }
    say(&format!("{} of {} configs ran", configs.len() - failed, configs.len()));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Hands on what starts a copy of the binary, so that a build that goes on meanwhile changes nothing.
fn with_copy(arguments: &[String], work: impl FnOnce(&(dyn Fn() -> Command + Sync)) -> Result<ExitCode>) -> Result<ExitCode> {
    build(arguments)?;
    let copy = root().join("target/sweep").join(format!("briquette-{}", std::process::id()));
    std::fs::create_dir_all(root().join("target/sweep")).context("cannot make target/sweep")?;
    std::fs::copy(binary("briquette"), &copy).with_context(|| copy.display().to_string())?;
    let result = work(&|| {
        let mut command = Command::new(&copy);
        environment(&mut command);
        command
    });
    let _ = std::fs::remove_file(&copy);
    result
}

/// Cheapest first.
fn check() -> Result<ExitCode> {
    let steps = ["fmt --all --check", "clippy --workspace --all-targets -- -D warnings", "doc --workspace --no-deps"];
    for step in steps {
        say(&format!("cargo {step}"));
        let mut command = cargo();
        command.args(step.split(' '));
        if step.starts_with("doc") {
            command.env("RUSTDOCFLAGS", "-D warnings");
        }
        if !command.status().context("cannot run cargo")?.success() {
            bail!("`cargo {step}` failed");
        }
    }
    for (file, text) in generated()? {
        if std::fs::read_to_string(&file).unwrap_or_default() != text {
            bail!("{} is out of date; `cargo xtask table` writes it", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything in the documentation that is written by a program: the catalogue of methods and the tables of results.
fn generated() -> Result<Vec<(PathBuf, String)>> {
    let arguments = ["methods".to_string(), "--markdown".to_string()];
    build(&arguments)?;
    let output = Command::new(binary("briquette")).args(arguments).output().context("cannot run briquette")?;
    let mut files = tables::all(&root())?;
    files.push((root().join("docs/methods.md"), String::from_utf8(output.stdout)?));
    Ok(files)
}

fn write_generated() -> Result<ExitCode> {
    for (file, text) in generated()? {
        std::fs::create_dir_all(file.parent().unwrap_or(Path::new("."))).with_context(|| file.display().to_string())?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The folders beside the repository that hold data and models, where they exist.
fn environment(command: &mut Command) {
    for (variable, folder) in [("BRIQUETTE_DATA", "../shared/datasets"), ("BRIQUETTE_MODELS", "../shared/models")] {
        let folder = root().join(folder);
        if std::env::var_os(variable).is_none() && folder.is_dir() {
            command.env(variable, folder);
        }
    }
}

fn with_default(arguments: &[String], what: &str) -> Vec<String> {
    let mut all = arguments.to_vec();
    if all.get(1).is_none_or(|a| a.starts_with('-')) {
        all.insert(1, what.to_string());
    }
    all
}

/// Cargo, without what it told this process of its package: build scripts that look at it would run again, and their crates with them.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let told = std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    });
    told.for_each(|name| {
        command.env_remove(name);
    });
    command
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_of_a_container_is_the_users_and_all_others_are_for_developers() {
        let users = |arguments: &[&str]| names_a_file(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(users(&["bench", "model.brq"]) && users(&["bench", "--batch", "1", "model.brq", "--against", "other.brq"]));
        assert!(users(&["bench", &root().join("Cargo.toml").display().to_string()]));
        assert!(
            !users(&["bench"]) && !users(&["bench", "--json"]) && !users(&["bench", "training", "--peer", "/usr/bin/python3"])
        );
    }
}
