//! Ranks under a budget over all layers.

use briquette_core::error::{Error, Result};

use super::{Rounding, Spectrum};

/// A layer that may be factorized.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// The spectra of the unfoldings of its ranks.
    pub spectra: Vec<Spectrum>,
    /// The largest that its ranks can be.
    pub limits: Vec<usize>,
    /// What it costs as it is.
    pub dense: f64,
    /// Where its ranks begin, and what they are multiples of.
    pub rounding: Rounding,
}

/// What [`greedy`] chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// The ranks of each layer; none for a layer that stays dense.
    pub ranks: Vec<Option<Vec<usize>>>,
    /// What the layers cost together.
    pub cost: f64,
}

/// Raises ranks where the most energy is gained for the cost, until nothing more fits into the budget.
///
/// Ranks begin at the floor. A step raises one rank of one layer to the next multiple, at its limit at most; it gains the squares of the singular
/// values that it adds as a share of the layer's energy. Of the steps that still fit the one with the greatest gain for its additional cost is
/// taken. A step after which a layer would cost no less than it does dense is a step to the dense layer, which gains all that was missing. A
/// layer that costs no less even at the floor is dense from the start. `cost` tells the cost of a layer, by its index, at given ranks, in the unit of
/// `budget` and [`Candidate::dense`]; `same` tells whether two choices of ranks make the same chain, where a large rank does not go with a small one:
/// that is no step.
///
/// # Errors
/// A budget below what the floor costs, which says the least that can be met; costs that are not finite; and those of `cost`.
pub fn greedy(
    layers: &[Candidate],
    mut cost: impl FnMut(usize, &[usize]) -> Result<f64>,
    same: impl Fn(usize, &[usize], &[usize]) -> Result<bool>,
    budget: f64,
) -> Result<Allocation> {
    let mut cost = |at: usize, ranks: &[usize]| {
        let found = cost(at, ranks)?;
        let finite = found.is_finite() && layers[at].dense.is_finite();
        finite.then_some(found).ok_or_else(|| Error::node(layers[at].name, format!("costs {found} at ranks {ranks:?}")))
    };
    let mut states = Vec::with_capacity(layers.len());
    for (at, layer) in layers.iter().enumerate() {
        let ranks: Vec<usize> = layer.limits.iter().map(|limit| layer.rounding.of(1, *limit)).collect();
        let found = cost(at, &ranks)?;
        let dense = found >= layer.dense;
        let mut state = State { ranks: (!dense).then_some(ranks), cost: found.min(layer.dense), steps: Vec::new() };
        state.steps = state.steps(layer, |ranks| cost(at, ranks), |a, b| same(at, a, b))?;
        states.push(state);
    }
    let total = |states: &[State]| states.iter().map(|state| state.cost).sum::<f64>();
    let least = total(&states);
    if budget.is_nan() || least > budget {
        return Err(Error::Invalid(format!("a budget of {budget} cannot be met: at the least ranks the layers cost {least}")));
    }
    loop {
        let spent = total(&states);
        let fitting = states.iter().enumerate().flat_map(|(at, state)| {
            let fits = move |step: &&Step| spent - state.cost + step.cost <= budget;
            state.steps.iter().filter(fits).map(move |step| (at, step))
        });
        // The first of equals, as `max_by` would take the last.
        let best = fitting.reduce(|best, next| if next.1.rate > best.1.rate { next } else { best });
        let Some((at, step)) = best.map(|(at, step)| (at, step.clone())) else {
            return Ok(Allocation { cost: spent, ranks: states.into_iter().map(|state| state.ranks).collect() });
        };
        let mut state = State { ranks: step.ranks, cost: step.cost, steps: Vec::new() };
        state.steps = state.steps(&layers[at], |ranks| cost(at, ranks), |a, b| same(at, a, b))?;
        states[at] = state;
    }
}

/// Where a layer stands.
struct State {
    ranks: Option<Vec<usize>>,
    cost: f64,
    /// What it may become next.
    steps: Vec<Step>,
}

#[derive(Clone)]
struct Step {
    ranks: Option<Vec<usize>>,
    /// Of the layer after the step.
    cost: f64,
    /// Energy gained per cost.
    rate: f64,
}

