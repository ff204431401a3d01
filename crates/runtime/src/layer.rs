//! What a node of a network computes, without its weights: one description that the engine runs, the container stores, and
//! `briquette-core` asks for shapes and costs.

use briquette_kernels::Structure;
use serde::{Deserialize, Serialize};

use crate::Grid;
use crate::activations::MAX_ACTIVATIONS;

/// An operation and its hyper-parameters. Feature maps are `[channels, height, width]`, vectors are `[features]`; the batch
/// dimension is left out everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The network's input, `[channels, height, width]`; always node 0.
    Input {
        /// Shape of one sample.
        shape: Vec<usize>,
    },
    /// `y_c = (x_c - mean_c) / std_c`: input normalization that travels inside the network.
    Normalize {
        /// One mean per channel, in the input's unit (pixels divided by 255).
        mean: Vec<f32>,
        /// One deviation per channel.
        std: Vec<f32>,
    },
    /// Cross-correlation; tensors `weight` `[out, in / groups, kh, kw]` and optionally `bias` `[out]`.
    Conv2d {
        /// Step between windows, `[vertical, horizontal]`.
        stride: [usize; 2],
        /// Zeros added on both sides, `[vertical, horizontal]`.
        padding: [usize; 2],
        /// Spacing between kernel taps.
        dilation: [usize; 2],
        /// Input and output channels are split into this many independent groups.
        groups: usize,
    },
    /// `y = W x + b`; tensors `weight` `[out, in]` and optionally `bias` `[out]`.
    Linear,
    /// Inference form of batch normalization; tensors `gamma`, `beta`, `mean`, `var`, each `[channels]`.
    BatchNorm {
        /// Added to the variance.
        epsilon: f64,
    },
    /// Across channels: `y_c = x_c / (k + alpha / size * sum of x_j^2 over the size channels around c)^beta`
    /// (Krizhevsky, Sutskever, Hinton, NIPS 2012, with alpha divided by size as in Caffe and PyTorch).
    LocalResponseNorm {
        /// Channels in the window.
        size: usize,
        /// Scale of the sum.
        alpha: f64,
        /// Exponent.
        beta: f64,
        /// Added constant.
        k: f64,
    },
    /// An element-wise function.
    Activation(Activation),
    /// Soft-max over the features.
    Softmax,
    /// Maximum of each window; padding never wins.
    MaxPool(Window),
    /// Mean of each window; padded zeros count when `count_padding`.
    AvgPool {
        /// The window.
        window: Window,
        /// Whether padded zeros are counted in the mean.
        count_padding: bool,
    },
    /// Mean over windows chosen so that the output has this height and width.
    AdaptiveAvgPool {
        /// Output `[height, width]`.
        output: [usize; 2],
    },
    /// Mean of each channel: `[c, h, w]` to `[c]`.
    GlobalAvgPool,
    /// Sum of all inputs, which have one shape.
    Add,
    /// Concatenation along the channels.
    Concat,
    /// Channels `start .. start + len` of the input.
    ChannelSlice {
        /// First channel.
        start: usize,
        /// Number of channels.
        len: usize,
    },
    /// Parameter-free shortcut (option A of He et al. 2016): keeps every `stride`-th row and column and surrounds the channels with
    /// `before` and `after` channels of zeros.
    PadShortcut {
        /// Spatial sub-sampling.
        stride: usize,
        /// Zero channels in front.
        before: usize,
        /// Zero channels behind.
        after: usize,
    },
    /// `[c, h, w]` to `[c * h * w]`.
    Flatten,
    /// Drops activations while training; the identity afterwards.
    Dropout {
        /// Probability of dropping.
        p: f64,
    },
    /// A fully connected layer, or a convolution by one pixel, whose matrix is structural; tensors as [`Structure`] lists them and
    /// optionally `bias` `[out]`.
    Structured(Structure),
    /// `y = step (q - zero)` with the code `q = floor(clamp(x / step + zero, 0, levels - 1) + 1/2)`: activations on a uniform grid; tensor
    /// `step` `[1]`, or `alpha` `[1]`, the grid's upper end ([`StepGradient::tensor`]). Two levels about the zero 1/2 give the sign, times half a
    /// step.
    Quantize {
        /// Number of codes, 2 to 65536.
        levels: u32,
        /// The code that stands for 0, or the middle of two codes: a multiple of 1/2.
        zero: f32,
        /// What trains the step.
        train: StepGradient,
    },
    /// `y = 1/c sum_i |x_i|` over the channels: `[c, h, w]` to `[1, h, w]`, `[n]` to `[1]`.
    MeanMagnitude,
    /// The product of two inputs of one shape, or of one and another that has a single channel, which scales all channels.
    Multiply,
    /// An open kernel that a scheme's crate defines.
    Custom {
        /// The kernel's name.
        kernel: String,
        /// Its parameters as JSON.
        config: String,
    },
}

