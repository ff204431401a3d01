//! Element-wise functions.

use super::{Channels, Constants, Kind, Parameters, Runnable, Setting, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Lies, Operation, PIECE, Threads};
use crate::{Error, Node};

/// Element-wise functions.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
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

impl Kind for Activation {
    fn name(&self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::LeakyRelu { .. } => "leaky-relu",
            Activation::Relu6 => "relu6",
            Activation::Sigmoid => "sigmoid",
            Activation::Tanh => "tanh",
            Activation::Gelu => "gelu",
            Activation::Silu => "silu",
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Activation::LeakyRelu { slope } if !slope.is_finite() => Err(format!("a slope of {slope}; it is finite")),
            Activation::LeakyRelu { .. }
            | Activation::Relu
            | Activation::Relu6
            | Activation::Sigmoid
            | Activation::Tanh
            | Activation::Gelu
            | Activation::Silu => Ok(()),
        }
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        Ok(inputs[0].to_vec())
    }

    fn channels(&self) -> Channels {
        match self {
            Activation::Sigmoid => Channels::Disturbed("turns a masked channel into something else than zeros"),
            Activation::Relu
            | Activation::LeakyRelu { .. }
            | Activation::Relu6
            | Activation::Tanh
            | Activation::Gelu
            | Activation::Silu => Channels::Kept,
        }
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        let value = |x: f64| {
            let mut values = [x as f32];
            self.apply(&mut values);
            f64::from(values[0])
        };
        inputs[0].iter().map(|known| known.map(value)).collect()
    }

    fn sign(&self) -> Sign {
        match self {
            Activation::Relu | Activation::Relu6 | Activation::Sigmoid => Sign::NotNegative,
            Activation::LeakyRelu { .. } | Activation::Tanh | Activation::Gelu | Activation::Silu => Sign::Any,
        }
    }

    fn homogeneous(&self) -> bool {
        matches!(self, Activation::Relu | Activation::LeakyRelu { .. })
    }

    fn settings(&self) -> Vec<Setting> {
        match self {
            Activation::LeakyRelu { slope } => vec![Setting::finite("slope", [*slope])],
            Activation::Relu
            | Activation::Relu6
            | Activation::Sigmoid
            | Activation::Tanh
            | Activation::Gelu
            | Activation::Silu => Vec::new(),
        }
    }
}

impl Storable for Activation {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Activation::Relu => 0,
            Activation::LeakyRelu { .. } => 1,
            Activation::Relu6 => 2,
            Activation::Sigmoid => 3,
            Activation::Tanh => 4,
            Activation::Gelu => 5,
            Activation::Silu => 6,
        });
        if let Activation::LeakyRelu { slope } = self {
            out.put_f64(*slope);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(match reader.byte()? {
            0 => Activation::Relu,
            1 => Activation::LeakyRelu { slope: reader.f64()? },
            2 => Activation::Relu6,
            3 => Activation::Sigmoid,
            4 => Activation::Tanh,
            5 => Activation::Gelu,
            6 => Activation::Silu,
            other => return Err(Error::corrupt(format!("activation {other}"))),
        })
    }
}

impl Runnable for Activation {
    fn operation(&self, _: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        Box::new(*self)
    }

    fn merge(&self, _: &Node, before: &mut dyn Operation) -> bool {
        let Some(free @ None) = before.activation() else { return false };
        *free = Some(*self);
        true
    }
}

impl Operation for Activation {
    fn lies(&self) -> Lies {
        Lies::Either
    }

    fn in_place(&self) -> bool {
        true
    }

    fn run(&self, _: &[&[f32]], _: usize, output: &mut [f32], threads: &Threads) {
        threads.pieces(output, PIECE, |_, out| self.apply(out));
    }
}

impl Activation {
    /// Computes it in place.
    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            // What is not a number stays none, as where kernels rectify.
            Activation::Relu => each(values, |x| if 0.0 > x { 0.0 } else { x }),
            Activation::LeakyRelu { slope } => each(values, |x| if x > 0.0 { x } else { slope as f32 * x }),
            Activation::Relu6 => each(values, |x| x.clamp(0.0, 6.0)),
            Activation::Sigmoid => each(values, sigmoid),
            Activation::Tanh => each(values, f32::tanh),
            Activation::Gelu => {
                each(values, |x| (0.5 * f64::from(x) * erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2)) as f32);
            }
            Activation::Silu => each(values, |x| x * sigmoid(x)),
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
        activation.apply(&mut values);
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
