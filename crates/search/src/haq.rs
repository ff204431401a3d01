//! HAQ: an agent chooses bits under a budget.
//!
//! The agent of [`ddpg`](crate::ddpg) walks through the layers, the first and the last left out, which have the bits of `ends`. It sees whether the layer is depthwise,
//! its inputs, outputs, stride, kernel, weights, the side of the maps that it reads, and the index, each brought to `[0, 1]` over the layers; its action before; and
//! whether it is asked for the weights or, with `activations`, for what the layer reads. An action `a` in `[0, 1]` is `round((most - least + 1) a + least - 1/2)` bits,
//! within `least` and `most`. After a walk bits are taken away, one at a time from the last layer to the first and over again, until the budget is met, and what is then left of it is given
//! back, until the network comes within 2 % or no step fits. The reward is `0.1 (p - p0)`, with the accuracies in percent on validation images of the network after the method of `probe` with
//! these bits, and of the network as it is. That method calibrates, and trains only where `probe` has it do so; the best network of all walks is tuned.
//!
//! Budgets are of bytes of the container; of milliseconds, by a table of layers, measured in the engine with these bits and kept with the run, where a layer has more bits if it is no slower with them; or of `macs`,
//! multiply-accumulates by the bits of their factors, as a share of those in 32 bits.
//!
//! Wang, Liu, Lin, Lin, Han. "HAQ: Hardware-Aware Automated Quantization with Mixed Precision". CVPR 2019. arXiv:1811.08886.
//! Differs from the paper: rewards are of networks that were calibrated, not trained for an epoch; bits that a budget leaves are given back; the agent learns from the bits that were
//! measured; and none are 0, which the public code makes of the action 0 where `least` is 1.
//!
//! ```
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::pass::{Catalogue, Pass, Search};
//! use briquette_core::price::{Bytes, Price};
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_search::haq::{Haq, bits};
//! use burn::tensor::Device;
//!
//! const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! assert_eq!([0.0, 0.5, 0.95].map(|action| bits(action, 2, 8)), [2, 5, 8]);
//!
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.2, ..arch.wanted() }, &Device::flex())?;
//! let before = Bytes.of(&net)?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let settings = serde_json::json!({ "budget": { "bytes": 0.2 }, "ends": 6, "episodes": 3 });
//! let mut host = Memory::default();
//! let net = Haq::read(settings, METHODS)?.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! assert!(Bytes.of(&net)? <= 0.2 * before);
//! # Ok(())
//! # }
//! ```

mod costs;

use std::num::NonZeroUsize;

use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Catalogue, Method, Pass, Search};
use briquette_core::points::Points;
use briquette_core::streams::stream;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::{Bits, Layers, Ratio};
use briquette_data::Dataset;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, Value, json};

use crate::budget::{Budget, Meter};
use crate::ddpg::{Agent, Learning};
use crate::episodes::{Walk, best, normalized, outline, shorten};
use crate::fingerprint::fingerprint;
use crate::images::Images;
use crate::probe::Probe;
use crate::refill::{refill, sweep};
use crate::tried::{accuracy, refused};
use costs::Costs;

/// Gives each layer the bits that an agent chooses.
#[derive(Debug)]
pub struct Haq {
    probe: Probe,
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// The name of a method that takes bits by layer, and its other settings; without it `fixed-point`.
    #[serde(default = "grids")]
    probe: Map<String, Value>,
    /// What the network may cost.
    budget: Budget,
    /// Whether bits of what the layers read are chosen too.
    #[serde(default)]
    activations: bool,
    /// The fewest bits.
    #[serde(default = "two")]
    least: Bits,
    /// The most bits.
    #[serde(default = "eight")]
    most: Bits,
    /// Bits of the first and the last layer.
    #[serde(default = "eight")]
    ends: Bits,
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
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Training of the network that is chosen.
    tune: Option<Recipe>,
}

fn grids() -> Map<String, Value> {
    Map::from_iter([("method".into(), json!("fixed-point"))])
}

fn two() -> Bits {
    Bits::try_from(2).expect("a number of bits")
}

