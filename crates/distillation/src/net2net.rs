//! Larger networks that begin where a trained one is.
//!
//! *Wider*: of `n` channels become `t`, the `n` that there were and `t - n` copies of random ones. A copy has the filters, biases and normalization of
//! its channel; a weight that reads a channel which is there `r` times is divided by `r`, so that outputs stay. Channels that go together, as those of a
//! residual sum, are copied together ([`Net::widen`]). *Deeper*: behind a rectifier comes a layer that does nothing, of the identity as its weights and
//! no bias, and another rectifier, which changes nothing either, as `relu(relu(x)) = relu(x)`. What was learned stays; what is new trains from there.
//!
//! ```
//! use briquette_core::{cost::Cost, pass::Pass, zoo::Arch};
//! use briquette_distillation::net2net::Net2Net;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("lenet5").unwrap();
//! let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
//! let method: Net2Net = serde_json::from_str(r#"{ "wider": { "conv2": 2.0 } }"#).unwrap();
//! let wide = method.plan(net).unwrap();
//! let filters = wide.nodes[wide.index("conv2").unwrap()].op.weight_shape().unwrap();
//! assert_eq!(filters, [100, 20, 5, 5]);
//! ```
//!
//! Chen, Goodfellow, Shlens. "Net2Net: Accelerating Learning via Knowledge Transfer". ICLR 2016. arXiv:1511.05641.
//! Differs from the paper: copies stand behind their channel, not behind all; a new layer has no batch norm, whose statistics would have to be measured
//! first. `noise` parts the copies, as the paper asks for: copies that nothing parts, dropout say, learn alike.

use briquette_core::coding::Coding;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::streams::{standard_normal, stream};
use briquette_core::surgery::ChannelGroup;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::PerLayer;
use briquette_core::{Layer, layers};
use briquette_runtime::{Activation, Padding};
use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Makes a network wider, deeper, or both, without a change of its outputs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Net2Net {
    /// Factors on the numbers of channels, by the layers that make them, of at least 1. Of layers whose channels go together one is enough.
    wider: Option<PerLayer<f64>>,
    /// Rectifiers behind which a layer comes.
    #[serde(default)]
    deeper: Vec<String>,
    /// Deviation of what is added to the weights of a copied channel, as a share of the deviation of its layer's weights.
    #[serde(default)]
    noise: f64,
    /// Training afterwards; the paper's begins at a tenth of the rate that the smaller network began with.
    tune: Option<Recipe>,
}

impl Method for Net2Net {
    const NAME: &'static str = "net2net";
    const FAMILY: &'static str = "knowledge distillation";
    const PAPER: &'static str = "Chen, Goodfellow, Shlens, ICLR 2016, arXiv:1511.05641";
    const EXAMPLE: &'static str = "deeper = [\"relu1\"]\ntune = { epochs = 4, lr = 1e-4 }";
}

impl Pass for Net2Net {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        tune(self.grown(net, cx.seed)?, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.tune.iter().try_for_each(Recipe::check)?;
        self.grown(net, 0)
    }
}

impl Net2Net {
    fn grown(&self, net: Net, seed: u64) -> Result<Net> {
        if !(self.noise.is_finite() && self.noise >= 0.0) {
            return Err(Error::Invalid(format!("net2net: `noise` is at least 0, not {}", self.noise)));
        }
        let mut net = net;
        if let Some(wider) = &self.wider {
            net = self.widened(&net, wider, seed)?;
        }
        for name in &self.deeper {
            net = deepened(net, name)?;
        }
        Ok(net)
    }

    fn widened(&self, net: &Net, wider: &PerLayer<f64>, seed: u64) -> Result<Net> {
        let all = (0..net.nodes.len()).collect();
        let factors: BTreeMap<usize, f64> = wider.resolve_within(net, &all)?.into_iter().collect();
        if let Some((node, factor)) = factors.iter().find(|(_, factor)| !(1.0..=64.0).contains(*factor)) {
            return Err(Error::node(&net.nodes[*node].name, format!("a factor lies in 1..=64, not {factor}")));
        }
        let groups = net.channel_groups()?;
        let mut rng = ChaCha8Rng::seed_from_u64(stream(seed, "copies"));
        let mut copies: Vec<(&ChannelGroup, Vec<usize>)> = Vec::new();
        for group in &groups {
            let named: Vec<f64> = group.producers().filter_map(|node| factors.get(&node).copied()).collect();
            let Some(first) = named.first() else { continue };
            if let Some(other) = named.iter().find(|factor| *factor != first) {
                let detail = format!("its channels go together with others, and the factors are {first} and {other}; name one");
                return Err(Error::node(&group.name, detail));
            }
            // One factor is for all that can be copied; a layer that is named is refused below.
            if group.frozen.is_some() && matches!(wider, PerLayer::All(_)) {
                continue;
            }
            let wanted = (group.len() as f64 * first).round() as usize;
            let mut times = vec![1; group.len()];
            (group.len()..wanted).for_each(|_| times[rng.random_range(0..group.len())] += 1);
            copies.push((group, times));
        }
        let makers: Vec<(usize, Vec<usize>)> = copies.iter().flat_map(|(group, times)| of_makers(group, times)).collect();
        let mut net = net.deep_clone().widen(&copies)?;
        if self.noise > 0.0 {
            let device = net.device();
            for (node, times) in makers {
                let mut parameters = net.nodes[node].parameters();
                for weight in parameters.iter_mut().filter(|parameter| parameter.name == "weight") {
                    part(&mut weight.base, &times, self.noise, &mut rng);
                }
                net.nodes[node] = net.nodes[node].clone().with(parameters, &device)?;
            }
        }
        Ok(net)
    }
}

