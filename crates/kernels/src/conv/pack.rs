//! Weights in panels, and back.

use rayon::prelude::*;

use super::geometry::View;
use super::products::{packed_len, panels};
use crate::operand::Operand;

/// The weights of each group as `[panel][tap, source channels][filters of the panel]`, lanes beyond the last filter zero.
pub(super) fn pack<O: Operand>(view: &View, w: &[f32], lanes: usize) -> Vec<O::Weight> {
    let (depth, of_group) = (view.depth(O::PER), w.len() / view.groups);
    let mut packed = vec![O::Weight::default(); view.groups * packed_len(view.filters, lanes, depth)];
    let mut rest = packed.as_mut_slice();
    let mut jobs = Vec::new();
    for group in 0..view.groups {
        for panel in panels(view.filters, lanes) {
            let (to, after) = rest.split_at_mut(panel.vectors * lanes * depth);
            jobs.push((&w[group * of_group..][..of_group], panel, to));
            rest = after;
        }
    }
    let (filter, channel) = strides(view);
    jobs.into_par_iter().for_each(|(w, panel, to)| {
        let (width, places) = (panel.vectors * lanes, view.channels.div_ceil(O::PER));
        for place in 0..places {
            let source = place * O::PER;
            // Beyond an odd last channel there is a zero.
            let pair = O::PER > 1 && source + 1 < view.channels;
            for lane in 0..panel.filters {
                let taps = &w[(panel.first + lane) * filter + source * channel..];
                for tap in 0..view.area {
                    let second = if pair { taps[channel + tap] } else { 0.0 };
                    to[(view.position(tap) * places + place) * width + lane] = O::weight(taps[tap], second);
                }
            }
        }
    });
    packed
}

/// The sum of several packed tensors as weights, laid out as the network holds them. The view is one of the input.
pub(super) fn unpack(view: &View, parts: &[f32], lanes: usize, w: &mut [f32]) {
    let depth = view.depth(1);
    let each = packed_len(view.filters, lanes, depth);
    let total = each * view.groups;
    let panels = panels(view.filters, lanes);
    let mut rest = w;
    let mut jobs = Vec::new();
    for (group, panel) in (0..view.groups).flat_map(|group| panels.iter().map(move |panel| (group, panel))) {
        let (to, after) = rest.split_at_mut(panel.filters * depth);
        jobs.push((group * each + panel.first * depth, panel, to));
        rest = after;
    }
    jobs.into_par_iter().for_each(|(start, panel, to)| {
        let width = panel.vectors * lanes;
        for source in 0..view.channels {
            for tap in 0..view.area {
                let from = start + (tap * view.channels + source) * width;
                for lane in 0..panel.filters {
                    let sum = parts[from + lane..].iter().step_by(total).sum();
                    to[lane * depth + source * view.area + tap] = sum;
                }
            }
        }
    });
}

/// The distance of neighbouring filters in the network's weights, and of neighbouring channels of the source.
fn strides(view: &View) -> (usize, usize) {
    if view.turned { (view.area, view.filters * view.area) } else { (view.depth(1), view.area) }
}
