//! Multi-bias activations.
//!
//! One filter finds its pattern at several strengths: of its rectified map `x` come `K` maps `relu(x + b_k)`, each with a trained bias of
//! its own for each channel, in the order `k C + c`. A convolution of `N` filters, its batch norm and its rectifier become `N / K` filters,
//! their batch norm, their rectifier and the `K` biases, which give `N` maps again; what reads them stays. Biases decay only where a recipe
//! says that all parameters do.
//!
//! Li, Ouyang, Wang. "Multi-Bias Non-linear Activation in Deep Neural Networks". ICML 2016. arXiv:1604.00676.
//! Differs from the paper: `K` is 2 without a setting, which is what halves the weights, and begins at +0.5 and -0.5, the inner two of the
//! authors' four; these are +1, +0.5, -0.5 and -1, as in the first of their blocks. All biases learn at the recipe's rate, theirs at twice
//! that. They train from scratch; here `init = "fit"` starts from the filters that are there: the `K` of the largest cosine, put together
//! greedily, become their mean, and with it the mean of their normalization. The shift behind it is the largest of theirs, and `b_k` is
//! what each lacks. Filters that differ in their shifts alone compute what they did; of others it is a start, which wants tuning. What
//! reads the maps has its columns reordered.
//!
//! ```
//! use briquette_compact_filters::multi_bias::{self, MultiBias};
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::{cost::Cost, pass::Pass};
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([3, 8, 8], 1, &Device::flex());
//! let x = b.conv("conv1", b.input(), Conv::new(16, 3).no_bias());
//! let x = b.relu("relu1", x);
//! let x = b.conv("conv2", x, Conv::new(8, 3).no_bias());
//! let x = b.relu("first", x);
//! let x = multi_bias::layer(&mut b, "relu2", x, &[1.0, 0.5, -0.5, -1.0]);
//! assert_eq!(b.shape(x), [32, 4, 4]);
//! b.global_avg_pool("pool", x);
//!
//! let method: MultiBias = serde_json::from_value(serde_json::json!({ "layers": ["conv1"], "init": "random" })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 8 * 27 + 8 * 16 * 9);
//! ```

use briquette_core::builder::{At, Builder};
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::{Activation, Layer};
use briquette_runtime::layers::{AvgPool, Concat};
use serde::Deserialize;

use crate::chosen::Init;
use crate::expansion::{Expanding, Expansion, Rectifier, affine, fixed, greedily};

/// Replaces rectifiers by those of several biases, of fewer filters.
pub type MultiBias = Expanding<Biases>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Biases {
    /// Biases of a map, `K`.
    #[serde(default = "two")]
    biases: usize,
    /// Where they begin from scratch.
    starts: Option<Vec<f32>>,
}

fn two() -> usize {
    2
}

/// For each channel of `at`, `[c, h, w]` to `[k c, h, w]`, as many maps as there are `starts`, at which their biases begin, rectified under
/// the name `name`. The maps of `at` are rectified ones.
pub fn layer(b: &mut Builder, name: &str, at: At, starts: &[f32]) -> At {
    let maps = starts.iter().enumerate().map(|(k, start)| b.affine(&format!("{name}.bias{}", k + 1), at, false, *start));
    let maps: Vec<At> = maps.collect();
    let joined = if let [only] = maps[..] { only } else { b.fixed(&format!("{name}.maps"), &maps, Concat) };
    b.relu(name, joined)
}

impl Biases {
    /// Where the biases begin, of a fit where there was no shift.
    fn begin(&self, init: Init) -> Result<Vec<f32>> {
        let invalid = |detail: String| Err(Error::Invalid(format!("multi-bias: {detail}")));
        match (init, &self.starts, self.biases) {
            (_, _, 0 | 1) => invalid(format!("`biases` is {}; a map has at least 2", self.biases)),
            (Init::Fit, Some(_), _) => {
                invalid("`starts` are for `init = \"random\"`; a fit takes the biases that are there".into())
            }
            (Init::Fit, None, count) => Ok(vec![0.0; count]),
            (Init::Random, Some(starts), count) if starts.len() != count => {
                invalid(format!("{} `starts` for {count} `biases`; give each one", starts.len()))
            }
            (Init::Random, Some(starts), _) if starts.iter().any(|start| !start.is_finite()) => {
                invalid("`starts` are finite".into())
            }
            (Init::Random, Some(starts), _) => Ok(starts.clone()),
            (Init::Random, None, 2) => Ok(vec![0.5, -0.5]),
            (Init::Random, None, 4) => Ok(vec![1.0, 0.5, -0.5, -1.0]),
            (Init::Random, None, count) => invalid(format!("no `starts` are known for {count} `biases`; give them")),
        }
    }
}

