//! Values on uniform grids, with gradients that go straight through the rounding.
//!
//! The code of a value `x` is `q = floor(u + 1/2)` with `u = clamp(x / step + zero, 0, levels - 1)`, and what the network computes with is
//! `step (q - zero)`. Rounding has no useful gradient; the straight-through estimator (Bengio, Leonard, Courville, "Estimating or Propagating
//! Gradients Through Stochastic Neurons", arXiv:1308.3432, 2013) takes `dq/du = 1`. So a value inside the grid gets the gradient of what
//! became of it, one beyond the ends none, and a trained step gets `q - zero - x / step` inside and `q - zero` beyond: the learned step
//! size of Esser et al. (ICLR 2020).

use briquette_runtime::{Grid, Layer, StepGradient, layers};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::chance;
use crate::extension::{self, Levels, Quantizing, takes};
use crate::net::Op;
use crate::tensors::{Parameter, Ranked, Tensors};
use crate::types::Bits;

/// How weights become codes while they are trained. What is stored are the codes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the nearest code.
    #[default]
    Nearest,
    /// While training up with the probability of `u`'s fraction and down otherwise, so that the mean is `u` (Gupta, Agrawal, Gopalakrishnan,
    /// Narayanan, "Deep Learning with Limited Numerical Precision", ICML 2015); to the nearest elsewhere.
    Stochastic,
    /// To the nearest code of `tanh(w) / max |tanh(w)|` (Zhou et al., "DoReFa-Net", arXiv:1606.06160, 2016).
    Tanh,
    /// One above the zero for `w > d`, one below for `w < -d`, with `d = 0.7 mean |w|` for each step (Li, Zhang, Liu, "Ternary Weight Networks",
    /// arXiv:1605.04711, 2016).
    Threshold,
}

/// Share of the mean absolute weight below which a ternary weight is zero.
const THRESHOLD: f64 = 0.7;

/// A weight's grid on the device.
#[derive(Module, Debug)]
pub(crate) struct OnGrid {
    pub(crate) steps: Param<Tensor<1>>,
    pub(crate) zeros: Param<Tensor<1>>,
    /// [`OnGrid::describe`]: Burn shows a visitor tensors only.
    pub(crate) described: Param<Tensor<1, Int>>,
    #[module(skip)]
    levels: u32,
    #[module(skip)]
    axis: Option<usize>,
    #[module(skip)]
    rounding: Rounding,
    #[module(skip)]
    learned: bool,
}

impl OnGrid {
    pub(crate) fn new(grid: &Grid, rounding: Rounding, learned: bool, device: &Device) -> Self {
        let vector = |values: &[f32]| Param::from_tensor(Tensor::<1>::from_floats(values, device));
        let described = Self::describe(grid.levels, grid.axis, rounding, learned);
        Self {
            steps: vector(&grid.steps).set_require_grad(learned),
            zeros: vector(&grid.zeros).set_require_grad(false),
            described: Param::initialized(ParamId::new(), Tensor::from_data(TensorData::from(described), device)),
            levels: grid.levels,
            axis: grid.axis,
            rounding,
            learned,
        }
    }

    fn describe(levels: u32, axis: Option<usize>, rounding: Rounding, learned: bool) -> [i64; 4] {
        [i64::from(levels), axis.map_or(-1, |axis| axis as i64), rounding as i64, i64::from(learned)]
    }

    /// What [`OnGrid::describe`] describes: levels, axis, rounding, and whether steps are learned.
    pub(crate) fn described(numbers: &[i64]) -> Option<(u32, Option<usize>, Rounding, bool)> {
        let [levels, axis, rounding, learned] = *numbers else { return None };
        let roundings = [Rounding::Nearest, Rounding::Stochastic, Rounding::Tanh, Rounding::Threshold];
        let rounding = roundings.into_iter().find(|known| *known as i64 == rounding)?;
        Some((u32::try_from(levels).ok()?, usize::try_from(axis).ok(), rounding, learned != 0))
    }

