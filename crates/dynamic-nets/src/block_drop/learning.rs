//! How the policy learns what to drop.

use std::collections::BTreeMap;

use briquette_core::chance;
use briquette_core::coding::floats;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::objective::{Objective, Seen, Taps};
use briquette_core::training::{Forward, hits};
use burn::module::Module;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Tensor, TensorData};

use crate::wiring::decided;

/// What keeps drawn probabilities from 0 and 1: a block runs with the probability `alpha s + (1 - alpha) (1 - s)`.
pub const ALPHA: f64 = 0.8;

/// Weight of the entropy.
const BETA: f64 = 0.1;

/// `R(u) = 1 - (sum_k u_k / K)^2` of a policy under which the class is found, else the penalty.
pub fn reward(run: &[bool], found: bool, penalty: f64) -> f64 {
    let share = run.iter().filter(|run| **run).count() as f64 / run.len() as f64;
    if found { 1.0 - share * share } else { penalty }
}

/// `-sum_b A_b sum_k m_k ln P(u_bk; s'_bk)`, for the logits `z` `[batch, blocks]`, with `s' = alpha s + (1 - alpha) (1 - s)` of `s = 1 / (1 + e^-z)`: `drawn`
/// is `u`, `[batch, blocks]`, `advantages` `A`, and `counted` `m`. Its expectation over `u` has minus the gradient of the expected reward that `A` is of, whatever
/// is subtracted from that independently of `u`.
///
/// Williams. "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning". Machine Learning 8, 1992.
pub fn policy_loss(z: Tensor<2>, alpha: f64, drawn: &[bool], advantages: &[f64], counted: &[bool]) -> Tensor<1> {
    let (shape, device) = (z.dims(), z.device());
    let tensor = |values: Vec<f32>| Tensor::<2>::from_data(TensorData::new(values, shape), &device);
    // What was drawn is as probable as s', or as what s' leaves.
    let [sign, rest] = [[-1.0, 1.0], [1.0, 0.0]].map(|of| tensor(drawn.iter().map(|run| of[usize::from(*run)]).collect()));
    let weights = advantages.iter().flat_map(|advantage| counted.iter().map(|m| if *m { *advantage as f32 } else { 0.0 }));
    let weights = tensor(weights.collect());
    let probability = bounded(z, alpha) * sign + rest;
    (probability.clamp_min(1e-7).log() * weights).sum().neg()
}

/// `-sum_b sum_k m_k s'_bk ln s'_bk`, as [`policy_loss`] has them: of each block the half of the entropy that belongs to its running.
pub fn entropy(z: Tensor<2>, alpha: f64, counted: &[bool]) -> Tensor<1> {
    let mask: Vec<f32> = counted.iter().map(|m| f32::from(u8::from(*m))).collect();
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [1, counted.len()]), &z.device());
    let s = bounded(z, alpha);
    (s.clone() * s.clamp_min(1e-7).log() * mask).sum().neg()
}

/// `alpha s + (1 - alpha) (1 - s)`.
fn bounded(z: Tensor<2>, alpha: f64) -> Tensor<2> {
    sigmoid(z).mul_scalar(2.0 * alpha - 1.0).add_scalar(1.0 - alpha)
}

/// What trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The policy, block by block from the last one.
    Alone {
        /// Of the whole training.
        epochs: usize,
    },
    /// Everything.
    Joint,
}

/// A training in one of the stages: which way it goes through the network, and what it minimizes.
#[derive(Debug, Clone)]
pub(super) struct Learning {
    /// Nodes of the logits, block by block.
    pub(super) logits: Vec<usize>,
    /// Nodes of the gates.
    pub(super) gates: Vec<usize>,
    pub(super) stage: Stage,
    pub(super) penalty: f64,
}

impl Learning {
    /// Which blocks are drawn after so many epochs.
    pub(super) fn counted(&self, epoch: f64) -> Vec<bool> {
        let blocks = self.logits.len();
        let last = match self.stage {
            Stage::Joint => blocks,
            Stage::Alone { epochs } => {
                let done = epoch as usize + 1;
                done.max((blocks * done).div_ceil(epochs.max(1))).min(blocks)
            }
        };
        (0..blocks).map(|block| block + last >= blocks).collect()
    }

