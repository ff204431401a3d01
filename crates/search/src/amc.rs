//! AMC: an agent prunes channels under a budget.
//!
//! The agent of [`ddpg`](crate::ddpg) walks through the groups of channels that can be cut. It sees of the group's first layer the index, the type (0 a convolution, 1 a fully
//! connected layer), inputs, outputs, stride, kernel and weights, each brought to `[0, 1]` over the groups, and of the walk so far the share of the budget's unit that
//! went, the share of the multiply-accumulates that is still to come, and its action before. An action `a` is the share of the channels that stay: the least multiple of `round` above `a n`,
//! cut down so that the budget can still be met with all later groups at their `least`. What a walk leaves of the budget is then given
//! back, `round` channels at a time, until it comes within 2 % or no step fits. What channels cost is told by the plan of `probe`: where only data say which channels of a
//! padded shortcut stay, that is the most they may cost, and more of the budget is left, which a note says. The reward is the accuracy on validation images of the network so pruned, by the method of
//! `probe`: without one the filters of the smallest L1 norm go, and batch norms are estimated anew. Nothing is trained until the best network of all walks is.
//!
//! He, Lin, Liu, Wang, Li, Han. "AMC: AutoML for Model Compression and Acceleration on Mobile Devices". ECCV 2018. arXiv:1802.03494.
//! Differs from the paper: an action is of a group of channels that can only be cut together, where the paper has one for the inputs of each layer, and its state is as in the public code; weights are refitted
//! by least squares only where `probe` does that, as `channel-lasso` and `thinet` do; rewards are of networks as near to the budget as steps allow, not of any below it, and the agent learns
//! from the shares that were measured.
//!
//! ```
//! use briquette_core::cost::Cost;
//! use briquette_core::pass::{Catalogue, Pass, Search};
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_search::amc::Amc;
//! use burn::tensor::Device;
//!
//! const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet5")?;
//! let net = arch.build(&arch.wanted(), &Device::flex())?;
//! let before = Cost::of(&net)?.macs();
//! let settings = serde_json::json!({ "budget": { "macs": 0.5 }, "round": 1 });
//! // A plan gives all groups about the same share.
//! let planned = Cost::of(&Amc::read(settings, METHODS)?.plan(net)?)?.macs();
//! assert!((0.49..=0.5).contains(&(planned as f64 / before as f64)));
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Catalogue, Method, Pass, Search};
use briquette_core::points::Points;
use briquette_core::streams::stream;
use briquette_core::surgery::ChannelGroup;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::{Layers, Ratio};
use briquette_data::Dataset;
use briquette_parts::allocation::partition;
use briquette_parts::channels::groups;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, Value, json};

use crate::budget::{Budget, Meter};
use crate::ddpg::{Agent, Learning};
use crate::episodes::{Walk, best, normalized, outline, shorten};
use crate::fingerprint::fingerprint;
use crate::images::Images;
use crate::probe::Probe;
use crate::refill::refill;
use crate::tried::{accuracy, refused};

/// Prunes channels as an agent chooses.
#[derive(Debug)]
pub struct Amc {
    probe: Probe,
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// The name of a method that cuts channels, and its settings but for `ratio`; without it `filter-l1` with `renew`.
    #[serde(default = "filters")]
    probe: Map<String, Value>,
    /// What the network may cost.
    budget: Budget,
    /// Share of each group's channels that stays at the least.
    #[serde(default = "fifth")]
    least: Ratio,
    /// Channels stay in multiples of it.
    #[serde(default = "eight")]
    round: NonZeroUsize,
    /// Walks through the network.
    #[serde(default = "episodes")]
    episodes: NonZeroUsize,
    /// Walks at the start whose actions are uniform.
    #[serde(default = "explore")]
    explore: usize,
    /// What the noise of actions is multiplied by after each further walk.
    #[serde(default = "decay")]
    decay: Ratio,
    /// Units of each hidden layer of the agent.
    #[serde(default = "hidden")]
    hidden: NonZeroUsize,
    /// Validation images that rewards are measured on; all without it.
    #[serde(default)]
    images: Images,
    /// Layers whose groups may be cut, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers whose groups are left alone.
    #[serde(default)]
    except: Layers,
    /// Training of the network that is chosen.
    tune: Option<Recipe>,
}

