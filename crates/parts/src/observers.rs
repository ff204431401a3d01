//! Which range of values a grid spans: what activations did on some training images, and the search for the range that loses least.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use briquette_core::coding::floats;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Value};
use briquette_core::training::probe;
use serde::Deserialize;

/// How the range follows from the values seen. Every range is widened to hold 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observer {
    /// From the least value to the largest.
    #[default]
    MinMax,
    /// The least and the largest value of each batch, averaged as `m <- 0.9 m + 0.1 batch` (Jacob et al., CVPR 2018).
    MovingAverage,
    /// The share of the values that `percentile` gives, as many left out below as above; below nothing, where no value is negative.
    Percentile,
    /// The range within which values on the grid diverge least, after Kullback and Leibler, from the values seen (Migacz, "8-bit Inference
    /// with TensorRT", GTC 2017).
    Kl,
    /// The range of the least squared error.
    Mse,
}

/// A uniform grid's step and its code for 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Distance between neighbouring values, positive.
    pub step: f32,
    /// The code that stands for 0.
    pub zero: f32,
}

/// The step of a grid for values that are all 0.
pub const LEAST_STEP: f32 = 1e-8;

impl Scale {
    /// The grid of so many levels from `low` or 0, whichever is lower, to `high` or 0, shifted so that one of its values is 0.
    pub fn spanning([low, high]: [f64; 2], levels: u32) -> Self {
        let (low, high, last) = (low.min(0.0), high.max(0.0), f64::from(levels - 1));
        let step = ((high - low) / last).max(f64::from(LEAST_STEP));
        Self { step: step as f32, zero: (-low / step).round().clamp(0.0, last) as f32 }
    }

    /// The value of the grid that is nearest to `x`.
    pub fn round(self, x: f64, levels: u32) -> f64 {
        let (step, zero) = (f64::from(self.step), f64::from(self.zero));
        ((x / step + zero).clamp(0.0, f64::from(levels - 1)).round() - zero) * step
    }
}

/// Of a hundred ranges, each cut a hundredth of the largest size nearer to 0 than the one before, the one of the least error.
pub fn search(range: [f64; 2], error: impl Fn([f64; 2]) -> f64) -> [f64; 2] {
    let candidates = (1..=SEARCHED).rev().map(|part| cut(range, f64::from(part) / f64::from(SEARCHED)));
    let rated = candidates.map(|range| (error(range), range));
    rated.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(range, |(_, range)| range)
}

/// A part of all values in percent, above 0 and at most 100; 99.99 unless a config says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Percentile(f64);

impl Percentile {
    /// The part as a share of 1.
    pub fn share(self) -> f64 {
        self.0 / 100.0
    }
}

impl Default for Percentile {
    fn default() -> Self {
        Self(99.99)
    }
}

impl TryFrom<f64> for Percentile {
    type Error = String;

    fn try_from(percent: f64) -> std::result::Result<Self, String> {
        if percent > 0.0 && percent <= 100.0 {
            Ok(Self(percent))
        } else {
            Err(format!("a percentile lies in (0, 100], not {percent}"))
        }
    }
}

/// The part of a range that is no farther from 0 than this share of its farther end.
fn cut([low, high]: [f64; 2], share: f64) -> [f64; 2] {
    let limit = share * high.max(-low);
    [low.max(-limit), high.min(limit)]
}

/// Ranges that a search tries.
const SEARCHED: u32 = 100;

/// Equally wide bins of a histogram.
const BINS: usize = 2048;

/// Counts of values in equally wide bins over a range that holds 0. Zeros are not counted: they are exact on any grid.
#[derive(Debug, Clone)]
pub struct Histogram {
    range: [f64; 2],
    counts: Vec<u64>,
}

impl Histogram {
    /// Empty, for values between these two.
    pub fn new([low, high]: [f64; 2]) -> Self {
        Self { range: [low.min(0.0), high.max(0.0)], counts: vec![0; BINS] }
    }

    fn width(&self) -> f64 {
        ((self.range[1] - self.range[0]) / BINS as f64).max(f64::MIN_POSITIVE)
    }

