//! How a weight is stored: a mask and a source of values, attached to any parameter of any Burn module.
//!
//! [`Coding`] is the host's view, plain numbers that files, reports and methods deal with. [`Coded`] is the same on the device: a
//! Burn reparameterization that computes the effective weight `mask * source(base)` in every forward pass, so that masked weights stay
//! zero and shared weights stay shared while training goes on. Burn holds one reparameterization per parameter and does not nest
//! them, hence one composite type instead of one per method.

use std::collections::BTreeMap;

use briquette_runtime::{Grid, Hashed, MAX_CODEBOOK, Product};
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
    /// `w_i = s_i buckets[h_i]`, where bucket and sign come from a hash of the position in the container's layout
    /// ([`Hashed`]): the buckets are trained, `dL/db_k = sum over i with h_i = k of s_i dL/dw_i` (Chen et al., ICML 2015).
    Hashed {
        /// Seed of the hash.
        seed: u64,
        /// The shared values.
        buckets: Vec<f32>,
        /// Twice the bucket, plus 1 if the sign is negative, one per weight.
        places: Vec<u32>,
    },
    /// The rows are put together from centroids of blocks of columns, which are trained like those of a codebook.
    Product {
        /// Centroids and indices, in the container's layout.
        product: Product,
        /// Whether the tensor is the transposed of the container's, as matrices are in Burn.
        transposed: bool,
    },
}

impl Source {
    /// A codebook of these values, or free weights where they are too many for one: what is left of sharing that a cut breaks up.
    fn shared(values: &[f32]) -> Self {
        match Source::codebook(values) {
            Source::Codebook { centroids, .. } if centroids.len() > MAX_CODEBOOK => Source::Free,
            source => source,
        }
    }

    /// The codebook behind values that share few of them: the sorted distinct values and the index of each. In a masked tensor the zero is
    /// one of them and costs nothing, for masked weights are not stored.
    pub(crate) fn codebook(values: &[f32]) -> Self {
        let mut centroids: Vec<f32> = values.to_vec();
        centroids.sort_by(f32::total_cmp);
        centroids.dedup_by(|a, b| a.to_bits() == b.to_bits());
        let index = |value: &f32| centroids.binary_search_by(|c| c.total_cmp(value)).unwrap_or(0) as u32;
        let assignment = values.iter().map(index).collect();
        Source::Codebook { centroids, assignment }
    }

    /// Buckets with the places that the hash gives a tensor of this shape as Burn stores it: a matrix is hashed as its transposed, which is
    /// what the container holds.
    pub fn hashed(seed: u64, buckets: Vec<f32>, shape: &[usize]) -> Self {
        let count: usize = shape.iter().product();
        let position = |i: usize| match shape {
            [rows, columns] => i % columns * rows + i / columns,
            _ => i,
        };
        let places = (0..count).map(|i| Hashed::place(seed, position(i), buckets.len())).collect();
        Source::Hashed { seed, buckets, places }
    }
}

impl Coding {
    /// Number of weights that are not masked, out of `len`.
    pub fn kept(&self, len: usize) -> usize {
        self.mask.as_ref().map_or(len, |mask| mask.iter().filter(|keep| **keep).count())
    }

