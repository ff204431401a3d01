//! Batch norms within a chain, under which the network computes at first what it computed without them.

use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::{Net, Op};
use briquette_core::training::renew;
use burn::nn::{BatchNorm, BatchNormConfig};
use serde::Deserialize;

use crate::chain::{Layer, Link};

/// Where batch norms come. Of a norm with the statistics `m`, `v` of what it reads, `gamma = sqrt(v + epsilon)` and `beta = m`, so that the
/// function is unchanged.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Nowhere.
    #[default]
    None,
    /// Behind the last link, unless a batch norm reads it already.
    After,
    /// Behind every link but the last.
    Between,
}

/// The network with the batch norms of a layer's chain, of which nothing is known.
pub(crate) fn planned(mut net: Net, layer: &str, links: &[Link], norm: Norm) -> Result<Net> {
    let last = links.len().saturating_sub(1);
    let behind = |at: usize| match norm {
        Norm::None => false,
        Norm::After => at == last,
        Norm::Between => at < last,
    };
    for link in links.iter().enumerate().filter(|(at, _)| behind(*at)).map(|(_, link)| link) {
        let name = format!("{layer}.{}", link.name);
        let index = net.index(&name)?;
        let read = net.nodes.iter().any(|node| node.inputs.contains(&index) && matches!(node.op, Op::BatchNorm(_)));
        if read && norm == Norm::After {
            continue;
        }
        let channels = net.shapes()?[index][0];
        let new: BatchNorm = BatchNormConfig::new(channels).init(&net.device());
        let link = net.nodes[index].op.clone();
        net = net.rewrite(index, vec![(name.clone(), link), (format!("{name}.norm"), Op::BatchNorm(new))])?;
    }
    Ok(net)
}

/// What batch norms in a chain hold beside its weights, statistics included.
pub(crate) fn values(layer: &Layer, links: &[Link], norm: Norm) -> u64 {
    let last = links.len().saturating_sub(1);
    let channels = |links: &[Link]| links.iter().map(|link| link.shape[0]).sum::<usize>() * layer.groups;
    4 * match norm {
        Norm::None => 0,
        Norm::After => channels(&links[last.min(links.len())..]),
        Norm::Between => channels(&links[..last]),
    } as u64
}

/// The network with the batch norms of these layers' chains, with the statistics of what they read from training images.
pub(crate) fn placed(mut net: Net, chains: &[(&str, &[Link])], norm: Norm, cx: &mut Context<'_>) -> Result<Net> {
    let before: Vec<String> = net.nodes.iter().map(|node| node.name.clone()).collect();
    for (layer, links) in chains {
        net = planned(net, layer, links, norm)?;
    }
    if net.nodes.len() == before.len() {
        return Ok(net);
    }
    let device = net.device();
    let measured = renew(net.deep_clone(), cx)?;
    let nodes = net.nodes.into_iter().zip(measured.nodes).map(|(node, measured)| {
        let Op::BatchNorm(norm) = &node.op else { return Ok(node) };
        if before.contains(&node.name) {
            return Ok(node);
        }
        let epsilon = norm.epsilon;
        let mut parameters = measured.parameters();
        let of = |name: &str| parameters.iter().find(|own| own.name == name).map_or(Vec::new(), |own| own.base.clone());
        let (mean, variance) = (of("mean"), of("var"));
        for parameter in &mut parameters {
            match parameter.name {
                "gamma" => parameter.base = variance.iter().map(|v| (f64::from(*v) + epsilon).sqrt() as f32).collect(),
                "beta" => parameter.base.clone_from(&mean),
                _ => {}
            }
        }
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}