impl State {
    fn steps(
        &self,
        layer: &Candidate,
        mut cost: impl FnMut(&[usize]) -> Result<f64>,
        same: impl Fn(&[usize], &[usize]) -> Result<bool>,
    ) -> Result<Vec<Step>> {
        let Some(ranks) = &self.ranks else { return Ok(Vec::new()) };
        let gain = |which: usize, to: usize| (ranks[which] + 1..=to).map(|rank| layer.spectra[which].share(rank)).sum::<f64>();
        let rate = |gain: f64, cost: f64| if cost > self.cost { gain / (cost - self.cost) } else { f64::INFINITY };
        let (mut steps, mut to_dense) = (Vec::new(), false);
        for which in (0..ranks.len()).filter(|which| ranks[*which] < layer.limits[*which]) {
            let mut raised = ranks.clone();
            raised[which] = layer.rounding.of(ranks[which] + 1, layer.limits[which]);
            if same(ranks, &raised)? {
                continue;
            }
            let found = cost(&raised)?;
            if found < layer.dense {
                let rate = rate(gain(which, raised[which]), found);
                steps.push(Step { ranks: Some(raised), cost: found, rate });
            } else {
                to_dense = true;
            }
        }
        if to_dense {
            let missing = (0..ranks.len()).map(|which| gain(which, layer.limits[which])).sum();
            steps.push(Step { ranks: None, cost: layer.dense, rate: rate(missing, layer.dense) });
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn differ(_: usize, _: &[usize], _: &[usize]) -> Result<bool> {
        Ok(false)
    }

    fn candidate<'a>(name: &'a str, singular: &[f64], dense: f64) -> Candidate<'a> {
        let energy = singular.iter().map(|s| s * s).sum();
        let spectrum = Spectrum { singular: singular.to_vec(), shape: [singular.len(); 2], energy };
        Candidate { name, limits: vec![singular.len()], spectra: vec![spectrum], dense, rounding: Rounding::default() }
    }

    /// The layers of the golden values and what a rank costs in each.
    fn golden() -> (Vec<Candidate<'static>>, [f64; 3]) {
        let a = [
            0.999966, 0.750046, 0.56251, 0.421904, 0.316408, 0.237317, 0.17798, 0.133511, 0.100143, 0.075085, 0.056333, 0.042146,
        ];
        let b = [
            0.599995, 0.450006, 0.33746, 0.253159, 0.189843, 0.142362, 0.106802, 0.080081, 0.060095, 0.045047, 0.033776, 0.02532,
            0.019077, 0.014236, 0.010681, 0.008004, 0.00597, 0.004508, 0.003433, 0.002507, 0.001881, 0.001427, 0.001047,
            0.000754,
        ];
        let c = [
            1.500022, 1.125015, 0.843763, 0.632785, 0.474598, 0.355943, 0.266921, 0.200214, 0.150172, 0.112619, 0.084506,
            0.063385, 0.047549, 0.035629, 0.026726, 0.020058, 0.015039, 0.011272, 0.008461, 0.006361, 0.004768, 0.003589,
            0.002744, 0.001994,
        ];
        (vec![candidate("a", &a, 18432.0), candidate("b", &b, 36864.0), candidate("c", &c, 18432.0)], [2304.0, 3072.0, 1152.0])
    }

    fn kept(layer: &Candidate, rank: usize) -> f64 {
        (1..=rank).map(|rank| layer.spectra[0].share(rank)).sum()
    }

    #[test]
    fn greedy_finds_the_optimum_of_the_golden_layers() {
        let (layers, per_rank) = golden();
        for (fraction, ranks, energy) in [
            (0.6, [7, 6, 8], 2.941460711),
            (0.4, [4, 4, 6], 2.769003765),
            (0.25, [3, 2, 4], 2.406334102),
            (0.1, [1, 1, 1], 1.312908566),
        ] {
            let budget = fraction * 73728.0;
            let found = greedy(&layers, |at, ranks| Ok(per_rank[at] * ranks[0] as f64), differ, budget).unwrap();
            assert_eq!(found.ranks, ranks.map(|rank| Some(vec![rank])), "{fraction}");
            let sum: f64 = layers.iter().zip(ranks).map(|(layer, rank)| kept(layer, rank)).sum();
            assert!((sum - energy).abs() < 1e-6, "{sum} and {energy}");
            assert!(found.cost <= budget);
            // No other ranks within the budget keep more.
            let all = (1..=12).flat_map(|a| (1..=24).flat_map(move |b| (1..=24).map(move |c| [a, b, c])));
            let within =
                all.filter(|ranks| ranks.iter().zip(per_rank).map(|(rank, cost)| *rank as f64 * cost).sum::<f64>() <= budget);
            let best = within.map(|ranks| layers.iter().zip(ranks).map(|(layer, rank)| kept(layer, rank)).sum::<f64>());
            assert!(best.fold(0.0, f64::max) <= sum + 1e-12, "{fraction}");
        }
    }

