//! A coding on the device.

use briquette_runtime::Product;
use burn::module::{Module, Param, ParamId, Reparameterization};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::module::Visitor;
use super::{Coding, Source, by_column};
use crate::quantize::{OnGrid, Ternary};

/// A [`Coding`] on the device.
#[derive(Module, Debug)]
pub struct Coded {
    mask: Option<Param<Tensor<1>>>,
    /// One for shared values and hashed ones; of a product, the stages.
    pub(super) books: Vec<Codebook>,
    /// [`Form::numbers`] of what is neither a plain codebook nor a grid: Burn shows a visitor tensors only.
    form: Option<Param<Tensor<1, Int>>>,
    grid: Option<OnGrid>,
    ternary: Option<Ternary>,
}

#[derive(Module, Debug)]
pub(super) struct Codebook {
    pub(super) centroids: Param<Tensor<1>>,
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
    Param::initialized(ParamId::new(), Tensor::from_data(TensorData::new(numbers, [len]), device))
}

/// What codebooks stand for when they are no plain one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    Hashed { seed: u64 },
    Product { width: usize, columns: usize, taps: usize, transposed: bool },
}

impl Form {
    /// The seed by 16 bits, for devices whose integers have 32.
    fn numbers(self) -> Vec<i64> {
        match self {
            Form::Hashed { seed } => (0..4).map(|part| (seed >> (16 * part) & 0xffff) as i64).collect(),
            // A transposed matrix has no taps.
            Form::Product { width, columns, taps, transposed } => {
                vec![width as i64, columns as i64, if transposed { 0 } else { taps as i64 }]
            }
        }
    }

    pub(super) fn of(numbers: &[i64]) -> Option<Self> {
        match *numbers {
            [a, b, c, d] => Some(Form::Hashed { seed: [d, c, b, a].iter().fold(0, |seed, part| seed << 16 | *part as u64) }),
            [width, columns, taps] => {
                let (width, columns) = (width as usize, columns as usize);
                Some(Form::Product { width, columns, taps: taps.max(1) as usize, transposed: taps == 0 })
            }
            _ => None,
        }
    }

    /// The source that these codebooks are.
    pub(super) fn source(self, mut books: Vec<(Vec<f32>, Vec<u32>)>) -> Source {
        match self {
            Form::Hashed { seed } => {
                let (buckets, places) = books.swap_remove(0);
                Source::Hashed { seed, buckets, places }
            }
            Form::Product { width, columns, taps, transposed } => {
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

impl Reparameterization for Coded {
    const NAME: &'static str = "coding";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let mask: Option<Tensor<D>> = self.mask.as_ref().map(|mask| mask.val().reshape(shape.clone()));
        let values = match (self.books.split_first(), &self.grid, &self.ternary) {
            (Some((first, rest)), ..) => rest.iter().fold(first.values(), |sum, book| sum + book.values()).reshape(shape),
            (None, Some(grid), _) => grid.apply(base, mask.clone()),
            (None, None, Some(ternary)) => ternary.apply(base, mask.clone()),
            (None, None, None) => base,
        };
        match mask {
            None => values,
            Some(mask) => values * mask,
        }
    }
}

impl Coded {
    pub(super) fn new(coding: Coding, device: &Device) -> Self {
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
                    let count = product.rows() * product.columns;
                    coded.books.push(match transposed {
                        true => Codebook::new(&stage.centroids, by_column(&product).map(place), false, device),
                        false => {
                            let places = (0..count).map(|position| place(product.matrix_place(position)));
                            Codebook::new(&stage.centroids, places, false, device)
                        }
                    });
                }
                let Product { width, columns, taps, .. } = product;
                coded.form = form(Form::Product { width, columns, taps, transposed });
            }
        }
        coded
    }

    /// The coding on the host.
    pub fn to_host(&self) -> Coding {
        Visitor::of_coded(self)
    }
}
