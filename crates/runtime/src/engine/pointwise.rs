//! Operations that keep the shape, and those that only move channels.

use crate::{Activation, Grid};

/// Applies an activation in place.
pub(crate) fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Relu => each(values, |x| x.max(0.0)),
        Activation::LeakyRelu { slope } => each(values, |x| if x > 0.0 { x } else { slope as f32 * x }),
        Activation::Relu6 => each(values, |x| x.clamp(0.0, 6.0)),
        Activation::Sigmoid => each(values, sigmoid),
        Activation::Tanh => each(values, f32::tanh),
        Activation::Gelu => each(values, |x| (0.5 * f64::from(x) * erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2)) as f32),
        Activation::Silu => each(values, |x| x * sigmoid(x)),
    }
}

/// The values of the nearest codes of a grid.
pub(crate) fn quantize(grid: &Grid, values: &mut [f32]) {
    let (step, zero, last) = (grid.steps[0], grid.zeros[0], (grid.levels - 1) as f32);
    each(values, |x| step * (((x / step + zero).clamp(0.0, last) + 0.5).floor() - zero));
}

/// The mean absolute value over the channels of one sample, at every position.
pub(crate) fn mean_magnitude(channels: usize, sample: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for plane in sample.chunks(out.len()) {
        out.iter_mut().zip(plane).for_each(|(sum, x)| *sum += x.abs());
    }
    each(out, |sum| sum / channels as f32);
}

/// `x * scale + shift` per channel of one sample.
pub(crate) fn affine(scale: &[f32], shift: &[f32], sample: &mut [f32]) {
    let area = sample.len() / scale.len();
    for ((scale, shift), values) in scale.iter().zip(shift).zip(sample.chunks_mut(area)) {
        each(values, |x| x * scale + shift);
    }
}

/// `(x - mean) / std` per channel of one sample.
pub(crate) fn normalize(mean: &[f32], std: &[f32], sample: &mut [f32]) {
    let area = sample.len() / mean.len();
    for ((mean, std), values) in mean.iter().zip(std).zip(sample.chunks_mut(area)) {
        each(values, |x| (x - mean) / std);
    }
}

/// Soft-max over the channels of one sample, at every position.
pub(crate) fn softmax(channels: usize, sample: &mut [f32]) {
    let area = sample.len() / channels;
    for position in 0..area {
        let largest = sample.iter().skip(position).step_by(area).copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in sample.iter_mut().skip(position).step_by(area) {
            *value = (*value - largest).exp();
            sum += *value;
        }
        sample.iter_mut().skip(position).step_by(area).for_each(|value| *value /= sum);
    }
}

/// Normalization across neighbouring channels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalResponse {
    pub(crate) channels: usize,
    pub(crate) size: usize,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) k: f32,
}

impl LocalResponse {
    /// One sample `[channels, h, w]`.
    pub(crate) fn run(&self, input: &[f32], output: &mut [f32]) {
        let area = output.len() / self.channels;
        for (channel, out) in output.chunks_mut(area).enumerate() {
            out.fill(0.0);
            let first = channel.saturating_sub(self.size / 2);
            let end = channel.saturating_add(self.size.div_ceil(2)).min(self.channels);
            for other in input[first * area..end * area].chunks(area) {
                out.iter_mut().zip(other).for_each(|(sum, x)| *sum += x * x);
            }
            let scale = self.alpha / self.size as f32;
            let own = &input[channel * area..][..area];
            out.iter_mut().zip(own).for_each(|(sum, x)| *sum = x / (self.k + scale * *sum).powf(self.beta));
        }
    }
}

/// The parameter-free shortcut: sub-samples planes and surrounds them with planes of zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shortcut {
    pub(crate) input: [usize; 3],
    pub(crate) output: [usize; 3],
    pub(crate) stride: usize,
    pub(crate) before: usize,
}

impl Shortcut {
    /// One sample.
    pub(crate) fn run(&self, input: &[f32], output: &mut [f32]) {
        let [channels, height, width] = self.input;
        let [_, out_height, out_width] = self.output;
        output.fill(0.0);
        let planes = output.chunks_mut(out_height * out_width).skip(self.before).take(channels);
        for (plane, input) in planes.zip(input.chunks(height * width)) {
            for (row, input) in plane.chunks_mut(out_width).zip(input.chunks(width).step_by(self.stride)) {
                row.iter_mut().zip(input.iter().step_by(self.stride)).for_each(|(out, x)| *out = *x);
            }
        }
    }
}

fn each(values: &mut [f32], map: impl Fn(f32) -> f32) {
    values.iter_mut().for_each(|value| *value = map(*value));
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The complementary error function to a relative error of 1.2e-7: the Chebyshev fit of Press et al., "Numerical Recipes in C",
/// 2nd edition, section 6.2.
fn erfc(x: f64) -> f64 {
    const FIT: [f64; 10] = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let fit = FIT.iter().rev().fold(0.0, |sum, coefficient| sum * t + coefficient);
    let tail = t * (fit - x * x).exp();
    if x < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(activation: Activation, x: f32) -> f32 {
        let mut values = [x];
        activate(activation, &mut values);
        values[0]
    }

    #[test]
    fn activations_take_known_values() {
        let close = |a: f32, b: f32| assert!((a - b).abs() < 2e-6, "{a} and {b}");
        assert_eq!(one(Activation::Relu, -1.0), 0.0);
        assert_eq!(one(Activation::LeakyRelu { slope: 0.5 }, -1.0), -0.5);
        assert_eq!(one(Activation::Relu6, 7.0), 6.0);
        close(one(Activation::Sigmoid, 1.0), 0.731_058_6);
        close(one(Activation::Tanh, 0.5), 0.462_117_2);
        close(one(Activation::Silu, 1.0), 0.731_058_6);
        // x / 2 * (1 + erf(x / sqrt 2)) with erf(0.7071068) = 0.6826895 and erf(1.4142136) = 0.9544997.
        close(one(Activation::Gelu, 1.0), 0.841_344_7);
        close(one(Activation::Gelu, -2.0), -0.045_500_3);
        assert_eq!(one(Activation::Gelu, -40.0), 0.0);
    }
}
