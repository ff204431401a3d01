//! Pooling that favours details, by how much it learns.
//!
//! A pool, or the stride 2 of a convolution, becomes `sum_i w_i x_i / sum_i w_i` over windows of 2 by 2, with weights by how far a pixel is from `m`:
//! of `d_i = x_i - m`, and `q_i = d_i^2 + 0.001` over its mean in the window, `w_i = q_i^(e^l / 2) + e^a`. Each channel learns its `a` and `l`,
//! which begin evenly between `-1 / sqrt(C)` and `1 / sqrt(C)` for `C` channels. `m` is the window's mean, or with `filter` what a depthwise
//! convolution of 3 by 3, stride 2 and a bias makes of the maps; it begins as that mean. A convolution computes every pixel then, which takes four
//! times its multiply-accumulates.
//!
//! Saeedan, Weber, Goesele, Roth. "Detail-Preserving Pooling in Deep Networks". CVPR 2018. arXiv:1804.04076.
//! Differs from the paper: it puts a pool behind each stage's first block and takes the strides out of the block, where here the pool stands directly
//! behind the layer that had the stride; the filter begins as the mean. Its variant with stochastic sampling is left out.
//!
//! ```
//! use briquette_core::{pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::detail_preserving_pooling::DetailPreservingPooling;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("lenet5").unwrap();
//! let method: DetailPreservingPooling = serde_json::from_str(r#"{ "filter": true }"#).unwrap();
//! let net = method.plan(arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
//! assert!(net.index("pool1.mean").is_ok() && net.index("pool1").is_ok());
//! ```

use briquette_core::Window;
use briquette_core::builder::{Builder, Conv};
use briquette_core::coding::Coding;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::layers::{AvgPool, DetailPreservingPool};
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::streams::stream;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use burn::nn::conv::Conv2d;
use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::pools;

/// Replaces pools and strides by pools that favour details.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DetailPreservingPooling {
    /// Max and mean pools, and convolutions whose stride is 2, by name; all pools whose step is 2 without it.
    #[serde(default)]
    layers: Layers,
    /// Whether pixels below `m` are details as well; otherwise `d_i = max(x_i - m, 0)`.
    #[serde(default = "yes")]
    symmetric: bool,
    /// Whether a convolution makes `m`, instead of the mean.
    #[serde(default)]
    filter: bool,
    /// Training afterwards.
    tune: Option<Recipe>,
}

fn yes() -> bool {
    true
}

impl Method for DetailPreservingPooling {
    const NAME: &'static str = "detail-preserving-pooling";
    const FAMILY: &'static str = "pooling";
    const PAPER: &'static str = "Saeedan, Weber, Goesele, Roth, CVPR 2018, arXiv:1804.04076";
    const EXAMPLE: &'static str = "filter = true\ntune = { epochs = 10 }";
}

impl Pass for DetailPreservingPooling {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.each(net, cx.seed)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.each(net, 0)
    }
}

impl DetailPreservingPooling {
    fn each(&self, mut net: Net, seed: u64) -> Result<Net> {
        self.tune.iter().try_for_each(Recipe::check)?;
        let device = net.device();
        for name in pools::chosen(&net, &self.layers, |stride| stride == 2)? {
            let (index, shapes) = (net.index(&name)?, net.shapes()?);
            let (node, before) = (&net.nodes[index], &shapes[index]);
            let block = if pools::window(&node.op.layer()).is_some_and(|window| window.stride == [2, 2]) {
                self.block(&name, [node.inputs[0], index], before[0], seed, &device)?
            } else if let (Op::Conv2d(conv), mut whole) = (&node.op, node.clone())
                && conv.stride == [2, 2]
            {
                whole.op = Op::Conv2d(Conv2d { stride: [1, 1], ..conv.clone() });
                let pool = self.block(&format!("{name}.pool"), [index, index + 1], before[0], seed, &device)?;
                std::iter::once(whole).chain(pool).collect()
            } else {
                return Err(Error::node(&name, "is no pool and no convolution whose stride is 2 in both directions"));
            };
            let added = block.len() - 1;
            net = net.replace(index, block)?;
            let last = index + added;
            pools::same_shape(&name, before, &net.shapes()?[last])?;
        }
        Ok(net)
    }

