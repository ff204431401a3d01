//! From a model to the steps that run it.

use std::collections::{BTreeMap, HashMap};

use super::Around;
use super::convolve::Epilogue;
use super::operation::{Codes, Lies, Operation, decoded};
use super::quantized::Quantized;
use super::threads::Threads;
use super::turn::Turn;
use crate::branches::Branch;
use crate::{Grid, Layer, Model};

/// Steps in order. Value 0 is the input; step `i` makes value `i + 1`.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    /// Floats per sample of every value.
    sizes: Vec<usize>,
    /// The value that is the network's output.
    output: usize,
}

/// How values lie, while a model is lowered.
#[derive(Debug)]
struct Lying {
    /// Of each value the channels, where it lies channels last and that is another thing than channels first.
    last: Vec<Option<usize>>,
    /// The values that are others turned around, by these and how they lie.
    turned: HashMap<(usize, Option<usize>), usize>,
}

/// The channels of a map of several channels and several pixels; others lie alike channels first and last.
fn channels_apart(shape: &[usize]) -> Option<usize> {
    let pixels: usize = shape[1..].iter().product();
    (shape[0] > 1 && pixels > 1).then_some(shape[0])
}

/// One operation on values.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    inputs: Vec<usize>,
    branch: Branch,
    pub(crate) operation: Box<dyn Operation>,
    /// Values that nobody needs afterwards.
    dead: Vec<usize>,
}

impl Program {
    /// Lowers a model that passed its check with these shapes. Unless `fuse` is off, batch normalization goes into the weights of
    /// the layer before it and activations into its last loop, wherever nobody else looks at the value between, and layers whose weights and
    /// inputs lie on grids compute in integers.
    pub(crate) fn lower(model: &Model, shapes: &[Vec<usize>], fuse: bool) -> Self {
        let identity: Vec<bool> = model.nodes.iter().map(|node| node.layer.runnable().identity()).collect();
        let exclusive = exclusive(model, &identity);
        let mut integers = if fuse { integers(model, shapes) } else { BTreeMap::new() };
        let quantized = read_by_integers(model, &identity, &integers);
        let mut program = Self { steps: Vec::new(), sizes: vec![shapes[0].iter().product()], output: 0 };
        let mut lying = Lying { last: vec![None], turned: HashMap::new() };
        let mut values = vec![0; model.nodes.len()];
        for (position, node) in model.nodes.iter().enumerate().skip(1) {
            let inputs: Vec<usize> = node.inputs.iter().map(|input| values[*input]).collect();
            // Layers in integers put their inputs on the grid themselves.
            if identity[position] || quantized[position] {
                values[position] = inputs[0];
                continue;
            }
            let alone = fuse && exclusive[node.inputs[0]] && inputs[0] > 0;
            let before = if alone { program.steps.get_mut(inputs[0] - 1) } else { None };
            if before.is_some_and(|step| node.layer.runnable().merge(node, &mut *step.operation)) {
                values[position] = inputs[0];
                continue;
            }
            if fuse
                && matches!(node.layer, Layer::Add(_))
                && let [a, b] = node.inputs[..]
                && let Some(sum) = program.add_to([a, b].map(|input| (values[input], exclusive[input])), &lying)
            {
                values[position] = sum;
                continue;
            }
            let mut operation: Box<dyn Operation> = match integers.remove(&position) {
                Some(in_integers) => Box::new(in_integers),
                None => node.layer.runnable().operation(node, &shapes[node.inputs[0]], &shapes[position]),
            };
            let last = match operation.lies() {
                Lies::First => false,
                Lies::Last => true,
                Lies::Either => inputs.iter().any(|input| lying.last[*input].is_some()),
            };
            if last {
                operation.lie_last();
            }
            let as_they_lie = |(value, node): (usize, &usize)| match last {
                true => program.last(value, &shapes[*node], &mut lying),
                false => program.first(value, &mut lying),
            };
            let inputs = inputs.into_iter().zip(&node.inputs).map(as_they_lie).collect();
            let branch = node.layer.kind().branch();
            program.steps.push(Step { name: node.name.clone(), inputs, branch, operation, dead: Vec::new() });
            program.sizes.push(shapes[position].iter().product());
            lying.last.push(if last { channels_apart(&shapes[position]) } else { None });
            values[position] = program.steps.len();
        }
        program.output = program.first(values[values.len() - 1], &mut lying);
        program.find_deaths();
        program
    }

    /// The value channels first, as vectors of its values lie.
    fn first(&mut self, value: usize, lying: &mut Lying) -> usize {
        match lying.last[value] {
            None => value,
            Some(channels) => self.turn(value, self.sizes[value] / channels, None, lying),
        }
    }

    /// The value as a map of this shape, channels last.
    fn last(&mut self, value: usize, shape: &[usize], lying: &mut Lying) -> usize {
        let wanted = channels_apart(shape);
        if lying.last[value] == wanted {
            return value;
        }
        let first = self.first(value, lying);
        wanted.map_or(first, |channels| self.turn(first, channels, wanted, lying))
    }

