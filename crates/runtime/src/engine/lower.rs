//! From a model to the steps that run it.

use std::collections::BTreeMap;

use super::Around;
use super::convolve::{Convolution, Depthwise, Epilogue, Geometry, Linear};
use super::matrix::Matrix;
use super::operation::Operation;
use super::pointwise::{LocalResponse, Shortcut};
use super::pool::Pool;
use super::quantized::Quantized;
use super::structured::Structured;
use super::threads::Threads;
use crate::{Coded, Grid, Layer, Model, Node, StepGradient};

/// Steps in order. Value 0 is the input; step `i` makes value `i + 1`.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    /// Floats per sample of every value.
    sizes: Vec<usize>,
    /// The value that is the network's output.
    output: usize,
}

/// One operation on values.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    inputs: Vec<usize>,
    operation: Operation,
    /// Values that nobody needs afterwards.
    dead: Vec<usize>,
}

impl Program {
    /// Lowers a model that passed its check with these shapes. Unless `fuse` is off, batch normalization goes into the weights of
    /// the layer before it and activations into its last loop, wherever nobody else looks at the value between, and layers whose weights and
    /// inputs lie on grids compute in integers.
    pub(crate) fn lower(model: &Model, shapes: &[Vec<usize>], fuse: bool) -> Self {
        let exclusive = exclusive(model);
        let mut integers = if fuse { integers(model, shapes) } else { BTreeMap::new() };
        let quantized = read_by_integers(model, &integers);
        let size = |node: usize| shapes[node].iter().product::<usize>();
        let mut program = Self { steps: Vec::new(), sizes: vec![size(0)], output: 0 };
        let mut values = vec![0; model.nodes.len()];
        for (position, node) in model.nodes.iter().enumerate().skip(1) {
            let inputs: Vec<usize> = node.inputs.iter().map(|input| values[*input]).collect();
            // Layers in integers put their inputs on the grid themselves.
            if matches!(node.layer, Layer::Flatten | Layer::Dropout { .. }) || quantized[position] {
                values[position] = inputs[0];
                continue;
            }
            let alone = fuse && exclusive[node.inputs[0]] && inputs[0] > 0;
            let before = if alone { program.steps.get_mut(inputs[0] - 1) } else { None };
            if before.is_some_and(|step| merge(node, &mut step.operation)) {
                values[position] = inputs[0];
                continue;
            }
            let in_integers = integers.remove(&position).map(Operation::Quantized);
            let operation = in_integers.unwrap_or_else(|| operation(node, &shapes[node.inputs[0]], &shapes[position]));
            program.steps.push(Step { name: node.name.clone(), inputs, operation, dead: Vec::new() });
            program.sizes.push(size(position));
            values[position] = program.steps.len();
        }
        program.output = values[values.len() - 1];
        program.find_deaths();
        program
    }

    /// Runs `batch` samples; buffers come from and return to `free`.
    pub(crate) fn run(
        &self,
        input: &[f32],
        batch: usize,
        threads: &Threads,
        free: &mut Vec<Vec<f32>>,
        around: Around<'_>,
    ) -> Vec<f32> {
        let length = |value: usize| self.sizes[value] * batch;
        let mut values: Vec<Vec<f32>> = vec![Vec::new(); self.sizes.len()];
        values[0] = take(free, length(0));
        values[0][..length(0)].copy_from_slice(input);
        for (number, step) in self.steps.iter().enumerate() {
            let first = step.inputs[0];
            let takes = self.takes_over(step);
            let in_place = step.operation.in_place();
            let mut output = match takes {
                true => std::mem::take(&mut values[first]),
                false => take(free, length(number + 1)),
            };
            let own = &mut output[..length(number + 1)];
            if in_place && !takes {
                own.copy_from_slice(&values[first][..length(first)]);
            }
            let inputs: Vec<&[f32]> =
                step.inputs.iter().skip(usize::from(in_place)).map(|value| &values[*value][..length(*value)]).collect();
            around(number, &mut || step.operation.run(&inputs, batch, own, threads));
            values[number + 1] = output;
            free.extend(step.dead.iter().map(|value| std::mem::take(&mut values[*value])).filter(|buffer| buffer.capacity() > 0));
        }
        let mut output = std::mem::take(&mut values[self.output]);
        output.truncate(length(self.output));
        free.extend(values.into_iter().filter(|buffer| buffer.capacity() > 0));
        output
    }

    /// Floats per sample that are alive at the fullest moment.
    pub(crate) fn peak_elements(&self) -> usize {
        let (mut live, mut peak) = (self.sizes[0], self.sizes[0]);
        for (number, step) in self.steps.iter().enumerate() {
            let reused = if self.takes_over(step) { self.sizes[step.inputs[0]] } else { 0 };
            live += self.sizes[number + 1] - reused;
            peak = peak.max(live);
            live -= step.dead.iter().map(|value| self.sizes[*value]).sum::<usize>() - reused;
        }
        peak
    }

