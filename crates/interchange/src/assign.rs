//! The network with a checkpoint's weights.
//!
//! Checkpoints name their tensors as the original program did. Without a table, modules are found by the names or the order of the layers
//! ([`order`](crate::order)). Every shape must fit, and no floating-point tensor of the model may be left over.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::coding::Coding;
use briquette_core::net::{Net, Node, Op};
use briquette_core::stored::Stored;
use briquette_runtime::NotFinite;

use crate::masks::called;
use crate::order::{self, Prefixes};
use crate::read::some_of;
use crate::{Checkpoint, Error, Foreign};

/// Layer name to the prefix of its tensors' names in the file: `{"conv1" = "module.conv1"}`.
pub type Table = BTreeMap<String, String>;

/// The network with the checkpoint's weights. A mask that the file holds becomes the mask of the weight. The bias of a layer that has none
/// here, `y = w x + b`, moves into the batch norm that alone reads it: `mean - b` instead of `mean`.
///
/// # Errors
/// A layer without weights, weights without a layer, shapes that differ, values that are not finite, a table that names what is not there, and
/// modules whose order does not follow from the file.
pub fn assign(net: Net, checkpoint: &Checkpoint, table: Option<&Table>) -> Result<Net, Error> {
    let mismatch = |detail: String| Error::Mismatch { path: checkpoint.path.clone(), detail };
    let prefixes = match table {
        Some(table) => by_table(&net, checkpoint, table)?,
        None => order::find(&net, checkpoint).map_err(|detail| mismatch(detail + &checkpoint.left_unread()))?,
    };
    let mut used = BTreeSet::new();
    let mut unusable = Vec::new();
    let mut parameters: BTreeMap<usize, Vec<Stored>> = BTreeMap::new();
    for (&index, prefix) in &prefixes {
        let node = &net.nodes[index];
        let mut own = Vec::new();
        for stored in node.parameters() {
            let part = foreign_name(&node.op, stored.name);
            let name = format!("{prefix}.{part}");
            let found = take(checkpoint, node, &name, &stored.shape).map_err(mismatch)?;
            let not_finite = NotFinite::of(prefix, &node.op.layer(), stored.name, &found.values);
            unusable.extend(not_finite.map(|found| NotFinite { tensor: part.into(), ..found }));
            let mask = checkpoint.masks.get(&name).filter(|mask| stored.shape.len() >= 2 && mask.contains(&false)).cloned();
            let Foreign { shape, values } = found;
            own.push(Stored { name: stored.name, shape, base: values, coding: Coding { mask, ..Coding::default() } });
            used.insert(name);
        }
        parameters.insert(index, own);
    }
    for (bias, norm) in movable(&net, checkpoint, &prefixes) {
        let shift = &checkpoint.tensors[&bias].values;
        unusable.extend(NotFinite::of(bias.trim_end_matches(".bias"), &net.nodes[norm].op.layer(), "bias", shift));
        let mean = parameters.get_mut(&norm).and_then(|own| own.iter_mut().find(|stored| stored.name == "mean"));
        if let Some(mean) = mean.filter(|mean| mean.base.len() == shift.len()) {
            mean.base.iter_mut().zip(shift).for_each(|(mean, bias)| *mean -= bias);
            used.insert(bias);
        }
    }
    nothing_left(checkpoint, &used).map_err(mismatch)?;
    briquette_runtime::Error::unless_finite(unusable).map_err(|error| mismatch(error.to_string()))?;

    let device = net.device();
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| match parameters.remove(&index) {
        Some(own) => node.with(own, &device),
        None => Ok(node),
    });
    let net = Net { nodes: nodes.collect::<Result<_, _>>()? };
    net.shapes()?;
    Ok(net)
}

fn take(checkpoint: &Checkpoint, node: &Node, name: &str, shape: &[usize]) -> Result<Foreign, String> {
    let Some(found) = checkpoint.tensors.get(name) else {
        return Err(match checkpoint.unread.get(name) {
            Some(what) => format!("layer '{}' needs '{name}', which is {what} that cannot be read", node.name),
            None => format!("layer '{}' needs the tensor '{name}'", node.name),
        });
    };
    if found.shape != shape {
        return Err(format!("tensor '{name}' has shape {:?}, layer '{}' takes {shape:?}", found.shape, node.name));
    }
    Ok(found.clone())
}

