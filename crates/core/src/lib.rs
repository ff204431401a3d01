//! The core of Briquette: a network that can change its shape, codings that say how its weights are stored, passes that compress it,
//! and the training that they share.
//!
//! The core reads no files and prints nothing; whatever happens outside goes through a [`context::Host`].

pub mod archive;
pub mod builder;
pub mod chance;
pub mod coding;
pub mod context;
pub mod cost;
pub mod dense;
pub mod error;
pub mod extension;
mod finite;
pub mod forward;
pub mod gating;
pub mod net;
pub mod objective;
pub mod pass;
pub mod passes;
pub mod points;
pub mod price;
pub mod promises;
pub mod quantize;
#[cfg(test)]
mod random_nets;
pub mod rank;
pub mod scan;
pub mod selftest;
pub mod stored;
pub mod streams;
pub mod surgery;
pub mod task;
pub mod teaching;
pub mod tensors;
pub mod tradeoff;
pub mod training;
pub mod types;
pub mod values;
pub mod zoo;

pub use briquette_runtime::{Activation, Grid, Layer, Padding, StepGradient, Window, layers};
pub use error::{Error, Result};
pub use net::Net;
