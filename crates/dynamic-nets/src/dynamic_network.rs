//! A network of high and low capacity, between which a control node chooses image by image.
//!
//! What lies `between` two nodes is the high branch. Beside it comes a low one: the map is pooled to the size of the other branch's output, and one
//! convolution of 3 by 3, a batch norm and, where the high branch ends in one, a rectifier make as many channels of it; of a vector the mean of each
//! channel and a fully connected layer. The control node reads what both read: the mean of each channel, a fully connected layer of 16 rectified
//! outputs, and one of two, the values `Q_low` and `Q_high` of the choices. The high branch runs where `Q_high >= Q_low`, by a gate of the logit `Q_high - Q_low`.
//!
//! Each image of a training makes the choice `a` of the larger value, or with the probability `epsilon` one that is drawn, either as probable as the other. It
//! earns `r = lambda A + (1 - lambda) E`, where `A` is 1 if the class is found and 0 if not, and `E = 1 - cost / full cost` is of the multiply-accumulates of its
//! path and of the high one. What is minimized is the mean of the task's loss along the paths taken plus the mean of `(Q_a - r)^2`: Q-learning of one step.
//!
//! Liu, Deng. "Dynamic Deep Neural Networks: Optimizing Accuracy-Efficiency Trade-offs by Selective Execution". AAAI 2018. arXiv:1701.00299.
//! Differs from the paper, of which no code is public: of its four forms there is this one; the two branches, the control node and a constant
//! `epsilon` are ours; the control node's error reaches the layers that it reads, too; branches and control learn together from the start; batch norms of a
//! branch see the images that take the other one, too. The reward is that of the paper for single images; its rewards of whole bags are left out.
//!
//! ```
//! use briquette_core::{cost::Cost, pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::dynamic_network::DynamicNetwork;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("resnet20").unwrap();
//! let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
//! let settings = r#"{ "between": ["layer1", "layer3"], "lambda": 0.7, "train": { "choose": "last" } }"#;
//! let method: DynamicNetwork = serde_json::from_str(settings).unwrap();
//! let net = method.plan(net).unwrap();
//! let (cost, paths) = (Cost::of(&net).unwrap(), net.paths().unwrap());
//! let [low, high] = [false, true].map(|high| cost.macs_along(&paths, |_| high));
//! assert!(3 * low < 2 * high);
//! ```

use briquette_core::builder::{At, Builder, Conv};
use briquette_core::chance;
use briquette_core::coding::floats;
use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::layers::{AdaptiveAvgPool, GlobalAvgPool};
use briquette_core::net::{Net, Node, Op};
use briquette_core::objective::{Objective, Seen, Taps};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Forward, Recipe, fit, hits};
use briquette_core::types::Ratio;
use briquette_core::{Activation, Layer};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;

use crate::balance::{EVEN, last_epoch, tell};
use crate::wiring::{Control, Part, Parted, beside, decided, part, ungated};

/// Has a control node choose between a part of the network and a cheaper one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DynamicNetwork {
    /// The nodes, or blocks by what the names of their nodes begin with, behind which both branches begin and end.
    between: [String; 2],
    /// What a class that is found counts in the reward, cost counting the rest.
    lambda: Ratio,
    /// How probable it is that an image's choice is drawn.
    #[serde(default = "tenth")]
    epsilon: Ratio,
    /// The training.
    train: Recipe,
}

fn tenth() -> Ratio {
    Ratio::try_from(0.1).expect("a share")
}

impl Method for DynamicNetwork {
    const NAME: &'static str = "dynamic-network";
    const FAMILY: &'static str = "dynamic networks";
    const PAPER: &'static str = "Liu, Deng, AAAI 2018, arXiv:1701.00299";
    const EXAMPLE: &'static str = "between = [\"relu1\", \"relu3\"]\nlambda = 0.7\ntrain = { epochs = 10, choose = \"last\" }";
}

