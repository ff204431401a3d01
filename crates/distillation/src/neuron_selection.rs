//! Neurons of the teacher that tell the classes apart and not the rest, each something else.
//!
//! With the balanced accuracy `x_ia` of neuron `i` as a detector of attribute `a`, the energy of a selection `y` is
//! `E(y) = sum_i Phi_i y_i + lambda sum_{i != j} Psi_ij y_i y_j`. `Phi_i = (max x - mean x over nuisance attributes) / (max x - mean x over identity
//! attributes)` is small for a neuron that prefers one identity, `Psi_ij = exp(-||x_i - x_j||^2 / 2)` for two that differ. The student
//! regresses on what was selected, by [`crate::logits::logits`].
//!
//! Luo, Zhu, Liu, Wang, Tang. "Face Model Compression by Distilling Knowledge from Neurons". AAAI 2016.
//! Differs from the paper: all terms are positive, so that nothing selected has the least energy; the number of neurons is fixed instead, and
//! the energy descended by additions and exchanges where the paper has a mean field. Without nuisance attributes the numerator of `Phi` is 1.

use briquette_core::error::{Error, Result};

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
