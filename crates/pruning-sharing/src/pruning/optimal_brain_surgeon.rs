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

mod blocks;

use std::collections::BTreeMap;

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

use blocks::{Block, Inverse, delete};

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
mod tests;
