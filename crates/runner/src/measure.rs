//! What a network costs and how well it does, as a row of the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use briquette_core::cost::Cost;
use briquette_core::net::Net;
use briquette_core::pass::{Data, Host};
use briquette_core::stored::Storage;
use briquette_core::training::evaluate;
use briquette_runtime::{Coded, Engine, Model};
use burn::tensor::Device;

use crate::report::{LayerRow, Row};

/// Counts and bytes of a network stored in this way, without accuracy, time and latency; and its container.
///
/// # Errors
/// When the network cannot be stored.
pub fn size(net: &Net, storage: Storage, pass: usize, method: &str) -> Result<(Row, Vec<u8>)> {
    let cost = Cost::of(net)?;
    let model = net.to_model(storage)?;
    let bytes = model.to_bytes()?;
    let mut layers = Vec::new();
    let mut nonzero = 0;
    for node in &model.nodes {
        let sum = |f: &dyn Fn(&Coded) -> u64| node.tensors.iter().map(|(_, coded)| f(coded)).sum::<u64>();
        let (all, left) = (sum(&|coded| coded.bits().total()), sum(&|coded| coded.nonzero() as u64) as usize);
        let Some(counted) = cost.layers.iter().find(|layer| layer.name == node.name) else { continue };
        // Running statistics are stored but are no parameters.
        let left = left.min(counted.params);
        nonzero += left;
        let weight = node.tensor("weight").filter(|_| counted.weights > 0);
        let per_weight = |bits: u64, coded: &Coded| bits as f64 / coded.nonzero().max(1) as f64;
        layers.push(LayerRow {
            name: counted.name.clone(),
            kind: counted.kind.to_string(),
            shape: counted.shape.clone(),
            params: counted.params,
            nonzero: left,
            macs: counted.macs,
            bits: all,
            value_bits: weight.map(|coded| per_weight(coded.bits().values, coded)),
            index_bits: weight.map(|coded| per_weight(coded.bits().indices, coded)),
            codebook: weight.and_then(|coded| coded.summary().codebook_len),
            bytes: Some(all.div_ceil(8)),
        });
    }
    let row = Row {
        pass,
        method: method.to_string(),
        params: cost.params(),
        nonzero,
        // The layers' bits and everything else in the file: topology, names, checksums.
        bits: 8 * bytes.len() as u64,
        file_bytes: Some(bytes.len() as u64),
        macs: cost.macs(),
        layers,
        ..Row::default()
    };
    Ok((row, bytes))
}

/// Everything that is measured after a pass.
///
/// # Errors
/// When the network cannot be stored or run, or the user asks to stop.
pub fn row(
    net: &Net,
    storage: Storage,
    (pass, method): (usize, &str),
    data: &Data,
    device: &Device,
    host: &mut dyn Host,
) -> Result<(Row, Vec<u8>)> {
    let (mut row, bytes) = size(net, storage, pass, method)?;
    let score = evaluate(net, &data.test, device, host)?;
    row.accuracy = Some(score.accuracy);
    row.top5 = (data.test.classes > 10).then_some(score.top5);
    row.loss = Some(score.loss);
    let model = Model::from_bytes(&bytes).context("the container that was just written cannot be read back")?;
    row.latency_ms = latency(&[&model])?.remove(0);
    Ok((row, bytes))
}

/// Median milliseconds of a batch for each model, on one thread and on all, keyed `b<batch>t<threads>`. Several models take turns, so that a machine whose speed
/// drifts treats them alike.
///
/// # Errors
/// When an engine refuses.
pub fn latency(models: &[&Model]) -> Result<Vec<BTreeMap<String, f64>>> {
    let all = rayon::current_num_threads();
    let mut results = vec![BTreeMap::new(); models.len()];
    let mut threads = vec![1, all];
    threads.dedup();
    for threads in threads {
        let engines: Vec<Engine> = models.iter().map(|model| Engine::new(model, threads)).collect::<Result<_, _>>()?;
        for batch in [1, 32] {
            let mut times: Vec<Vec<f64>> = vec![Vec::new(); engines.len()];
            let began = Instant::now();
            while times[0].len() < LEAST_RUNS || (began.elapsed() < BUDGET && times[0].len() < MOST_RUNS) {
                for (engine, times) in engines.iter().zip(&mut times) {
                    times.push(once(engine, batch)?);
                }
            }
            for (result, times) in results.iter_mut().zip(times) {
                result.insert(format!("b{batch}t{threads}"), median(times[1..].to_vec()));
            }
        }
    }
    Ok(results)
}

const LEAST_RUNS: usize = 4;
const MOST_RUNS: usize = 200;
const BUDGET: Duration = Duration::from_millis(400);

fn once(engine: &Engine, batch: usize) -> Result<f64> {
    let count = engine.input_shape().iter().product::<usize>() * batch;
    // Any input will do: no kernel's time depends on the values.
    let input: Vec<f32> = (0..count).map(|i| (i % 251) as f32 / 251.0).collect();
    let began = Instant::now();
    engine.run(&input, batch)?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// The middle of the values; the lower of two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
