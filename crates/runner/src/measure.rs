//! What a network costs and how well it does, as a row of the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use briquette_core::cost::Cost;
use briquette_core::net::Net;
use briquette_core::pass::{Data, Host};
use briquette_core::stored::Storage;
use briquette_core::training::evaluate;
use briquette_runtime::{Coded, Engine, Model};
use burn::tensor::Device;
use serde::Serialize;

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

/// Everything that is measured after a pass but the latency.
///
/// # Errors
/// When the network cannot be stored or does not fit the data, or the user asks to stop.
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
    Ok((row, bytes))
}

/// Latencies of a network beside those of a baseline, each keyed `b<batch>t<threads>`, as first quartile, median and third quartile.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Times {
    /// Milliseconds of a batch.
    pub ms: BTreeMap<String, [f64; 3]>,
    /// How often the network's time goes into the baseline's, turn by turn.
    pub speedup: BTreeMap<String, [f64; 3]>,
}

impl Times {
    /// Puts them into a row.
    pub fn into_row(self, row: &mut Row) {
        row.latency_ms = self.ms.iter().map(|(key, [_, median, _])| (key.clone(), *median)).collect();
        row.latency_quartiles = self.ms.into_iter().map(|(key, [low, _, high])| (key, [low, high])).collect();
        row.speedup = self.speedup;
    }
}

/// Times batches of 1 and 32 on one thread and on all. Both networks take turns, so that a machine whose speed drifts treats them alike, and the one
/// that goes first changes from turn to turn.
///
/// # Errors
/// When an engine refuses.
pub fn beside(baseline: &Model, model: &Model) -> Result<Times> {
    let mut threads = vec![1, rayon::current_num_threads()];
    threads.dedup();
    let mut times = Times::default();
    for threads in threads {
        let engines = [Engine::new(baseline, threads)?, Engine::new(model, threads)?];
        for batch in [1, 32] {
            let [baseline, model] = turns(|side| once(&engines[side], batch))?;
            let ratios = baseline.iter().zip(&model).map(|(baseline, model)| baseline / model);
            let key = format!("b{batch}t{threads}");
            times.speedup.insert(key.clone(), quartiles(ratios.collect()));
            times.ms.insert(key, quartiles(model));
        }
    }
    Ok(times)
}

const LEAST_TURNS: usize = 6;
const MOST_TURNS: usize = 200;
const BUDGET: Duration = Duration::from_millis(400);

/// What `run` says of side 0 and of side 1, turn by turn; the first turn, in which everything is cold, is left out.
fn turns(mut run: impl FnMut(usize) -> Result<f64>) -> Result<[Vec<f64>; 2]> {
    let mut sides = [Vec::new(), Vec::new()];
    let (began, mut turn) = (Instant::now(), 0);
    while turn < LEAST_TURNS || (began.elapsed() < BUDGET && turn < MOST_TURNS) {
        for side in [turn % 2, 1 - turn % 2] {
            sides[side].push(run(side)?);
        }
        turn += 1;
    }
    Ok(sides.map(|mut times| times.split_off(1)))
}

fn once(engine: &Engine, batch: usize) -> Result<f64> {
    let count = engine.input_shape().iter().product::<usize>() * batch;
    // Any input will do: no kernel's time depends on the values.
    let input: Vec<f32> = (0..count).map(|i| (i % 251) as f32 / 251.0).collect();
    let began = Instant::now();
    engine.run(&input, batch)?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// The middle of the values; the lower of two.
pub fn median(values: Vec<f64>) -> f64 {
    quartiles(values)[1]
}

/// First quartile, median and third quartile: of values between, the lower one. Not numbers where there is no value.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values.get(values.len().saturating_sub(1) * quarter / 4).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_core::zoo::{Arch, Wanted};

    #[test]
    fn a_machine_that_slows_down_treats_both_networks_alike() {
        // Each run takes longer than the one before: one network after the other, the second would look many times as slow as it is.
        let mut slow = 1.0;
        let [baseline, model] = turns(|side| {
            slow *= 1.01;
            Ok(slow * [2.0, 1.0][side])
        })
        .unwrap();
        assert!(baseline.len() == model.len() && baseline.len() >= LEAST_TURNS - 1);
        let [low, median, high] = quartiles(baseline.iter().zip(&model).map(|(baseline, model)| baseline / model).collect());
        assert!(
            (1.97..=1.99).contains(&low) && (2.0..2.03).contains(&high) && (low..=high).contains(&median),
            "{low} {median} {high}"
        );
    }

    #[test]
    fn quartiles_are_values_that_were_measured() {
        assert_eq!(quartiles(vec![5.0, 1.0, 3.0, 2.0, 4.0]), [2.0, 3.0, 4.0]);
        assert_eq!((quartiles(vec![7.0]), median(vec![4.0, 1.0])), ([7.0; 3], 1.0));
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn every_row_has_the_spread_of_its_latency_and_of_its_speed_up() {
        let arch = Arch::named("lenet300").unwrap();
        let net = arch.build(&Wanted { width: 0.05, ..arch.wanted() }, &Device::flex()).unwrap();
        let model = net.to_model(Storage::default()).unwrap();
        let mut row = Row::default();
        beside(&model, &model).unwrap().into_row(&mut row);
        assert!(row.latency_ms.contains_key("b1t1") && row.latency_ms.contains_key("b32t1"));
        for (key, median) in &row.latency_ms {
            let ([low, high], speedup) = (row.latency_quartiles[key], row.speedup[key]);
            assert!(0.0 < low && low <= *median && *median <= high, "{key}: {low} {median} {high}");
            assert!(speedup.is_sorted() && speedup[0] > 0.0 && speedup[2].is_finite(), "{key}: {speedup:?}");
        }
    }
}