/// For each layer that makes channels of the group, how often each of its own is there.
fn of_makers(group: &ChannelGroup, times: &[usize]) -> Vec<(usize, Vec<usize>)> {
    let mut makers: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
    for (unit, times) in times.iter().enumerate() {
        for (node, channel) in group.filters(unit) {
            makers.entry(*node).or_default().insert(*channel, *times);
        }
    }
    makers.into_iter().map(|(node, channels)| (node, channels.into_values().collect())).collect()
}

/// Adds noise to the filters `[filters, ...]` of the copies: to all but the first of each channel.
fn part(filters: &mut [f32], times: &[usize], noise: f64, rng: &mut ChaCha8Rng) {
    let count = filters.len().max(1) as f64;
    let mean = filters.iter().map(|w| f64::from(*w)).sum::<f64>() / count;
    let deviation = (filters.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum::<f64>() / count).sqrt();
    let each = filters.len() / times.iter().sum::<usize>().max(1);
    let copies = times.iter().flat_map(|times| (0..*times).map(|copy| copy > 0));
    for (filter, copy) in filters.chunks_mut(each.max(1)).zip(copies) {
        if copy {
            filter.iter_mut().for_each(|w| *w += (noise * deviation * standard_normal(rng)) as f32);
        }
    }
}

/// The network with a layer of the identity, and a rectifier, behind the rectifier of this name.
fn deepened(net: Net, name: &str) -> Result<Net> {
    let index = net.index(name)?;
    if !rectifies(&net.nodes[index]) {
        return Err(Error::node(
            name,
            "is no rectifier, and a layer can come behind those alone without a change of the outputs",
        ));
    }
    let (shape, device) = (net.shapes()?[index].clone(), net.device());
    let (deeper, relu) = (format!("{name}.deeper"), format!("{name}.deeper.relu"));
    let chain = vec![
        (name.to_string(), net.nodes[index].op.clone()),
        (deeper.clone(), identity(&deeper, &shape, &device)?),
        (relu, net.nodes[index].op.clone()),
    ];
    net.rewrite(index, chain)
}

/// Whether doing it twice is doing it once, and its outputs are what a convolution may hand on.
fn rectifies(node: &Node) -> bool {
    matches!(node.op.layer(), Layer::Activation(Activation::Relu | Activation::Relu6))
}

