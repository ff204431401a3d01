//! The command line: verbs, exit codes, logs.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use serde::Serialize;

use crate::config::Config;
use crate::host::STOP;
use crate::program::{on_a_pool_thread, print, show, start_log};
use crate::report::Report;
use crate::{plan, remeasure, run, setup, verbs};

/// Model compression for CNNs: TOML in, a smaller and faster network out.
#[derive(Debug, Parser)]
#[command(name = "briquette", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Print one JSON document on stdout and nothing else there.
    #[arg(long, global = true)]
    json: bool,
    /// Folder in which data sets are looked for first.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    /// Threads that compute [default: one for each core]; results do not depend on it. `bench` measures several numbers one after the other
    /// [there: 1, and one for each core].
    #[arg(long, global = true, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the pipeline of a config.
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        /// The run's folder [default: runs/<config>-<hash>].
        #[arg(long)]
        out: Option<PathBuf>,
        /// Go on where a stopped run ended.
        #[arg(long)]
        resume: bool,
    },
    /// Show what a config would do; writes nothing.
    Plan {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// List the methods.
    Methods {
        /// Print the catalogue as Markdown, as docs/methods.md holds it.
        #[arg(long)]
        markdown: bool,
    },
    /// List the networks of the zoo.
    Models,
    /// List the data sets, or fetch one.
    Data {
        #[command(subcommand)]
        action: Option<DataAction>,
    },
    /// Show what is in a container or checkpoint.
    Inspect {
        /// The file.
        file: PathBuf,
        /// Of a checkpoint: only what lies below this dotted prefix.
        #[arg(long)]
        prefix: Option<String>,
    },
    /// Measure a container's accuracy through the runtime.
    Eval {
        /// The container.
        file: PathBuf,
        /// The data set.
        #[arg(long)]
        data: String,
        /// `train` or `test`; `valid` and `rest` are the halves of the test images on which networks that were trained before are validated and judged.
        #[arg(long, default_value = "test")]
        split: String,
    },
    /// Measure how long a container takes, alone or in turns with another.
    Bench {
        /// The container.
        file: PathBuf,
        /// Another container, with which it takes turns.
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        /// Images in a batch; several numbers are measured one after the other.
        #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,32", value_parser = clap::value_parser!(u32).range(1..))]
        batch: Vec<u32>,
        /// Tell the time of each layer.
        #[arg(long)]
        layers: bool,
        /// A data set whose test images it is timed on: networks that decide for each image what they compute need some.
        #[arg(long, value_name = "NAME")]
        data: Option<String>,
    },
    /// Renew the latencies of a record from the containers beside it; `cargo xtask remeasure` does so for a page.
    Remeasure {
        /// The report, NAME.json; its containers are NAME-<row>.brq.
        record: PathBuf,
    },
    /// Check a container; one line for each fault.
    Verify {
        /// The container.
        file: PathBuf,
    },
    /// Turn a checkpoint into a container.
    Import {
        /// A PyTorch checkpoint or a safetensors file.
        file: PathBuf,
        /// Architecture of the zoo.
        #[arg(long)]
        arch: String,
        /// Channel means of the input, in pixels / 255.
        #[arg(long, value_delimiter = ',', requires = "std")]
        mean: Option<Vec<f32>>,
        /// Channel deviations of the input.
        #[arg(long, value_delimiter = ',', requires = "mean")]
        std: Option<Vec<f32>>,
        /// Number of classes [default: the architecture's].
        #[arg(long)]
        classes: Option<usize>,
        /// Take only the tensors below this dotted prefix, such as `state_dict_ema`.
        #[arg(long)]
        prefix: Option<String>,
        /// A TOML file that says which module of the checkpoint is which layer: `"layer1.0.conv1" = "features.3"`.
        #[arg(long, value_name = "FILE")]
        table: Option<PathBuf>,
        /// Where the container goes.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum DataAction {
    /// Download and verify a data set.
    Get {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The TOML file.
    config: PathBuf,
    /// Shrink epochs and data to a trial run of a few minutes.
    #[arg(long)]
    smoke: bool,
    /// Override a key: `--set pass.1.tune.epochs=1`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// flex, ndarray, wgpu, vulkan or cuda; a number says which one, as in wgpu:1.
    #[arg(long)]
    device: Option<String>,
}

/// Exit codes of the command contract.
const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;
const STOPPED: u8 = 130;

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    // Bad usage ends here with exit code 2 and clap's own message.
    let cli = Cli::parse();
    if cli.threads.len() > 1 && !matches!(cli.verb, Verb::Bench { .. }) {
        Cli::command().error(ErrorKind::TooManyValues, "`--threads` takes one number; only `bench` measures several").exit();
    }
    start_log();
    if let Err(error) = ctrlc::set_handler(on_interrupt) {
        tracing::warn!("Ctrl-C will end the run at once: {error}");
    }
    match on_a_pool_thread(cli.threads.iter().copied().max(), || dispatch(&cli)) {
        Ok(code) => code,
        Err(Failure { code, error }) => {
            let stopped = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(briquette_core::Error::Stopped)));
            if stopped {
                tracing::info!("stopped; `--resume` goes on from the last completed epoch");
                return ExitCode::from(STOPPED);
            }
            tracing::error!("error: {error:#}");
            ExitCode::from(code)
        }
    }
}

struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure { code: FAILED, error }
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode, Failure> {
    let data_dir = cli.data_dir.as_deref();
    match &cli.verb {
        Verb::Run { config, out, resume } => {
            let config = read(config)?;
            crate::device::deepen(&config.device)?;
            let options = run::Options { out: out.clone(), data_dir: data_dir.map(Into::into), resume: *resume };
            let (folder, report) = run::run(&config, &options)?;
            show(&Ran { report, folder }, cli.json)?;
        }
        Verb::Plan { config } => {
            let config = read(config)?;
            let rows = plan::plan(&config, data_dir).map_err(|error| Failure { code: BAD_USAGE, error })?;
            show(&verbs::Preview::of(rows), cli.json)?;
        }
        Verb::Methods { markdown: true } => print(&verbs::methods().markdown())?,
        Verb::Methods { markdown: false } => show(&verbs::methods(), cli.json)?,
        Verb::Models => show(&verbs::models()?, cli.json)?,
        Verb::Data { action: None } => show(&verbs::data(data_dir)?, cli.json)?,
        Verb::Data { action: Some(DataAction::Get { name }) } => show(&verbs::get(name, data_dir)?, cli.json)?,
        Verb::Inspect { file, prefix } => show(&verbs::inspect(file, prefix.as_deref())?, cli.json)?,
        Verb::Eval { file, data, split } => show(&verbs::eval(file, data, split, data_dir)?, cli.json)?,
        Verb::Bench { file, against, batch, layers, data } => {
            let mut each = vec![1, rayon::current_num_threads()];
            each.dedup();
            let settings = verbs::Settings {
                against: against.clone(),
                batches: batch.iter().map(|batch| *batch as usize).collect(),
                threads: if cli.threads.is_empty() { each } else { cli.threads.iter().copied().map(usize::from).collect() },
                layers: *layers,
                data: data.clone(),
            };
            show(&verbs::bench(file, settings, data_dir)?, cli.json)?;
        }
        Verb::Remeasure { record } => {
            let rows = remeasure::remeasure(record, data_dir)?;
            print(&format!("{rows} rows measured"))?;
        }
        Verb::Verify { file } => {
            let verified = verbs::verify(file)?;
            show(&verified, cli.json)?;
            return Ok(if verified.sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Import { file, arch, mean, std, classes, prefix, table, out } => {
            let normalization = setup::normalized(mean.clone().zip(std.clone()))?;
            let names = setup::Names { prefix: prefix.clone(), table: table.as_deref().map(setup::table).transpose()? };
            show(&verbs::import(file, &names, arch, normalization, *classes, out)?, cli.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A run that is done: its report, and where the rest of it lies.
#[derive(Serialize)]
#[serde(transparent)]
struct Ran {
    report: Report,
    #[serde(skip)]
    folder: PathBuf,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.report.metrics.alpha_bytes.map_or(String::new(), |alpha| format!("{alpha:.1}x smaller; "));
        write!(f, "{}\n{ratio}report: {}", self.report.table(), self.folder.join("report.html").display())
    }
}

/// A config that does not hold together is bad usage.
fn read(args: &ConfigArgs) -> Result<Config, Failure> {
    let config = Config::read(&args.config, &args.sets, args.smoke, args.device.as_deref());
    config
        .and_then(|config| crate::device::device(&config.device).map(|_| config))
        .map_err(|error| Failure { code: BAD_USAGE, error })
}

/// The first Ctrl-C asks the run to stop after the step at hand; the second ends the process.
fn on_interrupt() {
    if STOP.swap(true, Ordering::Relaxed) {
        std::process::exit(STOPPED.into());
    }
}
