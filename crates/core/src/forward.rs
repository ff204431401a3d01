//! Running a network.
//!
//! On our kernels, feature maps lie channels last from the first node that wants them so to the last; `Flow` keeps track of it. Nodes that
//! follow each other are computed in one step where nobody looks between: normalization, a residual sum and a rectifier, a convolution and
//! its rectifier, and outside training a convolution and its normalization. In an evaluation each sample takes its own branches (`packed.rs`); in a
//! training, and where each node is looked at, all take all.

mod computed;
mod fixed;
mod packed;
mod steps;
mod tensors;

use burn::nn::BatchNorm;
use burn::tensor::Tensor;

use crate::extension::{self, takes};
use crate::net::{Net, Op, Value};
pub(crate) use computed::Computed;
use packed::Packed;
pub use packed::{Decisions, StepSamples};
use steps::{Step, steps};

/// An activation on its way, and how it lies.
#[derive(Debug, Clone)]
pub(crate) enum Flow {
    /// `[batch, channels, height, width]`.
    First(Tensor<4>),
    /// `[batch, height, width, channels]`.
    Last(Tensor<4>),
    /// `[batch, features]`.
    Vector(Tensor<2>),
}

impl Net {
    /// Output of the last node for the input `[batch, channels, height, width]`: `[batch, classes]`. Of a network that skips work, an input without
    /// gradients has each node compute for those samples alone that the gates send there, and not at all where there are none; with gradients every
    /// sample takes every branch.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<2> {
        let packed = (!input.device().is_autodiff()).then(|| Packed::new(&input, Decisions::new()));
        let steps = self.fused(&input);
        self.run(input, &steps, packed, |_, flow| flow).vector()
    }

    /// Runs the network and hands every activation to `tap` together with its node's index; what `tap` returns goes on in its place.
    /// Activations are dropped after their last use. They are those of the whole batch: every sample takes every branch.
    pub fn trace(&self, input: Tensor<4>, mut tap: impl FnMut(usize, Value) -> Value) -> Value {
        let shown = |index: usize, flow: Flow| match flow {
            // A view of what lies channels last, and back: nothing is copied.
            Flow::Last(x) => match tap(index, Value::Map(x.permute([0, 3, 1, 2]))) {
                Value::Map(x) => Flow::Last(x.permute([0, 2, 3, 1])),
                Value::Vector(x) => Flow::Vector(x),
            },
            Flow::First(x) => Flow::of(tap(index, Value::Map(x))),
            Flow::Vector(x) => Flow::of(tap(index, Value::Vector(x))),
        };
        self.run(input, &steps(self, None), None, shown).value()
    }

    /// Runs the steps, for the samples that reach each where they are `packed`, else for all.
    fn run(
        &self,
        input: Tensor<4>,
        steps: &[Step],
        mut packed: Option<Packed>,
        mut show: impl FnMut(usize, Flow) -> Flow,
    ) -> Flow {
        let mut values: Vec<Option<Flow>> = vec![None; self.nodes.len()];
        values[0] = Some(show(0, Flow::First(input)));
        for step in steps {
            let inputs: Vec<Option<Flow>> = step.inputs.iter().map(|&index| values[index].clone()).collect();
            let residual = step.residual.and_then(|index| values[index].clone());
            for &index in &step.last_uses {
                values[index] = None;
            }
            let output = match &mut packed {
                Some(packed) => packed.take(self, step, inputs, residual),
                None => {
                    let live = |input: Option<Flow>| input.expect("an activation lives until its last use");
                    Some(self.take(step, inputs.into_iter().map(live).collect(), residual))
                }
            };
            values[step.output] = output.map(|flow| show(step.output, flow));
        }
        values.pop().flatten().expect("a network has an output")
    }

    /// Computes one step.
    fn take(&self, step: &Step, mut inputs: Vec<Flow>, residual: Option<Flow>) -> Flow {
        let norm = step.norm.map(|norm| match &self.nodes[norm].op {
            Op::BatchNorm(norm) => norm,
            Op::Conv2d(_) | Op::Linear(_) | Op::Tensors(_) | Op::Fixed(_) => unreachable!("a step normalizes by a batch norm"),
        });
        match &self.nodes[step.node].op {
            Op::Conv2d(conv) => match (inputs.remove(0).last(), norm) {
                (Ok(x), Some(norm)) => {
                    let residual = residual.and_then(|residual| residual.last().ok());
                    Flow::Last(extension::convolve_normalized(conv, norm, x, residual, step.rectify))
                }
                (Ok(x), None) => Flow::Last(extension::convolve(conv, x, step.rectify)),
                (Err(x), _) => Flow::First(conv.forward(x)),
            },
            Op::Linear(linear) => {
                let x = inputs.remove(0).vector();
                Flow::Vector(if takes(&x) { extension::linear(linear, x, step.rectify) } else { linear.forward(x) })
            }
            Op::BatchNorm(norm) => normalize(norm, inputs.remove(0), residual, step.rectify),
            Op::Tensors(tensors) => match Computed::of(&tensors.layer) {
                Computed::Tensors(layer) => layer.forward(tensors, inputs),
                Computed::Fixed(_) | Computed::Elsewhere => unreachable!("tensors belong to layers that compute with them"),
            },
            Op::Fixed(fixed) => match Computed::of(&fixed.layer) {
                Computed::Fixed(layer) => layer.forward(inputs),
                Computed::Tensors(_) | Computed::Elsewhere => {
                    unreachable!("{} is no parameter-free function of other nodes", fixed.layer.kind().name())
                }
            },
        }
    }
}

