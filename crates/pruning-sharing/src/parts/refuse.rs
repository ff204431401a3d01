//! What methods refuse of the layers that they are given.

use briquette_core::coding::Source;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;

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
