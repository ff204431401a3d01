//! From what a config says of ranks to the ranks of each layer of a network.

use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::price::{Bytes, Price as _};
use briquette_parts::clock;

use crate::chain::Layer;
use crate::ranks::{Budget, Candidate, On, Ranks, Rounding, Rule, Spectrum, greedy};
use crate::trials::{Trials, Tried};

/// A layer, by its index, and what its form says of it.
pub(crate) struct Able {
    pub(crate) index: usize,
    pub(crate) layer: Layer,
    /// The largest ranks of one group.
    pub(crate) limits: Vec<usize>,
}

/// What a chain costs.
pub(crate) struct Priced {
    /// Its ranks, where large ones do not go with small ones.
    pub(crate) ranks: Vec<usize>,
    pub(crate) weights: u64,
    pub(crate) macs: u64,
    /// Values of batch norms.
    pub(crate) beside: u64,
    pub(crate) nodes: usize,
}

/// What is asked of a form.
pub(crate) trait Form {
    /// What a chain of these ranks costs; none if the layer would be left as it is.
    fn priced(&self, layer: &Layer, ranks: &[usize]) -> Result<Option<Priced>>;
    /// The chain of these ranks in a network of its own.
    fn alone(&self, layer: &Layer, ranks: &[usize]) -> Result<Net>;
    /// The spectra of all groups together, or flat ones where there are no weights yet.
    fn spectra(&self, net: &Net, able: &Able) -> Result<Vec<Spectrum>>;
    /// The network with a chain of these ranks in the place of one layer.
    fn replaced(&self, net: &Net, able: &Able, ranks: &[usize], cx: &mut Context<'_>) -> Result<Net>;
}

/// What becomes of a layer.
pub(crate) enum Choice {
    /// A chain of these ranks of each group, and what is to be said of them.
    Ranks(Vec<usize>, Option<String>),
    /// It stays as it is, for a budget leaves room for that.
    Dense,
    /// Nothing names it.
    Unnamed,
}

impl Ranks {
    /// What becomes of each layer. In a plan, which has no weights and no context, every rank of a layer is taken to be worth as much.
    pub(crate) fn resolve(&self, net: &Net, able: &[Able], form: &dyn Form, cx: Option<&mut Context<'_>>) -> Result<Vec<Choice>> {
        match self {
            Ranks::Layers(rules) => {
                let chosen = able.iter().map(|able| able.index).collect();
                let rules = rules.resolve_within(net, &chosen)?;
                let rule = |able: &Able| rules.iter().find(|(index, _)| *index == able.index).map(|(_, rule)| rule);
                let of = |able: &Able| match rule(able) {
                    None => Ok(Choice::Unnamed),
                    Some(rule) => by_rule(rule, net, able, form, cx.is_none()).map_err(|error| match error {
                        Error::Invalid(detail) => Error::node(&net.nodes[able.index].name, detail),
                        named => named,
                    }),
                };
                able.iter().map(of).collect()
            }
            Ranks::Budget(budget, on, rounding) => within(*budget, *on, *rounding, net, able, form, cx),
        }
    }
}

fn by_rule(rule: &Rule, net: &Net, able: &Able, form: &dyn Form, planned: bool) -> Result<Choice> {
    let groups = able.layer.groups;
    // Ranks in a config are those of all groups, as Tai and others count them.
    let each = |total: usize| match (total / groups, total % groups) {
        (rank, 0) => Ok(rank),
        _ => Err(Error::Invalid(format!("rank {total} is not a multiple of its {groups} groups"))),
    };
    let limits: Vec<usize> = able.limits.iter().map(|limit| limit * groups).collect();
    if let Rule::Fixed(_) | Rule::Each(_) = rule {
        let totals = rule.choose(&[], &limits)?.ranks;
        return Ok(Choice::Ranks(totals.into_iter().map(each).collect::<Result<_>>()?, None));
    }
    let rule = match rule {
        // How much noise weights hold is not known before there are any.
        Rule::Evbmf(weight, rounding) if planned => &Rule::Fraction(weight.complement_of_half(), *rounding),
        rule => rule,
    };
    let spectra = if rule.exact() { Vec::new() } else { form.spectra(net, able)? };
    let chosen = rule.of_group(groups).choose(&spectra, &able.limits)?;
    Ok(Choice::Ranks(chosen.ranks, chosen.note.map(|note| note.together(groups).to_string())))
}

/// So that the network costs no more than the budget.
fn within(
    budget: Budget,
    on: On,
    rounding: Rounding,
    net: &Net,
    able: &[Able],
    form: &dyn Form,
    cx: Option<&mut Context<'_>>,
) -> Result<Vec<Choice>> {
    let cost_of = |priced: &Priced| match budget {
        Budget::Macs(_) | Budget::Ms(_) => priced.macs as f64,
        Budget::Bytes(_) => (BYTES as u64 * (priced.weights + priced.beside)) as f64 + (OVERHEAD * priced.nodes) as f64,
    };
    let clocks = match budget {
        Budget::Ms(_) => Some(able.iter().map(|able| Clock::of(able, form)).collect::<Result<Vec<_>>>()?),
        Budget::Macs(_) | Budget::Bytes(_) => None,
    };
    let dense = |at: usize, able: &Able| match (&clocks, budget) {
        (Some(clocks), _) => clocks[at].dense,
        (None, Budget::Bytes(_)) => (BYTES * able.layer.weights()) as f64,
        (None, _) => able.layer.macs() as f64,
    };
    let dense: Vec<f64> = able.iter().enumerate().map(|(at, able)| dense(at, able)).collect();
    let of_these: f64 = dense.iter().sum();
    let (all, may) = match budget {
        Budget::Macs(share) => (Cost::of(net)?.macs() as f64, share.get()),
        Budget::Bytes(share) if cx.is_none() => ((BYTES * Cost::of(net)?.params()) as f64, share.get()),
        Budget::Bytes(share) => (Bytes.of(net)?, share.get()),
        Budget::Ms(ms) => {
            let all = clock::turns(std::slice::from_ref(net))?[0];
            (all, ms / all)
        }
    };
    // What the other layers cost stays. Of times the parts may come to more than the whole, in which steps are joined.
    let others = (all - of_these).max(0.0);
    let left = all * may - others;
    let cost = |at: usize, ranks: &[usize]| match form.priced(&able[at].layer, ranks)? {
        None => Ok(dense[at]),
        Some(priced) => {
            let found = cost_of(&priced);
            Ok(clocks.as_ref().map_or(found, |clocks| clocks[at].ms(found)))
        }
    };
    let same = |at: usize, a: &[usize], b: &[usize]| {
        let ranks = |ranks: &[usize]| Ok::<_, Error>(form.priced(&able[at].layer, ranks)?.map(|priced| priced.ranks));
        Ok(ranks(a)?.is_some_and(|a| ranks(b).is_ok_and(|b| b == Some(a))))
    };
    let mut least = others;
    for (at, able) in able.iter().enumerate() {
        least += f64::min(cost(at, &scaled(able, rounding, 0.0))?, dense[at]);
    }
    if least > all * may {
        return Err(unmet(budget, all, least));
    }
    let ranks = match (on, cx) {
        (On::Accuracy(images), Some(cx)) => {
            let options = |(at, able): (usize, &Able)| {
                let priced = |share: &f64| form.priced(&able.layer, &scaled(able, rounding, *share));
                let tried = TRIED.iter().map(|share| Ok(priced(share)?.map(|priced| priced.ranks)));
                let mut ranks = tried.chain([Ok(None)]).collect::<Result<Vec<Option<Vec<usize>>>>>()?;
                ranks.dedup();
                let with_cost = |ranks: Option<Vec<usize>>| {
                    let cost = ranks.as_ref().map_or(Ok(dense[at]), |ranks| cost(at, ranks))?;
                    Ok(Tried { ranks, cost })
                };
                ranks.into_iter().map(with_cost).collect()
            };
            let options = able.iter().enumerate().map(options).collect::<Result<Vec<Vec<Tried>>>>()?;
            Trials::new(images, cx)?.choose(net, able, form, options, left, cx)?
        }
        (On::Energy, _) | (On::Accuracy(_), None) => {
            let candidates = able.iter().zip(&dense).map(|(able, dense)| {
                Ok(Candidate {
                    name: &net.nodes[able.index].name,
                    spectra: form.spectra(net, able)?,
                    limits: able.limits.clone(),
                    dense: *dense,
                    rounding: rounding.of_group(able.layer.groups),
                })
            });
            greedy(&candidates.collect::<Result<Vec<Candidate<'_>>>>()?, cost, same, left)?.ranks
        }
    };
    let choice = |ranks: Option<Vec<usize>>| ranks.map_or(Choice::Dense, |ranks| Choice::Ranks(ranks, None));
    Ok(ranks.into_iter().map(choice).collect())
}

/// Shares of the limits at which accuracies are measured, the first for the least ranks.
const TRIED: [f64; 10] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// The ranks of a group at this share of their limits.
fn scaled(able: &Able, rounding: Rounding, share: f64) -> Vec<usize> {
    let rounding = rounding.of_group(able.layer.groups);
    able.limits.iter().map(|limit| rounding.of((share * *limit as f64).round() as usize, *limit)).collect()
}

/// Bytes of a weight that no coding shares.
const BYTES: usize = 4;
/// Bytes of a node's description.
const OVERHEAD: usize = 100;

/// What is said of a budget that cannot be met, by a network that costs `all`.
fn unmet(budget: Budget, all: f64, least: f64) -> Error {
    let (key, asked, can) = match budget {
        Budget::Macs(share) => ("macs", share.get(), least / all),
        Budget::Bytes(share) => ("bytes", share.get(), least / all),
        Budget::Ms(ms) => ("ms", ms, least),
    };
    let can = up(can);
    Error::Invalid(format!(
        "`ranks = {{ {key} = {asked} }}` cannot be met: at the least ranks of all its layers the network comes to {key} = {can}"
    ))
}

/// Rounded up to four places.
fn up(share: f64) -> f64 {
    (share * 1e4).ceil() / 1e4
}

/// How long a layer takes dense, and as a chain over the multiply-accumulates of the chain.
struct Clock {
    dense: f64,
    /// Multiply-accumulates and milliseconds, both rising.
    points: Vec<[f64; 2]>,
}

/// Shares of the limits at which a chain is measured.
const MEASURED: [f64; 6] = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0];

impl Clock {
    fn of(able: &Able, form: &dyn Form) -> Result<Self> {
        let ranks = MEASURED.map(|share| -> Vec<usize> {
            able.limits.iter().map(|limit| ((share * *limit as f64) as usize).clamp(1, *limit)).collect()
        });
        let mut nets = vec![able.layer.alone(None)?];
        for ranks in &ranks {
            nets.push(form.alone(&able.layer, ranks)?);
        }
        let times = clock::turns(&nets)?;
        let mut points = Vec::new();
        for (ranks, ms) in ranks.iter().zip(&times[1..]) {
            points.extend(form.priced(&able.layer, ranks)?.map(|priced| [priced.macs as f64, *ms]));
        }
        if points.is_empty() {
            points.push([0.0, times[0]]);
        }
        points.sort_by(|a, b| a[0].total_cmp(&b[0]));
        // What costs more products takes no less time, whatever noise says.
        for at in 1..points.len() {
            points[at][1] = points[at][1].max(points[at - 1][1]);
        }
        Ok(Self { dense: times[0], points })
    }

    fn ms(&self, macs: f64) -> f64 {
        let after = self.points.iter().position(|[at, _]| *at >= macs).unwrap_or(self.points.len() - 1);
        let ([a, from], [b, to]) = (self.points[after.saturating_sub(1)], self.points[after]);
        if b > a { from + (to - from) * ((macs - a) / (b - a)).clamp(0.0, 1.0) } else { to }
    }
}
