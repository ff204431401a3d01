//! Exits inside a network, at which a sample leaves that the network is sure of.
//!
//! Behind chosen nodes stand heads, each with logits `z` of all `K` classes. A sample leaves at the first where the entropy
//! `-sum_k p_k ln p_k` of `p = softmax(z)`, in nats, is below that exit's threshold `T_n`, or the largest `p_k` above it; the last takes all that
//! are left, and what lies behind an exit is computed for those alone that go on. Training minimizes `sum_n w_n H(y, softmax(z_n))`: every exit
//! learns from all samples. It is validated by the last exit; thresholds are chosen afterwards, on the validation images.
//!
//! Teerapittayanon, McDanel, Kung. "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks". ICPR 2016. arXiv:1709.01686.
//! Differs from the paper: a head is a convolution of 3 by 3 that keeps the channels, batch norm, a rectifier, the mean of each channel and a
//! fully connected layer, or of these the last two, whatever the network, where the paper makes one for each; the loss is not divided by the
//! number of classes.
//!
//! ```
//! use briquette_core::{cost::Cost, pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::early_exit::EarlyExit;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("resnet20").unwrap();
//! let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
//! let settings = r#"{ "exits": { "after": ["layer1.2"], "head": "linear" }, "threshold": 0.3, "train": { "epochs": 1 } }"#;
//! let method: EarlyExit = serde_json::from_str(settings).unwrap();
//! let (before, net) = (Cost::of(&net).unwrap(), method.plan(net).unwrap());
//! assert_eq!(Cost::of(&net).unwrap().params(), before.params() + 16 * 10 + 10);
//! assert!(net.index("exit1.gate").is_ok());
//! ```

mod outcomes;
#[cfg(test)]
mod tests;
mod wiring;

use briquette_core::context::{Context, Finding};
use briquette_core::error::{Error, Result};
use briquette_core::layers::{Gate, Measure};
use briquette_core::net::{Net, Op};
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::{Method, Pass};
use briquette_core::task::Task;
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::Ratio;
use burn::tensor::Tensor;
use serde::Deserialize;

use self::outcomes::Outcomes;
use self::wiring::Wired;

/// Puts exits behind nodes and trains all of them together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EarlyExit {
    /// Where the exits are.
    exits: Exits,
    /// How sure the network is of a sample that leaves.
    threshold: Threshold,
    /// What says how sure it is: the entropy in nats, or the confidence.
    #[serde(default = "entropy")]
    measure: Measure,
    /// `w_n`: weights of the exits' losses, that of the output the last; all 1 without it.
    #[serde(default)]
    weights: Vec<f64>,
    /// Training of all exits together.
    train: Recipe,
}

/// Where exits are, and what they look like.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Exits {
    /// Nodes by name, or blocks by what the names of their nodes begin with: behind the last of these.
    after: Vec<String>,
    /// What stands between such a node and the gate.
    #[serde(default)]
    head: Head,
}

/// What makes logits of a node's output; vectors have a fully connected layer alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Head {
    /// A convolution of 3 by 3 that keeps the channels, batch norm and a rectifier, then as [`Head::Linear`].
    #[default]
    Conv,
    /// The mean of each channel and a fully connected layer.
    Linear,
}

/// How sure the network is of a sample that leaves.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a threshold is a number, a list of one for each exit, `{ leave = [...] }` or `{ max-drop = ... }`"
)]
enum Threshold {
    All(f64),
    Each(Vec<f64>),
    Calibrated(Calibration),
}

/// What thresholds are for, on the validation images.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Calibration {
    /// The share of all images that leaves at each exit but the last.
    Leave(Vec<Ratio>),
    /// The accuracy that may be lost against the last exit alone, in points: of thresholds that are the same for all exits and lose no more, those
    /// of the lowest cost.
    MaxDrop(f64),
}

fn entropy() -> Measure {
    Measure::Entropy
}

