//! Copying channels without a change of the network's outputs.

use std::collections::BTreeMap;

use briquette_runtime::layers::Channels;

use super::coupling::Coupling;
use super::cut::{Chosen, choose};
use super::{ChannelGroup, Net};
use crate::coding::Source;
use crate::error::{Error, Result};

impl Net {
    /// Copies units of groups of this network: `times` has for each unit how often it is there, at least once. A copy has the filters, biases and
    /// normalization of its unit and stands behind it; what reads them reads each with the weight over their number, so that outputs stay.
    ///
    /// # Errors
    /// When a group is frozen or not of this network, a number is 0, a copied unit lies in a convolution in groups that is not depthwise, or what reads
    /// it shares its weights or has them on a grid.
    pub fn widen(self, wider: &[(&ChannelGroup, Vec<usize>)]) -> Result<Self> {
        let coupling = Coupling::of(&self)?;
        let groups = coupling.groups(&self);
        let mut copies: BTreeMap<usize, usize> = BTreeMap::new();
        for (group, times) in wider {
            let refuse = |detail: &str| Err(Error::node(&group.name, detail));
            if !groups.contains(group) {
                return refuse("this channel group is not of this network as it now is");
            }
            if times.len() != group.len() || times.contains(&0) {
                return refuse("every unit of a group is there at least once");
            }
            if let Some(why) = &group.frozen {
                return refuse(&format!("its channels cannot be copied: {why}"));
            }
            for (unit, times) in group.units.iter().zip(times) {
                let (node, channel) = unit[0];
                copies.insert(coupling.classes(node)[channel], *times);
            }
        }
        let chosen = places(&self, &coupling, &copies)?;
        let inputs: Vec<Option<usize>> = self.nodes.iter().map(|node| node.inputs.first().copied()).collect();
        let mut net = choose(self, &chosen)?;
        let device = net.device();
        for (index, input) in inputs.into_iter().enumerate() {
            let Some(input) = input.map(|input| &chosen[input]).filter(|input| input.times.iter().any(|times| *times > 1)) else {
                continue;
            };
            if net.nodes[index].dense().is_none_or(|dense| dense.groups > 1) {
                continue;
            }
            let node = net.nodes[index].clone();
            let mut parameters = node.parameters();
            for weight in parameters.iter_mut().filter(|parameter| parameter.name == "weight") {
                if !matches!(weight.coding.source, Source::Free) {
                    return Err(Error::node(
                        &node.name,
                        "shares its weights or has them on a grid, of which none is a part of another",
                    ));
                }
                let inner: usize = weight.shape[2..].iter().product();
                let columns = input.places.iter().flat_map(|place| std::iter::repeat_n(input.times[*place] as f32, inner));
                weight.base.iter_mut().zip(columns.cycle()).for_each(|(value, times)| *value /= times);
            }
            net.nodes[index] = node.with(parameters, &device)?;
        }
        Ok(net)
    }
}

/// For every node, which of its output channels there are, given how often the classes are that are copied.
fn places(net: &Net, coupling: &Coupling, copies: &BTreeMap<usize, usize>) -> Result<Vec<Chosen>> {
    let shapes = net.shapes()?;
    let mut all: Vec<Chosen> = Vec::with_capacity(net.nodes.len());
    for (index, node) in net.nodes.iter().enumerate() {
        let layer = node.op.layer();
        let own: Vec<usize> = coupling.classes(index).iter().map(|class| copies.get(class).copied().unwrap_or(1)).collect();
        let values = layer.kind().branch().values(&node.inputs);
        let first = values.first().map(|input| all[*input].clone()).unwrap_or_default();
        let copied = own.iter().chain(&first.times).any(|times| *times > 1);
        let refuse = |detail: &str| Err(Error::node(&node.name, format!("its channels cannot be copied one by one: {detail}")));
        all.push(match layer.kind().channels() {
            Channels::Source | Channels::Made { groups: 0 | 1 } => Chosen::repeated(own),
            Channels::Made { groups } if !copied || first.times.len() == groups && own.len() == groups => Chosen::repeated(own),
            Channels::Made { .. } => return refuse("it is a convolution in groups"),
            Channels::Joined | Channels::Kept | Channels::Disturbed(_) => first,
            Channels::Concatenated => {
                let mut before = 0;
                let mut places = Vec::new();
                for input in values {
                    places.extend(all[*input].places.iter().map(|place| before + place));
                    before += all[*input].times.len();
                }
                Chosen::placed(places, own.len())
            }
            Channels::Sliced { start, len } => {
                let within = first.places.iter().filter(|place| (start..start + len).contains(place));
                Chosen::placed(within.map(|place| place - start).collect(), len)
            }
            Channels::Surrounded { before, after } => {
                let around = |from: usize, count: usize| {
                    let times = own.iter().enumerate().skip(from).take(count);
                    times.flat_map(|(place, times)| std::iter::repeat_n(place, *times))
                };
                let between = first.places.iter().map(|place| before + place);
                let behind = own.len() - after;
                Chosen::placed(around(0, before).chain(between).chain(around(behind, after)).collect(), own.len())
            }
            Channels::Spread => {
                let spread: usize = shapes[node.inputs[0]][1..].iter().product();
                let places = first.places.iter().flat_map(|place| place * spread..(place + 1) * spread);
                Chosen::placed(places.collect(), own.len())
            }
            Channels::Blocked { .. } | Channels::Mixed { .. } if copied => return refuse("it asks for all of them"),
            Channels::Blocked { .. } | Channels::Mixed { .. } => Chosen::repeated(own),
        });
    }
    Ok(all)
}
