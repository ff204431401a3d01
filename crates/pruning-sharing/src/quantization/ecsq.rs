//! Entropy-constrained scalar quantization of weights.
//!
//! Minimizes `sum_i h_i (w_i - c_{a(i)})^2 - lambda log2 p_{a(i)}` over the centroids `c` and the assignment `a`, where `h_i` is the curvature
//! of the loss along weight `w_i` and `-log2 p_j` are the bits that an entropy coder spends on an index `j`, which a share `p_j` of the
//! weights has. Lloyd's iteration alternates between assignments of the lowest cost, at the shares as they were, and centroids
//! `c_j = sum h w / sum h` with new shares; clusters that pay no more run empty. At `lambda = 0` it is
//! [Hessian-weighted k-means](crate::quantization::hessian_kmeans). The alternative, which is optimal when indices are many, is uniform: the index is
//! `round(w / delta)`, and the value of each index the mean of its weights.
//!
//! Choi, El-Khamy, Lee. "Towards the Limit of Network Quantization". ICLR 2017. arXiv:1612.01543.
//! Differs from the paper: curvatures are scaled to the mean 1, so that `lambda` is in squared weights per bit; and where all layers are
//! clustered together, each stores, and trains, its own copy of the centroids it uses.
//!
//! ```
//! use briquette_core::coding::weights;
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::quantization::ecsq::Ecsq;
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: Ecsq = serde_json::from_value(serde_json::json!({ "delta": 0.05 }))?;
//! let shared = method.plan(net.deep_clone())?;
//! for (before, after) in net.weighted().zip(shared.weighted()).filter_map(|(a, b)| Some((a.1.weight()?, b.1.weight()?))) {
//!     assert!(before.values().iter().zip(after.values()).all(|(a, b)| (a - b).abs() <= 0.05));
//! }
//!
//! // Any module of Burn, and the curvature along each of its weights, here the same for all.
//! let layer = LinearConfig::new(20, 10).init(&Device::flex());
//! let method: Ecsq = serde_json::from_value(serde_json::json!({ "lambda": 1e-3, "bits": 4 }))?;
//! let layer = method.share(layer, |weight| Some(vec![1.0; weight.values.len()]))?;
//! let mut values = weights(&layer)[0].values.clone();
//! values.sort_by(f32::total_cmp);
//! values.dedup();
//! assert!(values.len() <= 16);
//! # Ok(())
//! # }
//! ```

use briquette_core::coding::Weight;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::types::Bits;
use burn::module::Module;
use rayon::prelude::*;
use serde::Deserialize;

use briquette_parts::codebooks::{Codebooks, share};
use briquette_parts::kmeans::{Clusters, Init, LLOYD_STEPS, Point, TASK, Weighted, sorted, start};

/// Shares weights among values whose indices take few bits after entropy coding.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ecsq {
    /// Squared weights that a bit is worth.
    lambda: Option<f64>,
    /// Bits of an index before coding: the iteration begins with `2^bits` centroids.
    bits: Option<Bits>,
    /// Where the centroids start.
    #[serde(default)]
    init: Init,
    /// Width of the bins of the uniform quantizer, in place of `lambda` and `bits`.
    delta: Option<f64>,
    /// The curvature, which weights are clustered together, and the training of the centroids.
    #[serde(flatten)]
    codebooks: Codebooks,
}

impl Method for Ecsq {
    const NAME: &'static str = "ecsq";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Choi, El-Khamy, Lee, ICLR 2017, arXiv:1612.01543";
    const EXAMPLE: &'static str = "lambda = 1e-4\nbits = 5";
}

impl Pass for Ecsq {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let seed = cx.seed;
        self.codebooks.run(Self::NAME, net, cx, |points| self.quantize(points, seed))
    }

    /// The curvature is taken as the same for all weights.
    fn plan(&self, net: Net) -> Result<Net> {
        self.codebooks.plan(Self::NAME, net, |points| self.quantize(points, 0))
    }

    fn shorten(&mut self) {
        self.codebooks.shorten();
    }
}

impl Ecsq {
    /// Shares each tensor of rank 2 or more in any Burn module by itself. `curvature` gives the second derivative of the loss by each of its
    /// weights, in the order of its values, or none for a tensor that is left alone; only ratios matter. Settings that take a network are
    /// not looked at.
    ///
    /// # Errors
    /// As [`share`].
    pub fn share<M: Module>(&self, module: M, curvature: impl FnMut(&Weight) -> Option<Vec<f64>>) -> Result<M> {
        share(module, curvature, |points| self.quantize(points, 0))
    }

