//! Residual blocks that a policy network drops image by image.
//!
//! A small residual network, the policy, gives an image `x` a logit `z_k` for each of the `K` residual blocks of the network at hand. With
//! `s_k = 1 / (1 + e^-z_k)` block `k` runs where `s_k >= 1/2`; one that does not hands on its shortcut, without the rectifier behind the sum. What comes
//! out is one network, the policy in it, whose gates, routes and merges have each image pay for its own blocks.
//!
//! First the policy learns alone, all else being frozen in evaluation form. Of each image it draws which blocks run, `u_k` being 1 with the probability
//! `s'_k = 0.8 s_k + 0.2 (1 - s_k)`. A policy `u` earns `R(u) = 1 - (sum_k u_k / K)^2` where the class is found and `penalty` where it is not. With the most
//! probable policy `v`, `v_k = [s_k >= 1/2]`, what is minimized is the mean over the images of `-(R(u) - R(v)) sum_k ln P(u_k; s'_k) - 0.1 sum_k (-s'_k ln s'_k)`,
//! whose first term has the gradient of the expected reward. In epoch `t` of `T`, from 0, only the last `max(t + 1, ceil(K (t + 1) / T))` blocks are drawn
//! and counted, while those before them run. Then `tune` trains everything by the mean cross-entropy of the drawn path and the sum over the batch of
//! the first term, with the other penalty.
//!
//! Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris. "BlockDrop: Dynamic Inference Paths in Residual Networks". CVPR 2018. arXiv:1711.08393.
//! Differs from the paper: the curriculum comes to the first block in the last epoch however few there are; the policy's last layer begins at zero,
//! so that blocks that have not been drawn yet run, and the entropy of these does not count; in `tune` the path of `v` runs in evaluation form, and
//! batch norms of a block see the images that drop it, too. The policy of large images starts at random as well, where the paper's for ImageNet starts from
//! a trained network as far as that fits. Networks without a rectifier behind their sums are taken as well.
//!
//! ```
//! use briquette_core::{cost::Cost, pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::block_drop::BlockDrop;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("resnet20").unwrap();
//! let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
//! let before = Cost::of(&net).unwrap().macs();
//! let settings = r#"{ "width": 0.5, "train": { "epochs": 1, "choose": "last" } }"#;
//! let method: BlockDrop = serde_json::from_str(settings).unwrap();
//! let net = method.plan(net).unwrap();
//! let (cost, paths) = (Cost::of(&net).unwrap(), net.paths().unwrap());
//! let [policy, all] = [false, true].map(|run| cost.macs_along(&paths, |_| run));
//! assert!(all > before && policy < before / 5);
//! assert!(net.index("policy.keep8").is_ok());
//! ```

mod learning;
#[cfg(test)]
mod tests;

use briquette_core::Window;
use briquette_core::builder::{At, Builder};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::layers::AvgPool;
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::zoo::{Arch, Wanted, cifar_features, imagenet_features};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use serde::Deserialize;

pub use self::learning::{ALPHA, entropy, policy_loss, reward};
use self::learning::{Learning, Stage};
use crate::balance::{EVEN, last_epoch, tell};
use crate::residual::{blocks, members};
use crate::wiring::{Control, Part, Parted, beside, images, part, ungated};

/// Has a policy network drop residual blocks image by image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlockDrop {
    /// Factor on the channels of the policy network: a residual network of three stages of one block, for images of more than 64 pixels a side of four
    /// stages behind a pooling that halves the image.
    #[serde(default = "one")]
    width: f64,
    /// What a policy earns whose class is not found: in `train`, and in `tune`.
    #[serde(default = "penalties")]
    penalty: [f64; 2],
    /// Training of the policy alone.
    train: Recipe,
    /// Training of everything afterwards.
    #[serde(default)]
    tune: Option<Recipe>,
}

fn one() -> f64 {
    1.0
}

fn penalties() -> [f64; 2] {
    [-1.0, -10.0]
}

impl Method for BlockDrop {
    const NAME: &'static str = "block-drop";
    const FAMILY: &'static str = "dynamic networks";
    const PAPER: &'static str = "Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris, CVPR 2018, arXiv:1711.08393";
    const EXAMPLE: &'static str =
        "width = 0.25\ntrain = { epochs = 10, choose = \"last\" }\ntune = { epochs = 10, lr = 1e-4, choose = \"last\" }";
}

