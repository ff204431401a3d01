//! Layers without parameters: each a file, and a line in the list of `computed`.

mod activation;
mod adaptive_avg_pool;
mod add;
mod avg_pool;
mod channel_pool;
mod channel_slice;
mod clip;
mod concat;
mod cyclic;
mod dropout;
mod flatten;
mod gate;
mod global_avg_pool;
mod local_response_norm;
mod max_pool;
mod mean_magnitude;
mod merge;
mod multiply;
mod negate;
mod noise;
mod normalize;
mod pad;
mod pad_shortcut;
mod permute;
mod regroup;
mod route;
mod softmax;
mod spatial_sampling;

use super::Flow;

/// What a layer without parameters computes.
pub(crate) trait Forward {
    /// The output for the inputs, whose shapes were checked.
    fn forward(&self, inputs: Vec<Flow>) -> Flow;
}
