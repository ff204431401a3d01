//! Masking the weights of the lowest scores.

use std::collections::BTreeMap;

use briquette_core::coding::{self, Source, Weight};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::rank::{self, Scores};
use briquette_core::stored::Stored;
use briquette_core::types::{PerLayer, Ratio};
use burn::module::Module;

use super::blocks::Blocks;
use super::refuse;

/// Masks all but the highest-scored weights of each tensor of rank 2 or more in any Burn module. `choose` gives the scores of a tensor's
/// weights and the share that stays, of which at least one weight is kept; tensors for which it gives none are left alone. Weights that
/// an earlier mask removed stay removed.
pub fn keep_highest<M, T>(module: M, mut choose: impl FnMut(&Weight) -> Option<(Vec<T>, f64)>) -> M
where
    M: Module,
    T: Copy + Into<f64>,
{
    mask(module, |weight| choose(weight).map(|(scores, share)| highest(scores, weight.coding.mask.as_deref(), share)))
}

/// Masks weights of each tensor of rank 2 or more in any Burn module; `choose` marks those that stay, in the order of the tensor's values.
/// Tensors for which it gives none are left alone, weights that an earlier mask removed stay removed, and those that stay keep their values.
pub fn mask<M: Module>(module: M, mut choose: impl FnMut(&Weight) -> Option<Vec<bool>>) -> M {
    let mut codings = BTreeMap::new();
    for weight in coding::weights(&module) {
        let Some(stays) = choose(&weight) else { continue };
        codings.insert(weight.path, weight.coding.masked(stays, &weight.values));
    }
    coding::recode(module, codings)
}

/// Masks all but a share of the weights of all tensors of rank 2 or more in any Burn module, those of the highest scores wherever they are,
/// in whole blocks of so many input channels. Each tensor keeps at least one block, and weights that an earlier mask removed stay removed;
/// tensors for which `score` gives none take no part.
pub fn keep_highest_of_all<M, T>(module: M, share: f64, block: usize, score: impl Fn(&Weight) -> Option<Vec<T>>) -> M
where
    M: Module,
    T: Copy + Into<f64> + From<f32>,
{
    let scored = |weight: Weight| score(&weight).map(|scores| (weight, scores));
    let mut all: Vec<(Weight, Vec<T>)> = coding::weights(&module).into_iter().filter_map(scored).collect();
    all.sort_by_key(|(weight, _)| weight.node());
    let blocks = |weight: &Weight| (block > 1).then(|| Blocks::along_channels(weight, block));
    let candidates = |(weight, scores): &mut (Weight, Vec<T>)| match blocks(weight) {
        None => (std::mem::take(scores), weight.coding.mask.clone()),
        Some(blocks) => {
            let (means, open) = blocks.means(weight, scores);
            (means.into_iter().map(T::from).collect(), Some(open))
        }
    };
    let (scores, open): (Vec<Vec<T>>, Vec<Option<Vec<bool>>>) = all.iter_mut().map(candidates).unzip();
    let count = kept(share, scores.iter().map(Vec::len).sum());
    let groups = scores.into_iter().zip(&open).map(|(scores, open)| Scores { scores, open: open.as_deref() });
    let chosen = rank::highest_of_all(&groups.collect::<Vec<_>>(), count);
    let mask = |((weight, _), chosen): (&(Weight, Vec<T>), Vec<bool>)| match blocks(weight) {
        None => (weight.path.clone(), chosen),
        Some(blocks) => (weight.path.clone(), blocks.spread(weight, &chosen)),
    };
    let mut masks: BTreeMap<String, Vec<bool>> = all.iter().zip(chosen).map(mask).collect();
    drop(all);
    self::mask(module, |weight| masks.remove(&weight.path))
}

