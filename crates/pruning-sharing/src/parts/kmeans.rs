//! Clusters of numbers on a line.
//!
//! Lloyd's iteration in one dimension: after one sort, clusters are intervals, their borders are the midpoints of neighbouring
//! centroids, and every mean is a difference of prefix sums. One iteration over `n` values and `k` centroids costs `O(k log n)`.
//!
//! S. Lloyd. "Least Squares Quantization in PCM". IEEE Transactions on Information Theory 28(2), 1982.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// Where the centroids start (Han, Mao, Dally, ICLR 2016, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Evenly spaced over `[min, max]`: large weights, which are few and matter, get centroids too.
    #[default]
    Linear,
    /// At equal steps of the cumulative distribution.
    Density,
    /// Values drawn at random from the data.
    Forgy,
}

/// Centroids, ascending and distinct, and the index of the nearest one for each value.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// The centroids; fewer than asked for when the values are fewer or clusters run empty.
    pub centroids: Vec<f32>,
    /// One index per value.
    pub assignment: Vec<u32>,
}

/// Minimizes `sum_i (w_i - c_{a(i)})^2` over at most `k` centroids `c` and the assignment `a`, to a local optimum, in at most
/// `iterations` steps. Values must be finite; `seed` matters to [`Init::Forgy`] alone.
pub fn cluster(values: &[f32], k: usize, init: Init, iterations: usize, seed: u64) -> Clusters {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let mut distinct = sorted.clone();
    distinct.dedup();
    let mut centroids: Vec<f64> =
        if distinct.len() <= k { distinct.iter().map(|v| f64::from(*v)).collect() } else { start(&sorted, k, init, seed) };
    let prefix: Vec<f64> = std::iter::once(0.0)
        .chain(sorted.iter().scan(0.0, |sum, v| {
            *sum += f64::from(*v);
            Some(*sum)
        }))
        .collect();
    for _ in 0..iterations {
        let moved = step(&sorted, &prefix, &centroids);
        if moved == centroids {
            break;
        }
        centroids = moved;
    }
    let mut centroids: Vec<f32> = centroids.into_iter().map(|c| c as f32).collect();
    centroids.dedup();
    let assignment = values.iter().map(|v| nearest(&centroids, *v)).collect();
    Clusters { centroids, assignment }
}

fn start(sorted: &[f32], k: usize, init: Init, seed: u64) -> Vec<f64> {
    let (min, max) = (f64::from(sorted[0]), f64::from(sorted[sorted.len() - 1]));
    let share = |i: usize| i as f64 / (k - 1).max(1) as f64;
    let mut centroids: Vec<f64> = match init {
        Init::Linear => (0..k).map(|i| min + (max - min) * share(i)).collect(),
        Init::Density => (0..k).map(|i| f64::from(sorted[((2 * i + 1) * sorted.len()) / (2 * k)])).collect(),
        Init::Forgy => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (0..k).map(|_| f64::from(sorted[rng.random_range(0..sorted.len())])).collect()
        }
    };
    centroids.sort_by(f64::total_cmp);
    centroids.dedup();
    centroids
}

/// One Lloyd step; clusters that run empty are dropped.
fn step(sorted: &[f32], prefix: &[f64], centroids: &[f64]) -> Vec<f64> {
    let mut from = 0;
    let mut moved = Vec::with_capacity(centroids.len());
    for (i, centroid) in centroids.iter().enumerate() {
        let to = match centroids.get(i + 1) {
            Some(next) => sorted.partition_point(|v| f64::from(*v) < (centroid + next) / 2.0),
            None => sorted.len(),
        };
        if to > from {
            moved.push((prefix[to] - prefix[from]) / (to - from) as f64);
        }
        from = to.max(from);
    }
    moved
}

fn nearest(centroids: &[f32], value: f32) -> u32 {
    let above = centroids.partition_point(|c| *c < value);
    if above == 0 {
        0
    } else if above == centroids.len() || value - centroids[above - 1] <= centroids[above] - value {
        (above - 1) as u32
    } else {
        above as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_HEAPS: [f32; 7] = [-1.1, -1.0, -0.9, 1.9, 2.0, 2.1, 2.0];

    #[test]
    fn every_start_finds_two_heaps() {
        for init in [Init::Linear, Init::Density, Init::Forgy] {
            let found = cluster(&TWO_HEAPS, 2, init, 50, 3);
            assert!((found.centroids[0] + 1.0).abs() < 1e-6 && (found.centroids[1] - 2.0).abs() < 1e-6, "{init:?}: {found:?}");
            assert_eq!(found.assignment, [0, 0, 0, 1, 1, 1, 1]);
        }
    }

    #[test]
    fn no_step_raises_the_error_and_each_value_goes_to_its_nearest() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let values: Vec<f32> = (0..2000).map(|_| rng.random::<f32>().powi(3) - 0.3).collect();
        let error = |c: &Clusters| -> f64 {
            values.iter().zip(&c.assignment).map(|(v, &i)| f64::from(v - c.centroids[i as usize]).powi(2)).sum()
        };
        let mut last = f64::INFINITY;
        for iterations in 0..20 {
            let found = cluster(&values, 16, Init::Linear, iterations, 0);
            assert!(error(&found) <= last + 1e-9);
            last = error(&found);
            for (v, &i) in values.iter().zip(&found.assignment) {
                let best = found.centroids.iter().map(|c| (v - c).abs()).fold(f32::INFINITY, f32::min);
                assert!((v - found.centroids[i as usize]).abs() <= best);
            }
        }
    }

    #[test]
    fn fewer_values_than_centroids_are_kept_exactly() {
        let found = cluster(&[0.5, -2.0, 0.5], 8, Init::Linear, 50, 0);
        assert_eq!(found, Clusters { centroids: vec![-2.0, 0.5], assignment: vec![1, 0, 1] });
        assert_eq!(cluster(&[], 4, Init::Forgy, 5, 0).centroids, Vec::<f32>::new());
        assert_eq!(cluster(&[7.0; 3], 4, Init::Density, 5, 0).centroids, [7.0]);
    }
}
