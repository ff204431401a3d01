//! What methods of several schemes are made of: which channels go together, masks, codebooks and the clustering that finds them, curvature of
//! the loss, the range of activations and the quantizers that keep it, what a layer reads and computes at sampled places, decompositions of
//! matrices, how long a layer takes, and choices under a budget.

pub mod algebra;
pub mod allocation;
pub mod blocks;
pub mod channels;
pub mod clock;
pub mod codebooks;
pub mod curvature;
pub mod equalize;
pub mod gauss_newton;
pub mod kmeans;
pub mod masks;
pub mod moments;
pub mod observers;
pub mod quantizers;
pub mod refuse;
pub mod steps;
pub mod vectors;

/// What a setting says that is on unless it is turned off.
#[must_use]
pub fn yes() -> bool {
    true
}
