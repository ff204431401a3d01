//! Layers without parameters.

use briquette_runtime::{Activation, Layer, Window};
use burn::tensor::module::{adaptive_avg_pool2d, avg_pool2d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Tensor, activation};

use super::Flow;
use crate::chance;
use crate::kernels::{self, takes};

pub(super) fn forward(layer: &Layer, mut inputs: Vec<Flow>) -> Flow {
    match layer {
        Layer::Normalize { mean, std } => {
            let x = inputs.remove(0).first();
            let device = x.device();
            let per_channel =
                |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), &device).reshape([1, values.len(), 1, 1]);
            Flow::First((x - per_channel(mean.clone())) * per_channel(std.iter().map(|s| 1.0 / s).collect()))
        }
        Layer::Activation(function) => match inputs.remove(0) {
            Flow::First(x) => Flow::First(activate(*function, x)),
            Flow::Last(x) => Flow::Last(activate(*function, x)),
            Flow::Vector(x) => Flow::Vector(activate(*function, x)),
        },
        Layer::Softmax => match inputs.remove(0) {
            Flow::First(x) => Flow::First(activation::softmax(x, 1)),
            Flow::Last(x) => Flow::Last(activation::softmax(x, 3)),
            Flow::Vector(x) => Flow::Vector(activation::softmax(x, 1)),
        },
        Layer::LocalResponseNorm { size, alpha, beta, k } => {
            let x = inputs.remove(0).first();
            let [n, c, h, w] = x.dims();
            // What reaches beyond all channels counts in the mean, but nothing is there.
            let (before, after) = ((size / 2).min(c - 1), ((size - 1) / 2).min(c - 1));
            let (seen, squares) = (before + 1 + after, x.clone().powi_scalar(2).reshape([n, 1, c, h * w]));
            let options = AvgPoolOptions::new([seen, 1])
                .with_stride([1, 1])
                .with_padding_pairs([(before, after), (0, 0)])
                .with_count_include_pad(true);
            let mean = avg_pool2d(squares, options).reshape([n, c, h, w]);
            let alpha = if seen < *size { alpha * seen as f64 / *size as f64 } else { *alpha };
            Flow::First(x / (mean.mul_scalar(alpha).add_scalar(*k)).powf_scalar(*beta))
        }
        Layer::MaxPool(window) => match inputs.remove(0).last() {
            Ok(x) => Flow::Last(kernels::max_pool(window, x)),
            Err(x) => {
                let options = MaxPoolOptions::new(window.kernel).with_stride(window.stride).with_padding(window.padding);
                Flow::First(burn::tensor::module::max_pool2d(x, options))
            }
        },
        Layer::AvgPool { window, count_padding } => Flow::First(average(inputs.remove(0).first(), window, *count_padding)),
        Layer::AdaptiveAvgPool { output } => Flow::First(adaptive_avg_pool2d(inputs.remove(0).first(), *output)),
        Layer::GlobalAvgPool => match inputs.remove(0).last() {
            Ok(x) => Flow::Vector(kernels::channel_means(x)),
            Err(x) => {
                let [n, c, h, w] = x.dims();
                Flow::Vector(x.reshape([n, c, h * w]).mean_dim(2).reshape([n, c]))
            }
        },
        Layer::Add => inputs
            .into_iter()
            .reduce(|sum, next| match (sum, next) {
                (Flow::Vector(a), b) => Flow::Vector(a + b.vector()),
                (Flow::Last(a), Flow::Last(b)) => Flow::Last(a + b),
                (a, b) => Flow::First(a.first() + b.first()),
            })
            .expect("the shapes were checked"),
        Layer::Concat => match inputs[0] {
            Flow::Vector(_) => Flow::Vector(Tensor::cat(inputs.into_iter().map(Flow::vector).collect(), 1)),
            Flow::First(_) | Flow::Last(_) => {
                let maps: Result<Vec<Tensor<4>>, Vec<Flow>> = all_last(inputs);
                match maps {
                    Ok(maps) => Flow::Last(Tensor::cat(maps, 3)),
                    Err(maps) => Flow::First(Tensor::cat(maps.into_iter().map(Flow::first).collect(), 1)),
                }
            }
        },
        Layer::ChannelSlice { start, len } => match inputs.remove(0) {
            Flow::First(x) => Flow::First(x.narrow(1, *start, *len)),
            Flow::Last(x) => Flow::Last(x.narrow(3, *start, *len)),
            Flow::Vector(x) => Flow::Vector(x.narrow(1, *start, *len)),
        },
        Layer::PadShortcut { stride, before, after } => match inputs.remove(0).last() {
            Ok(x) => Flow::Last(kernels::pad_shortcut(x, *stride, *before, *after)),
            Err(x) => {
                let window = Window { kernel: [1, 1], stride: [*stride; 2], padding: [0; 2] };
                let x = average(x, &window, true);
                let [n, _, h, w] = x.dims();
                let device = x.device();
                let zeros = |channels: usize| (channels > 0).then(|| Tensor::<4>::zeros([n, channels, h, w], &device));
                Flow::First(Tensor::cat([zeros(*before), Some(x), zeros(*after)].into_iter().flatten().collect(), 1))
            }
        },
        Layer::Flatten => match inputs.remove(0) {
            vector @ Flow::Vector(_) => vector,
            map => Flow::Vector(map.first().flatten(1, 3)),
        },
        Layer::Dropout { p } => {
            let value = inputs.remove(0);
            let training = match &value {
                Flow::First(x) | Flow::Last(x) => x.device().is_autodiff(),
                Flow::Vector(x) => x.device().is_autodiff(),
            };
            if *p == 0.0 || !training {
                return value;
            }
            match value {
                Flow::First(x) => Flow::First(drop_out(x, *p)),
                Flow::Last(x) => Flow::Last(drop_out(x, *p)),
                Flow::Vector(x) => Flow::Vector(drop_out(x, *p)),
            }
        }
        Layer::MeanMagnitude => match inputs.remove(0) {
            Flow::First(x) => Flow::First(x.abs().mean_dim(1)),
            Flow::Last(x) => Flow::Last(x.abs().mean_dim(3)),
            Flow::Vector(x) => Flow::Vector(x.abs().mean_dim(1)),
        },
        Layer::Multiply => {
            let factor = inputs.pop().expect("the shapes were checked");
            match (inputs.remove(0), factor) {
                (Flow::Vector(x), factor) => Flow::Vector(x * factor.vector()),
                (Flow::Last(x), Flow::Last(factor)) => Flow::Last(x * factor),
                (x, factor) => Flow::First(x.first() * factor.first()),
            }
        }
        Layer::Input { .. }
        | Layer::Conv2d { .. }
        | Layer::Linear
        | Layer::BatchNorm { .. }
        | Layer::Structured(_)
        | Layer::Quantize { .. }
        | Layer::Custom { .. } => {
            unreachable!("{} is no parameter-free function of other nodes", layer.kind())
        }
    }
}