impl Method for EarlyExit {
    const NAME: &'static str = "early-exit";
    const FAMILY: &'static str = "dynamic networks";
    const PAPER: &'static str = "Teerapittayanon, McDanel, Kung, ICPR 2016, arXiv:1709.01686";
    const EXAMPLE: &'static str = "exits = { after = [\"relu1\"] }\nthreshold = { leave = [0.5] }\ntrain = { epochs = 10 }";
}

impl Pass for EarlyExit {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let wired = self.wired(net, cx.seed)?;
        let weights = if self.weights.is_empty() { vec![1.0; wired.logits.len()] } else { self.weights.clone() };
        if cx.data.valid.is_empty() && self.given(Task::of(&wired.net)?.classes)?.is_none() {
            return Err(Error::Invalid("thresholds are chosen on validation images, and there are none; hold some back".into()));
        }
        let mut joint = Joint { exits: wired.logits.clone(), weights, recipe: self.train.clone() };
        let extras = Extras { objectives: vec![&mut joint], ..Extras::default() };
        let wired = Wired { net: fit(wired.net, &self.train, extras, cx)?, ..wired };
        let found = Outcomes::of(&wired, self.measure, cx)?;
        let given = self.given(Task::of(&wired.net)?.classes)?;
        let thresholds = match (given, &self.threshold) {
            (Some(given), _) => given,
            (None, Threshold::Calibrated(Calibration::Leave(shares))) => found.for_shares(shares),
            (None, Threshold::Calibrated(Calibration::MaxDrop(drop))) => found.within(*drop),
            (None, Threshold::All(_) | Threshold::Each(_)) => unreachable!("these are given"),
        };
        if found.images() > 0 {
            self.tell(&wired, &found, &thresholds, cx);
        }
        Ok(gated(wired, self.measure, &thresholds))
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let wired = self.wired(net, 0)?;
        let given = self.given(Task::of(&wired.net)?.classes)?;
        Ok(match given {
            Some(given) => gated(wired, self.measure, &given),
            None => wired.net,
        })
    }
}