    /// Counts finite values.
    pub fn add(&mut self, values: &[f32]) {
        let (low, width) = (self.range[0], self.width());
        for value in values.iter().filter(|value| **value != 0.0) {
            let bin = ((f64::from(*value) - low) / width) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }

    fn middle(&self, bin: usize) -> f64 {
        self.range[0] + (bin as f64 + 0.5) * self.width()
    }

    /// The range that an observer takes for a grid of so many levels.
    fn choose(&self, observer: Observer, levels: u32, share: f64) -> [f64; 2] {
        match observer {
            Observer::MinMax | Observer::MovingAverage => self.range,
            Observer::Percentile => self.holding(share),
            Observer::Kl => self.least_divergent(levels),
            Observer::Mse => search(self.range, |range| self.squared_error(Scale::spanning(range, levels), levels)),
        }
    }

    /// The ends of the bins between which this share of the values lies.
    fn holding(&self, share: f64) -> [f64; 2] {
        let total = self.counts.iter().sum::<u64>() as f64;
        let sides = if self.range[0] < 0.0 && self.range[1] > 0.0 { 2.0 } else { 1.0 };
        let spare = total * (1.0 - share) / sides;
        // How many bins from an end hold no more than what may be left out.
        let beyond = |bins: &mut dyn Iterator<Item = &u64>| {
            let mut left = 0.0;
            bins.take_while(|count| {
                left += **count as f64;
                left <= spare
            })
            .count()
        };
        let (below, above) = (beyond(&mut self.counts.iter()), beyond(&mut self.counts.iter().rev()));
        let [low, high] = self.range;
        let low = if low < 0.0 { (low + below as f64 * self.width()).min(0.0) } else { low };
        let high = if high > 0.0 { (high - above as f64 * self.width()).max(0.0) } else { high };
        [low, high]
    }

    fn squared_error(&self, scale: Scale, levels: u32) -> f64 {
        let bins = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        bins.map(|(bin, count)| *count as f64 * (self.middle(bin) - scale.round(self.middle(bin), levels)).powi(2)).sum()
    }

    /// Of ranges [`cut`] to a multiple of 1/128, those of at least as many bins as the grid has levels.
    fn least_divergent(&self, levels: u32) -> [f64; 2] {
        let candidates = (1..=128).rev().map(|part| self.inside(f64::from(part) / 128.0));
        let rated = candidates
            .filter(|inside| inside.len() >= (levels as usize).min(BINS))
            .map(|inside| (divergence(&self.counts, inside.clone(), levels as usize), inside));
        let best = rated.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0..BINS, |(_, inside)| inside);
        [best.start, best.end].map(|end| self.range[0] + end as f64 * self.width())
    }

    /// The bins of the range cut to this share.
    fn inside(&self, share: f64) -> Range<usize> {
        let [start, end] = cut(self.range, share).map(|end| ((end - self.range[0]) / self.width()).round() as usize);
        start..end.min(BINS)
    }
}

/// `sum p ln(p / q)`: `p` is the histogram with what lies outside added to the outermost bins inside, `q` what is left when the bins inside
/// share `levels` values evenly, each value spread over those of its bins that are not empty.
fn divergence(counts: &[u64], inside: Range<usize>, levels: usize) -> f64 {
    let outside = |part: &[u64]| part.iter().sum::<u64>() as f64;
    let mut p: Vec<f64> = counts[inside.clone()].iter().map(|count| *count as f64).collect();
    let bins = p.len();
    let within = p.clone();
    p[0] += outside(&counts[..inside.start]);
    p[bins - 1] += outside(&counts[inside.end..]);
    let levels = levels.min(bins);
    let mut q = vec![0.0; bins];
    for level in 0..levels {
        let part = level * bins / levels..(level + 1) * bins / levels;
        let filled = p[part.clone()].iter().filter(|p| **p > 0.0).count().max(1);
        let each = within[part.clone()].iter().sum::<f64>() / filled as f64;
        part.filter(|bin| p[*bin] > 0.0).for_each(|bin| q[bin] = each);
    }
    let (of_p, of_q) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
    p.iter().zip(q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p / of_p * (p * of_q / (q * of_p)).ln()).sum()
}

/// What one activation did.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The least and the largest value.
    pub range: [f64; 2],
    /// The mean absolute value.
    pub mean_size: f64,
    averaged: [f64; 2],
    histogram: Histogram,
}

impl Seen {
    /// The grid of so many levels; `share` is that of [`Observer::Percentile`].
    pub fn scale(&self, observer: Observer, levels: u32, share: f64) -> Scale {
        let range =
            if observer == Observer::MovingAverage { self.averaged } else { self.histogram.choose(observer, levels, share) };
        Scale::spanning(range, levels)
    }
}

/// How much of the training images is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Calibration {
    /// Images.
    pub images: usize,
    /// Images at a time.
    pub batch: usize,
}

impl Calibration {
    /// Batches and images of each, for [`probe`].
    pub fn batches(self) -> (usize, usize) {
        let batch = self.batch.clamp(1, self.images.max(1));
        (self.images.div_ceil(batch), batch)
    }

    /// Refuses to look at nothing.
    ///
    /// # Errors
    /// Names the method and the setting.
    pub fn check(self, method: &str) -> Result<()> {
        match self {
            Self { images: 1.., batch: 1.. } => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{method}: `calibration-images` and `batch` must be at least 1: ranges are those of training images"
            ))),
        }
    }
}

