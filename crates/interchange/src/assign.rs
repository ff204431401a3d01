//! Which tensor of a checkpoint belongs to which layer.
//!
//! Checkpoints name their tensors as the original program did. Without a table, the file's modules are put in natural order of their names
//! (`layer2` before `layer10`) and dealt out to the network's layers in order of execution, kind by kind: convolutions, fully connected
//! layers, batch norms. Every shape must fit, and nothing may be left over.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use briquette_core::coding::Coding;
use briquette_core::net::{Net, Op};
use briquette_core::stored::Stored;

use crate::{Checkpoint, Error, Foreign};

/// Layer name to the prefix of its tensors' names in the file: `{"conv1" = "module.conv1"}`.
pub type Table = BTreeMap<String, String>;

/// The network with the checkpoint's weights.
///
/// # Errors
/// A layer without weights, weights without a layer, shapes that differ, a table that names what is not there.
pub fn assign(net: Net, checkpoint: &Checkpoint, table: Option<&Table>) -> Result<Net, Error> {
    let prefixes = match table {
        Some(table) => by_table(&net, checkpoint, table)?,
        None => by_order(&net, checkpoint)?,
    };
    let device = net.device();
    let mut nodes = Vec::with_capacity(net.nodes.len());
    for (index, node) in net.nodes.into_iter().enumerate() {
        let Some(prefix) = prefixes.get(&index) else {
            nodes.push(node);
            continue;
        };
        let mut parameters = Vec::new();
        for stored in node.parameters() {
            let name = format!("{prefix}.{}", foreign_name(&node.op, stored.name));
            let found = checkpoint.tensors.get(&name);
            let found = found.ok_or_else(|| mismatch(checkpoint, format!("layer '{}' needs the tensor '{name}'", node.name)))?;
            if found.shape != stored.shape {
                let (has, wants) = (&found.shape, &stored.shape);
                let detail = format!("tensor '{name}' has shape {has:?}, layer '{}' takes {wants:?}", node.name);
                return Err(mismatch(checkpoint, detail));
            }
            let Foreign { shape, values } = found.clone();
            parameters.push(Stored { name: stored.name, shape, base: values, coding: Coding::default() });
        }
        nodes.push(node.with(parameters, &device)?);
    }
    let net = Net { nodes };
    net.shapes()?;
    Ok(net)
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

fn by_table(net: &Net, checkpoint: &Checkpoint, table: &Table) -> Result<BTreeMap<usize, String>, Error> {
    let mut prefixes = BTreeMap::new();
    for (layer, prefix) in table {
        prefixes.insert(net.index(layer)?, prefix.clone());
    }
    match net.nodes.iter().enumerate().find(|(index, node)| !node.stored().is_empty() && !prefixes.contains_key(index)) {
        Some((_, node)) => Err(mismatch(checkpoint, format!("the table has no entry for layer '{}'", node.name))),
        None => Ok(prefixes),
    }
}

const CONVOLUTION: &str = "convolution";
const FULLY_CONNECTED: &str = "fully connected layer";
const BATCH_NORM: &str = "batch norm";

fn by_order(net: &Net, checkpoint: &Checkpoint) -> Result<BTreeMap<usize, String>, Error> {
    let mut prefixes = BTreeMap::new();
    let kind_of = |op: &Op| match op {
        Op::Conv2d(_) => Some(CONVOLUTION),
        Op::Linear(_) => Some(FULLY_CONNECTED),
        Op::BatchNorm(_) => Some(BATCH_NORM),
        Op::Structured(_) | Op::Quantize(_) | Op::Custom(_) | Op::Fixed(_) => None,
    };
    for kind in [CONVOLUTION, FULLY_CONNECTED, BATCH_NORM] {
        let layers: Vec<usize> = (0..net.nodes.len()).filter(|&index| kind_of(&net.nodes[index].op) == Some(kind)).collect();
        let modules = modules(checkpoint, kind);
        if layers.len() != modules.len() {
            let detail = format!(
                "holds {} module(s) of the kind '{kind}', the network has {}; name the right `arch`, or give a table",
                modules.len(),
                layers.len()
            );
            return Err(mismatch(checkpoint, detail));
        }
        prefixes.extend(layers.into_iter().zip(modules));
    }
    Ok(prefixes)
}

/// Prefixes of the file's modules of one kind, in natural order.
fn modules(checkpoint: &Checkpoint, kind: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (name, tensor) in &checkpoint.tensors {
        let Some((prefix, "weight")) = name.rsplit_once('.') else { continue };
        let this = match tensor.shape.len() {
            4 => CONVOLUTION,
            2 => FULLY_CONNECTED,
            1 if checkpoint.tensors.contains_key(&format!("{prefix}.running_mean")) => BATCH_NORM,
            _ => continue,
        };
        if this == kind {
            found.insert(prefix.to_string());
        }
    }
    let mut modules: Vec<String> = found.into_iter().collect();
    modules.sort_by(|a, b| natural(a, b));
    modules
}

/// Compares names part by part; parts that are numbers compare as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let split = |name: &str| -> Vec<(String, u64)> {
        let part = |part: &str| {
            let digits = part.len() - part.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            let (word, number) = part.split_at(part.len() - digits);
            (word.to_string(), number.parse().unwrap_or(0))
        };
        name.split('.').map(part).collect()
    };
    split(a).cmp(&split(b))
}

fn mismatch(checkpoint: &Checkpoint, detail: String) -> Error {
    Error::Mismatch { path: checkpoint.path.clone(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["layer10.conv1", "layer2.conv1", "conv1", "features.3", "features.12", "layer2.conv2"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["conv1", "features.3", "features.12", "layer2.conv1", "layer2.conv2", "layer10.conv1"]);
    }
}
