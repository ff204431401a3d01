//! How fast the training graph is, and where its time goes.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use briquette_core::kernels;
use briquette_core::net::Net;
use briquette_core::training::cross_entropy;
use briquette_core::zoo::Arch;
use burn::module::Module;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use crate::measure::median;

/// One network's figures.
#[derive(Debug, Serialize)]
pub struct TrainingRow {
    /// Network.
    pub net: &'static str,
    /// Images per step.
    pub batch: usize,
    /// Threads that Burn uses.
    pub threads: usize,
    /// Median of the steps.
    pub images_per_s: f64,
    /// The same on Burn's own operations, the steps taken in turn with ours.
    pub baseline_images_per_s: f64,
    /// Highest resident memory while it trained on our kernels, in MiB; none where the system does not tell.
    pub peak_mib: Option<f64>,
    /// Share of a step spent in each kind of operation forward, and in `backward` and `optimizer` as a whole.
    pub shares: BTreeMap<String, f64>,
}

/// Networks, and how often two steps with our kernels and two without are measured, each pair after one to warm up.
const NETS: [(&str, usize); 3] = [("lenet5", 8), ("resnet20", 4), ("vgg16-cifar", 1)];
const BATCH: usize = 128;

/// Trains each network for a few steps on random images with SGD and momentum.
///
/// # Errors
/// When a network does not build.
pub fn training() -> Result<Vec<TrainingRow>> {
    NETS.iter().map(|(net, rounds)| one(net, *rounds)).collect()
}

/// The rows as text.
pub fn table(rows: &[TrainingRow]) -> String {
    let head = ["batch", "threads", "images/s", "plain Burn", "ratio", "peak MiB"];
    let mut lines = vec![format!("{:12}", "net") + &head.map(|title| format!("{title:>11}")).concat() + "  time"];
    for row in rows {
        let mut shares: Vec<(&String, &f64)> = row.shares.iter().collect();
        shares.sort_by(|a, b| b.1.total_cmp(a.1));
        let shares: Vec<String> = shares.iter().take(6).map(|(kind, share)| format!("{kind} {:.0} %", 100.0 * **share)).collect();
        let cells = [
            row.batch.to_string(),
            row.threads.to_string(),
            format!("{:.1}", row.images_per_s),
            format!("{:.1}", row.baseline_images_per_s),
            format!("{:.2}x", row.images_per_s / row.baseline_images_per_s),
            row.peak_mib.map_or("-".into(), |peak| format!("{peak:.0}")),
        ];
        lines.push(format!("{:12}", row.net) + &cells.map(|cell| format!("{cell:>11}")).concat() + "  " + &shares.join(", "));
    }
    lines.join("\n")
}

fn one(name: &'static str, rounds: usize) -> Result<TrainingRow> {
    let arch = Arch::named(name)?;
    let net = arch.build(&arch.wanted(), &Device::flex())?;
    let (mut times, mut baseline, mut parts, mut peak) = (Vec::new(), Vec::new(), BTreeMap::<String, f64>::new(), None);
    for _ in 0..rounds {
        reset_peak();
        let (ours, shares) = train(net.deep_clone(), BATCH, 2)?;
        peak = peak_mib();
        times.extend(ours);
        shares.into_iter().for_each(|(part, seconds)| *parts.entry(part).or_default() += seconds);
        kernels::enable(false);
        let plain = train(net.deep_clone(), BATCH, 2);
        kernels::enable(true);
        baseline.extend(plain?.0);
    }
    let total: f64 = parts.values().sum();
    Ok(TrainingRow {
        net: name,
        batch: BATCH,
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        images_per_s: BATCH as f64 / median(times),
        baseline_images_per_s: BATCH as f64 / median(baseline),
        peak_mib: peak,
        shares: parts.into_iter().map(|(part, seconds)| (part, seconds / total)).collect(),
    })
}

/// Time that training takes per image, from a few steps on random images.
///
/// # Errors
/// When the network does not hold together.
pub fn seconds_per_image(net: &Net) -> Result<f64> {
    let (times, _) = train(net.deep_clone(), TRIAL_BATCH, 2)?;
    Ok(median(times) / TRIAL_BATCH as f64)
}

const TRIAL_BATCH: usize = 32;

/// Seconds of each of `steps` training steps after one to warm up, and the sum of them by kind of operation.
fn train(net: Net, batch: usize, steps: usize) -> Result<(Vec<f64>, BTreeMap<String, f64>)> {
    let (shape, classes) = (net.input_shape(), net.shapes()?.last().map_or(1, |shape| shape[0]));
    let mut net = net.train();
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    let mut optimizer = SgdConfig::new().with_momentum(Some(momentum)).init();
    let pixels: Vec<f32> = (0..batch * shape.iter().product::<usize>()).map(|i| ((i * 7919) % 256) as f32 / 255.0).collect();
    let labels: Vec<u16> = (0..batch).map(|i| (i % classes) as u16).collect();
    let (mut times, mut parts) = (Vec::new(), BTreeMap::<String, f64>::new());
    for step in 0..=steps {
        let data = TensorData::new(pixels.clone(), [batch, shape[0], shape[1], shape[2]]);
        let images = Tensor::<4>::from_data(data, &Device::flex().autodiff());
        let kinds: Vec<&'static str> = net.nodes.iter().map(|node| node.op.layer().kind()).collect();
        let began = Instant::now();
        let mut mark = began;
        let mut spent = |part: &str| {
            let now = Instant::now();
            if step > 0 {
                *parts.entry(part.to_string()).or_default() += now.duration_since(mark).as_secs_f64();
            }
            mark = now;
        };
        let logits = net.trace(images, |index, value| {
            spent(kinds[index]);
            value
        });
        let loss = cross_entropy(logits.vector(), &labels, 0.0);
        spent("loss");
        let grads = GradientsParams::from_grads(loss.backward(), &net);
        spent("backward");
        net = optimizer.step(0.01, net, grads);
        spent("optimizer");
        if step > 0 {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    Ok((times, parts))
}

/// Lets the system's record of the highest resident memory start again from now.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
