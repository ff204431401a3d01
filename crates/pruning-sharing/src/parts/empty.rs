//! Taking out of a network what group sparsity emptied.

use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::surgery::ChannelGroup;

use super::channels::pairs;
use super::masks::mask_zeros;

/// Removes every unit of channels whose filters are zero, biases included, or that only zeros read, physically and until there is none,
/// and masks the zeros that are left. What a batch norm adds to an empty filter's output goes with it. Frozen groups keep their shape, and
/// every layer keeps a filter.
///
/// # Errors
/// A layer of which no weight is left; `remedy` says what would help.
pub fn remove_empty(mut net: Net, remedy: &str) -> Result<Net> {
    loop {
        refuse_empty(&net, remedy)?;
        let mut groups = net.channel_groups()?;
        groups.retain(|group| group.frozen.is_none());
        let layers = Layers::of(&net);
        let keeps: Vec<_> = groups
            .iter()
            .map(|group| {
                let full: Vec<f64> = (0..group.len()).map(|unit| f64::from(u8::from(!layers.empty(group, unit)))).collect();
                let count = full.iter().filter(|full| **full > 0.0).count();
                group.best(&full, count.max(1))
            })
            .collect();
        if groups.iter().zip(&keeps).all(|(group, keep)| keep.count() == group.len()) {
            break;
        }
        net = net.keep(&pairs(&groups, keeps))?;
    }
    mask_zeros(net, |_| true)
}

/// Refuses networks with a layer of which no weight is left.
///
/// # Errors
/// Names the layer; `remedy` says what would help.
pub fn refuse_empty(net: &Net, remedy: &str) -> Result<()> {
    let zero = |node: &Node| node.weight().is_some_and(|weight| weight.values().iter().all(|value| *value == 0.0));
    match net.weighted().find(|(_, node)| zero(node)) {
        Some((_, node)) => Err(Error::node(&node.name, format!("no weight of it is left; {remedy}"))),
        None => Ok(()),
    }
}

/// For each node, which filters and which input channels of its weight are zero.
struct Layers(Vec<(Vec<bool>, Vec<bool>)>);

impl Layers {
    fn of(net: &Net) -> Self {
        let zeros = |node: &Node| {
            let parameters = node.parameters();
            let Some(weight) = parameters.iter().find(|parameter| parameter.name == "weight") else { return Default::default() };
            let (values, [outputs, inputs]) = (weight.values(), [weight.shape[0], weight.shape[1]]);
            let area = values.len() / (outputs * inputs);
            let (mut filters, mut channels) = (vec![true; outputs], vec![true; inputs]);
            for i in (0..values.len()).filter(|i| values[*i] != 0.0) {
                filters[i / (inputs * area)] = false;
                channels[i / area % inputs] = false;
            }
            for bias in parameters.iter().filter(|parameter| parameter.name == "bias") {
                filters.iter_mut().zip(&bias.base).for_each(|(empty, bias)| *empty &= *bias == 0.0);
            }
            (filters, channels)
        };
        Self(net.nodes.iter().map(zeros).collect())
    }

    fn empty(&self, group: &ChannelGroup, unit: usize) -> bool {
        let unmade = group.filters(unit).iter().all(|(node, filter)| self.0[*node].0[*filter]);
        unmade || group.readers(unit).iter().all(|(node, channel)| self.0[*node].1[*channel])
    }
}
