//! What a network costs and how well it does, as a row of the report.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use briquette_core::context::{Data, Event, Host};
use briquette_core::cost::Cost;
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::training::evaluate;
use briquette_data::{Dataset, Loader};
use briquette_runtime::branches::Branch;
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
    row.mean_macs = mean_macs(net, &bytes, &data.test, host)?;
    Ok((row, bytes))
}

/// Mean multiply-accumulates of these images in the engine, of a network in whose container a gate decides about work.
///
/// # Errors
/// When the engine refuses the container, an image cannot be read, or the user asks to stop.
pub fn mean_macs(net: &Net, container: &[u8], data: &Dataset, host: &mut dyn Host) -> Result<Option<f64>> {
    let decides = |layer: &briquette_core::Layer| layer.kind().branch() == Branch::Decides;
    if !net.nodes.iter().any(|node| decides(&node.op.layer())) {
        return Ok(None);
    }
    let engine = Engine::new(&Model::from_bytes(container)?, rayon::current_num_threads())?;
    let (mut reached, mut seen) = (BTreeMap::<String, usize>::new(), 0);
    for batch in Loader::ordered(data, BATCH) {
        if host.stop_requested() {
            bail!(briquette_core::Error::Stopped);
        }
        let batch = batch?;
        for (step, samples) in engine.run_counted(&batch.images, batch.len)?.1 {
            *reached.entry(step).or_default() += samples;
        }
        seen += batch.len;
        host.event(Event::Step { what: "work", done: seen, total: data.len(), loss: 0.0 });
    }
    let share = |name: &str| reached.get(name).map(|samples| *samples as f64 / seen as f64);
    Ok(Some(Cost::of(net)?.expected_macs(share)?))
}

/// Images that the engine counts at a time.
const BATCH: usize = 32;
