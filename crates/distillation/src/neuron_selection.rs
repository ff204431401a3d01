//! Neurons of the teacher that tell the classes apart and not the rest, each something else.
//!
//! With the balanced accuracy `x_ia` of neuron `i` as a detector of attribute `a`, the energy of a selection `y` is
//! `E(y) = sum_i Phi_i y_i + lambda sum_{i != j} Psi_ij y_i y_j`. `Phi_i = (max x - mean x over nuisance attributes) / (max x - mean x over identity
//! attributes)` is small for a neuron that prefers one identity, `Psi_ij = exp(-||x_i - x_j||^2 / 2)` for two that differ. The student
//! regresses on what was selected, by [`crate::logits::logits`].
//!
//! ```
//! use briquette_distillation::neuron_selection::Energy;
//!
//! // The first two neurons each know a class, the third none.
//! let accuracy = vec![vec![1.0, 0.5], vec![0.5, 1.0], vec![0.55, 0.5]];
//! assert_eq!(Energy::new(accuracy, &[0, 1], &[], 0.1).unwrap().least(2).unwrap(), [0, 1]);
//! ```
//!
//! Luo, Zhu, Liu, Wang, Tang. "Face Model Compression by Distilling Knowledge from Neurons". AAAI 2016.
//! Differs from the paper: all terms are positive, so that nothing selected has the least energy; the number of neurons is fixed instead, and
//! the energy descended by additions and exchanges where the paper has a mean field. Without nuisance attributes, as in a training, whose identities are the
//! classes, the numerator of `Phi` is 1. A neuron detects a class where it is above its own mean. A student of another width reads the selection through a
//! linear map that trains beside it.

use briquette_core::archive::Archive;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::{Seen, Taps as Tapped};
use briquette_core::teaching::{Distiller, Learned, Lesson, Pair, Shown, Taught};
use briquette_core::training::images;
use briquette_core::values::floats;
use briquette_data::Loader;
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Gradients, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::logits::logits;
use crate::taps::{Points, Taps, flat, weighable};
use crate::tensors::uniform;

/// The energy of selections of neurons.
#[derive(Debug, Clone)]
pub struct Energy {
    accuracy: Vec<Vec<f64>>,
    unary: Vec<f64>,
    lambda: f64,
}

impl Energy {
    /// That of neurons with these accuracies `[neuron][attribute]`, of which some attributes are identities and others, perhaps none, nuisances;
    /// `lambda` is the weight of pairs. A neuron that prefers no identity has an infinite `Phi`.
    ///
    /// # Errors
    /// Where accuracies are no shares or not of the same attributes for all, no attribute is an identity, or `lambda` is negative.
    pub fn new(accuracy: Vec<Vec<f64>>, identities: &[usize], nuisances: &[usize], lambda: f64) -> Result<Self> {
        let attributes = accuracy.first().map_or(0, Vec::len);
        let known = identities.iter().chain(nuisances).all(|attribute| *attribute < attributes);
        let shares = accuracy.iter().all(|of| of.len() == attributes && of.iter().all(|x| (0.0..=1.0).contains(x)));
        let weighted = (0.0..f64::INFINITY).contains(&lambda);
        if identities.is_empty() || !known || !shares || !weighted {
            let detail =
                format!("{} neurons, identities {identities:?}, nuisances {nuisances:?}, lambda {lambda}", accuracy.len());
            let rule = format!("each neuron needs a share for each of {attributes} attributes, and lambda is not negative");
            return Err(Error::Invalid(format!("neuron-selection: {detail}: {rule}")));
        }
        let preference = |of: &[f64], attributes: &[usize]| {
            let chosen = attributes.iter().map(|attribute| of[*attribute]);
            chosen.clone().fold(0.0, f64::max) - chosen.sum::<f64>() / attributes.len() as f64
        };
        let unary = accuracy.iter().map(|of| {
            let numerator = if nuisances.is_empty() { 1.0 } else { preference(of, nuisances) };
            let denominator = preference(of, identities);
            // Accuracies that are equal differ from their mean by rounding.
            if denominator > 1e-12 { numerator / denominator } else { f64::INFINITY }
        });
        Ok(Self { unary: unary.collect(), accuracy, lambda })
    }

