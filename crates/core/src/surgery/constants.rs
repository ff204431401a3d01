//! Channels that give the same for every image, at every pixel, and the way of what they gave into the layers that read them.

use std::collections::{BTreeMap, BTreeSet};

use briquette_runtime::Layer;
use briquette_runtime::layers::{self, Constants, Parameters};

use super::{ChannelGroup, Keep};
use crate::coding::{Coding, Source};
use crate::error::{Error, Result};
use crate::net::{Net, Node, Op};
use crate::stored::Stored;

/// What becomes of a constant that a convolution with zero padding reads: it does not reach the padding, so that no bias equals it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Border {
    /// Of the units that give one, as few as can stay, and their weights in the convolution take in those of the others: the outputs are
    /// those of the network before.
    Exact,
    /// Its mean over the convolution's outputs takes its place.
    Mean,
}

impl Net {
    /// For each unit of groups of this network, whether all that its readers see of it is constant, or has no weight: an empty filter gives
    /// its bias, and behind a batch norm `beta + gamma (bias - mean) / sqrt(var + epsilon)`.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn constant_units(&self, groups: &[ChannelGroup]) -> Result<Vec<Vec<bool>>> {
        let readers = Readers::of(self, groups.iter().map(|group| (group, None)))?;
        let mut constant: Vec<Vec<bool>> = groups.iter().map(|group| vec![true; group.len()]).collect();
        for read in readers.0.values().flat_map(|reader| &reader.reads) {
            constant[read.unit.0][read.unit.1] &= read.constant.is_some() || read.unread;
        }
        Ok(constant)
    }

    /// Hands what units give that [`Net::mask`] or [`Net::keep`] are about to take, and that is constant, on to what reads them: to its bias, or
    /// the mean of the batch norm behind it. Returns the network, and which units stay: those of `cuts`, and what [`Border::Exact`] adds to
    /// them. With the rest masked or cut, the network gives what it gave before.
    ///
    /// # Errors
    /// Names a layer that reads a unit which is not constant.
    pub fn absorb<'a>(
        mut self,
        cuts: &[(&'a ChannelGroup, Keep)],
        border: Border,
    ) -> Result<(Self, Vec<(&'a ChannelGroup, Keep)>)> {
        let readers = Readers::of(&self, cuts.iter().map(|(group, keep)| (*group, Some(keep))))?;
        let mut keeps: Vec<(&ChannelGroup, Keep)> = cuts.to_vec();
        let mut stay: BTreeSet<(usize, usize)> = BTreeSet::new();
        if border == Border::Exact {
            readers.0.values().for_each(|reader| reader.carriers(&mut stay));
        }
        stay.iter().for_each(|&(cut, unit)| keeps[cut].1.0[unit] = true);
        for (&index, reader) in &readers.0 {
            if let Some(lost) = reader.reads.iter().find(|read| read.constant.is_none() && !read.unread) {
                let (group, unit) = (cuts[lost.unit.0].0, lost.unit.1);
                let detail = format!("reads unit {unit} of the channels of '{}', which is not constant", group.name);
                return Err(Error::node(&self.nodes[index].name, detail));
            }
            let (weights, shift) = reader.taken_in(&stay, border);
            self = self.with_weights(index, &weights)?;
            if shift.iter().any(|shift| *shift != 0.0) {
                self = self.shifted(index, &shift)?;
            }
        }
        Ok((self, keeps))
    }

    fn with_weights(mut self, index: usize, weights: &BTreeMap<usize, f64>) -> Result<Self> {
        if weights.is_empty() {
            return Ok(self);
        }
        let device = self.device();
        let node = self.nodes.remove(index);
        let mut parameters = node.parameters();
        for weight in parameters.iter_mut().filter(|stored| stored.name == "weight") {
            for (&place, value) in weights {
                weight.base[place] = *value as f32;
                if let Some(mask) = &mut weight.coding.mask {
                    // One that is kept stays so, whatever its value.
                    mask[place] |= *value != 0.0;
                }
            }
        }
        self.nodes.insert(index, node.with(parameters, &device)?);
        Ok(self)
    }

    /// With this added to the outputs of a convolution or fully connected layer.
    fn shifted(mut self, index: usize, shift: &[f64]) -> Result<Self> {
        let device = self.device();
        let mut behind = (0..self.nodes.len()).filter(|reader| self.nodes[*reader].inputs.contains(&index));
        let norm = match (behind.next(), behind.next()) {
            (Some(only), None) if matches!(self.nodes[only].op, Op::BatchNorm(_)) => Some(only),
            _ => None,
        };
        let biased = self.nodes[index].stored().iter().any(|stored| stored.name == "bias");
        let (index, name, sign) = match norm {
            Some(norm) if !biased => (norm, "mean", -1.0),
            _ => (index, "bias", 1.0),
        };
        let node = self.nodes.remove(index);
        let mut parameters = node.parameters();
        if !parameters.iter().any(|stored| stored.name == name) {
            let (shape, base) = (vec![shift.len()], vec![0.0; shift.len()]);
            parameters.push(Stored { name: "bias", shape, base, coding: Coding::default() });
        }
        for stored in parameters.iter_mut().filter(|stored| stored.name == name) {
            stored.base.iter_mut().zip(shift).for_each(|(value, shift)| *value = (f64::from(*value) + sign * shift) as f32);
        }
        self.nodes.insert(index, node.with(parameters, &device)?);
        Ok(self)
    }

    /// For every node, its constant channels as evaluation computes them: those of empty filters, and what later nodes make of them.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn constants(&self) -> Result<Vec<Constants>> {
        let shapes = self.shapes()?;
        let mut all: Vec<Constants> = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate() {
            let pixels = node.inputs.first().map_or(1, |&input| shapes[input][1..].iter().product());
            let inputs: Vec<&Constants> = node.inputs.iter().map(|&input| &all[input]).collect();
            let stored = node.parameters();
            let tensor = |name: &str| {
                let found = stored.iter().find(|stored| stored.name == name);
                found.map(|found| (found.shape.clone(), found.values()))
            };
            let parameters = Parameters { channels: shapes[index][0], pixels, tensor: &tensor };
            let found = node.op.layer().kind().constants(&inputs, &parameters);
            all.push(found);
        }
        Ok(all)
    }
}

