//! What several methods are made of.

pub mod kmeans;
