//! What several methods are made of.

pub mod channels;
pub mod except;
pub mod kmeans;
pub mod masks;
pub mod rank;
pub mod structured;
