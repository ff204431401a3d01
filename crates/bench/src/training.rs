//! How fast the training graph is, beside plain Burn and PyTorch; how much memory it takes; where its time goes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use briquette_core::cost::Cost;
use briquette_core::extension;
use briquette_core::net::Net;
use briquette_core::zoo::Arch;
use briquette_runner::device;
use briquette_runner::steps::{Mode, Steps};
use briquette_runner::timing::median;
use burn::tensor::Device;
use serde::Serialize;

use crate::peak_mib;
use crate::peer::{FORMATS, Peer};
use crate::queued;

/// Everything that one benchmark of training brought.
#[derive(Debug, Serialize)]
pub(crate) struct Training {
    /// Fused multiply-adds that the machine's vector units did in registers alone while this ran, in GFLOP/s over all threads; none on other devices.
    pub(crate) fma_gflops: Option<f64>,
    /// The processor, where the system tells.
    pub(crate) cpu: Option<String>,
    /// Instructions that our kernels used; none on other devices, where all is Burn's.
    pub(crate) instructions: Option<String>,
    /// The device, where it is not the CPU.
    pub(crate) device: Option<String>,
    /// PyTorch's version, if it ran beside us.
    pub(crate) peer: Option<String>,
    /// One row per net and mode.
    pub(crate) rows: Vec<TrainingRow>,
}

/// One network's figures; speeds are medians, and all sides took turns.
#[derive(Debug, Serialize)]
pub(crate) struct TrainingRow {
    /// Network.
    pub(crate) net: &'static str,
    /// Training or inference in the training graph.
    pub(crate) mode: Mode,
    /// Images per step.
    pub(crate) batch: usize,
    /// Threads of every side.
    pub(crate) threads: usize,
    /// Ours.
    pub(crate) images_per_s: f64,
    /// On Burn's own operations; none on devices where ours are the same.
    pub(crate) baseline_images_per_s: Option<f64>,
    /// PyTorch's, in the faster of its memory formats.
    pub(crate) peer_images_per_s: Option<f64>,
    /// That format.
    pub(crate) peer_format: Option<&'static str>,
    /// Products and sums of the convolutions and fully connected layers, forward and backward, per second of ours.
    pub(crate) gflops: f64,
    /// Highest resident memory of a process that does nothing but this, in MiB; none where the system does not tell.
    pub(crate) peak_mib: Option<f64>,
    /// The same on Burn's own operations.
    pub(crate) baseline_peak_mib: Option<f64>,
    /// Share of a step that each of our kernels takes, gradients with a trailing `'`, and the rest; on other devices, what the same convolutions take
    /// alone (see [`queued::row`]).
    pub(crate) shares: BTreeMap<String, f64>,
}

/// A network of the benchmark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) net: &'static str,
    pub(crate) batch: usize,
    /// Steps in a turn and turns of each side.
    steps: usize,
    turns: usize,
}

const CASES: [Case; 4] = [
    Case { net: "lenet300", batch: 64, steps: 60, turns: 9 },
    Case { net: "lenet5", batch: 128, steps: 8, turns: 9 },
    Case { net: "resnet20", batch: 128, steps: 2, turns: 5 },
    Case { net: "vgg16-cifar", batch: 32, steps: 2, turns: 4 },
];

/// Images per step of every inference.
const INFERENCE_BATCH: usize = 128;

/// Measures the networks, or the one of this name, beside PyTorch in `python` if there is one.
///
/// # Errors
/// When a network is not among those, the device does not open, or the peer does not start.
pub(crate) fn training(only: Option<&str>, device: &str, python: Option<&Path>) -> Result<Training> {
    if let Some(only) = only.filter(|only| CASES.iter().all(|case| case.net != *only)) {
        return Err(briquette_core::Error::unknown("net of the benchmark", only, CASES.map(|case| case.net)).into());
    }
    let (opened, adapter) = device::open(device)?;
    let host = opened == Device::flex();
    let threads = rayon::current_num_threads();
    let mut peer = python.map(|python| Peer::start(python, threads, &peers_device(device))).transpose()?;
    let mut rows = Vec::new();
    for case in CASES.into_iter().filter(|case| only.is_none_or(|only| case.net == only)) {
        for (case, mode) in [(case, Mode::Train), (Case { batch: INFERENCE_BATCH, ..case }, Mode::Infer)] {
            let peer = peer.as_mut();
            rows.push(if host { row(case, mode, peer)? } else { queued::row(&opened, case, mode, peer)? });
        }
    }
    let adapter = adapter.map_or_else(|| device.to_string(), |adapter| adapter.to_string());
    Ok(Training {
        fma_gflops: host.then(briquette_kernels::fma_gflops),
        cpu: cpu(),
        instructions: host.then(briquette_kernels::instructions),
        device: (!host).then_some(adapter),
        peer: peer.map(|peer| peer.version.clone()),
        rows,
    })
}

/// PyTorch's device beside ours of this name.
fn peers_device(name: &str) -> String {
    match name.split_once(':').unwrap_or((name, "0")) {
        ("wgpu" | "vulkan" | "cuda", index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

pub(crate) fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix("model name")?.trim_start_matches([' ', '\t', ':']).to_string()))
}

