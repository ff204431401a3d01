//! What several methods are made of.

pub mod channels;
pub mod codebooks;
pub mod curvature;
pub mod except;
pub mod kmeans;
pub mod masks;
pub mod patches;
