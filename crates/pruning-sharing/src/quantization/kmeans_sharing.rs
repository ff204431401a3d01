//! Weight sharing by k-means.
//!
//! The weights of a layer that survived pruning are clustered into `k = 2^bits` values; each weight becomes an index into the codebook
//! `c`, and training goes on over the codebook alone, with `dL/dc_k = sum over i with a(i) = k of dL/dw_i`. With `n` weights of `b` bits the
//! layer shrinks by `r = n b / (n log2 k + k b)`.
//!
//! Gong, Liu, Yang, Bourdev. "Compressing Deep Convolutional Networks using Vector Quantization". arXiv:1412.6115, 2014.
//! Han, Mao, Dally. "Deep Compression". ICLR 2016. arXiv:1510.00149.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_pruning_sharing::quantization::kmeans_sharing::{Init, share};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! // Any module of Burn, and the number of centroids for each of its weights.
//! let layer = share(LinearConfig::new(20, 10).init(&Device::flex()), |_| Some(4), Init::Linear);
//! let mut values = weights(&layer)[0].values.clone();
//! values.sort_by(f32::total_cmp);
//! values.dedup();
//! assert_eq!(values.len(), 4);
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::kmeans_sharing::KmeansSharing;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: KmeansSharing = serde_json::from_value(serde_json::json!({ "bits": 2, "tune": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! let distinct: std::collections::BTreeSet<u32> = values.iter().map(|w| w.to_bits()).collect();
//! assert_eq!(distinct.len(), 4);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::coding::{self, Coding, Source, Weight};
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Recipe, tune};
use briquette_core::types::{Bits, Layers, PerLayer};
use burn::module::Module;
use serde::Deserialize;

use briquette_parts::kmeans::{LLOYD_STEPS, cluster};
use briquette_parts::refuse;

pub use briquette_parts::kmeans::Init;

/// Shares the weights of each layer among a few trained centroids.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KmeansSharing {
    /// Bits of an index; a layer gets at most `2^bits` centroids.
    bits: PerLayer<Bits>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Where the centroids start.
    #[serde(default)]
    init: Init,
    /// Training of the centroids.
    tune: Option<Recipe>,
}

impl Method for KmeansSharing {
    const NAME: &'static str = "kmeans-sharing";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Gong, Liu, Yang, Bourdev, arXiv:1412.6115; Han, Mao, Dally, ICLR 2016, arXiv:1510.00149";
    const EXAMPLE: &'static str = "bits = { conv = 8, fc = 5 }";
}

impl Pass for KmeansSharing {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.share(net, cx.seed)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.share(net, 0)
    }
}

impl KmeansSharing {
    fn share(&self, net: Net, seed: u64) -> Result<Net> {
        refuse::weightless(&net, &self.bits)?;
        let levels: BTreeMap<usize, usize> = self
            .bits
            .resolve_within(&net, &self.layers.without(&self.except, &net)?)?
            .into_iter()
            .map(|(i, bits)| (i, bits.levels()))
            .collect();
        for weight in coding::weights(&net) {
            if let Some(node) = weight.node() {
                refuse::not_finite(&net.nodes[node].name, &weight.values)?;
            }
        }
        Ok(share_seeded(net, |weight| weight.node().and_then(|node| levels.get(&node).copied()), self.init, seed))
    }
}

/// Clusters each tensor of rank 2 or more in any Burn module. `levels` gives a tensor's number of centroids; tensors for which it gives
/// none are left alone. Masked weights take no part and stay zero.
pub fn share<M: Module>(module: M, levels: impl FnMut(&Weight) -> Option<usize>, init: Init) -> M {
    share_seeded(module, levels, init, 0)
}

fn share_seeded<M: Module>(module: M, mut levels: impl FnMut(&Weight) -> Option<usize>, init: Init, seed: u64) -> M {
    let mut codings = BTreeMap::new();
    for weight in coding::weights(&module) {
        if let Some(levels) = levels(&weight) {
            let source = codebook(&weight, levels, init, seed);
            codings.insert(weight.path, Coding { mask: weight.coding.mask, source });
        }
    }
    coding::recode(module, codings)
}

fn codebook(weight: &Weight, levels: usize, init: Init, seed: u64) -> Source {
    let found = |values: &[f32]| cluster(values, levels.max(1), init, LLOYD_STEPS, seed);
    let clusters = found(&weight.left());
    match &weight.coding.mask {
        None => clusters.into_source(),
        Some(mask) => clusters.spread(mask).into_source(),
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Builder;
    use briquette_core::stored::Storage;
    use burn::module::Param;
    use burn::tensor::{Device, Tensor};

    use super::*;
    use briquette_handmade::{get, run, set, small};

    #[test]
    fn survivors_take_few_values_and_zeros_stay() {
        let weights = Tensor::<2>::from_floats([[0.9, 1.1, 0.0, -2.0], [1.0, 0.0, -2.2, -1.8]], &Device::flex());
        let pruned = crate::pruning::magnitude::prune(Param::from_tensor(weights), |_| Some(0.75));
        let shared = share(pruned, |_| Some(2), Init::Linear);
        let listed = &coding::weights(&shared)[0];
        let expected = [1.0, 1.0, 0.0, -2.0, 1.0, 0.0, -2.0, -2.0];
        assert!(listed.values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", listed.values);
    }

    #[test]
    fn sixteen_weights_of_32_bits_with_four_centroids_shrink_by_3_2() {
        // r = n b / (n log2 k + k b) with n = 16, b = 32 and k = 4, of the bits that a container has for them.
        let weights: Vec<f32> = (0..16).map(|i| [-1.0, -0.2, 0.3, 1.1][i % 4] + 0.01 * i as f32).collect();
        let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc", x, 4);
        let net = set(b.finish().unwrap(), "fc", "weight", &weights);
        let bits = |net: &Net| {
            let model = net.to_model(Storage::default()).unwrap();
            let bits = model.nodes[2].tensor("weight").unwrap().bits();
            (bits.values + bits.codebook) as f64
        };
        let shared = run::<KmeansSharing>(net.deep_clone(), serde_json::json!({ "bits": 2 })).unwrap();
        assert_eq!(bits(&net) / bits(&shared), 3.2);
    }

    #[test]
    fn an_outlier_leaves_the_others_their_centroids() {
        let weights: Vec<f32> = (0..14).map(|i| i as f32 * 0.01).chain([10.0]).collect();
        let net = run::<KmeansSharing>(set(small(), "fc2", "weight", &weights), serde_json::json!({ "bits": 2 })).unwrap();
        let mut distinct = get(&net, "fc2", "weight");
        distinct.sort_by(f32::total_cmp);
        distinct.dedup();
        assert_eq!((distinct.len(), distinct[3]), (4, 10.0));
    }
}