    /// Bytes of all weights as they are held.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.operation.bytes()).sum()
    }

    /// Whether the step changes its first input's buffer instead of copying it.
    fn takes_over(&self, step: &Step) -> bool {
        let first = step.inputs[0];
        step.operation.in_place() && step.dead.contains(&first) && !step.inputs[1..].contains(&first)
    }

    fn find_deaths(&mut self) {
        let mut last: Vec<Option<usize>> = (0..self.sizes.len()).map(|value| value.checked_sub(1)).collect();
        for (number, step) in self.steps.iter().enumerate() {
            step.inputs.iter().for_each(|value| last[*value] = Some(number));
        }
        for (value, last) in last.iter().enumerate().filter(|(value, _)| *value != self.output) {
            if let Some(step) = last {
                self.steps[*step].dead.push(value);
            }
        }
    }
}

/// Whether each node's value is looked at by one node only, through any chain of identities.
fn exclusive(model: &Model) -> Vec<bool> {
    let mut uses = vec![0; model.nodes.len()];
    model.nodes.iter().flat_map(|node| &node.inputs).for_each(|input| uses[*input] += 1);
    let mut exclusive = vec![false; model.nodes.len()];
    for (position, node) in model.nodes.iter().enumerate() {
        let identity = matches!(node.layer, Layer::Flatten | Layer::Dropout { .. });
        exclusive[position] = uses[position] == 1 && (!identity || exclusive[node.inputs[0]]);
    }
    exclusive
}

/// The layers that can compute in integers, by position.
fn integers(model: &Model, shapes: &[Vec<usize>]) -> BTreeMap<usize, Quantized> {
    let mut grids: Vec<Option<Grid>> = vec![None; model.nodes.len()];
    let mut integers = BTreeMap::new();
    for (position, node) in model.nodes.iter().enumerate().skip(1) {
        let (input, grid) = (node.inputs[0], grids[node.inputs[0]].clone());
        match &node.layer {
            Layer::Quantize { levels, zero, train } => grids[position] = Some(grid_of(node, *levels, *zero, *train)),
            Layer::Flatten | Layer::Dropout { .. } => grids[position] = grid,
            Layer::Conv2d { .. } | Layer::Linear => {
                let Some((grid, weight)) = grid.zip(node.tensor("weight")) else { continue };
                let geometry = geometry(node, &shapes[input], &shapes[position]);
                let epilogue = Epilogue { bias: tensor(node, "bias"), activation: None };
                let layer = Quantized::new(&geometry, weight, shapes[position][0], &grid, epilogue);
                integers.extend(layer.map(|layer| (position, layer)));
            }
            _ => {}
        }
    }
    integers
}

/// Which nodes are read by layers in integers alone, through any chain of identities, and are grids or behind one.
fn read_by_integers(model: &Model, integers: &BTreeMap<usize, Quantized>) -> Vec<bool> {
    let last = model.nodes.len() - 1;
    let mut alone: Vec<bool> = (0..model.nodes.len()).map(|position| position != last).collect();
    for (position, node) in model.nodes.iter().enumerate().rev() {
        let identity = matches!(node.layer, Layer::Flatten | Layer::Dropout { .. });
        let read = integers.contains_key(&position) || (identity && alone[position]);
        node.inputs.iter().for_each(|input| alone[*input] &= read);
    }
    model.nodes.iter().zip(alone).map(|(node, alone)| alone && matches!(node.layer, Layer::Quantize { .. })).collect()
}

/// The geometry of a convolution; a fully connected layer is one of a single pixel.
fn geometry(node: &Node, input: &[usize], output: &[usize]) -> Geometry {
    let single = Geometry {
        channels: input[0],
        input: [1, 1],
        output: [1, 1],
        kernel: [1, 1],
        stride: [1, 1],
        padding: [0, 0],
        dilation: [1, 1],
        groups: 1,
    };
    match (&node.layer, node.tensor("weight").map_or(&[][..], Coded::shape)) {
        (Layer::Conv2d { stride, padding, dilation, groups }, [_, _, kh, kw]) => Geometry {
            channels: input[0],
            input: [input[1], input[2]],
            output: [output[1], output[2]],
            kernel: [*kh, *kw],
            stride: *stride,
            padding: *padding,
            dilation: *dilation,
            groups: *groups,
        },
        _ => single,
    }
}

/// Makes the node part of the operation before it, if that can be.
fn merge(node: &Node, before: &mut Operation) -> bool {
    match &node.layer {
        Layer::Activation(activation) => before.absorb(*activation),
        Layer::BatchNorm { epsilon } => {
            let (scale, shift) = batch_norm(node, *epsilon);
            before.fold(&scale, &shift)
        }
        _ => false,
    }
}

/// Batch normalization as a scale and a shift per channel.
fn batch_norm(node: &Node, epsilon: f64) -> (Vec<f32>, Vec<f32>) {
    let [gamma, beta, mean, var] = ["gamma", "beta", "mean", "var"].map(|name| tensor(node, name));
    let channel = |c: usize| {
        let scale = f64::from(gamma[c]) / (f64::from(var[c]) + epsilon).sqrt();
        (scale as f32, (f64::from(beta[c]) - f64::from(mean[c]) * scale) as f32)
    };
    (0..gamma.len()).map(channel).unzip()
}

