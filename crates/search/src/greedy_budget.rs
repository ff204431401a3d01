//! One value of a setting for each layer, under a budget or a loss of accuracy.
//!
//! For every layer `l` and value `v` of the `sweep` the method of `probe` is applied to `l` alone, and what the network then reaches on validation images, `a_l(v)`, and what it costs, are
//! kept in a dictionary, beside those of the network as it is, in which `l` is left alone. For a threshold `a` each layer takes its cheapest value with `a_l(v) >= a`. With a `budget` the
//! highest `a` is found at which the network costs no more, by bisection over the dictionary; what is then left of the budget is given back in steps between the values,
//! the layer that suffers most first, as long as each step is no less accurate alone and none costs more than the layer as it is, until the network comes within 2 % of it or no step fits. With `max-drop` the lowest `a` is found at which
//! the network with all layers changed loses no more points of accuracy; costs are then bytes of the container.
//!
//! Ratios of channels, bits, shares of weights, and ranks (`sweep = { ranks.fraction = [0.25, 0.5] }`) are all chosen so. Layers whose channels can only be cut together are one layer, by the name of the
//! first; what the method refuses is left alone, unless `layers` names it.
//!
//! Siddegowda, Fournarakis, Nagel, Blankevoort, Patel, Khobare. "Neural Network Quantization with AI Model Efficiency Toolkit (AIMET)". arXiv:2201.08442, 2022, whose toolkit selects ratios of
//! compression with a dictionary of evaluations. Differs from it: bisection goes over the accuracies that were measured, so that the result is exact; what remains of the
//! budget is given back; a loss of accuracy can take the place of a budget; and one engine serves ratios, bits and ranks.
//!
//! ```
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::cost::Cost;
//! use briquette_core::pass::{Catalogue, Pass, Search};
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_search::greedy_budget::GreedyBudget;
//! use burn::tensor::Device;
//!
//! const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.2, ..arch.wanted() }, &Device::flex())?;
//! let before = Cost::of(&net)?.macs() as f64;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let probe = serde_json::json!({ "method": "filter-l1" });
//! let settings = serde_json::json!({ "probe": probe, "sweep": { "ratio": [0.9, 0.5] }, "budget": { "macs": 0.5 } });
//! let mut host = Memory::default();
//! let net = GreedyBudget::read(settings, METHODS)?.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! let left = Cost::of(&net)?.macs() as f64 / before;
//! assert!((0.49..=0.5).contains(&left), "{left}");
//! # Ok(())
//! # }
//! ```

mod units;

use briquette_core::context::{Context, Event};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Catalogue, Method, Pass, Search};
use briquette_core::points::Points;
use briquette_core::training::{Recipe, evaluate, tune};
use briquette_core::types::{Layers, Ratio};
use briquette_data::Dataset;
use briquette_parts::allocation::{Trial, by_accuracy, ladder, partition};
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::budget::{Budget, Meter};
use crate::fingerprint::fingerprint;
use crate::images::Images;
use crate::probe::{Probe, Sweep};
use crate::refill::refill;
use units::{Unit, between};

/// Gives each layer the value that it bears.
#[derive(Debug)]
pub struct GreedyBudget {
    probe: Probe,
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// The name of the method and its settings, but for one.
    probe: Map<String, Value>,
    /// That setting, which must take a value for each layer, and the values to try.
    sweep: Sweep,
    /// What the network may cost.
    budget: Option<Budget>,
    /// Points of accuracy on validation images that may be lost.
    max_drop: Option<f64>,
    /// Layers to work on; without it all that hold weights, those left out that the method refuses.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Validation images to measure on; all without it.
    #[serde(default)]
    images: Images,
    /// Training of the network that is chosen.
    tune: Option<Recipe>,
}

/// How far the search goes.
enum Goal {
    Budget(Budget),
    /// Share of the images whose class may be lost.
    Drop(f64),
}

