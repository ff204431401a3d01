//! Time and memory of decomposing whole networks of the size of ImageNet's.
//!
//! Weights are drawn anew, whose spectra fall more slowly than those of trained ones: the hardest case for iterations that stop where nothing improves.

use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use briquette_core::context::{Context, Data, Finding, Silent};
use briquette_core::cost::Cost;
use briquette_core::zoo::Arch;
use briquette_data::Dataset;
use briquette_runner::memory::{forget_peak, peak, shown};
use burn::tensor::Device;
use serde::Serialize;
use serde_json::{Value, json};

use crate::training::cpu;

/// The decompositions, and the machine.
#[derive(Debug, Serialize)]
pub(crate) struct Decompositions {
    cpu: Option<String>,
    threads: usize,
    rows: Vec<Row>,
}

/// One method on one network.
#[derive(Debug, Serialize)]
struct Row {
    net: &'static str,
    method: &'static str,
    settings: String,
    /// Layers that became chains.
    layers: usize,
    /// How many of them did not converge, where the method iterates.
    unsettled: usize,
    seconds: f64,
    /// Of processor time, which other work on the machine does not prolong as much.
    processor: f64,
    /// Highest memory meanwhile, without the network and what the process held before.
    bytes: u64,
    /// Bytes of the largest kernel that is decomposed, in single precision.
    largest: u64,
}

/// The methods: fully connected layers by singular value decompositions, convolutions at shares of their ranks as in Table II.
fn methods(net: &str) -> Vec<(&'static str, Value)> {
    let cp = match net {
        "alexnet" => 0.14,
        _ => 0.25,
    };
    let of_convolutions = [
        ("tucker2", json!({ "layers": ["conv"], "ranks": { "fraction": 0.4 } })),
        ("cp", json!({ "layers": ["conv"], "ranks": { "fraction": cp }, "starts": 3, "sweeps": 200 })),
    ];
    let first = match net {
        "vgg16" | "alexnet" => Some(("svd", json!({ "layers": ["fc6"], "ranks": 1000 }))),
        _ => None,
    };
    first.into_iter().chain(of_convolutions).collect()
}

/// Measures all networks, or the one of this name.
///
/// # Errors
/// When a network cannot be decomposed, or the system does not tell memory.
pub(crate) fn decompositions(only: Option<&str>) -> Result<Decompositions> {
    let mut rows = Vec::new();
    for name in ["alexnet", "vgg16", "googlenet-2014"].into_iter().filter(|name| only.is_none_or(|only| only == *name)) {
        for (method, settings) in methods(name) {
            rows.push(row(name, method, settings)?);
        }
    }
    if rows.is_empty() {
        bail!("`--net` is alexnet, vgg16 or googlenet-2014");
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Decompositions { cpu: cpu(), threads, rows })
}

fn row(net: &'static str, method: &'static str, mut settings: Value) -> Result<Row> {
    let arch = Arch::named(net)?;
    let dense = arch.build(&arch.wanted(), &Device::flex())?;
    let shown = settings.to_string();
    settings["break-even"] = "off".into();
    let pass = (briquette_runner::METHODS.find(method)?.parse)(settings, briquette_runner::METHODS)?;
    let planned = pass.plan(dense.deep_clone())?;
    let named = |name: &str| planned.index(name).is_err();
    let cost = Cost::of(&dense)?;
    let largest = cost.layers.iter().filter(|layer| named(&layer.name)).map(|layer| 4 * layer.weights as u64).max();
    drop(planned);
    let black = Dataset::from_memory("none", [1, 1, 1], 2, vec![0; 2], vec![0, 1])?;
    let data = Data { train: black.clone(), valid: black.clone(), test: black };
    let mut host = Silent;
    let mut cx = Context::new(&Device::flex(), 1, &data, &mut host);
    forget_peak()?;
    let (before, began, used) = (peak().context(UNTOLD)?, Instant::now(), processor()?);
    tracing::info!("{net} {method} {shown}");
    let after = pass.run(dense, &mut cx)?;
    let (seconds, processor) = (began.elapsed().as_secs_f64(), processor()? - used);
    let bytes = peak().context(UNTOLD)? - before;
    let chains = cost.layers.iter().filter(|layer| layer.weights > 0 && after.index(&layer.name).is_err()).count();
    let unsettled =
        cx.findings.iter().filter(|finding| matches!(finding, Finding::Note(note) if note.contains("did not converge"))).count();
    Ok(Row { net, method, settings: shown, layers: chains, unsettled, seconds, processor, bytes, largest: largest.unwrap_or(0) })
}

const UNTOLD: &str = "this system does not tell a process's memory";

/// Seconds that processors have spent on this process.
fn processor() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("this system does not tell a process's time")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    // In hundredths of a second on Linux, whatever the kernel's own tick.
    ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / 100.0).context("/proc/self/stat has too few fields")
}

impl fmt::Display for Decompositions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            writeln!(
                f,
                "{} {} {}: {} layers, {} not converged, {:.1} s, {:.1} s of processors, {} beside the network, {:.2} times the largest kernel",
                row.net,
                row.method,
                row.settings,
                row.layers,
                row.unsettled,
                row.seconds,
                row.processor,
                shown(row.bytes),
                row.bytes as f64 / row.largest.max(1) as f64,
            )?;
        }
        Ok(())
    }
}