impl Expansion for Biases {
    const NAME: &'static str = "multi-bias";
    const PAPER: &'static str = "Li, Ouyang, Wang, ICML 2016, arXiv:1604.00676";
    const EXAMPLE: &'static str = "tune = { epochs = 10 }";
    const CHANGE: &'static str = "a shift";

    fn check(&self, init: Init) -> Result<()> {
        self.begin(init).map(drop)
    }

    fn copies(&self) -> usize {
        self.biases
    }

    fn together(&self, filters: &[&[f32]]) -> Vec<Vec<usize>> {
        greedily(filters, self.copies(), |cosine| cosine)
    }

    fn passes(&self, layer: &Layer) -> bool {
        let counts_padding = |pool: &AvgPool| pool.count_padding && !pool.window.padding.is_none();
        matches!(layer, Layer::MaxPool(_) | Layer::AdaptiveAvgPool(_) | Layer::GlobalAvgPool(_) | Layer::Dropout(_))
            || matches!(layer, Layer::AvgPool(pool) if !counts_padding(pool))
    }

    fn merged(&self, _: &str, values: &[f32], shift: bool) -> f32 {
        if shift { most(values) } else { values.iter().sum::<f32>() / values.len() as f32 }
    }

    fn nodes(&self, net: &Net, at: &Rectifier<'_>) -> Result<Vec<Node>> {
        let Rectifier { name, first, .. } = *at;
        let mut nodes = vec![fixed(format!("{name}.first"), &[at.input], Layer::Activation(Activation::Relu))];
        for (k, start) in self.begin(at.init)?.into_iter().enumerate() {
            let biases = match at.shifts {
                Some(shifts) => shifts.iter().map(|shifts| shifts[k] - most(shifts)).collect(),
                None => vec![start; at.filters],
            };
            nodes.push(affine(net, format!("{name}.bias{}", k + 1), first, None, biases)?);
        }
        let maps: Vec<usize> = (first + 1..=first + self.copies()).collect();
        nodes.push(fixed(format!("{name}.maps"), &maps, Concat));
        Ok(nodes)
    }
}