fn filters() -> Map<String, Value> {
    Map::from_iter([("method".into(), json!("filter-l1")), ("renew".into(), json!(true))])
}

fn fifth() -> Ratio {
    Ratio::try_from(0.2).expect("a share")
}

fn eight() -> NonZeroUsize {
    NonZeroUsize::new(8).expect("not zero")
}

fn episodes() -> NonZeroUsize {
    NonZeroUsize::new(800).expect("not zero")
}

fn explore() -> usize {
    100
}

fn decay() -> Ratio {
    Ratio::try_from(0.95).expect("a share")
}

fn hidden() -> NonZeroUsize {
    NonZeroUsize::new(300).expect("not zero")
}

impl Method for Amc {
    const NAME: &'static str = "amc";
    const FAMILY: &'static str = "search";
    const PAPER: &'static str = "He, Lin, Liu, Wang, Li, Han, ECCV 2018, arXiv:1802.03494";
    const EXAMPLE: &'static str = "budget = { macs = 0.6 }\nround = 1\nepisodes = 6\nexplore = 2\nhidden = 16";
}

impl Search for Amc {
    fn read(settings: Value, methods: Catalogue) -> std::result::Result<Self, serde_json::Error> {
        let mut settings: Settings = serde_json::from_value(settings)?;
        let probe = Probe::cutting(std::mem::take(&mut settings.probe), methods).map_err(serde_json::Error::custom)?;
        Ok(Self { probe, settings })
    }
}

impl Pass for Amc {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        net.finite()?;
        self.plan(net.deep_clone())?;
        let images = self.settings.images.of(cx)?;
        let of = format!("{} {:?} {} {}", self.probe.settings(), self.settings.budget, images.len(), cx.seed);
        let points = Points::load(format!("amc-{}", fingerprint(&net, &of)), cx.host)?;
        let meter = Meter::new(self.settings.budget, &net, cx)?;
        let cuts = self.cuts(&net)?;
        let seen = seen(&net, &cuts.groups)?;
        let mut pruning = Pruning { net: &net, probe: &self.probe, cuts, seen, meter, costs: BTreeMap::new(), points, images };
        let least = pruning.cuts.least();
        let cost = pruning.cost(&least, cx)?;
        if cost > pruning.meter.limit {
            return Err(pruning.meter.unmet(cost));
        }
        let learning = Learning {
            hidden: self.settings.hidden.get(),
            explore: self.settings.explore,
            decay: self.settings.decay.get(),
            memory: 100 * pruning.steps(),
        };
        let agent = Agent::new(SEEN, learning, stream(cx.seed, "amc"));
        let (choice, accuracy) = best(&mut pruning, agent, self.settings.episodes.get(), cx)?;
        let (told, tables, mut meter) = (pruning.cuts.told(&choice), pruning.cuts.tables(&choice), pruning.meter);
        let net = if tables[0].1.is_empty() { net } else { self.probe.with(&tables)?.run(net, cx)? };
        let cost = meter.of(&net, cx)?;
        cx.note(format!("amc: {told}; {}, accuracy {:.2} %", meter.met(cost)?, 100.0 * accuracy));
        tune(net, self.settings.tune.as_ref(), cx)
    }

    /// All groups rise from their least together, as far as the budget allows where shapes tell the cost.
    fn plan(&self, net: Net) -> Result<Net> {
        self.settings.tune.iter().try_for_each(Recipe::check)?;
        let cuts = self.cuts(&net)?;
        let mut choice = cuts.least();
        if let Some(price) = self.settings.budget.price() {
            let whole = price.of(&net)?;
            let limit = self.settings.budget.limit(whole);
            let cost = |choice: &[usize]| price.of(&cuts.planned(&self.probe, &net, choice)?);
            let least = cost(&choice)?;
            if least > limit {
                return Err(self.settings.budget.unmet(least, whole));
            }
            refill(&mut choice, &cuts.most(), &cuts.order(), cost, limit)?;
        }
        cuts.planned(&self.probe, &net, &choice)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("every group loses about the same share here; what each loses follows from rewards")
    }

    fn shorten(&mut self) {
        shorten(&mut self.settings.episodes, &mut self.settings.explore);
        self.settings.images.shorten();
        self.probe.trial = true;
    }
}

