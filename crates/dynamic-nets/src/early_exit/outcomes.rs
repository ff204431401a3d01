//! What the exits make of the validation images, and the thresholds that follow from it.

use briquette_core::coding::floats;
use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::Result;
use briquette_core::layers::{Gate, Measure};
use briquette_core::task::Task;
use briquette_core::tradeoff::{Balance, Balanced, Tradeoff};
use briquette_core::training::{cross_entropy, hits, predict};
use briquette_core::types::Ratio;

use super::never;
use super::wiring::Wired;

/// What every exit says of every image.
#[derive(Debug)]
pub(super) struct Outcomes {
    pub(super) measure: Measure,
    pub(super) classes: usize,
    /// Of each exit but the last, of each image: what its gate compares.
    pub(super) sure: Vec<Vec<f32>>,
    /// Of each exit, of each image: whether the class is found.
    pub(super) right: Vec<Vec<bool>>,
    /// Multiply-accumulates of an image that leaves at each exit.
    pub(super) macs: Vec<u64>,
}

/// Steps between no image and all on the curve.
const STEPS: usize = 50;

impl Outcomes {
    /// Of the validation images.
    pub(super) fn of(wired: &Wired, measure: Measure, cx: &mut Context<'_>) -> Result<Self> {
        let (net, classes) = (&wired.net, Task::of(&wired.net)?.classes);
        let exits: Vec<usize> = wired.logits.iter().map(|logits| net.index(logits)).collect::<Result<_>>()?;
        let (mut sure, mut right) = (vec![Vec::new(); wired.gates.len()], vec![Vec::new(); exits.len()]);
        let (mut loss, mut seen) = (0.0, 0);
        let (device, data) = (cx.device.clone(), &cx.data.valid);
        predict(net, data, (&device, &mut *cx.host), &exits, |batch, logits, values| {
            for (exit, value) in values.into_iter().enumerate() {
                let value = floats(value.vector());
                let rows = || value.chunks(classes);
                right[exit].extend(rows().zip(&batch.labels).map(|(row, label)| hits(row, &[*label], 1) == 1));
                if let Some(sure) = sure.get_mut(exit) {
                    sure.extend(rows().map(|row| measure.of(row)));
                }
            }
            loss += f64::from(floats(cross_entropy(logits, &batch.labels, 0.0))[0]) * batch.len as f64;
            seen += batch.len;
            loss / seen as f64
        })?;
        let (cost, paths) = (Cost::of(net)?, net.paths()?);
        let leaving = |exit: usize| cost.macs_along(&paths, |gate| wired.gates.get(exit) == Some(&gate));
        Ok(Self { measure, classes, sure, right, macs: (0..exits.len()).map(leaving).collect() })
    }

    pub(super) fn images(&self) -> usize {
        self.right[0].len()
    }

    /// The exit of each image.
    pub(super) fn taken(&self, thresholds: &[f32]) -> Vec<usize> {
        let leaves =
            |exit: usize, image: usize| Gate { measure: self.measure, threshold: thresholds[exit] }.lets(self.sure[exit][image]);
        let exit = |image| (0..thresholds.len()).find(|exit| leaves(*exit, image)).unwrap_or(thresholds.len());
        (0..self.images()).map(exit).collect()
    }

    /// Accuracy and mean cost.
    pub(super) fn balance(&self, thresholds: &[f32]) -> Balance {
        let taken = self.taken(thresholds);
        let right = taken.iter().enumerate().filter(|(image, exit)| self.right[**exit][*image]).count();
        let macs: u64 = taken.iter().map(|exit| self.macs[*exit]).sum();
        Balance { accuracy: right as f64 / self.images() as f64, macs: macs as f64 / self.images() as f64 }
    }

    /// Thresholds at which so many of all images leave at each exit, but for equals; halfway between two images, so that rounding decides about none.
    pub(super) fn for_shares(&self, shares: &[Ratio]) -> Vec<f32> {
        let mut left: Vec<usize> = (0..self.images()).collect();
        let mut thresholds = Vec::new();
        for (share, sure) in shares.iter().zip(&self.sure) {
            let count = ((share.get() * self.images() as f64).round() as usize).min(left.len());
            let threshold = self.parting(self.surest_first(left.iter().map(|image| sure[*image]).collect()), count);
            left.retain(|image| !Gate { measure: self.measure, threshold }.lets(sure[*image]));
            thresholds.push(threshold);
        }
        thresholds
    }

    /// Of the common thresholds those of the lowest cost at an accuracy that is no more than `drop` points below the last exit's.
    pub(super) fn within(&self, drop: f64) -> Vec<f32> {
        let all = |threshold: f32| vec![threshold; self.sure.len()];
        let least = self.balance(&all(never(self.measure))).accuracy - drop / 100.0;
        let kept = self.common().into_iter().map(|threshold| (threshold, self.balance(&all(threshold))));
        let kept = kept.filter(|(_, balance)| balance.accuracy >= least - 1e-12);
        all(kept.min_by(|a, b| a.1.macs.total_cmp(&b.1.macs)).map_or(never(self.measure), |(threshold, _)| threshold))
    }

    /// Accuracy and cost over thresholds that are the same for all exits, in units of which the gates' largest has so many.
    pub(super) fn tradeoff(&self, method: &str, chosen: &[f32], largest: f64) -> Tradeoff {
        let point = |threshold: f32| Balanced {
            value: f64::from(threshold) * largest,
            balance: self.balance(&vec![threshold; self.sure.len()]),
        };
        let points = self.common().into_iter().map(point).collect();
        Tradeoff { method: method.into(), key: "threshold".into(), chosen: self.balance(chosen), points }
    }

    /// Thresholds from that at which none leaves to that at which all do, so that what lies between is evenly filled with images.
    fn common(&self) -> Vec<f32> {
        let sure = self.surest_first(self.sure.concat());
        let mut all: Vec<f32> = (0..=STEPS).map(|step| self.parting(&sure, step * sure.len() / STEPS)).collect();
        all.dedup();
        all
    }

    fn surest_first(&self, mut sure: Vec<f32>) -> Vec<f32> {
        match self.measure {
            Measure::Entropy => sure.sort_by(f32::total_cmp),
            Measure::Confidence => sure.sort_by(|a, b| b.total_cmp(a)),
        }
        sure
    }

    /// The threshold at which so many of the surest leave.
    fn parting(&self, sure: impl AsRef<[f32]>, count: usize) -> f32 {
        match sure.as_ref() {
            _ if count == 0 => never(self.measure),
            all if count >= all.len() => 1.0 - never(self.measure),
            some => f32::midpoint(some[count - 1], some[count]),
        }
    }
}
