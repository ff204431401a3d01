use briquette_core::streams::standard_normal;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::contraction::{distance, sweep};
use super::correction::correct;
use briquette_handmade::refusal;
use serde_json::json;

use super::*;
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::proof::{convolutions, planted, reproduces};

const CP4: [&[usize]; 4] = [&[CHANNELS], &[HEIGHT], &[WIDTH], &[FILTERS]];
const CP3: [&[usize]; 3] = [&[CHANNELS], &[HEIGHT, WIDTH], &[FILTERS]];

fn numbers(text: &str) -> Vec<f64> {
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

fn decay() -> Kernel {
    Kernel::new([8, 6, 3, 3], numbers(include_str!("../golden/decay.txt")))
}

fn rand() -> Kernel {
    Kernel::new([8, 6, 3, 3], numbers(include_str!("../golden/rand.txt")))
}

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..shape.iter().product()).map(|_| standard_normal(&mut rng)).collect();
    Tensor::new(shape.to_vec(), values).unwrap()
}

/// By the definition; factors `[dim, rank]`.
fn composed(factors: &[Matrix]) -> Tensor {
    let shape: Vec<usize> = factors.iter().map(Matrix::nrows).collect();
    let rank = factors[0].ncols();
    let entry = |at: usize| {
        let mut rest = at;
        let mut products = vec![1.0; rank];
        for factor in factors.iter().rev() {
            products.iter_mut().enumerate().for_each(|(r, product)| *product *= factor[(rest % factor.nrows(), r)]);
            rest /= factor.nrows();
        }
        products.iter().sum()
    };
    let values = (0..shape.iter().product()).map(entry).collect();
    Tensor::new(shape, values).unwrap()
}

fn less(a: &Tensor, b: &Tensor) -> Tensor {
    let values = a.values().iter().zip(b.values()).map(|(a, b)| a - b).collect();
    Tensor::new(a.shape().to_vec(), values).unwrap()
}

fn settings(rank: usize) -> Settings {
    Settings { rank, starts: 5, sweeps: 2000, solver: Solver::Als, correction: false, seed: 1 }
}

/// The absolute error.
fn error(tensor: &Tensor, settings: &Settings) -> f64 {
    decompose(tensor, settings).unwrap().error * tensor.energy().sqrt()
}

/// The mean over components of the product over modes of the cosines, components matched greedily.
fn match_score(a: &[Matrix], b: &[Matrix]) -> f64 {
    let rank = a[0].ncols();
    let mut free: Vec<usize> = (0..rank).collect();
    let congruence = |r: usize, s: usize| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a.column(r).dot(&b.column(s)) / a.column(r).norm() / b.column(s).norm()).abs()).product()
    };
    let best = |r: usize| {
        let at = (0..free.len()).max_by(|i, j| congruence(r, free[*i]).total_cmp(&congruence(r, free[*j]))).unwrap();
        congruence(r, free.remove(at))
    };
    (0..rank).map(best).sum::<f64>() / rank as f64
}

/// `x (x) x (x) y + x (x) y (x) x + y (x) x (x) x`, of rank 3 and border rank 2.
fn degenerate() -> Tensor {
    Tensor::new(vec![2, 2, 2], vec![0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]).unwrap()
}

