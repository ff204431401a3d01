//! Residual blocks that are left out at random while a network trains.
//!
//! Block `l` of `L` computes `H_l = g(b_l f_l(H) + s_l(H))` with its branch `f_l`, shortcut `s_l` and whatever follows the sum, `g`. Each step draws
//! `b_l` of all blocks anew, once for the whole batch, 1 with the probability `p_l = 1 - (l / L) (1 - p_L)`. Where it is 0 the branch is not
//! computed at all: it has no gradient, so its weights stay, and its batch norms do not see the batch. The network that is validated and handed on
//! computes `p_l f_l(H) + s_l(H)`, with `p_l` in the parameters of the branch's last batch norm or layer of weights. On the mean a step computes
//! `L - (1 - p_L) (L + 1) / 2` branches. Channels that a block puts behind its sum are there, or zeros, with its branch.
//!
//! Huang, Sun, Liu, Sedra, Weinberger. "Deep Networks with Stochastic Depth". ECCV 2016. arXiv:1603.09382.
//! Differs from the paper: weights of a branch that is left out have neither momentum nor decay in that step.
//!
//! ```
//! use briquette_core::{pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::stochastic_depth::{StochasticDepth, survival};
//! use burn::tensor::Device;
//!
//! assert_eq!(survival(4, 0.5), [0.875, 0.75, 0.625, 0.5]);
//! let method: StochasticDepth = serde_json::from_str(r#"{ "survival": 0.5, "train": { "epochs": 1 } }"#).unwrap();
//! let plan = |name: &str| {
//!     let arch = Arch::named(name).unwrap();
//!     method.plan(arch.build(&arch.wanted(), &Device::flex()).unwrap())
//! };
//! assert!(plan("resnet56").is_ok() && plan("lenet5").is_err());
//! ```

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::Recipe;
use briquette_core::types::Ratio;
use serde::Deserialize;

pub use crate::dropping::survival;
use crate::dropping::{Gate, Gates, half};
use crate::residual::{Block, blocks};

/// Trains with residual blocks left out at random.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StochasticDepth {
    /// `p_L`: how probable it is that the last block is there.
    #[serde(default = "half")]
    survival: Ratio,
    /// The training.
    train: Recipe,
}

impl Method for StochasticDepth {
    const NAME: &'static str = "stochastic-depth";
    const FAMILY: &'static str = "dynamic networks";
    const PAPER: &'static str = "Huang, Sun, Liu, Sedra, Weinberger, ECCV 2016, arXiv:1603.09382";
    const EXAMPLE: &'static str = "survival = 0.5\ntrain = { epochs = 10 }";
}

impl Pass for StochasticDepth {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        self.gates(&net)?.train(net, &self.train, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.gates(&net)?;
        Ok(net)
    }
}

impl StochasticDepth {
    /// One for each block.
    fn gates(&self, net: &Net) -> Result<Gates> {
        let blocks = blocks(net);
        if blocks.is_empty() {
            return Err(Error::Invalid("the network has no residual blocks, of which any could be left out".into()));
        }
        let survival = survival(blocks.len(), self.survival.get());
        let gate = |(block, survival): (Block, f64)| Gate { parts: block.parts().collect(), survival };
        Gates::new(net, Self::NAME, &self.train, blocks.into_iter().zip(survival).map(gate).collect())
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Builder;
    use briquette_core::coding::floats;
    use briquette_core::objective::Taps;
    use briquette_core::training::{Settle as _, cross_entropy};
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_handmade::{get, refusal, set, small};
    use burn::module::Module;
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor, TensorData};
    use serde_json::json;

    use super::*;
    use crate::dropping::around;
    use crate::residual::Part;