fn most(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Conv;
    use briquette_core::coding::floats;
    use briquette_core::cost::Cost;
    use briquette_core::pass::Pass;
    use briquette_core::zoo::Arch;
    use briquette_handmade::{get, refusal, run, set, small, stirred};
    use burn::module::Module;
    use burn::tensor::{Device, Tensor};
    use serde_json::json;

    use super::*;
    use crate::chosen::proof::{agree, pruned};

    #[test]
    fn each_map_has_its_biases_and_they_their_gradients() {
        let mut b = Builder::new([2, 2, 2], 1, &Device::flex());
        let x = b.input();
        let maps = layer(&mut b, "relu", x, &[0.1; 4]);
        b.flatten("flat", maps);
        let mut net = b.finish().unwrap();
        let biases = [[1.0, 0.8], [0.5, 0.4], [-0.5, -0.4], [-1.0, -0.8]];
        for (k, biases) in biases.iter().enumerate() {
            net = set(net, &format!("relu.bias{}", k + 1), "shift", biases);
        }
        let net = net.train();
        let x = [0.3, 0.3, -1.18, -1.66, 1.61, -0.59, 1.74, 0.12];
        let x = Tensor::<1>::from_floats(x, &Device::flex().autodiff()).require_grad();
        let y = net.forward(x.clone().reshape([1, 2, 2, 2]));
        let expected = [
            1.3, 1.3, 0.0, 0.0, 2.41, 0.21, 2.54, 0.92, 0.8, 0.8, 0.0, 0.0, 2.01, 0.0, 2.14, 0.52, 0.0, 0.0, 0.0, 0.0, 1.21, 0.0,
            1.34, 0.0, 0.0, 0.0, 0.0, 0.0, 0.81, 0.0, 0.94, 0.0,
        ];
        assert!(floats(y.clone().inner()).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
        let gradients = y.sum().backward();
        assert_eq!(floats(x.grad(&gradients).unwrap()), [2.0, 2.0, 0.0, 0.0, 4.0, 1.0, 4.0, 2.0]);
        let of_biases = [1, 2, 3, 4].map(|k| {
            let node = &net.nodes[net.index(&format!("relu.bias{k}")).unwrap()];
            node.gradient("shift", &gradients).unwrap()
        });
        assert_eq!(of_biases, [[2.0, 4.0], [2.0, 3.0], [0.0, 2.0], [0.0, 2.0]]);
    }

    /// [`stirred`] with filters 0 and 2, 1 and 3 that differ in their shifts alone.
    fn alike() -> Net {
        let twice = |values: &[f32]| [values, values].concat();
        let mut net = set(stirred(), "conv1", "weight", &twice(&[0.4, -0.3, 0.2, 0.7, -0.1, 0.5, 0.3, -0.6]));
        for (name, values) in [("mean", [0.1, 0.05]), ("gamma", [0.8, 1.2]), ("var", [0.5, 0.3])] {
            net = set(net, "norm1", name, &twice(&values));
        }
        set(net, "norm1", "beta", &[0.3, -0.2, -0.1, 0.4])
    }

    #[test]
    fn filters_that_differ_in_their_shifts_become_one_with_no_change_of_the_output() {
        let halved = run::<MultiBias>(alike(), json!({ "layers": ["conv1"] })).unwrap();
        assert_eq!(halved.nodes[halved.index("conv1").unwrap()].op.weight_shape().unwrap(), [2, 1, 2, 2]);
        agree(&halved, &alike());
        // Four of one kind, whose shift is a bias.
        let mut b = Builder::new([1, 4, 4], 11, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4, 2));
        let x = b.relu("relu", x);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        let net = set(
            set(b.finish().unwrap(), "conv", "weight", &[[1.0, -2.0, 0.5, 1.0]; 4].concat()),
            "conv",
            "bias",
            &[0.2, 0.5, -0.3, 0.1],
        );
        let fewest = run::<MultiBias>(net.deep_clone(), json!({ "biases": 4 })).unwrap();
        assert_eq!((get(&fewest, "conv", "weight").len(), get(&fewest, "conv", "bias")), (4, vec![0.5]));
        agree(&fewest, &net);
    }

    #[test]
    fn a_start_from_scratch_begins_at_the_starts_and_is_trained() {
        let tune = json!({ "epochs": 1, "batch": 10, "lr": 0.01, "weight-decay": 0.1 });
        let settings = |more: serde_json::Value| {
            let mut settings = json!({ "layers": ["conv1"], "init": "random" });
            more.as_object().unwrap().iter().for_each(|(key, value)| settings[key] = value.clone());
            settings
        };
        let start = run::<MultiBias>(small(), settings(json!({}))).unwrap();
        let shifts = |net: &Net| ["relu1.bias1", "relu1.bias2"].map(|layer| get(net, layer, "shift"));
        assert_eq!(shifts(&start), [[0.5; 2], [-0.5; 2]]);
        let four = run::<MultiBias>(small(), settings(json!({ "biases": 4 }))).unwrap();
        assert_eq!(get(&four, "relu1.bias4", "shift"), [-1.0]);
        let own = run::<MultiBias>(small(), settings(json!({ "starts": [0.25, 0.0] }))).unwrap();
        assert_eq!(shifts(&own), [[0.25; 2], [0.0; 2]]);
        let tuned = run::<MultiBias>(small(), settings(json!({ "tune": tune }))).unwrap();
        assert!(shifts(&tuned) != shifts(&start) && get(&tuned, "conv1", "weight") != get(&start, "conv1", "weight"));
    }

    #[test]
    fn vgg_16_has_half_the_weights() {
        let arch = Arch::named("vgg16-cifar").unwrap();
        let method: MultiBias = serde_json::from_value(json!({ "init": "random" })).unwrap();
        let net = method.plan(arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
        let cost = Cost::of(&net).unwrap();
        assert_eq!(cost.weights(), 14_710_464 / 2 + 267_264);
        // Biases are as many as the maps; those of the convolutions and the norms are half as many as before.
        let maps = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512;
        assert_eq!(cost.params() - cost.weights(), maps + 3 * maps / 2 + 2 * 512 + 512 + 10);
    }

    #[test]
    fn settings_and_layers_that_do_not_fit_are_refused() {
        let refuse = |settings| refusal::<MultiBias>(small(), settings);
        assert_eq!(refuse(json!({ "biases": 1 })), "multi-bias: `biases` is 1; a map has at least 2");
        assert_eq!(
            refuse(json!({ "biases": 3, "init": "random" })),
            "multi-bias: no `starts` are known for 3 `biases`; give them"
        );
        assert_eq!(
            refuse(json!({ "starts": [0.1, 0.2, 0.3], "init": "random" })),
            "multi-bias: 3 `starts` for 2 `biases`; give each one"
        );
        assert!(refuse(json!({ "starts": [0.1, 0.2] })).contains("`starts` are for `init = \"random\"`"));
        assert_eq!(
            refuse(json!({ "layers": ["conv1"], "biases": 3 })),
            "node 'conv1': has 4 filters, no multiple of 3; leave it out"
        );
        let nan = refusal::<MultiBias>(set(small(), "conv1", "weight", &[f32::NAN; 16]), json!({ "layers": ["conv1"] }));
        assert_eq!(nan, "node 'conv1': holds the weight NaN; train it anew or clip it");
        let coded = refusal::<MultiBias>(pruned(small(), "conv1"), json!({ "layers": ["conv1"] }));
        assert!(coded.starts_with("node 'conv1': is pruned, quantized or shares its weights"), "{coded}");
    }
}