/// Marks the share of a tensor's blocks of so many input channels that has the highest mean scores, at least one; see [`highest`].
pub fn highest_blocks<T: Copy + Into<f64>>(weight: &Weight, scores: Vec<T>, block: usize, share: f64) -> Vec<bool> {
    if block <= 1 {
        return highest(scores, weight.coding.mask.as_deref(), share);
    }
    let blocks = Blocks::along_channels(weight, block);
    let (means, open) = blocks.means(weight, &scores);
    blocks.spread(weight, &highest(means, Some(&open), share))
}

/// Masks weights of a network's layers in the layout of [`Node::weight`](briquette_core::net::Node::weight); `choose` marks those that
/// stay. Layers for which it gives none are left alone, weights that an earlier mask removed stay removed, and those that stay keep their
/// values.
///
/// # Errors
/// When the network does not hold together.
pub fn mask_layers(net: Net, mut choose: impl FnMut(usize, &Stored) -> Option<Vec<bool>>) -> Result<Net> {
    let device = net.device();
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let Some(stays) = node.weight().and_then(|weight| choose(index, &weight)) else { return Ok(node) };
        let mut parameters = node.parameters();
        if let Some(weight) = parameters.iter_mut().find(|parameter| parameter.name == "weight") {
            weight.mask(stays);
        }
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}

/// Masks every weight that is zero in layers that `choose` takes, so that further training leaves it there: for methods whose training
/// leaves exact zeros. Weights that earlier passes share or put on a grid are left alone, for a zero of theirs is one of their values.
///
/// # Errors
/// When the network does not hold together.
pub fn mask_zeros(net: Net, choose: impl Fn(usize) -> bool) -> Result<Net> {
    mask_layers(net, |index, weight| {
        let values = weight.values();
        let trained = choose(index) && weight.coding.source == Source::Free && values.contains(&0.0);
        trained.then(|| values.iter().map(|value| *value != 0.0).collect())
    })
}

/// Marks the share of a tensor's weights that has the highest scores, at least one, the earlier of equals; those that its mask removed are
/// never among them.
pub fn highest<T: Copy + Into<f64>>(scores: Vec<T>, mask: Option<&[bool]>, share: f64) -> Vec<bool> {
    let count = kept(share, scores.len());
    rank::highest(scores, mask, count)
}

/// The magnitudes of weights.
pub fn sizes(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| v.abs()).collect()
}

/// How many of `len` weights stay when this share does, at least one if there are any.
pub fn kept(share: f64, len: usize) -> usize {
    ((share * len as f64).round() as usize).max(1).min(len)
}

