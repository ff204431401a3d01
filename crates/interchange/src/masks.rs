//! Masks that a checkpoint holds beside its weights.
//!
//! PyTorch's pruning stores `weight_orig` and `weight_mask`, others `mask` or `weight_mask` beside `weight`, or all masks under a name of
//! their own (`masks.conv1.weight`).

use std::collections::BTreeMap;

use crate::Foreign;
use crate::names::below;

/// Takes the masks out of the tensors: what is left of a weight is multiplied by its mask, `weight_orig` becomes `weight`. The masks, by
/// the name of their weight. What is called a mask and is none of any weight stays where it is.
pub(crate) fn apply(
    tensors: &mut BTreeMap<String, Foreign>,
    others: &mut BTreeMap<String, Foreign>,
) -> BTreeMap<String, Vec<bool>> {
    let mut masks = BTreeMap::new();
    let candidates: Vec<String> = tensors.keys().chain(others.keys()).filter(|name| called(name)).cloned().collect();
    for name in candidates {
        let Some(mask) = tensors.get(&name).or_else(|| others.get(&name)) else { continue };
        if !mask.values.iter().all(|value| *value == 0.0 || *value == 1.0) {
            continue;
        }
        let weights: Vec<String> = masked_by(&name, tensors).filter(|weight| tensors[weight].shape == mask.shape).collect();
        if weights.is_empty() {
            continue;
        }
        let keep: Vec<bool> = mask.values.iter().map(|value| *value == 1.0).collect();
        for weight in weights {
            let mut masked = tensors[&weight].clone();
            masked.values.iter_mut().zip(&keep).filter(|(_, keep)| !**keep).for_each(|(value, _)| *value = 0.0);
            let plain = weight.strip_suffix("_orig").unwrap_or(&weight).to_string();
            if plain != weight && tensors.get(&plain).is_some_and(|other| *other != masked) {
                // Two weights of one name: whoever assigns them says so.
                continue;
            }
            tensors.remove(&weight);
            tensors.remove(&name);
            others.remove(&name);
            tensors.insert(plain.clone(), masked);
            masks.insert(plain, keep.clone());
        }
    }
    masks
}

/// Whether a name speaks of a mask.
pub(crate) fn called(name: &str) -> bool {
    name.split('.').any(|part| part.to_ascii_lowercase().contains("mask"))
}

/// Names of the tensors that a mask of this name may be of.
fn masked_by<'a>(mask: &'a str, tensors: &'a BTreeMap<String, Foreign>) -> impl Iterator<Item = String> + 'a {
    let (parent, last) = mask.rsplit_once('.').map_or((None, mask), |(parent, last)| (Some(parent), last));
    let sibling = |name: &str| parent.map_or(name.to_string(), |parent| format!("{parent}.{name}"));
    let owner = if last == "mask" { Some("weight") } else { last.strip_suffix("_mask") };
    // Of a weight that has both, the original is what was pruned, the other what came of it.
    let beside = owner.and_then(|owner| {
        let plain = sibling(owner);
        let original = format!("{plain}_orig");
        [original, plain].into_iter().find(|name| tensors.contains_key(name))
    });
    let parts = || mask.split('.');
    let group = parts().position(|part| part.to_ascii_lowercase().contains("mask")).unwrap_or(0);
    let inside = parts().skip(group + 1).collect::<Vec<_>>().join(".");
    let elsewhere = tensors.keys().filter(move |name| !inside.is_empty() && !called(name) && ends(name, &inside)).cloned();
    let found = beside.is_some();
    beside.into_iter().chain(elsewhere.filter(move |_| !found))
}

/// Whether the last parts of a name are these.
fn ends(name: &str, parts: &str) -> bool {
    name.strip_suffix(parts).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The masks of the tensors below a prefix.
pub(crate) fn under(masks: BTreeMap<String, Vec<bool>>, prefix: &str) -> BTreeMap<String, Vec<bool>> {
    masks.into_iter().filter_map(|(name, mask)| Some((below(&name, prefix)?.to_string(), mask))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(list: &[(&str, &[f32])]) -> BTreeMap<String, Foreign> {
        list.iter()
            .map(|(name, values)| (name.to_string(), Foreign { shape: vec![values.len()], values: values.to_vec() }))
            .collect()
    }

    #[test]
    fn masks_are_found_in_each_way_of_writing_them() {
        for (weight, mask, plain) in [
            ("conv1.weight_orig", "conv1.weight_mask", "conv1.weight"),
            ("conv1.weight", "conv1.weight_mask", "conv1.weight"),
            ("conv1.weight", "conv1.mask", "conv1.weight"),
            ("fc.bias_orig", "fc.bias_mask", "fc.bias"),
            ("state_dict.module.conv1.weight", "sched.masks_dict.module.conv1.weight", "state_dict.module.conv1.weight"),
            ("weight_orig", "weight_mask", "weight"),
        ] {
            for bytes in [false, true] {
                let (mut floats, mut others) = (tensors(&[(weight, &[3.0, 4.0, 5.0])]), BTreeMap::new());
                let home = if bytes { &mut others } else { &mut floats };
                home.extend(tensors(&[(mask, &[1.0, 0.0, 1.0])]));
                let masks = apply(&mut floats, &mut others);
                assert_eq!(masks.into_iter().collect::<Vec<_>>(), [(plain.to_string(), vec![true, false, true])], "{mask}");
                assert_eq!(
                    floats.into_iter().collect::<Vec<_>>(),
                    tensors(&[(plain, &[3.0, 0.0, 5.0])]).into_iter().collect::<Vec<_>>()
                );
                assert!(others.is_empty());
            }
        }
    }

    #[test]
    fn what_is_no_mask_of_a_weight_stays() {
        for list in [
            [("conv1.weight", &[3.0, 4.0][..]), ("conv1.weight_mask", &[1.0, 0.5][..])],
            [("conv1.weight", &[3.0, 4.0]), ("conv1.weight_mask", &[1.0, 0.0, 1.0])],
            [("conv1.weight", &[3.0, 4.0]), ("conv2.weight_mask", &[1.0, 0.0])],
        ] {
            let mut floats = tensors(&list);
            assert!(apply(&mut floats, &mut BTreeMap::new()).is_empty());
            assert_eq!(floats, tensors(&list));
        }
    }
}
