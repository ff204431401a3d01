//! How ranks are chosen.
//!
//! In a config `ranks` is a number, `16`; a list where a layer has several ranks, `[16, 32]`; a rule, `{ energy = 0.9 }`; or a table by layers
//! of any of these, `{ conv1 = 16, rest = { energy = 0.9 } }`. The rules:
//!
//! - `fraction = f`: `f` times the limit, the largest rank that the layer's matrix can have, rounded to the nearest;
//! - `energy = t`: the least `k` with `sum of the k largest s_i^2 >= t sum s_i^2`;
//! - `evbmf = w`: `limit - w (limit - r)`, where `r` is the rank that [`evbmf`] finds; `w < 1` keeps more, as
//!   Gusak and others do;
//! - `macs = f`, `bytes = f`: what all layers cost may be `f` of what it was, and `ms = t`: `t` milliseconds; see [`greedy`].
//!
//! A budget goes where the most energy is gained for it. With `on = "accuracy"` it goes by what the network does: its accuracy on validation
//! images, or the first `images` of them, is measured with one layer at a time at shares of 0.1, 0.2, .. 0.9 of the limits, and the least
//! accuracy of the chosen ranks is as high as the budget allows, each layer at the cheapest ranks that reach it; see
//! [`by_accuracy`](briquette_parts::allocation::by_accuracy). A
//! network of `L` layers takes up to `10 L + 1` evaluations, which the run keeps with its states.
//!
//! Each rule may have a `floor`, 1 if not given, and a `multiple`: found ranks are raised to the floor, rounded up to the multiple and
//! cut off at the limit. As all ranks in a config they are of all groups of a layer together, each of which has as many channels: of four groups
//! with `multiple = 6` the ranks are multiples of 12.
//!
//! Gusak, Kholiavchenko, Ponomarev, Markeeva, Blagoveschensky, Cichocki, Oseledets. "Automated Multi-Stage Compression of Neural Networks".
//! ICCV Workshops 2019. arXiv:1903.09973.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;

use briquette_core::error::{Error, Result};
use briquette_core::types::{PerLayer, Selector, unquoted};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::algebra::{Matrix, spectrum};
use crate::evbmf::evbmf;

mod greedy;

pub use greedy::{Allocation, Candidate, greedy};

/// The ranks of all layers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub enum Ranks {
    /// Each layer by itself.
    Layers(PerLayer<Rule>),
    /// All layers together.
    Budget(Budget, On, Rounding),
}

/// By what layers are weighed against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// The energy of their weights, by [`greedy`].
    Energy,
    /// The network's accuracy on so many validation images or all, by [`by_accuracy`](briquette_parts::allocation::by_accuracy).
    Accuracy(Option<NonZeroUsize>),
}

/// How the ranks of one layer are chosen.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub enum Rule {
    /// This, for all ranks of the layer.
    Fixed(usize),
    /// These, one for each rank.
    Each(Vec<usize>),
    /// A share of the limit.
    Fraction(Share, Rounding),
    /// By the energy that is kept.
    Energy(Share, Rounding),
    /// By variational Bayes, weakened.
    Evbmf(Share, Rounding),
}

/// What all layers may cost together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// A share of the multiply-accumulates of one sample.
    Macs(Share),
    /// A share of the bytes.
    Bytes(Share),
    /// Milliseconds.
    Ms(f64),
}

/// A share in `(0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Deserialize)]
#[serde(try_from = "f64")]
pub struct Share(f64);

impl Share {
    /// The share as a number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// What stays of all if half as much goes.
    pub(crate) fn complement_of_half(self) -> Self {
        Self(1.0 - 0.5 * self.0)
    }
}

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(value: f64) -> std::result::Result<Self, String> {
        if value > 0.0 && value <= 1.0 { Ok(Self(value)) } else { Err(format!("a share lies in (0, 1], not {value}")) }
    }
}

/// What becomes of a rank that a rule has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// Ranks are multiples of it, but for the limit.
    pub multiple: NonZeroUsize,
    /// Ranks are not below it, but for the limit.
    pub floor: NonZeroUsize,
}

impl Default for Rounding {
    fn default() -> Self {
        Self { multiple: NonZeroUsize::MIN, floor: NonZeroUsize::MIN }
    }
}

