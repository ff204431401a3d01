//! Forgets what was learned: the network's structure stays, its weights are drawn anew.
//!
//! What a cut network reaches when it is trained from scratch says how much of its accuracy comes from the weights that it kept, and how much
//! from its structure.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::passes::Initialize;
//! use briquette_data::Dataset;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let net = b.finish()?;
//! let images = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let before = net.nodes[2].weight().unwrap();
//! let net = Initialize {}.run(net, &mut Context::new(&Device::flex(), 5, &data, &mut Silent))?;
//! let after = net.nodes[2].weight().unwrap();
//! assert!(after.shape == before.shape && after.values() != before.values());
//! # Ok(())
//! # }
//! ```
//!
//! Liu, Sun, Zhou, Huang, Darrell. "Rethinking the Value of Network Pruning". ICLR 2019. arXiv:1810.05270.

use serde::Deserialize;

use crate::builder::he_normal;
use crate::coding::Coding;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::net::{Net, Node, Op};
use crate::pass::{Method, Pass};
use crate::stored::Stored;

/// Draws weights from N(0, 2 / fan-in) (He et al., ICCV 2015) as [`Builder`](crate::builder::Builder) does, from the seed of the pass; biases, means and betas become 0, variances
/// and gammas 1. Masks, codebooks and grids of weights go; structural matrices and quantized activations are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Initialize {}

impl Method for Initialize {
    const NAME: &'static str = "initialize";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Liu, Sun, Zhou, Huang, Darrell, ICLR 2019, arXiv:1810.05270";
    const EXAMPLE: &'static str = "";
}

impl Pass for Initialize {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let anew = |node: Node| {
            drawable(&node)?;
            // Drawn in Burn's layout, as a builder does.
            let parameters = node.stored().into_iter().map(|stored| node.laid_out(initial(stored, cx.seed, &node))).collect();
            node.with(parameters, &cx.device)
        };
        Ok(Net { nodes: net.nodes.into_iter().map(anew).collect::<Result<_>>()? })
    }

    fn plan(&self, net: Net) -> Result<Net> {
        net.nodes.iter().try_for_each(drawable)?;
        Ok(net)
    }

    fn replaces(&self) -> bool {
        true
    }
}

fn drawable(node: &Node) -> Result<()> {
    match node.op {
        Op::Conv2d(_) | Op::Linear(_) | Op::BatchNorm(_) | Op::Fixed(_) => Ok(()),
        Op::Tensors(_) => Err(Error::node(
            &node.name,
            "`initialize` draws convolutions and fully connected layers only; put it before the pass that made this",
        )),
    }
}

fn initial(stored: Stored, seed: u64, node: &Node) -> Stored {
    let count: usize = stored.shape.iter().product();
    let filters = if matches!(node.op, Op::Linear(_)) { stored.shape.last() } else { stored.shape.first() };
    let base = match stored.name {
        "weight" => he_normal(seed, &node.name, count, count / filters.map_or(1, |filters| *filters.max(&1))),
        "gamma" | "var" => vec![1.0; count],
        _ => vec![0.0; count],
    };
    Stored { base, coding: Coding::default(), ..stored }
}

#[cfg(test)]
mod tests {
    use briquette_runtime::StepGradient;
    use burn::module::Param;
    use burn::tensor::{Device, Tensor};

    use super::super::handmade::{coded, context, images};
    use super::*;
    use crate::builder::{Builder, Conv};
    use crate::context::Silent;
    use crate::quantize::Quantize;

    fn net(seed: u64) -> Net {
        let mut b = Builder::new([1, 2, 2], seed, &Device::flex());
        let conv = b.conv("conv", b.input(), Conv::new(5, 3).same());
        let norm = b.batch_norm("norm", conv);
        let flat = b.flatten("flatten", norm);
        b.linear("fc", flat, 3);
        b.finish().unwrap()
    }

    #[test]
    fn a_network_is_as_if_built_from_the_seed_of_the_pass() {
        let data = images();
        let mut changed = net(1);
        for node in &mut changed.nodes {
            let parameters =
                node.parameters().into_iter().map(|s| Stored { base: s.base.iter().map(|v| v + 0.5).collect(), ..s });
            *node = node.clone().with(parameters.collect(), &Device::flex()).unwrap();
        }
        let drawn = Initialize {}.run(changed, &mut context(&data, &mut Silent)).unwrap();
        let values = |net: &Net| net.nodes.iter().flat_map(Node::parameters).map(|s| s.values()).collect::<Vec<_>>();
        // 3 is the seed of the context.
        assert_eq!(values(&drawn), values(&net(3)));
    }

    #[test]
    fn masks_go_and_quantized_activations_are_refused() {
        let data = images();
        let masked = coded(Coding { mask: Some((0..12).map(|i| i % 3 == 0).collect()), ..Coding::default() });
        let drawn = Initialize {}.run(masked, &mut context(&data, &mut Silent)).unwrap();
        assert_eq!(drawn.nodes[2].weight().unwrap().coding, Coding::default());
        let step = Param::from_tensor(Tensor::from_floats([0.1], &Device::flex()));
        let quantize = Quantize::new(step, 16, 0.0, StepGradient::Learned).into();
        let quantized = drawn.interpose(2, "quantize".into(), quantize).unwrap();
        let error = Initialize {}.plan(quantized.deep_clone()).unwrap_err().to_string();
        assert!(error.starts_with("node 'quantize': `initialize` draws convolutions"), "{error}");
        assert_eq!(Initialize {}.run(quantized, &mut context(&data, &mut Silent)).unwrap_err().to_string(), error);
    }
}
