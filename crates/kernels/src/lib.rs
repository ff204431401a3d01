//! CPU kernels for training and inference. Knows neither Burn nor the container.
//!
//! Tensors are plain slices in the order `[batch, channels, height, width]`. Work is split in a way that depends on shapes alone, so that
//! results do not depend on the number of threads; threads are those of the rayon pool in which a kernel is called.

pub mod conv;
mod lanes;
pub mod norm;
pub mod pool;

pub use conv::Conv2d;
pub use norm::{BatchNorm, Moments};
pub use pool::MaxPool2d;

/// Why a kernel refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);
