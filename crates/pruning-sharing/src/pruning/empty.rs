//! Taking out of a network what group sparsity emptied.

use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::surgery::{Border, ChannelGroup, Keep};

use briquette_parts::masks::mask_zeros;

/// Removes every unit of channels that gives the same at every pixel of every image, for its filters are zero, or that only zeros read,
/// physically and until there is none, and masks the zeros that are left. What a unit gave, its bias or what a batch norm makes of it, goes
/// into what reads it, so that the outputs stay; where zeros are padded, one unit stays for that (see [`Border::Exact`]). Frozen groups
/// keep their shape, and every layer keeps a filter.
///
/// # Errors
/// A layer of which no weight is left; `remedy` says what would help.
pub fn remove_empty(mut net: Net, remedy: &str) -> Result<Net> {
    loop {
        refuse_empty(&net, remedy)?;
        let mut groups = net.channel_groups()?;
        groups.retain(|group| group.frozen.is_none());
        let cuts: Vec<(&ChannelGroup, Keep)> = groups
            .iter()
            .zip(net.constant_units(&groups)?)
            .map(|(group, constant)| {
                let full: Vec<f64> = constant.iter().map(|constant| f64::from(u8::from(!constant))).collect();
                let count = constant.iter().filter(|constant| !**constant).count();
                (group, group.best(&full, count.max(1)))
            })
            .collect();
        let (absorbed, cuts) = net.absorb(&cuts, Border::Exact)?;
        net = absorbed;
        if cuts.iter().all(|(group, keep)| keep.count() == group.len()) {
            break;
        }
        net = net.keep(&cuts)?;
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
