//! Structured sparsity learning.
//!
//! Trains with the penalty `sum_l sum_g lambda_g ||w_g||` over groups of the weights of each layer: its filters, its input channels, the
//! shapes of its filters (the weights of all filters at one input channel and place in the kernel), and, where a shortcut leads around,
//! all weights between the ends of the shortcut (the depth). After each step of the optimizer comes the proximal step of each kind of
//! groups (see [`proximal`](crate::pruning::proximal)). Afterwards empty filters and channels are removed physically, what batch norms and
//! biases made of them going into what reads them; a residual addition with an empty branch gives way to its shortcut; and empty shapes
//! stay masked, which the engine multiplies as a thinner matrix.
//!
//! ```
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::structured_sparsity::StructuredSparsity;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(20, 2));
//! let x = b.relu("relu", x);
//! let x = b.flatten("flatten", x);
//! b.linear("fc", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let train = r#"{ "epochs": 300, "optimizer": "sgd", "lr": 0.3, "choose": "last" }"#;
//! let settings = format!(r#"{{ "filters": 0.05, "train": {train} }}"#);
//! let method: StructuredSparsity = serde_json::from_str(&settings).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert!(net.nodes[1].op.weight_shape().unwrap()[0] < 10);
//! ```
//!
//! Wen, Wu, Wang, Chen, Li. "Learning Structured Sparsity in Deep Neural Networks". NIPS 2016. arXiv:1608.03665.
//! Differs from the paper: a filter's group has its bias too; the weights of a whole branch are one group instead of those of each of its
//! layers, with the shift of the batch norm at the branch's end, so that an empty branch adds nothing; the proximal steps of filters and channels, which overlap, follow each other; and the second penalty, on all weights, is the
//! recipe's weight decay.

use briquette_core::context::{Context, Event};
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::surgery::ChannelGroup;
use briquette_core::training::{Extras, Recipe, fit, renew, tune};
use briquette_core::types::Layers;
use briquette_core::{Layer, layers};
use serde::Deserialize;

use crate::pruning::empty::remove_empty;
use crate::pruning::proximal::{Groups, Penalty, Proximal};

/// Trains groups of weights to zero and removes them, physically where the shape of a network can tell.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StructuredSparsity {
    /// Strength of the penalty on filters and neurons.
    #[serde(default)]
    filters: f64,
    /// On input channels.
    #[serde(default)]
    channels: f64,
    /// On the shapes of the filters of convolutions.
    #[serde(default)]
    shapes: f64,
    /// On the branches beside shortcuts.
    #[serde(default)]
    depth: f64,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training with the penalty; `choose = "last"` keeps it from returning an early epoch with more weights.
    train: Recipe,
    /// Whether the statistics of batch norms are estimated anew when what is empty is gone.
    #[serde(default)]
    renew: bool,
    /// Training of what is left, without the penalty.
    tune: Option<Recipe>,
}

impl Method for StructuredSparsity {
    const NAME: &'static str = "structured-sparsity";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Wen, Wu, Wang, Chen, Li, NIPS 2016, arXiv:1608.03665";
    const EXAMPLE: &'static str = "filters = 1e-2\nshapes = 1e-2\ntrain = { epochs = 10, choose = \"last\" }";
}

impl Pass for StructuredSparsity {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let mut proximal = Proximal::new(self.penalties(&net)?);
        let net = fit(net, &self.train, Extras { projections: vec![&mut proximal], ..Extras::default() }, cx)?;
        let net = remove_empty(shorten(net, cx)?, "lower the strengths, or name it in `except`")?;
        let net = if self.renew { renew(net, cx)? } else { net };
        tune(net, self.tune.as_ref(), cx)
    }

    /// What goes only the training can tell.
    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        self.penalties(&net)?;
        Ok(net)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("nothing is removed here; how much is follows from the training")
    }
}