/// One input channel of a layer that a unit feeds.
struct Read {
    /// The position of the group among the cuts, and the unit.
    unit: (usize, usize),
    /// The group of the convolution's channels.
    group: usize,
    /// Index into the second dimension of the weight.
    column: usize,
    constant: Option<f64>,
    /// Whether its weights are all zero.
    unread: bool,
}

/// A convolution or fully connected layer that reads units.
struct Reader {
    reads: Vec<Read>,
    /// `[out, columns, taps]`.
    values: Vec<f32>,
    out: usize,
    columns: usize,
    groups: usize,
    /// For each tap, the share of the outputs at which it lies inside the image.
    inside: Vec<f64>,
    /// Whether the weights may take other values.
    free: bool,
}

/// By node.
struct Readers(BTreeMap<usize, Reader>);

impl Readers {
    /// The readers of the units that go, of all where nothing says which.
    fn of<'a>(net: &Net, cuts: impl Iterator<Item = (&'a ChannelGroup, Option<&'a Keep>)>) -> Result<Self> {
        let (shapes, constants) = (net.shapes()?, net.constants()?);
        let mut readers: BTreeMap<usize, Reader> = BTreeMap::new();
        for (cut, (group, keep)) in cuts.enumerate() {
            for unit in (0..group.len()).filter(|unit| keep.is_none_or(|keep| !keep.0[*unit])) {
                for &(node, column) in group.readers(unit) {
                    let input = net.nodes[node].inputs[0];
                    let reader = match readers.entry(node) {
                        std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                        std::collections::btree_map::Entry::Vacant(new) => {
                            new.insert(Reader::of(&net.nodes[node], &shapes[input], &shapes[node])?)
                        }
                    };
                    for group in 0..reader.groups {
                        let unread = reader.rows(group).all(|row| reader.taps(row, column).iter().all(|w| *w == 0.0));
                        let constant = constants[input][group * reader.columns + column];
                        reader.reads.push(Read { unit: (cut, unit), group, column, constant, unread });
                    }
                }
            }
        }
        Ok(Self(readers))
    }
}

