//! Separated stochastic depth: of residual blocks that add channels, old and new ones are left out at random, each for themselves.
//!
//! Block `l` of `L` reads `x` of `c` channels and computes `[b_l f_l(x) + s_l(x), b'_l g_l(x)]`: `c` channels of its shortcut `s_l`, to which its branch `f_l`
//! is added, and behind them the new ones of `g_l`. Each step draws `b_l` and `b'_l` anew, once for the whole batch and independently of each other,
//! 1 with the probability `p_l = 1 - (l / L) (1 - p_L)`. Where one is 0 its layers are not computed, and where both are, neither is what both read; new
//! channels are zeros then. The network that is validated and handed on computes `[p_l f_l(x) + s_l(x), p_l g_l(x)]`, with `p_l` in the parameters of the
//! last batch norms. Blocks that add no channels have `b_l` alone.
//!
//! Yamada, Iwamura, Kise. "Deep Pyramidal Residual Networks with Separated Stochastic Depth". 2016. arXiv:1612.01230.
//! Differs from the authors' code: that computes every branch, and multiplies with 0; weights of what is left out have neither momentum nor decay in
//! that step.
//!
//! ```
//! use briquette_core::{pass::Pass, zoo::{Arch, ZOO}};
//! use briquette_dynamic_nets::pyramid_sep_drop::PyramidSepDrop;
//! use burn::tensor::Device;
//!
//! let method: PyramidSepDrop = serde_json::from_str(r#"{ "survival": 0.5, "train": { "epochs": 1 } }"#).unwrap();
//! let plan = |name: &str| {
//!     let arch = Arch::within(ZOO.iter().chain(briquette_dynamic_nets::ZOO), name).unwrap();
//!     method.plan(arch.build(&arch.wanted(), &Device::flex()).unwrap())
//! };
//! assert!(plan("pyramidnet-20-48").is_ok() && plan("resnet56").is_err());
//! ```

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::Recipe;
use briquette_core::types::Ratio;
use serde::Deserialize;

use crate::dropping::{Gate, Gates, half, survival};
use crate::residual::blocks;

/// Trains with old and new channels of residual blocks left out at random.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PyramidSepDrop {
    /// `p_L`: how probable it is that each part of the last block is there.
    #[serde(default = "half")]
    survival: Ratio,
    /// The training.
    train: Recipe,
}

impl Method for PyramidSepDrop {
    const NAME: &'static str = "pyramid-sep-drop";
    const FAMILY: &'static str = "dynamic networks";
    const PAPER: &'static str = "Yamada, Iwamura, Kise, 2016, arXiv:1612.01230";
    const EXAMPLE: &'static str = "survival = 0.5\ntrain = { epochs = 10 }";
}

impl Pass for PyramidSepDrop {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        self.gates(&net)?.train(net, &self.train, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.gates(&net)?;
        Ok(net)
    }
}

impl PyramidSepDrop {
    /// One for each part of each block.
    fn gates(&self, net: &Net) -> Result<Gates> {
        let blocks = blocks(net);
        if !blocks.iter().any(|block| block.more.is_some()) {
            let detail = "the network has no residual blocks that put new channels behind their sum, as pyramidnet-20-48 does; stochastic-depth \
                          leaves out whole blocks";
            return Err(Error::Invalid(detail.into()));
        }
        let survival = survival(blocks.len(), self.survival.get());
        let gates = blocks
            .into_iter()
            .zip(survival)
            .flat_map(|(block, survival)| block.parts().map(move |part| Gate { parts: vec![part], survival }));
        Gates::new(net, Self::NAME, &self.train, gates.collect())
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::floats;
    use briquette_core::layers::Concat;
    use briquette_core::objective::Taps;
    use briquette_core::training::{Settle as _, cross_entropy};
    use briquette_core::zoo::Wanted;
    use briquette_handmade::{context, get, images, refusal, set, small};
    use burn::module::Module;
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor, TensorData};
    use serde_json::json;

    use super::*;
    use crate::dropping::around;
    use crate::residual::Part;
    use crate::zoo::PYRAMIDNET_20_48;

    fn method() -> PyramidSepDrop {
        serde_json::from_value(json!({ "survival": 0.7, "train": {} })).unwrap()
    }

    fn parts(net: &Net) -> Vec<Part> {
        method().gates(net).unwrap().gates.iter().flat_map(|gate| gate.parts.iter().copied()).collect()
    }

    /// A block from 2 to 3 channels with linear branches.
    fn linear() -> Net {
        let mut b = Builder::new([2, 2, 2], 1, &Device::flex());
        let x = b.input();
        let [old, new] = [("old", 2), ("new", 1)].map(|(name, filters)| b.conv(name, x, Conv::new(filters, 1).no_bias()));
        let sum = b.add("add", &[old, x]);
        let wide = b.fixed("wide", &[sum, new], Concat);
        b.flatten("flatten", wide);
        let net = set(b.finish().unwrap(), "old", "weight", &[-0.923, 0.566, 1.546, -0.826]);
        set(net, "new", "weight", &[-0.137, 1.601])
    }