impl StructuredSparsity {
    /// The penalties, those on smaller groups first.
    fn penalties(&self, net: &Net) -> Result<Vec<Penalty>> {
        let chosen = self.layers.without(&self.except, net)?;
        let groups = net.channel_groups()?;
        let frozen: Vec<usize> = groups.iter().filter(|group| group.frozen.is_some()).flat_map(ChannelGroup::producers).collect();
        let one_group = |index: usize| net.nodes[index].dense().is_some_and(|dense| dense.groups == 1);
        let layers =
            |fits: &dyn Fn(usize) -> bool| -> Vec<usize> { chosen.iter().copied().filter(|index| fits(*index)).collect() };
        let convolution = |index: usize| matches!(net.nodes[index].op, Op::Conv2d(_));
        let flat = [
            (Groups::Columns, self.shapes, layers(&convolution)),
            (Groups::Channels, self.channels, layers(&one_group)),
            (Groups::Filters, self.filters, layers(&|index| !frozen.contains(&index))),
        ];
        let mut penalties: Vec<Penalty> =
            flat.into_iter().map(|(groups, strength, layers)| Penalty { groups, layers, strength }).collect();
        let free = |branch: &Branch| branch.layers.iter().all(|layer| chosen.contains(layer));
        let branches = branches(net).into_iter().filter(free);
        let whole = |branch: Branch| branch.layers.into_iter().chain(branch.norm).collect();
        penalties.extend(branches.map(|branch| Penalty { groups: Groups::Whole, layers: whole(branch), strength: self.depth }));
        penalties.iter().try_for_each(|penalty| penalty.check(Self::NAME, net))?;
        penalties.retain(|penalty| penalty.strength > 0.0 && !penalty.layers.is_empty());
        if penalties.is_empty() {
            let detail = "structured-sparsity: none of `filters`, `channels`, `shapes` and `depth` is above 0 and finds a layer";
            return Err(Error::Invalid(detail.into()));
        }
        let why = "no strength above 0 finds groups in it: `filters` takes what can lose them, `channels` no convolution in groups, \
                   `shapes` convolutions, and `depth` whole branches beside a shortcut; leave it out";
        self.layers.all_done(net, |index| penalties.iter().any(|penalty| penalty.layers.contains(&index)), why)?;
        Ok(penalties)
    }
}

/// One input of an addition, whose weights nothing else uses, beside a shortcut without weights of its own.
struct Branch {
    addition: usize,
    shortcut: usize,
    /// What the addition reads of it.
    end: usize,
    /// Its convolutions and fully connected layers.
    layers: Vec<usize>,
    /// A batch norm at its end.
    norm: Option<usize>,
}

fn branches(net: &Net) -> Vec<Branch> {
    let mut uses = vec![0; net.nodes.len()];
    net.nodes.iter().flat_map(|node| &node.inputs).for_each(|input| uses[*input] += 1);
    // The layers of the chain that ends at a node and begins behind the last node that others read too.
    let chain = |mut node: usize| {
        let mut layers = Vec::new();
        while let ([input], 1) = (&net.nodes[node].inputs[..], uses[node]) {
            if net.nodes[node].op.weight_shape().is_some() {
                layers.insert(0, node);
            }
            node = *input;
        }
        layers
    };
    let branch = |(addition, node): (usize, &Node)| {
        let (Layer::Add(layers::Add), [a, b]) = (node.op.layer(), &node.inputs[..]) else { return None };
        let branch = |end: usize, shortcut, layers| {
            let norm = Some(end).filter(|end| matches!(net.nodes[*end].op, Op::BatchNorm(_)));
            Some(Branch { addition, shortcut, end, layers, norm })
        };
        match (chain(*a), chain(*b)) {
            (layers, none) if none.is_empty() && !layers.is_empty() => branch(*a, *b, layers),
            (none, layers) if none.is_empty() && !layers.is_empty() => branch(*b, *a, layers),
            _ => None,
        }
    };
    net.nodes.iter().enumerate().filter_map(branch).collect()
}

/// Puts the shortcut in the place of every addition of which a layer of the branch is zero, so that the branch gives a constant at most.
/// Nothing takes that in, for a rectifier mostly follows: a note tells its size.
fn shorten(mut net: Net, cx: &mut Context<'_>) -> Result<Net> {
    let zero = |net: &Net, layer: &usize| net.nodes[*layer].weight().is_some_and(|w| w.values().iter().all(|v| *v == 0.0));
    while let Some(branch) = branches(&net).into_iter().find(|branch| branch.layers.iter().any(|layer| zero(&net, layer))) {
        let constants = net.constants()?.swap_remove(branch.end);
        let largest = constants.iter().flatten().fold(0.0_f64, |most, constant| most.max(constant.abs()));
        let name = &net.nodes[branch.addition].name;
        if constants.contains(&None) || largest > NOTHING {
            let detail = format!(
                "structured-sparsity: the branch of '{name}' is empty and goes, with constants of up to {largest:.2e} per channel; `tune` makes up for them"
            );
            cx.host.event(Event::Note(&detail));
        }
        net = net.bypass(branch.addition, branch.shortcut)?;
    }
    Ok(net)
}

