//! Changing a network's shape: cutting channels that depend on each other, and putting a chain of nodes in a node's place.
//!
//! Which channels must go together is derived from the graph. A residual addition joins the channels of its inputs, a concatenation
//! shifts them, a depthwise convolution hands them on, a flatten spreads each over its pixels; only convolutions and fully connected
//! layers start new ones. What a cut may do is fixed by one demand: the network with a group's units *masked* and the network with
//! them *cut* give the same outputs. Channels for which that cannot hold are frozen and say why.

mod constants;
mod cost;
mod coupling;
mod cut;
mod fold;
#[cfg(test)]
mod tests;
mod widen;

use std::fmt;

use crate::error::{Error, Result};
use crate::net::{Net, Node, Op};
use crate::rank;
use coupling::Coupling;
use cut::Chosen;

pub use briquette_runtime::layers::Constants;
pub use constants::Border;

/// Channels that can only be cut together, as units that can be cut one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelGroup {
    /// Name of the first layer whose filters make channels of the group.
    pub name: String,
    /// Why no unit may be cut; none when they may.
    pub frozen: Option<String>,
    /// The filters of each unit, as pairs of a node and an output channel of it.
    units: Vec<Vec<(usize, usize)>>,
    /// What reads each unit, as pairs of a node and an input channel of its weight.
    readers: Vec<Vec<(usize, usize)>>,
    /// The layers that make the group's channels: node, name and number of filters.
    producers: Vec<(usize, String, usize)>,
}

impl ChannelGroup {
    /// Number of units.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether the group has no unit; [`Net::channel_groups`] returns none such.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The filters of a unit: a node (convolution or fully connected) and an output channel of it.
    pub fn filters(&self, unit: usize) -> &[(usize, usize)] {
        &self.units[unit]
    }

    /// The weights that read a unit: a node (convolution or fully connected) and an index into the second dimension of its weight.
    pub fn readers(&self, unit: usize) -> &[(usize, usize)] {
        &self.readers[unit]
    }

    /// The `count` units of the highest score, among equals the first, and with them the best unit of every layer that would lose all its
    /// filters: where a shortcut pads channels, not every layer has filters in every unit. No unit when `count` is 0.
    pub fn best(&self, scores: &[f64], count: usize) -> Keep {
        let mut keep = Keep::top(scores, count);
        for producer in self.producers().filter(|_| count > 0) {
            let makers: Vec<bool> = self.units.iter().map(|unit| unit.iter().any(|(node, _)| *node == producer)).collect();
            if !makers.iter().zip(&keep.0).any(|(maker, keep)| *maker && *keep) {
                let best = rank::highest(scores.to_vec(), Some(&makers), 1);
                keep.0.iter_mut().zip(best).for_each(|(keep, best)| *keep |= best);
            }
        }
        keep
    }

    /// The nodes whose filters make the group's channels, in order.
    pub fn producers(&self) -> impl Iterator<Item = usize> {
        self.producers.iter().map(|(node, _, _)| *node)
    }
}

impl fmt::Display for ChannelGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} units;", self.name, self.len())?;
        for (position, same) in self.producers.chunk_by(|a, b| a.2 == b.2).enumerate() {
            write!(f, "{} {} of ", if position == 0 { "" } else { "," }, same[0].2)?;
            match same {
                [(_, one, _)] => write!(f, "{one}")?,
                [(_, first, _), .., (_, last, _)] => write!(f, "{first} .. {last} ({} layers)", same.len())?,
                [] => unreachable!("a chunk is never empty"),
            }
        }
        self.frozen.as_ref().map_or(Ok(()), |why| write!(f, "; frozen: {why}"))
    }
}

/// Which units of a group stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep(Vec<bool>);

impl Keep {
    /// One flag per unit.
    pub fn new(flags: Vec<bool>) -> Self {
        Self(flags)
    }