impl Rounding {
    /// Of one of so many groups, which together have what this says.
    pub(crate) fn of_group(self, groups: usize) -> Self {
        let common = |mut a: usize, mut b: usize| {
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let each = |number: usize| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
        let multiple = self.multiple.get();
        Self { multiple: each(multiple / common(multiple, groups)), floor: each(self.floor.get().div_ceil(groups.max(1))) }
    }

    /// The rank that stands for `found`, at most `limit`.
    pub fn of(self, found: usize, limit: usize) -> usize {
        found.max(self.floor.get()).checked_next_multiple_of(self.multiple.get()).map_or(limit, |rank| rank.min(limit))
    }
}

/// A rule as a config has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    fraction: Option<Share>,
    energy: Option<Share>,
    evbmf: Option<Share>,
    macs: Option<Share>,
    bytes: Option<Share>,
    ms: Option<f64>,
    on: Option<Weighed>,
    images: Option<NonZeroUsize>,
    multiple: Option<NonZeroUsize>,
    floor: Option<NonZeroUsize>,
}

/// [`On`] as a config has it.
#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Weighed {
    Energy,
    Accuracy,
}

/// The words by which a rule is told from a table of layers.
const WORDS: [&str; 10] = ["fraction", "energy", "evbmf", "macs", "bytes", "ms", "on", "images", "multiple", "floor"];

/// A rule for each layer or a budget for all.
enum Read {
    Layer(Rule),
    All(Budget, On, Rounding),
}

fn is_rule(table: &Map<String, Value>) -> bool {
    table.keys().any(|key| WORDS.contains(&key.as_str()))
}

fn read(table: Map<String, Value>) -> std::result::Result<Read, String> {
    let written: Written = serde_json::from_value(table.into()).map_err(|error| error.to_string())?;
    let one = NonZeroUsize::MIN;
    let rounding = Rounding { multiple: written.multiple.unwrap_or(one), floor: written.floor.unwrap_or(one) };
    if let Some(ms) = written.ms.filter(|ms| !(ms.is_finite() && *ms > 0.0)) {
        return Err(format!("`ms` is a number of milliseconds above 0, not {ms}"));
    }
    let on = match (written.on, written.images) {
        (Some(Weighed::Accuracy), images) => On::Accuracy(images),
        (None | Some(Weighed::Energy), None) => On::Energy,
        (None | Some(Weighed::Energy), Some(_)) => return Err("`images` are those of `on = \"accuracy\"`".into()),
    };
    let found = [
        written.fraction.map(|share| Read::Layer(Rule::Fraction(share, rounding))),
        written.energy.map(|share| Read::Layer(Rule::Energy(share, rounding))),
        written.evbmf.map(|share| Read::Layer(Rule::Evbmf(share, rounding))),
        written.macs.map(|share| Read::All(Budget::Macs(share), on, rounding)),
        written.bytes.map(|share| Read::All(Budget::Bytes(share), on, rounding)),
        written.ms.map(|ms| Read::All(Budget::Ms(ms), on, rounding)),
    ];
    let mut found = found.into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(Read::Layer(_)), None) if written.on.is_some() => Err("`on` is of a budget, `macs`, `bytes` or `ms`".into()),
        (Some(read), None) => Ok(read),
        _ => Err("a rule for ranks has exactly one of `fraction`, `energy`, `evbmf`, `macs`, `bytes` and `ms`".into()),
    }
}

fn rank(value: &Value) -> std::result::Result<usize, String> {
    let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank > 0);
    rank.ok_or_else(|| {
        format!("a rank is a whole number of at least 1, not {value}; a share of the limit is {{ fraction = 0.5 }}")
    })
}

impl TryFrom<Value> for Rule {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        match value {
            Value::Array(ranks) if ranks.is_empty() => Err("a list of ranks has at least one".into()),
            Value::Array(ranks) => Ok(Rule::Each(ranks.iter().map(rank).collect::<std::result::Result<_, _>>()?)),
            Value::Object(table) => match read(table)? {
                Read::Layer(rule) => Ok(rule),
                Read::All(..) => Err("`macs`, `bytes` and `ms` are budgets for all layers, not for one".into()),
            },
            value => rank(&value).map(Rule::Fixed),
        }
    }
}

impl TryFrom<Value> for Ranks {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        let layer = |(name, value): (String, Value)| match &value {
            Value::Object(table) if !is_rule(table) => Err(unquoted(&name, &value)),
            _ => {
                let selector = Selector::from(name.as_str());
                Rule::try_from(value).map(|rule| (selector, rule)).map_err(|error| format!("`{name}`: {error}"))
            }
        };
        match value {
            Value::Object(table) if table.is_empty() => Err("a table of ranks has a rule or layers".into()),
            Value::Object(table) if is_rule(&table) => Ok(match read(table)? {
                Read::Layer(rule) => Ranks::Layers(PerLayer::All(rule)),
                Read::All(budget, on, rounding) => Ranks::Budget(budget, on, rounding),
            }),
            Value::Object(table) => {
                let each: std::result::Result<BTreeMap<_, _>, String> = table.into_iter().map(layer).collect();
                Ok(Ranks::Layers(PerLayer::Each(each?)))
            }
            value => Rule::try_from(value).map(|rule| Ranks::Layers(PerLayer::All(rule))),
        }
    }
}

