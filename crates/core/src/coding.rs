//! How a weight is stored: a mask and a source of values, attached to any parameter of any Burn module.
//!
//! [`Coding`] is the host's view, plain numbers that files, reports and methods deal with. [`Coded`] is the same on the device: a
//! Burn reparameterization that computes the effective weight `mask * source(base)` in every forward pass, so that masked weights stay
//! zero and shared weights stay shared while training goes on. Burn holds one reparameterization per parameter and does not nest
//! them, hence one composite type instead of one per method.

use std::collections::BTreeMap;

use briquette_runtime::Grid;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamMapper, Reparameterization, Reparameterizer};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::quantize::{OnGrid, Ternary, view};

pub use crate::quantize::Rounding;

/// The coding of one weight tensor, on the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Coding {
    /// Which weights are kept, in the tensor's order; none keeps all.
    pub mask: Option<Vec<bool>>,
    /// Where the kept values come from.
    pub source: Source,
}

/// Where the values of a weight come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// The tensor's own values.
    #[default]
    Free,
    /// `w_i = centroids[assignment_i]`: the centroids are trained, `dL/dc_k = sum over i with assignment_i = k of dL/dw_i`
    /// (Han, Mao, Dally, ICLR 2016), the assignment is fixed.
    Codebook {
        /// The shared values.
        centroids: Vec<f32>,
        /// Index into the centroids, one per weight; masked weights point anywhere.
        assignment: Vec<u32>,
    },
    /// The tensor's own values, put on a grid in every forward pass; training changes the values underneath (see
    /// [`quantize`](crate::quantize)).
    Grid {
        /// The grid.
        grid: Grid,
        /// How a value becomes a code.
        rounding: Rounding,
        /// Whether the steps are trained as well.
        learned: bool,
    },
    /// The tensor's own values `w`, in every forward pass taken to `p` for `w > d`, to `-n` for `w < -d` and to 0 between, with
    /// `d = share max |w|`. The scales are trained, `dL/dp` being the sum of the gradients of the weights at `p`; the values underneath get
    /// the gradients of what became of them times `p`, `n` or, between, 1 (Zhu, Han, Mao, Dally, "Trained Ternary Quantization", ICLR 2017).
    Ternary {
        /// `[n, p]`.
        scales: [f32; 2],
        /// Share of the largest absolute value below which a weight is zero.
        share: f32,
    },
}

impl Coding {
    /// Number of weights that are not masked, out of `len`.
    pub fn kept(&self, len: usize) -> usize {
        self.mask.as_ref().map_or(len, |mask| mask.iter().filter(|keep| **keep).count())
    }

    /// The coding of a tensor that takes `indices` of the flat one, in that order; `along` tells which indices remain along an axis.
    pub fn select<'a>(&self, indices: &[usize], along: impl Fn(usize) -> Option<&'a [usize]>) -> Self {
        let mask = self.mask.as_ref().map(|mask| indices.iter().map(|&i| mask[i]).collect());
        let source = match &self.source {
            Source::Free => Source::Free,
            Source::Codebook { centroids, assignment } => {
                Source::Codebook { centroids: centroids.clone(), assignment: indices.iter().map(|&i| assignment[i]).collect() }
            }
            Source::Grid { grid, rounding, learned } => {
                let mut grid = grid.clone();
                if let Some(kept) = grid.axis.and_then(along) {
                    grid.steps = kept.iter().map(|&c| grid.steps[c]).collect();
                    grid.zeros = kept.iter().map(|&c| grid.zeros[c]).collect();
                }
                Source::Grid { grid, rounding: *rounding, learned: *learned }
            }
            Source::Ternary { .. } => self.source.clone(),
        };
        Self { mask, source }
    }

    /// The coding of the transposed matrix; `order` takes its elements from the flat one.
    pub(crate) fn transposed(&self, order: &[usize]) -> Self {
        let mut coding = self.select(order, |_| None);
        if let Source::Grid { grid, .. } = &mut coding.source {
            grid.axis = grid.axis.map(|axis| 1 - axis);
        }
        coding
    }

    /// The values that a network computes with, for a tensor's own values.
    pub(crate) fn values(&self, base: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        let mut values = match &self.source {
            Source::Free => base,
            Source::Codebook { centroids, assignment } => assignment.iter().map(|&i| centroids[i as usize]).collect(),
            Source::Grid { grid, rounding, learned } => {
                let device = Device::flex();
                let [outer, channels, inner] = view(shape, grid.axis);
                let base = Tensor::<3>::from_data(TensorData::new(base, [outer, channels, inner]), &device);
                let grid = Grid { axis: Some(1), ..grid.clone() };
                floats(OnGrid::new(&grid, *rounding, *learned, &device).apply(base))
            }
            Source::Ternary { scales, share } => {
                let (device, count) = (Device::flex(), base.len());
                let base = Tensor::<1>::from_data(TensorData::new(base, [count]), &device);
                floats(Ternary::new(*scales, *share, &device).apply(base))
            }
        };
        if let Some(mask) = &self.mask {
            values.iter_mut().zip(mask).filter(|(_, keep)| !**keep).for_each(|(value, _)| *value = 0.0);
        }
        values
    }

    /// Attaches the coding to a parameter in place of any earlier one. A free coding without a mask leaves the plain parameter.
    pub fn attach<const D: usize>(self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let device = value.device();
        let plain = Param::from_mapped_value(id, value, mapper);
        if self == Self::default() { plain } else { plain.apply_reparameterization(Once(Some(Coded::new(self, &device)))) }
    }
}

