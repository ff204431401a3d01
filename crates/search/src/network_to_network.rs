//! N2N: policies make a network smaller, and children learn from it.
//!
//! A first policy says of each layer whether it stays. A layer can go, with the batch norm and the activation behind it, where it gives maps of the shape that it reads and is neither the first nor the last; fully connected
//! layers stay. It reads of each of these layers the type, kernel, stride, outputs and padding, in both directions. From the child of the highest reward on, whether or not it is within the `budget`, a second policy chooses for each group of channels that can be cut together a factor of 0.25, 0.5, 0.6, 0.7, 0.8, 0.9 or 1, knowing
//! the factor before. A child is trained by `train`, whose `distill` says how it learns from the network as it was, and its reward is `R = C (2 - C) p / p0`: `C = 1 - n / n0` of the parameters `n` of the child and
//! `n0` of the network, `p` and `p0` their accuracies on validation images. One that is no smaller has -1; one that costs more than the `budget` has `e - 1 + e R` in iteration `i` of its policy, `e = max(1 - i / 15, 0)^4`.
//! The policies learn by REINFORCE: each of `rollouts` children by its own reward less the mean of all so far. What a method refuses, or a training that diverges, has -1.
//!
//! Ashok, Rhinehart, Beainy, Kitani. "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning". ICLR 2018. arXiv:1709.06030.
//! Differs from the paper: children keep the weights of what is left of the network, the filters by the method of `probe`, instead of beginning anew; each is weighed by its own reward, where the public code takes their
//! mean; `e` does not rise again after iteration 15; and the first policy reads the layers that can go, not those that must stay.
//!
//! ```
//! use briquette_search::network_to_network::{constrained, reward};
//!
//! // A tenth of the parameters at 0.9 of 0.92.
//! let met = reward(0.9 / 0.92, 0.1);
//! assert!((met - 0.9684782609).abs() < 1e-8);
//! assert_eq!((constrained(met, 0), constrained(met, 15), constrained(met, 30)), (met, -1.0, -1.0));
//! ```

mod policy;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use briquette_core::context::{Context, Event};
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op};
use briquette_core::pass::{Catalogue, Method, Pass, Search};
use briquette_core::points::Points;
use briquette_core::streams::stream;
use briquette_core::surgery::ChannelGroup;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use briquette_core::{Layer, layers};
use briquette_data::Dataset;
use briquette_parts::channels::groups;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, Value, json};

use crate::budget::{Budget, Meter};
use crate::episodes::outline;
use crate::fingerprint::fingerprint;
use crate::images::Images;
use crate::probe::Probe;
use crate::tried::{accuracy, refused};
use policy::Policy;

/// Removes layers and channels as policies choose.
#[derive(Debug)]
pub struct NetworkToNetwork {
    probe: Probe,
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// The name of a method that cuts channels, and its settings but for `ratio`; without it `filter-l1`.
    #[serde(default = "filters")]
    probe: Map<String, Value>,
    /// What the network may cost.
    budget: Option<Budget>,
    /// Channels that stay of each group at the least.
    #[serde(default = "ten")]
    floor: NonZeroUsize,
    /// Iterations of each policy.
    #[serde(default = "episodes")]
    episodes: NonZeroUsize,
    /// Children of an iteration.
    #[serde(default = "five")]
    rollouts: NonZeroUsize,
    /// Validation images that rewards are measured on; all without it.
    #[serde(default)]
    images: Images,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Training of each child.
    train: Recipe,
    /// Training of the network that is chosen.
    tune: Option<Recipe>,
}

fn filters() -> Map<String, Value> {
    Map::from_iter([("method".into(), json!("filter-l1"))])
}

fn ten() -> NonZeroUsize {
    NonZeroUsize::new(10).expect("not zero")
}

fn five() -> NonZeroUsize {
    NonZeroUsize::new(5).expect("not zero")
}

fn episodes() -> NonZeroUsize {
    NonZeroUsize::new(100).expect("not zero")
}

