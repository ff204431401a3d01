//! Bringing choices within a budget, and near to it.

use briquette_core::error::Result;

/// How near to its budget a network comes, as a share of it, where a step is small enough.
pub(crate) const NEAR: f64 = 0.02;

/// Takes one from a choice at a time, from the last to the first and over again, none below its least, until all cost no more than the limit; whether they do.
///
/// # Errors
/// Those of `cost`.
pub fn sweep(choice: &mut [usize], least: &[usize], mut cost: impl FnMut(&[usize]) -> Result<f64>, limit: f64) -> Result<bool> {
    loop {
        let mut lowered = false;
        for at in (0..choice.len()).rev() {
            if cost(choice)? <= limit {
                return Ok(true);
            }
            if choice[at] > least[at] {
                choice[at] -= 1;
                lowered = true;
            }
        }
        if !lowered {
            return Ok(cost(choice)? <= limit);
        }
    }
}

/// Gives back what a budget leaves: adds one to a choice at a time, in this order and over again, none above its most, as long as all cost no more than the limit, until
/// they come within 2 % of it or no step fits any more. What they then cost.
///
/// # Errors
/// Those of `cost`.
pub fn refill(
    choice: &mut [usize],
    most: &[usize],
    order: &[usize],
    mut cost: impl FnMut(&[usize]) -> Result<f64>,
    limit: f64,
) -> Result<f64> {
    let mut spent = cost(choice)?;
    let mut open: Vec<usize> = order.iter().copied().filter(|at| choice[*at] < most[*at]).collect();
    while !open.is_empty() {
        let mut still = Vec::new();
        for at in open {
            if spent >= (1.0 - NEAR) * limit {
                return Ok(spent);
            }
            choice[at] += 1;
            let found = cost(choice)?;
            if found <= limit {
                spent = found;
                still.extend((choice[at] < most[at]).then_some(at));
            } else {
                choice[at] -= 1;
            }
        }
        open = still;
    }
    Ok(spent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [f64; 4] = [100.0, 4000.0, 9000.0, 500.0];

    /// Share of 32 bits for each weight.
    fn share(bits: &[usize]) -> Result<f64> {
        let bits: f64 = bits.iter().zip(SIZES).map(|(bits, size)| *bits as f64 * size).sum();
        Ok(bits / (32.0 * SIZES.iter().sum::<f64>()))
    }

    /// What the public code of HAQ makes of the same layers.
    #[test]
    fn bits_are_taken_as_published() {
        let golden = [
            ([8, 8, 8, 8], 0.15, [5, 5, 4, 4], 0.134_420_955_9),
            ([6, 3, 8, 2], 0.1, [3, 1, 4, 1], 0.093_75),
            ([4, 4, 4, 4], 0.2, [4, 4, 4, 4], 0.125),
        ];
        for (mut bits, limit, after, ratio) in golden {
            assert!(sweep(&mut bits, &[1; 4], share, limit).unwrap());
            assert_eq!(bits, after);
            assert!((share(&bits).unwrap() - ratio).abs() < 1e-8);
        }
        let mut least = [2; 4];
        assert!(!sweep(&mut least, &[2; 4], share, 0.01).unwrap());
    }

    #[test]
    fn what_a_sweep_leaves_is_given_back_to_within_2_percent() {
        let mut bits = [5, 5, 4, 4];
        let spent = refill(&mut bits, &[8; 4], &[0, 1, 2, 3], share, 0.15).unwrap();
        assert!(spent <= 0.15 && spent > 0.98 * 0.15, "{spent} of {bits:?}");
        assert_eq!(bits, [8, 6, 4, 7], "another bit of the third layer does not fit");
        // One step is more than is left: nothing moves.
        let mut coarse = [1];
        let spent = refill(&mut coarse, &[3], &[0], |bits| Ok(10.0 * bits[0] as f64), 19.0).unwrap();
        assert_eq!((coarse, spent), ([1], 10.0));
    }
}