    fn quantize(&self, points: &[Weighted], seed: u64) -> Result<Clusters> {
        match (self.lambda, self.bits, self.delta) {
            (Some(lambda), Some(bits), None) if lambda.is_finite() && lambda >= 0.0 => {
                Ok(constrained(points, start(&sorted(points), bits.levels(), self.init, seed), lambda))
            }
            (None, None, Some(delta)) if delta.is_finite() && delta > 0.0 => uniform(points, delta),
            (Some(lambda), Some(_), None) => Err(Error::Invalid(format!("ecsq: lambda must be 0 or more, is {lambda}"))),
            (None, None, Some(delta)) => Err(Error::Invalid(format!("ecsq: delta must be above 0, is {delta}"))),
            _ => Err(Error::Invalid("ecsq takes either `lambda` and `bits` or `delta`".into())),
        }
    }
}

/// A centroid and its share of the points.
type Level = (f64, f64);

/// Lloyd's iteration for the cost `h (w - c_j)^2 - lambda log2 p_j`; the first assignment is by distance alone.
fn constrained(points: &[Weighted], centroids: Vec<f64>, lambda: f64) -> Clusters {
    let mut levels: Vec<Level> = centroids.into_iter().map(|centroid| (centroid, 1.0)).collect();
    let mut assignment = vec![0; points.len()];
    for _ in 0..LLOYD_STEPS {
        assign(points, &levels, lambda, &mut assignment);
        let moved = means(points, &assignment, levels.len());
        let settled = moved == levels;
        levels = moved;
        if settled {
            break;
        }
    }
    assign(points, &levels, lambda, &mut assignment);
    Clusters { centroids: levels.into_iter().map(|(centroid, _)| centroid as f32).collect(), assignment }
}

/// Gives each point the level of the lowest cost, the lower of equals. The search goes outward from the point and ends where the distance
/// alone costs too much.
fn assign(points: &[Weighted], levels: &[Level], lambda: f64, assignment: &mut [u32]) {
    let priced: Vec<(f64, f64)> = levels.iter().map(|(centroid, share)| (*centroid, -lambda * share.log2())).collect();
    let cheapest = |point: &Weighted| {
        let (value, weight) = (f64::from(point.value()), point.weight());
        let above = priced.partition_point(|(centroid, _)| *centroid < value);
        let mut best = (f64::INFINITY, 0);
        let mut try_level = |level: usize| {
            let (centroid, price) = priced[level];
            let distance = weight * (value - centroid).powi(2);
            if distance + price < best.0 {
                best = (distance + price, level as u32);
            }
            distance < best.0
        };
        let _ = (0..above).rev().all(&mut try_level);
        let _ = (above..priced.len()).all(&mut try_level);
        best.1
    };
    assignment.par_chunks_mut(TASK).zip(points.par_chunks(TASK)).for_each(|(assignment, points)| {
        assignment.iter_mut().zip(points).for_each(|(index, point)| *index = cheapest(point));
    });
}

/// The weighted means of the clusters that have points, ascending, with their shares.
fn means(points: &[Weighted], assignment: &[u32], count: usize) -> Vec<Level> {
    let tasks = points.par_chunks(TASK).zip(assignment.par_chunks(TASK)).map(|(points, assignment)| {
        let mut sums = vec![[0.0; 3]; count];
        for (point, &index) in points.iter().zip(assignment) {
            let sums = &mut sums[index as usize];
            sums[0] += point.weight() * f64::from(point.value());
            sums[1] += point.weight();
            sums[2] += 1.0;
        }
        sums
    });
    let mut sums = vec![[0.0; 3]; count];
    for task in tasks.collect::<Vec<_>>() {
        sums.iter_mut().flatten().zip(task.into_iter().flatten()).for_each(|(sum, more)| *sum += more);
    }
    let level = |[moment, weight, members]: [f64; 3]| (moment / weight, members / points.len() as f64);
    let mut levels: Vec<Level> = sums.into_iter().filter(|sums| sums[2] > 0.0).map(level).collect();
    levels.sort_by(|a, b| a.0.total_cmp(&b.0));
    levels
}

/// One level for each bin `round(w / delta)` that has points, at their mean.
fn uniform(points: &[Weighted], delta: f64) -> Result<Clusters> {
    let bin = |point: &Weighted| (f64::from(point.value) / delta).round();
    let (first, last) =
        points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), point| (a.min(bin(point)), b.max(bin(point))));
    if last - first >= MOST_BINS {
        let detail =
            format!("ecsq: delta = {delta} makes {} bins of the weights; at most {MOST_BINS} can be stored", last - first + 1.0);
        return Err(Error::Invalid(detail));
    }
    let bins: Vec<u32> = points.iter().map(|point| (bin(point) - first) as u32).collect();
    let mut places = vec![0; bins.iter().max().map_or(0, |last| *last as usize + 1)];
    bins.iter().for_each(|&bin| places[bin as usize] = 1);
    let mut filled = 0;
    for place in &mut places {
        filled += std::mem::replace(place, filled);
    }
    let assignment: Vec<u32> = bins.into_iter().map(|bin| places[bin as usize]).collect();
    let levels = means(points, &assignment, filled as usize);
    Ok(Clusters { centroids: levels.into_iter().map(|(centroid, _)| centroid as f32).collect(), assignment })
}

