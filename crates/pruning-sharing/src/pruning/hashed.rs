//! HashedNets: weight sharing by a hash of the position.
//!
//! Of `n` weights, `K = keep n` values `b` are stored, the buckets: the weight at position `i` is `w_i = s(i) b_{h(i)}`, where a hash of `i`
//! gives the bucket `h` and the sign `s`, so that no index is stored. Buckets are trained like the centroids of a codebook, with
//! `dL/db_k = sum over i with h(i) = k of s(i) dL/dw_i`. They begin at the least-squares fit to the layer's weights,
//! `b_k = mean over i with h(i) = k of s(i) w_i`, or, for training from scratch, at random numbers of the same deviation as the weights.
//!
//! Chen, Wilson, Tyree, Weinberger, Chen. "Compressing Neural Networks with the Hashing Trick". ICML 2015. arXiv:1504.04788.
//! Differs from the paper: the fit to trained weights is ours, the hash is SplitMix64's instead of xxHash
//! ([`briquette_runtime::Places::Hash`]), and biases have their own values.
//!
//! ```
//! use briquette_core::coding;
//! use briquette_pruning_sharing::pruning::hashed::{Init, share};
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! let layer = LinearConfig::new(20, 30).init(&Device::flex());
//! let layer = share(layer, |_| Some(0.125), Init::Weights, 1);
//! let mut values: Vec<f32> = coding::weights(&layer)[0].values.iter().map(|v| v.abs()).collect();
//! values.sort_by(f32::total_cmp);
//! values.dedup();
//! assert!(values.len() <= 75, "600 / 8");
//! ```
//!
//! As a pass over a network:
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::pruning::hashed::Hashed;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: Hashed = serde_json::from_value(serde_json::json!({ "keep": 0.125, "tune": { "epochs": 5 } }))?;
//! // `run`, with a pass's context, trains besides.
//! let net = method.plan(net)?;
//! let values = net.nodes[net.index("fc1")?].weight().map_or(Vec::new(), |weight| weight.values());
//! let distinct: std::collections::BTreeSet<u32> = values.iter().map(|w| w.abs().to_bits()).collect();
//! assert!(distinct.len() <= values.len() / 8);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::coding::{self, Coding, Source, Weight};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::streams::{standard_normal, stream};
use briquette_core::training::{Recipe, tune};
use briquette_core::types::{Layers, PerLayer, Ratio};
use briquette_runtime::Places;
use burn::module::Module;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use briquette_parts::refuse;

/// Shares the weights of each layer among a few trained buckets, by a hash of the position.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hashed {
    /// Share of each layer's number of values that stays.
    keep: PerLayer<Ratio>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Where the buckets start.
    #[serde(default)]
    init: Init,
    /// Training of the buckets.
    tune: Option<Recipe>,
}

/// Where buckets start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// At the least-squares fit to the weights.
    #[default]
    Weights,
    /// At normal random numbers with the deviation of the weights, whose values are lost: for training from scratch.
    Random,
}

impl Method for Hashed {
    const NAME: &'static str = "hashed";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Chen, Wilson, Tyree, Weinberger, Chen, ICML 2015, arXiv:1504.04788";
    const EXAMPLE: &'static str = "keep = 0.125\ntune = { epochs = 10 }";
}

impl Pass for Hashed {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.share(net, cx.seed)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.share(net, 0)
    }
}

impl Hashed {
    fn share(&self, net: Net, seed: u64) -> Result<Net> {
        refuse::weightless(&net, &self.keep)?;
        let shares: BTreeMap<usize, f64> = self
            .keep
            .resolve_within(&net, &self.layers.without(&self.except, &net)?)?
            .into_iter()
            .map(|(i, keep)| (i, keep.get()))
            .collect();
        refuse::shared(&net, shares.keys(), Self::NAME)?;
        for weight in coding::weights(&net) {
            let Some((node, share)) = weight.node().and_then(|node| Some((node, shares.get(&node)?))) else { continue };
            refuse::not_finite(&net.nodes[node].name, &weight.values)?;
            let count = weight.values.len();
            if buckets(*share, count) == 0 {
                let least = 1.0 / count as f64;
                let detail = format!("{share} of its {count} weights are 0 buckets; set `keep` to at least {least:.1e}");
                return Err(Error::node(&net.nodes[node].name, detail));
            }
        }
        Ok(share(net, |weight| weight.node().and_then(|node| shares.get(&node).copied()), self.init, seed))
    }
}

