//! What several methods are made of.

pub mod channels;
pub mod empty;
pub mod except;
pub mod gauss_newton;
pub mod kmeans;
pub mod masks;
pub mod proximal;
pub mod values;
