//! Product quantization and residual product quantization.
//!
//! The weights of a layer as a matrix `[outputs, inputs]`, the taps of filters among the inputs, are cut into blocks of `width` columns. In
//! every block the rows are clustered by k-means into `k` centroids, and a row is stored as the index of its centroid in each block:
//! `outputs ceil(inputs / width) log2 k` bits of indices and `k inputs` floats of centroids. With several stages each one clusters what those
//! before it leave, and a row is the sum of a centroid of every stage: residual quantization. Centroids are trained, with the sum of the
//! gradients of their members. With `share-taps` the matrix of a convolution is `[outputs taps, channels]`, so that a block lies over channels and
//! all taps of a filter share its centroids: `outputs taps ceil(channels / width) log2 k` bits and `k channels` floats.
//!
//! Gong, Liu, Yang, Bourdev. "Compressing Deep Convolutional Networks using Vector Quantization". arXiv:1412.6115, 2014.
//! Differs from the paper: residual quantization is done block by block, with the paper's in whole rows as the case of `width = inputs`;
//! k-means starts by k-means++; convolutions are quantized as well, and centroids are trained afterwards.
//!
//! ```
//! use briquette_core::coding;
//! use briquette_parts::vectors::Pieces;
//! use briquette_pruning_sharing::quantization::product_quantization::share;
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! let layer = LinearConfig::new(20, 30).init(&Device::flex());
//! let weights = coding::weights(&layer).remove(0).values;
//! let error = |pieces: Pieces| -> f32 {
//!     let shared = share(layer.clone(), |_| Some(pieces), 1);
//!     weights.iter().zip(&coding::weights(&shared)[0].values).map(|(a, b)| (a - b).powi(2)).sum()
//! };
//! let [one, two] = [1, 2].map(|stages| error(Pieces { width: 4, centroids: 8, stages, taps: 1 }));
//! assert!(two < one && error(Pieces { width: 4, centroids: 30, stages: 1, taps: 1 }) == 0.0);
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::product_quantization::ProductQuantization;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: ProductQuantization = serde_json::from_value(serde_json::json!({ "centroids": 4, "width": 8, "tune": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! let first: std::collections::BTreeSet<Vec<u32>> = values.chunks(784).map(|row| row[..8].iter().map(|w| w.to_bits()).collect()).collect();
//! assert!(first.len() <= 4);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::coding::{self, Coding, Source, Weight};
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::tune;
use burn::module::Module;
use serde::Deserialize;

use crate::quantization::products::Products;
use briquette_parts::vectors::{Pieces, quantize_kept};

/// Puts the weights of each layer together from trained centroids of blocks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProductQuantization {
    /// Which layers, how they are cut up, and the training of the centroids.
    #[serde(flatten)]
    products: Products,
    /// Number of stages; more than one is residual quantization.
    #[serde(default = "one")]
    stages: usize,
}

fn one() -> usize {
    1
}

impl Method for ProductQuantization {
    const NAME: &'static str = "product-quantization";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Gong, Liu, Yang, Bourdev, arXiv:1412.6115, 2014";
    const EXAMPLE: &'static str = "centroids = { fc = 8 }\nwidth = 4";
}

impl Pass for ProductQuantization {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.share(net, cx.seed)?;
        tune(net, self.products.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.share(net, 0)
    }
}

impl ProductQuantization {
    fn share(&self, net: Net, seed: u64) -> Result<Net> {
        let layers: BTreeMap<usize, Pieces> = self.products.layers(&net, Self::NAME, self.stages, false)?.into_iter().collect();
        Ok(share(net, |weight| layers.get(&weight.node()?).copied(), seed))
    }
}

/// Quantizes each tensor of rank 2 or more in any Burn module for which `pieces` says how. Matrices, which Burn keeps as `[in, out]`, are
/// quantized as their transposed. Masked weights stay zero and do not pull at the centroids.
pub fn share<M: Module>(module: M, mut pieces: impl FnMut(&Weight) -> Option<Pieces>, seed: u64) -> M {
    let mut codings = BTreeMap::new();
    for weight in coding::weights(&module) {
        let Some(pieces) = pieces(&weight).filter(|_| !weight.values.is_empty()) else { continue };
        let mask = weight.coding.mask.as_ref().map(|mask| weight.filtered(mask));
        let product = quantize_kept(&weight.filters(), mask.as_deref(), weight.fan_in(), pieces, seed);
        let source = Source::Product { product, transposed: weight.shape.len() == 2 };
        codings.insert(weight.path, Coding { mask: weight.coding.mask, source });
    }
    coding::recode(module, codings)
}

#[cfg(test)]
mod tests {
    use briquette_core::stored::Storage;
    use briquette_runtime::{Coder, Model, ValueFormat};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::quantization::products::proof::refuses;
    use briquette_handmade::{get, refusal, run, small};

    const LAYERS: [&str; 4] = ["conv1", "conv2", "fc1", "fc2"];

    fn error(net: &Net) -> f64 {
        let layer = |layer: &&str| {
            let (old, new) = (get(&small(), layer, "weight"), get(net, layer, "weight"));
            old.iter().zip(&new).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        LAYERS.iter().map(layer).sum()
    }

    #[test]
    fn as_many_centroids_as_rows_reconstruct_exactly() {
        let all = json!({ "centroids": { "conv1": 4, "conv2": 3, "fc1": 5, "fc2": 3 }, "width": 3 });
        assert_eq!(error(&run::<ProductQuantization>(small(), all).unwrap()), 0.0);
    }

    #[test]
    fn the_error_falls_with_each_stage() {
        let with = |stages: usize| {
            error(&run::<ProductQuantization>(small(), json!({ "centroids": 2, "width": 3, "stages": stages })).unwrap())
        };
        let errors = [1, 2, 3, 4, 5].map(with);
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{errors:?}");
    }

    #[test]
    fn the_container_holds_what_the_formula_says_and_gives_the_product_back() {
        holds(false, [("fc1", 5, 12, 4, 2), ("conv2", 3, 16, 2, 1)]);
        // 3 filters at 4 taps, and 4 channels.
        holds(true, [("fc1", 5, 12, 4, 2), ("conv2", 12, 4, 2, 1)]);
    }

    /// By layer its rows and columns, centroids, and their bits.
    fn holds(share: bool, layers: [(&str, usize, usize, usize, usize); 2]) {
        let settings = json!({ "centroids": { "fc1": 4, "conv2": 2 }, "width": 3, "stages": 2, "share-taps": share });
        let net = run::<ProductQuantization>(small(), settings).unwrap();
        let storage = Storage { coder: Coder::Packed, ..Storage::default() };
        let model = Model::from_bytes(&net.to_model(storage).unwrap().to_bytes().unwrap()).unwrap();
        for (layer, rows, columns, k, bits) in layers {
            let coded = model.nodes[net.index(layer).unwrap()].tensor("weight").unwrap();
            assert_eq!(coded.summary().value_format, ValueFormat::Product);
            let expected = (2 * rows * columns.div_ceil(3) * bits, 2 * 32 * k * columns);
            assert_eq!((coded.bits().values, coded.bits().codebook), (expected.0 as u64, expected.1 as u64));
        }
        let back = Net::from_model(&model, &Device::flex()).unwrap();
        for layer in LAYERS {
            let weight = |net: &Net| net.nodes[net.index(layer).unwrap()].weight().unwrap();
            assert!(weight(&back).coding == weight(&net).coding && weight(&back).values() == weight(&net).values(), "{layer}");
        }
    }

    #[test]
    fn centroids_are_tuned_and_indices_stay() {
        let settings = |tune: serde_json::Value| json!({ "centroids": { "fc": 2 }, "width": 3, "stages": 2, "tune": tune });
        let product = |settings| {
            let net = run::<ProductQuantization>(small(), settings).unwrap();
            let source = net.nodes[net.index("fc1").unwrap()].weight().unwrap().coding.source;
            let Source::Product { product, transposed: false } = source else { panic!("{source:?}") };
            product
        };
        let before = product(settings(serde_json::Value::Null));
        let after = product(settings(json!({ "epochs": 1, "batch": 10, "lr": 0.01 })));
        for (before, after) in before.stages.iter().zip(&after.stages) {
            assert!(before.indices == after.indices && before.centroids != after.centroids);
        }
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        refuses::<ProductQuantization>("product-quantization");
        let stages = refusal::<ProductQuantization>(small(), json!({ "centroids": 2, "width": 2, "stages": 17 }));
        assert_eq!(stages, "product-quantization: `stages` lies in 1..=16, not 17");
    }
}