/// Element-wise functions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x` if positive, else `slope * x`.
    LeakyRelu {
        /// Slope of the negative side.
        slope: f64,
    },
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x / 2 * (1 + erf(x / sqrt 2))`.
    Gelu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// What trains the step of a quantizer; inference does not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepGradient {
    /// Nothing: it stays.
    #[default]
    Fixed,
    /// `dy/dstep = q - zero - x / step` inside the grid and `q - zero` beyond its ends, scaled by one over the root of values times codes
    /// (Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", ICLR 2020).
    Learned,
    /// The clip value `alpha = step (levels - 1 - zero)`, the upper end, is what is trained and stored; its gradient is 1 beyond that end and 0
    /// elsewhere (Choi et al., "PACT", 2018).
    Clip,
}

impl StepGradient {
    /// The name of a quantizer's tensor.
    pub fn tensor(self) -> &'static str {
        match self {
            StepGradient::Fixed | StepGradient::Learned => "step",
            StepGradient::Clip => "alpha",
        }
    }

    /// What one step is of a quantizer's tensor: 1, or for a clip value the number of steps up to it.
    pub fn steps(self, levels: u32, zero: f32) -> f32 {
        match self {
            StepGradient::Fixed | StepGradient::Learned => 1.0,
            StepGradient::Clip => (levels - 1) as f32 - zero,
        }
    }
}

/// A pooling window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// `[height, width]`.
    pub kernel: [usize; 2],
    /// Step, `[vertical, horizontal]`.
    pub stride: [usize; 2],
    /// Border on both sides, `[vertical, horizontal]`; less than the kernel.
    pub padding: [usize; 2],
}

impl Window {
    /// A square window without padding whose stride is its size.
    pub fn square(size: usize) -> Self {
        Self { kernel: [size; 2], stride: [size; 2], padding: [0; 2] }
    }
}

/// Why shapes do not fit; the caller adds which node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Wrong number of inputs.
    #[error("{layer} takes {expected} input(s), {found} are wired")]
    Arity {
        /// Name of the layer's kind.
        layer: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What it got.
        found: usize,
    },
    /// A tensor is missing or has the wrong shape.
    #[error("{layer}: {detail}")]
    Mismatch {
        /// Name of the layer's kind.
        layer: &'static str,
        /// What does not fit, with both shapes.
        detail: String,
    },
}

/// Largest height and width of a pooling window: the places of a window can be counted in single precision.
pub const MAX_WINDOW: usize = 1 << 12;

impl Layer {
    /// The kind's name, as it is printed and stored.
    pub fn kind(&self) -> &'static str {
        match self {
            Layer::Input { .. } => "input",
            Layer::Normalize { .. } => "normalize",
            Layer::Conv2d { .. } => "conv2d",
            Layer::Linear => "linear",
            Layer::BatchNorm { .. } => "batch-norm",
            Layer::LocalResponseNorm { .. } => "local-response-norm",
            Layer::Activation(Activation::Relu) => "relu",
            Layer::Activation(Activation::LeakyRelu { .. }) => "leaky-relu",
            Layer::Activation(Activation::Relu6) => "relu6",
            Layer::Activation(Activation::Sigmoid) => "sigmoid",
            Layer::Activation(Activation::Tanh) => "tanh",
            Layer::Activation(Activation::Gelu) => "gelu",
            Layer::Activation(Activation::Silu) => "silu",
            Layer::Softmax => "softmax",
            Layer::MaxPool(_) => "max-pool",
            Layer::AvgPool { .. } => "avg-pool",
            Layer::AdaptiveAvgPool { .. } => "adaptive-avg-pool",
            Layer::GlobalAvgPool => "global-avg-pool",
            Layer::Add => "add",
            Layer::Concat => "concat",
            Layer::ChannelSlice { .. } => "channel-slice",
            Layer::PadShortcut { .. } => "pad-shortcut",
            Layer::Flatten => "flatten",
            Layer::Dropout { .. } => "dropout",
            Layer::Structured(structure) => structure.kind(),
            Layer::Quantize { .. } => "quantize",
            Layer::MeanMagnitude => "mean-magnitude",
            Layer::Multiply => "multiply",
            Layer::Custom { .. } => "custom",
        }
    }

    /// Whether its settings are ones that a layer can have, whatever its inputs.
    ///
    /// # Errors
    /// The setting, and what it may be.
    pub fn check(&self) -> Result<(), ShapeError> {
        let wrong = |detail: String| Err(ShapeError::Mismatch { layer: self.kind(), detail });
        match self {
            Layer::Normalize { mean, std }
                if mean.iter().chain(std).any(|value| !value.is_finite()) || std.iter().any(|std| *std <= 0.0) =>
            {
                return wrong(format!("means {mean:?} and deviations {std:?}; they are finite, deviations positive"));
            }
            Layer::BatchNorm { epsilon } if !(epsilon.is_finite() && *epsilon > 0.0) => {
                return wrong(format!("an epsilon of {epsilon}; it is finite and positive"));
            }
            Layer::LocalResponseNorm { size: 0, .. } => return wrong("a window of 0 channels".into()),
            Layer::LocalResponseNorm { alpha, beta, k, .. } if ![alpha, beta, k].iter().all(|value| value.is_finite()) => {
                return wrong(format!("alpha {alpha}, beta {beta} and k {k}; they are finite"));
            }
            Layer::Activation(Activation::LeakyRelu { slope }) if !slope.is_finite() => {
                return wrong(format!("a slope of {slope}; it is finite"));
            }
            Layer::Dropout { p } if !(0.0..1.0).contains(p) => {
                return wrong(format!("a probability of {p}; it lies from 0 to below 1"));
            }
            Layer::MaxPool(window) | Layer::AvgPool { window, .. } if window.kernel.iter().any(|side| *side > MAX_WINDOW) => {
                return wrong(format!("a window of {:?}; its sides are at most {MAX_WINDOW}", window.kernel));
            }
            Layer::Structured(structure) => return structure.check().or_else(|error| wrong(error.to_string())),
            Layer::Quantize { levels, zero, .. } => {
                return Grid::uniform(*levels, 1.0, *zero).check(&[]).or_else(|error| wrong(error.to_string()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Shape of the output for inputs of these shapes and weights of the shape `weight` (conv2d and linear; ignored elsewhere).
    ///
    /// # Errors
    /// When the number of inputs or a shape does not fit. A custom kernel answers for itself and is an error here.
    pub fn output_shape(&self, inputs: &[&[usize]], weight: Option<&[usize]>) -> Result<Vec<usize>, ShapeError> {
        self.check()?;
        let layer = self.kind();
        let bad = |detail: String| ShapeError::Mismatch { layer, detail };
        match self {
            Layer::Input { .. } if !inputs.is_empty() => {
                return Err(ShapeError::Arity { layer, expected: "no", found: inputs.len() });
            }
            Layer::Add | Layer::Concat if inputs.len() < 2 => {
                return Err(ShapeError::Arity { layer, expected: "two or more", found: inputs.len() });
            }
            Layer::Multiply if inputs.len() != 2 => {
                return Err(ShapeError::Arity { layer, expected: "two", found: inputs.len() });
            }
            Layer::Input { .. } | Layer::Add | Layer::Concat | Layer::Multiply => {}
            _ if inputs.len() != 1 => return Err(ShapeError::Arity { layer, expected: "one", found: inputs.len() }),
            _ => {}
        }
        let map = || match inputs[0] {
            [c, h, w] => Ok((*c, *h, *w)),
            other => Err(bad(format!("takes a feature map [channels, height, width], got {other:?}"))),
        };
        let shape = match self {
            Layer::Input { shape } if !matches!(shape.len(), 1 | 3) => {
                return Err(bad(format!("{shape:?} is neither a feature map [channels, height, width] nor a vector [features]")));
            }
            Layer::Input { shape } => shape.clone(),
            Layer::Normalize { mean, std } => {
                if map()?.0 != mean.len() || mean.len() != std.len() {
                    return Err(bad(format!("{} means and {} deviations for the input {:?}", mean.len(), std.len(), inputs[0])));
                }
                inputs[0].to_vec()
            }
            Layer::Conv2d { stride, padding, dilation, groups } => {
                let (c, h, w) = map()?;
                let Some(&[out, fan, kh, kw]) = weight else {
                    return Err(bad(format!("weight must be [out, in / groups, kh, kw], is {weight:?}")));
                };
                if *groups == 0 || fan.checked_mul(*groups) != Some(c) || out == 0 || !out.is_multiple_of(*groups) {
                    return Err(bad(format!("weight {weight:?} in {groups} group(s) does not take {c} channels")));
                }
                let oh = extent(h, kh, stride[0], padding[0], dilation[0]);
                let ow = extent(w, kw, stride[1], padding[1], dilation[1]);
                let (Some(oh), Some(ow)) = (oh, ow) else {
                    return Err(bad(format!("kernel {kh}x{kw} does not fit the input {:?}", inputs[0])));
                };
                vec![out, oh, ow]
            }
            Layer::Linear => {
                let Some(&[out, fan]) = weight else {
                    return Err(bad(format!("weight must be [out, in], is {weight:?}")));
                };
                if inputs[0] != [fan] || out == 0 {
                    return Err(bad(format!("weight {weight:?} does not take the input {:?}", inputs[0])));
                }
                vec![out]
            }
            Layer::MaxPool(window) | Layer::AvgPool { window, .. } => {
                let (c, h, w) = map()?;
                let fits = |axis: usize| window.padding[axis] < window.kernel[axis];
                let oh = extent(h, window.kernel[0], window.stride[0], window.padding[0], 1);
                let ow = extent(w, window.kernel[1], window.stride[1], window.padding[1], 1);
                let (Some(oh), Some(ow), true, true) = (oh, ow, fits(0), fits(1)) else {
                    return Err(bad(format!("window {window:?} does not fit the input {:?}", inputs[0])));
                };
                vec![c, oh, ow]
            }
            Layer::AdaptiveAvgPool { output } => {
                let (c, h, w) = map()?;
                if output[0] == 0 || output[1] == 0 || h == 0 || w == 0 {
                    return Err(bad(format!("cannot pool {:?} to {output:?}", inputs[0])));
                }
                vec![c, output[0], output[1]]
            }
            Layer::GlobalAvgPool => vec![map()?.0],
            Layer::Add => {
                if let Some(other) = inputs.iter().find(|shape| *shape != &inputs[0]) {
                    return Err(bad(format!("inputs of different shapes {:?} and {other:?}", inputs[0])));
                }
                inputs[0].to_vec()
            }
            Layer::Concat => {
                let rest = inputs[0].get(1..);
                if let Some(other) = inputs.iter().find(|shape| shape.is_empty() || shape.get(1..) != rest) {
                    return Err(bad(format!("inputs {:?} and {other:?} differ beyond the channels", inputs[0])));
                }
                let channels = inputs.iter().map(|shape| shape[0]).fold(0_usize, usize::saturating_add);
                std::iter::once(channels).chain(inputs[0][1..].iter().copied()).collect()
            }
            Layer::ChannelSlice { start, len } => {
                let channels = inputs[0].first().copied().unwrap_or(0);
                if *len == 0 || start.checked_add(*len).is_none_or(|end| end > channels) {
                    return Err(bad(format!("channels {start}..{start}+{len} of {channels}")));
                }
                std::iter::once(*len).chain(inputs[0][1..].iter().copied()).collect()
            }
            Layer::PadShortcut { stride, before, after } => {
                let (c, h, w) = map()?;
                if *stride == 0 {
                    return Err(bad("stride 0".into()));
                }
                vec![c.saturating_add(*before).saturating_add(*after), h.div_ceil(*stride), w.div_ceil(*stride)]
            }
            Layer::Flatten => vec![inputs[0].iter().copied().fold(1_usize, usize::saturating_mul)],
            Layer::Structured(structure) => {
                let [features, outputs] = structure.features();
                if inputs[0].first() != Some(&features) || !matches!(inputs[0].len(), 1 | 3) {
                    return Err(bad(format!("a matrix [{outputs}, {features}] does not take the input {:?}", inputs[0])));
                }
                std::iter::once(outputs).chain(inputs[0][1..].iter().copied()).collect()
            }
            Layer::MeanMagnitude => match inputs[0] {
                [_, rest @ ..] => std::iter::once(1).chain(rest.iter().copied()).collect(),
                [] => return Err(bad("the input has no channels".into())),
            },
            Layer::Multiply => {
                let one = std::iter::once(1).chain(inputs[0].iter().skip(1).copied());
                if inputs[0].is_empty() || (inputs[1] != inputs[0] && !inputs[1].iter().copied().eq(one)) {
                    return Err(bad(format!("inputs of the shapes {:?} and {:?}", inputs[0], inputs[1])));
                }
                inputs[0].to_vec()
            }
            Layer::Custom { kernel, .. } => return Err(bad(format!("open kernel {kernel:?} is not known here"))),
            Layer::LocalResponseNorm { .. } => {
                map()?;
                inputs[0].to_vec()
            }
            Layer::BatchNorm { .. } | Layer::Activation(_) | Layer::Softmax | Layer::Dropout { .. } | Layer::Quantize { .. } => {
                inputs[0].to_vec()
            }
        };
        match shape.iter().copied().fold(1_usize, usize::saturating_mul) {
            0 => Err(bad(format!("the output {shape:?} is empty"))),
            n if n > MAX_ACTIVATIONS => {
                Err(bad(format!("the output {shape:?} of one sample has more values than the limit of {MAX_ACTIVATIONS}")))
            }
            _ => Ok(shape),
        }
    }

    /// Multiply-accumulates of one sample for this weight and output shape. Only products with weights count, as in the papers'
    /// tables; normalization, pooling and activations are free.
    pub fn macs(&self, weight: Option<&[usize]>, output: &[usize]) -> u64 {
        match (self, weight) {
            (Layer::Conv2d { .. }, Some(&[_, fan, kh, kw])) => (fan * kh * kw) as u64 * output.iter().product::<usize>() as u64,
            (Layer::Linear, Some(&[out, fan])) => out as u64 * fan as u64,
            (Layer::Structured(structure), _) => structure.macs() * output[1..].iter().product::<usize>() as u64,
            _ => 0,
        }
    }
}

/// Number of window positions along one axis, or none when the window does not fit once.
fn extent(size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Option<usize> {
    if kernel == 0 || stride == 0 || dilation == 0 {
        return None;
    }
    let span = (kernel - 1).checked_mul(dilation)?.checked_add(1)?;
    let padded = padding.checked_mul(2)?.checked_add(size)?;
    padded.checked_sub(span).map(|rest| rest / stride + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolution_follows_the_usual_formula() {
        let conv = Layer::Conv2d { stride: [2, 2], padding: [3, 3], dilation: [1, 1], groups: 1 };
        let weight = [64, 3, 7, 7];
        let out = conv.output_shape(&[&[3, 224, 224]], Some(&weight)).unwrap();
        assert_eq!(out, [64, 112, 112]);
        assert_eq!(conv.macs(Some(&weight), &out), 118_013_952);
    }

    #[test]
    fn shapes_that_do_not_fit_name_both_sides() {
        let error = Layer::Linear.output_shape(&[&[800]], Some(&[10, 500])).unwrap_err();
        assert_eq!(error.to_string(), "linear: weight Some([10, 500]) does not take the input [800]");
        assert!(Layer::Add.output_shape(&[&[8, 4, 4], &[16, 4, 4]], None).is_err());
        let error = Layer::Multiply.output_shape(&[&[8, 4, 4], &[1, 4, 3]], None).unwrap_err();
        assert_eq!(error.to_string(), "multiply: inputs of the shapes [8, 4, 4] and [1, 4, 3]");
        let error = Layer::Multiply.output_shape(&[&[8]], None).unwrap_err();
        assert_eq!(error.to_string(), "multiply takes two input(s), 1 are wired");
        assert_eq!(Layer::Multiply.output_shape(&[&[8, 4, 4], &[1, 4, 4]], None).unwrap(), [8, 4, 4]);
        assert_eq!(Layer::MeanMagnitude.output_shape(&[&[8, 4, 3]], None).unwrap(), [1, 4, 3]);
        assert!(Layer::MaxPool(Window::square(3)).output_shape(&[&[1, 2, 2]], None).is_err());
    }
}