/// Runs the network on training images and reports what the outputs of these nodes did.
///
/// # Errors
/// An empty training split, values that are not finite, and a stop that the user asked for.
pub fn observe(net: &Net, nodes: &BTreeSet<usize>, amount: Calibration, cx: &mut Context<'_>) -> Result<BTreeMap<usize, Seen>> {
    let mut seen: BTreeMap<usize, Seen> = BTreeMap::new();
    let mut sums: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    watch(net, nodes, amount, cx, |node, values| {
        let mut batch = [f64::INFINITY, f64::NEG_INFINITY];
        let (sum, count) = sums.entry(node).or_default();
        for value in values.iter().map(|value| f64::from(*value)) {
            if !value.is_finite() {
                let detail = format!("puts out {value} on the training images; train the network anew or check the data");
                return Err(Error::node(&net.nodes[node].name, detail));
            }
            batch = [batch[0].min(value), batch[1].max(value)];
            *sum += value.abs();
        }
        *count += values.len();
        let now = seen.entry(node).or_insert_with(|| Seen {
            range: batch,
            mean_size: 0.0,
            averaged: batch,
            histogram: Histogram::new(batch),
        });
        now.range = [now.range[0].min(batch[0]), now.range[1].max(batch[1])];
        now.averaged = [0, 1].map(|end| 0.9 * now.averaged[end] + 0.1 * batch[end]);
        Ok(())
    })?;
    for (node, seen) in &mut seen {
        let (sum, count) = sums[node];
        seen.mean_size = sum / count.max(1) as f64;
        seen.histogram = Histogram::new(seen.range);
    }
    watch(net, nodes, amount, cx, |node, values| {
        if let Some(seen) = seen.get_mut(&node) {
            seen.histogram.add(values);
        }
        Ok(())
    })?;
    Ok(seen)
}