/// What an empty branch may add without a note: what is left of the running means of its norms.
const NOTHING: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{get, outputs, refusal, run, set, small, stirred};

    fn agree(a: &Net, b: &Net) -> bool {
        outputs(a).iter().zip(outputs(b)).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    fn shape(net: &Net, layer: &str) -> Vec<usize> {
        net.nodes[net.index(layer).unwrap()].op.weight_shape().unwrap()
    }

    /// The network with the weights of a layer zero where `gone` says.
    fn without(net: Net, layer: &str, gone: impl Fn(usize) -> bool) -> Net {
        let mut weights = get(&net, layer, "weight");
        weights.iter_mut().enumerate().filter(|(i, _)| gone(*i)).for_each(|(_, w)| *w = 0.0);
        set(net, layer, "weight", &weights)
    }

    fn untrained() -> serde_json::Value {
        serde_json::json!({ "filters": 0.1, "channels": 0.1, "depth": 0.1, "train": { "epochs": 0 } })
    }

    #[test]
    fn empty_filters_and_unread_channels_go_physically_with_no_change_of_the_output() {
        // Filter 1 of conv2 [3, 4, 2, 2] is empty, nothing reads channel 2 of conv1, and two shapes of conv2 are empty.
        let net = without(small(), "conv2", |i| i / 16 == 1 || i / 4 % 4 == 2 || [0, 5].contains(&(i % 16)));
        let cut = run::<StructuredSparsity>(net.deep_clone(), untrained()).unwrap();
        assert_eq!(
            (shape(&cut, "conv1"), shape(&cut, "conv2"), shape(&cut, "fc1")),
            (vec![3, 1, 2, 2], vec![2, 3, 2, 2], vec![5, 8])
        );
        assert!(agree(&net, &cut));
        let conv2 = cut.nodes[cut.index("conv2").unwrap()].weight().unwrap();
        assert_eq!(conv2.coding.mask.unwrap(), (0..24).map(|i| ![0, 5].contains(&(i % 12))).collect::<Vec<_>>());
    }

    #[test]
    fn the_emptied_go_on_emptying() {
        // The last two neurons of fc1 read only filter 2 of conv2, and nothing reads them: filter 2 goes too.
        let net = without(small(), "fc1", |i| (i / 12 < 3) == (i % 12 >= 8));
        let net = without(net, "fc2", |i| i % 5 >= 3);
        let cut = run::<StructuredSparsity>(net.deep_clone(), untrained()).unwrap();
        assert_eq!((shape(&cut, "conv2")[0], shape(&cut, "fc1")), (2, vec![3, 8]));
        assert!(agree(&net, &cut));
    }

    #[test]
    fn what_a_norm_makes_of_empty_filters_goes_into_what_reads_them() {
        // Filters 1 and 3 of conv1 are empty; behind the norm they give 0.5 and 0.2 but for what their means take away.
        let net = without(stirred(), "conv1", |i| i / 4 % 2 == 1);
        let cut = run::<StructuredSparsity>(net.deep_clone(), untrained()).unwrap();
        assert_eq!((shape(&cut, "conv1"), shape(&cut, "conv2")), (vec![2, 1, 2, 2], vec![3, 2, 2, 2]));
        assert!(agree(&net, &cut));
        // With zeros padded the constant does not reach the border: one of the two filters stays for both.
        let mut b = Builder::new([1, 4, 4], 11, &Device::flex());
        let mut x = b.conv("conv1", b.input(), Conv::new(4, 3).no_bias().same());
        x = b.batch_norm("norm1", x);
        x = b.relu("relu1", x);
        x = b.conv("conv2", x, Conv::new(3, 3).same());
        x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        let net = set(b.finish().unwrap(), "norm1", "beta", &[0.3, 0.5, -0.1, 0.2]);
        let net = without(net, "conv1", |i| i / 9 % 2 == 1);
        let cut = run::<StructuredSparsity>(net.deep_clone(), untrained()).unwrap();
        assert_eq!((shape(&cut, "conv1")[0], get(&cut, "norm1", "beta")), (3, vec![0.3, 0.5, -0.1]));
        assert!(agree(&net, &cut));
    }

    /// Two residual blocks, the second with two convolutions.
    fn residual() -> Net {
        let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
        let stem = b.conv("stem", b.input(), Conv::new(3, 3).same());
        let x = b.conv("first", stem, Conv::new(3, 3).same());
        let first = b.add("add1", &[stem, x]);
        let x = b.conv("second", first, Conv::new(2, 1));
        let x = b.relu("relu", x);
        let x = b.conv("third", x, Conv::new(3, 3).same());
        let x = b.add("add2", &[x, first]);
        let x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    }

    #[test]
    fn a_residual_branch_that_is_empty_makes_the_graph_shorter() {
        let found: Vec<Vec<usize>> = branches(&residual()).into_iter().map(|branch| branch.layers).collect();
        assert_eq!(found, [vec![2], vec![4, 6]]);
        let net = without(residual(), "third", |_| true);
        let cut = run::<StructuredSparsity>(net.deep_clone(), untrained()).unwrap();
        let names: Vec<&str> = cut.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["input", "stem", "first", "add1", "pool", "fc"]);
        assert!(agree(&net, &cut));
    }

    #[test]
    fn the_shift_at_the_end_of_a_branch_shrinks_with_its_weights() {
        let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
        let stem = b.conv("stem", b.input(), Conv::new(3, 3).same());
        let x = b.conv("branch", stem, Conv::new(3, 3).same().no_bias());
        let x = b.batch_norm("norm", x);
        let x = b.add("add", &[x, stem]);
        let x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        let net = set(b.finish().unwrap(), "norm", "beta", &[0.5, -0.5, 0.1]);
        let settings = serde_json::json!({ "depth": 1.0, "train": { "epochs": 0 } });
        let method: StructuredSparsity = serde_json::from_value(settings).unwrap();
        let shrunk = method.penalties(&net).unwrap()[0].shrink(net, 1e3);
        assert_eq!((get(&shrunk, "branch", "weight"), get(&shrunk, "norm", "beta")), (vec![0.0; 81], vec![0.0; 3]));
    }

    #[test]
    fn the_training_empties_a_branch_as_one() {
        let left = |depth: f64| {
            let train = serde_json::json!({ "epochs": 60, "batch": 5, "optimizer": "sgd", "lr": 0.1, "choose": "last" });
            let settings = serde_json::json!({ "depth": depth, "train": train, "tune": { "epochs": 1, "batch": 20 } });
            run::<StructuredSparsity>(residual(), settings).unwrap().nodes.len()
        };
        assert_eq!((left(1e-6), left(0.2)), (10, 4));
    }

    #[test]
    fn shapes_of_a_convolution_in_groups_are_penalized_and_what_no_strength_reaches_is_refused() {
        let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
        let x = b.conv("stem", b.input(), Conv::new(4, 3));
        let x = b.conv("grouped", x, Conv::new(4, 2).groups(2));
        let x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        let net = b.finish().unwrap();
        let penalties =
            |settings: serde_json::Value| serde_json::from_value::<StructuredSparsity>(settings).unwrap().penalties(&net);
        let named = penalties(serde_json::json!({ "shapes": 0.1, "layers": ["grouped"], "train": {} })).unwrap();
        let layers = vec![net.index("grouped").unwrap()];
        assert_eq!(named, [Penalty { groups: Groups::Columns, layers, strength: 0.1 }]);
        for (setting, layer) in [("shapes", "fc"), ("filters", "fc"), ("channels", "grouped")] {
            let settings = serde_json::json!({ setting: 0.1, "layers": ["stem", layer], "train": {} });
            let error = penalties(settings).unwrap_err().to_string();
            assert!(error.starts_with(&format!("node '{layer}': no strength above 0 finds groups in it")), "{setting}: {error}");
        }
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let none = refusal::<StructuredSparsity>(small(), serde_json::json!({ "depth": 0.1, "train": {} }));
        assert_eq!(none, "structured-sparsity: none of `filters`, `channels`, `shapes` and `depth` is above 0 and finds a layer");
        let negative = refusal::<StructuredSparsity>(small(), serde_json::json!({ "filters": -0.1, "train": {} }));
        assert_eq!(negative, "structured-sparsity: strengths must be 0 or more, not -0.1");
        let empty = run::<StructuredSparsity>(without(small(), "fc1", |_| true), untrained()).unwrap_err().to_string();
        assert_eq!(empty, "node 'fc1': no weight of it is left; lower the strengths, or name it in `except`");
    }
}