    /// The value turned around, as a matrix of so many rows.
    fn turn(&mut self, value: usize, rows: usize, last: Option<usize>, lying: &mut Lying) -> usize {
        if let Some(turned) = lying.turned.get(&(value, last)) {
            return *turned;
        }
        let name = match value.checked_sub(1) {
            Some(step) => format!("{}, turned", self.steps[step].name),
            None => "input, turned".into(),
        };
        let step =
            Step { name, inputs: vec![value], branch: Branch::Stays, operation: Box::new(Turn { rows }), dead: Vec::new() };
        self.steps.push(step);
        self.sizes.push(self.sizes[value]);
        lying.last.push(last);
        lying.turned.insert((value, last), self.steps.len());
        self.steps.len()
    }

    /// Has the later of two values, where nobody else sees it, computed with the other one added; none where its step cannot.
    fn add_to(&mut self, values: [(usize, bool); 2], lying: &Lying) -> Option<usize> {
        let [(early, _), (late, alone)] = if values[0].0 < values[1].0 { values } else { [values[1], values[0]] };
        let step = self.steps.get_mut(late.checked_sub(1)?)?;
        // What has to be turned around first would come too late.
        let alike = lying.last[early] == lying.last[late];
        if early == late || !alone || !alike || !step.operation.adds() {
            return None;
        }
        step.inputs.push(early);
        Some(late)
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
        // Samples of every value: those that reach it.
        let mut samples = vec![0; self.sizes.len()];
        samples[0] = batch;
        let mut values: Vec<Vec<f32>> = vec![Vec::new(); self.sizes.len()];
        values[0] = take(free, input.len());
        values[0][..input.len()].copy_from_slice(input);
        for (number, step) in self.steps.iter().enumerate() {
            let first = step.inputs[0];
            samples[number + 1] = match step.branch {
                Branch::Stays | Branch::Decides => samples[first],
                Branch::Keeps { leaving } => {
                    let gate = step.inputs[1];
                    values[gate][..samples[gate]].iter().filter(|leaves| (**leaves != 0.0) == leaving).count()
                }
                Branch::Joins => samples[step.inputs[2]],
            };
            let length = |value: usize| self.sizes[value] * samples[value];
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
            // How many it reads: of a route, more than it hands on.
            let read = if let Branch::Keeps { .. } = step.branch { samples[first] } else { samples[number + 1] };
            if samples[number + 1] > 0 {
                around(number, read, &mut || step.operation.run(&inputs, read, own, threads));
            }
            values[number + 1] = output;
            free.extend(step.dead.iter().map(|value| std::mem::take(&mut values[*value])).filter(|buffer| buffer.capacity() > 0));
        }
        let mut output = std::mem::take(&mut values[self.output]);
        output.truncate(self.sizes[self.output] * samples[self.output]);
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

/// Whether each node's value is looked at by one node only, through any chain of nodes whose input goes on as it is.
fn exclusive(model: &Model, identity: &[bool]) -> Vec<bool> {
    let mut uses = vec![0; model.nodes.len()];
    model.nodes.iter().flat_map(|node| &node.inputs).for_each(|input| uses[*input] += 1);
    let mut exclusive = vec![false; model.nodes.len()];
    for (position, node) in model.nodes.iter().enumerate() {
        exclusive[position] = uses[position] == 1 && (!identity[position] || exclusive[node.inputs[0]]);
    }
    exclusive
}

/// What lies on a grid behind each node, and the layers that can compute in integers, by position.
fn integers(model: &Model, shapes: &[Vec<usize>]) -> BTreeMap<usize, Quantized> {
    let mut grids: Vec<Option<Grid>> = vec![None; model.nodes.len()];
    let mut integers = BTreeMap::new();
    for (position, node) in model.nodes.iter().enumerate().skip(1) {
        let (input, grid) = (node.inputs[0], grids[node.inputs[0]].clone());
        match node.layer.runnable().codes(node, &shapes[input], &shapes[position]) {
            Codes::Made(grid) => grids[position] = Some(grid),
            Codes::Kept => {
                let values = node.layer.kind().branch().values(&node.inputs);
                let one = values.iter().all(|value| grids[*value] == grid);
                grids[position] = grid.filter(|_| one);
            }
            Codes::Taken(geometry) => {
                let Some((grid, weight)) = grid.zip(node.tensor("weight")) else { continue };
                let epilogue = Epilogue { bias: decoded(node, "bias"), activation: None };
                let layer = Quantized::new(&geometry, weight, shapes[position][0], &grid, epilogue);
                integers.extend(layer.map(|layer| (position, layer)));
            }
            Codes::Lost => {}
        }
    }
    integers
}

/// Which quantizers are read by layers in integers alone, through any chain of nodes whose input goes on as it is.
fn read_by_integers(model: &Model, identity: &[bool], integers: &BTreeMap<usize, Quantized>) -> Vec<bool> {
    let last = model.nodes.len() - 1;
    let mut alone: Vec<bool> = (0..model.nodes.len()).map(|position| position != last).collect();
    for (position, node) in model.nodes.iter().enumerate().rev() {
        let read = integers.contains_key(&position) || (identity[position] && alone[position]);
        node.inputs.iter().for_each(|input| alone[*input] &= read);
    }
    model.nodes.iter().zip(alone).map(|(node, alone)| alone && matches!(node.layer, Layer::Quantize(_))).collect()
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