    #[test]
    fn a_budget_that_cannot_be_met_says_the_least_that_can() {
        let (layers, per_rank) = golden();
        let found = greedy(&layers, |at, ranks| Ok(per_rank[at] * ranks[0] as f64), differ, 6000.0);
        let error = found.unwrap_err().to_string();
        assert_eq!(error, "a budget of 6000 cannot be met: at the least ranks the layers cost 6528");
    }

    #[test]
    fn layers_whose_factors_cost_no_less_stay_dense() {
        let (layers, per_rank) = golden();
        let cost = |at: usize, ranks: &[usize]| Ok(per_rank[at] * ranks[0] as f64);
        let all = greedy(&layers, cost, differ, 73728.0).unwrap();
        assert_eq!(all, Allocation { ranks: vec![None; 3], cost: 73728.0 }, "the whole budget buys the whole network");
        // At rank 1 the factors of the second cost more than itself.
        let pair = [candidate("thick", &[2.0, 1.0], 100.0), candidate("thin", &[2.0, 1.0], 5.0)];
        let found = greedy(&pair, |_, ranks| Ok(10.0 * ranks[0] as f64), differ, 15.0).unwrap();
        assert_eq!(found, Allocation { ranks: vec![Some(vec![1]), None], cost: 15.0 });
    }

    #[test]
    fn ranks_rise_by_multiples_from_the_floor() {
        let (mut layers, per_rank) = golden();
        let cost = |at: usize, ranks: &[usize]| Ok(per_rank[at] * ranks[0] as f64);
        let rounding = Rounding { multiple: NonZeroUsize::new(3).unwrap(), floor: NonZeroUsize::new(2).unwrap() };
        layers.iter_mut().for_each(|layer| layer.rounding = rounding);
        let found = greedy(&layers, cost, differ, 40000.0).unwrap();
        let ranks: Vec<usize> = found.ranks.into_iter().map(|ranks| ranks.unwrap()[0]).collect();
        assert!(ranks.iter().all(|rank| rank % 3 == 0), "{ranks:?}");
        assert!(found.cost <= 40000.0);
    }

    #[test]
    fn of_several_ranks_that_rises_which_gains_more_for_its_cost() {
        let of = |singular: &[f64]| candidate("pair", singular, 1e9).spectra.remove(0);
        let spectra = vec![of(&[4.0, 3.0, 0.1]), of(&[4.0, 2.0, 2.0])];
        let layer = Candidate { spectra, limits: vec![3, 3], ..candidate("pair", &[1.0], 1e9) };
        // Ranks [2, 1] cost 2 and [2, 2] cost 4; in energy the first rank has nothing left to gain then.
        let found = greedy(std::slice::from_ref(&layer), |_, ranks| Ok((ranks[0] * ranks[1]) as f64), differ, 4.0).unwrap();
        assert_eq!(found.ranks, [Some(vec![2, 2])]);
        let error = greedy(&[layer], |_, ranks| Ok(1.0 / (ranks[0] - 1) as f64), differ, 4.0).unwrap_err();
        assert_eq!(error.to_string(), "node 'pair': costs inf at ranks [1, 1]");
    }

    #[test]
    fn a_rank_that_does_not_go_with_the_others_is_no_step() {
        // The second rank counts up to twice the first.
        let layer = Candidate {
            limits: vec![4, 9],
            spectra: vec![Spectrum::flat(4), Spectrum::flat(9)],
            ..candidate("one", &[1.0], 1e9)
        };
        let within = |ranks: &[usize]| [ranks[0], ranks[1].min(2 * ranks[0])];
        let cost = |_: usize, ranks: &[usize]| Ok((10 * within(ranks)[0] + within(ranks)[1]) as f64);
        let same = |_: usize, a: &[usize], b: &[usize]| Ok(within(a) == within(b));
        let found = greedy(&[layer], cost, same, 24.0).unwrap();
        assert_eq!(found.ranks, [Some(vec![2, 4])], "and not 9 for nothing");
    }
}