/// What the second policy chooses from; what is there several times is chosen more often at the start.
const FACTORS: [f64; 11] = [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// `C (2 - C) p / p0` of the accuracy `p / p0` and the parameters `1 - C` of a child, both as shares of the network's; -1 of one that is no smaller.
pub fn reward(accuracy: f64, parameters: f64) -> f64 {
    let smaller = 1.0 - parameters;
    if smaller > 0.0 { smaller * (2.0 - smaller) * accuracy } else { -1.0 }
}

/// The reward of a child that costs more than it may, in this iteration.
pub fn constrained(reward: f64, iteration: usize) -> f64 {
    let eased = (1.0 - iteration as f64 / 15.0).max(0.0).powi(4);
    eased - 1.0 + eased * reward
}

impl Method for NetworkToNetwork {
    const NAME: &'static str = "network-to-network";
    const FAMILY: &'static str = "search";
    const PAPER: &'static str = "Ashok, Rhinehart, Beainy, Kitani, ICLR 2018, arXiv:1709.06030";
    const EXAMPLE: &'static str =
        "floor = 2\nepisodes = 2\nrollouts = 2\ntrain = { epochs = 1, distill = { method = \"logits\" } }";
}

impl Search for NetworkToNetwork {
    fn read(settings: Value, methods: Catalogue) -> std::result::Result<Self, serde_json::Error> {
        let mut settings: Settings = serde_json::from_value(settings)?;
        let probe = Probe::cutting(std::mem::take(&mut settings.probe), methods).map_err(serde_json::Error::custom)?;
        Ok(Self { probe, settings })
    }
}

impl Pass for NetworkToNetwork {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        net.finite()?;
        let net = self.plan(net)?;
        let images = self.settings.images.of(cx)?;
        let of = format!("{} {:?} {} {}", self.probe.settings(), self.settings.train, images.len(), cx.seed);
        let points = Points::load(format!("network-to-network-{}", fingerprint(&net, &of)), cx.host)?;
        let meter = self.settings.budget.map(|budget| Meter::new(budget, &net, cx)).transpose()?;
        let mut family = Family {
            method: self,
            images,
            meter,
            points,
            params: Cost::of(&net)?.params() as f64,
            accuracy: 0.0,
            lead: None,
            best: None,
        };
        family.accuracy = family.accuracy_of("the network", &net, None, cx)?.map_err(Error::Invalid)?;
        if family.accuracy == 0.0 {
            let why =
                "the network finds the class of no validation image, and rewards are shares of its accuracy; train it first";
            return Err(Error::Invalid(format!("network-to-network: {why}")));
        }

        let removable = self.removable(&net)?;
        let mut without = |choices: &[usize], _: &mut Context<'_>| -> Result<(String, Net)> {
            let gone = removable.iter().zip(choices).filter(|(_, goes)| **goes == 1).map(|(removed, _)| removed);
            let names: Vec<&str> = gone.clone().map(|(node, _)| net.nodes[*node].name.as_str()).collect();
            let gone: Vec<(usize, usize)> = gone.copied().collect();
            let said = if names.is_empty() { String::from("all layers") } else { format!("without {}", names.join(", ")) };
            Ok((said, without_layers(&net, &gone)?))
        };
        let steps: Vec<Vec<f32>> = removable.iter().map(|(node, _)| described(&net, *node)).collect();
        let mut policy = Policy::new(DESCRIBED, 2, true, 0.003, stream(cx.seed, "removal"));
        family.search(&mut policy, &steps, &mut without, cx)?;

        let (said, parent) = match family.lead.take() {
            Some(lead) => (lead.said, lead.child),
            None => (String::from("all layers"), net.deep_clone()),
        };
        let groups = inherited(&net, &self.groups(&net)?, &parent)?;
        let mut narrower = |choices: &[usize], cx: &mut Context<'_>| -> Result<(String, Net)> {
            let table = self.ratios(&groups, choices);
            let said = format!("{said}, of the channels {} gone", Value::Object(table.clone()));
            let child =
                if table.is_empty() { parent.deep_clone() } else { self.probe.apply(&parent, &[("ratio", table)], cx)? };
            Ok((said, child))
        };
        let first = |group: &ChannelGroup| group.producers().next().map_or(vec![0.0; DESCRIBED], |node| described(&parent, node));
        let steps: Vec<Vec<f32>> = groups.iter().map(first).collect();
        let mut policy = Policy::new(DESCRIBED, FACTORS.len(), false, 0.1, stream(cx.seed, "shrinkage"));
        family.search(&mut policy, &steps, &mut narrower, cx)?;

        let Some(best) = family.best else {
            let why = "no child is smaller and within the budget; raise `episodes`, or lower `floor`";
            return Err(Error::Invalid(format!("network-to-network: {why}")));
        };
        cx.note(format!("network-to-network: {}; reward {:.4}", best.said, best.reward));
        let child = tune(best.child, Some(&self.settings.train), cx)?;
        tune(child, self.settings.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.settings.train.check()?;
        self.settings.tune.iter().try_for_each(Recipe::check)?;
        let (removable, groups) = (self.removable(&net)?, self.groups(&net)?);
        if removable.is_empty() && groups.is_empty() {
            return Err(Error::Invalid("network-to-network: neither layers nor channels can go".into()));
        }
        if let Some(budget) = self.settings.budget
            && let Some(price) = budget.price()
            && let Some(smallest) = self.smallest(&net, &removable, &groups)?
        {
            let (whole, least) = (price.of(&net)?, price.of(&smallest)?);
            if least > budget.limit(whole) {
                return Err(budget.unmet(least, whole));
            }
        }
        Ok(net)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("which layers and channels go follows from rewards; here all stay")
    }

    fn rounds(&self) -> usize {
        2 * self.settings.episodes.get() * self.settings.rollouts.get()
    }

    fn shorten(&mut self) {
        self.settings.episodes = self.settings.episodes.min(TRIAL[0]);
        self.settings.rollouts = self.settings.rollouts.min(TRIAL[1]);
        self.settings.images.shorten();
        self.probe.trial = true;
    }
}

