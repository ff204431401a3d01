//! Network slimming.
//!
//! Trains with the penalty `lambda * sum |gamma|` over the scales of the batch norms behind the layers that may lose channels, which
//! drives the scales of dispensable channels to zero, then removes the channels of the smallest `|gamma|`. Without its scale a channel
//! still gives its shift `beta`: what the next layer computes of that goes into its bias or the mean of its batch norm, and where that
//! layer pads zeros, which the shift does not reach, its mean over the layer's outputs (Ye, Lu, Lin, Wang, "Rethinking the
//! Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution Layers", ICLR 2018, arXiv:1802.00124, section 4.2).
//!
//! Liu, Li, Shen, Huang, Yan, Zhang. "Learning Efficient Convolutional Networks through Network Slimming". ICCV 2017. arXiv:1708.06519.
//! Differs from the paper: layers joined by a residual are cut together by the mean of their scales instead of selecting channels in
//! front of each block, every layer keeps a filter, and repeating the procedure is repeating the pass.
//!
//! ```
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::slimming::Slimming;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(6, 2).no_bias());
//! let x = b.batch_norm("norm", x);
//! let x = b.flatten("flatten", x);
//! b.linear("fc", x, 2);
//! let images = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let settings = serde_json::json!({ "ratio": 0.5, "lambda": 0.1, "train": { "epochs": 5, "choose": "last" } });
//! let method: Slimming = serde_json::from_value(settings)?;
//! let cut = method.run(b.finish()?, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
//! assert_eq!(cut.nodes[1].op.weight_shape(), Some(vec![3, 1, 2, 2]));
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op};
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::{Method, Pass};
use briquette_core::surgery::{Border, ChannelGroup, Keep};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::Ratio;
use burn::tensor::Tensor;
use serde::Deserialize;

use briquette_parts::channels::{Channels, FilterScores, norm_after, pairs};

/// Trains the scales of channels towards zero and removes the channels of the smallest, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Slimming {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
    /// Share of the units of all groups together that stays, over one threshold, in place of `ratio` and `budget`: the paper's form.
    global: Option<Ratio>,
    /// Weight of the penalty.
    lambda: f64,
    /// The training with the penalty; `choose = "last"` keeps it from returning an early epoch with large scales.
    train: Recipe,
}

impl Method for Slimming {
    const NAME: &'static str = "slimming";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Liu, Li, Shen, Huang, Yan, Zhang, ICCV 2017, arXiv:1708.06519";
    const EXAMPLE: &'static str = "global = 0.6\nlambda = 1e-4\ntrain = { epochs = 40, choose = \"last\" }";
}

impl Pass for Slimming {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        // What does not fit shall be told before the training, and not after it.
        self.plan(net.deep_clone())?;
        let norms = self.norms(&net)?;
        let mut penalty = Penalty { lambda: self.lambda, norms: norms.values().copied().collect() };
        let net = fit(net, &self.train, Extras { objectives: vec![&mut penalty], ..Extras::default() }, cx)?;
        let scores = FilterScores(norms.iter().map(|(node, norm)| (*node, scales(&net, *norm))).collect());
        let groups = self.channels.groups(&net)?;
        let means: Vec<Vec<f64>> = groups.iter().map(|group| scores.means(group)).collect();
        let keeps = self.channels.keeps_or_ranks(Self::NAME, self.global, &net, &groups, &means)?;
        let net = without_scales(net, &norms, &pairs(&groups, keeps.clone()))?;
        let (net, cuts) = net.absorb(&pairs(&groups, keeps), Border::Mean)?;
        let net = net.keep(&cuts)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        if !(self.lambda.is_finite() && self.lambda >= 0.0) {
            return Err(Error::Invalid(format!("slimming: lambda must be 0 or more, is {}", self.lambda)));
        }
        self.train.check()?;
        self.norms(&net)?;
        self.channels.plan(Self::NAME, self.global, net)
    }

    fn estimate(&self) -> Option<&'static str> {
        self.channels.estimate(self.global)
    }
}

impl Slimming {
    /// The layers whose filters may go, each with the batch norm behind it.
    fn norms(&self, net: &Net) -> Result<BTreeMap<usize, usize>> {
        let missing = "no batch norm follows it, whose scales would tell its filters apart; name it in `except`";
        self.channels.followed(net, norm_after, missing)
    }
}

/// `lambda * sum |gamma|`.
struct Penalty {
    lambda: f64,
    norms: Vec<usize>,
}

impl Objective for Penalty {
    fn term(&mut self, Seen { net, logits, .. }: &Seen<'_>) -> Result<Tensor<1>> {
        let size = |norm: &usize| {
            let Op::BatchNorm(norm) = &net.nodes[*norm].op else { return None };
            Some(norm.gamma.val().abs().sum())
        };
        let zero = Tensor::zeros([1], &logits.device());
        Ok(self.norms.iter().filter_map(size).fold(zero, |sum, size| sum + size).mul_scalar(self.lambda))
    }
}