impl Method for GreedyBudget {
    const NAME: &'static str = "greedy-budget";
    const FAMILY: &'static str = "search";
    const PAPER: &'static str = "AIMET, Siddegowda et al., 2022, arXiv:2201.08442";
    const EXAMPLE: &'static str = "probe = { method = \"filter-l1\" }\nsweep = { ratio = [0.75, 0.25] }\nbudget = { macs = 0.6 }";
}

impl Search for GreedyBudget {
    fn read(settings: Value, methods: Catalogue) -> std::result::Result<Self, serde_json::Error> {
        let mut settings: Settings = serde_json::from_value(settings)?;
        let probe = Probe::of(std::mem::take(&mut settings.probe), &[&settings.sweep.key], methods);
        let probe = probe.map_err(serde_json::Error::custom)?;
        for value in &settings.sweep.values {
            probe.with(&settings.sweep.table([("rest", value)])).map_err(serde_json::Error::custom)?;
        }
        Ok(Self { probe, settings })
    }
}

impl Pass for GreedyBudget {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        net.finite()?;
        let (units, goal) = self.checked(&net)?;
        let images = self.settings.images.of(cx)?;
        let budget = match goal {
            Goal::Budget(budget) => budget,
            Goal::Drop(_) => Budget::Bytes(Ratio::try_from(1.0).expect("a share")),
        };
        let meter = Meter::new(budget, &net, cx)?;
        let of = format!("{} {} {budget:?} {} {}", self.probe.settings(), self.settings.sweep, images.len(), cx.seed);
        let points = Points::load(format!("greedy-budget-{}", fingerprint(&net, &of)), cx.host)?;
        let costs = Points::load(format!("greedy-costs-{}", fingerprint(&net, &of)), cx.host)?;
        let mut trials = Trials { greedy: self, net: &net, images, meter, points, costs };
        let table = trials.table(units, cx)?;
        let choice = match goal {
            Goal::Budget(_) => trials.within_budget(&table, cx)?,
            Goal::Drop(drop) => trials.within_drop(&table, drop, cx)?,
        };
        let chosen = pairs(&table, &choice);
        let (told, mut meter) = (self.told(&chosen), trials.meter);
        let net = if chosen.is_empty() { net } else { self.probe.with(&self.settings.sweep.table(chosen))?.run(net, cx)? };
        let cost = meter.of(&net, cx)?;
        let comes = if let Goal::Budget(_) = goal { meter.met(cost)? } else { meter.written(cost) };
        cx.note(format!("greedy-budget: {told}; {comes}"));
        tune(net, self.settings.tune.as_ref(), cx)
    }

    /// Each layer has the value that costs the fewest multiply-accumulates alone.
    fn plan(&self, net: Net) -> Result<Net> {
        let (units, _) = self.checked(&net)?;
        self.probe.with(&self.settings.sweep.table(units::cheapest(&units)))?.plan(net)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("the plan gives every layer its cheapest value; which it gets follows from accuracies")
    }

    fn shorten(&mut self) {
        self.settings.images.shorten();
        self.probe.trial = true;
    }
}

impl GreedyBudget {
    /// What can be chosen, and under what; refuses what no choice meets, where shapes tell.
    fn checked(&self, net: &Net) -> Result<(Vec<Unit>, Goal)> {
        self.settings.tune.iter().try_for_each(Recipe::check)?;
        let goal = match (self.settings.budget, self.settings.max_drop) {
            (Some(budget), None) => Goal::Budget(budget),
            (None, Some(points)) if points.is_finite() && points >= 0.0 => Goal::Drop(points / 100.0),
            (None, Some(points)) => {
                return Err(Error::Invalid(format!(
                    "greedy-budget: `max-drop` is a number of points of at least 0, not {points}"
                )));
            }
            _ => return Err(Error::Invalid("greedy-budget takes exactly one of `budget` and `max-drop`".into())),
        };
        let units = self.units(net)?;
        if let Goal::Budget(budget @ Budget::Macs(_)) = goal
            && let Some(price) = budget.price()
        {
            let planned = self.probe.with(&self.settings.sweep.table(units::cheapest(&units)))?.plan(net.deep_clone())?;
            let (whole, least) = (price.of(net)?, price.of(&planned)?);
            if least > budget.limit(whole) {
                return Err(budget.unmet(least, whole));
            }
        }
        Ok((units, goal))
    }