    /// The values that the network computes with, for the tensor's own. What follows from several of them is over those that `mask`, 1 or 0
    /// for each, keeps.
    pub(crate) fn apply<const D: usize>(&self, base: Tensor<D>, mask: Option<Tensor<D>>) -> Tensor<D> {
        let shape = base.shape();
        let [outer, channels, inner] = view(shape.as_slice(), self.axis);
        let w = base.reshape([outer, channels, inner]);
        let mask = mask.map(|mask| mask.reshape([outer, channels, inner]));
        let left = |x: Tensor<3>| mask.clone().map_or(x.clone(), |mask| x * mask);
        let zeros = self.zeros.val().reshape([1, channels, 1]);
        let mut steps = self.steps.val();
        if self.learned {
            steps = scaled_gradient(steps, |steps| match &mask {
                None => steps.mul_scalar(gradient_scale(self.levels, outer * inner)),
                Some(mask) => {
                    let kept = mask.clone().sum_dim(0).sum_dim(2).reshape([channels]).clamp_min(1.0);
                    steps * kept.sqrt().recip().mul_scalar(gradient_scale(self.levels, 1))
                }
            });
        }
        let steps = steps.reshape([1, channels, 1]);
        // Two levels have no inside: all weights learn, and whoever trains them keeps them in bounds.
        let bounded = self.levels > 2 || self.learned;
        let q = match self.rounding {
            Rounding::Nearest => codes(w / steps.clone() + zeros.clone(), self.levels, bounded, None),
            Rounding::Stochastic => {
                let u = w / steps.clone() + zeros.clone();
                let noise = u.device().is_autodiff().then(|| chance::uniform_like(&u));
                codes(u, self.levels, bounded, noise)
            }
            Rounding::Tanh => {
                let squashed = w.tanh();
                let largest = left(squashed.clone().abs()).max().clamp_min(f32::MIN_POSITIVE).reshape([1, 1, 1]);
                codes(squashed / largest / steps.clone() + zeros.clone(), self.levels, bounded, None)
            }
            Rounding::Threshold => {
                let size = w.clone().abs();
                let small = mean(&size, mask.as_ref()).mul_scalar(THRESHOLD).expand([outer, channels, inner]);
                let large = size.greater(small).float();
                let q = large * w.clone().sign() + zeros.clone();
                straight(q, w / steps.clone())
            }
        };
        ((q - zeros) * steps).reshape(shape)
    }
}

/// The mean over each channel of `[before, channels, behind]`, `[1, channels, 1]`: over the values that a mask, 1 or 0 for each, keeps, or 0
/// where it keeps none.
pub fn mean(x: &Tensor<3>, mask: Option<&Tensor<3>>) -> Tensor<3> {
    match mask {
        None => x.clone().mean_dim(0).mean_dim(2),
        Some(mask) => {
            let sum = |x: Tensor<3>| x.sum_dim(0).sum_dim(2);
            sum(x.clone() * mask.clone()) / sum(mask.clone()).clamp_min(1.0)
        }
    }
}

/// Three values, two of which are trained, on the device: [`Source::Ternary`](crate::coding::Source::Ternary).
#[derive(Module, Debug)]
pub(crate) struct Ternary {
    /// `[n, p]`.
    pub(crate) scales: Param<Tensor<1>>,
    /// `[t]`.
    pub(crate) share: Param<Tensor<1>>,
}

impl Ternary {
    pub(crate) fn new(scales: [f32; 2], share: f32, device: &Device) -> Self {
        Self {
            scales: Param::from_tensor(Tensor::from_floats(scales, device)),
            share: Param::from_tensor(Tensor::<1>::from_floats([share], device)).set_require_grad(false),
        }
    }

