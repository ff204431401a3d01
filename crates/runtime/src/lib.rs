//! The container format of a compressed network, and the CPU engine that runs what it holds.
//!
//! A [`Model`] is a list of nodes; each has a [`Layer`] and its [`Coded`] tensors. [`Model::to_bytes`] and [`Model::from_bytes`]
//! are the file format (`docs/container.md`); an [`Engine`] decodes the weights once and then runs batches.
//! Nothing here knows of any training framework.

pub mod activations;
mod bits;
pub mod branches;
mod bytes;
mod check;
mod coded;
mod container;
mod engine;
mod error;
mod finite;
mod gaps;
mod grid;
mod huffman;
pub mod layers;
pub mod lfs;
mod model;
mod numbers;
mod permission;
mod product;
mod rans;
mod shared;
mod stream;
mod topology;
mod values;

pub use briquette_kernels::structured::Sizes;
pub use briquette_kernels::{Padding, Structure};
pub use coded::{Bits, Coded, Summary};
pub use container::{MAX_ELEMENTS_TOTAL, MAX_EXPANSION};
pub use engine::{Engine, StepSamples, StepTimes};
pub use error::Error;
pub use finite::NotFinite;
pub use grid::Grid;
pub use layers::{Activation, Layer, ShapeError, StepGradient, Window};
pub use model::{Model, Node};
pub use permission::{Coder, Permission, ValueFormat};
pub use product::{Product, Stage};
pub use shared::{Places, Shared};
pub use values::MAX_CODEBOOK;
