//! Clustering and encoding of large layers.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use briquette_core::zoo::Arch;
use briquette_parts::kmeans::{Init, LLOYD_STEPS, cluster};
use briquette_runner::memory::forget_peak;
use briquette_runtime::{Coded, Coder, Model, Node, Permission, ValueFormat, layers};
use burn::tensor::Device;
use serde::Serialize;

use crate::peak_mib;

/// The figures of all sets of layers and all sizes of codebooks.
#[derive(Debug, Serialize)]
pub(crate) struct Codings(Vec<CodingRow>);

/// One codebook size's figures for one set of layers; peaks are of the whole process, the weights included.
#[derive(Debug, Serialize)]
pub(crate) struct CodingRow {
    /// What was coded.
    pub(crate) layers: &'static str,
    /// Number of weights.
    pub(crate) weights: usize,
    /// Number of centroids of each layer.
    pub(crate) centroids: usize,
    /// Weights clustered per second.
    pub(crate) clustered_per_s: f64,
    /// Shared weights encoded per second, by rANS, into the bytes of a container.
    pub(crate) encoded_per_s: f64,
    /// Highest resident memory while clustering, over that of the dense weights.
    pub(crate) clustering_peak: f64,
    /// The same while encoding.
    pub(crate) encoding_peak: f64,
    /// Size of the dense weights over that of the container.
    pub(crate) smaller: f64,
}

/// AlexNet's largest layer, `fc6`.
const FC6: [usize; 2] = [4096, 9216];

/// Clusters and encodes as many weights as AlexNet's largest layer and all of VGG-16 have, with 32 and with 256 centroids for each layer.
///
/// # Errors
/// When the system does not tell a process's memory.
pub(crate) fn coding() -> Result<Codings> {
    let mut rows =
        [32, 256].map(|centroids| code("fc6 of AlexNet", &[FC6.to_vec()], centroids)).into_iter().collect::<Result<Vec<_>>>()?;
    // Only now, for what a freed network leaves with the allocator would count among the figures of the smaller layer.
    let arch = Arch::named("vgg16")?;
    let net = arch.build(&arch.wanted(), &Device::flex())?;
    let shapes: Vec<Vec<usize>> = net.weighted().filter_map(|(_, node)| Some(node.weight()?.shape)).collect();
    drop(net);
    for centroids in [32, 256] {
        rows.push(code("all of VGG-16", &shapes, centroids)?);
    }
    Ok(Codings(rows))
}

/// One layer after the other is clustered, and then one after the other encoded.
fn code(layers: &'static str, shapes: &[Vec<usize>], centroids: usize) -> Result<CodingRow> {
    let weights: usize = shapes.iter().map(|shape| shape.iter().product::<usize>()).sum();
    let dense = (4 * weights) as f64 / (1 << 20) as f64;
    let mut net: Vec<Vec<f32>> = shapes.iter().map(|shape| (0..shape.iter().product()).map(bell).collect()).collect();

    forget_peak()?;
    let began = Instant::now();
    for values in &mut net {
        let found = cluster(values, centroids, Init::Linear, LLOYD_STEPS, 0);
        values.iter_mut().zip(&found.assignment).for_each(|(value, &index)| *value = found.centroids[index as usize]);
    }
    let (clustered_per_s, clustering_peak) = (weights as f64 / began.elapsed().as_secs_f64(), peak_mib()? / dense);

    forget_peak()?;
    let began = Instant::now();
    let permission = Permission { values: ValueFormat::Codebook, coder: Coder::Entropy };
    let mut model = Model::default();
    for (i, (shape, values)) in shapes.iter().zip(&net).enumerate() {
        let tensors = vec![("weight".to_string(), Coded::encode(shape, values, None, &permission)?)];
        let layer = briquette_runtime::Layer::Linear(layers::Linear);
        model.nodes.push(Node { name: format!("layer{i}"), inputs: Vec::new(), layer, tensors });
    }
    let bytes = model.to_bytes()?.len();
    let (encoded_per_s, encoding_peak) = (weights as f64 / began.elapsed().as_secs_f64(), peak_mib()? / dense);
    let smaller = (4 * weights) as f64 / bytes as f64;
    Ok(CodingRow { layers, weights, centroids, clustered_per_s, encoded_per_s, clustering_peak, encoding_peak, smaller })
}

/// The sum of four uniform numbers, out of a multiplicative hash: a bell, as weights are.
fn bell(i: usize) -> f32 {
    let hash = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (0..4).map(|part| f32::from((hash >> (16 * part)) as u16) / 65536.0 - 0.5).sum::<f32>() * 0.02
}

impl fmt::Display for Codings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.0 {
            let CodingRow { layers, weights, centroids, clustering_peak, encoding_peak, smaller, .. } = row;
            let (clustered, encoded) = (row.clustered_per_s / 1e6, row.encoded_per_s / 1e6);
            writeln!(
                f,
                "{layers}, {weights} weights, {centroids} centroids: clustering {clustered:.1} M/s, peak {clustering_peak:.2} times the weights; \
                 encoding {encoded:.1} M/s, peak {encoding_peak:.2}, {smaller:.1}x smaller"
            )?;
        }
        Ok(())
    }
}
