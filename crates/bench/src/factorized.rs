//! What factorized convolutions save of AlexNet, VGG-16 and GoogLeNet, in weights, products and time: the survey's Table II.
//!
//! Weights are drawn anew: what a chain costs and how long it takes depends on its ranks alone, and those are the published ones, or where none
//! are (GoogLeNet, and the canonical decompositions) follow from the rate that is aimed at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use briquette_core::context::{Context, Data, Silent};
use briquette_core::cost::Cost;
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::zoo::Arch;
use briquette_data::Dataset;
use briquette_runtime::{Engine, Model};
use burn::tensor::Device;
use serde::Serialize;
use serde_json::{Value, json};

use crate::training::cpu;

/// The networks, and the machine.
#[derive(Debug, Serialize)]
pub(crate) struct Factorizations {
    cpu: Option<String>,
    instructions: String,
    rows: Vec<Row>,
}

/// One form of one network.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    net: String,
    /// `dense`, `tai`, `tai-bn` or `cp`.
    form: &'static str,
    conv_weights: usize,
    conv_macs: u64,
    params: usize,
    macs: u64,
    /// Batch norms within the chains count four numbers for each channel, as the survey counts them.
    norm_values: usize,
    /// Milliseconds of a batch, and of that the convolutions' share, keyed `b<batch>t<threads>`.
    ms: BTreeMap<String, [f64; 2]>,
}

/// Batches and threads.
const SETTINGS: [(usize, usize); 4] = [(1, 1), (1, 2), (16, 1), (16, 2)];
/// Turns, of which the median counts.
const TURNS: usize = 5;