    /// What gives `m`, at the place `at`, and the pool behind it, called `name`, both of what the node `from` gives.
    fn block(&self, name: &str, [from, at]: [usize; 2], channels: usize, seed: u64, device: &Device) -> Result<Vec<Node>> {
        let mean = if self.filter { filter(channels, device)? } else { mean() };
        let most = (channels as f64).sqrt().recip() as f32;
        let drawn = |tensor: &'static str| {
            let mut rng = ChaCha8Rng::seed_from_u64(stream(seed, &format!("{name}.{tensor}")));
            let base = (0..channels).map(|_| rng.random_range(-most..=most)).collect();
            Stored { name: tensor, shape: vec![channels], base, coding: Coding::default() }
        };
        let layer = DetailPreservingPool { symmetric: self.symmetric }.into();
        let pool = Node { op: self::mean(), name: name.into(), inputs: vec![from, at] };
        let pool = pool.replaced(&layer, ["log-alpha", "log-lambda"].map(drawn).to_vec(), device)?;
        Ok(vec![Node { op: mean, name: format!("{name}.mean"), inputs: vec![from] }, pool])
    }
}

fn mean() -> Op {
    Op::fixed(AvgPool { window: Window::square(2), count_padding: false })
}

/// A depthwise convolution that gives the mean of each 2 by 2 pixels.
fn filter(channels: usize, device: &Device) -> Result<Op> {
    let mut b = Builder::new([channels, 2, 2], 0, device);
    let x = b.conv("mean", b.input(), Conv::new(channels, 3).same().stride(2).groups(channels));
    b.global_avg_pool("vector", x);
    let node = b.finish()?.nodes.swap_remove(1);
    let mut parameters = node.parameters();
    for stored in parameters.iter_mut().filter(|stored| stored.name == "weight") {
        // Rows and columns 1 and 2 of 3 are those of the window.
        stored.base.iter_mut().enumerate().for_each(|(at, tap)| *tap = if at % 9 / 3 > 0 && at % 3 > 0 { 0.25 } else { 0.0 });
    }
    Ok(node.with(parameters, device)?.op)
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::cost::Cost;
    use briquette_core::stored::Storage;
    use briquette_core::surgery::Keep;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_handmade::{get, refusal, run, set};
    use briquette_runtime::{Engine, Model};
    use burn::tensor::{Tensor, TensorData};
    use serde_json::json;

    use super::*;

    const X: [f32; 32] = [
        0.543, -0.591, 1.193, 1.606, 0.103, 0.092, 0.543, 2.212, -0.926, -0.544, -0.642, 0.461, 0.28, -0.23, -0.87, -0.458, 0.08,
        -0.311, -1.223, 0.031, -1.155, -1.589, 0.067, 0.28, -0.848, 1.344, -0.095, 0.215, 0.361, 0.019, 0.733, -0.342,
    ];
    #[allow(clippy::approx_constant)] // The last tap is no 1 / pi.
    const FILTER: [f32; 18] = [
        0.225, -0.088, 0.356, 0.183, -0.767, 0.024, -0.567, 0.188, -0.668, 0.296, -0.1, -0.037, 0.099, 0.371, 0.55, 0.661,
        -0.315, 0.318,
    ];

    fn plan(net: Net, settings: serde_json::Value) -> Net {
        serde_json::from_value::<DetailPreservingPooling>(settings).unwrap().plan(net).unwrap()
    }

    /// In Burn and in the engine, from the container.
    fn outputs(net: &Net, x: &[f32]) -> [Vec<f32>; 2] {
        let [c, h, w] = net.input_shape()[..] else { panic!("no image") };
        let images = Tensor::from_data(TensorData::new(x.to_vec(), [x.len() / (c * h * w), c, h, w]), &Device::flex());
        let model = Model::from_bytes(&net.to_model(Storage::default()).unwrap().to_bytes().unwrap()).unwrap();
        let (burn, back) = (net.forward(images.clone()), Net::from_model(&model, &Device::flex()).unwrap());
        assert_eq!(floats(back.forward(images)), floats(burn.clone()));
        [floats(burn), Engine::new(&model, 2).unwrap().run(x, x.len() / (c * h * w)).unwrap()]
    }

    /// The four `detail-preserving-pooling` of the reference values.
    #[test]
    fn pools_compute_what_the_authors_graph_does() {
        let cases = [
            (
                true,
                false,
                [
                    -0.02935276717,
                    1.378967648,
                    -0.3279820335,
                    -0.2217891761,
                    -0.745209865,
                    -0.2835096009,
                    0.2279285896,
                    0.143320637,
                ],
            ),
            (
                true,
                true,
                [
                    0.1731959229,
                    1.459674993,
                    -0.4574232759,
                    -0.4722444501,
                    -0.8400934173,
                    -0.1328745025,
                    0.1894242996,
                    0.1771136765,
                ],
            ),
            (
                false,
                false,
                [
                    0.2445491292,
                    1.73614102,
                    -0.08839339858,
                    -0.00447151455,
                    -0.5804791631,
                    -0.1122159292,
                    0.4198045768,
                    0.2267231495,
                ],
            ),
            (false, true, [0.1956547553, 1.459674993, -0.355, -0.37725, -0.609264282, -0.1328745025, 0.4179991974, 0.1771136765]),
        ];
        for (symmetric, filter, expected) in cases {
            let mut b = Builder::new([2, 4, 4], 1, &Device::flex());
            let x = b.max_pool("pool", b.input(), Window::square(2));
            b.flatten("flatten", x);
            let net = plan(b.finish().unwrap(), json!({ "symmetric": symmetric, "filter": filter }));
            let mut net = set(set(net, "pool", "log-alpha", &[-0.4, 0.3]), "pool", "log-lambda", &[0.2, -0.5]);
            if filter {
                net = set(set(net, "pool.mean", "weight", &FILTER), "pool.mean", "bias", &[0.044, -0.09]);
            }
            for found in outputs(&net, &X) {
                assert!(
                    found.iter().zip(expected).all(|(a, b): (_, f64)| (f64::from(*a) - b).abs() < 2e-5),
                    "{found:?} {expected:?}"
                );
            }
        }
    }

    fn convolutional() -> Net {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4, 3).same());
        let x = b.relu("relu", x);
        let x = b.max_pool("pool", x, Window::square(2));
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    }

    #[test]
    fn a_filter_begins_as_the_mean_and_everything_trains() {
        let images: Vec<f32> = (0..48).map(|i| ((i * i * 31) % 251) as f32 / 255.0).collect();
        let [mean, filter] = [false, true].map(|filter| outputs(&plan(convolutional(), json!({ "filter": filter })), &images));
        for (a, b) in mean.iter().flatten().zip(filter.iter().flatten()) {
            assert!((a - b).abs() < 1e-5, "{mean:?} {filter:?}");
        }
        let [start, trained] =
            [json!({ "filter": true }), json!({ "filter": true, "tune": { "epochs": 1, "batch": 20, "lr": 0.01 } })]
                .map(|settings| run::<DetailPreservingPooling>(convolutional(), settings).unwrap());
        for (node, tensor) in
            [("pool", "log-alpha"), ("pool", "log-lambda"), ("pool.mean", "weight"), ("pool.mean", "bias"), ("conv", "weight")]
        {
            assert!(get(&start, node, tensor) != get(&trained, node, tensor), "{node}.{tensor}");
        }
    }

    #[test]
    fn channels_are_cut_as_masks_say() {
        let images: Vec<f32> = (0..48).map(|i| ((i * i * 31) % 251) as f32 / 255.0).collect();
        for filter in [false, true] {
            let net = plan(convolutional(), json!({ "filter": filter }));
            let groups = net.channel_groups().unwrap();
            let group = groups.iter().find(|group| group.name == "conv").unwrap();
            let keep = || Keep::new(vec![true, false, true, false]);
            let [cut, masked] =
                [net.deep_clone().keep(&[(group, keep())]), net.deep_clone().mask(&[(group, keep())])].map(Result::unwrap);
            assert_eq!(get(&cut, "pool", "log-alpha").len(), 2);
            for (a, b) in outputs(&cut, &images).concat().iter().zip(outputs(&masked, &images).concat()) {
                assert!((a - b).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn strides_become_pools_and_cost_what_they_skipped() {
        let arch = Arch::named("resnet20").unwrap();
        let net = || arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
        let pooled = plan(net(), json!({ "layers": ["layer2.0.conv1", "layer3.0.conv1"] }));
        assert_eq!(pooled.shapes().unwrap().last(), net().shapes().unwrap().last());
        let macs = |net: &Net, name: &str| {
            let cost = Cost::of(net).unwrap();
            cost.layers.iter().find(|layer| layer.name == name).unwrap().macs
        };
        assert_eq!(macs(&pooled, "layer2.0.conv1"), 4 * macs(&net(), "layer2.0.conv1"));
        assert!(pooled.index("layer2.0.conv1.pool").is_ok());
    }

    #[test]
    fn what_does_not_step_by_two_is_refused() {
        let refuse = |layers: &[&str]| refusal::<DetailPreservingPooling>(convolutional(), json!({ "layers": layers }));
        for name in ["conv", "relu"] {
            assert_eq!(
                refuse(&[name]),
                format!("node '{name}': is no pool and no convolution whose stride is 2 in both directions")
            );
        }
        let mut b = Builder::new([1, 5, 5], 1, &Device::flex());
        let x = b.max_pool("pool", b.input(), Window::square(2));
        b.flatten("flatten", x);
        let odd = refusal::<DetailPreservingPooling>(b.finish().unwrap(), json!({}));
        assert!(odd.contains("takes maps of even height and width"), "{odd}");
    }
}
