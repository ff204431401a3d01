//! Clusters of vectors, all of the same size.

use briquette_core::error::{Error, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::algebra::Matrix;

/// Clusters of the same size.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// Their number.
    pub count: usize,
    /// The cluster of each item, numbered by first occurrence.
    pub labels: Vec<usize>,
    /// The sum of squared distances from the clusters' means.
    pub inertia: f64,
}

impl Clusters {
    /// The items of each cluster, ascending, the clusters one after the other.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        order.sort_by_key(|item| self.labels[*item]);
        order
    }
}

/// Most rounds of one start.
const ROUNDS: usize = 100;

/// The best clustering of `restarts` starts of the columns of `vectors` into `count` clusters of the same size: from means that are drawn as by
/// k-means++ (Arthur, Vassilvitskii, SODA 2007), items go where there is room, nearest pairs first, and then exchange places and means move
/// in turns, which never raises the inertia, until nothing changes.
///
/// # Errors
/// When the clusters do not divide the columns, for no restart, and for a value that is not finite.
pub fn clusters(vectors: &Matrix, count: usize, restarts: usize, rng: &mut ChaCha8Rng) -> Result<Clusters> {
    let items = vectors.ncols();
    if count == 0 || items == 0 || !items.is_multiple_of(count) {
        return Err(Error::Invalid(format!("{items} filters or channels in {count} clusters of the same size; take a divisor")));
    }
    if let Some(value) = vectors.iter().find(|value| !value.is_finite()) {
        return Err(Error::Invalid(format!("a kernel holds the weight {value}")));
    }
    let gram = vectors.tr_mul(vectors);
    let found = (0..restarts).map(|_| one_start(&gram, count, rng)).min_by(|a, b| a.inertia.total_cmp(&b.inertia));
    found.ok_or_else(|| Error::Invalid("a clustering takes at least one start".into()))
}

/// From one draw. All that k-means asks of the vectors is in their inner products.
fn one_start(gram: &Matrix, count: usize, rng: &mut ChaCha8Rng) -> Clusters {
    let items = gram.nrows();
    let mut distances = Matrix::zeros(items, 0);
    let mut next = rng.random_range(0..items);
    for cluster in 0..count {
        let from_next = |item: usize, _| (gram[(item, item)] + gram[(next, next)] - 2.0 * gram[(item, next)]).max(0.0);
        distances = distances.insert_column(cluster, 0.0);
        distances.set_column(cluster, &Matrix::from_fn(items, 1, from_next).column(0));
        let nearest: Vec<f64> = distances.row_iter().map(|row| row.min()).collect();
        next = drawn(&nearest, rng);
    }
    let mut labels = filled(&distances);
    exchange(&distances, &mut labels);
    for _ in 0..ROUNDS {
        distances = from_means(gram, &labels, count);
        if !exchange(&distances, &mut labels) {
            break;
        }
    }
    distances = from_means(gram, &labels, count);
    let inertia = labels.iter().enumerate().map(|(item, label)| distances[(item, *label)]).sum();
    Clusters { count, labels: renumbered(&labels, count), inertia }
}

/// An item, by chance in proportion to these weights; the last if there are none.
fn drawn(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let place = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    place.unwrap_or(weights.len() - 1)
}

/// Labels by the nearest pairs of an item without one and a cluster with room.
fn filled(distances: &Matrix) -> Vec<usize> {
    let (items, count) = distances.shape();
    let mut pairs: Vec<(usize, usize)> = (0..items).flat_map(|item| (0..count).map(move |cluster| (item, cluster))).collect();
    pairs.sort_by(|a, b| distances[*a].total_cmp(&distances[*b]));
    let (mut labels, mut room) = (vec![count; items], vec![items / count; count]);
    for (item, cluster) in pairs {
        if labels[item] == count && room[cluster] > 0 {
            (labels[item], room[cluster]) = (cluster, room[cluster] - 1);
        }
    }
    labels
}

/// Lets two items change places for as long as that brings both together nearer to their clusters; whether any did.
fn exchange(distances: &Matrix, labels: &mut [usize]) -> bool {
    let least = distances.amax() * 1e-12;
    let (mut any, mut again) = (false, true);
    while again {
        again = false;
        for i in 0..labels.len() {
            for j in i + 1..labels.len() {
                let (a, b) = (labels[i], labels[j]);
                let gain = distances[(i, a)] + distances[(j, b)] - distances[(i, b)] - distances[(j, a)];
                if gain > least {
                    labels.swap(i, j);
                    (any, again) = (true, true);
                }
            }
        }
    }
    any
}

/// Squared distances of the items from the clusters' means.
fn from_means(gram: &Matrix, labels: &[usize], count: usize) -> Matrix {
    let share = count as f64 / labels.len() as f64;
    let member = Matrix::from_fn(labels.len(), count, |item, cluster| if labels[item] == cluster { share } else { 0.0 });
    let onto = gram * &member;
    let squares: Vec<f64> = (0..count).map(|cluster| onto.column(cluster).dot(&member.column(cluster))).collect();
    Matrix::from_fn(labels.len(), count, |item, cluster| gram[(item, item)] - 2.0 * onto[(item, cluster)] + squares[cluster])
}

fn renumbered(labels: &[usize], count: usize) -> Vec<usize> {
    let mut names = vec![None; count];
    let mut next = 0..count;
    labels.iter().map(|label| *names[*label].get_or_insert_with(|| next.next().unwrap_or(0))).collect()
}