    /// A copy of the network with these values.
    fn applied(&self, net: &Net, values: &[(&str, &Number)], cx: &mut Context<'_>) -> Result<Net> {
        match values.is_empty() {
            true => Ok(net.deep_clone()),
            false => self.probe.apply(net, &self.settings.sweep.table(values.iter().copied()), cx),
        }
    }

    /// The values, for people.
    fn told(&self, chosen: &[(&str, &Number)]) -> String {
        let of: Vec<String> = chosen.iter().map(|(layer, value)| format!("{layer} = {value}")).collect();
        format!("{} of {}", self.settings.sweep, if of.is_empty() { "no layer".into() } else { of.join(", ") })
    }
}

/// What a network reaches and costs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Tried {
    accuracy: f64,
    cost: f64,
}

/// What a layer may become, from the cheapest to the dearest.
struct Rungs {
    layer: String,
    /// None leaves it alone.
    values: Vec<Option<Number>>,
    trials: Vec<Trial>,
}

impl Rungs {
    /// The values from a rung up that reach no less for what they cost more, none dearer than the layer as it is, with steps between neighbours.
    fn above(&self, rung: usize, between: impl Fn(&Number, &Number) -> Vec<Number>) -> Vec<Option<Number>> {
        let (mut from, mut reached) = (&self.values[rung], self.trials[rung].accuracy);
        let mut above = vec![from.clone()];
        for (value, trial) in self.values.iter().zip(&self.trials).skip(rung + 1) {
            if from.is_none() {
                break;
            }
            if trial.accuracy >= reached {
                if let (Some(from), Some(to)) = (from, value) {
                    let steps = between(from, to).into_iter().map(Some);
                    above.extend(steps.filter(|step| !self.values.contains(step)));
                }
                above.push(value.clone());
                (from, reached) = (value, trial.accuracy);
            }
            if value.is_none() {
                break;
            }
        }
        above
    }
}

/// Of each layer a value, none where it stays as it is.
type Choice = Vec<Option<Number>>;

/// The values of these rungs.
fn values(table: &[Rungs], rungs: &[usize]) -> Choice {
    table.iter().zip(rungs).map(|(layer, rung)| layer.values[*rung].clone()).collect()
}

/// The layers that do not stay as they are, with their values.
fn pairs<'a>(table: &'a [Rungs], choice: &'a [Option<Number>]) -> Vec<(&'a str, &'a Number)> {
    table.iter().zip(choice).filter_map(|(rungs, value)| Some((rungs.layer.as_str(), value.as_ref()?))).collect()
}

/// The dictionary.
struct Trials<'a> {
    greedy: &'a GreedyBudget,
    net: &'a Net,
    images: Dataset,
    meter: Meter,
    points: Points<Tried>,
    /// Of values together.
    costs: Points<f64>,
}