fn tensor(node: &Node, name: &str) -> Vec<f32> {
    node.tensor(name).map(Coded::decode).unwrap_or_default()
}

/// The grid of a quantizer.
fn grid_of(node: &Node, levels: u32, zero: f32, train: StepGradient) -> Grid {
    Grid::uniform(levels, tensor(node, train.tensor())[0] / train.steps(levels, zero), zero)
}

/// The node's own operation; `input` is the shape of its first input.
fn operation(node: &Node, input: &[usize], output: &[usize]) -> Operation {
    let plane = |shape: &[usize]| [shape[1], shape[2]];
    let area: usize = input[1..].iter().product();
    match &node.layer {
        Layer::Conv2d { groups, .. } => {
            let shape = node.tensor("weight").map_or(&[][..], Coded::shape);
            let geometry = geometry(node, input, output);
            let epilogue = Epilogue { bias: tensor(node, "bias"), activation: None };
            let (weight, out) = (tensor(node, "weight"), output[0]);
            if shape[1] == 1 && *groups > 1 {
                return Operation::Depthwise(Depthwise { geometry, weight, epilogue, out });
            }
            Operation::Convolution(Convolution::new(geometry, &weight, epilogue, out))
        }
        Layer::Linear => {
            let epilogue = Epilogue { bias: tensor(node, "bias"), activation: None };
            Operation::Linear(Linear {
                weight: Matrix::new(output[0], input[0], tensor(node, "weight"), Linear::SPARSE_BELOW),
                epilogue,
                out: output[0],
            })
        }
        Layer::Structured(structure) => {
            let parameters: Vec<Vec<f32>> = structure.parameters().iter().map(|p| tensor(node, p.name)).collect();
            let parameters: Vec<&[f32]> = parameters.iter().map(Vec::as_slice).collect();
            let epilogue = Epilogue { bias: tensor(node, "bias"), activation: None };
            let matrix = structure.prepare(&parameters).expect("the check of the model compared all shapes");
            Operation::Structured(Structured { matrix, epilogue, features: structure.features() })
        }
        Layer::BatchNorm { epsilon } => {
            let (scale, shift) = batch_norm(node, *epsilon);
            Operation::Affine { scale, shift, activation: None }
        }
        Layer::Normalize { mean, std } => Operation::Normalize { mean: mean.clone(), std: std.clone() },
        Layer::LocalResponseNorm { size, alpha, beta, k } => Operation::LocalResponse(LocalResponse {
            channels: input[0],
            size: *size,
            alpha: *alpha as f32,
            beta: *beta as f32,
            k: *k as f32,
        }),
        Layer::Activation(activation) => Operation::Activation(*activation),
        Layer::Quantize { levels, zero, train } => Operation::Quantize(grid_of(node, *levels, *zero, *train)),
        Layer::Softmax => Operation::Softmax { channels: input[0] },
        Layer::MaxPool(window) => Operation::Pool(Pool::max(window, plane(input), plane(output))),
        Layer::AvgPool { window, count_padding } => {
            Operation::Pool(Pool::average(window, *count_padding, plane(input), plane(output)))
        }
        Layer::AdaptiveAvgPool { .. } => Operation::Pool(Pool::adaptive(plane(input), plane(output))),
        Layer::GlobalAvgPool => Operation::Pool(Pool::adaptive(plane(input), [1, 1])),
        Layer::Add => Operation::Add { activation: None },
        Layer::Concat => Operation::Concat,
        Layer::MeanMagnitude => Operation::MeanMagnitude { channels: input[0] },
        Layer::Multiply => Operation::Multiply,
        Layer::ChannelSlice { start, .. } => Operation::Slice { start: start * area },
        Layer::PadShortcut { stride, before, .. } => Operation::Shortcut(Shortcut {
            input: [input[0], input[1], input[2]],
            output: [output[0], output[1], output[2]],
            stride: *stride,
            before: *before,
        }),
        Layer::Input { .. } | Layer::Flatten | Layer::Dropout { .. } | Layer::Custom { .. } => {
            unreachable!("{} is no step of a checked model", node.layer.kind())
        }
    }
}

/// A buffer of at least this length with any content: the smallest free one that is large enough, or a new one.
fn take(free: &mut Vec<Vec<f32>>, length: usize) -> Vec<f32> {
    let fits = (0..free.len()).filter(|i| free[*i].len() >= length).min_by_key(|i| free[*i].len());
    let mut buffer = match fits {
        Some(i) => free.swap_remove(i),
        None => {
            // What is too small now gives its memory back, so that no more is held than the fullest moment needs.
            free.pop();
            vec![0.0; length]
        }
    };
    if cfg!(test) {
        // A step that leaves out a value shows.
        buffer.fill(f32::NAN);
    }
    buffer
}