    /// `pyramid-sep-drop-block` of the reference values.
    #[test]
    fn old_and_new_channels_are_left_out_each_for_themselves_and_count_at_test_as_often_as_they_were_there() {
        let net = linear();
        let values = [-0.062_f32, -0.804, -0.16, 1.257, 0.48, 1.515, 0.126, 0.618];
        let x = || Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 2, 2, 2]), &Device::flex());
        let [old, new] = <[Part; 2]>::try_from(parts(&net)).unwrap();
        let sum = [0.266906, 0.795582, 0.058996, 0.446577, -0.012332, -0.979374, -0.225436, 2.050854];
        let more = [0.776974, 2.535663, 0.223646, 0.817209];
        let near = |found: Vec<f32>, expected: Vec<f32>| {
            assert!(
                found.len() == 12 && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-5),
                "{found:?} {expected:?}"
            );
        };
        for (shut, expected) in [
            (vec![], [&sum[..], &more].concat()),
            (vec![new], [&sum[..], &[0.0; 4]].concat()),
            (vec![old], [&values[..], &more].concat()),
            (vec![old, new], [&values[..], &[0.0; 4]].concat()),
        ] {
            near(floats(around(&net, &shut, x(), &mut Taps::default()).unwrap().unwrap()), expected);
        }
        let (data, mut silent) = (images(), briquette_core::context::Silent);
        let settled = method().gates(&net).unwrap().settle(net, &mut context(&data, &mut silent)).unwrap();
        let test = [
            0.1682342, 0.3157074, -0.0067028, 0.6897039, 0.1353676, -0.2310618, -0.1200052, 1.6209978, 0.5438818, 1.7749641,
            0.1565522, 0.5720463,
        ];
        near(floats(settled.forward(x())), test.to_vec());
    }

    /// The second block's parts, one after the other and both: gradients reach what was computed alone, and norms of the rest keep their statistics.
    #[test]
    fn what_is_left_out_is_not_computed() {
        let wanted = Wanted { width: 0.25, ..PYRAMIDNET_20_48.wanted() };
        let pixels: Vec<f32> = (0..2 * 3072).map(|i| ((i * i * 7) % 251) as f32 / 250.0).collect();
        for (shut, computed) in [(&[0][..], [true, false, true]), (&[1], [true, true, false]), (&[0, 1], [false; 3])] {
            let net = PYRAMIDNET_20_48.build(&wanted, &Device::flex()).unwrap().train();
            // The first block of a quarter of the width adds a channel, as all others do.
            let parts = parts(&net);
            assert_eq!(parts.len(), 18);
            let shut: Vec<Part> = shut.iter().map(|part| parts[2 + part]).collect();
            let images = Tensor::<4>::from_data(TensorData::new(pixels.clone(), [2, 3, 32, 32]), &Device::flex().autodiff());
            let logits = around(&net, &shut, images, &mut Taps::default()).unwrap().unwrap();
            let grads = GradientsParams::from_grads(cross_entropy(logits, &[1, 2], 0.0).backward(), &net);
            let reached = |name: &str| match &net.nodes[net.index(name).unwrap()].op {
                briquette_core::net::Op::Conv2d(conv) => grads.get::<4>(conv.weight.id).is_some(),
                _ => panic!("{name} is no convolution"),
            };
            let names = ["layer1.1.conv1", "layer1.1.conv2.old", "layer1.1.conv2.new"];
            assert_eq!(names.map(reached), computed);
            assert!(reached("layer1.0.conv2.new") && reached("layer1.2.conv2.old"));
            let after = net.valid();
            let seen = |name: &str| get(&after, &format!("{name}.norm"), "mean").iter().any(|mean| *mean != 0.0);
            assert_eq!(names.map(seen), computed);
        }
    }

    #[test]
    fn networks_without_such_blocks_are_refused() {
        let refused = refusal::<PyramidSepDrop>(small(), json!({ "train": {} }));
        assert!(refused.starts_with("the network has no residual blocks that put new channels behind their sum"), "{refused}");
        let mut b = Builder::new([2, 1, 1], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let [old, new] = [("old", 2), ("new", 1)].map(|(name, features)| b.linear(name, x, features));
        let sum = b.add("add", &[old, x]);
        b.fixed("wide", &[sum, new], Concat);
        let vectors = refusal::<PyramidSepDrop>(b.finish().unwrap(), json!({ "train": {} }));
        assert_eq!(vectors, "node 'wide': puts vectors behind a sum, and zeros stand in for channels of maps alone");
        let idle = refusal::<PyramidSepDrop>(linear(), json!({ "train": { "epochs": 0 } }));
        assert!(idle.starts_with("pyramid-sep-drop: `train` needs an epoch"), "{idle}");
    }
}
