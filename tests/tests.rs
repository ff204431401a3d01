//! The integration tests of the workspace. Tests that need data sets or checkpoints, or take minutes, are ignored unless `cargo xtask test` finds
//! data and checkpoints.

mod bad_input;
mod catalogue;
mod checkpoints;
mod conformance;
#[cfg(any(feature = "ndarray", feature = "wgpu", feature = "vulkan", feature = "cuda"))]
mod devices;
mod engine;
mod exits;
mod interruption;
mod kernels;
mod large_sets;
mod low_rank;
mod own_module;
mod padding;
mod passes;
mod program;
mod vocabulary;
