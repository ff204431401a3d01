//! Clusters of vectors, and matrices put together from them.
//!
//! Lloyd's iteration from the start of k-means++: the first centroid is a point drawn at random, each further one a point drawn with the
//! probability of its squared distance to the nearest so far. A cluster that runs empty takes the point that lies farthest from its centroid.
//!
//! S. Lloyd. "Least Squares Quantization in PCM". IEEE Transactions on Information Theory 28(2), 1982.
//! D. Arthur, S. Vassilvitskii. "k-means++: The Advantages of Careful Seeding". SODA 2007.

use briquette_runtime::{Product, Stage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::kmeans::LLOYD_STEPS;

/// How a matrix is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// Columns of a block.
    pub width: usize,
    /// Centroids of a block in each stage.
    pub centroids: usize,
    /// Number of stages, each of which clusters what those before it leave.
    pub stages: usize,
    /// Taps of a filter that share the centroids of a block, whose columns are then channels; 1 where taps are columns like channels.
    pub taps: usize,
}

/// Centroids, `[k, width]`, and the index of the nearest for each point.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// As many as asked for; equal ones where the points have fewer values.
    pub centroids: Vec<f32>,
    /// One per point.
    pub assignment: Vec<u16>,
}

/// Minimizes the squared distances of filters, `[outputs, fan_in]`, from a [`Product`], block by block and stage by stage. Width, centroids and
/// stages are brought within what a product may have, and taps that do not divide `fan_in` share nothing; values must be finite.
pub fn quantize(filters: &[f32], fan_in: usize, pieces: Pieces, seed: u64) -> Product {
    quantize_kept(filters, None, fan_in, pieces, seed)
}

/// As [`quantize`], where only the weights that `mask` keeps count: what stands for the others is masked afterwards.
pub fn quantize_kept(filters: &[f32], mask: Option<&[bool]>, fan_in: usize, pieces: Pieces, seed: u64) -> Product {
    let taps = if pieces.taps > 0 && fan_in.is_multiple_of(pieces.taps) { pieces.taps } else { 1 };
    let columns = fan_in / taps;
    let width = pieces.width.clamp(1, columns);
    let rows = filters.len() / columns;
    let centroids = pieces.centroids.clamp(1, rows.min(1 << 16));
    let mut product = Product { width, columns, taps, stages: Vec::new() };
    // The matrix, row by row.
    let positions: Vec<usize> = (0..rows * columns).map(|place| product.position(place / columns, place % columns)).collect();
    let mask: Option<Vec<bool>> = mask.map(|mask| positions.iter().map(|position| mask[*position]).collect());
    let mut left: Vec<f32> = positions.iter().map(|position| filters[*position]).collect();
    for stage in 0..pieces.stages.clamp(1, 16) {
        let cluster_block = |start: usize| {
            let own = width.min(columns - start);
            let points: Vec<f32> = left.chunks_exact(columns).flat_map(|row| &row[start..start + own]).copied().collect();
            let kept =
                mask.as_ref().map(|mask| mask.chunks_exact(columns).flat_map(|row| &row[start..start + own]).copied().collect());
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream((stage * columns + start) as u64);
            Points::new(points, kept, own).cluster(centroids, LLOYD_STEPS, &mut rng)
        };
        let starts: Vec<usize> = (0..columns).step_by(width).collect();
        let blocks: Vec<Clusters> = starts.into_par_iter().map(cluster_block).collect();
        let (centroids, indices): (Vec<_>, Vec<_>) = blocks.into_iter().map(|found| (found.centroids, found.assignment)).unzip();
        product.stages.push(Stage { centroids: centroids.concat(), indices: indices.concat() });
        let values = product.values();
        left = positions.iter().map(|position| filters[*position] - values[*position]).collect();
    }
    product
}

/// Minimizes `sum_i |x_i - c_{a(i)}|^2` over `k` centroids `c` and the assignment `a`, to a local optimum, in at most `iterations` steps, for
/// points `x`, `[points, width]`. Points of at most `k` different values are kept exactly.
pub fn cluster(points: &[f32], width: usize, k: usize, iterations: usize, rng: &mut ChaCha8Rng) -> Clusters {
    Points::new(points.to_vec(), None, width).cluster(k, iterations, rng)
}

