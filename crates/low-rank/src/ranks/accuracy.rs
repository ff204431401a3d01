//! Choices under a budget by accuracies measured before.

use briquette_core::error::{Error, Result};

/// One way to compress one layer, the others left as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// What the layer then costs.
    pub cost: f64,
    /// What the network then reaches.
    pub accuracy: f64,
}

/// What [`by_accuracy`] chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The index of the trial of each layer.
    pub choice: Vec<usize>,
    /// What the layers cost together.
    pub cost: f64,
    /// The least accuracy among the chosen trials.
    pub accuracy: f64,
}

/// The choice of a trial for each layer, of a table `trials[layer]`, that costs at most `budget` together and whose least accuracy is as high as
/// can be.
///
/// For a threshold `a` each layer takes its cheapest trial of an accuracy of at least `a`. What that costs only rises with `a`, so that the
/// highest threshold within the budget is found by bisection over the accuracies of the table, and no choice within it does better.
///
/// The greedy selection of compression ratios of AIMET (Qualcomm), with its dictionary of evaluations. Departs from it in bisecting over the
/// accuracies of the table instead of a range of scores, so that the result is exact.
///
/// # Errors
/// A table without layers, a layer without trials, values that are not finite, and a budget below the cheapest choice, which says the least that can be met.
pub fn by_accuracy(trials: &[Vec<Trial>], budget: f64) -> Result<Selection> {
    if trials.is_empty() {
        return Err(Error::Invalid("a table of trials has at least one layer".into()));
    }
    let finite = |trial: &Trial| trial.cost.is_finite() && trial.accuracy.is_finite();
    if let Some(at) = trials.iter().position(|trials| trials.is_empty() || !trials.iter().all(finite)) {
        return Err(Error::Invalid(format!("layer {at} of the table has no trials, or costs or accuracies that are not finite")));
    }
    let mut thresholds: Vec<f64> = trials.iter().flatten().map(|trial| trial.accuracy).collect();
    thresholds.sort_by(f64::total_cmp);
    thresholds.dedup();
    let affordable = |threshold: &f64| cheapest(trials, *threshold).is_some_and(|selection| selection.cost <= budget);
    let most = thresholds.partition_point(affordable).checked_sub(1);
    most.and_then(|most| cheapest(trials, thresholds[most])).ok_or_else(|| {
        let least: f64 = trials.iter().map(|trials| trials.iter().map(|trial| trial.cost).fold(f64::INFINITY, f64::min)).sum();
        Error::Invalid(format!("a budget of {budget} cannot be met: the cheapest of each layer cost {least}"))
    })
}

/// For each layer the cheapest trial that reaches the threshold, of equals the most accurate.
fn cheapest(trials: &[Vec<Trial>], threshold: f64) -> Option<Selection> {
    let of_layer = |trials: &Vec<Trial>| {
        let reaching = trials.iter().enumerate().filter(|(_, trial)| trial.accuracy >= threshold);
        let order = |a: &Trial, b: &Trial| a.cost.total_cmp(&b.cost).then(b.accuracy.total_cmp(&a.accuracy));
        reaching.min_by(|(_, a), (_, b)| order(a, b)).map(|(at, _)| at)
    };
    let choice: Vec<usize> = trials.iter().map(of_layer).collect::<Option<_>>()?;
    let chosen = || trials.iter().zip(&choice).map(|(trials, at)| trials[*at]);
    let (cost, accuracy) =
        (chosen().map(|trial| trial.cost).sum(), chosen().map(|trial| trial.accuracy).fold(f64::INFINITY, f64::min));
    Some(Selection { choice, cost, accuracy })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(by_accuracy(&table(), budget).unwrap(), Selection { choice: choice.to_vec(), cost, accuracy }, "{budget}");
        }
    }

    #[test]
    fn no_other_choice_within_the_budget_does_better() {
        let table = table();
        for budget in (8..=34).map(|half| f64::from(half) / 2.0) {
            let all = (0..64).map(|at| [table[0][at / 16], table[1][at / 4 % 4], table[2][at % 4]]);
            let within = all.filter(|trials| trials.iter().map(|trial| trial.cost).sum::<f64>() <= budget);
            let best = within.map(|trials| trials.iter().map(|trial| trial.accuracy).fold(1.0, f64::min)).fold(0.0, f64::max);
            assert_eq!(by_accuracy(&table, budget).unwrap().accuracy, best, "{budget}");
        }
    }

    #[test]
    fn what_cannot_be_met_says_the_least_that_can() {
        let error = by_accuracy(&table(), 3.5).unwrap_err().to_string();
        assert_eq!(error, "a budget of 3.5 cannot be met: the cheapest of each layer cost 4");
        let empty = by_accuracy(&[vec![]], 3.5).unwrap_err().to_string();
        assert!(empty.starts_with("layer 0 of the table has no trials"), "{empty}");
    }
}
