//! Concatenated rectified linear units.
//!
//! Filters of trained networks come in pairs of nearly opposite sign, since a rectifier drops one half of what each finds. So both halves
//! are kept: `y = [relu(x), relu(-x)]` along the channels, all positive phases first, of half as many filters. A convolution of `N`
//! filters, its batch norm and its rectifier become `N / 2` filters, their batch norm, and `y` of `N` maps; what reads them stays. With
//! `affine`, `y = relu(s . [x, -x] + t)` with a scale `s`, which starts at 1, and a shift `t`, which starts at 0, of each of the `N` maps,
//! so that the halves may part elsewhere than at zero.
//!
//! Shang, Sohn, Almeida, Lee. "Understanding and Improving Convolutional Neural Networks via Concatenated Rectified Linear Units". ICML
//! 2016. arXiv:1603.05201. `affine` is of Kim, Hong, Roh, Cheon, Park. "PVANET: Deep but Lightweight Neural Networks for Real-time Object
//! Detection". 2016. arXiv:1608.08021.
//! Differs from the papers, which train from scratch: `init = "fit"` starts from the filters that are there. They are paired greedily,
//! always those two of the smallest cosine; of a pair `w_i`, `w_j` the closest `w`, `-w` is `w = (w_i - w_j) / 2`, and biases and
//! normalization are halved alike. Pairs of opposite sign, with opposite shifts, compute what they did; of others it is a start, which
//! wants tuning. What reads the maps has its columns reordered.
//!
//! ```
//! use briquette_compact_filters::crelu::{self, Crelu};
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::{cost::Cost, pass::Pass};
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([3, 8, 8], 1, &Device::flex());
//! let x = b.conv("conv1", b.input(), Conv::new(16, 3).no_bias());
//! let x = b.relu("relu1", x);
//! let x = b.conv("conv2", x, Conv::new(8, 3).no_bias());
//! let x = crelu::layer(&mut b, "relu2", x, false);
//! assert_eq!(b.shape(x), [16, 4, 4]);
//! b.global_avg_pool("pool", x);
//!
//! let method: Crelu = serde_json::from_value(serde_json::json!({ "layers": ["conv1"], "init": "random" })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 8 * 27 + 8 * 16 * 9);
//! ```

use briquette_core::Layer;
use briquette_core::builder::{At, Builder};
use briquette_core::error::Result;
use briquette_core::net::{Net, Node};
use briquette_runtime::layers::{Concat, Negate};
use serde::Deserialize;

use crate::chosen::Init;
use crate::expansion::{Expanding, Expansion, Rectifier, affine, fixed, greedily};

/// Replaces rectifiers by concatenated ones of half as many filters.
pub type Crelu = Expanding<Phases>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Phases {
    /// Whether each phase is scaled and shifted before its rectifier.
    #[serde(default)]
    affine: bool,
}

/// Both phases of every channel of `at`, `[c, h, w]` to `[2 c, h, w]`, rectified under the name `name`; with a scale and a shift before
/// that where `affine`.
pub fn layer(b: &mut Builder, name: &str, at: At, affine: bool) -> At {
    let negative = b.fixed(&format!("{name}.negative"), &[at], Negate);
    let mut phases = b.fixed(&format!("{name}.phases"), &[at, negative], Concat);
    if affine {
        phases = b.affine(&format!("{name}.affine"), phases, true, 0.0);
    }
    b.relu(name, phases)
}

impl Expansion for Phases {
    const NAME: &'static str = "crelu";
    const PAPER: &'static str = "Shang, Sohn, Almeida, Lee, ICML 2016, arXiv:1603.05201";
    const EXAMPLE: &'static str = "tune = { epochs = 10 }";
    const CHANGE: &'static str = "a change of sign";

    fn check(&self, _: Init) -> Result<()> {
        Ok(())
    }

    fn copies(&self) -> usize {
        2
    }

    fn together(&self, filters: &[&[f32]]) -> Vec<Vec<usize>> {
        greedily(filters, 2, |cosine| -cosine)
    }

    fn passes(&self, layer: &Layer) -> bool {
        matches!(
            layer,
            Layer::AvgPool(_)
                | Layer::AdaptiveAvgPool(_)
                | Layer::GlobalAvgPool(_)
                | Layer::Dropout(_)
                | Layer::Pad(_)
                | Layer::Negate(_)
        )
    }

    fn merged(&self, tensor: &str, values: &[f32], _: bool) -> f32 {
        let sign = if ["gamma", "var"].contains(&tensor) { 1.0 } else { -1.0 };
        (values[0] + sign * values[1]) / 2.0
    }

