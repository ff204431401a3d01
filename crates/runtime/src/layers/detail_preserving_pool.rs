//! Means that favour details.

use super::shape::map;
use super::{Arity, Channels, Constants, Extent, Kind, Parameters, Role, Runnable, Sign, Storable, Tensor};
use crate::bytes::Reader;
use crate::engine::{Operation, Threads, decoded};
use crate::{Error, Node};

/// Of each 2 by 2 pixels `x_i` of the first input `sum_i w_i x_i / sum_i w_i`, weighted by how far they are from the second input's pixel `m` there, which
/// is their mean or what a convolution makes of them: with `d_i = x_i - m`, or `max(d_i, 0)` where not `symmetric`, `q_i = d_i^2 + 0.001` over its mean
/// in the window, and `w_i = q_i^(e^l / 2) + e^a`. Tensors `log-alpha` `a`, which counts as 10 at most, and `log-lambda` `l`, each `[channels]`.
///
/// Saeedan, Weber, Goesele, Roth. "Detail-Preserving Pooling in Deep Networks". CVPR 2018. arXiv:1804.04076; `q` is over the mean as in the authors'
/// graph, not over the sum as in their CUDA code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DetailPreservingPool {
    /// Whether pixels below `m` are details as well.
    pub symmetric: bool,
}

impl DetailPreservingPool {
    /// Added to squares.
    pub const EPSILON: f32 = 1e-3;
    /// Largest `a` that counts.
    pub const LARGEST_ALPHA: f32 = 10.0;
    /// Largest `l`: powers stay finite.
    const LARGEST_LAMBDA: f32 = 80.0;

    /// Of one window.
    fn of(self, x: [f32; 4], mean: f32, alpha: f32, power: f32) -> f32 {
        let square = |x: f32| {
            let d = if self.symmetric { x - mean } else { (x - mean).max(0.0) };
            d * d + Self::EPSILON
        };
        let q = x.map(square);
        let mean = q.iter().sum::<f32>() / 4.0;
        // Of all weights, which may be beyond any float, the largest power is taken out.
        let logs = q.map(|q| power * (q / mean).ln());
        let most = logs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights = logs.map(|log| (log - most).exp() + (alpha - most).exp());
        weights.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() / weights.iter().sum::<f32>()
    }
}

impl Kind for DetailPreservingPool {
    fn name(&self) -> &'static str {
        "detail-preserving-pool"
    }

    fn arity(&self) -> Arity {
        Arity::Two
    }

    fn tensors(&self) -> Vec<Tensor> {
        ["log-alpha", "log-lambda"].map(|name| Tensor::required(name, Extent::Outputs, Role::Beside)).to_vec()
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let ([c, h, w], mean) = (map(inputs[0])?, map(inputs[1])?);
        match [c, h / 2, w / 2] == mean && h % 2 == 0 && w % 2 == 0 {
            true => Ok(mean.to_vec()),
            false => {
                Err(format!("takes maps of even height and width and others of half of both, not {:?} and {mean:?}", [c, h, w]))
            }
        }
    }

    fn channels(&self) -> Channels {
        Channels::Joined
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].clone()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn usable(&self, tensor: &str, value: f32) -> bool {
        value.is_finite() && (tensor != "log-lambda" || value <= Self::LARGEST_LAMBDA)
    }
}

impl Storable for DetailPreservingPool {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.symmetric));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { symmetric: reader.truth()? })
    }
}

impl Runnable for DetailPreservingPool {
    fn operation(&self, node: &Node, _: &[usize], output: &[usize]) -> Box<dyn Operation> {
        let [alpha, lambda] = ["log-alpha", "log-lambda"].map(|name| decoded(node, name));
        let alpha = alpha.into_iter().map(|alpha| alpha.min(Self::LARGEST_ALPHA)).collect();
        let power = lambda.into_iter().map(|lambda| lambda.exp() / 2.0).collect();
        Box::new(Details { layer: *self, alpha, power, output: [output[1], output[2]] })
    }
}

#[derive(Debug)]
struct Details {
    layer: DetailPreservingPool,
    alpha: Vec<f32>,
    /// `e^l / 2`.
    power: Vec<f32>,
    output: [usize; 2],
}

impl Operation for Details {
    fn bytes(&self) -> usize {
        4 * (self.alpha.len() + self.power.len())
    }

    fn run(&self, inputs: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        let [height, width] = self.output;
        threads.pieces(output, height * width, |plane, out| {
            let (alpha, power) = (self.alpha[plane % self.alpha.len()], self.power[plane % self.power.len()]);
            let (x, means) = (&inputs[0][4 * plane * height * width..], &inputs[1][plane * height * width..]);
            for (place, (out, mean)) in out.iter_mut().zip(means).enumerate() {
                let at = 4 * width * (place / width) + 2 * (place % width);
                let window = [x[at], x[at + 1], x[at + 2 * width], x[at + 2 * width + 1]];
                *out = self.layer.of(window, *mean, alpha, power);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `detail-preserving-pooling-limits` of the reference values: between the mean of a window and its pixel that deviates most.
    #[test]
    fn between_a_mean_and_the_pixel_that_deviates_most() {
        let windows = [
            [0.543, -0.591, 0.103, 0.092],
            [1.193, 1.606, 0.543, 2.212],
            [-0.926, -0.544, 0.28, -0.23],
            [-0.642, 0.461, -0.87, -0.458],
        ];
        let pooled = |alpha: f32, lambda: f32| {
            let of = |x: [f32; 4]| {
                DetailPreservingPool { symmetric: true }.of(x, x.iter().sum::<f32>() / 4.0, alpha, lambda.exp() / 2.0)
            };
            windows.map(of)
        };
        let near = |found: [f32; 4], expected: [f32; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-5), "{found:?} {expected:?}");
        };
        near(pooled(0.0, -30.0), [0.03675, 1.3885, -0.355, -0.37725]);
        near(pooled(-700.0, 6.0), [-0.591, 0.543_040_7, 0.28, 0.461]);
    }

    #[test]
    fn maps_of_odd_sides_are_refused() {
        let shape = |x: &[usize], mean: &[usize]| DetailPreservingPool { symmetric: true }.shape(&[x, mean], None);
        assert_eq!(shape(&[3, 6, 4], &[3, 3, 2]).unwrap(), [3, 3, 2]);
        for (x, mean) in [([3, 7, 4], [3, 3, 2]), ([3, 6, 4], [3, 3, 4]), ([3, 6, 4], [1, 3, 2])] {
            assert!(shape(&x, &mean).is_err());
        }
    }
}
