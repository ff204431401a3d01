//! Clustering and encoding of one large layer.

use std::time::Instant;

use anyhow::Result;
use briquette_pruning_sharing::parts::kmeans::{Init, LLOYD_STEPS, cluster};
use briquette_runtime::{Coded, Coder, Plan, ValueFormat};
use serde::Serialize;

/// One codebook size's figures; peaks are of the whole process, the weights included.
#[derive(Debug, Serialize)]
pub struct CodingRow {
    /// Number of weights.
    pub weights: usize,
    /// Number of centroids.
    pub centroids: usize,
    /// Weights clustered per second.
    pub clustered_per_s: f64,
    /// Shared weights encoded per second, by rANS.
    pub encoded_per_s: f64,
    /// Highest resident memory while clustering, over that of the dense weights.
    pub clustering_peak: f64,
    /// The same while encoding.
    pub encoding_peak: f64,
}

/// AlexNet's `fc6`.
const SHAPE: [usize; 2] = [4096, 9216];

/// Clusters and encodes weights like those of AlexNet's largest layer, with 32 and with 256 centroids.
///
/// # Errors
/// When the system does not tell a process's memory.
pub fn coding() -> Result<Vec<CodingRow>> {
    let count = SHAPE[0] * SHAPE[1];
    let dense = (4 * count) as f64 / (1 << 20) as f64;
    // The sum of four uniform numbers, out of a multiplicative hash: a bell.
    let weight = |i: usize| {
        let hash = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (0..4).map(|part| f32::from((hash >> (16 * part)) as u16) / 65536.0 - 0.5).sum::<f32>() * 0.02
    };
    let values: Vec<f32> = (0..count).map(weight).collect();
    // All clustering comes first: what a freed encoder leaves with the allocator would count as the clustering's.
    let mut found = Vec::new();
    for centroids in [32, 256] {
        super::forget_peak()?;
        let began = Instant::now();
        let clusters = cluster(&values, centroids, Init::Linear, LLOYD_STEPS, 0);
        let per_s = count as f64 / began.elapsed().as_secs_f64();
        let indices: Vec<u8> = clusters.assignment.iter().map(|&index| index as u8).collect();
        found.push((per_s, super::peak_mib()? / dense, clusters.centroids, indices));
    }
    let mut shared = values;
    let rows = found.into_iter().map(|(clustered_per_s, clustering_peak, centroids, indices)| {
        shared.iter_mut().zip(&indices).for_each(|(value, &index)| *value = centroids[usize::from(index)]);
        super::forget_peak()?;
        let began = Instant::now();
        Coded::encode(&SHAPE, &shared, &Plan { sparse: false, values: ValueFormat::Codebook, coder: Coder::Entropy })?;
        let encoded_per_s = count as f64 / began.elapsed().as_secs_f64();
        let encoding_peak = super::peak_mib()? / dense;
        Ok(CodingRow {
            weights: count,
            centroids: centroids.len(),
            clustered_per_s,
            encoded_per_s,
            clustering_peak,
            encoding_peak,
        })
    });
    rows.collect()
}
