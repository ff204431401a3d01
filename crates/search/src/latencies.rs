//! How long networks take in the engine, by a table of their layers.

use briquette_core::coding::{Coding, Source};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op};
use briquette_core::points::Points;
use briquette_parts::clock;

/// Milliseconds of layers, each measured once for its settings, shapes and codes, and kept with the run's states: a run that goes on finds what it has measured, and
/// chooses as it would have. Layers alone are scaled so that together they take what the whole network takes.
pub(crate) struct Latencies {
    points: Points<f64>,
    scale: f64,
    /// Of the network at the start.
    pub(crate) whole: f64,
}

impl Latencies {
    /// For networks that are made of this one.
    pub(crate) fn of(net: &Net, cx: &mut Context<'_>) -> Result<Self> {
        let mut latencies = Self { points: Points::load("latencies", cx.host)?, scale: 1.0, whole: 0.0 };
        latencies.whole = latencies.measured("the network", cx, || Ok(net.deep_clone()))?;
        latencies.scale = latencies.whole / latencies.sum(net, cx)?;
        Ok(latencies)
    }

    /// Of a network.
    pub(crate) fn sum(&mut self, net: &Net, cx: &mut Context<'_>) -> Result<f64> {
        let weighted: Vec<usize> = net.weighted().map(|(index, _)| index).collect();
        weighted.into_iter().map(|index| self.layer(net, index, cx)).sum()
    }

    /// Of one layer of a network.
    pub(crate) fn layer(&mut self, net: &Net, index: usize, cx: &mut Context<'_>) -> Result<f64> {
        let node = &net.nodes[index];
        let before = &net.nodes[node.inputs[0]];
        let shape = net.shapes()?.swap_remove(node.inputs[0]);
        let quantizer = before.op.quantize().map(|quantize| quantize.levels);
        let (weights, coding) = node.weight().map_or((node.op.layer().kind().name().into(), String::new()), |weight| {
            (format!("{:?}", weight.shape), coded(&weight.coding))
        });
        let read = quantizer.map_or(String::new(), |levels| format!(" of {levels} levels"));
        let name = format!("{:?} {weights}{coding} on {shape:?}{read}", node.op.layer());
        let alone = || {
            let input = match shape[..] {
                [channels, height, width] => [channels, height, width],
                _ => [shape.iter().product(), 1, 1],
            };
            let operations: Vec<Op> = quantizer.map(|_| before.op.clone()).into_iter().chain([node.op.clone()]).collect();
            Ok(clock::alone(input, shape.len() == 1, operations))
        };
        Ok(self.scale * self.measured(&name, cx, alone)?)
    }

    fn measured(&mut self, name: &str, cx: &mut Context<'_>, net: impl FnOnce() -> Result<Net>) -> Result<f64> {
        let turns = |_: &mut Context<'_>| Ok(clock::turns(&[net()?])?[0]);
        self.points.get(name, cx, turns)?.map_err(Error::Invalid)
    }
}

/// What the engine's choice of products depends on.
fn coded(coding: &Coding) -> String {
    let source = match &coding.source {
        Source::Free => String::new(),
        Source::Codebook { centroids, .. } => format!(" from {} values", centroids.len()),
        Source::Grid { grid, .. } => format!(" on {} levels", grid.levels),
        Source::Ternary { .. } => " ternary".into(),
        Source::Shared { values, .. } => format!(" of {} base values", values.len()),
        Source::Product { .. } => " by products".into(),
    };
    let kept = coding.mask.as_ref().map(|mask| mask.iter().filter(|stays| **stays).count());
    source + &kept.map_or(String::new(), |kept| format!(", {kept} left"))
}
