//! Which channels depend on each other.

use std::collections::{BTreeMap, BTreeSet};

use briquette_runtime::Layer;
use briquette_runtime::layers::Channels;

use super::ChannelGroup;
use crate::error::Result;
use crate::net::Net;

/// Every output channel of every node belongs to a class of channels that only exist together.
pub(super) struct Coupling {
    /// The class of each output channel (of each feature, for vectors) of each node; resolved by [`Classes::find`].
    channels: Vec<Vec<usize>>,
    classes: Classes,
    /// Why a class may not be cut.
    frozen: BTreeMap<usize, String>,
    removed: BTreeSet<usize>,
}

/// Disjoint sets.
#[derive(Default)]
struct Classes(Vec<usize>);

impl Classes {
    fn new_class(&mut self) -> usize {
        self.0.push(self.0.len());
        self.0.len() - 1
    }

    fn find(&self, mut class: usize) -> usize {
        while self.0[class] != class {
            class = self.0[class];
        }
        class
    }

    /// The older class represents both, so that the order of classes is the order of execution.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b)] = a.min(b);
    }
}

impl Coupling {
    pub(super) fn of(net: &Net) -> Result<Self> {
        let shapes = net.shapes()?;
        let mut this =
            Self { channels: Vec::new(), classes: Classes::default(), frozen: BTreeMap::new(), removed: BTreeSet::new() };
        for (index, node) in net.nodes.iter().enumerate() {
            let layer = node.op.layer();
            // What a gate decided is no channel of the values that go by it.
            let values = layer.kind().branch().values(&node.inputs);
            let inputs: Vec<Vec<usize>> = values.iter().map(|&input| this.channels[input].clone()).collect();
            let spread = node.inputs.first().map_or(1, |&input| shapes[input][1..].iter().product());
            let channels = this.follow(&layer, &node.name, inputs, shapes[index][0], spread);
            this.channels.push(channels);
        }
        this.freeze(this.channels[net.nodes.len() - 1].clone(), "they are the network's output");
        for (class, why) in std::mem::take(&mut this.frozen) {
            this.frozen.entry(this.classes.find(class)).or_insert(why);
        }
        Ok(this)
    }

    /// The classes of a node's `count` output channels; `spread` is the number of pixels of a channel of the first input.
    fn follow(&mut self, layer: &Layer, name: &str, mut inputs: Vec<Vec<usize>>, count: usize, spread: usize) -> Vec<usize> {
        let kind = layer.kind();
        match kind.channels() {
            Channels::Source => {
                let fresh = self.fresh(count);
                self.freeze(fresh.clone(), "they are the network's input");
                fresh
            }
            Channels::Made { groups: 0 | 1 } => self.fresh(count),
            Channels::Made { groups } => {
                let (input, fresh, per_group) = (inputs.remove(0), self.fresh(count), count / groups);
                if input.len() == groups {
                    (0..count).for_each(|out| self.classes.join(input[out / per_group], fresh[out]));
                    return fresh;
                }
                let fan_in = input.len() / groups;
                (per_group..count).for_each(|out| self.classes.join(fresh[out % per_group], fresh[out]));
                (fan_in..input.len()).for_each(|c| self.classes.join(input[c % fan_in], input[c]));
                fresh
            }
            Channels::Joined => {
                let first = inputs.remove(0);
                for other in inputs {
                    if other.len() == first.len() {
                        first.iter().zip(other).for_each(|(&a, b)| self.classes.join(a, b));
                    } else {
                        self.freeze(other, &format!("'{name}' ({}) scales all channels by them", kind.name()));
                    }
                }
                first
            }
            Channels::Concatenated => inputs.concat(),
            Channels::Sliced { start, len } => inputs[0][start..start + len].to_vec(),
            Channels::Surrounded { before, after } => {
                let (front, back) = (self.fresh(before), self.fresh(after));
                [front, inputs.remove(0), back].concat()
            }
            Channels::Blocked { from, to } => {
                let blocks = inputs[0].chunks(from);
                blocks.clone().for_each(|block| block.iter().for_each(|&class| self.classes.join(block[0], class)));
                blocks.flat_map(|block| std::iter::repeat_n(block[0], to)).collect()
            }
            Channels::Spread => inputs[0].iter().flat_map(|&class| std::iter::repeat_n(class, spread)).collect(),
            Channels::Mixed { why, fixed } => {
                let why = format!("'{name}' ({}) {why}", kind.name());
                inputs.into_iter().for_each(|input| self.freeze(input, &why));
                let fresh = self.fresh(count);
                if fixed {
                    self.freeze(fresh.clone(), &why);
                }
                fresh
            }
            Channels::Disturbed(why) => {
                let input = inputs.remove(0);
                self.freeze(input.clone(), &format!("'{name}' ({}) {why}", kind.name()));
                input
            }
            Channels::Kept => inputs.remove(0),
        }
    }