/// As many as an index of 16 bits tells apart.
const MOST_BINS: f64 = 65536.0;

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use briquette_handmade::{get, refusal, run, small};
    use briquette_parts::kmeans::cluster;

    fn sample() -> Vec<Weighted> {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut bell = || (0..6).map(|_| rng.random::<f32>() - 0.5).sum::<f32>();
        (0..4000).map(|_| Weighted { value: bell(), weight: bell().powi(2) + 0.1 }).collect()
    }

    fn begin(points: &[Weighted]) -> Vec<f64> {
        start(&sorted(points), 16, Init::Linear, 0)
    }

    /// The entropy of the indices in bits, and the weighted mean squared error.
    fn rate_and_error(points: &[Weighted], found: &Clusters) -> (f64, f64) {
        let n = points.len() as f64;
        let mut counts = vec![0.0; found.centroids.len()];
        found.assignment.iter().for_each(|&index| counts[index as usize] += 1.0);
        let entropy = counts.iter().filter(|count| **count > 0.0).map(|count| -count / n * (count / n).log2()).sum();
        let error = |(point, &index): (&Weighted, &u32)| {
            f64::from(point.weight) * f64::from(point.value - found.centroids[index as usize]).powi(2)
        };
        (entropy, points.iter().zip(&found.assignment).map(error).sum::<f64>() / n)
    }

    #[test]
    fn at_lambda_0_it_is_k_means() {
        let points = sample();
        let (found, plain) = (constrained(&points, begin(&points), 0.0), cluster(&points, 16, Init::Linear, LLOYD_STEPS, 0));
        assert!(found.centroids.iter().zip(&plain.centroids).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(found.assignment, plain.assignment);
    }

    #[test]
    fn entropy_falls_and_the_error_rises_with_lambda() {
        let points = sample();
        let at = |lambda: f64| rate_and_error(&points, &constrained(&points, begin(&points), lambda));
        let curve = [0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 10.0].map(at);
        assert!(curve.windows(2).all(|pair| pair[1].0 < pair[0].0 && pair[1].1 > pair[0].1), "{curve:?}");
        assert_eq!(curve[7].0, 0.0, "a single value costs no bits");
    }

    #[test]
    fn no_other_level_costs_a_weight_less() {
        let (points, lambda) = (sample(), 3e-3);
        let found = constrained(&points, begin(&points), lambda);
        let shares = means(&points, &found.assignment, found.centroids.len());
        let cost = |point: &Weighted, level: usize| {
            let (centroid, share) = shares[level];
            f64::from(point.weight) * (f64::from(point.value) - centroid).powi(2) - lambda * share.log2()
        };
        for (point, &own) in points.iter().zip(&found.assignment) {
            let best = (0..shares.len()).map(|level| cost(point, level)).fold(f64::INFINITY, f64::min);
            assert!(cost(point, own as usize) <= best + 1e-9, "{point:?}");
        }
    }

    #[test]
    fn uniform_bins_hold_their_weighted_means() {
        let points =
            [(0.4, 1.0), (-0.9, 1.0), (1.2, 1.0), (0.9, 2.0), (-1.1, 3.0)].map(|(value, weight)| Weighted { value, weight });
        let found = uniform(&points, 1.0).unwrap();
        assert_eq!(found.assignment, [1, 0, 2, 2, 0]);
        assert!(found.centroids.iter().zip([-1.05, 0.4, 1.0]).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{found:?}");
        let error = uniform(&points, 1e-5).unwrap_err().to_string();
        assert!(error.ends_with("of the weights; at most 65536 can be stored"), "{error}");
    }

    #[test]
    fn a_network_is_quantized_and_settings_that_contradict_each_other_are_refused() {
        for settings in
            [serde_json::json!({ "lambda": 1e-3, "bits": 3 }), serde_json::json!({ "delta": 0.4, "curvature": "adam" })]
        {
            let mut values = get(&run::<Ecsq>(small(), settings).unwrap(), "fc1", "weight");
            values.sort_by(f32::total_cmp);
            values.dedup();
            assert!((2..=8).contains(&values.len()), "{values:?}");
        }
        let both = refusal::<Ecsq>(small(), serde_json::json!({ "lambda": 1e-3, "delta": 0.2 }));
        assert_eq!(both, "ecsq takes either `lambda` and `bits` or `delta`");
        let lambda = refusal::<Ecsq>(small(), serde_json::json!({ "lambda": -1.0, "bits": 3 }));
        assert_eq!(lambda, "ecsq: lambda must be 0 or more, is -1");
        let delta = refusal::<Ecsq>(small(), serde_json::json!({ "delta": 0.0 }));
        assert_eq!(delta, "ecsq: delta must be above 0, is 0");
    }
}