fn normalize(norm: &BatchNorm, x: Flow, residual: Option<Flow>, rectify: bool) -> Flow {
    let x = match x {
        Flow::Vector(x) if takes(&x) => {
            let [rows, channels] = x.dims();
            let as_map = x.clone().reshape([rows, 1, 1, channels]);
            return match extension::normalize(norm, as_map, None, rectify) {
                Some(y) => Flow::Vector(y.reshape([rows, channels])),
                None => Flow::Vector(norm.forward(x)),
            };
        }
        Flow::Vector(x) => return Flow::Vector(norm.forward(x)),
        map @ (Flow::First(_) | Flow::Last(_)) => map,
    };
    let x = match x.last() {
        Ok(x) => x,
        Err(x) => return Flow::First(norm.forward(x)),
    };
    let residual = residual.and_then(|residual| residual.last().ok());
    match extension::normalize(norm, x.clone(), residual.clone(), rectify) {
        Some(y) => Flow::Last(y),
        None => {
            let y = norm.forward(x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1]);
            let y = residual.map_or(y.clone(), |residual| y + residual);
            Flow::Last(if rectify { extension::rectify(y) } else { y })
        }
    }
}

impl Flow {
    fn of(value: Value) -> Self {
        match value {
            Value::Map(x) => Flow::First(x),
            Value::Vector(x) => Flow::Vector(x),
        }
    }

    /// As others see it.
    fn value(self) -> Value {
        match self {
            Flow::Vector(x) => Value::Vector(x),
            map @ (Flow::First(_) | Flow::Last(_)) => Value::Map(map.first()),
        }
    }

    /// Channels first.
    fn first(self) -> Tensor<4> {
        match self {
            Flow::First(x) => x,
            Flow::Last(x) => extension::channels_first(x),
            Flow::Vector(x) => Value::Vector(x).map(),
        }
    }

    /// Channels last; the map as it is when our kernels do not take it.
    #[allow(clippy::result_large_err)] // Both are tensors.
    fn last(self) -> Result<Tensor<4>, Tensor<4>> {
        match self {
            Flow::Last(x) => Ok(x),
            other @ (Flow::First(_) | Flow::Vector(_)) => {
                let x = other.first();
                if takes(&x) { Ok(extension::channels_last(x)) } else { Err(x) }
            }
        }
    }

    /// The feature vectors; [`Net::shapes`] rules out that it is a map.
    fn vector(self) -> Tensor<2> {
        self.value().vector()
    }
}

#[cfg(test)]
mod tests;