/// Ours, plain Burn and the peer's formats in turn, so that a machine whose speed drifts treats them alike.
fn row(case: Case, mode: Mode, mut peer: Option<&mut Peer>) -> Result<TrainingRow> {
    let net = net(case.net, &Device::flex())?;
    let products = Cost::of(&net)?.macs() as f64 * if mode == Mode::Train { 6.0 } else { 2.0 } / 1e9;
    let (mut ours, mut plain) = (Steps::new(&net, case.batch, mode)?, Steps::new(&net, case.batch, mode)?);
    let (mut times, mut baseline) = (Vec::new(), Vec::new());
    let mut formats = FORMATS.map(|format| (format, Vec::new()));
    for _ in 0..case.turns {
        times.extend(ours.run(case.steps));
        extension::enable(false);
        baseline.extend(plain.run(case.steps.div_ceil(2)));
        extension::enable(true);
        if let Some(peer) = &mut peer {
            for (format, times) in &mut formats {
                times.extend(peer.steps(case.net, mode, case.batch, case.steps, format)?);
            }
        }
    }
    let speed = |times: Vec<f64>| case.batch as f64 / median(times);
    let peer = peer.and_then(|_| fastest(case, formats));
    let images_per_s = speed(times);
    Ok(TrainingRow {
        net: case.net,
        mode,
        batch: case.batch,
        threads: rayon::current_num_threads(),
        images_per_s,
        baseline_images_per_s: Some(speed(baseline)),
        peer_images_per_s: peer.map(|(_, speed)| speed),
        peer_format: peer.map(|(format, _)| format),
        gflops: images_per_s * products,
        peak_mib: alone(case, mode, true),
        baseline_peak_mib: alone(case, mode, false),
        shares: ours.shares(),
    })
}

/// The format in which the peer is faster, and its images per second.
pub(crate) fn fastest(case: Case, formats: [(&'static str, Vec<f64>); 2]) -> Option<(&'static str, f64)> {
    let speeds = formats.map(|(format, times)| (format, case.batch as f64 / median(times)));
    speeds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))
}

pub(crate) fn net(name: &str, device: &Device) -> Result<Net> {
    let arch = Arch::named(name)?;
    Ok(arch.build(&arch.wanted(), device)?)
}

/// Peak memory of a process that only runs three steps.
fn alone(case: Case, mode: Mode, ours: bool) -> Option<f64> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args([
        "memory",
        "--json",
        "--net",
        case.net,
        "--mode",
        &mode.to_string(),
        "--batch",
        &case.batch.to_string(),
        "--threads",
        &rayon::current_num_threads().to_string(),
    ]);
    command.env("BRIQUETTE_KERNELS", if ours { "on" } else { "off" });
    let output = command.output().ok().filter(|output| output.status.success())?;
    serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?["peak_mib"].as_f64()
}

/// Highest resident memory of this process once it has run three steps.
#[derive(Debug, Serialize)]
pub(crate) struct Peak {
    peak_mib: f64,
}

/// Runs three steps in this process.
///
/// # Errors
/// When the network does not build or the system does not tell.
pub(crate) fn memory(name: &str, mode: Mode, batch: usize) -> Result<Peak> {
    Steps::new(&net(name, &Device::flex())?, batch, mode)?.run(2);
    Ok(Peak { peak_mib: peak_mib()? })
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} MiB", self.peak_mib)
    }
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["mode", "batch", "threads", "images/s", "plain Burn", "ratio", "PyTorch", "ratio", "GFLOP/s", "MiB", "plain"];
        writeln!(f, "{:12}{}  time", "net", head.map(|title| format!("{title:>10}")).concat())?;
        for row in &self.rows {
            let mut shares: Vec<(&String, &f64)> = row.shares.iter().collect();
            shares.sort_by(|a, b| b.1.total_cmp(a.1));
            let shares: Vec<String> =
                shares.iter().take(8).map(|(kind, share)| format!("{kind} {:.0} %", 100.0 * **share)).collect();
            let known = |figure: Option<f64>, decimals: usize| figure.map_or("-".into(), |figure| format!("{figure:.decimals$}"));
            let cells = [
                row.mode.to_string(),
                row.batch.to_string(),
                row.threads.to_string(),
                format!("{:.1}", row.images_per_s),
                known(row.baseline_images_per_s, 1),
                row.baseline_images_per_s.map_or("-".into(), |plain| format!("{:.2}x", row.images_per_s / plain)),
                known(row.peer_images_per_s, 1),
                known(row.peer_images_per_s.map(|peer| row.images_per_s / peer), 2),
                format!("{:.1}", row.gflops),
                known(row.peak_mib, 0),
                known(row.baseline_peak_mib, 0),
            ];
            writeln!(f, "{:12}{}  {}", row.net, cells.map(|cell| format!("{cell:>10}")).concat(), shares.join(", "))?;
        }
        let peer = self.peer.as_ref().map_or("no PyTorch: `--peer` brings it".into(), |version| format!("PyTorch {version}"));
        if let Some(device) = &self.device {
            write!(f, "{device}; ")?;
        }
        if let (Some(fma_gflops), Some(instructions)) = (self.fma_gflops, &self.instructions) {
            write!(f, "this machine's fused multiply-adds: {fma_gflops:.1} GFLOP/s; instructions: {instructions}; ")?;
        }
        f.write_str(&peer)
    }
}
