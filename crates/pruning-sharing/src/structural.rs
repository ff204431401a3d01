//! Structural matrices: section 2.C of the survey.

pub mod acdc;
pub mod butterfly;
pub mod circulant;
pub mod fastfood;
pub mod kronecker;
pub mod low_displacement;
pub mod rank;
pub mod structured;
