//! Parts of residual blocks that each step of a training leaves out at random.

use briquette_core::chance;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::layers::PadShortcut;
use briquette_core::net::{Net, Op};
use briquette_core::objective::Taps;
use briquette_core::training::{Extras, Forward, Recipe, Settle, fit};
use briquette_core::types::Ratio;
use burn::tensor::Tensor;

use crate::residual::{Part, Without, scaled, scaling};

/// `p_l = 1 - (l / L) (1 - p_L)` for `l = 1 .. L`.
pub fn survival(blocks: usize, last: f64) -> Vec<f64> {
    (1..=blocks).map(|block| 1.0 - block as f64 / blocks as f64 * (1.0 - last)).collect()
}

/// `p_L` where nothing says otherwise.
pub(crate) fn half() -> Ratio {
    Ratio::try_from(0.5).expect("a share")
}

/// Parts that are there or not together, drawn anew in each step, once for the whole batch.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) parts: Vec<Part>,
    /// How probable it is that they are there.
    pub(crate) survival: f64,
}

/// All gates of a network.
#[derive(Debug)]
pub(crate) struct Gates {
    pub(crate) gates: Vec<Gate>,
    /// The layers that take up each part's share, and that share.
    factors: Vec<(usize, f64)>,
}

impl Gates {
    /// These, for a training by `recipe` of the method of this name.
    ///
    /// # Errors
    /// A training that cannot be, a layer that cannot take up the share of its part, and a part without which the network is none.
    pub(crate) fn new(net: &Net, method: &str, recipe: &Recipe, gates: Vec<Gate>) -> Result<Self> {
        recipe.check()?;
        if recipe.epochs == 0 {
            return Err(Error::Invalid(format!(
                "{method}: `train` needs an epoch, for branches are scaled by how often they were there"
            )));
        }
        let parts = gates.iter().flat_map(|gate| gate.parts.iter().map(|part| (part, gate.survival)));
        let factors = parts.map(|(part, survival)| Ok((scaling(net, part.end, method)?, survival))).collect::<Result<_>>()?;
        let all: Vec<Part> = gates.iter().flat_map(|gate| gate.parts.iter().copied()).collect();
        let (without, pairs) = emptied(net, &all)?;
        without.bypass_all(&pairs)?;
        Ok(Self { gates, factors })
    }

    /// Trains the network with these gates, and hands on one whose parts count as often as they were there.
    pub(crate) fn train(&self, net: Net, recipe: &Recipe, cx: &mut Context<'_>) -> Result<Net> {
        let net = fit(net, recipe, Extras { forward: Some(self), settle: Some(self), ..Extras::default() }, cx)?;
        let expected: f64 = self.factors.iter().map(|(_, survival)| survival).sum();
        cx.note(format!(
            "a step computed {expected:.2} of {} residual branches on the mean, and all of them where a loss looked into one that was left out",
            self.factors.len()
        ));
        self.settle(net, cx)
    }
}

impl Forward for Gates {
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        let shut = self.gates.iter().filter(|gate| chance::uniform() >= gate.survival);
        let shut: Vec<Part> = shut.flat_map(|gate| gate.parts.iter().copied()).collect();
        let around = around(net, &shut, images.clone(), taps).expect("a part is left out where its network was looked through");
        // A loss that looks into a branch needs it: then this step computes them all.
        around.unwrap_or_else(|| net.tapped(images, taps))
    }
}

impl Settle for Gates {
    fn settle(&self, net: Net, _: &mut Context<'_>) -> Result<Net> {
        scaled(net, &self.factors)
    }
}

/// [`Net::tapped`] of the network without these parts, of which nothing is computed; none where `taps` wants any of that.
pub(crate) fn around(net: &Net, shut: &[Part], images: Tensor<4>, taps: &mut Taps) -> Result<Option<Tensor<2>>> {
    let (net, pairs) = emptied(net, shut)?;
    net.tapped_around(images, &pairs, taps)
}

/// The network with zeros in the place of channels that these parts put behind sums, and the other parts' sums with what is read in their place.
fn emptied(net: &Net, shut: &[Part]) -> Result<(Net, Vec<(usize, usize)>)> {
    // Clones share parameters, with their place in the graph of gradients, and running statistics.
    let (mut net, shapes, mut pairs) = (net.clone(), net.shapes()?, Vec::new());
    for part in shut {
        match part.without {
            Without::Past { sum, shortcut } => pairs.push((sum, shortcut)),
            Without::Zeros { concat } => {
                let &[added, _, _] = &shapes[part.end][..] else {
                    let detail = "puts vectors behind a sum, and zeros stand in for channels of maps alone";
                    return Err(Error::node(&net.nodes[concat].name, detail));
                };
                let node = &mut net.nodes[concat];
                node.inputs.retain(|input| *input != part.end);
                node.op = Op::fixed(PadShortcut { stride: 1, before: 0, after: added });
            }
        }
    }
    Ok((net, pairs))
}