impl Reader {
    fn of(node: &Node, input: &[usize], output: &[usize]) -> Result<Self> {
        let Some(weight) = node.weight() else { return Err(Error::node(&node.name, "reads channels without a weight")) };
        let (out, columns) = (weight.shape[0], weight.shape[1]);
        let layer = node.op.layer();
        let (groups, inside) = if let Layer::Conv2d(layers::Conv2d { stride, padding, dilation, groups }) = layer {
            let along = |axis: usize, tap: usize| {
                let place = |at: usize| (at * stride[axis] + tap * dilation[axis]).checked_sub(padding.before(axis));
                let hits = (0..output[1 + axis]).filter(|at| place(*at).is_some_and(|place| place < input[1 + axis])).count();
                hits as f64 / output[1 + axis] as f64
            };
            let [height, width] = [weight.shape[2], weight.shape[3]];
            let taps = (0..height).flat_map(|i| (0..width).map(move |j| (i, j)));
            (groups, taps.map(|(i, j)| along(0, i) * along(1, j)).collect())
        } else if matches!(layer, Layer::Linear(_)) {
            (1, vec![1.0; weight.base.len() / (out * columns)])
        } else {
            let detail = format!("is a {}, of which it is not known how it reads a constant", layer.kind().name());
            return Err(Error::node(&node.name, detail));
        };
        let free = weight.coding.source == Source::Free;
        Ok(Self { reads: Vec::new(), values: weight.values(), out, columns, groups, inside, free })
    }

    fn taps(&self, row: usize, column: usize) -> &[f32] {
        let area = self.inside.len();
        &self.values[(row * self.columns + column) * area..][..area]
    }

    /// The filters of a group.
    fn rows(&self, group: usize) -> std::ops::Range<usize> {
        let rows = self.out / self.groups;
        group * rows..(group + 1) * rows
    }

    fn padded(&self) -> bool {
        self.inside.iter().any(|share| *share < 1.0)
    }

    /// What one group of channels reads that is not zero.
    fn nonzero(&self, group: usize) -> impl Iterator<Item = (&Read, f64)> {
        let seen = move |read: &&Read| read.group == group && !read.unread;
        self.reads.iter().filter(seen).filter_map(|read| Some((read, read.constant.filter(|constant| *constant != 0.0)?)))
    }

    /// Adds to `stay` the units that have to: for each group of channels one, all where weights are shared.
    fn carriers(&self, stay: &mut BTreeSet<(usize, usize)>) {
        for group in (0..self.groups).filter(|_| self.padded()) {
            if !self.free {
                stay.extend(self.nonzero(group).map(|(read, _)| read.unit));
            } else if self.carrier(group, stay).is_none() {
                let largest = self.nonzero(group).max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
                stay.extend(largest.map(|(read, _)| read.unit));
            }
        }
    }

    /// Of the units that stay, the one that gives most.
    fn carrier(&self, group: usize, stay: &BTreeSet<(usize, usize)>) -> Option<(&Read, f64)> {
        let staying = self.reads.iter().filter(|read| read.group == group && stay.contains(&read.unit));
        let nonzero = staying.filter_map(|read| Some((read, read.constant.filter(|constant| *constant != 0.0)?)));
        nonzero.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))
    }

    /// The weights that change, by their place, and what is added to each output, so that nothing is missed of the units that do not stay.
    fn taken_in(&self, stay: &BTreeSet<(usize, usize)>, border: Border) -> (BTreeMap<usize, f64>, Vec<f64>) {
        let (mut weights, mut shift) = (BTreeMap::new(), vec![0.0; self.out]);
        let area = self.inside.len();
        for group in 0..self.groups {
            let carrier = if border == Border::Exact && self.padded() { self.carrier(group, stay) } else { None };
            for (read, constant) in self.nonzero(group).filter(|(read, _)| !stay.contains(&read.unit)) {
                for row in self.rows(group) {
                    let taps = self.taps(row, read.column);
                    if let Some((carrier, carried)) = carrier {
                        let start = (row * self.columns + carrier.column) * area;
                        for (tap, w) in taps.iter().enumerate() {
                            let own = weights.entry(start + tap).or_insert(f64::from(self.values[start + tap]));
                            *own += constant / carried * f64::from(*w);
                        }
                    } else {
                        let reaching: f64 = taps.iter().zip(&self.inside).map(|(w, share)| f64::from(*w) * share).sum();
                        shift[row] += constant * reaching;
                    }
                }
            }
        }
        (weights, shift)
    }
}