impl Pass for BlockDrop {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let Parted { mut net, logits, gates, reached } = self.parted(net, cx.seed)?;
        net.finite()?;
        let stages = [(Some(&self.train), Stage::Alone { epochs: self.train.epochs }), (self.tune.as_ref(), Stage::Joint)];
        for ((recipe, stage), penalty) in stages.into_iter().zip(self.penalty) {
            let Some(recipe) = recipe else { continue };
            let learning = Learning { logits: logits.clone(), gates: gates.clone(), stage, penalty };
            let mut objective = learning.clone();
            let extras = Extras { objectives: vec![&mut objective], forward: Some(&learning), ..Extras::default() };
            net = fit(net, recipe, extras, cx)?;
        }
        if let Some(shares) = tell(Self::NAME, &net, &gates, cx)? {
            let run: Vec<f64> = reached.iter().map(|step| shares[step]).collect();
            let each: Vec<String> = run.iter().map(|share| format!("{:.0}", 100.0 * share)).collect();
            cx.note(format!(
                "{:.2} of {} blocks run on the mean; in percent of the images: {}",
                run.iter().sum::<f64>(),
                run.len(),
                each.join(", ")
            ));
        }
        Ok(net)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        Ok(self.parted(net, 0)?.net)
    }
}

impl BlockDrop {
    /// The network with its policy, which runs all blocks.
    fn parted(&self, net: Net, seed: u64) -> Result<Parted> {
        [Some(&self.train), self.tune.as_ref()].into_iter().flatten().try_for_each(last_epoch)?;
        let refuse = |detail: String| Err(Error::Invalid(format!("{}: {detail}", Self::NAME)));
        if !(self.width > 0.0 && self.width <= 16.0) {
            return refuse(format!("`width` is {}; it lies in (0, 16]", self.width));
        }
        if let Some(bad) = self.penalty.iter().find(|penalty| !(penalty.is_finite() && **penalty <= 0.0)) {
            return refuse(format!(
                "a `penalty` of {bad}; it is a reward below those of classes that are found, and not positive"
            ));
        }
        if !self.train.distill.is_empty() {
            return refuse("in `train` the policy learns from its rewards alone; put `distill` into `tune`".into());
        }
        ungated(&net, "drop blocks of a network in which nothing does")?;
        let blocks = blocks(&net);
        if blocks.is_empty() {
            return refuse("the network has no residual blocks, of which any could be dropped".into());
        }
        let dropped = blocks.iter().map(|block| {
            let end = &net.nodes[block.branch.end].name;
            let (sum, shortcut) = block.detour().ok_or_else(|| {
                Error::node(end, "belongs to a block that puts channels behind its sum, which images that drop it would lack")
            })?;
            Ok((members(&net, block.branch.end, sum, shortcut), shortcut))
        });
        let dropped: Vec<(Vec<usize>, usize)> = dropped.collect::<Result<_>>()?;
        let mut owned = vec![false; net.nodes.len()];
        for node in dropped.iter().flat_map(|(nodes, _)| nodes) {
            if std::mem::replace(&mut owned[*node], true) {
                let detail = "lies in a residual block within another one; blocks are dropped that stand one behind another";
                return Err(Error::node(&net.nodes[*node].name, detail));
            }
        }
        // The policy decides before the first block begins, where the images are normalized within one as well.
        let before = |image: &usize| dropped.iter().all(|(nodes, _)| image < &nodes[0]);
        let behind = Some(images(&net)).filter(before).unwrap_or(0);
        let (shapes, device) = (net.shapes()?, net.device());
        let policy = policy(&shapes[behind], blocks.len(), self.width, seed, &device)?;
        let first = policy.len() + 1 - blocks.len();
        let parts = dropped.into_iter().enumerate().map(|(index, (nodes, instead))| Part {
            name: format!("policy.block{index}"),
            logit: first + index,
            nodes,
            instead,
            detour: Vec::new(),
        });
        part(net, Control { behind, nodes: policy }, parts.collect(), EVEN)
    }
}

/// A residual network with one logit for each block, its last nodes, of which all are zero.
fn policy(image: &[usize], blocks: usize, width: f64, seed: u64, device: &Device) -> Result<Vec<Node>> {
    let wanted = Wanted { width, ..Arch::named("resnet20")?.wanted() };
    let large = image[1].max(image[2]) > 64;
    let build = |b: &mut Builder, x: At| {
        let x = if large {
            let halved = b.fixed("halved", &[x], AvgPool { window: Window::square(2), count_padding: false });
            imagenet_features(b, halved, &wanted, [1; 4])
        } else {
            cifar_features(b, x, &wanted, 1)
        };
        let features = b.shape(x)[0];
        (0..blocks).fold(x, |_, block| {
            let zeros = |shape| Param::from_tensor(Tensor::zeros(shape, device));
            let bias = Param::from_tensor(Tensor::zeros([1], device));
            b.push(&format!("keep{block}"), &[x], Op::Linear(Linear { weight: zeros([features, 1]), bias: Some(bias) }))
        })
    };
    let nodes = beside(image, seed, device, build)?;
    Ok(nodes.into_iter().map(|node| Node { name: format!("policy.{}", node.name), ..node }).collect())
}