/// A [`Coding`] on the device.
#[derive(Module, Debug)]
pub struct Coded {
    mask: Option<Param<Tensor<1>>>,
    codebook: Option<Codebook>,
    grid: Option<OnGrid>,
    ternary: Option<Ternary>,
}

#[derive(Module, Debug)]
struct Codebook {
    centroids: Param<Tensor<1>>,
    assignment: Param<Tensor<1, Int>>,
}

impl Reparameterization for Coded {
    const NAME: &'static str = "coding";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let values = match (&self.codebook, &self.grid, &self.ternary) {
            (Some(book), ..) => book.centroids.val().select(0, book.assignment.val()).reshape(shape.clone()),
            (None, Some(grid), _) => grid.apply(base),
            (None, None, Some(ternary)) => ternary.apply(base),
            (None, None, None) => base,
        };
        match &self.mask {
            None => values,
            Some(mask) => values * mask.val().reshape(shape),
        }
    }
}

impl Coded {
    fn new(coding: Coding, device: &Device) -> Self {
        let mask = coding.mask.map(|mask| {
            let values: Vec<f32> = mask.into_iter().map(|keep| f32::from(u8::from(keep))).collect();
            let len = values.len();
            Param::from_tensor(Tensor::from_data(TensorData::new(values, [len]), device)).set_require_grad(false)
        });
        let (mut grid, mut ternary) = (None, None);
        let codebook = match coding.source {
            Source::Free => None,
            Source::Ternary { scales, share } => {
                ternary = Some(Ternary::new(scales, share, device));
                None
            }
            Source::Grid { grid: values, rounding, learned } => {
                grid = Some(OnGrid::new(&values, rounding, learned, device));
                None
            }
            Source::Codebook { centroids, assignment } => {
                let len = assignment.len();
                let indices: Vec<i64> = assignment.into_iter().map(i64::from).collect();
                Some(Codebook {
                    centroids: Param::from_tensor(Tensor::from_data(TensorData::from(centroids.as_slice()), device)),
                    assignment: Param::initialized(
                        burn::module::ParamId::new(),
                        Tensor::from_data(TensorData::new(indices, [len]), device),
                    ),
                })
            }
        };
        Self { mask, codebook, grid, ternary }
    }

    /// The coding on the host.
    pub fn to_host(&self) -> Coding {
        let mut visitor = Visitor { path: vec![String::new(), Self::NAME.to_string()], ..Visitor::default() };
        self.visit(&mut visitor);
        visitor.weights.remove("").map(|mut raw| raw.take_coding()).unwrap_or_default()
    }
}

/// The coding of a parameter; the default one when none is attached.
pub fn coding_of<const D: usize>(param: &Param<Tensor<D>>) -> Coding {
    param.reparameterization::<Coded>().map(Coded::to_host).unwrap_or_default()
}

/// One weight tensor of a module, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Path inside the module, for example `conv1.weight` or `nodes.3.op.Conv2d.weight`.
    pub path: String,
    /// The tensor's shape, as Burn stores it.
    pub shape: Vec<usize>,
    /// Effective values: masked weights are zero, shared ones are their centroid.
    pub values: Vec<f32>,
    /// The coding in force.
    pub coding: Coding,
}

impl Weight {
    /// Index of the node that owns the weight, when the module is a [`Net`](crate::Net).
    pub fn node(&self) -> Option<usize> {
        self.path.strip_prefix("nodes.")?.split('.').next()?.parse().ok()
    }
}

/// Every tensor of rank 2 or more in a module, with its coding: the weights, without biases and normalization.
pub fn weights<M: Module>(module: &M) -> Vec<Weight> {
    let mut visitor = Visitor { bases: true, ..Visitor::default() };
    module.visit(&mut visitor);
    visitor.weights.into_values().map(Raw::into_weight).collect()
}