/// Iterations and children of a trial run.
const TRIAL: [NonZeroUsize; 2] = [NonZeroUsize::new(1).unwrap(), NonZeroUsize::new(2).unwrap()];

impl NetworkToNetwork {
    /// The layers that can go, each with the last of the nodes that go with it.
    fn removable(&self, net: &Net) -> Result<Vec<(usize, usize)>> {
        let (chosen, shapes) = (self.settings.layers.without(&self.settings.except, net)?, net.shapes()?);
        let own: Vec<usize> = net.own_weights().map(|(index, _)| index).collect();
        let inner = |node: &usize| own.first() != Some(node) && own.last() != Some(node);
        let convolution = |node: &usize| matches!(net.nodes[*node].op, Op::Conv2d(_));
        let with_end = |node: usize| (node, end(net, node));
        let of = chosen.into_iter().filter(inner).filter(convolution).map(with_end);
        Ok(of.filter(|(node, end)| shapes[*end] == shapes[net.nodes[*node].inputs[0]]).collect())
    }

    /// The network without all that can go; none where not all of it can go together.
    fn smallest(&self, net: &Net, removable: &[(usize, usize)], groups: &[ChannelGroup]) -> Result<Option<Net>> {
        let parent = match without_layers(net, removable) {
            Err(refused) if refused.refuses() => return Ok(None),
            parent => parent?,
        };
        let groups = inherited(net, groups, &parent)?;
        let table = self.ratios(&groups, &vec![0; groups.len()]);
        Ok(Some(if table.is_empty() { parent } else { self.probe.with(&[("ratio", table)])?.plan(parent)? }))
    }

    /// The ratios that go by these factors, of the groups that lose any.
    fn ratios(&self, groups: &[ChannelGroup], choices: &[usize]) -> Map<String, Value> {
        let ratio = |(group, choice): (&ChannelGroup, &usize)| {
            let kept = (FACTORS[*choice] * group.len() as f64).round() as usize;
            let kept = kept.max(self.settings.floor.get()).min(group.len());
            (group.name.clone(), 1.0 - kept as f64 / group.len() as f64)
        };
        let ratios = groups.iter().zip(choices).map(ratio).filter(|(_, ratio)| *ratio > 0.0);
        ratios.map(|(name, ratio)| (name, ratio.into())).collect()
    }

    /// The groups that can lose channels.
    fn groups(&self, net: &Net) -> Result<Vec<ChannelGroup>> {
        let all = groups(net, &self.settings.layers, &self.settings.except)?;
        Ok(all.into_iter().filter(|group| group.len() > self.settings.floor.get()).collect())
    }
}

/// A copy without these layers, each given with the last of the nodes that go with it.
fn without_layers(net: &Net, gone: &[(usize, usize)]) -> Result<Net> {
    let pairs: Vec<(usize, usize)> = gone.iter().map(|(node, end)| (*end, net.nodes[*node].inputs[0])).collect();
    Ok(net.deep_clone().bypass_all(&pairs)?.0)
}

/// The groups of a child all of whose layers made channels of these groups of the network.
fn inherited(net: &Net, of: &[ChannelGroup], child: &Net) -> Result<Vec<ChannelGroup>> {
    let names: BTreeSet<&str> = of.iter().flat_map(ChannelGroup::producers).map(|node| net.nodes[node].name.as_str()).collect();
    let all = |group: &ChannelGroup| group.producers().all(|node| names.contains(child.nodes[node].name.as_str()));
    Ok(child.channel_groups()?.into_iter().filter(|group| group.frozen.is_none() && all(group)).collect())
}

/// The last of the batch norms and activations that alone read a layer.
fn end(net: &Net, layer: usize) -> usize {
    let mut at = layer;
    loop {
        let mut readers = (0..net.nodes.len()).filter(|reader| net.nodes[*reader].inputs.contains(&at));
        let (Some(only), None) = (readers.next(), readers.next()) else { return at };
        let goes = matches!(net.nodes[only].op.layer(), Layer::BatchNorm(_) | Layer::Activation(_));
        if !goes {
            return at;
        }
        at = only;
    }
}