    /// The values that the network computes with, for the tensor's own; the largest is that of those which `mask`, 1 or 0 for each, keeps.
    pub(crate) fn apply<const D: usize>(&self, base: Tensor<D>, mask: Option<Tensor<D>>) -> Tensor<D> {
        let shape = base.shape();
        let all = |scalar: Tensor<1>| scalar.reshape([1; D]).expand(shape.clone());
        let values = base.clone().detach();
        let size = values.clone().abs();
        let threshold = all(mask.map_or(size.clone(), |mask| size * mask).max() * self.share.val());
        let above = values.clone().greater(threshold.clone()).float();
        let below = values.lower(threshold.neg()).float();
        let scales = self.scales.val();
        let [n, p] = [0, 1].map(|index| scales.clone().narrow(0, index, 1));
        let between = (above.clone() + below.clone()).mul_scalar(-1.0).add_scalar(1.0);
        let factor = above.clone() * all(p.clone().detach()) + below.clone() * all(n.clone().detach()) + between;
        let ternary = above * all(p) - below * all(n);
        let through = base * factor;
        ternary + (through.clone() - through.detach())
    }
}

/// The dimensions before an axis, the axis, and the dimensions behind it; without an axis, all values belong to one channel.
pub(crate) fn view(shape: &[usize], axis: Option<usize>) -> [usize; 3] {
    match axis {
        None => [1, 1, shape.iter().product()],
        Some(axis) => [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()],
    }
}

/// Activations on a uniform grid: a [`Layer::Quantize`] with its tensor, which clones share with the node.
#[derive(Debug, Clone)]
pub struct Quantize {
    /// What is trained and stored, `[1]`: the distance between neighbouring values, or the upper end of the grid where that is the clip value.
    pub scale: Param<Tensor<1>>,
    /// Number of codes.
    pub levels: u32,
    /// The code, or the middle of two, that stands for 0.
    pub zero: f32,
    /// What trains the step.
    pub train: StepGradient,
}

impl Quantize {
    /// From a step, or a clip value, trained or not.
    pub fn new(scale: Param<Tensor<1>>, levels: u32, zero: f32, train: StepGradient) -> Self {
        Self { scale: scale.set_require_grad(train != StepGradient::Fixed), levels, zero, train }
    }

    /// That of a node, where it is one.
    pub(crate) fn of(tensors: &Tensors) -> Option<Self> {
        let Layer::Quantize(layers::Quantize { levels, zero, train }) = tensors.layer else { return None };
        let Some(Ranked::One(scale)) = tensors.get(train.tensor()) else { return None };
        Some(Self { scale: scale.clone(), levels, zero, train })
    }

    /// The distance between neighbouring values, `[1]`, with the gradients of what is trained.
    pub fn step(&self) -> Tensor<1> {
        match self.train {
            StepGradient::Fixed | StepGradient::Learned => self.scale.val(),
            StepGradient::Clip => self.scale.val().div_scalar(self.train.steps(self.levels, self.zero)),
        }
    }

    /// The layer without its tensor.
    pub fn layer(&self) -> Layer {
        Layer::Quantize(layers::Quantize { levels: self.levels, zero: self.zero, train: self.train })
    }

    /// The nearest values of the grid.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if !takes(&x) {
            return self.composed(x);
        }
        let shape = x.shape();
        let scale = gradient_scale(self.levels, features(shape.as_slice()));
        extension::quantize(x, self.step(), Quantizing { levels: self.levels, zero: self.zero, train: self.train, scale })
    }

    /// The same, of Burn's operations.
    fn composed<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let shape = x.shape();
        let step = self.step();
        let step = match self.train {
            StepGradient::Fixed => step,
            StepGradient::Learned => {
                scaled_gradient(step, |step| step.mul_scalar(gradient_scale(self.levels, features(shape.as_slice()))))
            }
            StepGradient::Clip => {
                // Only through the upper end: a clip value that no rounding error pulls at.
                let last = (self.levels - 1) as f32 - self.zero;
                let clipped = x.clone().lower_equal(step.clone().detach().mul_scalar(last).reshape([1; D]).expand(shape.clone()));
                let fixed = step.clone().detach().reshape([1; D]);
                let q = codes(x / fixed.clone() + self.zero, self.levels, true, None) - self.zero;
                let own = step.clone().reshape([1; D]).expand(shape.clone()) - fixed.clone().expand(shape);
                return q * fixed + (own * last).mask_fill(clipped, 0.0);
            }
        };
        let step = step.reshape([1; D]);
        (codes(x / step.clone() + self.zero, self.levels, true, None) - self.zero) * step
    }
}

