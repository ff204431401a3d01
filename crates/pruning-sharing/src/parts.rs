//! What several methods are made of.

pub mod channels;
pub mod codebooks;
pub mod curvature;
pub mod empty;
pub mod except;
pub mod gauss_newton;
pub mod kmeans;
pub mod masks;
pub mod patches;
pub mod products;
pub mod proximal;
pub mod rank;
pub mod refuse;
pub mod structured;
pub mod values;
pub mod vectors;
