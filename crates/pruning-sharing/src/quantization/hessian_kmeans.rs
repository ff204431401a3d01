//! Weight sharing by Hessian-weighted k-means.
//!
//! At a minimum of the loss `L`, with its Hessian taken as diagonal, replacing the weights `w_i` by `q_i` raises `L` by
//! `sum_i h_ii (w_i - q_i)^2 / 2`. The weights of all layers together, or of each, are therefore clustered by the distances
//! `h_ii (w_i - c_j)^2`: each weight goes to its nearest centroid, whose value becomes `c_j = sum h_ii w_i / sum h_ii` over its weights. The
//! curvature `h_ii` is that of [optimal brain damage](crate::pruning::optimal_brain_damage), the square root of Adam's second moment of the
//! gradients, or the same for all, which is plain k-means.
//!
//! Choi, El-Khamy, Lee. "Towards the Limit of Network Quantization". ICLR 2017. arXiv:1612.01543.
//! Differs from the paper: where all layers are clustered together, each stores, and trains, its own copy of the centroids it uses.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::hessian_kmeans::HessianKmeans;
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: HessianKmeans = serde_json::from_value(serde_json::json!({ "bits": 3 }))?;
//! // What the method does where the loss curves the same along all weights; `run` estimates the curvature from training images.
//! let shared = method.plan(net)?;
//! for layer in weights(&shared) {
//!     let mut values = layer.values.clone();
//!     values.sort_by(f32::total_cmp);
//!     values.dedup();
//!     assert!(values.len() <= 8);
//! }
//!
//! // Any module of Burn, and the curvature along each of its weights: one that is steep is kept nearly as it is.
//! let layer = LinearConfig::new(20, 10).init(&Device::flex());
//! let before = weights(&layer).remove(0).values;
//! let steep = |i: usize| if i == 0 { 1e6 } else { 1.0 };
//! let layer = method.share(layer, |weight| Some((0..weight.values.len()).map(steep).collect()))?;
//! assert!((before[0] - weights(&layer)[0].values[0]).abs() < 1e-5);
//! # Ok(())
//! # }
//! ```

use briquette_core::coding::Weight;
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::types::Bits;
use burn::module::Module;
use serde::Deserialize;

use briquette_parts::codebooks::{Codebooks, share};
use briquette_parts::kmeans::{Clusters, Init, LLOYD_STEPS, Weighted, cluster};

/// Shares weights among a few trained centroids, the closer the more the loss feels them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HessianKmeans {
    /// Bits of an index: at most `2^bits` centroids.
    bits: Bits,
    /// Where the centroids start.
    #[serde(default)]
    init: Init,
    /// The curvature, which weights are clustered together, and the training of the centroids.
    #[serde(flatten)]
    codebooks: Codebooks,
}

impl Method for HessianKmeans {
    const NAME: &'static str = "hessian-kmeans";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Choi, El-Khamy, Lee, ICLR 2017, arXiv:1612.01543";
    const EXAMPLE: &'static str = "bits = 5";
}

impl Pass for HessianKmeans {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let seed = cx.seed;
        self.codebooks.run(Self::NAME, net, cx, |points| Ok(self.cluster(points, seed)))
    }

    /// The curvature is taken as the same for all weights.
    fn plan(&self, net: Net) -> Result<Net> {
        self.codebooks.plan(Self::NAME, net, |points| Ok(self.cluster(points, 0)))
    }

    fn shorten(&mut self) {
        self.codebooks.shorten();
    }
}

impl HessianKmeans {
    /// Shares each tensor of rank 2 or more in any Burn module by itself. `curvature` gives the second derivative of the loss by each of its
    /// weights, in the order of its values, or none for a tensor that is left alone; only ratios matter. Settings that take a network are
    /// not looked at.
    ///
    /// # Errors
    /// As [`share`].
    pub fn share<M: Module>(&self, module: M, curvature: impl FnMut(&Weight) -> Option<Vec<f64>>) -> Result<M> {
        share(module, curvature, |points| Ok(self.cluster(points, 0)))
    }

