//! Optimal brain surgeon.
//!
//! At a minimum of the loss with the Hessian `H`, deleting the weight `w_q` and moving the others to where the quadratic model of the loss
//! is lowest costs the saliency `L_q = w_q^2 / (2 [H^-1]_qq)`, and the move is `dw = -(w_q / [H^-1]_qq) H^-1 e_q`, where `e_q` is the unit
//! vector of `w_q`. The weight of the lowest saliency goes, the others move, and so on. The inverse comes from the recursion
//! `H^-1 <- H^-1 - H^-1 x x^T H^-1 / (P + x^T H^-1 x)` that starts at `I / alpha`, so that `H = alpha I + (1/P) sum x x^T`: the Gauss-Newton
//! matrix, which is the Fisher information, of `P` training images, with a vector `x` for each image and class, or each label drawn (see
//! [`factors`]), and the damping `alpha`. After a deletion the inverse of `H` without row and column
//! `q` is `H^-1 - H^-1 e_q e_q^T H^-1 / [H^-1]_qq`.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::optimal_brain_surgeon::OptimalBrainSurgeon;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let method: OptimalBrainSurgeon = serde_json::from_str(r#"{ "keep": 0.5, "calibration-images": 2 }"#).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert_eq!(net.nodes[2].weight().unwrap().values().iter().filter(|w| **w != 0.0).count(), 4);
//! ```
//!
//! Hassibi, Stork. "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon". NIPS 1992, Advances in Neural Information
//! Processing Systems 5, 1993.
//! Differs from the paper: `H` is cut into blocks (`blocks`) with zeros between them and between layers, it is updated instead of computed
//! anew after each deletion of a round, how many weights go is set by `keep` instead of by a limit of the error, and biases stay.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use briquette_core::coding::{Coding, Source};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{Layers, PerLayer, Ratio};
use rayon::prelude::*;
use serde::Deserialize;

use briquette_parts::gauss_newton::factors;
use briquette_parts::masks::{check_shares, highest, kept, mask_layers};

/// Deletes the weights whose loss the rest can mend best, and mends it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OptimalBrainSurgeon {
    /// Share of each layer's weights that stays.
    keep: PerLayer<Ratio>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Which weights know of each other.
    #[serde(default)]
    blocks: Blocks,
    /// Training images over which the Hessian is averaged.
    #[serde(default = "hundred")]
    calibration_images: usize,
    /// Labels drawn from the network's own distribution for each image, in place of all classes.
    labels: Option<usize>,
    /// The damping `alpha`.
    #[serde(default = "ten_thousandth")]
    damping: f64,
    /// Most memory for inverses, in MiB. One layer's have to fit; layers that do not fit together take several looks at the images.
    #[serde(default = "half_gibi")]
    memory_mib: usize,
    /// How many times pruning and tuning alternate; each removes the same share of what is left.
    #[serde(default = "one")]
    rounds: usize,
    /// Training after each round.
    tune: Option<Recipe>,
}

/// The blocks of a layer's Hessian. Weights that are zero already are in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blocks {
    /// The whole layer.
    Layer,
    /// The weights of one output: a neuron's or a filter's.
    #[default]
    Row,
    /// So many neighbours within a row.
    Size(usize),
}

impl Method for OptimalBrainSurgeon {
    const NAME: &'static str = "optimal-brain-surgeon";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Hassibi, Stork, NIPS 1992";
    const EXAMPLE: &'static str = "keep = 0.25\nblocks = { size = 64 }";
}

