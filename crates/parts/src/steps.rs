//! Weights on grids, and the grids' steps, while they are trained.

use std::collections::{BTreeSet, HashMap};

use briquette_core::coding::{Weight, adjust, weights};
use briquette_core::net::Net;
use briquette_core::training::Projection;

use super::observers::LEAST_STEP;
use briquette_core::values::{plain, replace};

/// Keeps every step and clip value positive: a rate that is too high for a small one would carry it past zero, where there is no grid.
#[derive(Debug, Default)]
pub struct Positive;

impl Projection for Positive {
    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        let net = adjust(net, |_, base, steps| (base, steps.clamp_min(LEAST_STEP)));
        let quantizers = net.nodes.iter().filter_map(|node| node.op.quantize());
        let steps = quantizers.map(|own| (own.scale.id, plain(own.scale.val()).clamp_min(LEAST_STEP)));
        let steps: HashMap<_, _> = steps.collect();
        replace(net, steps)
    }
}

/// Paths of the weights that are `wanted`: [`adjust`] shows those of all passes.
pub fn paths(net: &Net, wanted: impl Fn(&Weight) -> bool) -> BTreeSet<String> {
    weights(net).into_iter().filter(wanted).map(|weight| weight.path).collect()
}