    fn nodes(&self, net: &Net, at: &Rectifier<'_>) -> Result<Vec<Node>> {
        let Rectifier { name, input, first, filters, .. } = *at;
        let mut nodes =
            vec![fixed(format!("{name}.negative"), &[input], Negate), fixed(format!("{name}.phases"), &[input, first], Concat)];
        if self.affine {
            let (scale, shift) = (vec![1.0; 2 * filters], vec![0.0; 2 * filters]);
            nodes.push(affine(net, format!("{name}.affine"), first + 1, Some(scale), shift)?);
        }
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Conv;
    use briquette_core::coding::floats;
    use briquette_core::cost::Cost;
    use briquette_core::pass::Pass;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_handmade::{get, refusal, run, set, small, stirred};
    use burn::tensor::{Device, Tensor};
    use serde_json::json;

    use super::*;
    use crate::chosen::proof::{agree, pruned};

    #[test]
    fn phases_are_rectified_and_stand_behind_each_other() {
        let x = [-2.68, -0.61, -1.46, -0.3, -0.82, -0.35, -0.11, -0.69, 0.9, -1.61, -0.62, -0.04];
        let computed = |affine: bool| {
            let mut b = Builder::new([3, 2, 2], 1, &Device::flex());
            let x = b.input();
            let maps = layer(&mut b, "crelu", x, affine);
            b.flatten("flat", maps);
            b.finish().unwrap()
        };
        let run = |net: &Net| floats(net.forward(Tensor::<1>::from_floats(x, &Device::flex()).reshape([1, 3, 2, 2])));
        let plain = [
            0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 2.68, 0.61, 1.46, 0.3, 0.82, 0.35, 0.11, 0.69, 0.0, 1.61,
            0.62, 0.04,
        ];
        assert_eq!(run(&computed(false)), plain);
        assert_eq!(run(&computed(true)), plain, "it starts as the plain one");
        let net = set(computed(true), "crelu.affine", "scale", &[1.36, -1.46, -1.35, 0.49, 0.03, -1.55]);
        let net = set(net, "crelu.affine", "shift", &[1.15, 0.22, -0.39, -0.39, 0.06, -0.42]);
        let scaled = [
            0.0, 0.3204, 0.0, 0.742, 1.4172, 0.731, 0.3806, 1.2274, 0.0, 1.7835, 0.447, 0.0, 0.9232, 0.0, 0.3254, 0.0, 0.0846,
            0.0705, 0.0633, 0.0807, 0.975, 0.0, 0.0, 0.0,
        ];
        assert!(run(&net).iter().zip(scaled).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    /// [`stirred`] with filters 0 and 3, 1 and 2 of opposite sign, normalized alike.
    fn opposite() -> Net {
        let mirrored =
            |values: &[f32]| [values, &values[4..].iter().chain(&values[..4]).map(|w| -w).collect::<Vec<_>>()].concat();
        let pairs = |values: &[f32; 2], sign: f32| [values[0], values[1], sign * values[1], sign * values[0]];
        let mut net = set(stirred(), "conv1", "weight", &mirrored(&[0.4, -0.3, 0.2, 0.7, -0.1, 0.5, 0.3, -0.6]));
        for (name, values, sign) in
            [("beta", [0.3, -0.2], -1.0), ("mean", [0.1, 0.05], -1.0), ("gamma", [0.8, 1.2], 1.0), ("var", [0.5, 0.3], 1.0)]
        {
            net = set(net, "norm1", name, &pairs(&values, sign));
        }
        net
    }

    #[test]
    fn filters_of_opposite_sign_become_one_with_no_change_of_the_output() {
        for affine in [false, true] {
            let halved = run::<Crelu>(opposite(), json!({ "layers": ["conv1"], "affine": affine })).unwrap();
            assert_eq!(halved.nodes[halved.index("conv1").unwrap()].op.weight_shape().unwrap(), [2, 1, 2, 2]);
            agree(&halved, &opposite());
        }
    }

    #[test]
    fn columns_behind_a_flattening_go_with_their_channels() {
        let mut b = Builder::new([1, 4, 4], 11, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4, 3));
        let x = b.relu("relu", x);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        let [one, other] = [[3.0, 1.0, -2.0, 0.0, 0.5, 2.0, -1.0, -3.0, 1.5], [1.0, -1.0, 2.0, 0.5, 0.0, -2.0, 1.0, 0.5, 3.0]];
        let weight = [one, other, one.map(|w| -w), other.map(|w| -w)].concat();
        let net = set(set(b.finish().unwrap(), "conv", "weight", &weight), "conv", "bias", &[0.3, 0.1, -0.3, -0.1]);
        let halved = run::<Crelu>(net.deep_clone(), json!({})).unwrap();
        assert_eq!(get(&halved, "conv", "weight").len(), 2 * 9);
        agree(&halved, &net);
    }

    #[test]
    fn a_start_from_scratch_is_trained() {
        let tune = json!({ "epochs": 1, "batch": 10, "lr": 0.01 });
        let settings =
            |tune: Option<serde_json::Value>| json!({ "layers": ["conv1"], "init": "random", "affine": true, "tune": tune });
        let (start, tuned) =
            (run::<Crelu>(small(), settings(None)).unwrap(), run::<Crelu>(small(), settings(Some(tune))).unwrap());
        for (layer, tensor) in [("conv1", "weight"), ("norm1", "gamma"), ("relu1.affine", "scale"), ("relu1.affine", "shift")] {
            assert!(get(&start, layer, tensor) != get(&tuned, layer, tensor), "{layer}.{tensor}");
        }
        let squares = |net: Net| get(&net, "conv", "weight").iter().map(|w| w * w).sum::<f32>();
        let mut b = Builder::new([1, 4, 4], 11, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4000, 3));
        let x = b.relu("relu", x);
        let x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        let drawn = squares(run::<Crelu>(b.finish().unwrap(), json!({ "init": "random" })).unwrap());
        assert!((drawn / (2.0 * 2000.0) - 1.0).abs() < 0.05, "{drawn}, expected 2 for each filter");
    }

    #[test]
    fn vgg_16_has_half_the_weights() {
        let arch = Arch::named("vgg16-cifar").unwrap();
        let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let method: Crelu = serde_json::from_value(json!({ "init": "random" })).unwrap();
        let [before, after] = [&net, &method.plan(net.clone()).unwrap()].map(|net| Cost::of(net).unwrap());
        let convolutions =
            |cost: &Cost| cost.layers.iter().filter(|layer| layer.shape.len() == 4).map(|layer| layer.weights).sum::<usize>();
        assert_eq!((convolutions(&before), convolutions(&after)), (14_710_464, 7_355_232));
        assert_eq!((before.weights(), after.weights()), (14_710_464 + 267_264, 7_355_232 + 267_264));
        assert_eq!((before.macs() - 267_264) / 2, after.macs() - 267_264);
    }

    #[test]
    fn of_a_residual_net_what_is_not_rectified_alone_is_left_or_refused_by_name() {
        let arch = Arch::named("resnet20").unwrap();
        let net = || arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
        let plan = |settings: serde_json::Value| serde_json::from_value::<Crelu>(settings).unwrap().plan(net());
        let halved = |net: Net| {
            let at_hand =
                net.own_weights().filter(|(_, node)| net.index(&format!("{}.phases", node.name.replace("conv", "relu"))).is_ok());
            at_hand.map(|(_, node)| node.name.clone()).collect::<Vec<_>>()
        };
        // The stem's maps are read by an addition, too, which a start from scratch does not mind.
        let inner: Vec<String> =
            (1..4).flat_map(|stage| (0..3).map(move |block| format!("layer{stage}.{block}.conv1"))).collect();
        assert_eq!(halved(plan(json!({})).unwrap()), inner);
        assert_eq!(halved(plan(json!({ "init": "random" })).unwrap()), [vec!["conv1".to_string()], inner].concat());
        let refused = |layer: &str| plan(json!({ "layers": [layer] })).unwrap_err().to_string();
        assert_eq!(
            refused("layer1.0.conv2"),
            "node 'layer1.0.conv2': its maps are read by 'layer1.0.add' (add) before they are rectified; leave it out"
        );
        assert!(
            refused("conv1").starts_with(
                "node 'conv1': its channels, whose order `init = \"fit\"` changes, are read by 'layer1.0.add' (add)"
            )
        );
    }

    #[test]
    fn layers_that_cannot_be_rewritten_are_refused() {
        let refuse = |net: Net, layers: &[&str]| refusal::<Crelu>(net, json!({ "layers": layers }));
        assert_eq!(refuse(small(), &["conv2"]), "node 'conv2': has 3 filters, no multiple of 2; leave it out");
        assert_eq!(refuse(small(), &["fc1"]), "node 'fc1': is no convolution in one group; leave it out");
        assert_eq!(
            refuse(set(small(), "conv1", "weight", &[f32::NAN; 16]), &["conv1"]),
            "node 'conv1': holds the weight NaN; train it anew or clip it"
        );
        assert!(
            refuse(pruned(small(), "conv1"), &["conv1"]).starts_with("node 'conv1': is pruned, quantized or shares its weights")
        );
        let behind = refuse(pruned(small(), "conv2"), &["conv1"]);
        assert!(behind.contains("are read by 'conv2', which is pruned, quantized or shares its weights"), "{behind}");
        assert!(run::<Crelu>(pruned(small(), "conv2"), json!({ "layers": ["conv1"], "init": "random" })).is_ok());
    }
}
