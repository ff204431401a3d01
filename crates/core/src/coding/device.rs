//! A coding on the device.

use briquette_runtime::{Places, Product};
use burn::module::{Module, Param, ParamId, Reparameterization};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::module::Visitor;
use super::{Coding, Source, by_column};
use crate::quantize::{OnGrid, Ternary};

/// A [`Coding`] on the device.
#[derive(Module, Debug)]
pub struct DeviceCoding {
    mask: Option<Param<Tensor<1>>>,
    /// One for shared values; of a product, the stages.
    pub(super) books: Vec<Codebook>,
    pub(super) base: Option<Base>,
    /// [`Meaning::numbers`] of what is neither a plain codebook nor a grid: Burn shows a visitor tensors only.
    meaning: Option<Param<Tensor<1, Int>>>,
    grid: Option<OnGrid>,
    ternary: Option<Ternary>,
}

#[derive(Module, Debug)]
pub(super) struct Codebook {
    pub(super) centroids: Param<Tensor<1>>,
    assignment: Param<Tensor<1, Int>>,
}

impl Codebook {
    fn new(centroids: &[f32], assignment: impl Iterator<Item = i64>, device: &Device) -> Self {
        Self {
            centroids: Param::from_tensor(Tensor::from_data(TensorData::from(centroids), device)),
            assignment: whole(assignment.collect(), device),
        }
    }

    fn values(&self) -> Tensor<1> {
        self.centroids.val().select(0, self.assignment.val())
    }
}

/// Base values of a rule, in a column: what has two dimensions decays as weights do.
#[derive(Module, Debug)]
pub(super) struct Base {
    pub(super) base: Param<Tensor<2>>,
    places: Param<Tensor<1, Int>>,
}

impl Base {
    fn new(values: Vec<f32>, places: Vec<u32>, device: &Device) -> Self {
        let count = values.len();
        Self {
            base: Param::from_tensor(Tensor::from_data(TensorData::new(values, [count, 1]), device)),
            places: whole(places.into_iter().map(i64::from).collect(), device),
        }
    }

    /// The values at their places, each base value being followed by its negative.
    fn values(&self) -> Tensor<1> {
        let base = self.base.val();
        let [count, _] = base.dims();
        Tensor::cat(vec![base.clone(), base.neg()], 1).reshape([2 * count]).select(0, self.places.val())
    }
}

/// Whole numbers on the device.
fn whole(numbers: Vec<i64>, device: &Device) -> Param<Tensor<1, Int>> {
    let len = numbers.len();
    Param::initialized(ParamId::new(), Tensor::from_data(TensorData::new(numbers, [len]), device))
}

/// What codebooks or base values stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Meaning {
    Shared(Places),
    Product { width: usize, columns: usize, taps: usize, transposed: bool },
}

impl Meaning {
    /// A number that says which meaning, then its settings; a seed by 16 bits, for devices whose integers have 32.
    fn numbers(self) -> Vec<i64> {
        let [no, yes] = [0, 1];
        let flag = |set: bool| if set { yes } else { no };
        match self {
            Meaning::Product { width, columns, taps, transposed } => {
                vec![0, width as i64, columns as i64, taps as i64, flag(transposed)]
            }
            Meaning::Shared(Places::Hash { seed }) => {
                [1].into_iter().chain((0..4).map(|part| (seed >> (16 * part) & 0xffff) as i64)).collect()
            }
            Meaning::Shared(Places::Windows { sides: [h, w] }) => vec![2, h as i64, w as i64],
            Meaning::Shared(Places::Turns { mirrored, grouped }) => vec![3, flag(mirrored), flag(grouped)],
            Meaning::Shared(Places::Tiles { times }) => vec![4, times as i64],
        }
    }

    pub(super) fn of(numbers: &[i64]) -> Option<Self> {
        let rule = match *numbers {
            [0, width, columns, taps, transposed] => {
                let [width, columns, taps] = [width, columns, taps].map(|number| number as usize);
                return Some(Meaning::Product { width, columns, taps, transposed: transposed == 1 });
            }
            [1, a, b, c, d] => Places::Hash { seed: [d, c, b, a].iter().fold(0, |seed, part| seed << 16 | *part as u64) },
            [2, h, w] => Places::Windows { sides: [h as usize, w as usize] },
            [3, mirrored, grouped] => Places::Turns { mirrored: mirrored == 1, grouped: grouped == 1 },
            [4, times] => Places::Tiles { times: times as usize },
            _ => return None,
        };
        Some(Meaning::Shared(rule))
    }

