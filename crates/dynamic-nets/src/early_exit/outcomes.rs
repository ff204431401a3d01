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
        // What is not a number never leaves.
        sure.retain(|sure| !sure.is_nan());
        match self.measure {
            Measure::Entropy => sure.sort_by(f32::total_cmp),
            Measure::Confidence | Measure::Sigmoid => sure.sort_by(|a, b| b.total_cmp(a)),
        }
        sure
    }

    /// The threshold at which so many of the surest leave; of images that are equally sure all or none, whichever comes nearer.
    fn parting(&self, sure: impl AsRef<[f32]>, count: usize) -> f32 {
        match sure.as_ref() {
            _ if count == 0 => never(self.measure),
            all if count >= all.len() => 1.0 - never(self.measure),
            some if some[count - 1].to_bits() == some[count].to_bits() => {
                let equal = |sure: &f32| sure.to_bits() == some[count].to_bits();
                let before = some[..count].iter().rev().take_while(|sure| equal(sure)).count();
                let behind = some[count..].iter().take_while(|sure| equal(sure)).count();
                self.parting(some, if before < behind { count - before } else { count + behind })
            }
            some => f32::midpoint(some[count - 1], some[count]),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const LOGITS: [[[f32; 4]; 6]; 3] = [
        [
            [-0.355, 1.288, 4.137, -1.477],
            [1.815, -0.119, 2.414, -0.562],
            [2.61, -1.274, -1.279, 0.978],
            [-0.173, -0.886, -3.434, 1.441],
            [-1.583, 0.001, 2.392, 0.747],
            [1.645, -2.148, -2.205, -0.695],
        ],
        [
            [-0.083, 0.963, -1.807, -1.398],
            [0.843, 2.0, 2.367, -1.132],
            [0.289, -2.788, 0.531, -3.309],
            [-1.58, -0.782, -0.218, -1.626],
            [-1.913, 1.15, 0.687, -3.029],
            [2.512, 0.986, 2.514, 1.095],
        ],
        [
            [2.748, -1.441, -1.719, 3.98],
            [-2.176, 3.882, -0.915, 1.381],
            [1.886, -1.493, 1.62, -1.813],
            [-3.694, -0.769, -1.083, -2.101],
            [0.765, -1.458, -1.09, -0.17],
            [0.146, 2.333, -2.949, -0.769],
        ],
    ];
    pub(in super::super) const LABELS: [u16; 6] = [0, 1, 2, 3, 1, 0];

    fn outcomes() -> Outcomes {
        let right = |exit: &[[f32; 4]; 6]| exit.iter().zip(LABELS).map(|(row, label)| hits(row, &[label], 1) == 1).collect();
        Outcomes {
            measure: Measure::Entropy,
            classes: 4,
            sure: LOGITS[..2].iter().map(|exit| exit.iter().map(|row| Measure::Entropy.of(row)).collect()).collect(),
            right: LOGITS.iter().map(right).collect(),
            macs: vec![100, 250, 400],
        }
    }

    /// `early-exit` of the reference values: entropies in nats, the exit of each sample at 0.7 and 0.9, and the mean cost.
    #[test]
    fn samples_leave_at_the_first_exit_that_is_sure_of_them() {
        let found = outcomes();
        let expected = [
            [0.2899733196, 0.9246700523, 0.5993787175, 0.7146784659, 0.7337377682, 0.4756517021],
            [0.9173764408, 1.019686578, 0.8243218325, 1.217424352, 0.8203596413, 1.174401972],
        ];
        let nats = 4.0_f64.ln();
        for (sure, expected) in found.sure.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f64::from(*sure) * nats - expected).abs() < 2e-5, "{sure} {expected}");
        }
        let thresholds = [0.7, 0.9].map(|threshold: f64| (threshold / nats) as f32);
        assert_eq!(found.taken(&thresholds), [0, 2, 0, 2, 1, 0]);
        // Of the predictions 2, 1, 0, 1, 1, 0 those of samples 1, 4 and 5 are right.
        assert_eq!(found.balance(&thresholds), Balance { accuracy: 0.5, macs: 225.0 });
    }

    #[test]
    fn calibrated_thresholds_part_the_images_as_they_were_asked_to() {
        let found = outcomes();
        let share = |value: f64| Ratio::try_from(value).unwrap();
        let counts = |thresholds: &[f32]| {
            let taken = found.taken(thresholds);
            [0, 1, 2].map(|exit| taken.iter().filter(|taken| **taken == exit).count())
        };
        assert_eq!(counts(&found.for_shares(&[share(0.5), share(1.0 / 3.0)])), [3, 2, 1]);
        assert_eq!(counts(&found.for_shares(&[share(0.0), share(1.0)])), [0, 6, 0]);
        assert_eq!(counts(&found.for_shares(&[share(1.0), share(0.0)])), [6, 0, 0]);
        // The last exit alone has sample 1 right, the first exit 3 and 5.
        let last = found.balance(&[0.0; 2]).accuracy;
        assert_eq!(counts(&[0.0; 2]), [0, 0, 6]);
        for drop in [0.0, 20.0] {
            let found = found.balance(&found.within(drop));
            assert!(found.accuracy >= last - drop / 100.0 && found.macs < 400.0, "{found:?}");
        }
        let curve = found.tradeoff("early-exit", &[0.0; 2], 1.0);
        let ends = [&curve.points[0], curve.points.last().unwrap()].map(|point| (point.value, point.balance.macs));
        assert_eq!(ends, [(0.0, 400.0), (1.0, 100.0)]);
        assert!(curve.points.is_sorted_by(|a, b| a.balance.macs >= b.balance.macs));
    }
}