impl Pass for DynamicNetwork {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (parted, rule) = self.parted(net, cx.seed)?;
        parted.net.finite()?;
        let mut objective = rule.clone();
        let extras = Extras { objectives: vec![&mut objective], forward: Some(&rule), ..Extras::default() };
        let net = fit(parted.net, &self.train, extras, cx)?;
        if let Some(shares) = tell(Self::NAME, &net, &parted.gates, cx)? {
            cx.note(format!("{:.2} % of the images take the high branch", 100.0 * shares[&parted.reached[0]]));
        }
        Ok(net)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        Ok(self.parted(net, 0)?.0.net)
    }
}

impl DynamicNetwork {
    /// The network with both branches, and how it learns to choose.
    fn parted(&self, net: Net, seed: u64) -> Result<(Parted, Choosing)> {
        last_epoch(&self.train)?;
        ungated(&net, "put one choice into a network")?;
        let [begin, end] = [net.behind(&self.between[0])?, net.behind(&self.between[1])?];
        if begin >= end {
            let detail = format!("does not come before '{}'; name in `between` the earlier one first", self.between[1]);
            return Err(Error::node(&self.between[0], detail));
        }
        let inside = |node: &usize| (begin + 1..end).contains(node);
        let reads = |node: &&Node| node.inputs.iter().any(inside);
        if let Some(reader) = net.nodes[end + 1..].iter().find(reads) {
            let detail =
                format!("reads from within the high branch; have it end where nothing else goes on than '{}'", self.between[1]);
            return Err(Error::node(&reader.name, detail));
        }
        let (shapes, device) = (net.shapes()?, net.device());
        let rectified = matches!(net.nodes[end].op.layer(), Layer::Activation(Activation::Relu));
        let low = low(&shapes[begin], &shapes[end], rectified, seed, &device)?;
        let control = control(&shapes[begin], seed, &device)?;
        let high = Part {
            name: "control".into(),
            logit: control.len(),
            nodes: (begin + 1..=end).collect(),
            instead: begin,
            detour: low,
        };
        let parted = part(net, Control { behind: begin, nodes: control }, vec![high], EVEN)?;
        let (cost, paths) = (Cost::of(&parted.net)?, parted.net.paths()?);
        let costs = [false, true].map(|high| cost.macs_along(&paths, |_| high));
        if costs[0] >= costs[1] {
            let detail = format!(
                "dynamic-network: the low branch makes {} multiply-accumulates an image, the high one {}; let `between` span more",
                costs[0], costs[1]
            );
            return Err(Error::Invalid(detail));
        }
        let rewards = [false, true].map(|found| costs.map(|cost| reward(self.lambda.get(), found, cost as f64, costs[1] as f64)));
        let values = parted.net.nodes[parted.logits[0]].inputs[0];
        let choosing = Choosing { values, gate: parted.gates[0], rewards, epsilon: self.epsilon.get() };
        Ok((parted, choosing))
    }
}

/// `lambda A + (1 - lambda) E`, with `A` 1 where the class is found, and `E = 1 - cost / full`.
pub fn reward(lambda: f64, found: bool, cost: f64, full: f64) -> f64 {
    lambda * f64::from(u8::from(found)) + (1.0 - lambda) * (1.0 - cost / full)
}

/// The mean over the samples of `(Q_a - r)^2`, for values `[batch, choices]`, the choice and the reward of each.
pub fn value_loss(values: Tensor<2>, chosen: &[usize], rewards: &[f64]) -> Tensor<1> {
    let ([batch, choices], device) = (values.dims(), values.device());
    let tensor = |of: Vec<f32>, width| Tensor::<2>::from_data(TensorData::new(of, [batch, width]), &device);
    let takes = |chosen: &usize| (0..choices).map(|choice| f32::from(u8::from(choice == *chosen))).collect::<Vec<_>>();
    let taken = values * tensor(chosen.iter().flat_map(takes).collect(), choices);
    let rewards = tensor(rewards.iter().map(|reward| *reward as f32).collect(), 1);
    (taken.sum_dim(1) - rewards).square().mean()
}