impl Ranks {
    /// What of a plan is an estimate, for want of weights.
    pub fn estimate(&self) -> Option<&'static str> {
        let weights = "ranks follow from the weights: the plan takes every rank of a layer to be worth as much";
        match self {
            Ranks::Layers(_) => (!self.exact()).then_some(weights),
            Ranks::Budget(_, On::Energy, _) => Some(weights),
            Ranks::Budget(_, On::Accuracy(_), _) => {
                Some("ranks follow from accuracies: the plan takes every rank of a layer to be worth as much")
            }
        }
    }

    /// Measures for minutes at most.
    pub(crate) fn shorten(&mut self) {
        if let Ranks::Budget(_, On::Accuracy(images), _) = self {
            *images = Some(images.map_or(TRIAL_IMAGES, |images| images.min(TRIAL_IMAGES)));
        }
    }

    /// Whether the ranks follow from shapes alone, so that a plan without weights has them exactly; otherwise it can but estimate.
    pub fn exact(&self) -> bool {
        match self {
            Ranks::Layers(PerLayer::All(rule)) => rule.exact(),
            Ranks::Layers(PerLayer::Each(each)) => each.values().all(Rule::exact),
            Ranks::Budget(..) => false,
        }
    }
}

/// Images that a trial run measures on at most.
const TRIAL_IMAGES: NonZeroUsize = NonZeroUsize::new(50).unwrap();

/// The spectrum of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// Singular values, falling, all or the largest.
    pub singular: Vec<f64>,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// The sum of the squares of all singular values, `||Y||^2`.
    pub energy: f64,
}

impl Spectrum {
    /// That of this matrix, all of it.
    pub fn of(matrix: &Matrix) -> Self {
        Self { singular: spectrum(matrix), shape: [matrix.nrows(), matrix.ncols()], energy: matrix.norm_squared() }
    }

    /// That of a matrix of which nothing is known: every rank is worth as much.
    pub fn flat(limit: usize) -> Self {
        Self { singular: vec![1.0; limit], shape: [limit; 2], energy: limit as f64 }
    }

    /// That of matrices of one shape taken together: of each place the root of the mean square, as their ranks are the same.
    pub fn together(spectra: &[Self]) -> Self {
        let count = spectra.len().max(1) as f64;
        let mean = |of: &dyn Fn(&Self) -> f64| spectra.iter().map(of).sum::<f64>() / count;
        let length = spectra.iter().map(|spectrum| spectrum.singular.len()).max().unwrap_or(0);
        let at = |place: usize| mean(&|spectrum| spectrum.singular.get(place).map_or(0.0, |s| s * s)).sqrt();
        let shape = spectra.first().map_or([0; 2], |first| first.shape);
        Self { singular: (0..length).map(at).collect(), shape, energy: mean(&|spectrum| spectrum.energy) }
    }

    /// The share of the energy that rank `rank` has to itself, counted from 1; 0 beyond the singular values that are known.
    pub fn share(&self, rank: usize) -> f64 {
        let singular = rank.checked_sub(1).and_then(|at| self.singular.get(at)).copied().unwrap_or(0.0);
        if self.energy > 0.0 { singular * singular / self.energy } else { 0.0 }
    }

    /// The least rank that keeps this share of the energy.
    fn keeping(&self, share: f64) -> Result<usize> {
        let found = energy_rank(&self.singular, share);
        if self.singular.len() >= self.shape[0].min(self.shape[1]) {
            return Ok(found);
        }
        let mut kept = 0.0;
        let reaches = |singular: &f64| {
            kept += singular * singular;
            kept >= share * self.energy
        };
        self.singular.iter().position(reaches).map(|at| at + 1).ok_or_else(|| {
            let known = self.singular.len();
            Error::Invalid(format!("the {known} largest singular values hold less than {share} of the energy; lower `energy`"))
        })
    }

    fn check(&self) -> Result<()> {
        if self.energy.is_finite() && self.singular.iter().all(|singular| singular.is_finite()) {
            return Ok(());
        }
        Err(Error::Invalid("its weights are not finite; `briquette inspect` counts them".into()))
    }
}

/// The least `k` with `sum of the k largest s_i^2 >= share sum s_i^2`; 0 if all are zero.
pub fn energy_rank(singular: &[f64], share: f64) -> usize {
    let kept = singular.iter().scan(0.0, |kept, singular| {
        *kept += singular * singular;
        Some(*kept)
    });
    let total: f64 = kept.clone().last().unwrap_or(0.0);
    if total > 0.0 { kept.take_while(|kept| *kept < share * total).count() + 1 } else { 0 }
}