impl Pass for OptimalBrainSurgeon {
    fn run(&self, mut net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let shares = self.check(&net)?;
        for round in 1..=self.rounds {
            let t = round as f64 / self.rounds as f64;
            let wanted = shares.iter().map(|(index, share)| (*index, share.get().powf(t)));
            net = self.operate(net, wanted, self.limit(), cx)?;
            if let Some(recipe) = &self.tune {
                net = fit(net, recipe, Extras::default(), cx)?;
            }
        }
        Ok(net)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let shares: BTreeMap<usize, Ratio> = self.check(&net)?.into_iter().collect();
        mask_layers(net, |index, weight| {
            Some(highest(vec![0.0; weight.base.len()], weight.coding.mask.as_deref(), shares.get(&index)?.get()))
        })
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    fn shorten(&mut self) {
        self.rounds = self.rounds.min(2);
        self.calibration_images = self.calibration_images.min(3);
    }
}

impl OptimalBrainSurgeon {
    /// The layers to prune, with what is kept of them.
    fn check(&self, net: &Net) -> Result<Vec<(usize, Ratio)>> {
        if self.calibration_images == 0 || self.rounds == 0 || self.labels == Some(0) || self.blocks == Blocks::Size(0) {
            return Err(Error::Invalid(
                "optimal-brain-surgeon: `calibration-images`, `labels`, `rounds` and `size` must be at least 1".into(),
            ));
        }
        if !(self.damping.is_finite() && self.damping > 0.0) {
            return Err(Error::Invalid(format!("optimal-brain-surgeon: damping must be positive, is {}", self.damping)));
        }
        check_shares(net, Some(&self.keep), None)?;
        let shares = self.keep.resolve_within(net, &self.layers.without(&self.except, net)?)?;
        for (index, share) in &shares {
            let Some(weight) = net.nodes[*index].weight() else { continue };
            if weight.coding.source != Source::Free {
                let detail = "shares its weights, which the updates would change; prune before the pass that shares them";
                return Err(Error::node(&net.nodes[*index].name, detail));
            }
            // Later rounds and passes have fewer weights.
            if share.get() < 1.0 {
                self.blocks(&net.nodes[*index].name, weight.shape[0], &weight.values())?;
            }
        }
        Ok(shares)
    }

    /// The places of the weights of each block.
    fn blocks(&self, name: &str, outputs: usize, values: &[f32]) -> Result<Vec<Vec<usize>>> {
        let (fan_in, most) = match self.blocks {
            Blocks::Layer => (values.len(), usize::MAX),
            Blocks::Row => (values.len() / outputs, usize::MAX),
            Blocks::Size(size) => (values.len() / outputs, size),
        };
        let alive = |row: usize| (row * fan_in..(row + 1) * fan_in).filter(|i| values[*i] != 0.0).collect::<Vec<_>>();
        let rows: Vec<Vec<usize>> = (0..values.len() / fan_in).map(alive).collect();
        let blocks: Vec<Vec<usize>> = rows.iter().flat_map(|row| row.chunks(most).map(<[usize]>::to_vec)).collect();
        let bytes = inverses(&blocks);
        let limit = self.limit();
        if bytes > limit {
            let weights = rows.iter().map(Vec::len).sum::<usize>();
            let detail = format!(
                "the inverses of its {} blocks take {} MiB, `memory-mib` allows {}; raise it, or set `blocks = {{ size = {} }}` or less",
                blocks.len(),
                bytes.div_ceil(1 << 20),
                self.memory_mib,
                (limit / (8 * weights as u128)).max(1),
            );
            return Err(Error::node(name, detail));
        }
        Ok(blocks)
    }

    /// Prunes layers to these shares of their weights, all by the curvature of the network as it comes, as many at a time as the memory's
    /// limit in bytes allows, one at least.
    fn operate(
        &self,
        mut net: Net,
        shares: impl Iterator<Item = (usize, f64)>,
        limit: u128,
        cx: &mut Context<'_>,
    ) -> Result<Net> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for (layer, share) in shares {
            let Some(weight) = net.nodes[layer].weight() else { continue };
            let values = weight.values();
            let places = self.blocks(&net.nodes[layer].name, weight.shape[0], &values)?;
            let excess = places.iter().map(Vec::len).sum::<usize>().saturating_sub(kept(share, values.len()));
            if excess > 0 {
                wanted.push(Wanted { layer, excess, values, places });
            }
        }
        let whole = net.deep_clone();
        let count = self.calibration_images.min(cx.data.train.len()) as f64;
        while !wanted.is_empty() {
            let mut bytes = 0;
            let fits = |wanted: &&Wanted| {
                bytes += inverses(&wanted.places);
                bytes <= limit
            };
            let together = wanted.iter().take_while(fits).count().max(1);
            let mut operations: Vec<Operation> = wanted.drain(..together).map(|wanted| wanted.begin(self.damping)).collect();
            let layers: Vec<usize> = operations.iter().map(|operation| operation.layer).collect();
            factors(&whole, &layers, Self::NAME, (self.calibration_images, self.labels), cx, |factor| {
                for operation in operations.iter_mut().filter(|operation| operation.layer == factor.layer) {
                    let scratch = <(Vec<f64>, Vec<f64>)>::default;
                    operation.blocks.par_iter_mut().with_min_len(64).for_each_init(scratch, |(x, y), block| {
                        x.clear();
                        x.extend(block.places.iter().map(|i| factor.scale * f64::from(factor.gradient[*i])));
                        block.inverse.add(x, count, y);
                    });
                }
            })?;
            operations.par_iter_mut().for_each(|operation| delete(&mut operation.blocks, operation.excess));
            for operation in operations {
                net = operation.finish(net)?;
            }
        }
        Ok(net)
    }