impl From<Quantize> for Op {
    fn from(quantize: Quantize) -> Self {
        let (layer, name) = (quantize.layer(), quantize.train.tensor());
        Op::Tensors(Tensors { parameters: vec![Parameter { values: Ranked::One(quantize.scale), name }], layer })
    }
}

/// Gradients of fewer values: what is computed stays as it is, and the gradient is rounded, up or down at random so that it is right on the mean,
/// or to the nearest.
#[derive(Debug, Clone, Copy)]
pub struct CoarseGradient {
    levels: Levels,
    rounding: Rounding,
}

impl CoarseGradient {
    /// Of each sample's gradients, with the largest absolute value `m`, every one is rounded at random to `2^bits` levels that lie evenly from
    /// `-m` to `m` (Zhou et al., "DoReFa-Net", arXiv:1606.06160, 2016, equation 12).
    pub fn of_bits(bits: Bits) -> Self {
        Self { levels: Levels::OfSample { bits: bits.get() }, rounding: Rounding::Stochastic }
    }

    /// Gradients in the fixed-point format `<integer, fraction>`: multiples of `2^-fraction` from `-2^(integer - 1)` to one less than
    /// `2^(integer - 1)` (Gupta, Agrawal, Gopalakrishnan, Narayanan, ICML 2015); at random, or by [`Rounding::Nearest`] to the nearest.
    pub fn in_format(integer: u32, fraction: u32, rounding: Rounding) -> Self {
        let (step, end) = (0.5_f32.powi(fraction as i32), 2.0_f32.powi((integer + fraction) as i32 - 1));
        Self { levels: Levels::OfFormat { step, end }, rounding }
    }

    /// The same values `[batch, ...]`.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        if !x.is_autodiff() {
            return x;
        }
        let noise = match self.rounding {
            Rounding::Nearest => x.clone().detach().zeros_like().add_scalar(0.5),
            Rounding::Stochastic | Rounding::Tanh | Rounding::Threshold => chance::uniform_like(&x),
        };
        extension::coarsen(x, noise, self.levels)
    }
}

/// Values of one sample of a batch of this shape.
fn features(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}

/// The codes of `u`, with `dq/du = 1`, or if `bounded` only inside the grid; with uniform `noise` in `[0, 1)`, rounded at random.
fn codes<const D: usize>(u: Tensor<D>, levels: u32, bounded: bool, noise: Option<Tensor<D>>) -> Tensor<D> {
    let inside = u.clone().clamp(0.0, (levels - 1) as f32);
    let q = match noise {
        None => inside.clone().add_scalar(0.5).floor(),
        Some(noise) => (inside.clone() + noise).floor(),
    };
    straight(q, if bounded { inside } else { u })
}

/// The values of `q`, exactly, with the gradient of `u`.
pub fn straight<const D: usize>(q: Tensor<D>, u: Tensor<D>) -> Tensor<D> {
    if !u.is_autodiff() {
        return q;
    }
    let nothing = u.clone() - u.detach();
    q.detach() + nothing
}

/// One over `sqrt(values * (levels - 1) / 2)`.
fn gradient_scale(levels: u32, values: usize) -> f64 {
    1.0 / (values as f64 * f64::from(levels - 1) / 2.0).sqrt()
}

/// The same steps, whose gradient is that of what `scaled` makes of them: they move in proportion to what they quantize.
fn scaled_gradient(steps: Tensor<1>, scaled: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Tensor<1> {
    if !steps.is_autodiff() {
        return steps;
    }
    let part = scaled(steps.clone());
    let rest = steps.detach() - part.clone().detach();
    part + rest
}

#[cfg(test)]
mod tests;