    /// `stochastic-depth-survival` of the reference values.
    #[test]
    fn blocks_survive_as_in_the_authors_table() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-8, "{a} {b}");
        assert_eq!(survival(4, 0.5), [0.875, 0.75, 0.625, 0.5]);
        let of_27 = survival(27, 0.5);
        for (l, p) in [(1, 0.9814814815), (2, 0.962962963), (10, 0.8148148148), (26, 0.5185185185), (27, 0.5)] {
            near(of_27[l - 1], p);
        }
        let of_54 = survival(54, 0.5);
        for (l, p) in [(1, 0.9907407407), (2, 0.9814814815), (27, 0.75), (53, 0.5092592593), (54, 0.5)] {
            near(of_54[l - 1], p);
        }
        for (blocks, expected) in [(4, 2.75), (27, 20.0), (54, 40.25)] {
            near(survival(blocks, 0.5).iter().sum(), expected);
        }
    }

    const BLOCKS: [[f32; 9]; 4] = [
        [-0.34, -0.696, -0.903, -0.25, 0.815, 0.108, -0.131, 0.855, 0.269],
        [-1.257, 0.026, -0.163, -0.548, -0.163, 0.655, -0.808, -0.074, -0.771],
        [-0.531, -0.116, -0.561, -0.037, 1.446, 1.027, 0.486, 0.417, -0.234],
        [0.31, -0.332, -1.034, 0.409, 0.648, 0.671, 0.33, 0.04, -0.366],
    ];

    /// `H_l = relu(f_l(H) + H)` with linear `f_l`.
    fn linear() -> Net {
        let mut b = Builder::new([3, 1, 1], 1, &Device::flex());
        let mut x = b.flatten("flatten", b.input());
        for block in 0..4 {
            let branch = b.linear(&format!("fc{block}"), x, 3);
            x = b.add(&format!("add{block}"), &[branch, x]);
            x = b.relu(&format!("relu{block}"), x);
        }
        BLOCKS
            .iter()
            .enumerate()
            .fold(b.finish().unwrap(), |net, (block, weight)| set(net, &format!("fc{block}"), "weight", weight))
    }

    fn method() -> StochasticDepth {
        serde_json::from_value(json!({ "train": {} })).unwrap()
    }

    /// `stochastic-depth-forward` of the reference values.
    #[test]
    fn a_shut_block_is_its_shortcut_and_at_test_each_counts_as_often_as_it_was_there() {
        let net = linear();
        let x = || {
            let values = vec![-0.633_f32, -0.619, 0.64, 0.263, 0.002, 0.746];
            Tensor::<4>::from_data(TensorData::new(values, [2, 3, 1, 1]), &Device::flex())
        };
        let gates = method().gates(&net).unwrap();
        let open = |open: [bool; 4]| {
            let shut: Vec<Part> = parts(&gates).into_iter().zip(open).filter(|(_, open)| !open).map(|(part, _)| part).collect();
            floats(around(&net, &shut, x(), &mut Taps::default()).unwrap().unwrap())
        };
        let (data, mut silent) = (briquette_handmade::images(), briquette_core::context::Silent);
        let settled = gates.settle(net.deep_clone(), &mut briquette_handmade::context(&data, &mut silent)).unwrap();
        let near = |found: Vec<f32>, expected: [f32; 6]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-5), "{found:?} {expected:?}");
        };
        near(open([true; 4]), [0.0, 1.217_826_5, 0.130_923_39, 0.0, 3.105_907, 0.331_944_8]);
        near(open([true, false, true, true]), [0.0, 0.807_215, 0.192_695_65, 0.0, 2.096_098_2, 0.488_071_6]);
        near(open([false; 4]), [0.0, 0.0, 0.64, 0.263, 0.002, 0.746]);
        near(floats(settled.forward(x())), [0.0, 0.704_353_2, 0.169_204_64, 0.0, 1.608_427_2, 0.380_586_74]);
    }

    fn parts(gates: &Gates) -> Vec<Part> {
        gates.gates.iter().flat_map(|gate| gate.parts.iter().copied()).collect()
    }

    /// The second block's, and its sum.
    fn second(net: &Net) -> (Part, usize) {
        (parts(&method().gates(net).unwrap())[1], net.index("layer1.1.add").unwrap())
    }

    fn resnet() -> Net {
        let arch = Arch::named("resnet20").unwrap();
        arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap()
    }

    /// The gradient reaches what was computed alone, and norms of a shut branch keep their statistics, those of the others do not.
    #[test]
    fn a_shut_branch_is_not_computed() {
        let net = resnet().train();
        let (part, sum) = second(&net);
        let device = Device::flex().autodiff();
        let images: Vec<f32> = (0..2 * 3072).map(|i| ((i * i * 7) % 251) as f32 / 250.0).collect();
        let images = Tensor::<4>::from_data(TensorData::new(images, [2, 3, 32, 32]), &device);
        let wanted = [sum, sum - 1, net.index("layer1.0.relu2").unwrap()];
        let mut taps = Taps::of(vec![wanted[0], wanted[2]]);
        let logits = around(&net, &[part], images, &mut taps).unwrap().unwrap();
        let grads = GradientsParams::from_grads(cross_entropy(logits, &[1, 2], 0.0).backward(), &net);
        let has = |name: &str| match &net.nodes[net.index(name).unwrap()].op {
            briquette_core::net::Op::Conv2d(conv) => grads.get::<4>(conv.weight.id).is_some(),
            _ => panic!("{name} is no convolution"),
        };
        assert!(has("layer1.0.conv1") && has("layer1.2.conv2") && !has("layer1.1.conv1") && !has("layer1.1.conv2"));
        let after = net.valid();
        let mean = |name: &str| get(&after, name, "mean");
        assert!(mean("layer1.1.conv1.norm").iter().all(|mean| *mean == 0.0));
        assert!(mean("layer1.0.conv1.norm").iter().any(|mean| *mean != 0.0));
    }

    #[test]
    fn other_nodes_are_tapped_where_they_were() {
        let net = resnet();
        let (part, sum) = second(&net);
        let (relu, fc) = (net.index("layer1.0.relu2").unwrap(), net.index("fc").unwrap());
        let mut taps = Taps::of(vec![sum, relu, fc]);
        let images = Tensor::<4>::ones([1, 3, 32, 32], &Device::flex());
        let logits = around(&net, &[part], images, &mut taps).unwrap().unwrap();
        let [sum, relu, last] = <[_; 3]>::try_from(taps.values().unwrap()).unwrap();
        assert_eq!(floats(sum.map()), floats(relu.map()));
        assert_eq!(floats(last.vector()), floats(logits));
        // A loss that looks into the branch has nothing computed without it.
        let mut taps = Taps::of(vec![part.end, fc]);
        assert!(around(&net, &[part], Tensor::ones([1, 3, 32, 32], &Device::flex()), &mut taps).unwrap().is_none());
        assert!(taps.values().is_err());
    }

    #[test]
    fn networks_without_blocks_are_refused() {
        let none = refusal::<StochasticDepth>(small(), json!({ "train": {} }));
        assert_eq!(none, "the network has no residual blocks, of which any could be left out");
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let branch = b.linear("branch", x, 16);
        let branch = b.fixed("clip", &[branch], briquette_core::layers::Clip { low: Some(-1.0), high: None });
        let x = b.add("add", &[branch, x]);
        b.linear("fc", x, 3);
        let clipped = refusal::<StochasticDepth>(b.finish().unwrap(), json!({ "train": {} }));
        assert!(clipped.starts_with("node 'clip': ends a residual branch, whose factor it does not keep"), "{clipped}");
    }
}