    /// The `count` units of the highest score; among equals the first.
    pub fn top(scores: &[f64], count: usize) -> Self {
        Self(rank::highest(scores.to_vec(), None, count))
    }

    /// Whether a unit stays.
    pub fn keeps(&self, unit: usize) -> bool {
        self.0[unit]
    }

    /// Number of units that stay.
    pub fn count(&self) -> usize {
        self.0.iter().filter(|keep| **keep).count()
    }
}

impl Net {
    /// The groups of channels that must be cut together, in the order of their first layers.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn channel_groups(&self) -> Result<Vec<ChannelGroup>> {
        Ok(Coupling::of(self)?.groups(self))
    }

    /// Cuts units out of groups of this network: filters, biases, normalization entries, and the weights that read them. Names and
    /// indices of nodes stay; codings lose the same entries as their weights.
    ///
    /// # Errors
    /// When a group is frozen or is not of this network, or when a layer would lose all its channels.
    pub fn keep(self, cuts: &[(&ChannelGroup, Keep)]) -> Result<Self> {
        let chosen = self.chosen(cuts)?;
        cut::choose(self, &chosen)
    }

    /// Sets to zero what [`Net::keep`] would cut: the weights of the filters by a mask, their biases and normalization entries by
    /// value. Shapes stay. What a unit gives to its readers then is nothing; [`Net::absorb`] hands on to them what it gave before.
    ///
    /// # Errors
    /// As [`Net::keep`].
    pub fn mask(self, cuts: &[(&ChannelGroup, Keep)]) -> Result<Self> {
        let stay = self.surviving(cuts)?;
        cut::mask(self, &stay)
    }

    /// Puts a chain of operations in the place of a node: the first reads what the node read, each further one its predecessor, and
    /// readers of the node read the last.
    ///
    /// # Errors
    /// When the chain is empty or does not fit its surroundings.
    pub fn rewrite(self, index: usize, chain: Vec<(String, Op)>) -> Result<Self> {
        let reads = |link: usize| if link == 0 { self.nodes[index].inputs.clone() } else { vec![index + link - 1] };
        let block = chain.into_iter().enumerate().map(|(link, (name, op))| Node { op, name, inputs: reads(link) }).collect();
        self.replace(index, block)
    }

    /// Puts nodes, which read by their new indices, in the place of a node, whose readers read the last of them.
    ///
    /// # Errors
    /// When there are none or they do not fit there.
    pub fn replace(mut self, index: usize, block: Vec<Node>) -> Result<Self> {
        let Some(grown) = block.len().checked_sub(1) else {
            return Err(Error::node(&self.nodes[index].name, "cannot be replaced by nothing"));
        };
        for input in self.nodes[index + 1..].iter_mut().flat_map(|node| &mut node.inputs).filter(|input| **input >= index) {
            *input += grown;
        }
        self.nodes.splice(index..=index, block);
        self.shapes()?;
        Ok(self)
    }

    /// Puts nodes, which read by their new indices, in front of the node at `at`. `redirect` gives the new index of what a later node reads in
    /// the place of an input, by its old one; without, it goes on reading that.
    ///
    /// # Errors
    /// When they do not fit there.
    pub fn insert(mut self, at: usize, new: Vec<Node>, redirect: impl Fn(&Node, usize) -> Option<usize>) -> Result<Self> {
        let moved = |input: usize| if input < at { input } else { input + new.len() };
        for node in &mut self.nodes[at..] {
            node.inputs = node.inputs.iter().map(|&input| redirect(node, input).unwrap_or(moved(input))).collect();
        }
        self.nodes.splice(at..at, new);
        self.shapes()?;
        Ok(self)
    }

    /// Puts a node between another and the first of those that it reads.
    ///
    /// # Errors
    /// When it does not fit there.
    pub fn interpose(self, reader: usize, name: String, op: Op) -> Result<Self> {
        let (name_of_reader, inputs) =
            (self.nodes[reader].name.clone(), self.nodes[reader].inputs.iter().take(1).copied().collect());
        let node = Node { op, name, inputs };
        let first = node.inputs.first().copied();
        self.insert(reader, vec![node], |node, input| (node.name == name_of_reader && Some(input) == first).then_some(reader))
    }

    /// Has the readers of a node read an earlier one in its place, and drops every node that the output no longer depends on.
    ///
    /// # Errors
    /// When the other node comes later or its output has another shape.
    pub fn bypass(self, node: usize, instead: usize) -> Result<Self> {
        Ok(self.bypass_all(&[(node, instead)])?.0)
    }

    /// [`Net::bypass`] of several nodes, as pairs of a node and what is read in its place; and where each node of this network, or what is read in
    /// its place, then lies.
    ///
    /// # Errors
    /// As [`Net::bypass`].
    pub fn bypass_all(self, pairs: &[(usize, usize)]) -> Result<(Self, Vec<Option<usize>>)> {
        let shapes = self.shapes()?;
        if let Some((node, instead)) = pairs.iter().find(|(node, instead)| instead >= node || shapes[*instead] != shapes[*node]) {
            let other = &self.nodes[*instead].name;
            return Err(Error::node(
                &self.nodes[*node].name,
                format!("cannot be bypassed by '{other}', which is later or of another shape"),
            ));
        }
        let mut read: Vec<usize> = (0..self.nodes.len()).collect();
        pairs.iter().for_each(|(node, instead)| read[*node] = *instead);
        // What is read in the place of a node comes before it.
        (0..read.len()).for_each(|node| read[node] = read[read[node]]);
        let mut needed = vec![false; self.nodes.len()];
        needed[0] = true;
        needed[read[self.nodes.len() - 1]] = true;
        for index in (0..self.nodes.len()).rev() {
            if needed[index] {
                self.nodes[index].inputs.iter().for_each(|input| needed[read[*input]] = true);
            }
        }
        let place = |index: usize| needed[..index].iter().filter(|needed| **needed).count();
        let kept = self.nodes.into_iter().enumerate().filter(|(index, _)| needed[*index]);
        let moved = kept.map(|(_, node)| Node { inputs: node.inputs.iter().map(|input| place(read[*input])).collect(), ..node });
        let net = Net { nodes: moved.collect() };
        net.shapes()?;
        let places = read.into_iter().map(|index| needed[index].then(|| place(index))).collect();
        Ok((net, places))
    }

    /// [`Net::surviving`], by place.
    fn chosen(&self, cuts: &[(&ChannelGroup, Keep)]) -> Result<Vec<Chosen>> {
        Ok(self.surviving(cuts)?.iter().map(|flags| Chosen::staying(flags)).collect())
    }

    /// For every node, which of its output channels (features, for vectors) are left after the cuts.
    fn surviving(&self, cuts: &[(&ChannelGroup, Keep)]) -> Result<Vec<Vec<bool>>> {
        let mut coupling = Coupling::of(self)?;
        let groups = coupling.groups(self);
        for (group, keep) in cuts {
            let refuse = |detail: String| Err(Error::node(&group.name, detail));
            if !groups.contains(group) {
                return refuse("this channel group is not of this network as it now is".into());
            }
            if keep.0.len() != group.len() {
                return refuse(format!("{} flags for a group of {} units", keep.0.len(), group.len()));
            }
            if keep.count() == group.len() {
                continue;
            }
            if let Some(why) = &group.frozen {
                return refuse(format!("its channels cannot be cut: {why}"));
            }
            for (unit, stays) in group.units.iter().zip(&keep.0) {
                if !stays {
                    coupling.remove(unit[0]);
                }
            }
        }
        let stay = coupling.stay();
        match stay.iter().position(|channels| !channels.contains(&true)) {
            Some(node) => {
                let detail = format!("would keep none of its {} channels; remove less", stay[node].len());
                Err(Error::node(&self.nodes[node].name, detail))
            }
            None => Ok(stay),
        }
    }
}