impl EarlyExit {
    /// The network with exits at which none leaves.
    fn wired(&self, net: Net, seed: u64) -> Result<Wired> {
        self.train.check()?;
        if self.measure == Measure::Sigmoid {
            return Err(Error::Invalid("`measure` is of logits of all classes: `entropy` or `confidence`".into()));
        }
        let classes = Task::of(&net)?.classes;
        let gate = Gate { measure: self.measure, threshold: never(self.measure) };
        let wired = wiring::wire(net, &self.exits, gate, seed)?;
        let refuse = |detail: String| Err(Error::Invalid(detail));
        let exits = wired.gates.len();
        if !self.weights.is_empty() && self.weights.len() != exits + 1 {
            return refuse(format!(
                "`weights` has {} values; the network has {} exits, its output among them",
                self.weights.len(),
                exits + 1
            ));
        }
        if let Some(bad) = self.weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
            return refuse(format!("a weight of {bad} in `weights`; it is a number that is not negative"));
        }
        let largest = self.largest(classes);
        let count = |found: usize| match found == exits {
            true => Ok(()),
            false => Err(Error::Invalid(format!("`threshold` has {found} values for {exits} exits besides the output"))),
        };
        match &self.threshold {
            Threshold::All(_) => {}
            Threshold::Each(each) => count(each.len())?,
            Threshold::Calibrated(Calibration::Leave(shares)) => {
                count(shares.len())?;
                let sum: f64 = shares.iter().map(|share| share.get()).sum();
                if sum > 1.0 + 1e-9 {
                    return refuse(format!("`leave` has shares that add up to {sum}; they are of all images"));
                }
            }
            Threshold::Calibrated(Calibration::MaxDrop(drop)) if *drop >= 0.0 => {}
            Threshold::Calibrated(Calibration::MaxDrop(drop)) => {
                return refuse(format!("`max-drop` is {drop}; it is in points of accuracy, and not negative"));
            }
        }
        match self.listed().iter().find(|threshold| !(0.0..=largest).contains(*threshold)) {
            Some(bad) => refuse(format!("a threshold of {bad}; with {classes} classes it lies in [0, {largest:.4}]")),
            None => Ok(wired),
        }
    }

    fn listed(&self) -> &[f64] {
        match &self.threshold {
            Threshold::All(one) => std::slice::from_ref(one),
            Threshold::Each(each) => each,
            Threshold::Calibrated(_) => &[],
        }
    }

    /// The largest value of the measure.
    fn largest(&self, classes: usize) -> f64 {
        match self.measure {
            Measure::Entropy => (classes as f64).ln(),
            Measure::Confidence | Measure::Sigmoid => 1.0,
        }
    }

    /// The thresholds of the gates, where the settings say them.
    fn given(&self, classes: usize) -> Result<Option<Vec<f32>>> {
        let of = |threshold: &f64| (threshold / self.largest(classes)) as f32;
        Ok(match &self.threshold {
            Threshold::All(one) => Some(vec![of(one); self.exits.after.len()]),
            Threshold::Each(each) => Some(each.iter().map(of).collect()),
            Threshold::Calibrated(_) => None,
        })
    }

    /// What becomes of the validation images.
    fn tell(&self, wired: &Wired, found: &Outcomes, thresholds: &[f32], cx: &mut Context<'_>) {
        let largest = self.largest(found.classes);
        let taken = found.taken(thresholds);
        for (exit, logits) in wired.logits.iter().enumerate() {
            let here = taken.iter().filter(|taken| **taken == exit).count();
            let right = taken.iter().zip(&found.right[exit]).filter(|(taken, right)| **taken == exit && **right).count();
            let all = found.right[exit].iter().filter(|right| **right).count();
            let percent = |part: usize, of: usize| 100.0 * part as f64 / of.max(1) as f64;
            let rule = match (thresholds.get(exit), self.measure) {
                (Some(threshold), Measure::Entropy) => format!("entropy below {:.4} nats", f64::from(*threshold) * largest),
                (Some(threshold), Measure::Confidence | Measure::Sigmoid) => format!("confidence above {threshold:.4}"),
                (None, _) => "all others".into(),
            };
            let share = match here {
                0 => "no validation image leaves here".into(),
                _ => format!("{:.2} % of the validation images leave here", percent(here, found.images())),
            };
            cx.note(format!(
                "{logits}, {rule}: {share}, {:.2} % of them right; of all images {:.2} % are; {} multiply-accumulates",
                percent(right, here),
                percent(all, found.images()),
                found.macs[exit]
            ));
        }
        let tradeoff = found.tradeoff(Self::NAME, thresholds, largest);
        cx.note(format!(
            "{:.2} % right at {:.0} multiply-accumulates on the mean",
            100.0 * tradeoff.chosen.accuracy,
            tradeoff.chosen.macs
        ));
        cx.findings.push(Finding::Tradeoff(tradeoff));
    }
}

/// The threshold at which no sample leaves.
fn never(measure: Measure) -> f32 {
    match measure {
        Measure::Entropy => 0.0,
        Measure::Confidence | Measure::Sigmoid => 1.0,
    }
}

/// The network with these thresholds.
fn gated(wired: Wired, measure: Measure, thresholds: &[f32]) -> Net {
    let mut net = wired.net;
    for (gate, &threshold) in wired.gates.iter().zip(thresholds) {
        net.nodes[*gate].op = Op::fixed(Gate { measure, threshold });
    }
    net
}

/// `sum_n w_n L(z_n)` with the loss `L` of the recipe, in the place of the loss of the output.
#[derive(Debug)]
struct Joint {
    exits: Vec<String>,
    weights: Vec<f64>,
    recipe: Recipe,
}

impl Objective for Joint {
    fn taps(&self, net: &Net) -> Result<Vec<usize>> {
        self.exits.iter().map(|exit| net.index(exit)).collect()
    }

    fn task(&self) -> f64 {
        0.0
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        let loss = |exit: &briquette_core::net::Value| self.recipe.loss_of(exit.clone().vector(), seen.labels);
        let losses = seen.taps.iter().zip(&self.weights).map(|(exit, weight)| loss(exit).mul_scalar(*weight));
        Ok(losses.fold(Tensor::zeros([1], &seen.logits.device()), |sum, loss| sum + loss))
    }
}