    /// Most bytes for inverses.
    fn limit(&self) -> u128 {
        (self.memory_mib as u128) << 20
    }
}

/// Bytes of the inverses of blocks of weights.
fn inverses(blocks: &[Vec<usize>]) -> u128 {
    blocks.iter().map(|block| 8 * (block.len() as u128).pow(2)).sum()
}

/// A layer that is to lose weights.
struct Wanted {
    layer: usize,
    /// How many go.
    excess: usize,
    values: Vec<f32>,
    /// Those of each block.
    places: Vec<Vec<usize>>,
}

impl Wanted {
    fn begin(self, damping: f64) -> Operation {
        let Self { layer, excess, values, places } = self;
        let block = |places: Vec<usize>| Block {
            weights: places.iter().map(|i| f64::from(values[*i])).collect(),
            inverse: Inverse::new(places.len(), damping),
            places,
        };
        Operation { layer, excess, blocks: places.into_iter().map(block).collect() }
    }
}

/// A layer that loses weights.
struct Operation {
    layer: usize,
    excess: usize,
    blocks: Vec<Block>,
}

impl Operation {
    /// The network with what the blocks now hold, the deleted weights masked.
    fn finish(self, mut net: Net) -> Result<Net> {
        let device = net.device();
        let node = net.nodes.remove(self.layer);
        let mut parameters = node.parameters();
        for parameter in parameters.iter_mut().filter(|parameter| parameter.name == "weight") {
            for block in &self.blocks {
                block.places.iter().zip(&block.weights).for_each(|(i, w)| parameter.base[*i] = *w as f32);
            }
            let mask = parameter.values().iter().map(|v| *v != 0.0).collect();
            parameter.coding = Coding { mask: Some(mask), source: Source::Free };
        }
        net.nodes.insert(self.layer, node.with(parameters, &device)?);
        Ok(net)
    }
}

/// Weights that know of each other.
struct Block {
    /// Where they are in the layer.
    places: Vec<usize>,
    weights: Vec<f64>,
    inverse: Inverse,
}

impl Block {
    /// The weight whose deletion costs least, after its saliency; deleted ones are zero.
    fn cheapest(&self) -> Option<(f64, usize)> {
        let saliency = |q: usize| self.weights[q].powi(2) / (2.0 * self.inverse.at(q, q));
        let alive = (0..self.weights.len()).filter(|q| self.weights[*q] != 0.0);
        alive.map(|q| (saliency(q), q)).min_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// Deletes a weight and moves the others.
    fn delete(&mut self, q: usize) {
        let column = self.inverse.remove(q);
        let step = self.weights[q] / column[q];
        self.weights.iter_mut().zip(&column).for_each(|(w, h)| *w -= step * h);
        self.weights[q] = 0.0;
    }
}

/// The cheapest deletion of a block; ordered by saliency, then by block.
#[derive(Debug, PartialEq)]
struct Deletion {
    saliency: f64,
    block: usize,
    q: usize,
}

impl Eq for Deletion {}

impl Ord for Deletion {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.saliency.total_cmp(&other.saliency).then(self.block.cmp(&other.block))
    }
}