/// Hands what these nodes put out to `look`, batch by batch.
fn watch(
    net: &Net,
    nodes: &BTreeSet<usize>,
    amount: Calibration,
    cx: &mut Context<'_>,
    mut look: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let device = cx.device.clone();
    let count = probe(cx, "calibration", amount.batches(), &device, |images, _| {
        let mut result = Ok(());
        net.trace(images, |node, value| {
            if nodes.contains(&node) && result.is_ok() {
                result = match &value {
                    Value::Map(x) => look(node, &floats(x.clone())),
                    Value::Vector(x) => look(node, &floats(x.clone())),
                };
            }
            value
        });
        result
    })?;
    match count {
        0 => Err(Error::Invalid("there are no training images to find ranges on; give the data set some".into())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Silent;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use briquette_handmade::{context, images, small};

    fn filled(values: &[f32]) -> Histogram {
        let ends = values.iter().fold([0.0_f64, 0.0], |ends, v| [ends[0].min(f64::from(*v)), ends[1].max(f64::from(*v))]);
        let mut histogram = Histogram::new(ends);
        histogram.add(values);
        histogram
    }

    /// Deviates of a bell curve, and one far out.
    fn bell_with_outlier() -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let deviate = |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        (0..8000).map(|_| deviate(&mut rng)).chain([40.0]).collect()
    }

    #[test]
    fn grids_span_their_range_and_hold_zero() {
        assert_eq!(Scale::spanning([0.2, 5.1], 256), Scale { step: 0.02, zero: 0.0 });
        assert_eq!(Scale::spanning([-1.0, 3.0], 5), Scale { step: 1.0, zero: 1.0 });
        assert_eq!(Scale::spanning([-3.0, -1.0], 4), Scale { step: 1.0, zero: 3.0 });
        assert_eq!(Scale::spanning([0.0, 0.0], 256), Scale { step: LEAST_STEP, zero: 0.0 });
        assert_eq!(Scale::spanning([-1.0, 2.0], 4).round(9.0, 4), 2.0);
    }

    #[test]
    fn percentiles_leave_out_the_ends() {
        // A hundred values from 0.01 to 1, and one of 10.
        let mut values: Vec<f32> = (1..=100).map(|i| i as f32 / 100.0).collect();
        values.push(10.0);
        let [low, high] = filled(&values).choose(Observer::Percentile, 256, 0.99);
        assert_eq!(low, 0.0);
        assert!((1.0..1.01).contains(&high), "{high}");
        assert_eq!(filled(&values).choose(Observer::Percentile, 256, 1.0), [0.0, 10.0]);
        let both: Vec<f32> = values.iter().flat_map(|v| [*v, -*v]).collect();
        let [low, high] = filled(&both).choose(Observer::Percentile, 256, 0.99);
        assert!((-1.01..=-1.0).contains(&low) && (1.0..1.01).contains(&high), "{low} {high}");
    }

    #[test]
    fn the_search_finds_the_least_squared_error_of_its_candidates() {
        let histogram = filled(&bell_with_outlier());
        for levels in [4, 16, 256] {
            let chosen = histogram.choose(Observer::Mse, levels, 1.0);
            let error = |range| histogram.squared_error(Scale::spanning(range, levels), levels);
            let all = (1..=100).map(|part| error(cut(histogram.range, f64::from(part) / 100.0)));
            assert_eq!(error(chosen), all.fold(f64::INFINITY, f64::min));
            assert!(chosen[1] < histogram.range[1], "an outlier is not worth the bell: {chosen:?}");
        }
    }

    #[test]
    fn the_divergence_is_the_formulas_and_vanishes_where_nothing_is_lost() {
        // Bins 0 and 1 share a level of 4 / 2 each, bin 3 is empty, and 1 lies outside.
        let (p, q) = ([3.0, 1.0, 5.0, 1.0_f64], [2.0, 2.0, 2.5, 2.5_f64]);
        let expected: f64 = p.iter().zip(q).map(|(p, q)| p / 10.0 * (p / 10.0 / (q / 9.0)).ln()).sum();
        assert!((divergence(&[3, 1, 5, 0, 1], 0..4, 2) - expected).abs() < 1e-12);
        assert_eq!(divergence(&[3, 1, 5, 0, 1], 0..5, 5), 0.0);
        // Nothing of what is inside stands for what is outside.
        assert_eq!(divergence(&[3, 1, 0, 0, 1], 0..4, 2), f64::INFINITY);
    }

    #[test]
    fn divergence_cuts_a_long_thin_tail_and_leaves_an_even_spread() {
        let histogram = filled(&bell_with_outlier());
        let [low, high] = histogram.choose(Observer::Kl, 16, 1.0);
        assert!(high < 10.0 && low < -2.0, "{low} {high}");
        let candidates = (1..=128).map(|part| histogram.inside(f64::from(part) / 128.0)).filter(|inside| inside.len() >= 16);
        let least = candidates.map(|inside| divergence(&histogram.counts, inside, 16));
        let bin = |end: f64| ((end - histogram.range[0]) / histogram.width()).round() as usize;
        assert_eq!(divergence(&histogram.counts, bin(low)..bin(high), 16), least.fold(f64::INFINITY, f64::min));
        let even: Vec<f32> = (1..=4096).map(|i| i as f32 / 4096.0).collect();
        assert_eq!(filled(&even).choose(Observer::Kl, 16, 1.0), [0.0, 1.0]);
    }

    #[test]
    fn the_moving_average_forgets_by_a_tenth_and_min_max_does_not_forget() {
        let (data, mut silent) = (images(), Silent);
        let net = small();
        let cx = &mut context(&data, &mut silent);
        let seen = observe(&net, &[0].into(), Calibration { images: 40, batch: 10 }, cx).unwrap();
        let mut batches = Vec::new();
        watch(&net, &[0].into(), Calibration { images: 40, batch: 10 }, cx, |_, values| {
            batches.push(values.iter().copied().fold(0.0, f32::max));
            Ok(())
        })
        .unwrap();
        let averaged = batches[1..].iter().fold(f64::from(batches[0]), |m, batch| 0.9 * m + 0.1 * f64::from(*batch));
        let largest = f64::from(batches.iter().copied().fold(0.0, f32::max));
        assert!((f64::from(seen[&0].scale(Observer::MovingAverage, 256, 1.0).step) - averaged / 255.0).abs() < 1e-8);
        assert!((f64::from(seen[&0].scale(Observer::MinMax, 256, 1.0).step) - largest / 255.0).abs() < 1e-8);
        let zeros = (0..40_usize * 16).filter(|i| i * i * 31 % 251 == 0).count();
        assert_eq!(seen[&0].histogram.counts.iter().sum::<u64>() as usize, 640 - zeros);
    }

    #[test]
    fn what_is_not_finite_and_what_is_not_there_is_refused() {
        let (mut data, mut silent) = (images(), Silent);
        let net = briquette_handmade::set(small(), "norm1", "beta", &[f32::NAN, 0.0, 0.0, 0.0]);
        let node = net.index("norm1").unwrap();
        let some = Calibration { images: 40, batch: 10 };
        let error = observe(&net, &[node].into(), some, &mut context(&data, &mut silent)).unwrap_err().to_string();
        assert_eq!(error, "node 'norm1': puts out NaN on the training images; train the network anew or check the data");
        data.train = briquette_data::Dataset::from_memory("none", [1, 4, 4], 3, vec![], vec![]).unwrap();
        let error = observe(&small(), &[0].into(), some, &mut context(&data, &mut silent)).unwrap_err().to_string();
        assert_eq!(error, "there are no training images to find ranges on; give the data set some");
        let error = Calibration { images: 0, batch: 10 }.check("fixed-point").unwrap_err().to_string();
        assert!(error.starts_with("fixed-point: `calibration-images` and `batch` must be at least 1"), "{error}");
    }
}
