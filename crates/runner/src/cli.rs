//! The command line: verbs, exit codes, logs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::host::STOP;
use crate::{bench, plan, remeasure, run, setup, verbs};

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
    /// Threads that compute [default: one for each core]; results do not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
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
    /// Measure the latency of containers beside that of the first, in turns.
    Latency {
        /// The containers.
        #[arg(required = true)]
        files: Vec<PathBuf>,
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
    /// Measure training speed, memory and where the time goes.
    Bench {
        /// What is measured.
        what: Bench,
        /// One network instead of all.
        #[arg(long)]
        net: Option<String>,
        /// Of `memory`: whole training steps or the forward pass alone.
        #[arg(long, default_value = "train")]
        mode: bench::Mode,
        /// Of `memory`: images per step.
        #[arg(long, default_value_t = 128)]
        batch: usize,
        /// A Python with PyTorch, to run beside us; `cargo xtask bench training --peer` makes one.
        #[arg(long, value_name = "PYTHON")]
        peer: Option<PathBuf>,
    },
}

/// Benchmarks.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bench {
    /// Speed and memory of the training graph beside plain Burn.
    Training,
    /// Peak memory of a few steps of one net in this process.
    Memory,
    /// Speed and memory of clustering and encoding 38 million weights.
    Coding,
    /// Speed of products of bytes and of bits beside those of floats.
    Integer,
    /// Time and memory of states and containers of AlexNet and VGG-16, pruned and shared.
    States,
    /// Time and memory of pruning AlexNet by curvature.
    Curvature,
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
    start_log();
    if let Err(error) = ctrlc::set_handler(on_interrupt) {
        tracing::warn!("Ctrl-C will end the run at once: {error}");
    }
    match on_a_pool_thread(cli.threads, || dispatch(&cli)) {
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

/// Runs everything on a thread of the pool whose threads the kernels share. From outside, each parallel region would wake all of the pool's
/// threads, which the system likes to put on one core for a millisecond or more, while a thread of the pool wakes only the others.
fn on_a_pool_thread(threads: Option<u16>, work: impl FnOnce() -> Result<ExitCode, Failure> + Send) -> Result<ExitCode, Failure> {
    // Without a number of its own, rayon counts the cores. Networks are deep and debug builds are greedy: as much stack as the main thread has.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.map_or(0, usize::from)).stack_size(8 << 20);
    pool.build_global().context("cannot start the threads; fewer may do, as in `--threads 1`")?;
    let mut result = None;
    rayon::scope(|_| result = Some(work()));
    result.expect("the scope has run the work")
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
            if cli.json {
                verbs::print_json(&report)?;
            } else {
                verbs::print(&format!("{}\n{}", report.table(), verbs::closing(&folder, &report)))?;
            }
        }
        Verb::Plan { config } => {
            let config = read(config)?;
            let rows = plan::plan(config, data_dir).map_err(|error| Failure { code: BAD_USAGE, error })?;
            verbs::plan(&rows, cli.json)?;
        }
        Verb::Methods { markdown } => verbs::methods(cli.json, *markdown)?,
        Verb::Models => verbs::models(cli.json)?,
        Verb::Data { action: None } => verbs::data_list(cli.json, data_dir)?,
        Verb::Data { action: Some(DataAction::Get { name }) } => verbs::data_get(name, data_dir)?,
        Verb::Inspect { file, prefix } => verbs::inspect(file, prefix.as_deref(), cli.json)?,
        Verb::Eval { file, data, split } => verbs::eval(file, data, split, data_dir, cli.json)?,
        Verb::Latency { files } => verbs::latency(files, cli.json)?,
        Verb::Remeasure { record } => {
            let rows = remeasure::remeasure(record)?;
            verbs::print(&format!("{rows} rows measured"))?;
        }
        Verb::Verify { file } => return Ok(if verbs::verify(file, cli.json)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Verb::Import { file, arch, mean, std, classes, prefix, table, out } => {
            let normalization = setup::normalized(mean.clone().zip(std.clone()))?;
            let names = setup::Names { prefix: prefix.clone(), table: table.as_deref().map(setup::table).transpose()? };
            verbs::import(file, &names, arch, normalization, *classes, out, cli.json)?;
        }
        Verb::Bench { what: Bench::Training, net, peer, .. } => verbs::bench_training(net.as_deref(), peer.as_deref(), cli.json)?,
        Verb::Bench { what: Bench::Memory, net, mode, batch, .. } => {
            verbs::bench_memory(net.as_deref(), *mode, *batch, cli.json)?
        }
        Verb::Bench { what: Bench::Coding, .. } => verbs::bench_coding(cli.json)?,
        Verb::Bench { what: Bench::States, net, .. } => verbs::bench_states(net.as_deref(), cli.json)?,
        Verb::Bench { what: Bench::Curvature, .. } => verbs::bench_curvature(cli.json)?,
        Verb::Bench { what: Bench::Integer, .. } => verbs::bench_integer(cli.json)?,
    }
    Ok(ExitCode::SUCCESS)
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

fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("BRIQUETTE_LOG").unwrap_or_else(|_| EnvFilter::new("warn,briquette_runner=info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().with_target(false);
    log.with_level(false).with_ansi(false).init();
}