/// The maps channels last, if all of them lie so.
fn all_last(maps: Vec<Flow>) -> Result<Vec<Tensor<4>>, Vec<Flow>> {
    if !maps.iter().all(|map| matches!(map, Flow::Last(_))) {
        return Err(maps);
    }
    Ok(maps.into_iter().filter_map(|map| map.last().ok()).collect())
}

fn average(x: Tensor<4>, window: &Window, count_padding: bool) -> Tensor<4> {
    let options = AvgPoolOptions::new(window.kernel)
        .with_stride(window.stride)
        .with_padding(window.padding)
        .with_count_include_pad(count_padding);
    avg_pool2d(x, options)
}

pub(crate) fn activate<const D: usize>(function: Activation, x: Tensor<D>) -> Tensor<D> {
    match function {
        Activation::Relu if takes(&x) => kernels::rectify(x),
        Activation::Relu => activation::relu(x),
        Activation::LeakyRelu { slope } => activation::leaky_relu(x, slope),
        Activation::Relu6 => activation::relu6(x),
        Activation::Sigmoid => activation::sigmoid(x),
        Activation::Tanh => activation::tanh(x),
        Activation::Gelu => activation::gelu(x),
        Activation::Silu => activation::silu(x),
    }
}

fn drop_out<const D: usize>(x: Tensor<D>, p: f64) -> Tensor<D> {
    let kept = chance::uniform_like(&x).greater_equal_elem(p).float();
    x * kept.mul_scalar(1.0 / (1.0 - p))
}
