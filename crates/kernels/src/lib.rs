//! CPU kernels for training and inference. Knows neither Burn nor the container.
//!
//! Tensors are plain slices; feature maps lie channels last, `[batch, height, width, channels]`. Work is split in a way that depends on
//! shapes alone, so that results do not depend on the number of threads; threads are those of the rayon pool in which a kernel is called.
//! Every kernel is written once over vectors of floats ([`instructions`] tells which) and compiled for each instruction set; products of
//! [`integer`]s and of [`bits`] over vectors of words ([`integer_instructions`]).

pub mod bits;
mod buffer;
mod columns;
pub mod conv;
pub mod grid;
pub mod integer;
mod lanes;
pub mod linear;
pub mod norm;
mod operand;
pub mod optimize;
mod padding;
mod panels;
mod peak;
pub mod pointwise;
pub mod pool;
pub mod sparse;
pub mod structured;
mod windows;
mod words;

pub use columns::column_sums;
pub use conv::{Conv2d, Epilogue};
pub use lanes::instructions;
pub use linear::Linear;
pub use norm::{BatchNorm, Moments};
pub use operand::Precision;
pub use padding::Padding;
pub use peak::fma_gflops;
pub use pool::{MaxPool2d, PadShortcut};
pub use structured::Structure;
pub use words::integer_instructions;

/// Why a kernel refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// The number of values of these sizes, which may come out of a file.
///
/// # Errors
/// When they are more than memory has room for.
pub(crate) fn count(sizes: &[usize]) -> Result<usize, Error> {
    let product = sizes.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    product.filter(|count| *count <= MOST).ok_or_else(|| Error(format!("{sizes:?} are more values than memory has room for")))
}

/// The most values of four bytes in one allocation.
const MOST: usize = isize::MAX as usize / 4;
