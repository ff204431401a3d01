//! Clusters of numbers on a line.
//!
//! Lloyd's iteration in one dimension for numbers `w_i` whose squared errors count `h_i`-fold: after one sort on all cores, clusters are
//! intervals, their borders are the midpoints of neighbouring centroids, and every mean `sum h w / sum h` follows from sums up to a place in
//! the order. These are kept for the ends of blocks alone, so that one iteration over `k` centroids costs `O(k (log n + block))` and the
//! whole takes no more memory than one copy of the numbers besides the assignment. Nothing depends on the number of threads.
//!
//! S. Lloyd. "Least Squares Quantization in PCM". IEEE Transactions on Information Theory 28(2), 1982.

use std::cmp::Ordering;

use briquette_core::coding::Source;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Deserialize;

/// A number to cluster, and how much its squared error counts. Plain numbers all count once.
pub trait Point: Copy + Send + Sync {
    /// The number; finite.
    fn value(self) -> f32;
    /// How much its squared error counts; 0 or more, and finite.
    fn weight(self) -> f64;
    /// An order by value that leaves no two different points equal.
    fn order(&self, other: &Self) -> Ordering;
}

impl Point for f32 {
    fn value(self) -> f32 {
        self
    }

    fn weight(self) -> f64 {
        1.0
    }

    fn order(&self, other: &Self) -> Ordering {
        self.total_cmp(other)
    }
}

/// A number whose squared error counts `weight`-fold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted {
    /// The number.
    pub value: f32,
    /// How much its squared error counts.
    pub weight: f32,
}

impl Point for Weighted {
    fn value(self) -> f32 {
        self.value
    }

    fn weight(self) -> f64 {
        f64::from(self.weight)
    }

    fn order(&self, other: &Self) -> Ordering {
        self.value.total_cmp(&other.value).then(self.weight.total_cmp(&other.weight))
    }
}

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

impl Clusters {
    /// The clusters of a masked tensor, found among the points that its mask keeps; masked ones point to the first.
    #[must_use]
    pub fn spread(self, mask: &[bool]) -> Self {
        let mut indices = self.assignment.into_iter();
        let assignment = mask.iter().map(|keep| if *keep { indices.next().unwrap_or(0) } else { 0 }).collect();
        Self { centroids: self.centroids, assignment }
    }

    /// A codebook, or free weights where there is nothing to share.
    pub fn into_source(self) -> Source {
        let Self { centroids, assignment } = self;
        if centroids.is_empty() { Source::Free } else { Source::Codebook { centroids, assignment } }
    }
}

/// The points that a mask keeps.
pub fn kept<P: Copy>(points: &[P], mask: &[bool]) -> Vec<P> {
    points.iter().zip(mask).filter(|(_, keep)| **keep).map(|(point, _)| *point).collect()
}

/// Minimizes `sum_i h_i (w_i - c_{a(i)})^2` over at most `k` centroids `c` and the assignment `a`, to a local optimum, in at most
/// `iterations` steps. Values must be finite; `seed` matters to [`Init::Forgy`] alone.
pub fn cluster<P: Point>(points: &[P], k: usize, init: Init, iterations: usize, seed: u64) -> Clusters {
    let centroids = centroids(points, k, init, iterations, seed);
    let mut assignment = vec![0; points.len()];
    assignment.par_chunks_mut(TASK).zip(points.par_chunks(TASK)).for_each(|(assignment, points)| {
        assignment.iter_mut().zip(points).for_each(|(index, point)| *index = nearest(&centroids, point.value()));
    });
    Clusters { centroids, assignment }
}

fn centroids<P: Point>(points: &[P], k: usize, init: Init, iterations: usize, seed: u64) -> Vec<f32> {
    let sorted = sorted(points);
    let mut centroids = start(&sorted, k, init, seed);
    let sums = Sums::of(&sorted);
    for _ in 0..iterations {
        let moved = step(&sums, &centroids);
        if moved == centroids {
            break;
        }
        centroids = moved;
    }
    let mut centroids: Vec<f32> = centroids.into_iter().map(|c| c as f32).collect();
    centroids.dedup();
    centroids
}

/// The points by value.
pub fn sorted<P: Point>(points: &[P]) -> Vec<P> {
    let mut sorted = points.to_vec();
    sorted.par_sort_unstable_by(P::order);
    sorted
}

/// Where at most `k` centroids begin: at the values themselves if these are no more than `k`, and otherwise as `init` says.
pub fn start<P: Point>(sorted: &[P], k: usize, init: Init, seed: u64) -> Vec<f64> {
    let value = |i: usize| f64::from(sorted[i].value());
    let distinct: Vec<&[P]> = sorted.chunk_by(|a, b| a.value() == b.value()).take(k + 1).collect();
    if distinct.len() <= k {
        return distinct.iter().map(|same| f64::from(same[0].value())).collect();
    }
    let (min, max) = (value(0), value(sorted.len() - 1));
    let share = |i: usize| i as f64 / (k - 1).max(1) as f64;
    let mut centroids: Vec<f64> = match init {
        Init::Linear => (0..k).map(|i| min + (max - min) * share(i)).collect(),
        Init::Density => (0..k).map(|i| value(((2 * i + 1) * sorted.len()) / (2 * k))).collect(),
        Init::Forgy => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (0..k).map(|_| value(rng.random_range(0..sorted.len()))).collect()
        }
    };
    centroids.sort_by(f64::total_cmp);
    centroids.dedup();
    centroids
}