/// The branch that costs less.
fn low(from: &[usize], to: &[usize], rectified: bool, seed: u64, device: &Device) -> Result<Vec<Node>> {
    beside(from, seed, device, |b, mut x| {
        match (from.len(), to) {
            (3, &[channels, height, width]) => {
                if from[1..] != [height, width] {
                    x = b.fixed("low.pool", &[x], AdaptiveAvgPool { output: [height, width] });
                }
                x = b.conv("low.conv", x, Conv::new(channels, 3).same().no_bias());
                x = b.batch_norm("low.norm", x);
            }
            (dimensions, _) => {
                if dimensions == 3 {
                    x = b.fixed("low.pool", &[x], GlobalAvgPool);
                }
                x = b.linear("low.fc", x, to[0]);
            }
        }
        if rectified { b.relu("low.relu", x) } else { x }
    })
}

/// The control node: its last node is the logit, the one before it has the values of both choices.
fn control(from: &[usize], seed: u64, device: &Device) -> Result<Vec<Node>> {
    beside(from, seed, device, |b: &mut Builder, mut x: At| {
        if from.len() == 3 {
            x = b.fixed("control.pool", &[x], GlobalAvgPool);
        }
        x = b.linear("control.fc", x, 16);
        x = b.relu("control.relu", x);
        x = b.linear("control.values", x, 2);
        let difference = Tensor::from_data([[-1.0], [1.0]], device);
        b.push("control.logit", &[x], Op::Linear(Linear { weight: Param::from_tensor(difference), bias: None }))
    })
}

/// How a training goes through the network, and what it minimizes beside the task's loss.
#[derive(Debug, Clone)]
struct Choosing {
    /// The node of `Q_low` and `Q_high`.
    values: usize,
    gate: usize,
    /// Rewards where the class is not found and where it is, each of the low and of the high branch.
    rewards: [[f64; 2]; 2],
    epsilon: f64,
}

impl Choosing {
    fn choose(&self, values: &[f32]) -> Vec<bool> {
        let draws = || chance::uniform() < self.epsilon;
        let choice = |values: &[f32]| if draws() { chance::uniform() < 0.5 } else { values[1] >= values[0] };
        values.chunks(2).map(choice).collect()
    }
}

impl Forward for Choosing {
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        decided(net, images, (&[self.values], &[self.gate]), taps, |values| self.choose(values))
    }
}

