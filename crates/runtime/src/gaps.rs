//! Where the values of a sparse tensor are.
//!
//! The relative indices are those of Han, Mao and Dally ("Deep Compression", ICLR 2016, arXiv:1510.00149): the distance from one
//! kept value to the next in a few bits, with fillers where it is too large. Differs from the paper: a filler is the distance 0,
//! which cannot occur otherwise, so that it needs no value and no zero in the codebook.

use std::collections::BTreeMap;

use crate::bytes::Reader;
use crate::coded::is_kept;
use crate::stream::{self, Stream};
use crate::{Coder, Error};

/// The widest distance.
const MAX_BITS: u32 = 16;

/// Distances between the values that a mask keeps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gaps {
    /// A distance is below `2^bits`.
    pub(crate) bits: u32,
    /// Distances and fillers.
    pub(crate) entries: usize,
    pub(crate) stream: Stream,
    /// Distances alone: values of the tensor.
    values: usize,
}

impl Gaps {
    /// The positions of the kept among marked values with the width of distance and the coder, up to `allowed`, that take the fewest bytes.
    pub(crate) fn of(values: &[f32], allowed: Coder) -> Self {
        let mut histogram = BTreeMap::<usize, u64>::new();
        distances(values).for_each(|distance| *histogram.entry(distance).or_default() += 1);
        // Wider than the largest distance only adds zeros.
        let widest = stream::width(histogram.last_key_value().map_or(1, |(distance, _)| *distance) + 1).min(MAX_BITS);
        let coders = [Coder::Packed, Coder::Huffman, Coder::Entropy].into_iter().filter(|coder| *coder <= allowed);
        let best = coders.filter_map(|coder| {
            let costs = (1..=widest).filter_map(|bits| Stream::cost(&split(&histogram, bits), coder).map(|cost| (cost, bits)));
            costs.min().map(|(_, bits)| Self::with(values, &histogram, bits, coder))
        });
        best.min_by_key(|gaps| gaps.stream.stored()).expect("packing is always possible")
    }

    /// Reads the entries and checks that all lie inside the tensor.
    pub(crate) fn read(reader: &mut Reader<'_>, coder: Coder, bits: u32, entries: usize, elements: usize) -> Result<Self, Error> {
        if bits > MAX_BITS {
            return Err(Error::Limit { what: "bits of a distance", found: u64::from(bits), limit: u64::from(MAX_BITS) });
        }
        if entries > elements {
            return Err(Error::Limit { what: "relative indices", found: entries as u64, limit: elements as u64 });
        }
        let (stream, distances) = Stream::read(reader, coder, entries, 1 << bits)?;
        let end: usize = distances.iter().map(|distance| step(*distance, bits)).sum();
        if end > elements || distances.last() == Some(&0) {
            return Err(Error::corrupt(format!("relative indices end at {end} of {elements}")));
        }
        let values = distances.iter().filter(|distance| **distance > 0).count();
        Ok(Self { bits, entries, values, stream })
    }

    /// Number of values of the tensor.
    pub(crate) fn values(&self) -> usize {
        self.values
    }

    /// The places of the values in the tensor, in order.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> {
        let distances = self.stream.decode(self.entries, 1 << self.bits).expect("a stream was decoded once when it was made");
        let bits = self.bits;
        let mut end = 0;
        distances.into_iter().filter_map(move |distance| {
            end += step(distance, bits);
            (distance > 0).then(|| end - 1)
        })
    }

    /// The tensor with `values` in their places and zeros elsewhere.
    pub(crate) fn spread(&self, values: &[f32], elements: usize) -> Vec<f32> {
        let mut dense = vec![0.0; elements];
        self.positions().zip(values).for_each(|(position, value)| dense[position] = *value);
        dense
    }

    fn with(values: &[f32], histogram: &BTreeMap<usize, u64>, bits: u32, coder: Coder) -> Self {
        let largest = (1 << bits) - 1;
        let entries = split(histogram, bits).iter().sum::<u64>() as usize;
        let mut symbols = Vec::with_capacity(entries);
        for distance in distances(values) {
            symbols.extend(std::iter::repeat_n(0, (distance - 1) / largest));
            symbols.push(((distance - 1) % largest + 1) as u16);
        }
        let values = histogram.values().sum::<u64>() as usize;
        Self { bits, entries, values, stream: Stream::encode(&symbols, 1 << bits, coder) }
    }
}

/// From each kept value, or the tensor's beginning, to the next.
fn distances(values: &[f32]) -> impl Iterator<Item = usize> {
    let mut end = 0;
    let places = values.iter().enumerate().filter(|(_, value)| is_kept(**value)).map(|(i, _)| i + 1);
    places.map(move |place| place - std::mem::replace(&mut end, place))
}

/// Positions that an entry advances.
fn step(distance: u16, bits: u32) -> usize {
    if distance == 0 { (1 << bits) - 1 } else { distance as usize }
}

/// How often each entry occurs when distances of these counts are cut into pieces of so many bits.
fn split(histogram: &BTreeMap<usize, u64>, bits: u32) -> Vec<u64> {
    let largest = (1 << bits) - 1;
    let mut counts = vec![0; 1 << bits];
    for (distance, count) in histogram {
        counts[0] += count * ((distance - 1) / largest) as u64;
        counts[(distance - 1) % largest + 1] += count;
    }
    counts
}