    /// `E` of a selection.
    ///
    /// # Errors
    /// Where it names a neuron twice or one that is none.
    pub fn of(&self, selected: &[usize]) -> Result<f64> {
        if let Some((at, neuron)) =
            selected.iter().enumerate().find(|(at, i)| **i >= self.unary.len() || selected[..*at].contains(i))
        {
            let detail = format!("neuron {neuron}, number {at} of a selection, comes twice or is none of {}", self.unary.len());
            return Err(Error::Invalid(format!("neuron-selection: {detail}")));
        }
        Ok(selected.iter().enumerate().map(|(at, i)| self.unary[*i] + self.with(*i, &selected[..at])).sum())
    }

    /// A selection of `count` neurons that no exchange of one improves, in ascending order: neurons are added one after the other, each time the one
    /// that adds least, the first of equals, and then exchanged while that lowers the energy.
    ///
    /// # Errors
    /// Where there are fewer neurons that prefer an identity.
    pub fn least(&self, count: usize) -> Result<Vec<usize>> {
        let able = (0..self.unary.len()).filter(|i| self.unary[*i].is_finite()).collect::<Vec<_>>();
        if able.len() < count {
            let detail = format!("{count} of {} neurons cannot be selected: {} prefer an identity", self.unary.len(), able.len());
            return Err(Error::Invalid(format!("neuron-selection: {detail}")));
        }
        // What each neuron adds, or would add, to the pairs of the selection.
        let mut pairs = vec![0.0; self.unary.len()];
        let mut selected = Vec::with_capacity(count);
        let shift = |pairs: &mut [f64], neuron: usize, sign: f64| {
            able.iter().filter(|i| **i != neuron).for_each(|i| pairs[*i] += sign * self.pair(*i, neuron));
        };
        while selected.len() < count {
            let left = able.iter().filter(|i| !selected.contains(*i));
            let Some(next) = left.min_by(|i, j| (self.unary[**i] + pairs[**i]).total_cmp(&(self.unary[**j] + pairs[**j]))) else {
                break;
            };
            shift(&mut pairs, *next, 1.0);
            selected.push(*next);
        }
        while let Some((at, new)) = self.exchange(&selected, &able, &pairs) {
            shift(&mut pairs, selected[at], -1.0);
            shift(&mut pairs, new, 1.0);
            selected[at] = new;
        }
        selected.sort_unstable();
        Ok(selected)
    }

    /// The exchange that lowers the energy most, by more than rounding does: the place of the one that leaves and the one that comes.
    fn exchange(&self, selected: &[usize], able: &[usize], pairs: &[f64]) -> Option<(usize, usize)> {
        let mut best = (-1e-9, None);
        for (at, old) in selected.iter().enumerate() {
            for new in able.iter().filter(|new| !selected.contains(new)) {
                let change = self.unary[*new] + pairs[*new] - self.pair(*new, *old) - self.unary[*old] - pairs[*old];
                if change < best.0 {
                    best = (change, Some((at, *new)));
                }
            }
        }
        best.1
    }

    /// What a neuron's pairs with others add, in both orders.
    fn with(&self, neuron: usize, others: &[usize]) -> f64 {
        others.iter().map(|other| self.pair(neuron, *other)).sum()
    }

    /// `2 lambda Psi`.
    fn pair(&self, i: usize, j: usize) -> f64 {
        let distance = self.accuracy[i].iter().zip(&self.accuracy[j]).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        2.0 * self.lambda * (-distance / 2.0).exp()
    }
}

/// So many of the teacher's last hidden neurons as targets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NeuronSelection {
    /// Neurons that are selected.
    count: usize,
    /// Factor of the loss.
    #[serde(default = "one")]
    weight: f64,
    /// Weight of pairs in the energy.
    #[serde(default = "one")]
    pairs: f64,
    /// Training images on which neurons are judged.
    #[serde(default = "judges")]
    calibration_images: usize,
    /// The node of both networks; what the last fully connected layer reads without it.
    taps: Option<Points>,
}

fn one() -> f64 {
    1.0
}

fn judges() -> usize {
    2000
}

impl Taught for NeuronSelection {
    const NAME: &'static str = "neuron-selection";
    const PAPER: &'static str = "Luo, Zhu, Liu, Wang, Tang, AAAI 2016";
    const EXAMPLE: &'static str = "count = 6\ntrain = { epochs = 10 }";
}