    /// The coding of a tensor in the container's layout that takes `indices` of the flat one, in that order; `along` tells which indices
    /// remain along an axis. A hash goes by the position and a product by blocks of columns, so that the one always, and the other unless
    /// whole rows are taken, becomes a codebook of the values, or free weights where these are too many for one.
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
            Source::Hashed { buckets, places, .. } => {
                Source::shared(&indices.iter().map(|&i| Hashed::at(buckets, places[i])).collect::<Vec<_>>())
            }
            Source::Product { product, .. } => match along(0).filter(|rows| indices.len() == rows.len() * product.columns) {
                Some(rows) => Source::Product { product: product.select(rows), transposed: false },
                None => {
                    let value = |i: &usize| product.value(i / product.columns, i % product.columns);
                    Source::shared(&indices.iter().map(value).collect::<Vec<_>>())
                }
            },
        };
        Self { mask, source }
    }

    /// Whether the coding makes sense for a tensor of this shape.
    pub(crate) fn fits(&self, shape: &[usize]) -> bool {
        let count: usize = shape.iter().product();
        let below = |indices: &[u32], end: usize| indices.len() == count && indices.iter().all(|&i| (i as usize) < end);
        let source = match &self.source {
            Source::Free => true,
            Source::Ternary { scales, share } => scales.iter().chain([share]).all(|value| value.is_finite()),
            Source::Codebook { centroids, assignment } => below(assignment, centroids.len()),
            Source::Grid { grid, .. } => grid.check(shape).is_ok(),
            Source::Hashed { buckets, places, .. } => below(places, 2 * buckets.len()),
            Source::Product { product, transposed: true } => matches!(shape, [a, b] if product.check(&[*b, *a]).is_ok()),
            Source::Product { product, transposed: false } => product.check(shape).is_ok(),
        };
        source && self.mask.as_ref().is_none_or(|mask| mask.len() == count)
    }

    /// The coding of the transposed matrix; `order` takes its elements from the flat one.
    pub(crate) fn transposed(&self, order: &[usize]) -> Self {
        let mask = self.mask.as_ref().map(|mask| order.iter().map(|&i| mask[i]).collect());
        let source = match &self.source {
            Source::Grid { grid, rounding, learned } => {
                let grid = Grid { axis: grid.axis.map(|axis| 1 - axis), ..grid.clone() };
                Source::Grid { grid, rounding: *rounding, learned: *learned }
            }
            Source::Hashed { seed, buckets, places } => {
                let places = order.iter().map(|&i| places[i]).collect();
                Source::Hashed { seed: *seed, buckets: buckets.clone(), places }
            }
            Source::Product { product, transposed } => Source::Product { product: product.clone(), transposed: !transposed },
            Source::Free | Source::Codebook { .. } | Source::Ternary { .. } => self.select(order, |_| None).source,
        };
        Self { mask, source }
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
            Source::Hashed { buckets, places, .. } => places.iter().map(|&place| Hashed::at(buckets, place)).collect(),
            Source::Product { product, transposed: false } => product.values(),
            Source::Product { product, transposed: true } => {
                by_column(product).map(|(row, column)| product.value(row, column)).collect()
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

/// Rows and columns of a product as a transposed matrix runs through them.
fn by_column(product: &Product) -> impl Iterator<Item = (usize, usize)> {
    let rows = product.rows();
    (0..product.columns).flat_map(move |column| (0..rows).map(move |row| (row, column)))
}

/// A [`Coding`] on the device.
#[derive(Module, Debug)]
pub struct Coded {
    mask: Option<Param<Tensor<1>>>,
    /// One for shared values and hashed ones; of a product, the stages.
    books: Vec<Codebook>,
    /// [`Form::numbers`] of what is neither a plain codebook nor a grid: Burn shows a visitor tensors only.
    form: Option<Param<Tensor<1, Int>>>,
    grid: Option<OnGrid>,
    ternary: Option<Ternary>,
}

#[derive(Module, Debug)]
struct Codebook {
    centroids: Param<Tensor<1>>,
    assignment: Param<Tensor<1, Int>>,
    /// Whether every centroid is followed by its negative, to which indices refer as well.
    #[module(skip)]
    signed: bool,
}

impl Codebook {
    fn new(centroids: &[f32], assignment: impl Iterator<Item = i64>, signed: bool, device: &Device) -> Self {
        Self {
            centroids: Param::from_tensor(Tensor::from_data(TensorData::from(centroids), device)),
            assignment: whole(assignment.collect(), device),
            signed,
        }
    }

    fn values(&self) -> Tensor<1> {
        let mut centroids = self.centroids.val();
        if self.signed {
            let [count] = centroids.dims();
            centroids = Tensor::stack::<2>(vec![centroids.clone(), centroids.neg()], 1).reshape([2 * count]);
        }
        centroids.select(0, self.assignment.val())
    }
}

/// Whole numbers on the device.
fn whole(numbers: Vec<i64>, device: &Device) -> Param<Tensor<1, Int>> {
    let len = numbers.len();
    Param::initialized(burn::module::ParamId::new(), Tensor::from_data(TensorData::new(numbers, [len]), device))
}

/// What codebooks stand for when they are no plain one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Hashed { seed: u64 },
    Product { width: usize, columns: usize, transposed: bool },
}

impl Form {
    /// The seed by 16 bits, for devices whose integers have 32.
    fn numbers(self) -> Vec<i64> {
        match self {
            Form::Hashed { seed } => (0..4).map(|part| (seed >> (16 * part) & 0xffff) as i64).collect(),
            Form::Product { width, columns, transposed } => vec![width as i64, columns as i64, i64::from(transposed)],
        }
    }

    fn of(numbers: &[i64]) -> Option<Self> {
        match *numbers {
            [a, b, c, d] => Some(Form::Hashed { seed: [d, c, b, a].iter().fold(0, |seed, part| seed << 16 | *part as u64) }),
            [width, columns, transposed] => {
                Some(Form::Product { width: width as usize, columns: columns as usize, transposed: transposed != 0 })
            }
            _ => None,
        }
    }

    /// The source that these codebooks are.
    fn source(self, mut books: Vec<(Vec<f32>, Vec<u32>)>) -> Source {
        match self {
            Form::Hashed { seed } => {
                let (buckets, places) = books.swap_remove(0);
                Source::Hashed { seed, buckets, places }
            }
            Form::Product { width, columns, transposed } => {
                let stage = |(centroids, places): (Vec<f32>, Vec<u32>)| {
                    let rows = places.len() / columns;
                    let at = |row: usize, column: usize| if transposed { column * rows + row } else { row * columns + column };
                    Product::stage((width, columns, rows), centroids, |row, column| places[at(row, column)] as usize)
                };
                Source::Product {
                    product: Product { width, columns, stages: books.into_iter().map(stage).collect() },
                    transposed,
                }
            }
        }
    }
}

impl Reparameterization for Coded {
    const NAME: &'static str = "coding";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let values = match (self.books.split_first(), &self.grid, &self.ternary) {
            (Some((first, rest)), ..) => rest.iter().fold(first.values(), |sum, book| sum + book.values()).reshape(shape.clone()),
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
        let mut coded = Self { mask, books: Vec::new(), form: None, grid: None, ternary: None };
        let form = |form: Form| Some(whole(form.numbers(), device));
        match coding.source {
            Source::Free => {}
            Source::Codebook { centroids, assignment } => {
                coded.books.push(Codebook::new(&centroids, assignment.into_iter().map(i64::from), false, device));
            }
            Source::Ternary { scales, share } => coded.ternary = Some(Ternary::new(scales, share, device)),
            Source::Grid { grid, rounding, learned } => coded.grid = Some(OnGrid::new(&grid, rounding, learned, device)),
            Source::Hashed { seed, buckets, places } => {
                coded.books.push(Codebook::new(&buckets, places.into_iter().map(i64::from), true, device));
                coded.form = form(Form::Hashed { seed });
            }
            Source::Product { product, transposed } => {
                for stage in &product.stages {
                    let place = |(row, column)| product.place(stage, row, column) as i64;
                    let (rows, columns) = (product.rows(), product.columns);
                    coded.books.push(match transposed {
                        true => Codebook::new(&stage.centroids, by_column(&product).map(place), false, device),
                        false => {
                            let places = (0..rows * columns).map(|i| place((i / columns, i % columns)));
                            Codebook::new(&stage.centroids, places, false, device)
                        }
                    });
                }
                coded.form = form(Form::Product { width: product.width, columns: product.columns, transposed });
            }
        }
        coded
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
    centroids: Vec<Vec<f32>>,
    assignments: Vec<Vec<u32>>,
    form: Option<Form>,
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
        let centroids = std::mem::take(&mut self.centroids);
        let mut books: Vec<_> = centroids.into_iter().zip(std::mem::take(&mut self.assignments)).collect();
        let source = match (books.pop(), self.form) {
            (Some((centroids, assignment)), None) => Source::Codebook { centroids, assignment },
            (Some(last), Some(form)) => {
                books.push(last);
                form.source(books)
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
                _ => raw.centroids.push(floats(param.val())),
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
            let part = part.to_string();
            let raw = self.weights.entry(owner).or_default();
            let numbers = param.val().into_data();
            match part.as_str() {
                "described" => raw.described = OnGrid::described(&numbers.iter::<i64>().collect::<Vec<_>>()),
                "form" => raw.form = Form::of(&numbers.iter::<i64>().collect::<Vec<_>>()),
                _ => raw.assignments.push(numbers.iter::<i64>().map(|i| i as u32).collect()),
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
        let book = &param.reparameterization::<Coded>().unwrap().books[0];
        assert_eq!(floats(book.centroids.val().grad(&grads).unwrap()), [101.0, 10.0]);
    }

    /// A loss that is not linear, of all weights of a 5 by 3 matrix, and its gradient by the centroids of each book.
    fn loss(source: Source, device: &Device) -> (f64, Vec<Vec<f32>>) {
        let base = Param::from_tensor(Tensor::<2>::zeros([5, 3], device));
        let param = Coding { mask: None, source }.attach(base).train();
        let factors = Tensor::<1, Int>::arange(1..16, device).float().reshape([5, 3]);
        let loss = (param.val() * factors).sin().sum();
        let grads = loss.backward();
        let books = &param.reparameterization::<Coded>().unwrap().books;
        let gradients = books.iter().map(|book| floats(book.centroids.val().grad(&grads).unwrap())).collect();
        (f64::from(floats(loss)[0]), gradients)
    }

    /// Against central differences along every number that `parts` of the source list.
    fn differentiates(source: &Source, parts: impl Fn(&mut Source) -> Vec<&mut f32>) {
        let device = Device::flex().autodiff();
        let (_, gradients) = loss(source.clone(), &device);
        for (which, gradient) in gradients.concat().into_iter().enumerate() {
            let moved = |by: f32| {
                let mut source = source.clone();
                *parts(&mut source)[which] += by;
                loss(source, &device).0
            };
            let slope = (moved(4e-3) - moved(-4e-3)) / 8e-3;
            assert!((slope - f64::from(gradient)).abs() < 2e-2 * (1.0 + slope.abs()), "{which}: {gradient}, {slope}");
        }
    }

    #[test]
    fn a_buckets_gradient_is_the_signed_sum_of_its_members() {
        let device = Device::flex().autodiff();
        let source = Source::hashed(5, vec![0.5, -0.2, 0.1, 0.3], &[5, 3]);
        let Source::Hashed { places, .. } = &source else { panic!() };
        assert!(places.iter().any(|place| place & 1 == 1) && places.iter().any(|place| place & 1 == 0));
        let (_, gradients) = loss(source.clone(), &device);
        let values = Coding { mask: None, source: source.clone() }.values(vec![0.0; 15], &[5, 3]);
        let mut expected = [0.0_f32; 4];
        for (i, (place, value)) in places.iter().zip(values).enumerate() {
            let factor = (i + 1) as f32;
            let sign = if place & 1 == 0 { 1.0 } else { -1.0 };
            expected[*place as usize / 2] += sign * factor * (value * factor).cos();
        }
        assert!(gradients[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{gradients:?} {expected:?}");
        differentiates(&source, |source| match source {
            Source::Hashed { buckets, .. } => buckets.iter_mut().collect(),
            _ => panic!(),
        });
    }

    #[test]
    fn centroids_of_a_product_get_the_gradients_of_their_members() {
        let stage = |offset: u16| briquette_runtime::Stage {
            centroids: (0..10).map(|i| f32::from((i * 3 + offset) % 7) * 0.1 - 0.3).collect(),
            indices: (0..9).map(|i| (i + offset) / 2 % 2).collect(),
        };
        // Of 3 rows and 5 columns, as [5, 3] in Burn.
        let source =
            Source::Product { product: Product { width: 2, columns: 5, stages: vec![stage(0), stage(1)] }, transposed: true };
        differentiates(&source, |source| match source {
            Source::Product { product, .. } => product.stages.iter_mut().flat_map(|stage| &mut stage.centroids).collect(),
            _ => panic!(),
        });
        let coding = Coding { mask: None, source };
        let param = coding.clone().attach(Param::from_tensor(Tensor::<2>::zeros([5, 3], &Device::flex())));
        assert_eq!((floats(param.val()), coding_of(&param)), (coding.values(vec![0.0; 15], &[5, 3]), coding));
    }

    #[test]
    fn a_hash_survives_the_way_to_the_device_and_back() {
        let source = Source::hashed(0x0123_4567_89ab_cdef, vec![0.5, -1.0, 0.0], &[2, 2]);
        let coding = Coding { mask: Some(vec![true, false, true, true]), source };
        let param = coding.clone().attach(Param::from_tensor(Tensor::<2>::zeros([2, 2], &Device::flex())));
        assert_eq!((floats(param.val()), coding_of(&param)), (coding.values(vec![0.0; 4], &[2, 2]), coding));
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