impl Objective for Choosing {
    fn taps(&self, _: &Net) -> Result<Vec<usize>> {
        Ok(vec![self.values, self.gate])
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        let [values, chosen] = [0, 1].map(|tap| seen.taps[tap].clone().vector());
        let chosen: Vec<usize> = floats(chosen.inner()).into_iter().map(|high| usize::from(high != 0.0)).collect();
        let logits = floats(seen.logits.clone().inner());
        let rows = logits.chunks(logits.len() / seen.labels.len()).zip(seen.labels);
        let found = rows.map(|(row, label)| hits(row, &[*label], 1));
        let rewards: Vec<f64> = found.zip(&chosen).map(|(found, chosen)| self.rewards[found][*chosen]).collect();
        Ok(value_loss(values, &chosen, &rewards))
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::context::{Finding, Silent};
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_handmade::{get, refusal, small};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;

    /// `d2nn-reward` of the reference values, which are of the paper's form from memory.
    #[test]
    fn rewards_and_the_error_of_a_value_are_those_of_the_formula() {
        for (found, cost, expected) in [(true, 100.0, 0.6), (true, 40.0, 0.84), (false, 40.0, 0.24), (false, 0.0, 0.4)] {
            assert!((reward(0.6, found, cost, 100.0) - expected).abs() < 1e-12);
        }
        let device = Device::flex().autodiff();
        let values = Tensor::<2>::from_data([[0.2, 0.7]], &device).require_grad();
        let loss = value_loss(values.clone(), &[1], &[0.84]);
        assert!((floats(loss.clone().inner())[0] - 0.0196).abs() < 1e-6);
        let gradient = floats(values.grad(&loss.backward()).unwrap());
        assert!(gradient[0] == 0.0 && (gradient[1] + 0.28).abs() < 1e-6, "{gradient:?}");
    }

    fn method(between: [&str; 2]) -> DynamicNetwork {
        let train = json!({ "epochs": 2, "batch": 20, "lr": 0.01, "choose": "last" });
        serde_json::from_value(json!({ "between": between, "lambda": 0.5, "epsilon": 0.3, "train": train })).unwrap()
    }

    /// Behind convolutions, blocks, vectors, and up to the output.
    #[test]
    fn branches_come_into_networks_of_every_kind() {
        for (name, between) in [
            ("resnet20", ["layer1", "layer3.2"]),
            ("resnet18", ["relu1", "layer4"]),
            ("mobilenet-v1", ["input", "fc"]),
            ("vgg11-cifar", ["relu1", "relu8"]),
            ("lenet300", ["relu1", "fc3"]),
            ("lenet5", ["input", "fc2"]),
        ] {
            let arch = Arch::named(name).unwrap();
            let net = arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
            let (parted, choosing) = method(between).parted(net, 1).unwrap_or_else(|error| panic!("{name}: {error}"));
            let [low, high] = choosing.rewards[1];
            assert!(low > high && high == 0.5, "{name}");
            let shape = parted.net.input_shape();
            let x = Tensor::<4>::ones([2, shape[0], shape[1], shape[2]], &Device::flex());
            let [skipped, run] = [false, true]
                .map(|run| floats(parted.net.forward_decided(x.clone(), [(choosing.gate, vec![run; 2])].into()).unwrap()));
            assert!(skipped != run && skipped.len() == run.len(), "{name}");
        }
    }

    #[test]
    fn a_run_trains_both_branches_and_the_control_and_says_who_goes_where() {
        let (data, mut silent) = (briquette_handmade::images(), Silent);
        let mut cx = briquette_handmade::context(&data, &mut silent);
        let method = method(["input", "relu3"]);
        let start = method.parted(small(), cx.seed).unwrap().0.net;
        let net = method.run(small(), &mut cx).unwrap();
        for node in ["conv1", "fc1", "fc2", "low.fc", "control.fc", "control.values"] {
            assert!(get(&start, node, "weight") != get(&net, node, "weight"), "{node}");
        }
        assert_eq!(get(&net, "control.logit", "weight"), [-1.0, 1.0]);
        let note =
            |finding: &Finding| matches!(finding, Finding::Note(note) if note.ends_with("% of the images take the high branch"));
        assert!(cx.findings.iter().any(note));
        let Some(Finding::Tradeoff(curve)) = cx.findings.iter().find(|found| matches!(found, Finding::Tradeoff(_))) else {
            panic!("no curve: {:?}", cx.findings)
        };
        // All take the high branch at the threshold 0, and none at 1.
        assert!(curve.points.first().unwrap().balance.macs > curve.points.last().unwrap().balance.macs);
    }

    #[test]
    fn branches_that_are_none_are_refused() {
        let refuse = |between: [&str; 2], choose: &str| {
            refusal::<DynamicNetwork>(small(), json!({ "between": between, "lambda": 0.5, "train": { "choose": choose } }))
        };
        assert!(refuse(["relu9", "relu2"], "last").starts_with("unknown layer 'relu9'"));
        assert_eq!(
            refuse(["relu2", "relu1"], "last"),
            "node 'relu2': does not come before 'relu1'; name in `between` the earlier one first"
        );
        let narrow = refuse(["norm1", "relu1"], "last");
        assert!(
            narrow.starts_with("dynamic-network: the low branch makes") && narrow.ends_with("let `between` span more"),
            "{narrow}"
        );
        assert!(refuse(["relu1", "relu3"], "best").ends_with("say `choose = \"last\"` in the recipe"));
        let twice = refusal::<DynamicNetwork>(
            method(["input", "relu3"]).plan(small()).unwrap(),
            json!({ "between": ["input", "relu3"], "lambda": 0.5, "train": { "choose": "last" } }),
        );
        assert_eq!(twice, "node 'control.gate': already decides which samples go on; put one choice into a network");
        let arch = Arch::named("resnet20").unwrap();
        let net = arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
        let within = method(["layer1.0", "layer2.1.relu1"]).plan(net).unwrap_err().to_string();
        assert!(within.contains("reads from within the high branch"), "{within}");
    }
}