impl PartialOrd for Deletion {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Deletes as many weights, each the cheapest of all blocks, of equals that of the first. A deletion changes its own block alone, so that a
/// heap holds the cheapest of each.
fn delete(blocks: &mut [Block], count: usize) {
    let next = |(block, found): (usize, &Block)| found.cheapest().map(|(saliency, q)| Reverse(Deletion { saliency, block, q }));
    let mut cheapest: BinaryHeap<Reverse<Deletion>> = blocks.iter().enumerate().filter_map(next).collect();
    for _ in 0..count {
        let Some(Reverse(Deletion { block, q, .. })) = cheapest.pop() else { return };
        blocks[block].delete(q);
        cheapest.extend(next((block, &blocks[block])));
    }
}

/// The inverse of a symmetric matrix, row by row.
struct Inverse {
    size: usize,
    entries: Vec<f64>,
}

impl Inverse {
    /// Of `damping` times the identity.
    fn new(size: usize, damping: f64) -> Self {
        let entries = (0..size * size).map(|i| if i % (size + 1) == 0 { 1.0 / damping } else { 0.0 });
        Self { size, entries: entries.collect() }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.entries[row * self.size + column]
    }

    /// After `x x^T / count` is added to the matrix; `y` is scratch memory.
    fn add(&mut self, x: &[f64], count: f64, y: &mut Vec<f64>) {
        if x.iter().all(|x| *x == 0.0) {
            return;
        }
        let dot = |row: &[f64]| row.iter().zip(x).map(|(h, x)| h * x).sum::<f64>();
        y.clear();
        y.extend(self.entries.chunks(self.size).map(dot));
        self.subtract(y, count + dot(y));
    }

    /// After row and column `q` are taken out of the matrix, where zeros take their place; returns the column of the inverse before.
    fn remove(&mut self, q: usize) -> Vec<f64> {
        let column = self.entries[q * self.size..][..self.size].to_vec();
        self.subtract(&column, column[q]);
        for i in 0..self.size {
            self.entries[q * self.size + i] = 0.0;
            self.entries[i * self.size + q] = 0.0;
        }
        column
    }

    /// Subtracts `y y^T / divisor`.
    fn subtract(&mut self, y: &[f64], divisor: f64) {
        for (row, factor) in self.entries.chunks_mut(self.size).zip(y).filter(|(_, factor)| **factor != 0.0) {
            let factor = factor / divisor;
            row.iter_mut().zip(y).for_each(|(h, y)| *h -= factor * y);
        }
    }
}

fn hundred() -> usize {
    100
}

fn ten_thousandth() -> f64 {
    1e-4
}

fn half_gibi() -> usize {
    512
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Builder;
    use briquette_core::context::{Data, Silent};
    use briquette_core::training::evaluate;
    use briquette_core::{Activation, Layer};
    use briquette_data::Dataset;
    use burn::tensor::Device;

    use super::*;
    use crate::pruning::magnitude;
    use briquette_handmade::{context, get, images, refusal, run, set, small};

    const DAMPING: f64 = 0.01;
    const SIZE: usize = 6;

    /// Four vectors, fewer than weights, and the matrix that they make.
    fn hessian() -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let vector = |s: usize| (0..SIZE).map(|i| ((s * 7 + i * i * 3 + s * i) % 11) as f64 / 5.0 - 1.0).collect();
        let vectors: Vec<Vec<f64>> = (1..5).map(vector).collect();
        let entry =
            |i: usize, j: usize| vectors.iter().map(|x| x[i] * x[j]).sum::<f64>() / 4.0 + if i == j { DAMPING } else { 0.0 };
        let matrix = (0..SIZE).map(|i| (0..SIZE).map(|j| entry(i, j)).collect()).collect();
        (vectors, matrix)
    }

    fn block() -> Block {
        let mut inverse = Inverse::new(SIZE, DAMPING);
        hessian().0.iter().for_each(|x| inverse.add(x, 4.0, &mut Vec::new()));
        Block { places: (0..SIZE).collect(), weights: vec![0.5, -1.0, 0.2, 2.0, -0.3, 0.8], inverse }
    }

