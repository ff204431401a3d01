//! Benchmarks for developers: how fast the training graph is, beside plain Burn and, where it is at hand, PyTorch, how much memory it takes and where its
//! time goes; how fast coding is, and products of integers; what states of large networks take, pruning them by curvature and
//! decomposing them.

mod coding;
mod curvature;
mod decompositions;
mod exits;
mod factorized;
mod integer;
mod peer;
mod queued;
mod states;
mod training;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use briquette_runner::device;
use briquette_runner::memory::peak;
use briquette_runner::program::{on_a_pool_thread, show, start_log};
use briquette_runner::steps::Mode;
use clap::{Parser, ValueEnum};

// That of the binary `briquette`, whose speed and memory are measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what developers of Briquette want to know.
#[derive(Debug, Parser)]
#[command(name = "briquette-bench", version, about)]
struct Cli {
    /// What is measured.
    what: What,
    /// One network instead of all.
    #[arg(long)]
    net: Option<String>,
    /// Of `memory`: whole training steps or the forward pass alone.
    #[arg(long, default_value = "train")]
    mode: Mode,
    /// Of `memory`: images per step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Of `training`: the device, as of a run.
    #[arg(long, default_value = "flex")]
    device: String,
    /// A Python with PyTorch, to run beside us; `cargo xtask bench training --peer` makes one.
    #[arg(long, value_name = "PYTHON")]
    peer: Option<PathBuf>,
    /// Print one JSON document on stdout and nothing else there.
    #[arg(long)]
    json: bool,
    /// Threads that compute [default: one for each core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Benchmarks.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
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
    /// Weights, products and time of AlexNet, VGG-16 and GoogLeNet with factorized convolutions.
    Factorized,
    /// Time and memory of decomposing AlexNet, VGG-16 and GoogLeNet.
    Decompositions,
    /// Speed of a network with two exits where all samples leave at the first, beside none.
    Exits,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log();
    if let Err(error) = device::deepen(&cli.device) {
        tracing::error!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    match on_a_pool_thread(cli.threads, || measure(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<()> {
    let net = cli.net.as_deref();
    if cli.device != "flex" && !matches!(cli.what, What::Training) {
        bail!("`--device` is of `training`; everything else is measured on `flex`");
    }
    match cli.what {
        What::Training => show(&training::training(net, &cli.device, cli.peer.as_deref())?, cli.json),
        What::Memory => show(&training::memory(net.unwrap_or("resnet20"), cli.mode, cli.batch)?, cli.json),
        What::Coding => show(&coding::coding()?, cli.json),
        What::Integer => show(&integer::integers()?, cli.json),
        What::States => show(&states::states(net)?, cli.json),
        What::Curvature => show(&curvature::curvature()?, cli.json),
        What::Factorized => show(&factorized::factorizations(net)?, cli.json),
        What::Decompositions => show(&decompositions::decompositions(net)?, cli.json),
        What::Exits => show(&exits::exits()?, cli.json),
    }
}

/// Highest resident memory of this process in MiB.
fn peak_mib() -> Result<f64> {
    let peak = peak().context("this system does not tell a process's memory")?;
    Ok(peak as f64 / f64::from(1 << 20))
}
