//! What values can be chosen for.

use std::collections::BTreeSet;

use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::surgery::ChannelGroup;
use serde_json::Number;

use super::GreedyBudget;

/// A layer, with what is cut together with it, and the values that it takes.
pub(super) struct Unit {
    pub(super) layer: String,
    /// Each with the multiply-accumulates of the network with this layer alone changed.
    pub(super) values: Vec<(Number, u64)>,
}

/// Of each unit the value that costs the fewest multiply-accumulates, the first of equals.
pub(super) fn cheapest(units: &[Unit]) -> Vec<(&str, &Number)> {
    let cheapest = units.iter().map(|unit| (unit, unit.values.iter().min_by_key(|(_, macs)| *macs)));
    cheapest.filter_map(|(unit, value)| Some((unit.layer.as_str(), &value?.0))).collect()
}

impl GreedyBudget {
    /// The units of a network.
    pub(super) fn units(&self, net: &Net) -> Result<Vec<Unit>> {
        let (settings, sweep) = (&self.settings, &self.settings.sweep);
        let (mut units, mut together, mut refusal) = (Vec::new(), BTreeSet::new(), String::new());
        let groups = net.channel_groups()?;
        for index in settings.layers.without(&settings.except, net)? {
            let layer = &net.nodes[index].name;
            if together.contains(&index) {
                continue;
            }
            let mut values = Vec::new();
            for value in &sweep.values {
                match self.probe.with(&sweep.table([(layer.as_str(), value)]))?.plan(net.deep_clone()) {
                    Ok(planned) => {
                        let lost = narrowed(net, &planned);
                        let cut = groups.iter().filter(|group| group.producers().any(|node| lost.contains(&node)));
                        together.extend(cut.flat_map(ChannelGroup::producers));
                        values.push((value.clone(), Cost::of(&planned)?.macs()));
                    }
                    Err(failure) if !failure.refuses() => return Err(failure),
                    Err(refused) if settings.layers.given() => {
                        return Err(Error::Invalid(format!("{}: {refused}", sweep.point(layer, value))));
                    }
                    Err(refused) => refusal = format!("{}: {refused}", sweep.point(layer, value)),
                }
            }
            if !values.is_empty() {
                units.push(Unit { layer: layer.clone(), values });
            }
        }
        match units.is_empty() {
            true => Err(Error::Invalid(format!("greedy-budget: {} changes no layer; the last was {refusal}", self.probe.name()))),
            false => Ok(units),
        }
    }

    /// Whether the method takes this value for this layer alone.
    pub(super) fn takes(&self, net: &Net, layer: &str, value: &Number) -> bool {
        let with = self.probe.with(&self.settings.sweep.table([(layer, value)]));
        with.is_ok_and(|pass| pass.plan(net.deep_clone()).is_ok())
    }
}

/// The layers that lost filters.
fn narrowed(before: &Net, after: &Net) -> BTreeSet<usize> {
    let filters = |node: &Node| node.op.weight_shape().map_or(0, |shape| shape[0]);
    let left = |node: &Node| after.nodes.iter().find(|own| own.name == node.name).map(filters);
    let lost = before.own_weights().filter(|(_, node)| left(node).is_some_and(|left| left < filters(node)));
    lost.map(|(index, _)| index).collect()
}

/// Numbers from one to another: the whole ones between where all are `whole`, otherwise eighths of the way.
pub(super) fn between(from: &Number, to: &Number, whole: bool) -> Vec<Number> {
    let [Some(a), Some(b)] = [from.as_f64(), to.as_f64()] else { return Vec::new() };
    if !whole {
        let part = |eighths: i32| Number::from_f64(((a + (b - a) * f64::from(eighths) / 8.0) * 1e6).round() / 1e6);
        return (1..8).filter_map(part).collect();
    }
    let steps = (b - a).abs() as i64;
    (1..steps).map(|step| Number::from(a as i64 + step * (b - a).signum() as i64)).collect()
}