    #[test]
    fn the_recursion_gives_the_inverse_and_removal_the_inverse_of_what_is_left() {
        let (_, matrix) = hessian();
        let mut inverse = block().inverse;
        for removed in [None, Some(1), Some(4)] {
            removed.into_iter().for_each(|q| drop(inverse.remove(q)));
            let alive: Vec<usize> = (0..SIZE).filter(|i| inverse.at(*i, *i) != 0.0).collect();
            assert_eq!(alive.len(), removed.map_or(SIZE, |q| if q == 1 { 5 } else { 4 }));
            for (&i, &j) in alive.iter().flat_map(|i| alive.iter().map(move |j| (i, j))) {
                let product: f64 = alive.iter().map(|&k| matrix[i][k] * inverse.at(k, j)).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j}: {product}");
            }
        }
    }

    #[test]
    fn a_deletion_costs_its_saliency_and_no_other_move_costs_less() {
        let (_, matrix) = hessian();
        let cost = |dw: &[f64]| -> f64 {
            let pairs = (0..SIZE).flat_map(|i| (0..SIZE).map(move |j| (i, j)));
            0.5 * pairs.map(|(i, j)| dw[i] * matrix[i][j] * dw[j]).sum::<f64>()
        };
        let mut block = block();
        for q in 0..SIZE {
            let mut deleted = self::block();
            let saliency = deleted.weights[q].powi(2) / (2.0 * deleted.inverse.at(q, q));
            deleted.delete(q);
            let dw: Vec<f64> = deleted.weights.iter().zip(&block.weights).map(|(new, old)| new - old).collect();
            assert_eq!(deleted.weights[q], 0.0);
            assert!((cost(&dw) - saliency).abs() < 1e-9 * (1.0 + saliency), "{q}: {} and {saliency}", cost(&dw));
            for i in (0..SIZE).filter(|i| *i != q) {
                for step in [-1e-3, 1e-3] {
                    let mut other = dw.clone();
                    other[i] += step;
                    assert!(cost(&other) > cost(&dw), "{q} {i}");
                }
            }
        }
        let least = (0..SIZE).map(|q| block.weights[q].powi(2) / (2.0 * block.inverse.at(q, q))).fold(f64::INFINITY, f64::min);
        assert_eq!(block.cheapest().unwrap().0, least);
        delete(std::slice::from_mut(&mut block), 4);
        assert_eq!(block.weights.iter().filter(|w| **w != 0.0).count(), 2);
    }

    #[test]
    fn the_heap_deletes_what_a_scan_of_all_blocks_would() {
        let number = |i: usize| (i * i * 7919 + i * 104_729) % 1009;
        let random = || -> Vec<Block> {
            let block = |b: usize| {
                let size = 1 + number(b) % 7;
                let mut inverse = Inverse::new(size, 0.05);
                for s in 0..4 {
                    let x: Vec<f64> = (0..size).map(|i| number(b * 31 + s * 7 + i) as f64 / 500.0 - 1.0).collect();
                    inverse.add(&x, 4.0, &mut Vec::new());
                }
                // Some blocks are twins, and some weights are gone already.
                let weight = |i: usize| (number(b / 2 * 13 + i) % 40) as f64 / 20.0 - 1.0;
                Block { places: (0..size).collect(), weights: (0..size).map(weight).collect(), inverse }
            };
            (0..60).map(block).collect()
        };
        let alive: usize = random().iter().map(|block| block.weights.iter().filter(|w| **w != 0.0).count()).sum();
        for count in [1, alive / 3, alive - 5, alive + 9] {
            let (mut by_heap, mut by_scan) = (random(), random());
            delete(&mut by_heap, count);
            for _ in 0..count {
                let all = by_scan.iter().enumerate().filter_map(|(b, block)| block.cheapest().map(|(cost, q)| (cost, b, q)));
                let Some((_, b, q)) = all.min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
                by_scan[b].delete(q);
            }
            let weights = |blocks: &[Block]| blocks.iter().flat_map(|block| block.weights.clone()).collect::<Vec<_>>();
            assert_eq!(weights(&by_heap), weights(&by_scan), "{count}");
        }
    }

    #[test]
    fn how_many_looks_the_memory_allows_changes_no_deletion() {
        let keep = serde_json::json!({ "conv1": 0.5, "conv2": 0.5, "fc1": 0.3, "fc2": 0.6 });
        let settings = serde_json::json!({ "keep": keep, "blocks": { "size": 4 }, "calibration-images": 6 });
        let method: OptimalBrainSurgeon = serde_json::from_value(settings).unwrap();
        let pruned = |limit: u128| {
            let (data, mut silent) = (images(), Silent);
            let wanted = method.check(&small()).unwrap().into_iter().map(|(index, share)| (index, share.get()));
            method.operate(small(), wanted, limit, &mut context(&data, &mut silent)).unwrap().to_state()
        };
        let together = pruned(u128::MAX);
        assert!(pruned(0) == together && together != small().to_state());
    }

    /// The four points of XOR.
    fn xor() -> Data {
        let all = Dataset::from_memory("xor", [2, 1, 1], 2, vec![0, 0, 0, 255, 255, 0, 255, 255], vec![0, 1, 1, 0]).unwrap();
        Data { train: all.clone(), valid: all.clone(), test: all }
    }

    /// Three hidden units trained on XOR.
    fn trained(seed: u64) -> Net {
        let mut b = Builder::new([2, 1, 1], seed, &Device::flex());
        let mut x = b.flatten("flatten", b.input());
        x = b.linear("fc1", x, 3);
        x = b.fixed("tanh", &[x], Layer::Activation(Activation::Tanh));
        b.linear("fc2", x, 2);
        let recipe = serde_json::json!({ "epochs": 300, "batch": 4, "lr": 0.05, "choose": "last" });
        let (data, mut silent) = (xor(), Silent);
        let recipe: Recipe = serde_json::from_value(recipe).unwrap();
        fit(b.finish().unwrap(), &recipe, Extras::default(), &mut context(&data, &mut silent)).unwrap()
    }

    fn right(net: &Net) -> f64 {
        evaluate(net, &xor().test, &Device::flex(), &mut Silent).unwrap().accuracy
    }

    #[test]
    fn half_the_output_weights_of_xor_can_go_but_not_the_smallest() {
        let (mut solved, mut magnitude_right) = (0, 0);
        for net in (0..8).map(trained).filter(|net| right(net) == 1.0) {
            solved += 1;
            let fc2 = net.index("fc2").unwrap();
            let settings = serde_json::json!({ "keep": { "fc2": 0.5 }, "blocks": "layer" });
            let method: OptimalBrainSurgeon = serde_json::from_value(settings).unwrap();
            let (data, mut silent) = (xor(), Silent);
            let pruned = method.run(net.deep_clone(), &mut context(&data, &mut silent)).unwrap();
            assert_eq!(get(&pruned, "fc2", "weight").iter().filter(|w| **w != 0.0).count(), 3);
            assert_eq!(right(&pruned), 1.0);
            let smallest_gone = magnitude::prune(net, |weight| (weight.node() == Some(fc2)).then_some(0.5));
            magnitude_right += usize::from(right(&smallest_gone) == 1.0);
        }
        assert!(solved >= 6 && magnitude_right * 3 < solved, "magnitude: {magnitude_right} of {solved}");
    }

    #[test]
    fn what_a_layer_keeps_is_its_share_whatever_the_blocks() {
        for blocks in [serde_json::json!("layer"), serde_json::json!("row"), serde_json::json!({ "size": 5 })] {
            for rounds in [1, 2] {
                let settings = serde_json::json!({ "keep": { "fc1": 0.3, "conv2": 0.5 }, "blocks": blocks, "calibration-images": 4, "rounds": rounds });
                let net = run::<OptimalBrainSurgeon>(small(), settings).unwrap();
                let left = |layer: &str| get(&net, layer, "weight").iter().filter(|w| **w != 0.0).count();
                assert_eq!((left("fc1"), left("conv2"), left("fc2")), (18, 24, 15));
            }
        }
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<OptimalBrainSurgeon>(small(), serde_json::json!({ "keep": { "fc1": 0.0 } }));
        assert_eq!(none, "node 'fc1': keep = 0 would remove every weight; keep a share above 0");
        let arch = briquette_core::zoo::Arch::named("lenet300").unwrap();
        let lenet = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let large = refusal::<OptimalBrainSurgeon>(lenet, serde_json::json!({ "keep": 0.5 }));
        let facts = "node 'fc1': the inverses of its 300 blocks take 1407 MiB, `memory-mib` allows 512; ";
        assert_eq!(large, format!("{facts}raise it, or set `blocks = {{ size = 285 }}` or less"));
        let damping = refusal::<OptimalBrainSurgeon>(small(), serde_json::json!({ "keep": 0.5, "damping": 0.0 }));
        assert_eq!(damping, "optimal-brain-surgeon: damping must be positive, is 0");
        let broken = set(small(), "fc2", "weight", &[f32::NAN; 15]);
        let broken = run::<OptimalBrainSurgeon>(broken, serde_json::json!({ "keep": { "fc1": 0.5 } })).unwrap_err().to_string();
        assert!(broken.contains("not finite"), "{broken}");
    }
}
