//! Choices under a budget by accuracies measured before.

use briquette_core::error::{Error, Result};

/// One way to compress one layer, the others left as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// What the layer, or the network with it, then costs.
    pub cost: f64,
    /// What the network then reaches.
    pub accuracy: f64,
}

/// What [`by_accuracy`] chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The index of the trial of each layer.
    pub choice: Vec<usize>,
    /// What they cost together.
    pub cost: f64,
    /// The least accuracy among the chosen trials.
    pub accuracy: f64,
}

/// The choice of a trial for each layer, of a table `trials[layer]`, that costs at most `budget` together and whose least accuracy is as high as
/// can be. `cost` tells what a choice costs, [`sum`] where costs add up; it only rises along the [`ladder`], so that the best rung is found by bisection.
///
/// The greedy selection of compression ratios of AIMET (Qualcomm), with its dictionary of evaluations. Departs from it in bisecting over the
/// accuracies of the table instead of a range of scores, so that the result is exact where costs add up.
///
/// # Errors
/// Those of [`ladder`] and `cost`; a budget below the cheapest choice, which says the least that can be met.
pub fn by_accuracy(trials: &[Vec<Trial>], mut cost: impl FnMut(&[usize]) -> Result<f64>, budget: f64) -> Result<Selection> {
    let rungs = ladder(trials)?;
    let affordable = partition(rungs.len(), |rung| Ok(cost(&rungs[rung])? <= budget))?;
    let Some(best) = affordable.checked_sub(1) else {
        let least = cost(&rungs[0])?;
        return Err(Error::Invalid(format!("a budget of {budget} cannot be met: the cheapest of each layer cost {least}")));
    };
    let choice = rungs[best].clone();
    let accuracy = trials.iter().zip(&choice).map(|(trials, at)| trials[*at].accuracy).fold(f64::INFINITY, f64::min);
    Ok(Selection { cost: cost(&choice)?, choice, accuracy })
}

/// For each accuracy `a` of the table, as long as every layer reaches it, the cheapest trial of each layer with an accuracy of at least `a`, of equals the most accurate: the
/// choices of which no other is better in its least accuracy and no dearer, from the cheapest up.
///
/// # Errors
/// A table without layers, a layer without trials, and values that are not finite.
pub fn ladder(trials: &[Vec<Trial>]) -> Result<Vec<Vec<usize>>> {
    if trials.is_empty() {
        return Err(Error::Invalid("a table of trials has at least one layer".into()));
    }
    let finite = |trial: &Trial| trial.cost.is_finite() && trial.accuracy.is_finite();
    if let Some(at) = trials.iter().position(|trials| trials.is_empty() || !trials.iter().all(finite)) {
        return Err(Error::Invalid(format!("layer {at} of the table has no trials, or costs or accuracies that are not finite")));
    }
    let mut thresholds: Vec<f64> = trials.iter().flatten().map(|trial| trial.accuracy).collect();
    thresholds.sort_by(f64::total_cmp);
    let mut rungs: Vec<Vec<usize>> = thresholds.iter().map_while(|threshold| cheapest(trials, *threshold)).collect();
    rungs.dedup();
    Ok(rungs)
}

/// What a choice costs where the costs of layers add up.
pub fn sum(trials: &[Vec<Trial>], choice: &[usize]) -> f64 {
    trials.iter().zip(choice).map(|(trials, at)| trials[*at].cost).sum()
}

/// The number of leading indices below `count` of which `holds`, found by bisection: where the order has noise, a border at which it was asked on both sides.
///
/// # Errors
/// Those of `holds`.
pub fn partition(count: usize, mut holds: impl FnMut(usize) -> Result<bool>) -> Result<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle)? { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// For each layer the cheapest trial that reaches the threshold, of equals the most accurate.
fn cheapest(trials: &[Vec<Trial>], threshold: f64) -> Option<Vec<usize>> {
    let of_layer = |trials: &Vec<Trial>| {
        let reaching = trials.iter().enumerate().filter(|(_, trial)| trial.accuracy >= threshold);
        let order = |a: &Trial, b: &Trial| a.cost.total_cmp(&b.cost).then(b.accuracy.total_cmp(&a.accuracy));
        reaching.min_by(|(_, a), (_, b)| order(a, b)).map(|(at, _)| at)
    };
    trials.iter().map(of_layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(trials: &[Vec<Trial>], budget: f64) -> Result<Selection> {
        by_accuracy(trials, |choice| Ok(sum(trials, choice)), budget)
    }

    /// Costs and accuracies by hand; the second layer hardly suffers, and its second trial is worse and dearer than its third.
    fn table() -> Vec<Vec<Trial>> {
        let layer =
            |trials: &[(f64, f64)]| trials.iter().map(|(cost, accuracy)| Trial { cost: *cost, accuracy: *accuracy }).collect();
        vec![
            layer(&[(1.0, 0.50), (2.0, 0.70), (3.0, 0.85), (4.0, 0.90)]),
            layer(&[(2.0, 0.80), (6.0, 0.84), (4.0, 0.88), (8.0, 0.90)]),
            layer(&[(1.0, 0.60), (2.0, 0.75), (3.0, 0.80), (4.0, 0.90)]),
        ]
    }

    #[test]
    fn the_least_accuracy_is_as_high_as_the_budget_allows() {
        for (budget, choice, cost, accuracy) in [
            (16.0, [3, 3, 3], 16.0, 0.90),
            (15.9, [3, 2, 3], 12.0, 0.88),
            (11.9, [2, 2, 3], 11.0, 0.85),
            (8.0, [2, 0, 2], 8.0, 0.80),
            (7.9, [2, 0, 1], 7.0, 0.75),
            (4.0, [0, 0, 0], 4.0, 0.50),
        ] {
            assert_eq!(selected(&table(), budget).unwrap(), Selection { choice: choice.to_vec(), cost, accuracy }, "{budget}");
        }
    }

    #[test]
    fn no_other_choice_within_the_budget_does_better() {
        let table = table();
        for budget in (8..=34).map(|half| f64::from(half) / 2.0) {
            let all = (0..64).map(|at| [table[0][at / 16], table[1][at / 4 % 4], table[2][at % 4]]);
            let within = all.filter(|trials| trials.iter().map(|trial| trial.cost).sum::<f64>() <= budget);
            let best = within.map(|trials| trials.iter().map(|trial| trial.accuracy).fold(1.0, f64::min)).fold(0.0, f64::max);
            assert_eq!(selected(&table, budget).unwrap().accuracy, best, "{budget}");
        }
    }

    #[test]
    fn what_cannot_be_met_says_the_least_that_can() {
        let error = selected(&table(), 3.5).unwrap_err().to_string();
        assert_eq!(error, "a budget of 3.5 cannot be met: the cheapest of each layer cost 4");
        let empty = selected(&[vec![]], 3.5).unwrap_err().to_string();
        assert!(empty.starts_with("layer 0 of the table has no trials"), "{empty}");
    }
}
