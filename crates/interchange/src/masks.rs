//! Masks that a checkpoint holds beside its weights.
//!
//! PyTorch's pruning stores `weight_orig` and `weight_mask`, others `mask` or `weight_mask` beside `weight`, or all masks under a name of
//! their own (`masks.conv1.weight`).

use std::collections::{BTreeMap, BTreeSet};

use crate::Foreign;
use crate::names::below;

/// What came of the masks of a file.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// Which values are kept, by the name of their weight.
    pub(crate) masks: BTreeMap<String, Vec<bool>>,
    /// Masks that stay, for each may be of any of these weights.
    pub(crate) unclear: BTreeMap<String, Vec<String>>,
}

/// Takes the masks of the tensors below the prefix out of the file: what is left of a weight is multiplied by its mask, `weight_orig` becomes
/// `weight`. What is called a mask and is none of any weight stays where it is.
pub(crate) fn apply(tensors: &mut BTreeMap<String, Foreign>, others: &mut BTreeMap<String, Foreign>, prefix: &str) -> Found {
    let mut found = Found::default();
    let mut groups: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    let candidates: Vec<String> = tensors.keys().chain(others.keys()).filter(|name| called(name)).cloned().collect();
    for mask in candidates {
        let Some(values) = tensors.get(&mask).or_else(|| others.get(&mask)) else { continue };
        let (shape, binary) = (values.shape.clone(), values.values.iter().all(|value| *value == 0.0 || *value == 1.0));
        match beside(&mask, tensors) {
            Some(weight) if binary && tensors[&weight].shape == shape => take(&mask, &weight, tensors, others, &mut found.masks),
            Some(_) => {}
            // A counter beside masks is neither a mask nor a reason to doubt them.
            None if !binary && others.contains_key(&mask) => {}
            None => {
                let Some((group, inside)) = grouped(&mask) else { continue };
                let (group, inside) = (group.to_string(), inside.to_string());
                groups.entry(group).or_default().push(Member { mask, inside, shape, binary });
            }
        }
    }
    // A group that holds something else, as a module for masks does, is none of masks.
    for members in groups.into_values().filter(|members| members.iter().all(|member| member.binary)) {
        let places: Vec<BTreeSet<String>> = members.iter().map(|member| member.places(tensors, prefix)).collect();
        let common = places.iter().filter(|places| !places.is_empty()).cloned().reduce(|a, b| &a & &b).unwrap_or_default();
        let whole =
            |place: &String, inside: &str| if place.is_empty() { inside.to_string() } else { format!("{place}.{inside}") };
        // Where all find their weights: a path as short as `bn1.weight` ends the names of many.
        let only = if common.len() == 1 { common.first() } else { None };
        for (Member { mask, inside, .. }, places) in members.iter().zip(&places).filter(|(_, places)| !places.is_empty()) {
            match only {
                Some(place) => take(mask, &whole(place, inside), tensors, others, &mut found.masks),
                None => {
                    let of = if common.is_empty() { places } else { &common };
                    found.unclear.insert(mask.clone(), of.iter().map(|place| whole(place, inside)).collect());
                }
            }
        }
    }
    found
}

/// A mask in a group of its own.
struct Member {
    mask: String,
    /// Its name without that of the group.
    inside: String,
    shape: Vec<usize>,
    /// Whether it is one of zeros and ones.
    binary: bool,
}

impl Member {
    /// What comes before its path in the names of the tensors below the prefix that it may be of.
    fn places(&self, tensors: &BTreeMap<String, Foreign>, prefix: &str) -> BTreeSet<String> {
        let fits =
            |(name, tensor): &(&String, &Foreign)| tensor.shape == self.shape && !called(name) && below(name, prefix).is_some();
        let place = |name: &String| match name.strip_suffix(self.inside.as_str())? {
            "" => Some(String::new()),
            before => Some(before.strip_suffix('.')?.to_string()),
        };
        tensors.iter().filter(fits).filter_map(|(name, _)| place(name)).collect()
    }
}

/// Masks a weight, under its plain name, unless another weight has that: then whoever assigns the two says so.
fn take(
    mask: &str,
    weight: &str,
    tensors: &mut BTreeMap<String, Foreign>,
    others: &mut BTreeMap<String, Foreign>,
    masks: &mut BTreeMap<String, Vec<bool>>,
) {
    let Some(values) = tensors.get(mask).or_else(|| others.get(mask)) else { return };
    let keep: Vec<bool> = values.values.iter().map(|value| *value == 1.0).collect();
    let Some(mut masked) = tensors.get(weight).cloned() else { return };
    masked.values.iter_mut().zip(&keep).filter(|(_, keep)| !**keep).for_each(|(value, _)| *value = 0.0);
    let plain = weight.strip_suffix("_orig").unwrap_or(weight);
    if plain != weight && tensors.get(plain).is_some_and(|other| *other != masked) {
        return;
    }
    tensors.remove(weight);
    tensors.remove(mask);
    others.remove(mask);
    tensors.insert(plain.to_string(), masked);
    masks.insert(plain.to_string(), keep);
}

/// Whether a name speaks of a mask.
pub(crate) fn called(name: &str) -> bool {
    name.split('.').any(speaks)
}