/// A layer that hands on what it reads: a convolution of 3 by 3 pixels for maps `[channels, height, width]`, a fully connected layer for vectors.
fn identity(name: &str, shape: &[usize], device: &Device) -> Result<Op> {
    let channels = shape[0];
    let (taps, layer): (usize, Layer) = match shape.len() {
        3 => {
            let layer = layers::Conv2d { stride: [1; 2], padding: Padding::all(1), dilation: [1; 2], groups: 1 };
            (9, layer.into())
        }
        _ => (1, layers::Linear.into()),
    };
    let mut base = vec![0.0; channels * channels * taps];
    (0..channels).for_each(|channel| base[(channel * channels + channel) * taps + taps / 2] = 1.0);
    let kernel = if taps == 9 { vec![channels, channels, 3, 3] } else { vec![channels, channels] };
    let weight = Stored { name: "weight", shape: kernel, base, coding: Coding::default() };
    let bias = Stored { name: "bias", shape: vec![channels], base: vec![0.0; channels], coding: Coding::default() };
    Op::built(name, &layer, vec![weight, bias], device)
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::training::Recipe;
    use briquette_core::values::floats;
    use briquette_core::zoo::Arch;
    use briquette_handmade::{outputs, refusal, set, small};
    use burn::tensor::{Tensor, TensorData};
    use serde_json::json;

    use super::*;

    /// The network that the golden `net2net-wider` has, whose images are four pixels in a row.
    fn golden() -> Net {
        let mut b = Builder::new([1, 1, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let x = b.linear("fc1", x, 3);
        let x = b.relu("relu", x);
        b.linear("fc2", x, 2);
        let net = b.finish().unwrap();
        let first = [-1.423, -1.571, -0.226, 0.71, 0.2, 1.932, -1.316, -0.923, -1.072, -0.475, -0.162, 0.21];
        let net = set(net, "fc1", "weight", &first);
        let net = set(net, "fc1", "bias", &[-1.259, 0.145, -1.306]);
        let net = set(net, "fc2", "weight", &[-1.723, 1.629, -0.513, 1.26, 0.438, -0.198]);
        set(net, "fc2", "bias", &[-0.516, -1.891])
    }

    #[test]
    fn copies_and_shares_are_golden() {
        let net = golden();
        let groups = net.channel_groups().unwrap();
        let group = groups.iter().find(|group| group.name == "fc1").unwrap();
        let wide = net.deep_clone().widen(&[(group, vec![2, 3, 1])]).unwrap();
        let values = |layer: &str| wide.nodes[wide.index(layer).unwrap()].weight().unwrap().values();
        // The golden's copies stand behind all: units 0, 1, 2, 1, 1, 0.
        assert_eq!(values("fc1")[4..8], [-1.423, -1.571, -0.226, 0.71]);
        let near = |found: &[f32], wanted: &[f32]| found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6);
        let shares = [-0.8615, -0.8615, 0.543, 0.543, 0.543, -0.513, 0.63, 0.63, 0.146, 0.146, 0.146, -0.198];
        assert!(near(&values("fc2"), &shares), "{:?}", values("fc2"));
    }

    /// Whether two networks give the same for images of a fixed pattern, to 1e-5 of the largest output.
    fn alike(a: &Net, b: &Net) -> bool {
        let [c, h, w] = a.input_shape().try_into().unwrap();
        let pattern: Vec<f32> = (0..2 * c * h * w).map(|at| (at * 37 % 101) as f32 / 101.0).collect();
        let images = Tensor::<4>::from_data(TensorData::new(pattern, [2, c, h, w]), &Device::flex());
        let [a, b] = [a, b].map(|net| floats(net.forward(images.clone())));
        let largest = a.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
        a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * largest)
    }

    #[test]
    fn networks_of_the_zoo_give_the_same_when_wider_and_deeper() {
        for (name, width) in [("lenet5", 0.3), ("resnet20", 0.5), ("lenet5-norm", 0.3), ("all-cnn-c", 0.1), ("wrn-16-1", 0.5)] {
            let Ok(arch) = Arch::named(name) else { panic!("{name} is in the zoo") };
            let wanted = briquette_core::zoo::Wanted { width, ..arch.wanted() };
            let net = arch.build(&wanted, &Device::flex()).unwrap();
            let relu = net.nodes.iter().find(|node| rectifies(node)).unwrap().name.clone();
            let settings = json!({ "wider": 1.6, "deeper": [relu] });
            let method: Net2Net = serde_json::from_value(settings).unwrap();
            let grown = method.grown(net.deep_clone(), 3).unwrap();
            let params = |net: &Net| briquette_core::cost::Cost::of(net).unwrap().params();
            assert!(params(&grown) > 2 * params(&net), "{name}");
            assert!(alike(&net, &grown), "{name}");
        }
    }

    #[test]
    fn noise_parts_the_copies_and_what_is_new_trains() {
        let settings = json!({ "wider": { "conv1": 2.0 }, "noise": 0.01, "tune": { "epochs": 1, "batch": 20 } });
        let method: Net2Net = serde_json::from_value(settings).unwrap();
        let (net, still) = (small(), method.grown(small(), 1).unwrap());
        assert!(!alike(&net, &still));
        let near = outputs(&net).iter().zip(outputs(&still)).all(|(a, b)| (a - b).abs() < 0.2 * a.abs().max(1.0));
        assert!(near, "{:?} {:?}", outputs(&net), outputs(&still));
        assert_eq!(method.tune.as_ref().map(|recipe: &Recipe| recipe.epochs), Some(1));
    }

    #[test]
    fn what_would_change_the_outputs_is_refused() {
        let refused = |settings| refusal::<Net2Net>(small(), settings);
        assert!(refused(json!({ "wider": 0.5 })).contains("a factor lies in 1..=64, not 0.5"));
        assert!(refused(json!({ "deeper": ["conv1"] })).contains("is no rectifier"));
        assert!(refused(json!({ "noise": -1.0 })).contains("`noise` is at least 0"));
        let mut b = Builder::new([4, 6, 6], 1, &Device::flex());
        let x = b.conv("conv1", b.input(), Conv::new(4, 3));
        let x = b.conv("conv2", x, Conv::new(4, 3).groups(2));
        b.global_avg_pool("pool", x);
        let grouped = refusal::<Net2Net>(b.finish().unwrap(), json!({ "wider": { "conv1": 2.0 } }));
        assert!(grouped.contains("conv2") && grouped.contains("it is a convolution in groups"), "{grouped}");
    }
}
