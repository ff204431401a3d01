//! Merging of similar neurons without data.
//!
//! In a fully connected layer that feeds another through element-wise functions alone, neuron `j` is removed and its outgoing weights `a_j`
//! are added to those of neuron `i`: exact if both have the same incoming weights `W` (bias included), and otherwise at the expected cost
//! `s_ij = <a_j^2> ||W_i - W_j||^2`, where `<a_j^2>` is the mean square of the outgoing weights. Pairs of the lowest cost merge first, and
//! each merger changes the outgoing weights that later costs are made of.
//!
//! Srinivas, Babu. "Data-free Parameter Pruning for Deep Neural Networks". BMVC 2015. arXiv:1507.06149.
//! Differs from the paper: how many neurons go is set by `ratio` or `budget` instead of read off the curve of costs.
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::pruning::data_free::DataFree;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: DataFree = serde_json::from_value(serde_json::json!({ "ratio": { "fc1": 0.5 } }))?;
//! let cut = method.plan(net)?;
//! assert_eq!(cut.weighted().filter_map(|(_, node)| Some(node.weight()?.shape[0])).collect::<Vec<_>>(), [15, 10, 10]);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::Layer;
use briquette_core::coding::Source;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::surgery::ChannelGroup;
use serde::Deserialize;

use briquette_parts::channels::{Channels, only_reader, pairs};

/// Merges the most similar neurons of fully connected layers, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DataFree {
    /// Which layers, how many of their neurons, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
}

impl Method for DataFree {
    const NAME: &'static str = "data-free";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Srinivas, Babu, BMVC 2015, arXiv:1507.06149";
    const EXAMPLE: &'static str = "ratio = 0.5";
}

impl Pass for DataFree {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.plan(net)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let why = "is no fully connected layer that feeds another through activations alone; use filter-l1 for it";
        let groups = self.channels.groups_where(&net, |group| reader(&net, group).is_some(), why)?;
        if groups.is_empty() {
            let detail =
                "data-free: no fully connected layer feeds another through activations alone; use filter-l1 for other layers";
            return Err(Error::Invalid(detail.into()));
        }
        let mergers = groups.iter().map(|group| mergers(&net, group)).collect::<Result<Vec<_>>>()?;
        let scores: Vec<Vec<f64>> = groups.iter().zip(&mergers).map(|(group, mergers)| ranks(group, mergers)).collect();
        let keeps = self.channels.keeps(Self::NAME, &net, &groups, &scores)?;
        let mut merged = net.deep_clone();
        for ((group, keep), mergers) in groups.iter().zip(&keeps).zip(&mergers) {
            merged = add_columns(merged, group, &mergers[..(group.len() - keep.count()).min(mergers.len())])?;
        }
        merged.keep(&pairs(&groups, keeps))
    }
}

/// Two neurons of a layer: the first is removed, the second takes over its outgoing weights.
type Merger = (usize, usize);

/// The fully connected layer that alone reads the group's one layer, itself fully connected, through element-wise functions.
fn reader(net: &Net, group: &ChannelGroup) -> Option<usize> {
    let passes = |layer: &Layer| matches!(layer, Layer::Activation(_) | Layer::Dropout(_));
    let linear = |node: usize| matches!(net.nodes[node].op, Op::Linear(_));
    only_reader(net, group, passes).filter(|reader| linear(*reader) && group.producers().all(linear))
}

/// All mergers of a group, the cheapest first, until one neuron is left.
fn mergers(net: &Net, group: &ChannelGroup) -> Result<Vec<Merger>> {
    let Some(reader) = reader(net, group) else { return Ok(Vec::new()) };
    let incoming = rows(net, group.filters(0)[0].0);
    let outgoing = net.nodes[reader].weight();
    let Some(outgoing) = outgoing.filter(|weight| weight.coding.source == Source::Free) else {
        let detail = "shares its weights, which merging would change; put data-free before the pass that shares them";
        return Err(Error::node(&net.nodes[reader].name, detail));
    };
    let values = outgoing.values();
    let column = |j: usize| values.iter().skip(j).step_by(incoming.len()).map(|v| f64::from(*v)).collect();
    Ok(cheapest(&incoming, (0..incoming.len()).map(column).collect()))
}