/// Vectors to cluster.
struct Points {
    /// `[points, width]`; what does not count is the mean of what does, so that a point may serve as a centroid.
    values: Vec<f32>,
    /// 1 for each value that counts, and 0; none where all do.
    kept: Option<Vec<f32>>,
    width: usize,
}

impl Points {
    fn new(mut values: Vec<f32>, kept: Option<Vec<bool>>, width: usize) -> Self {
        let Some(kept) = kept else { return Self { values, kept: None, width } };
        let mut sums = vec![(0.0_f64, 0.0_f64); width];
        for (i, value) in values.iter().enumerate().filter(|(i, _)| kept[*i]) {
            sums[i % width].0 += f64::from(*value);
            sums[i % width].1 += 1.0;
        }
        for (i, value) in values.iter_mut().enumerate().filter(|(i, _)| !kept[*i]) {
            let (sum, count) = sums[i % width];
            *value = (sum / count.max(1.0)) as f32;
        }
        let kept = kept.into_iter().map(|keep| f32::from(u8::from(keep))).collect();
        Self { values, kept: Some(kept), width }
    }

    fn count(&self) -> usize {
        self.values.len() / self.width
    }

    fn point(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// How much each value of a point counts; none where all do.
    fn weights(&self, i: usize) -> Option<&[f32]> {
        self.kept.as_ref().map(|kept| &kept[i * self.width..(i + 1) * self.width])
    }

    fn cluster(&self, k: usize, iterations: usize, rng: &mut ChaCha8Rng) -> Clusters {
        self.descend(self.start(k, rng), iterations)
    }

    /// Lloyd's iteration from these centroids.
    fn descend(&self, mut centroids: Vec<f32>, iterations: usize) -> Clusters {
        let (mut assignment, mut distances) = (vec![0; self.count()], vec![0.0; self.count()]);
        self.nearest(&centroids, &mut assignment, &mut distances);
        for _ in 0..iterations {
            centroids = self.means(&centroids, &assignment, &mut distances);
            let before = assignment.clone();
            self.nearest(&centroids, &mut assignment, &mut distances);
            if before == assignment {
                break;
            }
        }
        Clusters { centroids, assignment }
    }

    /// Where the centroids begin.
    fn start(&self, k: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let count = self.count();
        let mut next = rng.random_range(0..count.max(1));
        let mut centroids = Vec::with_capacity(k * self.width);
        let mut distances = vec![f64::INFINITY; count];
        while centroids.len() < k * self.width {
            centroids.extend_from_slice(self.point(next));
            for (i, distance) in distances.iter_mut().enumerate() {
                let squares = self.point(i).iter().zip(self.point(next)).map(|(a, b)| f64::from(a - b).powi(2));
                let own: f64 = match self.weights(i) {
                    None => squares.sum(),
                    Some(weights) => squares.zip(weights).map(|(square, weight)| square * f64::from(*weight)).sum(),
                };
                *distance = distance.min(own);
            }
            let mut left = rng.random::<f64>() * distances.iter().sum::<f64>();
            let drawn = distances.iter().position(|distance| {
                left -= distance;
                left < 0.0
            });
            // Rounding may leave a rest; and where every point is a centroid already, any serves again.
            let farthest = || (0..count).max_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap_or(0);
            next = drawn.unwrap_or_else(farthest);
        }
        centroids
    }

    /// Assigns every point to its nearest centroid, the first of equals, and tells how far that is, squared.
    fn nearest(&self, centroids: &[f32], assignment: &mut [u16], distances: &mut [f32]) {
        let (width, k) = (self.width, centroids.len() / self.width);
        // Coordinate by coordinate, so that one pass over the centroids runs along memory.
        let by_coordinate: Vec<f32> = (0..width).flat_map(|d| (0..k).map(move |c| centroids[c * width + d])).collect();
        let mut sums = vec![0.0_f32; k];
        for (i, (index, distance)) in assignment.iter_mut().zip(distances).enumerate() {
            sums.fill(0.0);
            let weights = self.weights(i);
            for (d, (x, centroids)) in self.point(i).iter().zip(by_coordinate.chunks_exact(k)).enumerate() {
                if weights.is_none_or(|weights| weights[d] != 0.0) {
                    sums.iter_mut().zip(centroids).for_each(|(sum, c)| *sum += (x - c) * (x - c));
                }
            }
            let mut best = (0, f32::INFINITY);
            sums.iter().enumerate().for_each(|(c, sum)| {
                if *sum < best.1 {
                    best = (c, *sum)
                }
            });
            (*index, *distance) = (best.0 as u16, best.1);
        }
    }

    /// The mean of every cluster; a coordinate of which nothing counts stays.
    fn means(&self, before: &[f32], assignment: &[u16], distances: &mut [f32]) -> Vec<f32> {
        let (width, k) = (self.width, before.len() / self.width);
        let (mut sums, mut counts, mut members) = (vec![0.0_f64; k * width], vec![0.0_f64; k * width], vec![0_usize; k]);
        for (i, &index) in assignment.iter().enumerate() {
            let at = index as usize * width;
            members[index as usize] += 1;
            for (d, x) in self.point(i).iter().enumerate() {
                let weight = self.weights(i).map_or(1.0, |weights| f64::from(weights[d]));
                sums[at + d] += weight * f64::from(*x);
                counts[at + d] += weight;
            }
        }
        let mut centroids = Vec::with_capacity(k * width);
        for (cluster, members) in members.into_iter().enumerate() {
            let own = cluster * width..(cluster + 1) * width;
            if members > 0 {
                let mean = |at: usize| if counts[at] > 0.0 { (sums[at] / counts[at]) as f32 } else { before[at] };
                centroids.extend(own.map(mean));
            } else {
                let farthest = (0..distances.len()).max_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap_or(0);
                distances[farthest] = 0.0;
                centroids.extend_from_slice(self.point(farthest));
            }
        }
        centroids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmeans::{self, Init};

    fn noise(count: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        (0..count).map(|_| rng.random::<f32>().powi(2) - 0.3).collect()
    }

    fn found(points: &[f32], width: usize, k: usize, iterations: usize) -> Clusters {
        cluster(points, width, k, iterations, &mut ChaCha8Rng::seed_from_u64(1))
    }

    fn error(points: &[f32], width: usize, found: &Clusters) -> f64 {
        let value = |i: usize| found.centroids[found.assignment[i / width] as usize * width + i % width];
        points.iter().enumerate().map(|(i, x)| f64::from(x - value(i)).powi(2)).sum()
    }

    #[test]
    fn heaps_are_found() {
        let points = [1.0, 0.0, 1.1, 0.1, 0.9, -0.1, -2.0, 5.0, -2.2, 5.0];
        let found = found(&points, 2, 2, 20);
        let mut centroids: Vec<&[f32]> = found.centroids.chunks(2).collect();
        centroids.sort_by(|a, b| a[0].total_cmp(&b[0]));
        assert!(centroids.concat().iter().zip([-2.1, 5.0, 1.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{centroids:?}");
        assert_eq!(found.assignment[..3], [found.assignment[0]; 3]);
        assert_ne!(found.assignment[0], found.assignment[4]);
    }

    #[test]
    fn no_step_raises_the_error_and_each_point_goes_to_its_nearest() {
        let points = noise(3 * 400);
        let mut last = f64::INFINITY;
        for iterations in 0..15 {
            let found = found(&points, 3, 16, iterations);
            assert!(error(&points, 3, &found) <= last + 1e-6);
            last = error(&points, 3, &found);
        }
    }

    #[test]
    fn as_many_centroids_as_points_are_the_points_and_equal_points_need_one() {
        let points = noise(3 * 40);
        assert_eq!(error(&points, 3, &found(&points, 3, 40, 10)), 0.0);
        let equal = found(&[2.0; 12], 3, 3, 10);
        assert_eq!((equal.centroids, equal.assignment), (vec![2.0; 9], vec![0; 4]));
    }

    #[test]
    fn one_column_is_clustered_like_numbers_on_a_line() {
        let points = noise(200);
        let on_a_line = kmeans::cluster(&points, 6, Init::Density, LLOYD_STEPS, 0);
        let start = kmeans::start(&kmeans::sorted(&points), 6, Init::Density, 0);
        let found = Points::new(points, None, 1).descend(start.into_iter().map(|c| c as f32).collect(), LLOYD_STEPS);
        assert_eq!(found.assignment.iter().map(|i| u32::from(*i)).collect::<Vec<_>>(), on_a_line.assignment);
        assert!(found.centroids.iter().zip(&on_a_line.centroids).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn only_what_a_mask_keeps_pulls_at_the_centroids() {
        // Two rows, of which two thirds are masked here and there.
        let rows = [[1.0_f32, -2.0, 3.0, 0.5], [-4.0, 2.5, 0.25, 6.0]];
        let mask: Vec<bool> = (0..60 * 4).map(|i| (i * i + i / 7) % 3 == 0 || i < 8).collect();
        let matrix: Vec<f32> = (0..60 * 4).map(|i| if mask[i] { rows[i / 4 % 2][i % 4] } else { 0.0 }).collect();
        let error = |product: &Product| -> f32 {
            let values = product.values();
            (0..240).filter(|i| mask[*i]).map(|i| (matrix[i] - values[i]).powi(2)).sum()
        };
        let pieces = Pieces { width: 4, centroids: 2, stages: 1, taps: 1 };
        let least = |mask: Option<&[bool]>| {
            (0..8).map(|seed| error(&quantize_kept(&matrix, mask, 4, pieces, seed))).fold(f32::INFINITY, f32::min)
        };
        assert!(least(Some(&mask)) < 1e-9 && least(None) > 10.0, "{} {}", least(Some(&mask)), least(None));
        let one = quantize_kept(
            &[1.0, 0.0, 0.0, 5.0, 3.0, 0.0],
            Some(&[true, false, false, true, true, false]),
            2,
            Pieces { centroids: 1, width: 2, stages: 1, taps: 1 },
            0,
        );
        assert_eq!(one.stages[0].centroids, [2.0, 5.0]);
    }

    #[test]
    fn the_last_block_may_be_narrower_and_stages_lower_the_error() {
        let (rows, columns) = (50, 11);
        let matrix = noise(rows * columns);
        let error = |stages: usize| -> f64 {
            let product = quantize(&matrix, columns, Pieces { width: 4, centroids: 6, stages, taps: 1 }, 3);
            assert!(product.check(&[rows, columns]).is_ok());
            matrix.iter().zip(product.values()).map(|(w, value)| f64::from(w - value).powi(2)).sum()
        };
        let errors = [1, 2, 3, 4].map(error);
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{errors:?}");
    }

    #[test]
    fn taps_that_share_centroids_are_rows_of_the_matrix() {
        let (outputs, channels, taps) = (6, 5, 4);
        let filters = noise(outputs * channels * taps);
        let pieces = Pieces { width: 2, centroids: 7, stages: 1, taps };
        let product = quantize(&filters, channels * taps, pieces, 3);
        assert!(product.check(&[outputs, channels, 2, 2]).is_ok());
        let value = |i: usize| filters[(i / (channels * taps) * channels + i % channels) * taps + i / channels % taps];
        let rows: Vec<f32> = (0..filters.len()).map(value).collect();
        let matrix = quantize(&rows, channels, Pieces { taps: 1, ..pieces }, 3);
        assert_eq!(matrix.stages, product.stages);
        let all = quantize(&filters, channels * taps, Pieces { centroids: outputs * taps, ..pieces }, 3);
        assert_eq!(all.values(), filters, "as many centroids as rows");
    }

    #[test]
    fn products_do_not_depend_on_the_number_of_threads() {
        let matrix = noise(60 * 40);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize(&matrix, 40, Pieces { width: 3, centroids: 8, stages: 2, taps: 1 }, 9))
        };
        assert_eq!(with(1), with(3));
    }
}