    fn fresh(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.classes.new_class()).collect()
    }

    fn freeze(&mut self, classes: Vec<usize>, why: &str) {
        for class in classes {
            self.frozen.entry(class).or_insert_with(|| why.to_string());
        }
    }

    /// The classes gathered into groups: classes of which one layer makes filters belong together.
    pub(super) fn groups(&self, net: &Net) -> Vec<ChannelGroup> {
        let producers: Vec<usize> = net.own_weights().map(|(index, _)| index).collect();
        let mut linked = Classes((0..self.classes.0.len()).collect());
        for &node in &producers {
            let first = self.classes.find(self.channels[node][0]);
            self.channels[node].iter().for_each(|&class| linked.join(first, self.classes.find(class)));
        }
        let mut units: BTreeMap<usize, BTreeMap<usize, Vec<(usize, usize)>>> = BTreeMap::new();
        for &node in &producers {
            for (channel, &class) in self.channels[node].iter().enumerate() {
                let class = self.classes.find(class);
                units.entry(linked.find(class)).or_default().entry(class).or_default().push((node, channel));
            }
        }
        let mut readers = self.readers(net);
        let mut groups: Vec<ChannelGroup> = units.into_values().map(|units| self.group(net, units, &mut readers)).collect();
        groups.sort_by_key(|group| group.producers[0].0);
        groups
    }

    /// For each class, the nodes that read it and the input channels of their weights.
    fn readers(&self, net: &Net) -> BTreeMap<usize, Vec<(usize, usize)>> {
        let mut readers: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (index, node) in net.weighted() {
            let Some(shape) = node.op.weight_shape() else { continue };
            let channels = &self.channels[node.inputs[0]];
            // A depthwise convolution hands its channels on; those of other groups were joined by their place in the group.
            let depthwise = shape[1] == 1 && channels.len() > 1;
            for (channel, &class) in channels[..shape[1]].iter().enumerate().filter(|_| !depthwise) {
                readers.entry(self.classes.find(class)).or_default().push((index, channel));
            }
        }
        readers
    }

    fn group(
        &self,
        net: &Net,
        units: BTreeMap<usize, Vec<(usize, usize)>>,
        readers: &mut BTreeMap<usize, Vec<(usize, usize)>>,
    ) -> ChannelGroup {
        let frozen = units.keys().find_map(|class| self.frozen.get(class)).cloned();
        let readers = units.keys().map(|class| readers.remove(class).unwrap_or_default()).collect();
        let units: Vec<Vec<(usize, usize)>> = units.into_values().collect();
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        units.iter().flatten().for_each(|(node, _)| *counts.entry(*node).or_default() += 1);
        let producers: Vec<_> = counts.into_iter().map(|(node, count)| (node, net.nodes[node].name.clone(), count)).collect();
        ChannelGroup { name: producers[0].1.clone(), frozen, units, readers, producers }
    }

    /// Removes the class of a filter.
    pub(super) fn remove(&mut self, (node, channel): (usize, usize)) {
        self.removed.insert(self.classes.find(self.channels[node][channel]));
    }

    /// The classes of a node's output channels.
    pub(super) fn classes(&self, node: usize) -> Vec<usize> {
        self.channels[node].iter().map(|class| self.classes.find(*class)).collect()
    }

    /// For every node, which output channels are not removed.
    pub(super) fn stay(&self) -> Vec<Vec<bool>> {
        let stays = |class: &usize| !self.removed.contains(&self.classes.find(*class));
        self.channels.iter().map(|channels| channels.iter().map(stays).collect()).collect()
    }
}