fn foreign_name(op: &Op, name: &'static str) -> &'static str {
    match (op, name) {
        (Op::BatchNorm(_), "gamma") => "weight",
        (Op::BatchNorm(_), "beta") => "bias",
        (Op::BatchNorm(_), "mean") => "running_mean",
        (Op::BatchNorm(_), "var") => "running_var",
        (_, name) => name,
    }
}

fn by_table(net: &Net, checkpoint: &Checkpoint, table: &Table) -> Result<Prefixes, Error> {
    let mismatch = |detail: String| Error::Mismatch { path: checkpoint.path.clone(), detail };
    let mut prefixes = Prefixes::new();
    let mut layers: BTreeMap<&str, &str> = BTreeMap::new();
    for (layer, prefix) in table {
        let index = net.index(layer)?;
        if net.nodes[index].stored().is_empty() {
            return Err(mismatch(format!("the table gives '{prefix}' to '{layer}', which has no weights")));
        }
        if let Some(other) = layers.insert(prefix, layer) {
            return Err(mismatch(format!("the table gives '{prefix}' to two layers, '{other}' and '{layer}'")));
        }
        prefixes.insert(index, prefix.clone());
    }
    match net.nodes.iter().enumerate().find(|(index, node)| !node.stored().is_empty() && !prefixes.contains_key(index)) {
        Some((_, node)) => Err(mismatch(format!("the table has no entry for layer '{}'", node.name))),
        None => Ok(prefixes),
    }
}

/// Biases of the file whose layers have none, and the batch norm that alone reads each of these layers.
fn movable(net: &Net, checkpoint: &Checkpoint, prefixes: &Prefixes) -> Vec<(String, usize)> {
    let biased = |(&index, prefix): (&usize, &String)| {
        let node = &net.nodes[index];
        let without = node.dense().is_some_and(|dense| dense.bias.is_none());
        let bias = format!("{prefix}.bias");
        let mut readers = net.nodes.iter().enumerate().filter(|(_, reader)| reader.inputs.contains(&index));
        let only = readers.next().filter(|(_, reader)| matches!(reader.op, Op::BatchNorm(_)))?.0;
        (without && readers.next().is_none() && checkpoint.tensors.contains_key(&bias)).then_some((bias, only))
    };
    prefixes.iter().filter_map(biased).collect()
}

/// Whether all of the part of the file that the used tensors are in was used, but for what optimizers and counters keep: of a dictionary at
/// the top, if all used ones are in that, or of the file. A module that was pickled whole has its children at the top.
fn nothing_left(checkpoint: &Checkpoint, used: &BTreeSet<String>) -> Result<(), String> {
    let root = |name: &str| name.split_once('.').map(|(root, _)| root.to_string()).filter(|root| checkpoint.roots.contains(root));
    let roots: BTreeSet<Option<String>> = used.iter().map(|name| root(name)).collect();
    let ours = |name: &str| !checkpoint.keeps_books(name) && (roots.len() > 1 || roots.contains(&root(name)));
    let unused = checkpoint.tensors.keys().filter(|name| !used.contains(*name)).chain(checkpoint.stray.keys());
    let left = unused.filter(|name| ours(name) && !checkpoint.unclear.contains_key(*name)).map(|name| format!("'{name}'"));
    // A mask of a tensor that is used matters, wherever in the file it lies.
    let unclear = checkpoint.unclear.iter().filter(|(name, of)| ours(name) || of.iter().any(|weight| used.contains(weight)));
    let unclear = unclear.map(|(name, of)| {
        let of: Vec<String> = of.iter().map(|weight| format!("'{weight}'")).collect();
        format!("'{name}' (a mask that may be of {})", some_of(&of))
    });
    let unread = checkpoint.unread.iter().filter(|(name, _)| ours(name)).map(|(name, what)| format!("'{name}' ({what})"));
    let left: Vec<String> = left.chain(unclear).chain(unread).collect();
    if left.is_empty() {
        return Ok(());
    }
    let mask = left.iter().any(|name| called(name));
    let masks = if mask { "; a mask is one of zeros and ones that is named and shaped after its weight" } else { "" };
    Err(format!(
        "the network has no place for {}, and would be another one without{masks}; name the right architecture, choose the part of the \
         file that is meant by `--prefix P`, or save the file without",
        some_of(&left)
    ))
}

#[cfg(test)]
mod tests;