/// Sums of `h w` and of `h` over the points up to any place in their order.
struct Sums<'a, P> {
    sorted: &'a [P],
    /// The sums up to the beginning of each block.
    blocks: Vec<[f64; 2]>,
}

impl<'a, P: Point> Sums<'a, P> {
    fn of(sorted: &'a [P]) -> Self {
        let mut blocks: Vec<[f64; 2]> = sorted.par_chunks(BLOCK).map(|block| add([0.0; 2], block)).collect();
        let mut before = [0.0; 2];
        for block in &mut blocks {
            let sum = [before[0] + block[0], before[1] + block[1]];
            *block = std::mem::replace(&mut before, sum);
        }
        blocks.push(before);
        Self { sorted, blocks }
    }

    fn up_to(&self, end: usize) -> [f64; 2] {
        let block = end / BLOCK;
        if block * BLOCK == end { self.blocks[block] } else { add(self.blocks[block], &self.sorted[block * BLOCK..end]) }
    }
}

fn add<P: Point>(start: [f64; 2], points: &[P]) -> [f64; 2] {
    points
        .iter()
        .fold(start, |[moment, weight], point| [moment + point.weight() * f64::from(point.value()), weight + point.weight()])
}

/// One Lloyd step; clusters that run empty, or whose points do not count, are dropped.
fn step<P: Point>(sums: &Sums<'_, P>, centroids: &[f64]) -> Vec<f64> {
    let (mut from, mut below) = (0, [0.0; 2]);
    let mut moved = Vec::with_capacity(centroids.len());
    for (i, centroid) in centroids.iter().enumerate() {
        let to = match centroids.get(i + 1) {
            Some(next) => sums.sorted.partition_point(|point| f64::from(point.value()) < (centroid + next) / 2.0),
            None => sums.sorted.len(),
        };
        if to > from {
            let up_to = sums.up_to(to);
            if up_to[1] > below[1] {
                moved.push((up_to[0] - below[0]) / (up_to[1] - below[1]));
            }
            (from, below) = (to, up_to);
        }
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

/// Enough for convergence on every layer of the zoo; a bound for the ones nobody has seen.
pub const LLOYD_STEPS: usize = 300;

/// Points of one task; fixed, so that no result depends on the number of threads.
pub const TASK: usize = 1 << 18;

/// Points between two places whose sums are kept.
const BLOCK: usize = 512;

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
        assert_eq!(cluster::<f32>(&[], 4, Init::Forgy, 5, 0).centroids, Vec::<f32>::new());
        assert_eq!(cluster(&[7.0; 3], 4, Init::Density, 5, 0).centroids, [7.0]);
    }

    fn sample(count: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        (0..count).map(|_| rng.random::<f32>().powi(3) - rng.random::<f32>()).collect()
    }

    #[test]
    fn a_mean_follows_the_weights_and_points_without_weight_do_not_pull() {
        let points = |weights: [f32; 4]| -> Vec<Weighted> {
            [0.0, 1.0, 9.0, 11.0].into_iter().zip(weights).map(|(value, weight)| Weighted { value, weight }).collect()
        };
        assert_eq!(cluster(&points([1.0, 3.0, 1.0, 1.0]), 2, Init::Linear, 50, 0).centroids, [0.75, 10.0]);
        assert_eq!(cluster(&points([0.0, 2.0, 4.0, 0.0]), 2, Init::Linear, 50, 0).centroids, [1.0, 9.0]);
        let gone = cluster(&points([0.0, 0.0, 1.0, 1.0]), 2, Init::Linear, 50, 0);
        assert_eq!(gone, Clusters { centroids: vec![10.0], assignment: vec![0; 4] });
    }

    #[test]
    fn sums_of_blocks_give_the_clusters_of_a_plain_loop() {
        let values = sample(20 * BLOCK + 77);
        let found = cluster(&values, 16, Init::Density, LLOYD_STEPS, 0);
        let mut centroids: Vec<f64> = start(&sorted(&values), 16, Init::Density, 0);
        for _ in 0..LLOYD_STEPS {
            let (mut sums, mut counts) = ([0.0; 16], [0.0; 16]);
            for v in values.iter().map(|v| f64::from(*v)) {
                let near = (0..16).min_by(|&a, &b| (v - centroids[a]).abs().total_cmp(&(v - centroids[b]).abs())).unwrap();
                sums[near] += v;
                counts[near] += 1.0;
            }
            centroids = sums.iter().zip(counts).map(|(sum, count)| sum / count).collect();
        }
        assert!(found.centroids.iter().zip(&centroids).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn the_clusters_do_not_depend_on_the_number_of_threads() {
        let points: Vec<Weighted> =
            sample(2 * TASK + 5).iter().enumerate().map(|(i, &value)| Weighted { value, weight: (i % 7) as f32 }).collect();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| cluster(&points, 32, Init::Linear, 20, 0))
        };
        assert_eq!(with(1), with(3));
    }
}