/// Gives the weights at these paths new codings; a weight that had one passes its effective values on as the new base, except from grid
/// to grid or from ternary to ternary, where the values underneath stay.
pub fn recode<M: Module>(module: M, mut codings: BTreeMap<String, Coding>) -> M {
    // Bases stay on the device: of a large network they would be another copy.
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    let mut each = Each::default();
    for (path, mut raw) in visitor.weights {
        let old = raw.take_coding();
        let kind = std::mem::discriminant(&old.source);
        let new = codings.remove(&path).unwrap_or(old);
        let rounds = matches!(new.source, Source::Grid { .. } | Source::Ternary { .. });
        if let (true, Some(base)) = (rounds && std::mem::discriminant(&new.source) == kind, raw.handle.take()) {
            each.bases.insert(path.clone(), base);
        }
        each.codings.insert(path, new);
    }
    module.materialize().apply_reparameterization(each)
}

/// Changes the values underneath and the steps of every weight on a grid while a network is trained; ids, masks and optimizer states stay.
/// `change` gets a weight's path, its values as `[before, channels, behind]` of the grid's axis, and its steps, `[channels]`, and gives both
/// back.
pub fn adjust<M: Module>(module: M, mut change: impl FnMut(&str, Tensor<3>, Tensor<1>) -> (Tensor<3>, Tensor<1>)) -> M {
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    let mut new = BTreeMap::new();
    for (path, raw) in visitor.weights {
        let (Some(base), Some(steps), Some((_, axis, ..))) = (raw.handle, raw.steps_handle, raw.described) else { continue };
        let (base, steps) = change(&path, base.reshape(view(&raw.shape, axis)), steps);
        let count = raw.shape.iter().product::<usize>();
        let own = [path.as_str(), Coded::NAME, "grid", "steps"];
        new.insert(own[usize::from(path.is_empty())..].join("."), steps);
        new.insert(path, base.reshape([count]));
    }
    module.map(&mut Replace { new, path: Vec::new() })
}

/// Gives tensors new values by path.
struct Replace {
    new: BTreeMap<String, Tensor<1>>,
    path: Vec<String>,
}

impl ModuleMapper for Replace {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(new) = self.new.remove(&self.path.join(".")) else { return param };
        param.map(|old| {
            let new = new.reshape(old.shape());
            if old.is_autodiff() { Tensor::from_inner(new).set_require_grad(old.is_require_grad()) } else { new }
        })
    }
}

/// Hands one coding to one parameter.
struct Once(Option<Coded>);

impl Reparameterizer for Once {
    type Reparam = Coded;

    fn reparameterize<const D: usize>(&mut self, _: &str, param: Param<Tensor<D>>) -> (Param<Tensor<D>>, Option<Coded>) {
        (param, self.0.take())
    }
}

/// Codings, and where they go on from other values than the effective ones, these.
#[derive(Default)]
struct Each {
    codings: BTreeMap<String, Coding>,
    bases: BTreeMap<String, Tensor<1>>,
}

impl Reparameterizer for Each {
    type Reparam = Coded;

    fn reparameterize<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> (Param<Tensor<D>>, Option<Coded>) {
        let coding = if D >= 2 { self.codings.remove(path) } else { None };
        let device = param.lazy_device();
        let param = match self.bases.remove(path) {
            Some(base) => {
                let (id, value, mapper): (_, _, ParamMapper<Tensor<D>>) = param.consume();
                Param::from_mapped_value(id, base.reshape(value.shape()), mapper)
            }
            None => param,
        };
        (param, coding.filter(|coding| *coding != Coding::default()).map(|coding| Coded::new(coding, &device)))
    }
}

/// Collects bases first and, below them, the parameters of their codings, which Burn shows as children named after the
/// reparameterization.
#[derive(Default)]
struct Visitor {
    /// Whether to read the bases.
    bases: bool,
    path: Vec<String>,
    weights: BTreeMap<String, Raw>,
}

#[derive(Default)]
struct Raw {
    path: String,
    shape: Vec<usize>,
    base: Vec<f32>,
    /// The base where it lies, flat and without gradients.
    handle: Option<Tensor<1>>,
    mask: Option<Vec<f32>>,
    centroids: Option<Vec<f32>>,
    assignment: Option<Vec<u32>>,
    steps: Option<Vec<f32>>,
    steps_handle: Option<Tensor<1>>,
    zeros: Option<Vec<f32>>,
    scales: Option<Vec<f32>>,
    share: Option<Vec<f32>>,
    described: Option<(u32, Option<usize>, Rounding, bool)>,
}