    /// The source that these codebooks are.
    pub(super) fn source(self, mut books: Vec<(Vec<f32>, Vec<u32>)>) -> Source {
        match self {
            Meaning::Shared(rule) => {
                let (values, places) = books.swap_remove(0);
                Source::Shared { rule, values, places }
            }
            Meaning::Product { width, columns, taps, transposed } => {
                let mut product = Product { width, columns, taps, stages: Vec::new() };
                let stage = |(centroids, places): (Vec<f32>, Vec<u32>)| {
                    let rows = places.len() / columns;
                    let at =
                        |row: usize, column: usize| if transposed { column * rows + row } else { product.position(row, column) };
                    Product::stage((width, columns, rows), centroids, |row, column| places[at(row, column)] as usize)
                };
                let stages = books.into_iter().map(stage).collect();
                product.stages = stages;
                Source::Product { product, transposed }
            }
        }
    }
}

impl Reparameterization for DeviceCoding {
    const NAME: &'static str = "coding";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let mask: Option<Tensor<D>> = self.mask.as_ref().map(|mask| mask.val().reshape(shape.clone()));
        let values = match (self.books.split_first(), &self.base, &self.grid, &self.ternary) {
            (Some((first, rest)), ..) => rest.iter().fold(first.values(), |sum, book| sum + book.values()).reshape(shape),
            (None, Some(shared), ..) => shared.values().reshape(shape),
            (None, None, Some(grid), _) => grid.apply(base, mask.clone()),
            (None, None, None, Some(ternary)) => ternary.apply(base, mask.clone()),
            (None, None, None, None) => base,
        };
        match mask {
            None => values,
            Some(mask) => values * mask,
        }
    }
}

impl DeviceCoding {
    pub(super) fn new(coding: Coding, device: &Device) -> Self {
        let mask = coding.mask.map(|mask| {
            let values: Vec<f32> = mask.into_iter().map(|keep| f32::from(u8::from(keep))).collect();
            let len = values.len();
            Param::from_tensor(Tensor::from_data(TensorData::new(values, [len]), device)).set_require_grad(false)
        });
        let mut coded = Self { mask, books: Vec::new(), base: None, meaning: None, grid: None, ternary: None };
        let meaning = |meaning: Meaning| Some(whole(meaning.numbers(), device));
        match coding.source {
            Source::Free => {}
            Source::Codebook { centroids, assignment } => {
                coded.books.push(Codebook::new(&centroids, assignment.into_iter().map(i64::from), device));
            }
            Source::Ternary { scales, share } => coded.ternary = Some(Ternary::new(scales, share, device)),
            Source::Grid { grid, rounding, learned } => coded.grid = Some(OnGrid::new(&grid, rounding, learned, device)),
            Source::Shared { rule, values, places } => {
                coded.base = Some(Base::new(values, places, device));
                coded.meaning = meaning(Meaning::Shared(rule));
            }
            Source::Product { product, transposed } => {
                for stage in &product.stages {
                    let place = |(row, column)| product.place(stage, row, column) as i64;
                    let count = product.rows() * product.columns;
                    coded.books.push(match transposed {
                        true => Codebook::new(&stage.centroids, by_column(&product).map(place), device),
                        false => {
                            let places = (0..count).map(|position| place(product.matrix_place(position)));
                            Codebook::new(&stage.centroids, places, device)
                        }
                    });
                }
                let Product { width, columns, taps, .. } = product;
                coded.meaning = meaning(Meaning::Product { width, columns, taps, transposed });
            }
        }
        coded
    }

    /// How many base values the weight is made of, where a rule says how many a tensor of its shape takes.
    pub(crate) fn base_values(&self) -> Option<usize> {
        let numbers = self.meaning.as_ref()?.val().into_data();
        match Meaning::of(&numbers.iter::<i64>().collect::<Vec<_>>())? {
            Meaning::Shared(Places::Hash { .. }) | Meaning::Product { .. } => None,
            Meaning::Shared(Places::Windows { .. } | Places::Turns { .. } | Places::Tiles { .. }) => {
                self.base.as_ref().map(|base| base.base.lazy_shape()[0])
            }
        }
    }

    /// The coding on the host.
    pub fn to_host(&self) -> Coding {
        Visitor::of_coded(self)
    }
}
