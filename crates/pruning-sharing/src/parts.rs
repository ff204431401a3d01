//! What several methods are made of.

pub mod bias_correction;
pub mod binary;
pub mod blocks;
pub mod channels;
pub mod clipped;
pub mod codebooks;
pub mod curvature;
pub mod empty;
pub mod equalize;
pub mod gauss_newton;
pub mod kmeans;
pub mod masks;
pub mod mixture;
pub mod observers;
pub mod patches;
pub mod products;
pub mod proximal;
pub mod quantizers;
pub mod rank;
pub mod refuse;
pub mod steps;
pub mod structured;
pub mod vectors;

/// What a setting says that is on unless it is turned off.
pub(crate) fn yes() -> bool {
    true
}