fn speaks(part: &str) -> bool {
    part.to_ascii_lowercase().contains("mask")
}

/// The weight that a mask of this name stands beside.
fn beside(mask: &str, tensors: &BTreeMap<String, Foreign>) -> Option<String> {
    let (parent, last) = mask.rsplit_once('.').map_or((None, mask), |(parent, last)| (Some(parent), last));
    let owner = if last == "mask" { "weight" } else { last.strip_suffix("_mask")? };
    let plain = parent.map_or(owner.to_string(), |parent| format!("{parent}.{owner}"));
    // Of a weight that has both, the original is what was pruned, the other what came of it.
    [format!("{plain}_orig"), plain].into_iter().find(|name| tensors.contains_key(name))
}

/// The name of the group that a mask is in, and the mask's own below it.
fn grouped(mask: &str) -> Option<(&str, &str)> {
    let ends = mask.match_indices('.').map(|(at, _)| at);
    let group = ends.map(|end| &mask[..end]).find(|group| called(group))?;
    Some((group, below(mask, group).filter(|inside| !inside.is_empty())?))
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
                let Found { masks, unclear } = apply(&mut floats, &mut others, "");
                assert_eq!(masks.into_iter().collect::<Vec<_>>(), [(plain.to_string(), vec![true, false, true])], "{mask}");
                assert_eq!(
                    floats.into_iter().collect::<Vec<_>>(),
                    tensors(&[(plain, &[3.0, 0.0, 5.0])]).into_iter().collect::<Vec<_>>()
                );
                assert!(others.is_empty() && unclear.is_empty());
            }
        }
    }

    #[test]
    fn what_is_no_mask_of_a_weight_stays() {
        for list in [
            [("conv1.weight", &[3.0, 4.0][..]), ("conv1.weight_mask", &[1.0, 0.5][..])],
            [("conv1.weight", &[3.0, 4.0]), ("conv1.weight_mask", &[1.0, 0.0, 1.0])],
            [("conv1.weight", &[3.0, 4.0]), ("conv2.weight_mask", &[1.0, 0.0])],
            [("conv1.weight", &[3.0, 4.0]), ("masks.conv2.weight", &[1.0, 0.0])],
        ] {
            let mut floats = tensors(&list);
            assert_eq!(apply(&mut floats, &mut BTreeMap::new(), ""), Found::default());
            assert_eq!(floats, tensors(&list));
        }
    }

    /// A network whose blocks have names of layers outside them.
    const NESTED: [(&str, &[f32]); 3] =
        [("net.bn1.weight", &[3.0, 4.0]), ("net.layer1.0.bn1.weight", &[5.0, 6.0]), ("net.fc.weight", &[7.0, 8.0])];

    #[test]
    fn a_mask_goes_to_no_weight_whose_name_merely_ends_in_its_path() {
        // The other masks of the group tell where its weights are.
        let mut floats = tensors(&NESTED);
        floats.extend(tensors(&[("masks.bn1.weight", &[1.0, 0.0]), ("masks.fc.weight", &[0.0, 1.0])]));
        let Found { masks, unclear } = apply(&mut floats, &mut tensors(&[("masks.epoch", &[f32::NAN])]), "");
        assert_eq!(masks.keys().collect::<Vec<_>>(), ["net.bn1.weight", "net.fc.weight"]);
        assert_eq!(floats["net.layer1.0.bn1.weight"].values, [5.0, 6.0]);
        assert_eq!((&floats["net.bn1.weight"].values[..], floats.len()), (&[3.0, 0.0][..], 3));
        assert!(unclear.is_empty());

        // Alone it may be of either.
        let mut floats = tensors(&NESTED);
        floats.extend(tensors(&[("masks.bn1.weight", &[1.0, 0.0])]));
        let before = floats.clone();
        let Found { masks, unclear } = apply(&mut floats, &mut BTreeMap::new(), "");
        assert!(masks.is_empty() && floats == before);
        let either = ["net.bn1.weight", "net.layer1.0.bn1.weight"].map(str::to_string).to_vec();
        assert_eq!(unclear.into_iter().collect::<Vec<_>>(), [("masks.bn1.weight".to_string(), either)]);
        // The part of the file that is meant may tell.
        let Found { masks, unclear } = apply(&mut floats, &mut BTreeMap::new(), "net.layer1");
        assert_eq!(masks.into_keys().collect::<Vec<_>>(), ["net.layer1.0.bn1.weight"]);
        assert!(unclear.is_empty() && floats["net.bn1.weight"].values == [3.0, 4.0]);
    }

    #[test]
    fn a_module_for_masks_is_no_group_of_masks() {
        // Fresh from its constructor, the scale of its norm is one of ones.
        let list = [
            ("bn.weight", &[3.0, 4.0][..]),
            ("mask_head.bn.weight", &[1.0, 1.0]),
            ("mask_head.conv.weight", &[0.25, -0.5]),
            ("mask_head.bn.bias", &[0.0, 0.0]),
        ];
        let mut floats = tensors(&list);
        assert_eq!(apply(&mut floats, &mut BTreeMap::new(), ""), Found::default());
        assert_eq!(floats, tensors(&list));
    }
}