impl Raw {
    fn take_coding(&mut self) -> Coding {
        let mask = self.mask.take().map(|mask| mask.iter().map(|m| *m != 0.0).collect());
        let source = match (self.centroids.take(), self.assignment.take()) {
            (Some(centroids), Some(assignment)) => Source::Codebook { centroids, assignment },
            _ => match (self.steps.take(), self.zeros.take(), self.described) {
                (Some(steps), Some(zeros), Some((levels, axis, rounding, learned))) => {
                    Source::Grid { grid: Grid { levels, axis, steps, zeros }, rounding, learned }
                }
                _ => match (self.scales.take().as_deref(), self.share.take().as_deref()) {
                    (Some(&[n, p]), Some(&[share])) => Source::Ternary { scales: [n, p], share },
                    _ => Source::Free,
                },
            },
        };
        Coding { mask, source }
    }

    fn into_weight(mut self) -> Weight {
        let coding = self.take_coding();
        Weight { values: coding.values(self.base, &self.shape), path: self.path, shape: self.shape, coding }
    }
}

impl Visitor {
    /// The path of the weight whose coding is being visited, and the name of the coding's own parameter.
    fn coded(&self) -> Option<(String, &str)> {
        let at = self.path.iter().rposition(|part| part == Coded::NAME)?;
        Some((self.path[..at].join("."), self.path.last()?))
    }
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some((owner, part)) = self.coded() {
            let part = part.to_string();
            let raw = self.weights.entry(owner).or_default();
            match part.as_str() {
                "mask" => raw.mask = Some(floats(param.val())),
                "steps" => {
                    raw.steps = Some(floats(param.val()));
                    raw.steps_handle = Some(flat(param.val()));
                }
                "zeros" => raw.zeros = Some(floats(param.val())),
                "scales" => raw.scales = Some(floats(param.val())),
                "share" => raw.share = Some(floats(param.val())),
                _ => raw.centroids = Some(floats(param.val())),
            }
        } else if D >= 2 {
            let path = self.path.join(".");
            let shape = param.lazy_shape().as_slice().to_vec();
            let base = if self.bases { floats(param.base()) } else { Vec::new() };
            let handle = Some(flat(param.base()));
            self.weights.insert(path.clone(), Raw { path, shape, base, handle, ..Raw::default() });
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if let Some((owner, part)) = self.coded() {
            let described = part == "described";
            let raw = self.weights.entry(owner).or_default();
            let numbers = param.val().into_data();
            match described {
                true => raw.described = OnGrid::described(&numbers.iter::<i64>().collect::<Vec<_>>()),
                false => raw.assignment = Some(numbers.iter::<i64>().map(|i| i as u32).collect()),
            }
        }
    }
}

/// A tensor as a vector without gradients, where it lies.
fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    let tensor = if tensor.is_autodiff() { tensor.inner() } else { tensor };
    tensor.reshape([count])
}

/// The values of a tensor on the host.
pub fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("the data was converted to f32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coded(mask: Option<Vec<bool>>, source: Source, device: &Device) -> Param<Tensor<2>> {
        let base = Tensor::<2>::from_floats([[1.0, -2.0], [3.0, 0.5]], device);
        Coding { mask, source }.attach(Param::from_tensor(base))
    }

    #[test]
    fn masked_weights_are_zero_and_get_no_gradient() {
        let device = Device::flex().autodiff();
        let param = coded(Some(vec![true, false, true, false]), Source::Free, &device).train();
        assert_eq!(floats(param.val()), [1.0, 0.0, 3.0, 0.0]);
        let grads = param.val().powi_scalar(2).sum().backward();
        assert_eq!(floats(param.base().grad(&grads).unwrap()), [2.0, 0.0, 6.0, 0.0]);
    }

    #[test]
    fn a_centroids_gradient_is_the_sum_of_its_members() {
        let device = Device::flex().autodiff();
        let source = Source::Codebook { centroids: vec![0.5, -1.0], assignment: vec![0, 1, 0, 0] };
        let param = coded(Some(vec![true, true, true, false]), source, &device).train();
        assert_eq!(floats(param.val()), [0.5, -1.0, 0.5, 0.0]);
        let factors = Tensor::<2>::from_floats([[1.0, 10.0], [100.0, 1000.0]], &device);
        let grads = (param.val() * factors).sum().backward();
        let book = param.reparameterization::<Coded>().unwrap().codebook.as_ref().unwrap();
        assert_eq!(floats(book.centroids.val().grad(&grads).unwrap()), [101.0, 10.0]);
    }

    #[test]
    fn a_coding_survives_the_way_to_the_device_and_back() {
        let source = Source::Codebook { centroids: vec![0.5, -1.0], assignment: vec![0, 1, 0, 0] };
        let param = coded(Some(vec![true, true, false, false]), source.clone(), &Device::flex());
        assert_eq!(coding_of(&param), Coding { mask: Some(vec![true, true, false, false]), source });
        let listed = weights(&param);
        assert_eq!(listed[0].values, [0.5, -1.0, 0.0, 0.0]);
        assert_eq!(listed[0].coding, coding_of(&param));
    }
}
