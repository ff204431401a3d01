//! Who a sample is told from.

use std::ops::Range;

use briquette_core::error::{Error, Result};
use rand::RngExt;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// Which sample is a sample's positive.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positive {
    /// It itself.
    #[default]
    Exact,
    /// Any of its class.
    Relaxed,
}

/// Draws of positives and negatives from all samples, by class.
#[derive(Debug, Clone)]
pub struct Draws {
    labels: Vec<u16>,
    /// All samples, one class after the other.
    order: Vec<u32>,
    /// Where the samples of each class lie in `order`.
    classes: Vec<Range<usize>>,
}

impl Draws {
    /// Draws from samples of these labels.
    ///
    /// # Errors
    /// Where they are of fewer than two classes.
    pub fn new(labels: &[u16]) -> Result<Self> {
        let mut order = (0_u32..).take(labels.len()).collect::<Vec<_>>();
        order.sort_by_key(|sample| labels[*sample as usize]);
        let label = |at: usize| labels[order[at] as usize];
        if order.is_empty() || label(0) == label(order.len() - 1) {
            let detail = format!("{} samples of a single class have no negatives", labels.len());
            return Err(Error::Invalid(format!("contrastive: {detail}")));
        }
        let classes = (0..=label(order.len() - 1)).map(|class| {
            let place = |class: u32| order.partition_point(|sample| u32::from(labels[*sample as usize]) < class);
            place(class.into())..place(u32::from(class) + 1)
        });
        let classes = classes.collect();
        Ok(Self { labels: labels.to_vec(), order, classes })
    }

    /// For each sample of a batch, one after the other, its positive and `negatives` samples of other classes, each at most once if there are
    /// as many.
    ///
    /// # Errors
    /// Where one is none of the samples.
    pub fn rows(&self, batch: &[u32], negatives: usize, positive: Positive, rng: &mut ChaCha8Rng) -> Result<Vec<u32>> {
        let mut rows = Vec::with_capacity(batch.len() * (1 + negatives));
        for sample in batch {
            let Some(label) = self.labels.get(*sample as usize) else {
                let detail = format!("sample {sample} is none of the {} that negatives are drawn from", self.labels.len());
                return Err(Error::Invalid(format!("contrastive: {detail}")));
            };
            let own = &self.classes[usize::from(*label)];
            rows.push(match positive {
                Positive::Exact => *sample,
                Positive::Relaxed => self.order[rng.random_range(own.clone())],
            });
            let others = self.order.len() - own.len();
            let sample = |at: usize| self.order[if at < own.start { at } else { at + own.len() }];
            match negatives <= others {
                true => rows.extend(index::sample(rng, others, negatives).into_iter().map(sample)),
                false => rows.extend((0..negatives).map(|_| sample(rng.random_range(0..others)))),
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn negatives_are_of_other_classes_and_each_at_most_once() {
        let labels = [2, 0, 2, 0, 2, 5, 0, 2];
        let draws = Draws::new(&labels).unwrap();
        let rows = |negatives, positive| {
            let mut rng = ChaCha8Rng::seed_from_u64(9);
            let rows = draws.rows(&[0, 5, 6], negatives, positive, &mut rng).unwrap();
            rows.chunks(1 + negatives).map(<[u32]>::to_vec).collect::<Vec<_>>()
        };
        for (row, others) in rows(4, Positive::Exact).iter().zip([vec![1, 3, 5, 6], vec![], vec![]]) {
            let negatives = row[1..].iter().copied().collect::<BTreeSet<_>>();
            assert!([0, 5, 6].contains(&row[0]) && negatives.len() == 4, "{row:?}");
            assert!(negatives.iter().all(|other| labels[*other as usize] != labels[row[0] as usize]), "{row:?}");
            assert!(others.is_empty() || negatives == others.into_iter().collect(), "{row:?}");
        }
        // Sample 0 has four samples of other classes: five negatives repeat one.
        let repeated = &rows(5, Positive::Exact)[0];
        assert!(repeated.len() == 6 && repeated[1..].iter().all(|other| [1, 3, 5, 6].contains(other)), "{repeated:?}");
        assert_eq!(rows(4, Positive::Exact), rows(4, Positive::Exact));
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let positives = draws.rows(&[0; 60], 1, Positive::Relaxed, &mut rng).unwrap();
        assert_eq!(positives.chunks(2).map(|row| row[0]).collect::<BTreeSet<_>>(), [0, 2, 4, 7].into());
    }

    #[test]
    fn samples_of_one_class_and_unknown_ones_are_refused() {
        let error = Draws::new(&[3, 3]).unwrap_err().to_string();
        assert_eq!(error, "contrastive: 2 samples of a single class have no negatives");
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let error = Draws::new(&[0, 1]).unwrap().rows(&[2], 1, Positive::Exact, &mut rng).unwrap_err().to_string();
        assert_eq!(error, "contrastive: sample 2 is none of the 2 that negatives are drawn from");
    }
}
