//! Time, memory and error of the range finder on a matrix of VGG-16's first fully connected layer, 25,088 by 4,096:
//! `cargo run --release -p briquette-low-rank --example range_scale -- RANK...`, by default 100 and 1,000.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use briquette_core::streams::standard_normal;
use briquette_low_rank::range::truncated_svd;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 25_088;
const COLUMNS: usize = 4_096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ranks = std::env::args().skip(1).map(|rank| rank.parse()).collect::<Result<Vec<usize>, _>>()?;
    let matrix = falling(&Device::flex());
    println!("matrix of {} MiB; peak so far {} MiB", (ROWS * COLUMNS * 4) >> 20, peak());
    for rank in if ranks.is_empty() { vec![100, 1000] } else { ranks } {
        let start = Instant::now();
        let found = truncated_svd(&matrix, rank, 1)?;
        let seconds = start.elapsed().as_secs_f64();
        let (first, last) = (found.s[0], found.s[rank - 1]);
        println!(
            "rank {rank}: {seconds:.1} s, s from {first:.4} to {last:.4}, error at most {:.4}, peak {} MiB",
            found.bound,
            peak()
        );
    }
    Ok(())
}

/// Noise whose rows shrink as `1 / sqrt(row)`, so that the spectrum falls as those of trained layers do.
fn falling(device: &Device) -> Tensor<2> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let row = |row: usize| {
        let scale = 1.0 / ((1 + row) as f64).sqrt();
        (0..COLUMNS).map(|_| (scale * standard_normal(&mut rng)) as f32).collect::<Vec<f32>>()
    };
    let values: Vec<f32> = (0..ROWS).flat_map(row).collect();
    Tensor::from_data(TensorData::new(values, [ROWS, COLUMNS]), device)
}

/// The most memory that the process has held, in MiB; 0 where the system does not say.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok()).map_or(0, |kib| kib >> 10)
}