/// The incoming weights of each neuron of a layer, its bias last.
fn rows(net: &Net, layer: usize) -> Vec<Vec<f64>> {
    let parameters: BTreeMap<&str, Vec<f32>> =
        net.nodes[layer].parameters().into_iter().map(|parameter| (parameter.name, parameter.values())).collect();
    let bias = parameters.get("bias");
    let neurons = net.nodes[layer].op.weight_shape().map_or(0, |shape| shape[0]);
    let weights = &parameters["weight"];
    let row = |(j, row): (usize, &[f32])| row.iter().chain(bias.map(|bias| &bias[j])).map(|v| f64::from(*v)).collect();
    weights.chunks_exact(weights.len() / neurons).enumerate().map(row).collect()
}

/// The order in which neurons merge, given the incoming and the outgoing weights of each. Only the outgoing ones change, so every neuron
/// keeps its nearest other one until that is removed.
fn cheapest(incoming: &[Vec<f64>], mut outgoing: Vec<Vec<f64>>) -> Vec<Merger> {
    let distance = |i: usize, j: usize| -> f64 { incoming[i].iter().zip(&incoming[j]).map(|(a, b)| (a - b).powi(2)).sum() };
    let nearest = |alive: &[usize], j: usize| {
        let others = alive.iter().filter(|i| **i != j).map(|&i| (distance(i, j), i));
        others.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, j))
    };
    let mut alive: Vec<usize> = (0..incoming.len()).collect();
    let mut near: Vec<(f64, usize)> = alive.iter().map(|&j| nearest(&alive, j)).collect();
    let mut mergers = Vec::new();
    while alive.len() > 1 {
        let cost = |j: usize| near[j].0 * outgoing[j].iter().map(|a| a * a).sum::<f64>() / outgoing[j].len() as f64;
        let Some(removed) = alive.iter().copied().min_by(|&a, &b| cost(a).total_cmp(&cost(b))) else { break };
        let into = near[removed].1;
        let gone = std::mem::take(&mut outgoing[removed]);
        outgoing[into].iter_mut().zip(gone).for_each(|(sum, a)| *sum += a);
        alive.retain(|j| *j != removed);
        for j in alive.iter().copied().filter(|&j| near[j].1 == removed).collect::<Vec<_>>() {
            near[j] = nearest(&alive, j);
        }
        mergers.push((removed, into));
    }
    mergers
}

/// A score by which the units go in the order of the mergers.
fn ranks(group: &ChannelGroup, mergers: &[Merger]) -> Vec<f64> {
    let rank = |neuron: usize| mergers.iter().position(|(removed, _)| *removed == neuron).unwrap_or(mergers.len());
    (0..group.len()).map(|unit| rank(group.filters(unit)[0].1) as f64).collect()
}

