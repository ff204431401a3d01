//! What methods refuse of the layers that they are given.

use briquette_core::coding::Source;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::types::{PerLayer, WEIGHTLESS};

/// Refuses weights that are not finite.
///
/// # Errors
/// Names the layer and the first such weight.
pub fn not_finite(layer: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(bad) => Err(Error::node(layer, format!("holds the weight {bad}; train it anew or clip it"))),
        None => Ok(()),
    }
}

/// Refuses a table that names a layer without weights of its own.
///
/// # Errors
/// Names the layer.
pub fn weightless<T: Copy>(net: &Net, table: &PerLayer<T>) -> Result<()> {
    table.all_done(net, |layer| net.nodes[layer].op.weight_shape().is_some(), WEIGHTLESS)
}

/// Refuses layers, by index, whose weights an earlier pass shares; `method` names the one that must come before.
///
/// # Errors
/// Names the first such layer.
pub fn shared<'a>(net: &Net, layers: impl IntoIterator<Item = &'a usize>, method: &str) -> Result<()> {
    let is_shared = |layer: &&usize| net.nodes[**layer].weight().is_some_and(|weight| weight.coding.source != Source::Free);
    match layers.into_iter().find(is_shared) {
        Some(layer) => {
            let detail = format!("shares its weights; put {method} before the pass that shares them");
            Err(Error::node(&net.nodes[*layer].name, detail))
        }
        None => Ok(()),
    }
}

/// Refuses layers, by index, that an earlier pass pruned; `method` must come before.
///
/// # Errors
/// Names the first such layer.
pub fn pruned<'a>(net: &Net, layers: impl IntoIterator<Item = &'a usize>, method: &str) -> Result<()> {
    let is_pruned = |layer: &&usize| net.nodes[**layer].weight().is_some_and(|weight| weight.coding.mask.is_some());
    match layers.into_iter().find(is_pruned) {
        Some(layer) => {
            let detail = format!("is pruned; put {method} before the pass that prunes it, or name it in `except`");
            Err(Error::node(&net.nodes[*layer].name, detail))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::Coding;
    use briquette_core::pass::Pass;
    use briquette_core::stored::Stored;
    use serde_json::json;

    use super::*;
    use briquette_handmade::{get, refusal, run, small};
    use briquette_pruning_sharing::pruning::{biased_decay::BiasedDecay, hashed::Hashed, magnitude::Magnitude};
    use briquette_pruning_sharing::pruning::{n_m::NM, optimal_brain_damage::OptimalBrainDamage};
    use briquette_pruning_sharing::quantization::kmeans_sharing::KmeansSharing;
    use briquette_pruning_sharing::structural::circulant::Circulant;

    #[test]
    fn a_structural_matrix_that_is_named_has_no_weights_to_prune_or_share() {
        let structural = || {
            let circulant: Circulant = serde_json::from_value(json!({ "layers": ["fc1"] })).unwrap();
            circulant.plan(small()).unwrap()
        };
        let keep = || json!({ "keep": { "fc1": 0.5, "fc2": 0.5 } });
        let refused = [
            refusal::<Magnitude>(structural(), keep()),
            refusal::<OptimalBrainDamage>(structural(), keep()),
            refusal::<Hashed>(structural(), keep()),
            refusal::<KmeansSharing>(structural(), json!({ "bits": { "fc1": 2, "fc2": 2 } })),
        ];
        let why = "node 'fc1': has no weights of its own, for its matrix is structural; leave it out";
        assert!(refused.iter().all(|refused| refused == why), "{refused:?}");
    }

    /// The values of the parameters of `fc1`.
    fn parameters(net: &Net) -> Vec<Vec<f32>> {
        net.nodes[net.index("fc1").unwrap()].parameters().iter().map(Stored::values).collect()
    }

    #[test]
    fn what_makes_a_structural_matrix_is_neither_pruned_nor_shared_with_all_layers() {
        let structural = run::<Circulant>(small(), json!({ "layers": ["fc1"] })).unwrap();
        let train = json!({ "epochs": 0 });
        let done = [
            run::<Magnitude>(structural.deep_clone(), json!({ "keep": 0.5 })),
            run::<Magnitude>(structural.deep_clone(), json!({ "keep": { "fc": 0.5, "rest": 0.2 } })),
            run::<Magnitude>(structural.deep_clone(), json!({ "quality": 0.5 })),
            run::<Magnitude>(structural.deep_clone(), json!({ "global": 0.5 })),
            run::<OptimalBrainDamage>(structural.deep_clone(), json!({ "keep": 0.5, "calibration-images": 4 })),
            run::<OptimalBrainDamage>(structural.deep_clone(), json!({ "global": 0.5, "calibration-images": 4 })),
            run::<KmeansSharing>(structural.deep_clone(), json!({ "bits": 1 })),
            run::<Hashed>(structural.deep_clone(), json!({ "keep": 0.5 })),
            run::<NM>(structural.deep_clone(), json!({ "n": 1, "m": 2 })),
            run::<BiasedDecay>(structural.deep_clone(), json!({ "lambda": 0.1, "threshold": 0.1, "train": train })),
        ];
        for net in done.map(Result::unwrap) {
            assert_eq!(parameters(&net), parameters(&structural));
            let coded = |layer: &str| net.nodes[net.index(layer).unwrap()].weight().unwrap().coding != Coding::default();
            assert!(["conv1", "conv2", "fc2"].into_iter().all(coded));
        }
        let global = run::<Magnitude>(structural, json!({ "global": 0.5 })).unwrap();
        let kept = ["conv1", "conv2", "fc2"].map(|layer| get(&global, layer, "weight").iter().filter(|w| **w != 0.0).count());
        assert_eq!(2 * kept.iter().sum::<usize>(), 16 + 48 + 15 + 1, "half of 79, rounded");
    }

    #[test]
    fn a_structural_matrix_in_layers_or_with_a_quality_of_its_own_is_refused() {
        let structural = || run::<Circulant>(small(), json!({ "layers": ["fc1"] })).unwrap();
        let train = json!({ "epochs": 0 });
        let refused = [
            refusal::<Magnitude>(structural(), json!({ "quality": { "fc1": 0.5, "fc2": 0.5 } })),
            refusal::<Magnitude>(structural(), json!({ "global": 0.5, "layers": ["fc1", "fc2"] })),
            refusal::<OptimalBrainDamage>(structural(), json!({ "global": 0.5, "layers": ["fc1", "fc2"] })),
            refusal::<KmeansSharing>(structural(), json!({ "bits": 2, "layers": ["fc1", "fc2"] })),
            refusal::<NM>(structural(), json!({ "n": 1, "m": 2, "layers": ["fc1"] })),
            refusal::<BiasedDecay>(structural(), json!({ "lambda": 0.1, "threshold": 0.1, "layers": ["fc1"], "train": train })),
        ];
        assert!(refused.iter().all(|refused| refused == &format!("node 'fc1': {WEIGHTLESS}")), "{refused:?}");
    }
}
