//! The report that the tests look at: LeNet-5 on MNIST, with the sizes of the Deep Compression paper.

use std::collections::BTreeMap;

use briquette_core::scan::{Measured, Point, Scan};

use crate::config::ValidFrom;

use super::{DataInfo, Epoch, LayerRow, Metrics, Report, Row};

/// Train, prune, share, encode.
pub(super) fn report() -> Report {
    let rows = vec![
        row(0, "train", 0.9921, None, 1_725_012, 12),
        row(1, "magnitude", 0.9923, Some([1.0, 32.0, 5.0]), 201_340, 6),
        row(2, "kmeans-sharing", 0.9920, Some([1.0, 5.3, 5.0]), 57_120, 2),
        row(3, "encode", 0.9920, Some([1.0, 4.1, 4.4]), 44_012, 0),
    ];
    Report {
        title: "lenet5-deep-compression".into(),
        expected: "LeNet-5 on MNIST: 99.2 % -> 99.2 %, 39x smaller (Han et al. 2016, table 1: 0.80 % -> 0.74 %, 39x)".into(),
        command: "cargo xtask run configs/lenet5-deep-compression.toml --smoke".into(),
        date: "2026-01-02T03:04:05Z".into(),
        config:
            "# LeNet-5 on MNIST\nmodel = \"lenet5\"\ndata = \"mnist\"\nseed = 7\n\n[[pass]]\nmethod = \"train\"\nepochs = 12\n"
                .into(),
        config_hash: "3f9a1c0de4b25a77".into(),
        seed: 7,
        device: "flex".into(),
        adapter: None,
        smoke: true,
        versions: BTreeMap::from([("briquette".into(), "0.1.0".into()), ("burn".into(), "0.22.1".into())]),
        data: DataInfo {
            name: "mnist".into(),
            train: 55_000,
            valid: 5_000,
            test: 10_000,
            valid_from: ValidFrom::Train,
            sha256: vec!["00ff".into()],
            unlabelled: BTreeMap::new(),
        },
        metrics: Metrics::between(&rows[0], &rows[3]),
        rows,
        ..Report::default()
    }
}

/// Nine layers with a long name, three values each.
pub(super) fn scan() -> Scan {
    let point = |layer: usize, step: usize| Point {
        layer: format!("features.block{layer}.branch.convolution"),
        value: [0.5, 0.1, 0.02][step],
        measured: Measured { accuracy: 0.98 - 0.04 * (layer * step) as f64, loss: None },
    };
    Scan {
        method: "magnitude".into(),
        key: "keep".into(),
        baseline: Measured { accuracy: 0.98, loss: Some(0.05) },
        points: (0..27).map(|i| point(i / 3, i % 3)).collect(),
    }
}

fn row(pass: usize, method: &str, accuracy: f64, coded: Option<[f64; 3]>, bytes: u64, epochs: usize) -> Row {
    let names = [
        ("conv1", vec![20, 1, 5, 5], 0.66),
        ("conv2", vec![50, 20, 5, 5], 0.12),
        ("fc1", vec![500, 800], 0.08),
        ("fc2", vec![10, 500], 0.19),
    ];
    let layers: Vec<LayerRow> = names
        .into_iter()
        .map(|(name, shape, keep)| {
            let params = shape.iter().product::<usize>() + shape[0];
            let nonzero = if coded.is_some() { (params as f64 * keep) as usize } else { params };
            let [_, value, index] = coded.unwrap_or([1.0, 32.0, 0.0]);
            let bits = (nonzero as f64 * (value + index)) as u64;
            LayerRow {
                name: name.into(),
                kind: if name.starts_with("conv") { "conv2d" } else { "linear" }.into(),
                macs: params as u64,
                value_bits: Some(value),
                index_bits: Some(index),
                codebook: (pass >= 2).then_some(32),
                bytes: Some(bits.div_ceil(8)),
                shape,
                params,
                nonzero,
                bits,
            }
        })
        .collect();
    let faster = 1.0 + pass as f64;
    Row {
        pass,
        method: method.into(),
        accuracy: Some(accuracy),
        loss: Some(0.03),
        params: layers.iter().map(|layer| layer.params).sum(),
        nonzero: layers.iter().map(|layer| layer.nonzero).sum(),
        bits: layers.iter().map(|layer| layer.bits).sum(),
        file_bytes: Some(bytes),
        macs: if coded.is_some() { 369_839 } else { 2_293_000 },
        latency_ms: [("b1t1", 0.21), ("b32t1", 5.9)].map(|(key, ms)| (key.into(), ms / faster)).into(),
        latency_quartiles: [("b1t1", 0.2), ("b32t1", 5.8)].map(|(key, ms)| (key.into(), [ms / faster, 1.1 * ms / faster])).into(),
        speedup: ["b1t1", "b32t1"].map(|key| (key.into(), [0.95 * faster, faster, 1.04 * faster])).into(),
        seconds: 312.4 / faster,
        curve: (0..epochs).map(|epoch| curve(epoch, pass)).collect(),
        layers,
        ..Row::default()
    }
}

fn curve(epoch: usize, pass: usize) -> Epoch {
    let t = (epoch + 4 * pass) as f64;
    Epoch {
        epoch,
        lr: 1e-3,
        train_loss: 0.02 + 0.5 * (-0.6 * t).exp(),
        train_accuracy: 0.995,
        valid_accuracy: Some(0.992 - 0.03 * (-0.5 * t).exp()),
        seconds: 25.0,
        images_per_s: 2200.0,
    }
}