/// Adds the outgoing weights of the removed neurons to those of the ones they merge into; where a mask hides only the latter, it opens.
fn add_columns(mut net: Net, group: &ChannelGroup, mergers: &[Merger]) -> Result<Net> {
    let Some(reader) = reader(&net, group) else { return Ok(net) };
    let device = net.device();
    let node = net.nodes.remove(reader);
    let mut parameters = node.parameters();
    for weight in parameters.iter_mut().filter(|parameter| parameter.name == "weight") {
        weight.base = weight.values();
        for row in 0..weight.shape[0] {
            let at = |neuron: usize| row * weight.shape[1] + neuron;
            for &(removed, into) in mergers {
                weight.base[at(into)] += weight.base[at(removed)];
                if let Some(mask) = &mut weight.coding.mask {
                    mask[at(into)] |= mask[at(removed)];
                }
            }
        }
    }
    net.nodes.insert(reader, node.with(parameters, &device)?);
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_handmade::{get, outputs, refusal, run, set, small};
    use briquette_parts::masks::mask_layers;

    /// Neurons 0, 2 and 3 of `fc1` have the same incoming weights and biases.
    fn duplicated() -> Net {
        let mut rows: Vec<Vec<f32>> = get(&small(), "fc1", "weight").chunks_exact(12).map(<[f32]>::to_vec).collect();
        rows[2] = rows[0].clone();
        rows[3] = rows[0].clone();
        set(set(small(), "fc1", "weight", &rows.concat()), "fc1", "bias", &[0.2, 0.1, 0.2, 0.2, 0.3])
    }

    fn agree(a: &Net, b: &Net) -> bool {
        outputs(a).iter().zip(outputs(b)).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    #[test]
    fn duplicated_neurons_merge_with_no_change_of_the_output() {
        let merged = |share: f64| run::<DataFree>(duplicated(), serde_json::json!({ "ratio": share })).unwrap();
        assert_eq!(get(&merged(0.4), "fc1", "weight").len(), 3 * 12);
        assert_eq!(get(&merged(0.4), "fc2", "weight").len(), 3 * 3);
        assert!(agree(&duplicated(), &merged(0.2)) && agree(&duplicated(), &merged(0.4)));
        assert!(!agree(&duplicated(), &merged(0.6)), "the third merger is not exact");
    }

    #[test]
    fn a_mask_on_the_outgoing_weights_opens_for_what_is_added() {
        let net = duplicated();
        let fc2 = net.index("fc2").unwrap();
        let masked = mask_layers(net, |i, _| (i == fc2).then(|| (0..15).map(|w| w % 5 != 0 && w != 7).collect())).unwrap();
        let merged = run::<DataFree>(masked.deep_clone(), serde_json::json!({ "ratio": 0.4 })).unwrap();
        assert!(agree(&masked, &merged));
    }

    #[test]
    fn the_cheapest_pair_merges_first_and_costs_follow_the_mergers() {
        // Squared distances to the nearest: 1 for neurons 0 and 1, 4 for neuron 2.
        let incoming = vec![vec![0.0], vec![1.0], vec![3.0]];
        // Costs 4, 9 and 1; then 4 for neuron 0 and 3.5^2 for neuron 1.
        assert_eq!(cheapest(&incoming, vec![vec![2.0], vec![3.0], vec![0.5]]), [(2, 1), (0, 1)]);
        // Costs 9, 9.61 and 4: neuron 1 takes over -1 and costs 4.41 < 9 from then on.
        assert_eq!(cheapest(&incoming, vec![vec![3.0], vec![3.1], vec![-1.0]]), [(2, 1), (1, 0)]);
        // Costs 1, 4 and 16: the nearest neuron of 1 is removed, so that its distance to 2 counts.
        assert_eq!(cheapest(&incoming, vec![vec![1.0], vec![2.0], vec![2.0]]), [(0, 1), (2, 1)]);
    }

    #[test]
    fn layers_that_cannot_be_merged_are_refused() {
        let conv = refusal::<DataFree>(small(), serde_json::json!({ "ratio": { "conv1": 0.5 } }));
        assert!(conv.starts_with("node 'conv1': its channels cannot be cut"), "{conv}");
        let none = refusal::<DataFree>(small(), serde_json::json!({ "ratio": 0.5, "except": ["fc1"] }));
        assert!(none.starts_with("data-free: no fully connected layer feeds another"), "{none}");
        let shared =
            crate::quantization::kmeans_sharing::share(small(), |_| Some(2), crate::quantization::kmeans_sharing::Init::Linear);
        let shared = refusal::<DataFree>(shared, serde_json::json!({ "ratio": 0.5 }));
        assert!(shared.starts_with("node 'fc2': shares its weights"), "{shared}");
        let layer = refusal::<DataFree>(small(), serde_json::json!({ "ratio": 0.5, "layers": ["conv1", "fc1"] }));
        assert!(layer.starts_with("node 'conv1': is no fully connected layer that feeds another"), "{layer}");
        let all = refusal::<DataFree>(small(), serde_json::json!({ "ratio": 1.0 }));
        assert!(all.starts_with("node 'fc1': would keep none of its 5 channels"), "{all}");
    }
}