/// Number of buckets of so many weights.
fn buckets(share: f64, count: usize) -> usize {
    (share * count as f64).round() as usize
}

/// Shares each tensor of rank 2 or more in any Burn module among `keep` times as many buckets as it has weights, at least one; tensors for
/// which `keep` gives none are left alone. Masked weights take no part and stay zero. The hash is one of the position in
/// `[out, in, ...]`, so that matrices, which Burn keeps as `[in, out]`, are hashed as their transposed.
pub fn share<M: Module>(module: M, mut keep: impl FnMut(&Weight) -> Option<f64>, init: Init, seed: u64) -> M {
    let mut codings = BTreeMap::new();
    for weight in coding::weights(&module) {
        if let Some(share) = keep(&weight) {
            let count = buckets(share, weight.values.len()).max(1);
            let source = hash(&weight, count, init, stream(seed, &weight.path));
            codings.insert(weight.path, Coding { mask: weight.coding.mask, source });
        }
    }
    coding::recode(module, codings)
}

fn hash(weight: &Weight, count: usize, init: Init, seed: u64) -> Source {
    let mut source = Source::shared(Places::Hash { seed }, vec![0.0; count], &weight.shape).expect("a hash fits every shape");
    let Source::Shared { values: buckets, places, .. } = &mut source else { return source };
    let keeps = |i: usize| weight.coding.mask.as_ref().is_none_or(|mask| mask[i]);
    let kept = || (0..weight.values.len()).filter(|i| keeps(*i)).map(|i| (places[i], f64::from(weight.values[i])));
    match init {
        Init::Weights => {
            let mut sums = vec![(0.0, 0.0_f64); count];
            for (place, value) in kept() {
                let (sum, members) = &mut sums[place as usize / 2];
                *sum += if place & 1 == 0 { value } else { -value };
                *members += 1.0;
            }
            *buckets = sums.into_iter().map(|(sum, members)| (sum / members.max(1.0)) as f32).collect();
        }
        Init::Random => {
            let members = kept().count().max(1) as f64;
            let mean = kept().map(|(_, value)| value).sum::<f64>() / members;
            let deviation = (kept().map(|(_, value)| (value - mean).powi(2)).sum::<f64>() / members).sqrt();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            buckets.iter_mut().for_each(|bucket| *bucket = (standard_normal(&mut rng) * deviation) as f32);
        }
    }
    source
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Builder;
    use briquette_core::stored::Storage;
    use briquette_runtime::{Model, ValueFormat};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use briquette_handmade::{context, get, images, refusal, run, set, small};

    fn fc1(net: &Net) -> (u64, Vec<f32>, Vec<u32>) {
        let source = net.nodes[net.index("fc1").unwrap()].weight().unwrap().coding.source;
        let Source::Shared { rule: Places::Hash { seed }, values, places } = source else { panic!("{source:?}") };
        (seed, values, places)
    }

    fn file(net: &Net) -> Vec<u8> {
        net.to_model(Storage::default()).unwrap().to_bytes().unwrap()
    }

    #[test]
    fn as_many_values_are_stored_as_there_are_buckets_and_take_four_bytes_each() {
        let mut b = Builder::new([1, 16, 16], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc1", x, 100);
        let (data, mut silent) = (images(), briquette_core::context::Silent);
        let method: Hashed = serde_json::from_value(json!({ "keep": 0.125 })).unwrap();
        let net = method.run(b.finish().unwrap(), &mut context(&data, &mut silent)).unwrap();
        let (seed, buckets, places) = fc1(&net);
        assert_eq!((buckets.len(), places.len()), (3200, 25_600));
        let model = Model::from_bytes(&file(&net)).unwrap();
        let coded = model.nodes.last().unwrap().tensor("weight").unwrap();
        assert_eq!((coded.summary().value_format, coded.summary().codebook_len), (ValueFormat::Shared, Some(3200)));
        let (bits, bias) = (coded.bits(), 4 * 100);
        assert_eq!((bits.codebook, bits.values, bits.indices), (32 * 3200, 0, 0));
        assert!((4 * 3200..4 * 3200 + 150).contains(&(file(&net).len() - bias)), "{}", file(&net).len());
        let back = Net::from_model(&model, &Device::flex()).unwrap();
        assert!(fc1(&back) == (seed, buckets, places) && get(&back, "fc1", "weight") == get(&net, "fc1", "weight"));
    }

    #[test]
    fn buckets_fit_the_weights_and_layers_that_nothing_names_stay() {
        let net = run::<Hashed>(small(), json!({ "keep": { "fc1": 0.2 } })).unwrap();
        let (_, buckets, places) = fc1(&net);
        let weights = get(&small(), "fc1", "weight");
        // At the least-squares fit the residue has no part along any bucket.
        let mut slopes = vec![0.0; buckets.len()];
        for (place, weight) in places.iter().zip(weights) {
            let sign = if place & 1 == 0 { 1.0 } else { -1.0 };
            slopes[*place as usize / 2] += sign * weight - buckets[*place as usize / 2];
        }
        assert!(slopes.iter().all(|slope| slope.abs() < 1e-5), "{slopes:?}");
        assert_eq!(get(&net, "fc2", "weight"), get(&small(), "fc2", "weight"));
    }

    #[test]
    fn what_was_stored_is_tuned_on_and_stays_hashed() {
        let tune = json!({ "epochs": 1, "batch": 10, "lr": 0.01 });
        let net = run::<Hashed>(small(), json!({ "keep": 0.3, "init": "random", "tune": tune })).unwrap();
        let back = Net::from_model(&Model::from_bytes(&file(&net)).unwrap(), &Device::flex()).unwrap();
        let (data, mut silent) = (images(), briquette_core::context::Silent);
        let recipe: Recipe = serde_json::from_value(tune).unwrap();
        let tuned = briquette_core::training::tune(back, Some(&recipe), &mut context(&data, &mut silent)).unwrap();
        let (before, after) = (fc1(&net), fc1(&tuned));
        assert!(before.0 == after.0 && before.2 == after.2 && before.1 != after.1);
        assert_eq!(file(&net).len(), file(&tuned).len());
    }

    #[test]
    fn random_buckets_have_the_deviation_of_the_weights_and_masks_stay() {
        let deviation = |values: &[f32]| (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        let mut b = Builder::new([1, 16, 16], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc1", x, 100);
        let net = b.finish().unwrap();
        let random = share(net.deep_clone(), |_| Some(0.125), Init::Random, 4);
        let [old, new] = [&net, &random].map(|net| deviation(&get(net, "fc1", "weight")));
        assert!((new / old - 1.0).abs() < 0.1, "{old} {new}");
        let pruned = crate::pruning::magnitude::prune(net, |_| Some(0.5));
        let shared = share(pruned.deep_clone(), |_| Some(0.125), Init::Weights, 4);
        let zeros = |net: &Net| get(net, "fc1", "weight").iter().filter(|v| **v == 0.0).count();
        assert_eq!((zeros(&pruned), zeros(&shared)), (12_800, 12_800));
        let back = Net::from_model(&Model::from_bytes(&file(&shared)).unwrap(), &Device::flex()).unwrap();
        assert!(get(&back, "fc1", "weight") == get(&shared, "fc1", "weight") && fc1(&back).1.len() == 3200);
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<Hashed>(small(), json!({ "keep": { "fc2": 0.01 } }));
        assert_eq!(none, "node 'fc2': 0.01 of its 15 weights are 0 buckets; set `keep` to at least 6.7e-2");
        let nan = refusal::<Hashed>(set(small(), "fc2", "weight", &[f32::NAN; 15]), json!({ "keep": 0.5 }));
        assert_eq!(nan, "node 'fc2': holds the weight NaN; train it anew or clip it");
        let shared =
            crate::quantization::kmeans_sharing::share(small(), |_| Some(2), crate::quantization::kmeans_sharing::Init::Linear);
        let twice = refusal::<Hashed>(shared, json!({ "keep": 0.5 }));
        assert_eq!(twice, "node 'conv1': shares its weights; put hashed before the pass that shares them");
    }
}