fn eight() -> Bits {
    Bits::try_from(8).expect("a number of bits")
}

fn episodes() -> NonZeroUsize {
    NonZeroUsize::new(600).expect("not zero")
}

fn explore() -> usize {
    20
}

fn decay() -> Ratio {
    Ratio::try_from(0.99).expect("a share")
}

fn hidden() -> NonZeroUsize {
    NonZeroUsize::new(300).expect("not zero")
}

impl Method for Haq {
    const NAME: &'static str = "haq";
    const FAMILY: &'static str = "search";
    const PAPER: &'static str = "Wang, Liu, Lin, Lin, Han, CVPR 2019, arXiv:1811.08886";
    const EXAMPLE: &'static str = "budget = { bytes = 0.4 }\nepisodes = 6\nexplore = 2\nhidden = 16";
}

impl Search for Haq {
    fn read(settings: Value, methods: Catalogue) -> std::result::Result<Self, serde_json::Error> {
        let mut settings: Settings = serde_json::from_value(settings)?;
        let open: &[&str] = if settings.activations { &["bits", "activations"] } else { &["bits"] };
        let probe = Probe::of(std::mem::take(&mut settings.probe), open, methods).map_err(serde_json::Error::custom)?;
        if settings.least.get() > settings.most.get() {
            return Err(serde_json::Error::custom("`least` is at most `most`"));
        }
        for bits in (settings.least.get()..=settings.most.get()).chain([settings.ends.get()]) {
            let tables: Vec<(&str, Map<String, Value>)> =
                open.iter().map(|key| (*key, Map::from_iter([("rest".into(), json!(bits))]))).collect();
            probe.with(&tables).map_err(serde_json::Error::custom)?;
        }
        Ok(Self { probe, settings })
    }
}

impl Pass for Haq {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        net.finite()?;
        self.plan(net.deep_clone())?;
        let images = self.settings.images.of(cx)?;
        let of = format!("{} {:?} {} {}", self.probe.settings(), self.settings.budget, images.len(), cx.seed);
        let points = Points::load(format!("haq-{}", fingerprint(&net, &of)), cx.host)?;
        let (places, mut meter) = (self.places(&net)?, Meter::new(self.settings.budget, &net, cx)?);
        let (costs, seen) = (Costs::measured(self, &net, &places, &mut meter, cx)?, places.seen(&net)?);
        let steps = places.steps.len();
        let mut quantizing =
            Quantizing { net: &net, probe: &self.probe, places, seen, costs, meter, points, images, before: 0.0 };
        let least = quantizing.cost(&vec![quantizing.places.least; steps]);
        if least > quantizing.meter.limit {
            return Err(quantizing.meter.unmet(least));
        }
        let as_it_is = accuracy(&mut quantizing.points, "as it is", &quantizing.images, cx, |_| Ok(net.deep_clone()))?;
        quantizing.before = as_it_is.map_err(Error::Invalid)?;
        let learning = Learning {
            hidden: self.settings.hidden.get(),
            explore: self.settings.explore,
            decay: self.settings.decay.get(),
            memory: 128 * steps.max(1),
        };
        let agent = Agent::new(SEEN, learning, stream(cx.seed, "haq"));
        let (choice, reward) = best(&mut quantizing, agent, self.settings.episodes.get(), cx)?;
        let (told, tables) = (quantizing.places.told(&choice), quantizing.places.tables(&choice));
        let Quantizing { places, costs, mut meter, before, .. } = quantizing;
        let net = self.probe.with(&tables)?.run(net, cx)?;
        let cost = costs.made(&net, &places.bits(&choice), &mut meter, cx)?;
        cx.note(format!("haq: {told}; {}, accuracy {:.2} %", meter.met(cost)?, 100.0 * before + 10.0 * reward));
        tune(net, self.settings.tune.as_ref(), cx)
    }

    /// Every layer has the most bits, less those that the sweep takes where shapes tell the cost; a container is counted by its weights alone.
    fn plan(&self, net: Net) -> Result<Net> {
        self.settings.tune.iter().try_for_each(Recipe::check)?;
        let places = self.places(&net)?;
        let mut choice = vec![places.most; places.steps.len()];
        for bits in places.least..places.most {
            self.probe.with(&places.tables(&vec![bits; choice.len()]))?.plan(net.deep_clone())?;
        }
        if let (Some(costs), Some(price)) = (Costs::counted(self, &net, &places)?, self.settings.budget.price()) {
            let whole = price.of(&net)?;
            let (limit, least) = (self.settings.budget.limit(whole), vec![places.least; choice.len()]);
            let cost = |choice: &[usize]| Ok(costs.of(&places.bits(choice)));
            if !sweep(&mut choice, &least, cost, limit)? {
                let budget = self.settings.budget;
                let least = cost(&choice)?;
                return Err(match budget {
                    Budget::Bytes(_) | Budget::Size(_) => budget.beyond("the weights alone come", least, whole),
                    Budget::Macs(_) | Budget::Ms(_) => budget.unmet(least, whole),
                });
            }
        }
        self.probe.with(&places.tables(&choice))?.plan(net)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("which layer has how many bits follows from rewards")
    }

    fn shorten(&mut self) {
        shorten(&mut self.settings.episodes, &mut self.settings.explore);
        self.settings.images.shorten();
        self.probe.trial = true;
    }
}

