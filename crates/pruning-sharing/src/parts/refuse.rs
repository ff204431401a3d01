//! What methods refuse of the layers that they are given.

use briquette_core::coding::Source;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::types::PerLayer;

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
    let why = "has no weights of its own, for its matrix is structural or an open kernel's; leave it out";
    table.all_done(net, |layer| net.nodes[layer].op.weight_shape().is_some(), why)
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
    use briquette_core::pass::Pass;

    use crate::circulant::Circulant;
    use crate::handmade::{refusal, small};
    use crate::{hashed::Hashed, kmeans_sharing::KmeansSharing, magnitude::Magnitude, optimal_brain_damage::OptimalBrainDamage};

    #[test]
    fn a_structural_matrix_that_is_named_has_no_weights_to_prune_or_share() {
        let structural = || {
            let circulant: Circulant = serde_json::from_value(serde_json::json!({ "layers": ["fc1"] })).unwrap();
            circulant.plan(small()).unwrap()
        };
        let keep = || serde_json::json!({ "keep": { "fc1": 0.5, "fc2": 0.5 } });
        let refused = [
            refusal::<Magnitude>(structural(), keep()),
            refusal::<OptimalBrainDamage>(structural(), keep()),
            refusal::<Hashed>(structural(), keep()),
            refusal::<KmeansSharing>(structural(), serde_json::json!({ "bits": { "fc1": 2, "fc2": 2 } })),
        ];
        let why = "node 'fc1': has no weights of its own, for its matrix is structural or an open kernel's; leave it out";
        assert!(refused.iter().all(|refused| refused == why), "{refused:?}");
    }
}
