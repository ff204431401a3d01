//! Decompositions of the layers of every network of the zoo.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use briquette_core::streams::{standard_normal, stream};
use briquette_low_rank::algebra::Matrix;
use briquette_low_rank::compose::compose;
use briquette_low_rank::cp::{self, Settings, Tensor};
use briquette_low_rank::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use briquette_low_rank::{bn_low_rank, svd, tensor_train, tucker2};
use briquette_runtime::{Layer, layers};
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Shorter sides of matrices that are decomposed in a moment.
const SMALL: usize = 128;
/// Shorter sides above which ranks are found by a random range.
const LARGE: usize = 1024;

#[test]
fn small_layers_of_the_zoo_come_back_at_full_rank() {
    assert!(reproduced(0..=SMALL) > 100);
}

#[test]
#[ignore = "decomposes for minutes"]
fn large_layers_of_the_zoo_come_back_at_full_rank() {
    assert!(reproduced(SMALL + 1..=LARGE) > 100);
}

#[test]
fn planted_sums_in_the_shape_of_layers_of_the_zoo_are_found() {
    let shapes = shapes();
    for shape in [[16, 16, 3, 3], [50, 20, 5, 5], [64, 64, 3, 3]] {
        assert!(shapes.contains(&shape), "no network has the kernel {shape:?}");
        let [n, c, kh, kw] = shape;
        for (modes, dims) in [
            (&[&[CHANNELS][..], &[HEIGHT, WIDTH], &[FILTERS]][..], vec![c, kh * kw, n]),
            (&[&[CHANNELS], &[HEIGHT], &[WIDTH], &[FILTERS]], vec![c, kh, kw, n]),
        ] {
            let mut rng = drawn(&format!("{modes:?} of {shape:?}"));
            let mut factor = |dim: &usize| Matrix::from_fn(*dim, 3, |_, _| standard_normal(&mut rng));
            let planted: Vec<Matrix> = dims.iter().map(&mut factor).collect();
            let tensor = Tensor::new(dims, sum(&planted)).unwrap();
            let found = cp::decompose(&tensor, &Settings { rank: 3, ..Settings::default() }).unwrap();
            assert!(found.error < 1e-4, "{shape:?} of {} modes: {}", modes.len(), found.error);
        }
    }
}

/// The sum over `r` of the outer products of the columns `r`, the last mode fastest.
fn sum(factors: &[Matrix]) -> Vec<f64> {
    let terms = |column: usize| {
        let outer = |all: Vec<f64>, factor: &Matrix| {
            all.iter().flat_map(|a| factor.column(column).iter().map(move |b| a * b).collect::<Vec<f64>>()).collect()
        };
        factors.iter().fold(vec![1.0], outer)
    };
    (0..factors[0].ncols()).map(terms).reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect()).unwrap()
}

/// The shapes `[filters, channels, height, width]` of a group of each convolution, and of fully connected layers as convolutions of one pixel.
fn shapes() -> BTreeSet<[usize; 4]> {
    let of_net = |arch: &briquette_core::zoo::Arch| {
        let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let shape = |op: &briquette_core::net::Op| match (op.layer(), &op.weight_shape()?[..]) {
            (Layer::Conv2d(layers::Conv2d { groups, .. }), &[n, c, kh, kw]) => Some([n / groups, c, kh, kw]),
            (Layer::Linear(_), &[n, c]) => Some([n, c, 1, 1]),
            _ => None,
        };
        net.nodes.iter().filter_map(|node| shape(&node.op)).collect::<Vec<_>>()
    };
    briquette_runner::zoo().flat_map(of_net).collect()
}