impl Distiller for NeuronSelection {
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        let taps = Taps::features(self.taps.as_ref(), pair.teacher()?, pair.student)?;
        let [width, neurons]: [usize; 2] = taps.shapes(pair.teacher()?, pair.student)?.map(|shapes| shapes[0].iter().product());
        let accuracy = accuracies(pair, taps.both()[1][0], neurons, self.calibration_images)?;
        let classes: Vec<usize> = (0..pair.images.classes).collect();
        let selected = Energy::new(accuracy, &classes, &[], self.pairs)?.least(self.count)?;
        let mut rng = ChaCha8Rng::seed_from_u64(pair.seed);
        let device = pair.device.clone().autodiff();
        let reach = (width as f32).sqrt().recip();
        let map = (width != self.count).then(|| {
            let weight = Param::from_tensor(uniform([width, self.count], reach, &mut rng, &device));
            let bias = Some(Param::from_tensor(Tensor::zeros([self.count], &device)));
            Learned::new(Linear { weight, bias }, pair.optimizer.clone())
        });
        let selected: Vec<i64> = selected.into_iter().map(|neuron| neuron as i64).collect();
        Ok(Box::new(Selected { taps, selected, map }))
    }

    fn fits(&self, teacher: &Net, student: &Net) -> Result<()> {
        Taps::features(self.taps.as_ref(), teacher, student).map(drop)
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn check(&self) -> Result<()> {
        if self.count == 0 || self.calibration_images == 0 {
            return Err(Error::Invalid("neuron-selection: `count` and `calibration-images` are at least 1".into()));
        }
        weighable(Self::NAME, &[("weight", self.weight), ("pairs", self.pairs)])
    }
}

/// For each neuron that the node gives, and each class, `(TPR + TNR) / 2` of "above its mean over all images".
fn accuracies(pair: &Pair<'_>, node: usize, neurons: usize, limit: usize) -> Result<Vec<Vec<f64>>> {
    let (teacher, judged) = (pair.teacher()?, pair.images.take(limit));
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for batch in Loader::ordered(&judged, 100) {
        let batch = batch?;
        let mut taps = Tapped::of(vec![node]);
        teacher.tapped(images(&batch, judged.shape, pair.device), &mut taps);
        values.extend(floats(flat(&taps.values()?[0])));
        labels.extend(batch.labels.iter().map(|label| usize::from(*label)));
    }
    let count = labels.len() as f64;
    let mut sizes = vec![0.0; judged.classes];
    labels.iter().for_each(|label| sizes[*label] += 1.0);
    if let Some(class) = sizes.iter().position(|size| *size == 0.0) {
        let detail = format!("class {class} is not among the first {} training images", labels.len());
        return Err(Error::Invalid(format!("neuron-selection: {detail}; raise `calibration-images`")));
    }
    let of_neuron = |neuron: usize| {
        let value = |image: usize| f64::from(values[image * neurons + neuron]);
        let mean = (0..labels.len()).map(value).sum::<f64>() / count;
        let mut hits = vec![0.0; sizes.len()];
        labels.iter().enumerate().filter(|(image, _)| value(*image) > mean).for_each(|(_, label)| hits[*label] += 1.0);
        let all = hits.iter().sum::<f64>();
        let balanced = |(hit, size): (&f64, &f64)| 0.5 * (hit / size + 1.0 - (all - hit) / (count - size).max(1.0));
        hits.iter().zip(&sizes).map(balanced).collect()
    };
    Ok((0..neurons).map(of_neuron).collect())
}

struct Selected {
    taps: Taps,
    selected: Vec<i64>,
    map: Option<Learned<Linear>>,
}