/// The rate of convolution weights that the survey's Table II has for each network, and Tai's ranks where they are published.
fn nets() -> [(&'static str, f64, Option<Value>); 3] {
    let alexnet = json!({ "conv1": 8, "conv2": 40, "conv3": 60, "conv4": 100, "conv5": 200 });
    let vgg = json!({ "conv1_1": 5, "conv1_2": 24, "conv2_1": 48, "conv2_2": 48, "conv3_1": 64, "conv3_2": 128, "conv3_3": 160,
        "conv4_1": 192, "conv4_2": 192, "conv4_3": 256, "conv5_1": 320, "conv5_2": 320, "conv5_3": 320 });
    [("alexnet", 5.0, Some(alexnet)), ("vgg16", 2.75, Some(vgg)), ("googlenet-2014", 2.84, None)]
}

/// Measures all networks, or the one of this name.
///
/// # Errors
/// When a network cannot be factorized or run.
pub(crate) fn factorizations(only: Option<&str>) -> Result<Factorizations> {
    let mut rows = Vec::new();
    for (name, rate, ranks) in nets().into_iter().filter(|(name, ..)| only.is_none_or(|only| only == *name)) {
        let arch = Arch::named(name)?;
        let dense = arch.build(&arch.wanted(), &Device::flex())?;
        let forms = [
            ("dense", dense.deep_clone()),
            ("tai", tai(&dense, rate, ranks.as_ref(), "none")?),
            ("tai-bn", tai(&dense, rate, ranks.as_ref(), "after")?),
            (
                "cp",
                at_rate(&dense, rate, |net, share| {
                    with_pixels(net, share, |net| pass("cp", json!({ "ranks": { "fraction": share } }), net))
                })?,
            ),
        ];
        rows.extend(measured(name, forms)?);
    }
    if rows.is_empty() {
        bail!("`--net` is alexnet, vgg16 or googlenet-2014");
    }
    Ok(Factorizations { cpu: cpu(), instructions: briquette_kernels::instructions(), rows })
}

/// A method's plan of a network: its structure, with weights of zeros.
fn pass(method: &str, mut settings: Value, net: Net) -> Result<Net> {
    settings["break-even"] = "off".into();
    let entry = briquette_runner::METHODS.find(method)?;
    let planned = (entry.parse)(settings, briquette_runner::METHODS)?.plan(net)?;
    Ok(planned)
}

/// Pairs of vertical and horizontal convolutions, and singular value decompositions of those by one pixel where no ranks are published.
fn tai(dense: &Net, rate: f64, ranks: Option<&Value>, norm: &str) -> Result<Net> {
    let pairs = |net: Net, ranks: Value| pass("bn-low-rank", json!({ "ranks": ranks, "norm": norm }), net);
    match ranks {
        Some(ranks) => pairs(dense.deep_clone(), ranks.clone()),
        None => at_rate(dense, rate, |net, share| with_pixels(net, share, |net| pairs(net, json!({ "fraction": share })))),
    }
}

/// The form, and singular value decompositions of the convolutions by one pixel, where there are any, at the same share of their ranks.
fn with_pixels(net: Net, share: f64, form: impl Fn(Net) -> Result<Net>) -> Result<Net> {
    let one = |shape: &[usize]| shape.len() == 4 && shape[2..] == [1, 1];
    let nodes = net.nodes.iter().filter(|node| node.op.weight_shape().is_some_and(|shape| one(&shape)));
    let pixels: Vec<String> = nodes.map(|node| node.name.clone()).collect();
    let net = form(net)?;
    if pixels.is_empty() { Ok(net) } else { pass("svd", json!({ "layers": pixels, "ranks": { "fraction": share } }), net) }
}

/// The network whose share of the largest ranks comes nearest to the rate of convolution weights, found by halving.
fn at_rate(dense: &Net, rate: f64, form: impl Fn(Net, f64) -> Result<Net>) -> Result<Net> {
    let aim = convolutions(dense)?.0 as f64 / rate;
    let (mut low, mut high) = (1e-4, 1.0);
    for _ in 0..24 {
        let share = 0.5 * (low + high);
        let weights = convolutions(&form(dense.deep_clone(), share)?)?.0 as f64;
        if weights > aim { high = share } else { low = share }
    }
    form(dense.deep_clone(), low)
}

/// Weights and multiply-accumulates of convolutions.
fn convolutions(net: &Net) -> Result<(usize, u64)> {
    let cost = Cost::of(net)?;
    let layers = || cost.layers.iter().filter(|layer| layer.kind == "conv2d");
    Ok((layers().map(|layer| layer.weights).sum(), layers().map(|layer| layer.macs).sum()))
}

fn measured(name: &str, forms: [(&'static str, Net); 4]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut models = Vec::new();
    let known: BTreeSet<String> = forms[0].1.nodes.iter().map(|node| node.name.clone()).collect();
    for (form, net) in forms {
        tracing::info!("{name} {form}");
        let ((conv_weights, conv_macs), cost) = (convolutions(&net)?, Cost::of(&net)?);
        let norms = cost.layers.iter().filter(|layer| layer.kind == "batch-norm" && !known.contains(&layer.name));
        let norm_values = norms.map(|layer| 2 * layer.params).sum();
        let (params, macs) = (cost.params(), cost.macs());
        let names: BTreeSet<String> =
            cost.layers.iter().filter(|layer| layer.kind == "conv2d").map(|layer| layer.name.clone()).collect();
        models.push((filled(net)?, names));
        rows.push(Row { net: name.into(), form, conv_weights, conv_macs, params, macs, norm_values, ms: BTreeMap::new() });
    }
    for (batch, threads) in SETTINGS {
        let engines = models.iter().map(|(model, _)| Engine::new(model, threads)).collect::<std::result::Result<Vec<_>, _>>()?;
        let mut times = vec![Vec::new(); engines.len()];
        for _ in 0..TURNS {
            for ((engine, (_, names)), times) in engines.iter().zip(&models).zip(&mut times) {
                let images: Vec<f32> =
                    (0..batch * engine.input_shape().iter().product::<usize>()).map(|i| (i % 257) as f32 / 256.0).collect();
                let began = Instant::now();
                let (_, steps) = engine.run_timed(&images, batch)?;
                let all = began.elapsed().as_secs_f64() * 1e3;
                let of_convolutions =
                    steps.iter().filter(|(name, _)| names.contains(name.as_str())).map(|(_, ms)| ms).sum::<f64>();
                times.push([all, of_convolutions]);
            }
        }
        for (row, mut times) in rows.iter_mut().zip(times) {
            times.sort_by(|a, b| a[0].total_cmp(&b[0]));
            row.ms.insert(format!("b{batch}t{threads}"), times[TURNS / 2]);
        }
    }
    Ok(rows)
}

/// The network's container with weights that are drawn, for those of a plan are zeros, which the engine would skip.
fn filled(net: Net) -> Result<Model> {
    let black = Dataset::from_memory("none", [1, 1, 1], 2, vec![0; 2], vec![0, 1])?;
    let data = Data { train: black.clone(), valid: black.clone(), test: black };
    let entry = briquette_runner::METHODS.find("initialize")?;
    let initialize = (entry.parse)(json!({}), briquette_runner::METHODS)?;
    let mut silent = Silent;
    let net = initialize.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut silent)).context("fresh weights")?;
    Ok(net.to_model(Storage::default())?)
}

impl fmt::Display for Factorizations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:<7} {:>12} {:>15} {:>12} {:>6}  ms of the net (of its convolutions)",
            "net", "form", "conv weights", "conv MACs", "params", "rate"
        )?;
        for row in &self.rows {
            let dense = self.rows.iter().find(|other| other.net == row.net).map_or(row, |dense| dense);
            let rate = dense.conv_weights as f64 / row.conv_weights as f64;
            write!(
                f,
                "{:<16} {:<7} {:>12} {:>15} {:>12} {rate:>5.2}x ",
                row.net, row.form, row.conv_weights, row.conv_macs, row.params
            )?;
            for (key, [all, convolutions]) in &row.ms {
                write!(f, " {key} {all:.1} ({convolutions:.1})")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
