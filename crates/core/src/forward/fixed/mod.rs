//! Layers without parameters: each a file and a line in the list below.

mod activation;
mod adaptive_avg_pool;
mod add;
mod avg_pool;
mod channel_slice;
mod clip;
mod concat;
mod dropout;
mod flatten;
mod global_avg_pool;
mod local_response_norm;
mod max_pool;
mod mean_magnitude;
mod multiply;
mod negate;
mod normalize;
mod pad;
mod pad_shortcut;
mod softmax;

use briquette_runtime::Layer;

use super::Flow;

/// What a layer without parameters computes.
trait Forward {
    /// The output for the inputs, whose shapes were checked.
    fn forward(&self, inputs: Vec<Flow>) -> Flow;
}

pub(super) fn forward(layer: &Layer, inputs: Vec<Flow>) -> Flow {
    match layer {
        Layer::Normalize(layer) => layer.forward(inputs),
        Layer::Activation(layer) => layer.forward(inputs),
        Layer::Softmax(layer) => layer.forward(inputs),
        Layer::LocalResponseNorm(layer) => layer.forward(inputs),
        Layer::MaxPool(layer) => layer.forward(inputs),
        Layer::AvgPool(layer) => layer.forward(inputs),
        Layer::AdaptiveAvgPool(layer) => layer.forward(inputs),
        Layer::GlobalAvgPool(layer) => layer.forward(inputs),
        Layer::Add(layer) => layer.forward(inputs),
        Layer::Concat(layer) => layer.forward(inputs),
        Layer::ChannelSlice(layer) => layer.forward(inputs),
        Layer::PadShortcut(layer) => layer.forward(inputs),
        Layer::Flatten(layer) => layer.forward(inputs),
        Layer::Dropout(layer) => layer.forward(inputs),
        Layer::MeanMagnitude(layer) => layer.forward(inputs),
        Layer::Multiply(layer) => layer.forward(inputs),
        Layer::Negate(layer) => layer.forward(inputs),
        Layer::Pad(layer) => layer.forward(inputs),
        Layer::Clip(layer) => layer.forward(inputs),
        Layer::Input(_)
        | Layer::Conv2d(_)
        | Layer::Linear(_)
        | Layer::BatchNorm(_)
        | Layer::Structured(_)
        | Layer::Quantize(_) => {
            unreachable!("{} is no parameter-free function of other nodes", layer.kind().name())
        }
    }
}
