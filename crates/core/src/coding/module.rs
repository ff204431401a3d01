//! The weights of a module with their codings, and new codings for them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use briquette_runtime::Grid;
use burn::module::{Module, ModuleVisitor, Param, ParamId, ParamMapper, Reparameterization, Reparameterizer};
use burn::tensor::{Int, Tensor};

use super::device::Meaning;
use super::{Coding, DeviceCoding, Rounding, Source, turned};
use crate::quantize::{OnGrid, view};
use crate::values::{floats, plain, replace};

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

    /// The axis along which the filters lie: matrices are those of fully connected layers, which Burn keeps as `[in, out]`, other weights
    /// `[out, ...]`.
    pub fn filter_axis(&self) -> usize {
        usize::from(self.shape.len() == 2)
    }

    /// Weights of a filter.
    pub fn fan_in(&self) -> usize {
        self.values.len() / self.shape[self.filter_axis()].max(1)
    }

    /// The values that are not masked, in their order.
    pub fn left(&self) -> Cow<'_, [f32]> {
        self.coding.left(&self.values)
    }

    /// The values filter by filter, `[out, fan-in]`.
    pub fn filters(&self) -> Cow<'_, [f32]> {
        self.filtered(&self.values)
    }

    /// What belongs to the values in their order, filter by filter.
    pub fn filtered<'a, T: Copy>(&self, each: &'a [T]) -> Cow<'a, [T]> {
        match self.shape[..] {
            [inputs, outputs] => Cow::Owned(turned(each, inputs, outputs)),
            _ => Cow::Borrowed(each),
        }
    }

    /// What belongs to the values filter by filter, `[out, fan-in]`, in the order of the values.
    pub fn unfiltered<T: Copy>(&self, each: Vec<T>) -> Vec<T> {
        match self.shape[..] {
            [inputs, outputs] => turned(&each, outputs, inputs),
            _ => each,
        }
    }
}

/// Every tensor of rank 2 or more in a module, with its coding: the weights, without biases and normalization.
pub fn weights<M: Module>(module: &M) -> Vec<Weight> {
    let mut visitor = Visitor { bases: true, ..Visitor::default() };
    module.visit(&mut visitor);
    visitor.weights.into_values().map(Raw::into_weight).collect()
}