    fn cluster(&self, points: &[Weighted], seed: u64) -> Clusters {
        cluster(points, self.bits.levels(), self.init, LLOYD_STEPS, seed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use briquette_core::context::Silent;

    use super::*;
    use crate::quantization::kmeans_sharing::KmeansSharing;
    use briquette_handmade::{context, get, images, refusal, run, set, small, stirred};
    use briquette_parts::curvature::diagonal;

    const LAYERS: [&str; 4] = ["conv1", "conv2", "fc1", "fc2"];

    #[test]
    fn with_a_flat_hessian_it_is_plain_k_means() {
        for init in ["linear", "density", "forgy"] {
            let flat = serde_json::json!({ "bits": 2, "init": init, "curvature": "flat", "per-layer": true });
            let flat = run::<HessianKmeans>(small(), flat).unwrap();
            let plain = run::<KmeansSharing>(small(), serde_json::json!({ "bits": 2, "init": init })).unwrap();
            for layer in LAYERS {
                assert_eq!(get(&flat, layer, "weight"), get(&plain, layer, "weight"), "{init} {layer}");
            }
        }
    }

    #[test]
    fn to_second_order_no_move_of_a_centroid_lowers_the_loss() {
        let (data, mut silent) = (images(), Silent);
        let curvature = diagonal(&stirred(), (100, None), HessianKmeans::NAME, &mut context(&data, &mut silent)).unwrap();
        let mean = curvature.values().flatten().sum::<f64>() / curvature.values().flatten().count() as f64;
        // The largest slope of `sum h (w - c)^2 / 2` by a centroid, in units of the mean curvature.
        let slope = |curvature_of: &str| -> f64 {
            let net = run::<HessianKmeans>(stirred(), serde_json::json!({ "bits": 2, "curvature": curvature_of })).unwrap();
            let mut slopes: BTreeMap<u32, f64> = BTreeMap::new();
            for layer in LAYERS {
                let (old, new) = (get(&stirred(), layer, "weight"), get(&net, layer, "weight"));
                for (i, h) in curvature[&net.index(layer).unwrap()].iter().enumerate() {
                    *slopes.entry(new[i].to_bits()).or_default() += h * f64::from(old[i] - new[i]);
                }
            }
            slopes.values().fold(0.0, |most: f64, slope| most.max(slope.abs())) / mean
        };
        let (weighted, flat) = (slope("diagonal"), slope("flat"));
        assert!(weighted < 1e-3 && flat > 0.1, "{weighted} and {flat}");
    }

    #[test]
    fn all_layers_share_one_set_of_centroids_and_training_keeps_each_layer_within_it() {
        let distinct = |net: &Net, layers: &[&str]| {
            let mut values: Vec<f32> = layers.iter().flat_map(|layer| get(net, layer, "weight")).collect();
            values.sort_by(f32::total_cmp);
            values.dedup();
            values.len()
        };
        let net = run::<HessianKmeans>(stirred(), serde_json::json!({ "bits": 3, "curvature": "adam" })).unwrap();
        assert!(distinct(&net, &LAYERS) <= 8);
        let tune = serde_json::json!({ "epochs": 1, "batch": 20 });
        let net = run::<HessianKmeans>(stirred(), serde_json::json!({ "bits": 3, "curvature": "adam", "tune": tune })).unwrap();
        assert!(LAYERS.iter().all(|layer| distinct(&net, &[*layer]) <= 8) && distinct(&net, &LAYERS) > 8);
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<HessianKmeans>(small(), serde_json::json!({ "bits": 3, "calibration-images": 0 }));
        assert_eq!(none, "hessian-kmeans: `calibration-images` must be at least 1");
        let weights = set(small(), "fc2", "weight", &[f32::NAN; 15]);
        let nan = refusal::<HessianKmeans>(weights, serde_json::json!({ "bits": 3 }));
        assert_eq!(nan, "node 'fc2': holds the weight NaN; train it anew or clip it");
        let unknown = serde_json::from_value::<HessianKmeans>(serde_json::json!({ "bits": 3, "bit": 3 })).unwrap_err();
        assert!(unknown.to_string().contains("unknown field `bit`"), "{unknown}");
    }
}