impl Trials<'_> {
    /// Every layer with every value that it takes.
    fn table(&mut self, units: Vec<Unit>, cx: &mut Context<'_>) -> Result<Vec<Rungs>> {
        let sweep = &self.greedy.settings.sweep;
        let as_is = self.tried("as it is", &[], cx)?.map_err(Error::Invalid)?;
        let (total, mut done, mut table) = (units.iter().map(|unit| unit.values.len()).sum::<usize>(), 0, Vec::new());
        for unit in units {
            let mut tried: Vec<(Option<Number>, Tried)> = vec![(None, as_is)];
            for (value, _) in unit.values {
                let point = sweep.point(&unit.layer, &value);
                let found = self.tried(&point, &[(unit.layer.as_str(), &value)], cx)?;
                done += 1;
                let said = match found {
                    Ok(found) => {
                        tried.push((Some(value), found));
                        format!("{:.2} %", 100.0 * found.accuracy)
                    }
                    Err(refused) => format!("left out, {refused}"),
                };
                cx.host.event(Event::Note(&format!("{done} of {total}: {point}: {said}")));
            }
            tried.sort_by(|(_, a), (_, b)| a.cost.total_cmp(&b.cost).then(a.accuracy.total_cmp(&b.accuracy)));
            let (values, tried): (Vec<_>, Vec<_>) = tried.into_iter().unzip();
            let trials = tried.iter().map(|tried| Trial { cost: tried.cost, accuracy: tried.accuracy }).collect();
            table.push(Rungs { layer: unit.layer, values, trials });
        }
        Ok(table)
    }

    /// The network with these values, measured once.
    fn tried(
        &mut self,
        name: &str,
        values: &[(&str, &Number)],
        cx: &mut Context<'_>,
    ) -> Result<std::result::Result<Tried, String>> {
        self.points.get(name, cx, |cx| {
            let changed = self.greedy.applied(self.net, values, cx)?;
            let accuracy = evaluate(&changed, &self.images, &cx.device, cx.host)?.accuracy;
            Ok(Tried { accuracy, cost: self.meter.of(&changed, cx)? })
        })
    }

    /// What these values together cost, measured once.
    fn cost(&mut self, values: &[(&str, &Number)], cx: &mut Context<'_>) -> Result<f64> {
        let cost = self.costs.get(&self.greedy.told(values), cx, |cx| {
            let changed = self.greedy.applied(self.net, values, cx)?;
            self.meter.of(&changed, cx)
        })?;
        cost.map_err(Error::Invalid)
    }

    /// The highest rung that the budget pays, and what it leaves given back.
    fn within_budget(&mut self, table: &[Rungs], cx: &mut Context<'_>) -> Result<Choice> {
        let trials: Vec<Vec<Trial>> = table.iter().map(|rungs| rungs.trials.clone()).collect();
        let limit = self.meter.limit;
        let least = self.cost(&pairs(table, &values(table, &ladder(&trials)?[0])), cx)?;
        if least > limit {
            return Err(self.meter.unmet(least));
        }
        let found = by_accuracy(&trials, |rungs| self.cost(&pairs(table, &values(table, rungs)), cx), limit)?.choice;
        let (greedy, net) = (self.greedy, self.net);
        let whole = greedy.settings.sweep.values.iter().all(|value| value.is_i64() || value.is_u64());
        let above = |(rungs, rung): (&Rungs, &usize)| {
            let taken = |value: &Number| greedy.takes(net, &rungs.layer, value);
            rungs.above(*rung, |from, to| between(from, to, whole).into_iter().filter(taken).collect())
        };
        let above: Vec<Choice> = table.iter().zip(&found).map(above).collect();
        let at = |steps: &[usize]| -> Choice { above.iter().zip(steps).map(|(values, step)| values[*step].clone()).collect() };
        let most: Vec<usize> = above.iter().map(|values| values.len() - 1).collect();
        let mut order: Vec<usize> = (0..table.len()).collect();
        order.sort_by(|a, b| trials[*a][found[*a]].accuracy.total_cmp(&trials[*b][found[*b]].accuracy));
        let mut steps = vec![0; table.len()];
        refill(&mut steps, &most, &order, |steps| self.cost(&pairs(table, &at(steps)), cx), limit)?;
        Ok(at(&steps))
    }

    /// The lowest rung on which no more is lost.
    fn within_drop(&mut self, table: &[Rungs], drop: f64, cx: &mut Context<'_>) -> Result<Choice> {
        let trials: Vec<Vec<Trial>> = table.iter().map(|rungs| rungs.trials.clone()).collect();
        let rungs = ladder(&trials)?;
        let least = self.tried("as it is", &[], cx)?.map_err(Error::Invalid)?.accuracy - drop;
        let lost = partition(rungs.len(), |rung| {
            let choice = values(table, &rungs[rung]);
            let tried = self.tried(&self.greedy.told(&pairs(table, &choice)), &pairs(table, &choice), cx)?;
            Ok(tried.map_or(true, |tried| tried.accuracy < least))
        })?;
        // Above all rungs nothing is changed.
        Ok(rungs.get(lost).map_or(vec![None; table.len()], |rungs| values(table, rungs)))
    }
}

#[cfg(test)]
mod tests;