impl Haq {
    fn places(&self, net: &Net) -> Result<Places> {
        let chosen = self.settings.layers.without(&self.settings.except, net)?;
        let own: Vec<usize> = net.own_weights().map(|(index, _)| index).collect();
        let free = |layer: &usize| own.first() != Some(layer) && own.last() != Some(layer);
        let layers: Vec<(usize, String)> = chosen.iter().map(|index| (*index, net.nodes[*index].name.clone())).collect();
        let of =
            |at: usize| [false, true].into_iter().filter(|read| !read || self.settings.activations).map(move |read| (at, read));
        let steps = (0..layers.len()).filter(|at| free(&layers[*at].0)).flat_map(of).collect();
        let [least, most, ends] = [self.settings.least, self.settings.most, self.settings.ends].map(|bits| bits.get() as usize);
        Ok(Places { layers, steps, activations: self.settings.activations, least, most, ends })
    }
}

/// Where bits are chosen.
struct Places {
    /// The layers that are quantized: node and name.
    layers: Vec<(usize, String)>,
    /// The choices: a layer, as an index into these, and whether it is about what it reads.
    steps: Vec<(usize, bool)>,
    activations: bool,
    least: usize,
    most: usize,
    ends: usize,
}

/// Numbers of a state.
const SEEN: usize = 10;

impl Places {
    /// Bits of each layer's weights, and of what it reads.
    fn bits(&self, choice: &[usize]) -> Vec<[usize; 2]> {
        let mut bits = vec![[self.ends; 2]; self.layers.len()];
        self.steps.iter().zip(choice).for_each(|((layer, read), chosen)| bits[*layer][usize::from(*read)] = *chosen);
        bits
    }

    /// The choice that is as many bits.
    fn choice(&self, bits: &[[usize; 2]]) -> Vec<usize> {
        self.steps.iter().map(|(layer, read)| bits[*layer][usize::from(*read)]).collect()
    }

    /// Whether bits of a layer are chosen.
    fn chosen(&self, layer: usize) -> bool {
        self.steps.iter().any(|(at, _)| *at == layer)
    }

    /// The tables that `probe` takes.
    fn tables(&self, choice: &[usize]) -> Vec<(&'static str, Map<String, Value>)> {
        let bits = self.bits(choice);
        let table = |of: usize| -> Map<String, Value> {
            self.layers.iter().zip(&bits).map(|((_, name), bits)| (name.clone(), bits[of].into())).collect()
        };
        let reads = self.activations.then(|| ("activations", table(1)));
        [("bits", table(0))].into_iter().chain(reads).collect()
    }

    /// The bits, for people.
    fn told(&self, choice: &[usize]) -> String {
        let of = |((_, name), [weights, reads]): (&(usize, String), [usize; 2])| match self.activations {
            true => format!("{name} {weights} by {reads}"),
            false => format!("{name} {weights}"),
        };
        format!("bits of {}", self.layers.iter().zip(self.bits(choice)).map(of).collect::<Vec<_>>().join(", "))
    }

