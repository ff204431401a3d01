//! Layers that a method leaves alone.

use briquette_core::error::{Error, Result, nearest};
use briquette_core::net::Net;

/// Indices of the nodes that `patterns` name; a trailing `*` stands for any ending.
///
/// # Errors
/// A pattern that no node bears.
pub fn excepted(net: &Net, patterns: &[String]) -> Result<Vec<usize>> {
    let hit = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    if let Some(wrong) = patterns.iter().find(|pattern| !net.nodes.iter().any(|node| hit(pattern, &node.name))) {
        let nearest = nearest(wrong, net.weighted().map(|(_, node)| node.name.as_str()));
        return Err(Error::Unknown { what: "layer", name: wrong.clone(), nearest });
    }
    let spared = |node: &usize| patterns.iter().any(|pattern| hit(pattern, &net.nodes[*node].name));
    Ok((0..net.nodes.len()).filter(spared).collect())
}