/// `|gamma|` of a batch norm.
fn scales(net: &Net, norm: usize) -> Vec<f64> {
    let gamma = net.nodes[norm].parameters().into_iter().find(|parameter| parameter.name == "gamma");
    gamma.map_or(Vec::new(), |gamma| gamma.base.iter().map(|v| f64::from(v.abs())).collect())
}

/// The network with the scale 0 for the filters of every unit that does not stay; `norms` are the batch norms by layer.
fn without_scales(mut net: Net, norms: &BTreeMap<usize, usize>, cuts: &[(&ChannelGroup, Keep)]) -> Result<Net> {
    let device = net.device();
    let mut gone: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (group, keep) in cuts {
        for (layer, filter) in (0..group.len()).filter(|unit| !keep.keeps(*unit)).flat_map(|unit| group.filters(unit)) {
            gone.entry(norms[layer]).or_default().push(*filter);
        }
    }
    for (norm, filters) in gone {
        let node = net.nodes.remove(norm);
        let mut parameters = node.parameters();
        for gamma in parameters.iter_mut().filter(|stored| stored.name == "gamma") {
            filters.iter().for_each(|filter| gamma.base[*filter] = 0.0);
        }
        net.nodes.insert(norm, node.with(parameters, &device)?);
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{get, outputs, refusal, run, set, small, term};

    const GAMMA: [f32; 4] = [0.9, -0.2, 0.1, -0.5];

    fn scaled() -> Net {
        set(small(), "norm1", "gamma", &GAMMA)
    }

    fn settings(more: &serde_json::Value) -> serde_json::Value {
        let mut all = serde_json::json!({ "lambda": 0.01, "train": { "epochs": 0 }, "except": ["conv2", "fc1"] });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    }

    #[test]
    fn the_penalty_is_the_sum_of_absolute_scales_and_its_gradient_their_signs() {
        let net = scaled().train();
        let device = Device::flex().autodiff();
        let norm = net.index("norm1").unwrap();
        let mut penalty = Penalty { lambda: 0.1, norms: vec![norm] };
        let term = term(&mut penalty, &net, &device);
        assert!((term.clone().into_scalar::<f32>() - 0.17).abs() < 1e-6);
        let gradient = net.nodes[norm].gradient("gamma", &term.backward()).unwrap();
        assert_eq!(gradient, [0.1, -0.1, 0.1, -0.1]);
    }

    #[test]
    fn the_channels_of_the_smallest_scales_go() {
        for how in &[serde_json::json!({ "ratio": 0.5 }), serde_json::json!({ "global": 0.5 })] {
            let net = run::<Slimming>(scaled(), settings(how)).unwrap();
            assert_eq!(get(&net, "norm1", "gamma"), [0.9, -0.5]);
            assert_eq!(get(&net, "conv1", "weight").len(), 2 * 4);
        }
    }

    #[test]
    fn the_shift_of_a_channel_without_scale_goes_into_what_reads_it() {
        // Channels 0 and 2 have no scale, and shifts that the rectifier lets through or holds back.
        let net = set(scaled(), "norm1", "gamma", &[0.0, -0.2, 0.0, -0.5]);
        let net = set(set(net, "norm1", "beta", &[0.8, 0.1, -0.6, 0.3]), "norm1", "mean", &[0.2, 0.1, -0.3, 0.5]);
        let cut = run::<Slimming>(net.deep_clone(), settings(&serde_json::json!({ "ratio": 0.5 }))).unwrap();
        assert_eq!(get(&cut, "norm1", "gamma"), [-0.2, -0.5]);
        assert!(outputs(&cut).iter().zip(outputs(&net)).all(|(a, b)| (a - b).abs() < 1e-5));
        assert_ne!(get(&cut, "conv2", "bias"), get(&net, "conv2", "bias"));
    }

    #[test]
    fn the_training_shrinks_the_scales() {
        let trained = |lambda: f64| -> f32 {
            let train = serde_json::json!({ "epochs": 40, "batch": 20, "lr": 0.05, "choose": "last" });
            let net = run::<Slimming>(scaled(), settings(&serde_json::json!({ "ratio": 0.0, "lambda": lambda, "train": train })));
            get(&net.unwrap(), "norm1", "gamma").iter().map(|v| v.abs()).sum()
        };
        let (free, held) = (trained(0.0), trained(1.0));
        assert!(held < 0.2 * free, "{held} and {free}");
    }

    #[test]
    fn layers_without_batch_norm_are_refused() {
        let missing = refusal::<Slimming>(small(), serde_json::json!({ "ratio": 0.5, "lambda": 0.1, "train": {} }));
        assert_eq!(
            missing,
            "node 'conv2': no batch norm follows it, whose scales would tell its filters apart; name it in `except`"
        );
        let lambda = refusal::<Slimming>(small(), settings(&serde_json::json!({ "ratio": 0.5, "lambda": -1.0 })));
        assert_eq!(lambda, "slimming: lambda must be 0 or more, is -1");
        let rate = refusal::<Slimming>(small(), settings(&serde_json::json!({ "ratio": 0.5, "train": { "lr": -1.0 } })));
        assert_eq!(rate, "training settings: lr must be positive");
    }
}