/// The ranks of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// In the order of the limits.
    pub ranks: Vec<usize>,
    /// Set if a rank would have been below the floor.
    pub note: Option<Floored>,
}

/// Ranks that were raised to the floor; its text is for a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floored {
    /// What the rule had found, in the order of the limits.
    pub found: Vec<usize>,
    /// The floor.
    pub floor: usize,
}

impl Floored {
    /// Of so many groups together.
    pub(crate) fn together(self, groups: usize) -> Self {
        Self { found: self.found.into_iter().map(|found| found * groups).collect(), floor: self.floor * groups }
    }
}

impl fmt::Display for Floored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found: Vec<String> = self.found.iter().map(usize::to_string).collect();
        write!(f, "the rule found rank {}; raised to the floor of {}", found.join(", "), self.floor)
    }
}

impl Rule {
    /// For one of so many groups of a layer, which have the ranks together.
    pub(crate) fn of_group(&self, groups: usize) -> Self {
        match self {
            Rule::Fixed(_) | Rule::Each(_) => self.clone(),
            Rule::Fraction(share, rounding) => Rule::Fraction(*share, rounding.of_group(groups)),
            Rule::Energy(share, rounding) => Rule::Energy(*share, rounding.of_group(groups)),
            Rule::Evbmf(share, rounding) => Rule::Evbmf(*share, rounding.of_group(groups)),
        }
    }

    /// Whether the ranks follow from the limits alone.
    pub fn exact(&self) -> bool {
        matches!(self, Rule::Fixed(_) | Rule::Each(_) | Rule::Fraction(..))
    }

    /// The ranks of a layer, each with its limit and the spectrum of its unfolding; rules that are [`Rule::exact`] need no spectra.
    ///
    /// # Errors
    /// A fixed rank above its limit, a list that has not one number for each rank, spectra that are missing or not finite, and a spectrum cut off
    /// before it holds the energy asked for. The caller adds the layer.
    pub fn choose(&self, spectra: &[Spectrum], limits: &[usize]) -> Result<Chosen> {
        if !self.exact() && spectra.len() != limits.len() {
            return Err(Error::Invalid(format!("{} spectra for {} ranks", spectra.len(), limits.len())));
        }
        spectra.iter().try_for_each(Spectrum::check)?;
        let pairs = || spectra.iter().zip(limits);
        let (found, rounding) = match self {
            Rule::Fixed(rank) => return fixed(&vec![*rank; limits.len()], limits),
            Rule::Each(ranks) => return fixed(ranks, limits),
            Rule::Fraction(share, rounding) => {
                (limits.iter().map(|limit| (share.get() * *limit as f64).round() as usize).collect(), rounding)
            }
            Rule::Energy(share, rounding) => {
                (spectra.iter().map(|spectrum| spectrum.keeping(share.get())).collect::<Result<Vec<_>>>()?, rounding)
            }
            Rule::Evbmf(share, rounding) => {
                let most = |spectrum: &Spectrum, limit: usize| limit.min(spectrum.shape[0]).min(spectrum.shape[1]);
                (pairs().map(|(spectrum, limit)| weakened(spectrum, most(spectrum, *limit), share.get())).collect(), rounding)
            }
        };
        let ranks = found.iter().zip(limits).map(|(found, limit)| rounding.of(*found, *limit)).collect();
        let floor = rounding.floor.get();
        let note = found.iter().any(|found| *found < floor).then_some(Floored { found, floor });
        Ok(Chosen { ranks, note })
    }
}

fn fixed(ranks: &[usize], limits: &[usize]) -> Result<Chosen> {
    if ranks.len() != limits.len() {
        return Err(Error::Invalid(format!("`ranks` lists {}, but it has {}", ranks.len(), limits.len())));
    }
    match ranks.iter().zip(limits).find(|(rank, limit)| !(1..=**limit).contains(*rank)) {
        Some((rank, limit)) => Err(Error::Invalid(format!("rank {rank} is not in 1..={limit}, all that its shape allows"))),
        None => Ok(Chosen { ranks: ranks.to_vec(), note: None }),
    }
}

/// `limit - w (limit - r)`, where a fraction of a rank is kept.
fn weakened(spectrum: &Spectrum, limit: usize, w: f64) -> usize {
    let found = evbmf(&spectrum.singular, spectrum.shape, spectrum.energy).rank.min(limit);
    // A product such as 0.7 * 10 may be a bit below the whole number that is meant.
    limit - (w * (limit - found) as f64 + 1e-9) as usize
}

#[cfg(test)]
mod tests;