/// Numbers of a layer that a policy reads.
const DESCRIBED: usize = 5;

/// Type, kernel, stride, outputs and padding, the outputs by their logarithm.
fn described(net: &Net, node: usize) -> Vec<f32> {
    let [kind, _, outputs, stride, kernel, _] = outline(&net.nodes[node]);
    let padding =
        if let Layer::Conv2d(layers::Conv2d { padding, .. }) = net.nodes[node].op.layer() { padding.0[0][0] } else { 0 };
    [kind, kernel, stride, outputs.ln(), padding as f64].map(|number| number as f32).to_vec()
}

/// A child as it was before its training.
struct Best {
    child: Net,
    said: String,
    reward: f64,
}

/// The network and its children.
struct Family<'a> {
    method: &'a NetworkToNetwork,
    images: Dataset,
    meter: Option<Meter>,
    points: Points,
    /// Of the network.
    params: f64,
    accuracy: f64,
    /// Of all, by the rewards that the policies learn from: the second policy goes on from it even where none is within the budget yet.
    lead: Option<Best>,
    /// Of those within the budget.
    best: Option<Best>,
}

/// Makes a child of choices, and says what it is.
type Child<'a> = dyn FnMut(&[usize], &mut Context<'_>) -> Result<(String, Net)> + 'a;

impl Family<'_> {
    /// Has a policy choose children and learn from what they are worth.
    fn search(&mut self, policy: &mut Policy, steps: &[Vec<f32>], child: &mut Child<'_>, cx: &mut Context<'_>) -> Result<()> {
        let episodes = if steps.is_empty() { 0 } else { self.method.settings.episodes.get() };
        let mut means: Vec<f64> = Vec::new();
        for iteration in 0..episodes {
            let mut rollouts = Vec::new();
            for _ in 0..self.method.settings.rollouts.get() {
                let choices = policy.draw(steps);
                let worth = match child(&choices, cx) {
                    Ok((said, child)) => self.worth(said, child, iteration, cx)?,
                    Err(failure) if !failure.refuses() => return Err(failure),
                    Err(failure) => refused("a child", &failure.to_string(), REFUSED, cx),
                };
                rollouts.push((choices, worth));
            }
            let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
            means.push(mean(&rollouts.iter().map(|(_, reward)| *reward).collect::<Vec<f64>>()));
            let baseline = mean(&means);
            rollouts.iter_mut().for_each(|(_, reward)| *reward -= baseline);
            policy.learn(steps, &rollouts);
            let best = self.best.as_ref().map_or("none yet".into(), |best| format!("{:.4}", best.reward));
            let said = format!("iteration {} of {episodes}: reward {:.4}, best {best}", iteration + 1, means[iteration]);
            cx.host.event(Event::Note(&said));
        }
        Ok(())
    }

    /// The reward of a child in this iteration.
    fn worth(&mut self, said: String, child: Net, iteration: usize, cx: &mut Context<'_>) -> Result<f64> {
        let (method, parameters) = (self.method, Cost::of(&child)?.params() as f64 / self.params);
        if parameters >= 1.0 {
            return Ok(reward(0.0, parameters));
        }
        let accuracy = match self.accuracy_of(&said, &child, Some(&method.settings.train), cx)? {
            Ok(accuracy) => accuracy,
            Err(why) => return Ok(refused(&said, &why, REFUSED, cx)),
        };
        let reward = reward(accuracy / self.accuracy, parameters);
        let within = match &mut self.meter {
            Some(meter) => meter.of(&child, cx)? <= meter.limit,
            None => true,
        };
        let shaped = if within { reward } else { constrained(reward, iteration) };
        if self.lead.as_ref().is_none_or(|lead| shaped > lead.reward) {
            self.lead = Some(Best { child: child.deep_clone(), said: said.clone(), reward: shaped });
        }
        if within && self.best.as_ref().is_none_or(|best| reward > best.reward) {
            self.best = Some(Best { child, said, reward });
        }
        Ok(shaped)
    }

    /// Of a network after its training, or why that is refused.
    fn accuracy_of(
        &mut self,
        said: &str,
        net: &Net,
        train: Option<&Recipe>,
        cx: &mut Context<'_>,
    ) -> Result<std::result::Result<f64, String>> {
        accuracy(&mut self.points, said, &self.images, cx, |cx| cx.aside(|cx| tune(net.deep_clone(), train, cx)))
    }
}

/// The reward of a child that cannot be made or trained, that of one that is no smaller.
const REFUSED: f64 = -1.0;

#[cfg(test)]
mod tests;
