//! Operations on each value, on each row of logits, and the order of values.

use rayon::prelude::*;

/// Values of a task.
const TASK: usize = 1 << 14;

/// `max(x, 0)`; NaN stays NaN.
pub fn rectify(x: &[f32]) -> Vec<f32> {
    x.par_iter().with_min_len(TASK).map(|x| if *x < 0.0 { 0.0 } else { *x }).collect()
}

/// The gradient of [`rectify`] by its input, from that by its output `y`.
///
/// # Panics
/// If the slices differ in length.
pub fn rectify_gradient(y: &[f32], dy: &[f32]) -> Vec<f32> {
    assert_eq!(y.len(), dy.len(), "a gradient for each output");
    y.par_iter().zip(dy).with_min_len(TASK).map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 }).collect()
}

/// `[batch, channels, pixels]` to `[batch, pixels, channels]`; with the last two numbers swapped, the other way.
///
/// # Panics
/// If `x` does not hold whole images.
pub fn channels_last(x: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    let image = channels * pixels;
    assert!(image > 0 && x.len().is_multiple_of(image), "{} values are no images of {channels} by {pixels}", x.len());
    if channels == 1 || pixels == 1 {
        return x.to_vec();
    }
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(image).zip(x.par_chunks(image)).for_each(|(y, x)| {
        // A few pixels of all channels at a time, so that what is written stays near.
        for (first, y) in (0..pixels).step_by(16).zip(y.chunks_mut(16 * channels)) {
            for (channel, x) in x.chunks_exact(pixels).enumerate() {
                y[channel..].iter_mut().step_by(channels).zip(&x[first..]).for_each(|(y, x)| *y = *x);
            }
        }
    });
    y
}

/// The mean over the rows of `-sum_k t_k log softmax(logits)_k`, and its gradient by the logits: `(softmax_k sum_j t_j - t_k) / rows`.
/// Logits and targets are `[rows, classes]`.
///
/// # Panics
/// If the slices differ in length or are no rows of `classes`.
pub fn cross_entropy(logits: &[f32], targets: &[f32], classes: usize) -> (f32, Vec<f32>) {
    assert!(classes > 0 && logits.len() == targets.len() && logits.len().is_multiple_of(classes), "targets for each logit");
    let rows = logits.len() / classes;
    let of_row = |(logits, targets): (&[f32], &[f32])| {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut gradient: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let sum: f32 = gradient.iter().sum();
        let (total, log_sum) = (targets.iter().sum::<f32>(), largest + sum.ln());
        let loss: f64 = logits.iter().zip(targets).filter(|(_, t)| **t != 0.0).map(|(l, t)| f64::from(t * (log_sum - l))).sum();
        gradient.iter_mut().zip(targets).for_each(|(g, t)| *g = (*g / sum * total - t) / rows as f32);
        (loss, gradient)
    };
    let of_rows: Vec<(f64, Vec<f32>)> =
        logits.par_chunks(classes).zip(targets.par_chunks(classes)).with_min_len(64).map(of_row).collect();
    let loss: f64 = of_rows.iter().map(|(loss, _)| loss).sum();
    ((loss / rows.max(1) as f64) as f32, of_rows.into_iter().flat_map(|(_, gradient)| gradient).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectifiers_let_through_what_is_positive() {
        let y = rectify(&[-1.0, 0.0, 2.0, f32::NAN]);
        assert!(y[..3] == [0.0, 0.0, 2.0] && y[3].is_nan());
        assert_eq!(rectify_gradient(&[0.0, 1.0, 3.0], &[5.0, 6.0, -7.0]), [0.0, 6.0, -7.0]);
    }

    #[test]
    fn channels_go_last_and_come_back() {
        let x: Vec<f32> = (0..2 * 5 * 37).map(|i| i as f32).collect();
        let y = channels_last(&x, 5, 37);
        assert_eq!(y[(37 + 20) * 5 + 3], x[(5 + 3) * 37 + 20]);
        assert_eq!(channels_last(&y, 37, 5), x);
    }

    #[test]
    fn the_cross_entropy_has_its_gradient() {
        let logits = [2.0, -1.0, 0.5, 100.0, 0.0, 99.0];
        let targets = [0.8, 0.1, 0.1, 0.0, 0.0, 1.0];
        let (loss, gradient) = cross_entropy(&logits, &targets, 3);
        let row = |logits: &[f64], targets: &[f32]| -> f64 {
            let largest = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum = logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln() + largest;
            logits.iter().zip(targets).map(|(l, t)| f64::from(*t) * (sum - l)).sum()
        };
        let all = |logits: &[f64]| (row(&logits[..3], &targets[..3]) + row(&logits[3..], &targets[3..])) / 2.0;
        let logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        assert!((f64::from(loss) - all(&logits)).abs() < 1e-6);
        for (i, gradient) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut logits = logits.clone();
                logits[i] += by;
                all(&logits)
            };
            assert!((f64::from(*gradient) - (moved(1e-4) - moved(-1e-4)) / 2e-4).abs() < 1e-6);
        }
    }
}
