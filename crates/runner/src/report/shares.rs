//! What is left of each layer, measured against the network that the run began with.

use super::{LayerRow, Row};

/// A layer or a whole network against what it was before.
pub(super) struct Share {
    /// Trainable values before.
    pub params: usize,
    /// Bits before: 32 for each trainable value, or what was stored where that is more (running statistics).
    pub dense_bits: f64,
    /// Trainable values left, not zero.
    pub nonzero: usize,
    /// Bits left.
    pub bits: u64,
    /// Whether the layer was made by a pass; it is then measured against itself, dense.
    pub new: bool,
}

impl Share {
    /// A layer of the last row against the layer of the same name in the first.
    pub(super) fn of_layer(first: &Row, layer: &LayerRow) -> Self {
        let before = first.layers.iter().find(|before| before.name == layer.name);
        let (params, bits) = before.map_or((layer.params, 0), |before| (before.params, before.bits));
        Self { new: before.is_none(), ..Self::new((params, bits), (layer.nonzero, layer.bits)) }
    }

    /// The last row against the first.
    pub(super) fn of_row(first: &Row, last: &Row) -> Self {
        Self::new((first.params, first.bits), (last.nonzero, last.bits))
    }

    fn new((params, stored): (usize, u64), (nonzero, bits): (usize, u64)) -> Self {
        Self { params, dense_bits: (32.0 * params as f64).max(stored as f64), nonzero, bits, new: false }
    }

    /// Share of the values that is left; not a number for a layer without any.
    pub(super) fn kept(&self) -> f64 {
        self.nonzero as f64 / self.params as f64
    }

    /// Share of the bits that is left; not a number for a layer without any.
    pub(super) fn size(&self) -> f64 {
        self.bits as f64 / self.dense_bits
    }
}
