//! What a network with two exits saves where samples leave at the first.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use briquette_core::builder::{Builder, Conv};
use briquette_core::cost::Cost;
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_runtime::Engine;
use briquette_runtime::layers::{Gate, Measure, Merge, Route};
use burn::tensor::Device;
use serde::Serialize;

/// The rows, and what skipped layers count.
#[derive(Debug, Serialize)]
pub(crate) struct Exits {
    /// Share of the multiply-accumulates that lies behind the gate.
    behind: f64,
    rows: Vec<ExitRow>,
}

/// Median milliseconds of a batch, both networks in turns.
#[derive(Debug, Serialize)]
pub(crate) struct ExitRow {
    batch: usize,
    threads: usize,
    /// Where no sample leaves.
    all_go_on: f64,
    /// Where all do.
    all_leave: f64,
}

const TURNS: usize = 41;

/// Measures a network of nine convolutions for images of 32 by 32 with its first exit behind the third.
///
/// # Errors
/// When the network does not hold together.
pub(crate) fn exits() -> Result<Exits> {
    let [goes_on, leaves] = [0.0, 1.0].map(|threshold| net(Gate { measure: Measure::Entropy, threshold }));
    let (goes_on, leaves) = (goes_on?, leaves?);
    let cost = Cost::of(&goes_on)?;
    let behind = cost.expected_macs(|name| Some(f64::from(u8::from(name.starts_with("deep")))))? / cost.macs() as f64;
    let models = [goes_on, leaves].map(|net| net.to_model(Storage::default()));
    let [goes_on, leaves] = models;
    let (goes_on, leaves) = (goes_on?, leaves?);
    let mut rows = Vec::new();
    for threads in std::collections::BTreeSet::from([1, rayon::current_num_threads()]) {
        let engines = [Engine::new(&goes_on, threads)?, Engine::new(&leaves, threads)?];
        for batch in [1, 32] {
            let images: Vec<f32> = (0..batch * 3 * 32 * 32).map(|i| ((i * 7919) % 257) as f32 / 256.0).collect();
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..TURNS {
                for (engine, times) in engines.iter().zip(&mut times) {
                    let start = Instant::now();
                    engine.run(&images, batch)?;
                    times.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
            times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
            let [all_go_on, all_leave] = times.map(|times| times[TURNS / 2]);
            rows.push(ExitRow { batch, threads, all_go_on, all_leave });
        }
    }
    Ok(Exits { behind, rows })
}

fn net(gate: Gate) -> Result<Net> {
    let mut b = Builder::new([3, 32, 32], 5, &Device::flex());
    let mut x = b.input();
    for (i, filters) in [16, 16, 16].into_iter().enumerate() {
        x = b.conv(&format!("conv{i}"), x, Conv::new(filters, 3).same());
        x = b.relu(&format!("relu{i}"), x);
    }
    let pooled = b.global_avg_pool("exit1-pool", x);
    let early = b.linear("exit1", pooled, 10);
    let decision = b.fixed("gate", &[early], gate);
    let leaving = b.fixed("leave", &[early, decision], Route { leaving: true });
    let mut on = b.fixed("go-on", &[x, decision], Route { leaving: false });
    for (i, filters) in [32, 32, 32, 64, 64, 64].into_iter().enumerate() {
        let stride = if i % 3 == 0 { 2 } else { 1 };
        on = b.conv(&format!("deep{i}"), on, Conv::new(filters, 3).same().stride(stride));
        on = b.relu(&format!("deep-relu{i}"), on);
    }
    on = b.global_avg_pool("exit2-pool", on);
    on = b.linear("exit2", on, 10);
    b.fixed("merge", &[leaving, on, decision], Merge);
    Ok(b.finish()?)
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:.1} % of the multiply-accumulates lie behind the gate", 100.0 * self.behind)?;
        writeln!(f, "{:>7} {:>9} {:>14} {:>14} {:>8}", "batch", "threads", "all go on, ms", "all leave, ms", "ratio")?;
        for row in &self.rows {
            let ratio = row.all_go_on / row.all_leave;
            writeln!(f, "{:>7} {:>9} {:>14.3} {:>14.3} {ratio:>7.2}x", row.batch, row.threads, row.all_go_on, row.all_leave)?;
        }
        Ok(())
    }
}