impl Lesson for Selected {
    fn taps(&self) -> [&[usize]; 2] {
        self.taps.both()
    }

    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        let (student, teacher) = (flat(&seen.taps[0]), flat(&shown.taps[0]));
        let places = TensorData::new(self.selected.clone(), [self.selected.len()]);
        let targets = teacher.clone().select(1, Tensor::<1, Int>::from_data(places, &teacher.device()));
        let student = self.map.as_ref().map_or(student.clone(), |map| map.get().forward(student));
        logits(student, targets)
    }

    fn learn(&mut self, gradients: &mut Gradients, lr: f64) {
        self.map.iter_mut().for_each(|map| map.learn(gradients, lr));
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        self.map.iter_mut().try_for_each(|map| map.keep(archive))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const ACCURACY: [[f64; 6]; 6] = [
        [0.66, 0.77, 0.59, 0.88, 0.74, 0.76],
        [0.52, 0.81, 0.54, 0.88, 0.59, 0.58],
        [0.55, 0.78, 0.88, 0.93, 0.96, 0.81],
        [0.76, 0.78, 0.93, 0.55, 0.85, 0.7],
        [0.54, 0.77, 0.58, 0.83, 0.65, 0.68],
        [0.69, 0.9, 0.59, 0.66, 0.6, 0.83],
    ];

    fn energy(lambda: f64) -> Energy {
        Energy::new(ACCURACY.map(Vec::from).into(), &[0, 1, 2], &[3, 4, 5], lambda).unwrap()
    }

    /// The least energy over all selections.
    fn brute(energy: &Energy, count: usize) -> f64 {
        let subsets = (0_u32..1 << energy.unary.len()).filter(|set| set.count_ones() as usize == count);
        let members = |set: u32| (0..energy.unary.len()).filter(|i| set >> i & 1 == 1).collect::<Vec<_>>();
        subsets.map(|set| energy.of(&members(set)).unwrap()).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn energies_are_golden_and_the_least_is_found() {
        let unary = [0.8965517241, 1.053571429, 0.4186046512, 1.40625, 0.7857142857, 0.7692307692];
        for (lambda, best, all) in [(0.1, 2.514545035, 8.062954954), (1.0, 7.383502997, 32.66024381)] {
            let energy = energy(lambda);
            assert!(energy.unary.iter().zip(unary).all(|(a, b)| (a - b).abs() < 1e-8), "{:?}", energy.unary);
            assert_eq!(energy.least(3).unwrap(), [2, 4, 5]);
            assert!((energy.of(&[2, 4, 5]).unwrap() - best).abs() < 1e-8 && (brute(&energy, 3) - best).abs() < 1e-8);
            assert!((energy.of(&[0, 1, 2, 3, 4, 5]).unwrap() - all).abs() < 1e-7);
            assert_eq!(energy.of(&[]).unwrap(), 0.0);
        }
    }

    #[test]
    fn the_selection_is_near_the_least_energy_of_all() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for _ in 0..20 {
            let accuracy = (0..10).map(|_| (0..5).map(|_| rng.random_range(0.5..1.0)).collect()).collect();
            let energy = Energy::new(accuracy, &[0, 1, 2], &[3, 4], 0.5).unwrap();
            let (found, least) = (energy.of(&energy.least(4).unwrap()).unwrap(), brute(&energy, 4));
            assert!(found <= least * 1.01, "{found}, {least}");
        }
    }

    #[test]
    fn planted_neurons_are_selected_and_copies_are_not() {
        // Neurons 1, 4 and 6 prefer an identity each; 2 and 5 are copies of 1; the others prefer none, or a nuisance.
        let of = |identities: [f64; 3], nuisance: f64| [identities.to_vec(), vec![nuisance, 0.5]].concat();
        let accuracy = vec![
            of([0.6, 0.6, 0.6], 0.9),
            of([0.95, 0.5, 0.5], 0.52),
            of([0.95, 0.5, 0.5], 0.52),
            of([0.6, 0.65, 0.6], 0.95),
            of([0.5, 0.95, 0.5], 0.52),
            of([0.95, 0.5, 0.5], 0.52),
            of([0.5, 0.5, 0.95], 0.52),
        ];
        let energy = Energy::new(accuracy, &[0, 1, 2], &[3, 4], 1.0).unwrap();
        assert_eq!(energy.least(3).unwrap(), [1, 4, 6]);
        let error = energy.least(7).unwrap_err().to_string();
        assert_eq!(error, "neuron-selection: 7 of 7 neurons cannot be selected: 6 prefer an identity");
    }

    #[test]
    fn accuracies_that_are_no_shares_and_unknown_neurons_are_refused() {
        let refusal = |accuracy: Vec<Vec<f64>>, identities: &[usize], lambda: f64| {
            Energy::new(accuracy, identities, &[], lambda).map(drop).unwrap_err().to_string()
        };
        let told = "neuron-selection: 1 neurons, identities [0], nuisances [], lambda 1: each neuron needs a share for each of 2 attributes, \
                    and lambda is not negative";
        assert_eq!(refusal(vec![vec![0.5, f64::NAN]], &[0], 1.0), told);
        for (accuracy, identities, lambda) in [(vec![vec![0.5], vec![0.5, 0.6]], vec![0], 1.0), (vec![vec![0.5]], vec![1], 1.0)] {
            refusal(accuracy, &identities, lambda);
        }
        refusal(vec![vec![0.5]], &[0], -1.0);
        let error = energy(1.0).of(&[1, 1]).unwrap_err().to_string();
        assert_eq!(error, "neuron-selection: neuron 1, number 1 of a selection, comes twice or is none of 6");
    }
}
