//! Masking the weights of the lowest scores.

use std::collections::BTreeMap;

use briquette_core::coding::{self, Coding, Weight};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::stored::Stored;
use briquette_core::types::{PerLayer, Ratio};
use burn::module::Module;

/// Masks all but the highest-scored weights of each tensor of rank 2 or more in any Burn module. `choose` gives the scores of a tensor's
/// weights and the share that stays, of which at least one weight is kept; tensors for which it gives none are left alone. Weights that
/// an earlier mask removed stay removed.
pub fn keep_highest<M: Module>(module: M, mut choose: impl FnMut(&Weight) -> Option<(Vec<f64>, f64)>) -> M {
    mask(module, |weight| choose(weight).map(|(scores, share)| highest(&weight.values, &scores, share)))
}

/// Masks weights of each tensor of rank 2 or more in any Burn module; `choose` marks those that stay, in the order of the tensor's values.
/// Tensors for which it gives none are left alone, and weights that an earlier mask removed stay removed.
pub fn mask<M: Module>(module: M, mut choose: impl FnMut(&Weight) -> Option<Vec<bool>>) -> M {
    let mut codings = BTreeMap::new();
    for weight in coding::weights(&module) {
        let Some(mut mask) = choose(&weight) else { continue };
        if let Some(old) = &weight.coding.mask {
            mask.iter_mut().zip(old).for_each(|(stays, old)| *stays &= old);
        }
        codings.insert(weight.path, Coding { mask: Some(mask), source: weight.coding.source });
    }
    coding::recode(module, codings)
}

/// Masks weights of a network's layers in the layout of [`Node::weight`](briquette_core::net::Node::weight); `choose` marks those that
/// stay. Layers for which it gives none are left alone, and weights that an earlier mask removed stay removed.
///
/// # Errors
/// When the network does not hold together.
pub fn mask_layers(net: Net, mut choose: impl FnMut(usize, &Stored) -> Option<Vec<bool>>) -> Result<Net> {
    let device = net.device();
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let Some(mut mask) = node.weight().and_then(|weight| choose(index, &weight)) else { return Ok(node) };
        let mut parameters = node.parameters();
        for weight in parameters.iter_mut().filter(|parameter| parameter.name == "weight") {
            if let Some(old) = &weight.coding.mask {
                mask.iter_mut().zip(old).for_each(|(stays, old)| *stays &= old);
            }
            weight.coding.mask = Some(std::mem::take(&mut mask));
        }
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}

/// Masks every weight that is zero, so that further training leaves it there.
///
/// # Errors
/// When the network does not hold together.
pub fn mask_zeros(net: Net) -> Result<Net> {
    mask_layers(net, |_, weight| {
        let values = weight.values();
        values.contains(&0.0).then(|| values.iter().map(|value| *value != 0.0).collect())
    })
}

/// Marks the share of the values that has the highest scores, at least one, the earlier of equals; zeros come last and are marked only
/// when all values are zero.
pub fn highest(values: &[f32], scores: &[f64], share: f64) -> Vec<bool> {
    let count = kept(share, values.len());
    let mut order: Vec<usize> = (0..values.len()).collect();
    let order_of = |&a: &usize, &b: &usize| {
        (values[b] != 0.0).cmp(&(values[a] != 0.0)).then(scores[b].total_cmp(&scores[a])).then(a.cmp(&b))
    };
    order.select_nth_unstable_by(count - 1, order_of);
    let first = order[..count].iter().copied().min_by(order_of);
    let mut mask = vec![false; values.len()];
    for &index in &order[..count] {
        mask[index] = Some(index) == first || values[index] != 0.0;
    }
    mask
}

/// The magnitudes of weights.
pub fn sizes(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(v.abs())).collect()
}

/// How many of `len` weights stay when this share does, at least one.
pub fn kept(share: f64, len: usize) -> usize {
    ((share * len as f64).round() as usize).clamp(1, len)
}

/// The score that `share` of all scores reach, of which at least one does.
pub fn threshold(mut scores: Vec<f64>, share: f64) -> f64 {
    let kept = ((share * scores.len() as f64).round() as usize).max(1);
    let border = scores.len().saturating_sub(kept);
    if scores.is_empty() { f64::NEG_INFINITY } else { *scores.select_nth_unstable_by(border, f64::total_cmp).1 }
}

/// Refuses shares that leave a layer, or the whole network, without weights.
///
/// # Errors
/// Names the layer.
pub fn check_shares(net: &Net, keep: Option<&PerLayer<Ratio>>, global: Option<Ratio>) -> Result<()> {
    let nothing_left = |layer: &str, share: Ratio| {
        if share.get() > 0.0 {
            Ok(())
        } else {
            Err(Error::node(layer, "keep = 0 would remove every weight; keep a share above 0"))
        }
    };
    for (index, share) in keep.map_or(Ok(Vec::new()), |keep| keep.resolve(net))? {
        nothing_left(&net.nodes[index].name, share)?;
    }
    global.map_or(Ok(()), |share| nothing_left("all layers", share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handmade::{get, set, small};

    #[test]
    fn the_highest_stay_and_zeros_come_last() {
        let values = [1.0, 0.0, 2.0, 3.0];
        assert_eq!(highest(&values, &[1.0, 9.0, 3.0, 3.0], 0.5), [false, false, true, true]);
        assert_eq!(highest(&values, &[1.0, 9.0, 3.0, 3.0], 1.0), [true, false, true, true]);
        assert_eq!(highest(&values, &[1.0, 9.0, 3.0, 3.0], 0.0), [false, false, true, false]);
        assert_eq!(highest(&[0.0, 0.0], &[1.0, 2.0], 1.0), [false, true]);
    }

    #[test]
    fn what_an_earlier_mask_removed_stays_removed() {
        let net = set(small(), "fc2", "weight", &[1.0; 15]);
        let fc2 = net.index("fc2").unwrap();
        let first = mask_layers(net, |i, _| (i == fc2).then(|| (0..15).map(|w| w >= 5).collect())).unwrap();
        let second = mask_layers(first, |i, _| (i == fc2).then(|| (0..15).map(|w| w < 10).collect())).unwrap();
        assert_eq!(get(&second, "fc2", "weight"), [[0.0; 5], [1.0; 5], [0.0; 5]].concat());
    }

    #[test]
    fn a_threshold_leaves_the_share() {
        assert_eq!(threshold(vec![4.0, 1.0, 3.0, 2.0], 0.5), 3.0);
        assert_eq!(threshold(vec![4.0, 1.0, 3.0, 2.0], 0.0), 4.0);
        assert_eq!(threshold(vec![4.0, 1.0, 3.0, 2.0], 1.0), 1.0);
        assert_eq!(threshold(Vec::new(), 0.5), f64::NEG_INFINITY);
    }
}