    /// The logits of the network, frozen in evaluation form, where these blocks run, `[batch, blocks]`.
    fn frozen(&self, net: &Net, images: &Tensor<4>, run: &[bool]) -> Result<Tensor<2>> {
        let of = |block: usize| run.iter().skip(block).step_by(self.gates.len()).copied().collect();
        let decisions = self.gates.iter().enumerate().map(|(block, gate)| (*gate, of(block))).collect();
        net.valid().forward_decided(images.clone().inner(), decisions)
    }
}

/// Whether a block runs, drawn of its logit.
fn draw(z: f32) -> bool {
    let s = 1.0 / (1.0 + f64::from(-z).exp());
    chance::uniform() < ALPHA * s + (1.0 - ALPHA) * (1.0 - s)
}

fn found(logits: Tensor<2>, labels: &[u16]) -> Vec<bool> {
    let logits = floats(logits);
    let rows = logits.chunks(logits.len() / labels.len());
    rows.zip(labels).map(|(row, label)| hits(row, &[*label], 1) == 1).collect()
}

impl Forward for Learning {
    /// Alone: the logits of the path of `v`, without gradients, behind a policy that has them. Jointly: those of the drawn path.
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        if self.stage == Stage::Joint {
            return decided(net, images, (&self.logits, &self.gates), taps, |z| z.iter().map(|z| draw(*z)).collect());
        }
        // Clones share parameters and statistics.
        let end = self.gates.iter().max().map_or(0, |gate| gate + 1);
        let policy = Net { nodes: net.nodes[..end].to_vec() };
        let mut decisions = BTreeMap::new();
        policy.trace(images.clone(), |node, value| {
            if self.gates.contains(&node) {
                decisions.insert(node, floats(value.clone().vector()).into_iter().map(|run| run != 0.0).collect());
            }
            taps.meet(node, &value);
            value
        });
        let logits = net.valid().forward_decided(images.inner(), decisions);
        Tensor::from_inner(logits.expect("the gates of all blocks decide for all images"))
    }
}

impl Objective for Learning {
    fn taps(&self, _: &Net) -> Result<Vec<usize>> {
        let gates: &[usize] = if self.stage == Stage::Joint { &self.gates } else { &[] };
        Ok([&self.logits, gates].concat())
    }

    fn task(&self) -> f64 {
        f64::from(u8::from(self.stage == Stage::Joint))
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        let side_by_side =
            |taps: &[briquette_core::net::Value]| Tensor::cat(taps.iter().map(|value| value.clone().vector()).collect(), 1);
        let (logits, gates) = seen.taps.split_at(self.logits.len());
        let (blocks, counted) = (logits.len(), self.counted(seen.epoch));
        let z = side_by_side(logits);
        let values = floats(z.clone().inner());
        let greedy: Vec<bool> = values.iter().map(|z| *z >= 0.0).collect();
        let here = found(seen.logits.clone().inner(), seen.labels);
        let other = |run: &[bool]| self.frozen(seen.net, seen.images, run).map(|logits| found(logits, seen.labels));
        let (drawn, of_drawn, of_greedy) = match self.stage {
            Stage::Alone { .. } => {
                let drawn: Vec<bool> = values.iter().enumerate().map(|(at, z)| !counted[at % blocks] || draw(*z)).collect();
                let of_drawn = other(&drawn)?;
                (drawn, of_drawn, here)
            }
            Stage::Joint => {
                let drawn = floats(side_by_side(gates).inner()).into_iter().map(|run| run != 0.0).collect();
                (drawn, here, other(&greedy)?)
            }
        };
        let earned = |run: &[bool], found: &[bool]| -> Vec<f64> {
            run.chunks(blocks).zip(found).map(|(run, found)| reward(run, *found, self.penalty)).collect()
        };
        let baseline = earned(&greedy, &of_greedy);
        let advantages: Vec<f64> = earned(&drawn, &of_drawn).iter().zip(baseline).map(|(own, baseline)| own - baseline).collect();
        let loss = policy_loss(z.clone(), ALPHA, &drawn, &advantages, &counted);
        Ok(match self.stage {
            Stage::Joint => loss,
            Stage::Alone { .. } => {
                let images = seen.labels.len() as f64;
                (loss - entropy(z, ALPHA, &counted).mul_scalar(BETA)).div_scalar(images)
            }
        })
    }
}
