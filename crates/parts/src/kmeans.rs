//! Clusters of numbers on a line.
//!
//! Lloyd's iteration in one dimension for numbers `w_i` whose squared errors count `h_i`-fold: after one sort on all cores, clusters are
//! intervals, their borders are the midpoints of neighbouring centroids, and every mean `sum h w / sum h` follows from sums up to a place in
//! the order. These are kept for the ends of blocks alone, so that one iteration over `k` centroids costs `O(k (log n + block))` and the
//! whole takes no more memory than one copy of the numbers besides the assignment. Nothing depends on the number of threads.
//!
//! A cluster that runs empty takes the point whose error is largest, so that no centroid is lost: starts that are evenly spaced over a range
//! with an outlier would leave most of theirs in the gap. Where that happened to few points, borders between neighbours are
//! moved to their best places in the end.
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
    /// The centroids; fewer than asked for only when the values that count are fewer.
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
    let wanted = sorted.chunk_by(|a, b| a.value() == b.value()).take(k).count();
    let mut centroids = start(&sorted, k, init, seed);
    let sums = Sums::of(&sorted);
    let mut lost = centroids.len() < wanted;
    for _ in 0..iterations {
        let moved = step(&sums, &centroids);
        lost |= moved.len() < wanted;
        let moved = refilled(&sorted, moved, wanted);
        if moved == centroids {
            break;
        }
        centroids = moved;
    }
    let mut before = 0;
    while centroids.len() > before {
        before = centroids.len();
        centroids = refilled(&sorted, centroids, wanted);
    }
    if lost && iterations > 0 && sorted.len() <= SETTLED {
        centroids = settled(&sorted, &centroids);
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

/// The centroids with further ones up to `wanted`: in each cluster, those of the largest errors first, the point `w` of the largest
/// `h (w - c)^2`. As long as there are more values that count than centroids, at least one is found.
fn refilled<P: Point>(sorted: &[P], mut centroids: Vec<f64>, wanted: usize) -> Vec<f64> {
    let missing = wanted.saturating_sub(centroids.len());
    if missing == 0 || centroids.is_empty() {
        return centroids;
    }
    let farthest = |points: &[P]| {
        let mut found = vec![(0.0, 0.0); centroids.len()];
        let mut cluster = 0;
        for point in points {
            let value = f64::from(point.value());
            while centroids.get(cluster + 1).is_some_and(|next| value >= (centroids[cluster] + next) / 2.0) {
                cluster += 1;
            }
            let error = point.weight() * (value - centroids[cluster]).powi(2);
            // What differs from a centroid by its rounding alone is that centroid.
            if error > found[cluster].0 && point.value() != centroids[cluster] as f32 {
                found[cluster] = (error, value);
            }
        }
        found
    };
    let larger = |a: Vec<(f64, f64)>, b: Vec<(f64, f64)>| {
        a.into_iter().zip(b).map(|(a, b)| if b.0 > a.0 { b } else { a }).collect::<Vec<_>>()
    };
    let tasks: Vec<_> = sorted.par_chunks(TASK).map(farthest).collect();
    let mut found: Vec<(f64, f64)> = tasks.into_iter().reduce(larger).unwrap_or_default();
    found.retain(|(error, _)| *error > 0.0);
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    centroids.extend(found.into_iter().take(missing).map(|(_, value)| value));
    centroids.sort_by(f64::total_cmp);
    centroids
}

/// The means of the clusters of these centroids after each border between two of them has moved to where their errors together are least,
/// in turns until none moves. Centroids that were put at the ends of heaps leave Lloyd's iteration at borders that this still improves.
fn settled<P: Point>(sorted: &[P], centroids: &[f64]) -> Vec<f64> {
    let border = |pair: &[f64]| sorted.partition_point(|point| f64::from(point.value()) < (pair[0] + pair[1]) / 2.0);
    let mut borders = vec![0];
    borders.extend(centroids.windows(2).map(border));
    borders.push(sorted.len());
    for _ in 0..LLOYD_STEPS {
        let mut moved = false;
        for i in 1..borders.len() - 1 {
            let (from, to) = (borders[i - 1], borders[i + 1]);
            let best = from + split(&sorted[from..to], borders[i] - from);
            moved |= best != borders[i];
            borders[i] = best;
        }
        if !moved {
            break;
        }
    }
    let sums = borders.windows(2).map(|pair| add([0.0; 2], &sorted[pair[0]..pair[1]]));
    sums.filter(|[_, weight]| *weight > 0.0).map(|[moment, weight]| moment / weight).collect()
}

/// Where to part these points so that the squared errors of both parts together are least; where they are now unless that is worse.
fn split<P: Point>(points: &[P], now: usize) -> usize {
    let [moment, weight] = add([0.0; 2], points);
    let mean = moment / weight;
    let (mut own, mut best, mut current) = ([0.0; 2], (0.0, now), 0.0);
    for (at, pair) in points.windows(2).enumerate() {
        own[0] += pair[0].weight() * (f64::from(pair[0].value()) - mean);
        own[1] += pair[0].weight();
        let rest = weight - own[1];
        if pair[0].value() == pair[1].value() || own[1] <= 0.0 || rest <= 0.0 {
            continue;
        }
        // By so much is the error smaller than that of one cluster.
        let gain = own[0].powi(2) * (1.0 / own[1] + 1.0 / rest);
        if at + 1 == now {
            current = gain;
        }
        if gain > best.0 {
            best = (gain, at + 1);
        }
    }
    if best.0 > current * (1.0 + 1e-12) { best.1 } else { now }
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

/// Most points whose borders are moved to their best places. Of more, Lloyd's iteration is near enough, and evener clusters take more bits.
const SETTLED: usize = 1 << 12;

/// Points of one task; fixed, so that no result depends on the number of threads.
pub const TASK: usize = 1 << 18;

/// Points between two places whose sums are kept.
const BLOCK: usize = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        let heavy = cluster(&points([0.0, 0.0, 1.0, 1.0]), 2, Init::Linear, 50, 0);
        assert_eq!(heavy, Clusters { centroids: vec![9.0, 11.0], assignment: vec![0, 0, 0, 1] });
        let one = cluster(&points([0.0, 0.0, 0.0, 1.0]), 2, Init::Linear, 50, 0);
        assert_eq!(one, Clusters { centroids: vec![11.0], assignment: vec![0; 4] });
    }

    /// The least `sum h (w - c)^2` of `k` clusters, by dynamic programming over the places where one ends.
    fn least_error(points: &[Weighted], k: usize) -> f64 {
        let points = sorted(points);
        let cost = |from: usize, to: usize| -> f64 {
            let [moment, weight] = add([0.0; 2], &points[from..to]);
            let mean = moment / weight;
            points[from..to].iter().map(|point| point.weight() * (f64::from(point.value()) - mean).powi(2)).sum()
        };
        let mut least: Vec<f64> = (0..=points.len()).map(|to| if to == 0 { 0.0 } else { cost(0, to) }).collect();
        for _ in 1..k {
            let next = |to: usize| (1..to).map(|from| least[from] + cost(from, to)).fold(least[to], f64::min);
            least = (0..=points.len()).map(next).collect();
        }
        least[points.len()]
    }

    fn error_of(points: &[Weighted], found: &Clusters) -> f64 {
        let error = |(point, index): (&Weighted, &u32)| {
            point.weight() * (f64::from(point.value()) - f64::from(found.centroids[*index as usize])).powi(2)
        };
        points.iter().zip(&found.assignment).map(error).sum()
    }

    #[test]
    fn an_outlier_costs_one_centroid_and_no_more() {
        // 0, 0.01, .., 0.15 and 10: three centroids start in the gap.
        let values: Vec<f32> = (0..16).map(|i| i as f32 * 0.01).chain([10.0]).collect();
        let flat = |values: &[f32]| values.iter().map(|&value| Weighted { value, weight: 1.0 }).collect::<Vec<_>>();
        for init in [Init::Linear, Init::Density, Init::Forgy] {
            let found = cluster(&values, 4, init, LLOYD_STEPS, 1);
            assert_eq!((found.centroids.len(), found.centroids[3]), (4, 10.0), "{init:?}");
            let error = error_of(&flat(&values), &found);
            if init == Init::Linear {
                assert!((error - least_error(&flat(&values), 4)).abs() < 1e-6, "{error} and {}", least_error(&flat(&values), 4));
            }
        }
        // The same of weights that grow with the values, for which other borders are best.
        let weighted: Vec<Weighted> =
            values.iter().enumerate().map(|(i, &value)| Weighted { value, weight: (i % 16 + 1) as f32 }).collect();
        let found = cluster(&weighted, 4, Init::Linear, LLOYD_STEPS, 0);
        assert_eq!(found.centroids.len(), 4);
        let (error, least) = (error_of(&weighted, &found), least_error(&weighted, 4));
        assert!((error - least).abs() < 1e-6, "{error} and {least}");
        assert!(error_of(&weighted, &cluster(&values, 4, Init::Linear, LLOYD_STEPS, 0)) > least + 1e-3);
    }

    proptest! {
        #[test]
        fn clusters_are_never_fewer_than_asked_for_unless_values_are(
            values in prop::collection::vec(prop_oneof![-3_i8..3, any::<i8>()], 1..120),
            far in prop::collection::vec(-1e6_f32..1e6, 0..3),
            k in 1_usize..20,
            init in prop_oneof![Just(Init::Linear), Just(Init::Density), Just(Init::Forgy)],
            weighted in any::<bool>(),
        ) {
            let values: Vec<f32> = values.into_iter().map(|v| f32::from(v) * 0.01).chain(far).collect();
            let weight = |i: usize| if weighted { (i % 5 + 1) as f32 } else { 1.0 };
            let points: Vec<Weighted> =
                values.iter().enumerate().map(|(i, &value)| Weighted { value, weight: weight(i) }).collect();
            let mut distinct = values.clone();
            distinct.sort_by(f32::total_cmp);
            distinct.dedup();
            let found = cluster(&points, k, init, LLOYD_STEPS, 7);
            let used: std::collections::BTreeSet<u32> = found.assignment.iter().copied().collect();
            prop_assert_eq!((found.centroids.len(), used.len()), (k.min(distinct.len()), k.min(distinct.len())));
        }
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