#[test]
fn products_and_distances_follow_their_definitions() {
    // The pivot first and last, columns for several panels, above what runs in one task, and more components than panels are kept for.
    for (shape, rank) in
        [(vec![4, 3], 2), (vec![7, 2, 3, 2], 5), (vec![3, 4, 6], 9), (vec![40, 7, 60], 31), (vec![60, 50, 3, 2], 70)]
    {
        let tensor = noise(&shape, 1);
        let factors: Vec<Matrix> = shape
            .iter()
            .zip(2..)
            .map(|(dim, seed)| Matrix::from_vec(rank, *dim, noise(&[rank, *dim], seed).values().to_vec()))
            .collect();
        let mut modes = Vec::new();
        sweep(&tensor, &mut factors.clone(), |mode, product, factor| {
            modes.push(mode);
            for (r, index) in [(0, 0), (rank - 1, factor.ncols() - 1)] {
                // The scalar product of the tensor and the component whose vector of this mode is a unit vector.
                let mut one: Vec<Matrix> = factors
                    .iter()
                    .map(|factor| factor.row(r).transpose().into_owned())
                    .map(|c| Matrix::from_column_slice(c.len(), 1, c.as_slice()))
                    .collect();
                one[mode].fill(0.0);
                one[mode][(index, 0)] = 1.0;
                let expected: f64 = composed(&one).values().iter().zip(tensor.values()).map(|(a, b)| a * b).sum();
                assert!((product[(r, index)] - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{shape:?} mode {mode}");
            }
        });
        assert_eq!(modes[0], tensor.largest());
        modes.sort_unstable();
        assert_eq!(modes, (0..shape.len()).collect::<Vec<usize>>());
        let model = composed(&factors.iter().map(Matrix::transpose).collect::<Vec<Matrix>>());
        let expected = less(&tensor, &model).energy().sqrt();
        assert!((distance(&tensor, &factors) / expected - 1.0).abs() < 1e-12, "{shape:?}");
    }
}

#[test]
fn a_solution_solves_with_any_number_of_blocks() {
    for size in [1, 64, 150] {
        let root = Matrix::from_vec(size, size, noise(&[size, size], 3).values().to_vec());
        let gram = &root * root.transpose() + Matrix::identity(size, size);
        let right = Matrix::from_vec(size, 7, noise(&[size, 7], 4).values().to_vec());
        let mut solved = right.clone();
        cholesky::Cholesky::new(gram.clone()).unwrap().solve(&mut solved);
        assert!((gram * solved - &right).norm() < 1e-9 * right.norm());
    }
    assert!(cholesky::Cholesky::new(-Matrix::identity(3, 3)).is_none());
}

#[test]
fn planted_components_are_found() {
    let mut lines = include_str!("../golden/cp.planted.txt").lines().map(numbers);
    for (shape, rank, fewer) in
        [(vec![8, 6, 3, 3], 3, 0.2018912468), (vec![8, 6, 9], 4, 0.3100203804), (vec![12, 10, 3, 3], 5, 0.05868358936)]
    {
        let planted: Vec<Matrix> = shape.iter().map(|dim| Matrix::from_row_iterator(*dim, rank, lines.next().unwrap())).collect();
        let tensor = composed(&planted);
        for solver in [Solver::Als, Solver::GaussNewton] {
            let fitted = decompose(&tensor, &Settings { solver, ..settings(rank) }).unwrap();
            assert!(fitted.error < 1e-6 && fitted.converged, "{shape:?}: {}", fitted.error);
            assert!(match_score(&fitted.factors, &planted) > 0.999);
        }
        let below = decompose(&tensor, &settings(rank - 1)).unwrap().error;
        assert!((below / fewer - 1.0).abs() < 1e-3, "{below} and {fewer}");
    }
}

#[test]
fn planted_components_are_found_under_noise() {
    let tensor = Tensor::new(vec![8, 6, 3, 3], numbers(include_str!("../golden/cp.noisy.txt"))).unwrap();
    let planted = [
        "1.351 .343 -1.163 -.187 -.339 -.228 .597 -1.279 .967 -1.128 -.188 .887 .664 -.691 1.769 .366 -.954 .043 -.831 .434 -1.342 .48 -1.771 1.097",
        ".272 1.357 -.71 -2.094 -1.37 -.243 1.964 .572 1.312 -.878 -.532 -.333 1.169 -.565 -.291 1.621 -.873 -.033",
        "-1.344 -.236 .829 1.193 -1.392 -2.525 .539 1.667 -.701",
        ".265 .027 -2.157 -2.67 -.067 .486 -1.517 -.327 -.793",
    ]
    .map(|factor| Matrix::from_row_iterator(numbers(factor).len() / 3, 3, numbers(factor)));
    let fitted = decompose(&tensor, &settings(3)).unwrap();
    assert!((fitted.error - 0.04814795751).abs() < 1e-6, "{}", fitted.error);
    assert!((match_score(&fitted.factors, &planted) - 0.997422).abs() < 1e-4);
}

#[test]
fn errors_of_kernels_are_within_those_that_are_known() {
    let of_decay = [
        (1, 1.689300665, 1.65619359),
        (2, 1.341714258, 1.283597548),
        (3, 1.124278609, 1.001327307),
        (4, 0.8777936503, 0.7260364604),
        (6, 0.5617675743, 0.4118828638),
        (8, 0.3501928159, 0.2441955582),
    ];
    let of_rand = [
        (1, 3.041184458, 3.0044692),
        (2, 2.902538554, 2.859914346),
        (3, 2.766887542, 2.711836189),
        (4, 2.6418445, 2.560357158),
        (6, 2.402328728, 2.226257518),
        (8, 2.144534995, 1.915134073),
    ];
    for (kernel, known) in [(decay(), of_decay), (rand(), of_rand)] {
        for (rank, cp4, cp3) in known {
            for (modes, known) in [(&CP4[..], cp4), (&CP3[..], cp3)] {
                let tensor = Tensor::of(&kernel, modes).unwrap();
                let found = error(&tensor, &Settings { starts: 60, sweeps: 300, solver: Solver::GaussNewton, ..settings(rank) });
                assert!(found < known * 1.001, "{} modes, rank {rank}: {found} and {known}", modes.len());
            }
        }
    }
}

#[test]
fn gauss_newton_gets_through_where_alternation_stalls() {
    let tensor = Tensor::of(&decay(), &CP4).unwrap();
    let stalled = error(&tensor, &settings(3));
    let through = error(&tensor, &Settings { solver: Solver::GaussNewton, ..settings(3) });
    assert!(stalled > 1.12437 && stalled < 1.1255, "{stalled}");
    assert!((through - 1.124278609).abs() < 1e-5, "{through}");
}

#[test]
fn a_joint_fit_is_never_worse_than_one_term_after_the_other() {
    let tensor = Tensor::of(&decay(), &CP4).unwrap();
    let mut left = tensor.clone();
    for (terms, known) in (1..).zip([1.689300665, 1.36265318, 1.156560248, 1.005084305, 0.8732559013, 0.7608310273]) {
        let one = decompose(&left, &Settings { starts: 10, ..settings(1) }).unwrap();
        left = less(&left, &composed(&one.factors));
        let greedy = left.energy().sqrt();
        assert!((greedy / known - 1.0).abs() < 1e-4, "{terms} terms: {greedy} and {known}");
        assert!(error(&tensor, &settings(terms)) < greedy * (1.0 + 1e-6), "{terms} terms");
    }
}

#[test]
fn bases_of_separable_filters_are_decompositions() {
    let each = |kernel: &Kernel, channel: usize| {
        let values = kernel.values.chunks_exact(9).skip(channel).step_by(6).flatten().copied().collect();
        Tensor::new(vec![8, 3, 3], values).unwrap()
    };
    let of_decay = ([1.556392252, 1.176990998, 0.8572312469, 0.566074029], [1.305654787, 0.8825332336, 0.438275463]);
    let of_rand = ([2.894146565, 2.603409385, 2.286461781, 1.937849085], [2.669084811, 2.198124292, 1.744319019]);
    for (kernel, (shared, own)) in [(decay(), of_decay), (rand(), of_rand)] {
        let with = |rank| Settings { starts: 10, ..settings(rank) };
        let all = Tensor::of(&kernel, &[&[FILTERS, CHANNELS], &[HEIGHT], &[WIDTH]]).unwrap();
        for (rank, known) in (1..).zip(shared) {
            assert!(error(&all, &with(rank)) < known * 1.001, "shared basis of {rank}");
        }
        for (rank, known) in (1..).zip(own) {
            let square = |channel| error(&each(&kernel, channel), &with(rank)).powi(2);
            let found = (0..6).map(square).sum::<f64>().sqrt();
            assert!(found < known * 1.001, "{rank} for each channel: {found} and {known}");
        }
    }
}

#[test]
fn components_that_diverge_are_flagged() {
    for solver in [Solver::Als, Solver::GaussNewton] {
        let at = |sweeps| decompose(&degenerate(), &Settings { solver, sweeps, ..settings(2) }).unwrap();
        let (early, late) = (at(20), at(2000));
        assert!(late.error < early.error && late.largest > early.largest, "{early:?} {late:?}");
        assert!(!early.converged && !late.converged, "{early:?} {late:?}");
        assert!(late.factors.iter().flatten().all(|value| value.is_finite()));
    }
    assert!(decompose(&degenerate(), &settings(3)).unwrap().converged, "three terms are exact");
}

#[test]
fn the_correction_ends_on_the_best_trade_of_norms_for_error() {
    let tensor = degenerate();
    // n ((x + y / n)^3 - x^3), whose components grow as n does.
    let n = 100.0_f64;
    let cube = n.cbrt();
    let factor = Matrix::from_row_slice(2, 2, &[cube, cube / n, -cube, 0.0]);
    let family = Model::new(vec![factor; 3]);
    assert!((family.components() - 20003.0003).abs() < 1e-3);
    for (norms, error) in [(3.0, 0.3060559), (6.0, 0.1122049), (12.0, 0.047753)] {
        let mut model = family.clone();
        correct(&tensor, &mut model, error, 1000);
        let found = distance(&tensor, &model.balanced());
        assert!(found <= error * (1.0 + 1e-6), "{found} and {error}");
        assert!(model.components() < norms * 1.01, "{} and {norms}", model.components());
    }
}

#[test]
fn the_correction_keeps_the_error() {
    let tensor = Tensor::of(&decay(), &CP3).unwrap();
    let plain = decompose(&tensor, &Settings { sweeps: 500, ..settings(6) }).unwrap();
    let corrected = decompose(&tensor, &Settings { sweeps: 500, correction: true, ..settings(6) }).unwrap();
    assert!(corrected.error <= plain.error * (1.0 + 1e-6));
    assert!(corrected.largest < 0.9 * plain.largest, "{} and {}", corrected.largest, plain.largest);
}

#[test]
fn factors_compose_to_the_error_in_any_order_of_modes() {
    // The largest mode first, last and between.
    for shape in [[6, 4, 3], [3, 4, 6], [3, 6, 4]] {
        let tensor = noise(&shape, 5);
        let fitted = decompose(&tensor, &settings(3)).unwrap();
        assert!(fitted.factors.iter().zip(shape).all(|(factor, dim)| factor.shape() == (dim, 3)));
        let found = (less(&tensor, &composed(&fitted.factors)).energy() / tensor.energy()).sqrt();
        assert!((found - fitted.error).abs() < 1e-12, "{found} and {}", fitted.error);
        let norms = |factor: &Matrix| factor.column_iter().map(|column| column.norm()).collect::<Vec<f64>>();
        let first = norms(&fitted.factors[0]);
        assert!(fitted.factors.iter().all(|factor| norms(factor).iter().zip(&first).all(|(a, b)| (a - b).abs() < 1e-12 * b)));
        let components: f64 = first.iter().map(|norm| norm.powi(6)).sum();
        assert!((components / tensor.energy() - fitted.largest).abs() < 1e-9 * fitted.largest);
    }
}

#[test]
fn given_factors_are_improved_in_any_order_of_modes() {
    for shape in [[6, 4, 3], [3, 6, 4]] {
        let tensor = noise(&shape, 5);
        let start = decompose(&tensor, &Settings { starts: 1, sweeps: 2, ..settings(3) }).unwrap();
        let none = refine(&tensor, &start.factors, 0).unwrap().error;
        assert!((none - start.error).abs() < 1e-12, "{none} and {}", start.error);
        let further = refine(&tensor, &start.factors, 100).unwrap();
        let found = (less(&tensor, &composed(&further.factors)).energy() / tensor.energy()).sqrt();
        assert!((found - further.error).abs() < 1e-12 && found < start.error, "{found} and {}", start.error);
        assert!(refine(&tensor, &further.factors[1..], 1).unwrap_err().to_string().contains("factors of shapes"));
    }
}

#[test]
fn a_matrix_gets_its_truncated_singular_value_decomposition() {
    let matrix = noise(&[7, 5], 6);
    let spectrum = crate::algebra::spectrum(&Matrix::from_row_slice(7, 5, matrix.values()));
    for rank in 1..=5 {
        let tail = spectrum[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
        assert!((error(&matrix, &settings(rank)) - tail).abs() < 1e-6);
    }
}

#[test]
fn a_seed_decides_and_the_threads_do_not() {
    let tensor = noise(&[40, 9, 48], 7);
    let fitted = |seed, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let settings = Settings { starts: 2, sweeps: 5, seed, ..settings(64) };
        pool.install(|| decompose(&tensor, &settings).unwrap().factors)
    };
    let one = fitted(1, 1);
    assert_eq!(one, fitted(1, 3));
    let random = |seed| decompose(&rand_tensor(), &Settings { starts: 2, sweeps: 1, seed, ..settings(6) }).unwrap().error;
    assert_ne!(random(1).to_bits(), random(2).to_bits());
}

fn rand_tensor() -> Tensor {
    Tensor::of(&rand(), &CP4).unwrap()
}

#[test]
fn nothing_to_fit_is_fitted_by_zeros() {
    let tensor = noise(&[3, 4, 2], 8);
    let none = decompose(&tensor, &settings(0)).unwrap();
    assert_eq!((none.error, none.converged, none.largest), (1.0, true, 0.0));
    assert!(none.factors.iter().all(|factor| factor.ncols() == 0));
    let zeros = decompose(&Tensor::new(vec![3, 4, 2], vec![0.0; 24]).unwrap(), &settings(2)).unwrap();
    assert_eq!((zeros.error, zeros.converged, zeros.largest), (0.0, true, 0.0));
    assert!(zeros.factors.iter().flatten().all(|value| *value == 0.0));
}

#[test]
fn more_components_than_the_tensor_has_are_left_out_quietly() {
    // Rank 1 by three: two components are superfluous, and every gram matrix is singular.
    let one = composed(&[2, 3, 4].map(|dim| Matrix::from_fn(dim, 1, |i, _| 1.0 + i as f64)));
    for solver in [Solver::Als, Solver::GaussNewton] {
        for correction in [false, true] {
            let fitted = decompose(&one, &Settings { solver, correction, ..settings(3) }).unwrap();
            assert!(fitted.error < 2e-6, "{}", fitted.error);
            assert!(fitted.factors.iter().flatten().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn what_cannot_be_decomposed_is_refused() {
    let refused = |shape: Vec<usize>, values: Vec<f64>| Tensor::new(shape, values).unwrap_err().to_string();
    assert!(refused(vec![4], vec![0.0; 4]).contains("two modes or more"));
    assert!(refused(vec![4, 0], vec![]).contains("none of them empty"));
    assert!(refused(vec![2, 2], vec![0.0; 3]).contains("3 values"));
    for value in [f64::NAN, f64::INFINITY, 1e200] {
        assert!(refused(vec![1, 2], vec![0.0, value]).contains("not finite"));
    }
    let tensor = noise(&[3, 4, 2], 9);
    assert!(decompose(&tensor, &settings(7)).unwrap_err().to_string().contains("needs 6 at most"));
    assert!(decompose(&tensor, &settings(6)).is_ok());
    assert!(decompose(&tensor, &Settings { starts: 0, ..settings(1) }).is_err());
    assert!(decompose(&tensor, &Settings { sweeps: 0, ..settings(1) }).is_err());
}

#[test]
fn three_or_four_convolutions_compute_what_one_of_that_rank_does() {
    for modes in [3, 4] {
        let settings = json!({ "modes": modes, "ranks": { "layer": 4 }, "starts": 4, "sweeps": 500, "solver": "gauss-newton" });
        reproduces::<Cp>(planted(convolutions([3, 2]), 2), &settings);
    }
}

#[test]
fn settings_without_sense_and_layers_of_two_modes_are_refused() {
    let refused = |settings| refusal::<Cp>(convolutions([3, 2]).remove(0), settings);
    assert_eq!(refused(json!({ "ranks": 4, "modes": 2 })), "cp: `modes` is 3 or 4");
    assert_eq!(refused(json!({ "ranks": 4, "starts": 0 })), "cp: `starts` and `sweeps` must be at least 1");
    assert_eq!(refused(json!({ "ranks": 400 })), "node 'layer': rank 400 is not in 1..=24, all that its shape allows");
    let pixel = refusal::<Cp>(convolutions([1, 1]).remove(0), json!({ "layers": ["layer"], "ranks": 2 }));
    assert_eq!(pixel, "node 'layer': has a kernel of one pixel, hence two modes; use svd for it");
}