/// Refuses shares that leave a layer, or the whole network, without weights, and those of a layer that has none.
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
    keep.map_or(Ok(()), |keep| refuse::weightless(net, keep))?;
    for (index, share) in keep.map_or(Ok(Vec::new()), |keep| keep.resolve(net))? {
        nothing_left(&net.nodes[index].name, share)?;
    }
    global.map_or(Ok(()), |share| nothing_left("all layers", share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_handmade::{get, refusal, run, set, small};
    use briquette_pruning_sharing::pruning::magnitude::Magnitude;
    use briquette_pruning_sharing::quantization::{clipped, kmeans_sharing, ternary};

    #[test]
    fn the_share_stays_and_what_is_masked_never_does() {
        let mask = [true, false, true, true];
        assert_eq!(highest(vec![1.0, 9.0, 3.0, 3.0], Some(&mask), 0.5), [false, false, true, true]);
        assert_eq!(highest(vec![1.0, 9.0, 3.0, 3.0], Some(&mask), 1.0), mask);
        assert_eq!(highest(vec![1.0, 9.0, 3.0, 3.0], Some(&mask), 0.0), [false, false, true, false]);
        assert_eq!(highest(vec![1.0, 2.0], None, 0.1), [false, true]);
    }

    #[test]
    fn only_zeros_of_a_method_s_own_training_become_a_mask() {
        let zeros: Vec<f32> = (0..15).map(|i| if i % 3 == 0 { 0.0 } else { 0.3 }).collect();
        let net = set(small(), "fc2", "weight", &zeros);
        let fc2 = net.index("fc2").unwrap();
        let mask = |net: Net, choose: bool| mask_zeros(net, |_| choose).unwrap().nodes[fc2].weight().unwrap().coding.mask;
        assert_eq!(mask(net.deep_clone(), true), Some(zeros.iter().map(|w| *w != 0.0).collect()));
        assert_eq!(mask(net.deep_clone(), false), None);
        let shared = kmeans_sharing::share(net, |_| Some(2), Default::default());
        assert_eq!(mask(shared, true), None);
    }

    #[test]
    fn what_an_earlier_mask_removed_stays_removed() {
        let net = set(small(), "fc2", "weight", &[1.0; 15]);
        let fc2 = net.index("fc2").unwrap();
        let first = mask_layers(net, |i, _| (i == fc2).then(|| (0..15).map(|w| w >= 5).collect())).unwrap();
        let second = mask_layers(first, |i, _| (i == fc2).then(|| (0..15).map(|w| w < 10).collect())).unwrap();
        assert_eq!(get(&second, "fc2", "weight"), [[0.0; 5], [1.0; 5], [0.0; 5]].concat());
    }

    /// Nets whose second layer has weights that follow from all of them: from the largest, and from the mean.
    fn relative() -> Vec<Net> {
        let learned = serde_json::json!({ "scales": "learned", "threshold": 0.3, "train": { "epochs": 0 } });
        vec![
            clipped::squash(small(), |_| Some(3)),
            ternary::ternarize(small(), |_| Some(ternary::Per::Channel)),
            run::<ternary::Ternary>(small(), learned).unwrap(),
        ]
    }

    #[test]
    fn what_stays_keeps_its_value_when_the_largest_weight_goes() {
        for net in relative() {
            let conv2 = net.index("conv2").unwrap();
            let (weight, before) = (net.nodes[conv2].weight().unwrap(), get(&net, "conv2", "weight"));
            let largest = |i: usize| weight.base[i].abs() >= 0.5 * weight.base.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
            let stays: Vec<bool> = (0..weight.base.len()).map(|i| !largest(i)).collect();
            let expected: Vec<f32> = before.iter().zip(&stays).map(|(w, stays)| if *stays { *w } else { 0.0 }).collect();
            assert!(expected.iter().any(|w| *w != 0.0) && expected != before);
            let by_layer = mask_layers(net.deep_clone(), |i, _| (i == conv2).then(|| stays.clone())).unwrap();
            let by_tensor = mask(net.deep_clone(), |weight| (weight.node() == Some(conv2)).then(|| stays.clone()));
            for masked in [by_layer, by_tensor] {
                assert_eq!(get(&masked, "conv2", "weight"), expected);
                // What loses nothing goes on as it is.
                let again = mask(masked.deep_clone(), |weight| Some(vec![true; weight.values.len()]));
                let coding = |net: &Net, layer: &str| net.nodes[net.index(layer).unwrap()].weight().unwrap().coding.source;
                for layer in ["conv1", "conv2", "fc1", "fc2"] {
                    assert_eq!(coding(&again, layer), coding(&masked, layer), "{layer}");
                }
            }
        }
    }

    #[test]
    fn of_no_weights_none_stay_and_a_network_of_which_none_are_left_is_refused() {
        assert_eq!((kept(0.5, 0), kept(0.0, 3), kept(1.0, 3)), (0, 1, 3));
        let untouched = keep_highest_of_all(small(), 0.5, 1, |_| None::<Vec<f32>>);
        assert!(untouched.to_state() == small().to_state());
        for how in ["keep", "global", "quality"] {
            let none = refusal::<Magnitude>(small(), serde_json::json!({ how: 0.5, "except": ["*"] }));
            assert_eq!(none, "`except` leaves no layer; shorten it", "{how}");
        }
    }
}
