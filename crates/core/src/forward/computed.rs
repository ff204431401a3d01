//! Who computes a layer, and the list that each kind has its line in.

use briquette_runtime::Layer;

use super::fixed::Forward;
use super::tensors::Compute;

/// Who computes a layer.
pub(crate) enum Computed<'a> {
    /// It does itself, without parameters.
    Fixed(&'a dyn Forward),
    /// It does itself, with parameters that Burn has no module for.
    Tensors(&'a dyn Compute),
    /// A module of Burn, or nobody.
    Elsewhere,
}

impl<'a> Computed<'a> {
    pub(crate) fn of(layer: &'a Layer) -> Self {
        match layer {
            Layer::Normalize(layer) => Computed::Fixed(layer),
            Layer::Activation(layer) => Computed::Fixed(layer),
            Layer::Softmax(layer) => Computed::Fixed(layer),
            Layer::LocalResponseNorm(layer) => Computed::Fixed(layer),
            Layer::MaxPool(layer) => Computed::Fixed(layer),
            Layer::AvgPool(layer) => Computed::Fixed(layer),
            Layer::AdaptiveAvgPool(layer) => Computed::Fixed(layer),
            Layer::GlobalAvgPool(layer) => Computed::Fixed(layer),
            Layer::Add(layer) => Computed::Fixed(layer),
            Layer::Concat(layer) => Computed::Fixed(layer),
            Layer::ChannelSlice(layer) => Computed::Fixed(layer),
            Layer::PadShortcut(layer) => Computed::Fixed(layer),
            Layer::Permute(layer) => Computed::Fixed(layer),
            Layer::Flatten(layer) => Computed::Fixed(layer),
            Layer::Dropout(layer) => Computed::Fixed(layer),
            Layer::MeanMagnitude(layer) => Computed::Fixed(layer),
            Layer::Multiply(layer) => Computed::Fixed(layer),
            Layer::Negate(layer) => Computed::Fixed(layer),
            Layer::Pad(layer) => Computed::Fixed(layer),
            Layer::Clip(layer) => Computed::Fixed(layer),
            Layer::Gate(layer) => Computed::Fixed(layer),
            Layer::Route(layer) => Computed::Fixed(layer),
            Layer::Merge(layer) => Computed::Fixed(layer),
            Layer::ChannelPool(layer) => Computed::Fixed(layer),
            Layer::Affine(layer) => Computed::Tensors(layer),
            Layer::Regroup(layer) => Computed::Fixed(layer),
            Layer::Cyclic(layer) => Computed::Fixed(layer),
            Layer::SpatialSampling(layer) => Computed::Fixed(layer),
            Layer::DetailPreservingPool(layer) => Computed::Tensors(layer),
            Layer::Experts(layer) => Computed::Tensors(layer),
            Layer::Noise(layer) => Computed::Fixed(layer),
            Layer::Structured(layer) => Computed::Tensors(layer),
            Layer::Quantize(layer) => Computed::Tensors(layer),
            Layer::Input(_) | Layer::Conv2d(_) | Layer::Linear(_) | Layer::BatchNorm(_) => Computed::Elsewhere,
        }
    }
}