/// Gives the weights at these paths new codings; a weight that had one passes its effective values on as the new base, except from grid
/// to grid or from ternary to ternary, where the values underneath stay; a grid whose codes followed from all weights and no longer do
/// ([`Coding::settled`]) does not need those.
pub fn recode<M: Module>(module: M, mut codings: BTreeMap<String, Coding>) -> M {
    // Bases stay on the device: of a large network they would be another copy.
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    let mut each = Each::default();
    for (path, mut raw) in visitor.weights {
        let old = raw.take_coding();
        let (kind, relative) = (std::mem::discriminant(&old.source), old.source.relative());
        let new = codings.remove(&path).unwrap_or(old);
        let rounds = matches!(new.source, Source::Grid { .. } | Source::Ternary { .. });
        let stays = rounds && std::mem::discriminant(&new.source) == kind && (new.source.relative() || !relative);
        if let (true, Some((_, base))) = (stays, raw.handle.take()) {
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
    adjust_kept(module, |path, base, _, steps| change(path, base, steps))
}

/// As [`adjust`], where `change` also gets the weight's mask, 1 or 0 for each of its values: what follows from several of them is over those
/// that are kept.
pub fn adjust_kept<M: Module>(
    module: M,
    mut change: impl FnMut(&str, Tensor<3>, Option<Tensor<3>>, Tensor<1>) -> (Tensor<3>, Tensor<1>),
) -> M {
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    let mut new = HashMap::new();
    for (path, raw) in visitor.weights {
        let (Some((id, base)), Some((own, steps)), Some((_, axis, ..))) = (raw.handle, raw.steps_handle, raw.described) else {
            continue;
        };
        let shape = view(&raw.shape, axis);
        let mask = raw.mask.map(|mask| mask.reshape(shape));
        let (base, steps) = change(&path, base.reshape(shape), mask, steps);
        new.insert(id, base.reshape([-1]));
        new.insert(own, steps);
    }
    replace(module, new)
}

/// Codings, and where they go on from other values than the effective ones, these.
#[derive(Default)]
struct Each {
    codings: BTreeMap<String, Coding>,
    bases: BTreeMap<String, Tensor<1>>,
}

impl Reparameterizer for Each {
    type Reparam = DeviceCoding;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<DeviceCoding>) {
        let coding = if D >= 2 { self.codings.remove(path) } else { None };
        let device = param.lazy_device();
        let param = match self.bases.remove(path) {
            Some(base) => {
                let (id, value, mapper): (_, _, ParamMapper<Tensor<D>>) = param.consume();
                Param::from_mapped_value(id, base.reshape(value.shape()), mapper)
            }
            None => param,
        };
        (param, coding.filter(|coding| *coding != Coding::default()).map(|coding| DeviceCoding::new(coding, &device)))
    }
}

/// Collects bases first and, below them, the parameters of their codings, which Burn shows as children named after the
/// reparameterization.
#[derive(Default)]
pub(super) struct Visitor {
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
    /// The base where it lies, flat and without gradients, and its id.
    handle: Option<(ParamId, Tensor<1>)>,
    /// Where it lies: of a large network a mask on the host would take as much memory.
    mask: Option<Tensor<1>>,
    centroids: Vec<Vec<f32>>,
    assignments: Vec<Vec<u32>>,
    meaning: Option<Meaning>,
    steps: Option<Vec<f32>>,
    steps_handle: Option<(ParamId, Tensor<1>)>,
    zeros: Option<Vec<f32>>,
    scales: Option<Vec<f32>>,
    share: Option<Vec<f32>>,
    described: Option<(u32, Option<usize>, Rounding, bool)>,
}

impl Raw {
    fn take_coding(&mut self) -> Coding {
        let mask = self.mask.take().map(|mask| floats(mask).iter().map(|m| *m != 0.0).collect());
        let centroids = std::mem::take(&mut self.centroids);
        let mut books: Vec<_> = centroids.into_iter().zip(std::mem::take(&mut self.assignments)).collect();
        let source = match (books.pop(), self.meaning) {
            (Some((centroids, assignment)), None) => Source::Codebook { centroids, assignment },
            (Some(last), Some(meaning)) => {
                books.push(last);
                meaning.source(books)
            }
            (None, _) => match (self.steps.take(), self.zeros.take(), self.described) {
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
    /// The coding that this is.
    pub(super) fn of_coded(coded: &DeviceCoding) -> Coding {
        let mut visitor = Visitor { path: vec![String::new(), DeviceCoding::NAME.to_string()], ..Visitor::default() };
        coded.visit(&mut visitor);
        visitor.weights.remove("").map(|mut raw| raw.take_coding()).unwrap_or_default()
    }

    /// The path of the weight whose coding is being visited, and the name of the coding's own parameter.
    fn coded(&self) -> Option<(String, &str)> {
        let at = self.path.iter().rposition(|part| part == DeviceCoding::NAME)?;
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
                "mask" => raw.mask = Some(plain(param.val()).reshape([-1])),
                "steps" => {
                    raw.steps = Some(floats(param.val()));
                    raw.steps_handle = Some((param.id, plain(param.val()).reshape([-1])));
                }
                "zeros" => raw.zeros = Some(floats(param.val())),
                "scales" => raw.scales = Some(floats(param.val())),
                "share" => raw.share = Some(floats(param.val())),
                _ => raw.centroids.push(floats(param.val())),
            }
        } else if D >= 2 {
            let path = self.path.join(".");
            let shape = param.lazy_shape().as_slice().to_vec();
            let base = if self.bases { floats(param.base()) } else { Vec::new() };
            let handle = Some((param.id, plain(param.base()).reshape([-1])));
            self.weights.insert(path.clone(), Raw { path, shape, base, handle, ..Raw::default() });
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if let Some((owner, part)) = self.coded() {
            let part = part.to_string();
            let raw = self.weights.entry(owner).or_default();
            let numbers = param.val().into_data();
            match part.as_str() {
                "described" => raw.described = OnGrid::described(&numbers.iter::<i64>().collect::<Vec<_>>()),
                "meaning" => raw.meaning = Meaning::of(&numbers.iter::<i64>().collect::<Vec<_>>()),
                _ => raw.assignments.push(numbers.iter::<i64>().map(|i| i as u32).collect()),
            }
        }
    }
}