impl Amc {
    fn cuts(&self, net: &Net) -> Result<Cuts> {
        let groups = groups(net, &self.settings.layers, &self.settings.except)?;
        match groups.is_empty() {
            true => Err(Error::Invalid("amc: no channels can be cut; `briquette inspect` says why not".into())),
            false => Ok(Cuts { groups, least: self.settings.least.get(), round: self.settings.round.get() }),
        }
    }
}

/// The groups, and the multiples of `round` channels that may stay of each.
struct Cuts {
    groups: Vec<ChannelGroup>,
    least: f64,
    round: usize,
}

impl Cuts {
    fn least(&self) -> Vec<usize> {
        (0..self.groups.len()).map(|group| self.multiples(group, self.least).max(1)).collect()
    }

    fn most(&self) -> Vec<usize> {
        self.groups.iter().map(|group| group.len().div_ceil(self.round)).collect()
    }

    fn order(&self) -> Vec<usize> {
        (0..self.groups.len()).collect()
    }

    /// The multiples that hold this share of a group's channels.
    fn multiples(&self, group: usize, share: f64) -> usize {
        // A share that was made of channels gives them back.
        ((share * self.groups[group].len() as f64 - 1e-9) / self.round as f64).ceil().max(0.0) as usize
    }

    /// Channels of a group.
    fn channels(&self, group: usize, multiples: usize) -> usize {
        self.groups[group].len().min(multiples * self.round)
    }

    fn share(&self, group: usize, multiples: usize) -> f64 {
        self.channels(group, multiples) as f64 / self.groups[group].len() as f64
    }

    /// The network's structure after the method, which decides what stays: where a shortcut pads channels, not all cost the same.
    fn planned(&self, probe: &Probe, net: &Net, choice: &[usize]) -> Result<Net> {
        let (net, tables) = (net.deep_clone(), self.tables(choice));
        if tables[0].1.is_empty() { Ok(net) } else { probe.with(&tables)?.plan(net) }
    }

    /// The ratios that go, of the groups that lose any.
    fn tables(&self, choice: &[usize]) -> [(&'static str, Map<String, Value>); 1] {
        let each = self.groups.iter().enumerate().zip(choice);
        let gone = each.map(|((at, group), multiples)| (group.name.clone(), 1.0 - self.share(at, *multiples)));
        [("ratio", gone.filter(|(_, ratio)| *ratio > 0.0).map(|(name, ratio)| (name, ratio.into())).collect())]
    }

    /// What stays of each group, for people.
    fn told(&self, choice: &[usize]) -> String {
        let each = self.groups.iter().enumerate().zip(choice);
        let of = |((at, group), multiples): ((usize, &ChannelGroup), &usize)| {
            format!("{} {} of {}", group.name, self.channels(at, *multiples), group.len())
        };
        each.map(of).collect::<Vec<_>>().join(", ")
    }
}

/// A network that is being pruned.
struct Pruning<'a> {
    net: &'a Net,
    probe: &'a Probe,
    cuts: Cuts,
    /// What the agent sees of each group.
    seen: Vec<Vec<f64>>,
    meter: Meter,
    /// Of the choices that were asked for.
    costs: BTreeMap<Vec<usize>, f64>,
    points: Points,
    images: Dataset,
}

/// Numbers of a state.
const SEEN: usize = 10;

/// Of each group index, type, inputs, outputs, stride, kernel and weights, brought to `[0, 1]`, and the share of the multiply-accumulates that is still to come.
fn seen(net: &Net, groups: &[ChannelGroup]) -> Result<Vec<Vec<f64>>> {
    let cost = Cost::of(net)?;
    let of = |node: usize| cost.layers.iter().filter(|layer| layer.node == node).map(|layer| layer.macs as f64).sum::<f64>();
    let macs: Vec<f64> = groups.iter().map(|group| group.producers().map(of).sum()).collect();
    let row = |(at, group): (usize, &ChannelGroup)| -> Vec<f64> {
        let outlined = group.producers().next().map_or([0.0; 6], |node| outline(&net.nodes[node]));
        std::iter::once(at as f64).chain(outlined).collect()
    };
    let mut rows = normalized(groups.iter().enumerate().map(row).collect());
    for (at, row) in rows.iter_mut().enumerate() {
        row.push(macs[at..].iter().sum::<f64>() / cost.macs().max(1) as f64);
    }
    Ok(rows)
}