/// A method by its name, the matrices that it decomposes of a kernel, and the kernel that its factors of full rank make; none if it does not take the
/// kernel.
type Method = (&'static str, fn([usize; 4]) -> Option<Vec<[usize; 2]>>, fn(&Kernel) -> Kernel);

const METHODS: [Method; 4] = [
    ("svd", |[n, c, kh, kw]| Some(vec![[c, n * kh * kw]]), by_svd),
    ("bn-low-rank", |[n, c, kh, kw]| (kh > 1 && kw > 1).then(|| vec![[c * kh, n * kw]]), by_pair),
    ("tucker2", |[n, c, kh, kw]| (kh * kw > 1).then(|| vec![[n, c * kh * kw], [c, n * kh * kw]]), by_tucker),
    ("tensor-train", of_train, by_train),
];

/// How many decompositions whose largest matrix has its shorter side in this range have given the kernel back.
fn reproduced(sides: RangeInclusive<usize>) -> usize {
    let each = METHODS.iter().flat_map(|method| shapes().into_iter().map(move |shape| (method, shape)));
    let within = |(method, shape): &(&Method, [usize; 4])| {
        let matrices = method.1(*shape)?;
        matrices.iter().map(|[rows, columns]| *rows.min(columns)).max().filter(|side| sides.contains(side))
    };
    let chosen: Vec<(&Method, [usize; 4])> = each.filter(|of| within(of).is_some()).collect();
    chosen.par_iter().for_each(|((name, _, of), shape)| {
        let mut rng = drawn(&format!("{shape:?}"));
        let kernel = Kernel::new(*shape, (0..shape.iter().product()).map(|_| standard_normal(&mut rng)).collect());
        let off = of(&kernel).distance(&kernel) / kernel.energy().sqrt();
        assert!(off < 1e-4, "{name} of {shape:?}: {off}");
    });
    chosen.len()
}

fn drawn(name: &str) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(stream(1, name))
}

fn by_svd(kernel: &Kernel) -> Kernel {
    let [n, c, kh, kw] = kernel.shape;
    let turned = kernel.tensor(&Device::flex()).swap_dims(0, 1).reshape([c, n * kh * kw]);
    let [left, right] = svd::decompose(turned, c.min(n * kh * kw)).unwrap();
    Kernel::of(left.matmul(right).reshape([c, n, kh, kw]).swap_dims(0, 1))
}

fn by_pair(kernel: &Kernel) -> Kernel {
    let [n, c, kh, kw] = kernel.shape;
    let [vertical, horizontal] = bn_low_rank::decompose(kernel.tensor(&Device::flex()), (c * kh).min(n * kw)).unwrap();
    compose(&Kernel::of(vertical), &Kernel::of(horizontal))
}

fn by_tucker(kernel: &Kernel) -> Kernel {
    let [n, c, ..] = kernel.shape;
    let ranks = tucker2::Ranks { output: n, input: Some(c) }.within(kernel.shape);
    tucker2::hooi(kernel, ranks, 1).unwrap().dense()
}

fn of_train([n, c, kh, kw]: [usize; 4]) -> Option<Vec<[usize; 2]>> {
    if kh * kw > 1 {
        return Some(vec![[c, kh * kw * n], [c * kh, kw * n], [c * kh * kw, n]]);
    }
    let [[m1, m2], [n1, n2]] = [digits(n), digits(c)];
    Some(vec![[m1 * n1, m2 * n2]])
}

/// Two digits, as even as can be, that count so many.
fn digits(features: usize) -> [usize; 2] {
    let first = (features as f64).sqrt().ceil() as usize;
    [first, features.div_ceil(first)]
}

fn by_train(kernel: &Kernel) -> Kernel {
    let [n, c, kh, kw] = kernel.shape;
    if kh * kw > 1 {
        let chain = tensor_train::convolutions(kernel, &[usize::MAX; 3]).unwrap();
        return chain.into_iter().reduce(|all, next| compose(&all, &next)).unwrap();
    }
    let ([m1, m2], [n1, n2]) = (digits(n), digits(c));
    let weight = Matrix::from_row_slice(n, c, &kernel.values);
    let (_, cores) = tensor_train::matrix(&weight, &[m1, m2], &[n1, n2], &[m1 * n1]).unwrap();
    let pairs = tensor_train::contract(&cores);
    let entry = |at: usize| {
        let (row, column) = (at / c, at % c);
        pairs[((row / m2 * n1 + column / n2) * m2 + row % m2) * n2 + column % n2]
    };
    Kernel::new(kernel.shape, (0..n * c).map(entry).collect())
}
