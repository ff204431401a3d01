//! Mixtures of Gaussians over weights: their density, its slopes, and the merging of components that hardly differ.

use rayon::prelude::*;

/// The value of `-sum_i log sum_j pi_j N(w_i | mu_j, s_j^2)` over the weights `w_i` that are not zero, and its slopes.
#[derive(Debug)]
pub struct Slopes {
    /// The value.
    pub value: f64,
    /// By each weight.
    pub weights: Vec<f32>,
    /// By each component's mean, logarithm of the deviation and logarithm of the share.
    pub sums: Vec<[f64; 3]>,
}

impl Slopes {
    /// For these components and weights.
    pub fn of(components: &[Component], weights: &[f32]) -> Self {
        let mut all = Self { value: 0.0, weights: Vec::with_capacity(weights.len()), sums: vec![[0.0; 3]; components.len()] };
        let tasks: Vec<Self> = weights.par_chunks(TASK).map(|weights| Self::of_task(components, weights)).collect();
        for task in tasks {
            all.value += task.value;
            all.weights.extend(task.weights);
            all.sums.iter_mut().flatten().zip(task.sums.into_iter().flatten()).for_each(|(sum, more)| *sum += more);
        }
        all
    }

    fn of_task(components: &[Component], weights: &[f32]) -> Self {
        let means: Vec<f32> = components.iter().map(|c| c.mean as f32).collect();
        let narrow: Vec<f32> = components.iter().map(|c| (1.0 / c.variance.sqrt()) as f32).collect();
        let height = |c: &Component| (c.log_density(c.mean) - 0.5 * std::f64::consts::TAU.ln()) as f32;
        let heights: Vec<f32> = components.iter().map(height).collect();
        let mut found = Self { value: 0.0, weights: Vec::with_capacity(weights.len()), sums: vec![[0.0; 3]; means.len()] };
        let (mut far, mut logs) = (vec![0.0_f32; means.len()], vec![0.0_f32; means.len()]);
        for w in weights {
            if *w == 0.0 {
                found.weights.push(0.0);
                continue;
            }
            for j in 0..means.len() {
                far[j] = (w - means[j]) * narrow[j];
                logs[j] = heights[j] - 0.5 * far[j] * far[j];
            }
            let top = logs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Components that a single float would not show in the sum are left out.
            let near = |log: f32| if log > top - 20.0 { (log - top).exp() } else { 0.0 };
            logs.iter_mut().for_each(|log| *log = near(*log));
            let sum: f32 = logs.iter().sum();
            found.value -= f64::from(sum.ln() + top);
            let mut slope = 0.0;
            for j in (0..means.len()).filter(|j| logs[*j] > 0.0) {
                let share = logs[j] / sum;
                let pull = share * far[j] * narrow[j];
                slope += pull;
                let slopes = [-pull, share * (1.0 - far[j] * far[j]), -share];
                found.sums[j].iter_mut().zip(slopes).for_each(|(sum, slope)| *sum += f64::from(slope));
            }
            found.weights.push(slope);
        }
        found
    }
}

/// A component of a mixture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// `pi_j`.
    pub share: f64,
    /// `mu_j`.
    pub mean: f64,
    /// `s_j^2`.
    pub variance: f64,
}

impl Component {
    /// The mean of the Kullback-Leibler divergences in both directions.
    pub fn difference(&self, other: &Self) -> f64 {
        let square = (self.mean - other.mean).powi(2);
        ((self.variance + square) / other.variance + (other.variance + square) / self.variance - 2.0) / 4.0
    }

    /// `log pi_j N(w | mu_j, s_j^2)`, but for the constant `-1/2 log 2 pi`.
    pub fn log_density(&self, w: f64) -> f64 {
        self.share.ln() - 0.5 * self.variance.ln() - (w - self.mean).powi(2) / (2.0 * self.variance)
    }

    fn join(&self, other: &Self) -> Self {
        let share = self.share + other.share;
        let mean = |a: f64, b: f64| (self.share * a + other.share * b) / share;
        Self { share, mean: mean(self.mean, other.mean), variance: mean(self.variance, other.variance) }
    }
}

/// Merges the two most similar components until all differ by `least`; what merges with the first stays at its mean, zero.
pub fn merge(mut components: Vec<Component>, least: f64) -> Vec<Component> {
    loop {
        let pairs = (0..components.len()).flat_map(|i| (i + 1..components.len()).map(move |j| (i, j)));
        let closest = pairs.map(|(i, j)| (components[i].difference(&components[j]), i, j)).min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, i, j)) = closest.filter(|(difference, ..)| *difference < least) else { return components };
        let gone = components.remove(j);
        let joined = components[i].join(&gone);
        components[i] = if i == 0 { Component { mean: 0.0, ..joined } } else { joined };
    }
}

/// Weights of a task.
const TASK: usize = 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_components_merge_into_one_with_the_sum_of_their_shares() {
        let at = |share: f64, mean: f64| Component { share, mean, variance: 0.01 };
        let merged = merge(vec![at(0.5, 0.0), at(0.125, 0.75), at(0.25, -0.4), at(0.125, 0.75)], 1e-6);
        assert_eq!(merged, [at(0.5, 0.0), at(0.25, 0.75), at(0.25, -0.4)]);
        let near = merge(vec![at(0.5, 0.0), at(0.1, 0.70), at(0.3, 0.74), at(0.1, 0.02)], 0.2);
        assert_eq!((near.len(), near[0]), (2, at(0.6, 0.0)));
        assert!((near[1].share - 0.4).abs() < 1e-12 && (near[1].mean - 0.73).abs() < 1e-12, "{near:?}");
        // Of equal means, two variances of the ratio r differ by (r + 1 / r - 2) / 4.
        let wide = Component { variance: 0.04, ..at(0.5, 0.0) };
        assert!((at(0.5, 0.0).difference(&wide) - 0.5625).abs() < 1e-12);
    }
}