impl Pruning<'_> {
    fn cost(&mut self, choice: &[usize], cx: &mut Context<'_>) -> Result<f64> {
        if let Some(known) = self.costs.get(choice) {
            return Ok(*known);
        }
        let cost = self.meter.of(&self.cuts.planned(self.probe, self.net, choice)?, cx)?;
        self.costs.insert(choice.to_vec(), cost);
        Ok(cost)
    }

    /// What is chosen so far, and `others` of the groups that are still to come.
    fn so_far(&self, taken: &[f64], others: Vec<usize>) -> Vec<usize> {
        let chosen = taken.iter().enumerate().map(|(group, share)| self.cuts.multiples(group, *share));
        chosen.chain(others.into_iter().skip(taken.len())).collect()
    }
}

impl Walk for Pruning<'_> {
    fn steps(&self) -> usize {
        self.cuts.groups.len()
    }

    fn state(&mut self, taken: &[f64], cx: &mut Context<'_>) -> Result<Vec<f32>> {
        let choice = self.so_far(taken, self.cuts.most());
        let gone = 1.0 - self.cost(&choice, cx)? / self.meter.whole;
        let before = taken.last().copied().unwrap_or(1.0);
        Ok(self.seen[taken.len()].iter().copied().chain([gone, before]).map(|number| number as f32).collect())
    }

    fn bounded(&mut self, taken: &[f64], action: f64, cx: &mut Context<'_>) -> Result<f64> {
        let (at, least, limit) = (taken.len(), self.cuts.least(), self.meter.limit);
        let wanted = self.cuts.multiples(at, action).clamp(least[at], self.cuts.most()[at]);
        let mut choice = self.so_far(taken, least.clone());
        let fits = |multiples: usize| {
            choice[at] = multiples;
            Ok(self.cost(&choice, cx)? <= limit)
        };
        let multiples = clip(wanted, least[at], fits)?;
        Ok(self.cuts.share(at, multiples))
    }

    fn choice(&mut self, actions: &[f64], cx: &mut Context<'_>) -> Result<(Vec<usize>, Vec<f64>)> {
        let (mut choice, limit) = (self.so_far(actions, Vec::new()), self.meter.limit);
        let (most, order) = (self.cuts.most(), self.cuts.order());
        refill(&mut choice, &most, &order, |choice| self.cost(choice, cx), limit)?;
        let shares = choice.iter().enumerate().map(|(group, multiples)| self.cuts.share(group, *multiples)).collect();
        Ok((choice, shares))
    }

    /// The accuracy; none is found by what the method refuses, or what costs more than it may.
    fn reward(&mut self, choice: &[usize], cx: &mut Context<'_>) -> Result<f64> {
        let (told, tables) = (self.cuts.told(choice), self.cuts.tables(choice));
        let found = accuracy(&mut self.points, &told, &self.images, cx, |cx| {
            let pruned = if tables[0].1.is_empty() { self.net.deep_clone() } else { self.probe.apply(self.net, &tables, cx)? };
            let cost = self.meter.of(&pruned, cx)?;
            self.meter.met(cost)?;
            Ok(pruned)
        })?;
        Ok(found.unwrap_or_else(|why| refused(&told, &why, 0.0, cx)))
    }
}

/// The largest number up to `wanted` that `fits`, and `least` where none above it does.
///
/// # Errors
/// Those of `fits`.
pub fn clip(wanted: usize, least: usize, mut fits: impl FnMut(usize) -> Result<bool>) -> Result<usize> {
    if wanted <= least || fits(wanted)? {
        return Ok(wanted.max(least));
    }
    Ok(least + partition(wanted - least - 1, |more| fits(least + more + 1))?)
}

#[cfg(test)]
mod tests;