    /// What the agent sees of each step but for its action before.
    fn seen(&self, net: &Net) -> Result<Vec<Vec<f64>>> {
        let (shapes, cost) = (net.shapes()?, Cost::of(net)?);
        let row = |(layer, read): &(usize, bool)| -> Vec<f64> {
            let (index, _) = self.layers[*layer];
            let node = &net.nodes[index];
            let [_, inputs, outputs, stride, kernel, weights] = outline(node);
            let depthwise =
                cost.layers.iter().any(|own| own.node == index && own.shape.len() == 4 && own.shape[1] == 1) && inputs > 1.0;
            let side = shapes[node.inputs[0]].get(1).copied().unwrap_or(1);
            let numbers = [f64::from(u8::from(depthwise)), inputs, outputs, stride, kernel, weights, side as f64];
            numbers.into_iter().chain([*layer as f64, f64::from(u8::from(!read))]).collect()
        };
        Ok(normalized(self.steps.iter().map(row).collect()))
    }
}

/// A network that is being quantized.
struct Quantizing<'a> {
    net: &'a Net,
    probe: &'a Probe,
    places: Places,
    seen: Vec<Vec<f64>>,
    costs: Costs,
    meter: Meter,
    points: Points,
    images: Dataset,
    /// Accuracy of the network as it is.
    before: f64,
}

impl Quantizing<'_> {
    fn cost(&self, choice: &[usize]) -> f64 {
        self.costs.of(&self.places.bits(choice))
    }
}

impl Walk for Quantizing<'_> {
    fn steps(&self) -> usize {
        self.places.steps.len()
    }

    fn state(&mut self, taken: &[f64], _: &mut Context<'_>) -> Result<Vec<f32>> {
        let before = taken.last().copied().unwrap_or(1.0);
        Ok(self.seen[taken.len()].iter().copied().chain([before]).map(|number| number as f32).collect())
    }

    fn choice(&mut self, actions: &[f64], _: &mut Context<'_>) -> Result<(Vec<usize>, Vec<f64>)> {
        let (least, most) = (self.places.least, self.places.most);
        let mut choice: Vec<usize> = actions.iter().map(|action| bits(*action, least, most)).collect();
        let (count, limit, cost) = (choice.len(), self.meter.limit, |choice: &[usize]| Ok(self.cost(choice)));
        sweep(&mut choice, &vec![least; count], cost, limit)?;
        refill(&mut choice, &vec![most; count], &(0..count).collect::<Vec<_>>(), cost, limit)?;
        let choice = self.places.choice(&self.costs.raised(&self.places.bits(&choice)));
        // The middle of the actions that are as many bits.
        let actions = choice.iter().map(|bits| ((bits - least) as f64 + 0.5) / (most - least + 1) as f64).collect();
        Ok((choice, actions))
    }

    fn reward(&mut self, choice: &[usize], cx: &mut Context<'_>) -> Result<f64> {
        let (told, bits) = (self.places.told(choice), self.places.bits(choice));
        let found = accuracy(&mut self.points, &told, &self.images, cx, |cx| {
            let quantized = self.probe.apply(self.net, &self.places.tables(choice), cx)?;
            let cost = self.costs.made(&quantized, &bits, &mut self.meter, cx)?;
            self.meter.met(cost)?;
            Ok(quantized)
        })?;
        Ok(match found {
            Ok(accuracy) => 10.0 * (accuracy - self.before),
            Err(why) => refused(&told, &why, -10.0 * self.before, cx),
        })
    }
}

/// The bits that an action is, `round((most - least + 1) action + least - 1/2)`, halves to even, within `least` and `most`.
pub fn bits(action: f64, least: usize, most: usize) -> usize {
    let found = ((most - least + 1) as f64 * action + least as f64 - 0.5).round_ties_even();
    (found.max(0.0) as usize).clamp(least, most)
}

#[cfg(test)]
mod tests;
