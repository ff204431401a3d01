use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Structures of awkward sizes: fewer and more outputs than inputs, none a power of two, one row of everything.
fn structures() -> Vec<Structure> {
    let mut all = Vec::new();
    for (inputs, outputs) in [(12, 12), (13, 5), (7, 20), (1, 3), (6, 1), (1, 1), (16, 40)] {
        all.extend([
            Structure::Circulant { inputs, outputs, seed: 5 },
            Structure::Fastfood { inputs, outputs, seed: 6 },
            Structure::Acdc { inputs, outputs, layers: 1, seed: 7 },
            Structure::Acdc { inputs, outputs, layers: 3, seed: 8 },
            Structure::ToeplitzLike { inputs, outputs, rank: 1 },
            Structure::ToeplitzLike { inputs, outputs, rank: 3 },
            Structure::TwoLevelToeplitz { inputs, outputs, columns: if inputs % 3 == 0 { 3 } else { 1 } },
            Structure::Kronecker {
                inputs,
                outputs,
                left: [3.min(outputs), 4.min(inputs)],
                right: [outputs.div_ceil(3.min(outputs)), inputs.div_ceil(4.min(inputs))],
                terms: 2,
            },
            Structure::Butterfly { inputs, outputs },
            train(inputs, outputs, &[4, 3]),
            train(inputs, outputs, &[]),
        ]);
    }
    all
}

/// A tensor train of as many cores as ranks and one, whose modes multiply to the inputs and outputs or more.
fn train(inputs: usize, outputs: usize, ranks: &[usize]) -> Structure {
    let modes = |size: usize, first: usize| {
        let first = first.min(size);
        let second = size.div_ceil(first).min(2);
        [first, second, size.div_ceil(first * second)]
    };
    match ranks {
        [] => tensor_train(inputs, outputs, [&[outputs], &[inputs], ranks]),
        _ => tensor_train(inputs, outputs, [&modes(outputs, 2), &modes(inputs, 3), ranks]),
    }
}

fn tensor_train(inputs: usize, outputs: usize, [rows, columns, ranks]: [&[usize]; 3]) -> Structure {
    let [rows, columns, ranks] = [rows, columns, ranks].map(|sizes| Sizes::new(sizes).unwrap());
    Structure::TensorTrain { inputs, outputs, rows, columns, ranks }
}

fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn parameters(structure: &Structure, seed: u64) -> Vec<Vec<f32>> {
    structure.parameters().iter().zip(seed..).map(|(p, seed)| noise(p.count(), seed)).collect()
}

fn slices(parameters: &[Vec<f32>]) -> Vec<&[f32]> {
    parameters.iter().map(Vec::as_slice).collect()
}

/// A square matrix by rows.
type Matrix = Vec<Vec<f64>>;

fn matrix(size: usize, entry: impl Fn(usize, usize) -> f64) -> Matrix {
    (0..size).map(|i| (0..size).map(|j| entry(i, j)).collect()).collect()
}

fn product(factors: &[Matrix]) -> Matrix {
    let size = factors[0].len();
    let two = |a: &Matrix, b: &Matrix| matrix(size, |i, j| (0..size).map(|k| a[i][k] * b[k][j]).sum());
    factors[1..].iter().fold(factors[0].clone(), |all, next| two(&all, next))
}

fn diagonal(values: &[f32], size: usize) -> Matrix {
    matrix(size, |i, j| if i == j { f64::from(*values.get(i).unwrap_or(&0.0)) } else { 0.0 })
}

fn transposed(a: &Matrix) -> Matrix {
    matrix(a.len(), |i, j| a[j][i])
}

/// `v` is the first column; below the diagonal stand its values, above it `f` times its values.
fn circulant(f: f64, v: &[f32]) -> Matrix {
    let n = v.len();
    matrix(n, |i, j| f64::from(v[(n + i - j) % n]) * if i < j { f } else { 1.0 })
}

fn permutation(places: &[u32]) -> Matrix {
    matrix(places.len(), |i, j| f64::from(u8::from(places[i] as usize == j)))
}

/// The blocks of the dense form by the definition.
fn definition(structure: &Structure, p: &[Vec<f32>]) -> Vec<Matrix> {
    let [inputs, outputs] = structure.features();
    let blocks = |n: usize| 0..outputs.div_ceil(n);
    match *structure {
        Structure::Circulant { seed, .. } => {
            let signs = Draws(seed).signs(p[0].len());
            let block = |b: usize| {
                let of_block = b * inputs..(b + 1) * inputs;
                product(&[circulant(1.0, &p[0][of_block.clone()]), diagonal(&signs[of_block], inputs)])
            };
            blocks(inputs).map(block).collect()
        }
        Structure::Fastfood { seed, .. } => {
            let n = inputs.next_power_of_two();
            let h = matrix(n, |i, j| if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 } / (n as f64).sqrt());
            let mut draws = Draws(seed);
            let block = |block: usize| {
                let s = diagonal(&p[0][block * n..outputs.min((block + 1) * n)], n);
                let (g, b) = (&p[1][block * n..(block + 1) * n], &p[2][block * inputs..(block + 1) * inputs]);
                let turn = permutation(&draws.permutation(n));
                product(&[s, h.clone(), diagonal(g, n), turn, h.clone(), diagonal(b, n)])
            };
            blocks(n).map(block).collect()
        }
        Structure::Acdc { layers, seed, .. } => {
            let n = inputs.max(outputs);
            let c = matrix(n, |k, i| {
                let scale = if k == 0 { 1.0 } else { 2.0 } / n as f64;
                scale.sqrt() * (std::f64::consts::PI * k as f64 * (i as f64 + 0.5) / n as f64).cos()
            });
            let mut draws = Draws(seed);
            let mut factors = Vec::new();
            for layer in 0..layers {
                let of_layer = layer * n..(layer + 1) * n;
                if layer > 0 {
                    factors.push(permutation(&draws.permutation(n)));
                }
                factors.extend([c.clone(), diagonal(&p[1][of_layer.clone()], n), transposed(&c), diagonal(&p[0][of_layer], n)]);
            }
            factors.reverse();
            vec![product(&factors)]
        }
        Structure::ToeplitzLike { rank, .. } => {
            let term = |j: usize| {
                let of_term = j * inputs..(j + 1) * inputs;
                product(&[circulant(1.0, &p[0][of_term.clone()]), circulant(-1.0, &p[1][of_term])])
            };
            let block = |b: usize| {
                let terms: Vec<Matrix> = (b * rank..(b + 1) * rank).map(term).collect();
                matrix(inputs, |i, j| terms.iter().map(|term| term[i][j] / 2.0).sum())
            };
            blocks(inputs).map(block).collect()
        }
        Structure::TwoLevelToeplitz { columns, .. } => {
            let (rows, columns) = (inputs / columns, columns);
            let (tall, wide) = (2 * rows - 1, 2 * columns - 1);
            let block = |b: usize| {
                matrix(inputs, |i, j| {
                    let (down, right) = (rows - 1 + i / columns - j / columns, columns - 1 + i % columns - j % columns);
                    f64::from(p[0][(b * tall + down) * wide + right])
                })
            };
            blocks(inputs).map(block).collect()
        }
        Structure::Kronecker { left, right, terms, .. } => {
            let entry = |i: usize, j: usize| {
                if i >= left[0] * right[0] || j >= left[1] * right[1] {
                    return 0.0;
                }
                let term = |t: usize| {
                    let a = p[0][t * left[0] * left[1] + i / right[0] * left[1] + j / right[1]];
                    let b = p[1][t * right[0] * right[1] + i % right[0] * right[1] + j % right[1]];
                    f64::from(a) * f64::from(b)
                };
                (0..terms).map(term).sum()
            };
            vec![matrix(inputs.max(outputs), entry)]
        }
        Structure::Butterfly { .. } => {
            let n = butterfly::size(inputs);
            let levels = n.ilog2() as usize;
            let factor = |row: usize| {
                let (half, p) = (1 << (row % levels), &p[0][row * 2 * n..(row + 1) * 2 * n]);
                matrix(n, |i, j| {
                    if i / (2 * half) != j / (2 * half) || i % half != j % half {
                        return 0.0;
                    }
                    let pair = i / (2 * half) * half + i % half;
                    f64::from(p[4 * pair + 2 * (i / half % 2) + j / half % 2])
                })
            };
            let block = |b: usize| product(&(b * levels..(b + 1) * levels).rev().map(factor).collect::<Vec<_>>());
            blocks(n).map(block).collect()
        }
        Structure::TensorTrain { rows, columns, ranks, .. } => {
            let rank = |k: usize| if k == 0 { 1 } else { ranks.iter().nth(k - 1).unwrap_or(1) };
            let digit = |index: usize, sizes: &Sizes, k: usize| {
                index / sizes.iter().skip(k + 1).product::<usize>() % sizes.iter().nth(k).unwrap()
            };
            let entry = |i: usize, j: usize| {
                let mut left = vec![1.0];
                for (k, core) in p.iter().enumerate() {
                    let (m, n) = (rows.iter().nth(k).unwrap(), columns.iter().nth(k).unwrap());
                    let value = |a: usize, b: usize| {
                        let at = ((a * m + digit(i, &rows, k)) * n + digit(j, &columns, k)) * rank(k + 1) + b;
                        f64::from(core[at])
                    };
                    left = (0..rank(k + 1)).map(|b| left.iter().enumerate().map(|(a, l)| l * value(a, b)).sum()).collect();
                }
                left[0]
            };
            vec![matrix(inputs.max(outputs), entry)]
        }
    }
}

#[test]
fn products_are_those_of_the_dense_form() {
    for structure in structures() {
        let [inputs, outputs] = structure.features();
        let p = parameters(&structure, 1);
        let blocks = definition(&structure, &p);
        let row = |i: usize| &blocks[i / blocks[0].len()][i % blocks[0].len()];
        let dense = structure.dense(&slices(&p)).unwrap();
        let x = noise(9 * inputs, 2);
        let y = structure.prepare(&slices(&p)).unwrap().forward(&x).unwrap();
        for i in 0..outputs {
            for j in 0..inputs {
                let (found, wanted) = (f64::from(dense[i * inputs + j]), row(i)[j]);
                assert!((found - wanted).abs() < 1e-5 * (1.0 + wanted.abs()), "{structure:?} ({i}, {j}): {found} and {wanted}");
            }
            for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
                let wanted: f64 = row(i).iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum();
                assert!(
                    (f64::from(y[i]) - wanted).abs() < 1e-5 * (1.0 + wanted.abs()),
                    "{structure:?} {i}: {} and {wanted}",
                    y[i]
                );
            }
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    for structure in structures() {
        let [inputs, outputs] = structure.features();
        let (p, x, dy) = (parameters(&structure, 3), noise(6 * inputs, 4), noise(6 * outputs, 5));
        let loss = |p: &[Vec<f32>], x: &[f32]| -> f64 {
            let blocks = definition(&structure, p);
            let n = blocks[0].len();
            let of_row = |(x, dy): (&[f32], &[f32])| -> f64 {
                let y = |i: usize| x.iter().zip(&blocks[i / n][i % n]).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
                dy.iter().enumerate().map(|(i, dy)| f64::from(*dy) * y(i)).sum()
            };
            x.chunks(inputs).zip(dy.chunks(outputs)).map(of_row).sum()
        };
        let found = structure.prepare(&slices(&p)).unwrap().backward(&x, &dy).unwrap();
        let near = |found: f32, up: f64, down: f64, what: &str| {
            // The loss is linear in every single value, and the steps are exact in binary.
            let wanted = up - down;
            assert!(
                (f64::from(found) - wanted).abs() < 1e-4 * (1.0 + wanted.abs()),
                "{structure:?} {what}: {found} and {wanted}"
            );
        };
        for (i, dx) in found.input.iter().enumerate().step_by(5) {
            let moved = |by: f32| {
                let mut x = x.clone();
                x[i] = by;
                loss(&p, &x)
            };
            near(*dx, moved(0.5), moved(-0.5), "input");
        }
        let mut gradients = found.parameters.iter();
        for (number, values) in p.iter().enumerate() {
            for i in 0..values.len() {
                let gradient = *gradients.next().unwrap();
                if i % 7 == 0 || values.len() < 20 {
                    let moved = |by: f32| {
                        let mut p = p.clone();
                        p[number][i] = by;
                        loss(&p, &x)
                    };
                    near(gradient, moved(0.5), moved(-0.5), structure.parameters()[number].name);
                }
            }
        }
        assert!(gradients.next().is_none());
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let on = |threads: usize, work: &(dyn Fn() -> Vec<f32> + Sync)| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    };
    for structure in structures() {
        let [inputs, outputs] = structure.features();
        let (p, x, dy) = (parameters(&structure, 3), noise(150 * inputs, 4), noise(150 * outputs, 5));
        let all = || {
            let prepared = structure.prepare(&slices(&p)).unwrap();
            let gradients = prepared.backward(&x, &dy).unwrap();
            [prepared.forward(&x).unwrap(), gradients.input, gradients.parameters].concat()
        };
        assert_eq!(on(1, &all), on(3, &all), "{structure:?}");
    }
}

#[test]
fn a_butterfly_can_be_the_hadamard_transform() {
    let structure = Structure::Butterfly { inputs: 8, outputs: 8 };
    let half = std::f32::consts::FRAC_1_SQRT_2;
    let factors = [half, half, half, -half].repeat(3 * 4);
    let x = noise(8, 1);
    let mut wanted = x.clone();
    transform::hadamard(&mut wanted);
    let found = structure.prepare(&[&factors]).unwrap().forward(&x).unwrap();
    assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn the_displacement_of_a_toeplitz_like_matrix_has_its_rank() {
    let (n, rank) = (9, 2);
    let structure = Structure::ToeplitzLike { inputs: n, outputs: n, rank };
    let p = parameters(&structure, 9);
    let dense = structure.dense(&slices(&p)).unwrap();
    let m = matrix(n, |i, j| f64::from(dense[i * n + j]));
    let shift = |f: f64| {
        matrix(n, |i, j| {
            if i == j + 1 {
                1.0
            } else if i == 0 && j == n - 1 {
                f
            } else {
                0.0
            }
        })
    };
    let (left, right) = (product(&[shift(1.0), m.clone()]), product(&[m, shift(-1.0)]));
    let mut rows = matrix(n, |i, j| left[i][j] - right[i][j]);
    // Elimination with full pivoting; the pivots fall to rounding after the rank.
    let mut pivots = Vec::new();
    for _ in 0..=rank {
        let places = (0..n).flat_map(|i| (0..n).map(move |j| (i, j)));
        let (i, j) = places.max_by(|a, b| rows[a.0][a.1].abs().total_cmp(&rows[b.0][b.1].abs())).unwrap();
        let pivot = rows[i].clone();
        pivots.push(pivot[j].abs());
        for row in &mut rows {
            let factor = row[j] / pivot[j];
            row.iter_mut().zip(&pivot).for_each(|(v, p)| *v -= factor * p);
        }
    }
    assert!(pivots[rank - 1] > 0.1 && pivots[rank] < 1e-5, "{pivots:?}");
}

#[test]
fn two_levels_of_toeplitz_are_a_convolution_in_two_dimensions() {
    use crate::{Conv2d, Epilogue, Padding, Precision};

    let (rows, columns) = (5, 4);
    let structure = Structure::TwoLevelToeplitz { inputs: rows * columns, outputs: rows * columns, columns };
    let p = parameters(&structure, 3);
    let conv = Conv2d {
        batch: 3,
        input: [rows, columns, 1],
        filters: 1,
        kernel: [2 * rows - 1, 2 * columns - 1],
        stride: [1, 1],
        padding: Padding::both([rows - 1, columns - 1]),
        dilation: [1, 1],
        groups: 1,
        precision: Precision::F32,
    };
    // A convolution of networks is a correlation: its kernel is turned around.
    let turned: Vec<f32> = p[0].iter().rev().copied().collect();
    let x = noise(3 * rows * columns, 4);
    let wanted = conv.forward(&x, &turned, &Epilogue::default()).unwrap();
    let found = structure.prepare(&slices(&p)).unwrap().forward(&x).unwrap();
    assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs())), "{found:?} {wanted:?}");
}

#[test]
fn a_train_has_the_parameters_that_novikov_et_al_print() {
    for (rank, count) in [(1, 144), (2, 528), (4, 2016)] {
        let structure = tensor_train(25_088, 4_096, [&[4; 6], &[2, 7, 8, 8, 7, 4], &[rank; 5]]);
        structure.check().unwrap();
        assert_eq!(structure.count(), count);
    }
    // Of two cores without ranks between them, the products are those of a Kronecker product: X B^T, and A times that.
    assert_eq!(tensor_train(6, 20, [&[4, 5], &[2, 3], &[1]]).macs(), 2 * 3 * 5 + 4 * 2 * 5);
    for wrong in [&[1; 9][..], &[0], &[(1 << 24) + 1]] {
        assert!(Sizes::new(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn sizes_from_outside_are_checked_before_anything_is_made() {
    let big = usize::MAX / 2;
    let faults = [
        Structure::Circulant { inputs: 0, outputs: 4, seed: 0 },
        Structure::Circulant { inputs: 4, outputs: big, seed: 0 },
        Structure::Fastfood { inputs: big, outputs: 1, seed: 0 },
        Structure::Acdc { inputs: 4, outputs: 4, layers: 0, seed: 0 },
        Structure::Acdc { inputs: 1 << 20, outputs: 4, layers: 1 << 27, seed: 0 },
        Structure::ToeplitzLike { inputs: 1 << 10, outputs: 1 << 20, rank: big },
        Structure::ToeplitzLike { inputs: 1 << 10, outputs: 1 << 20, rank: 1 << 20 },
        Structure::Kronecker { inputs: 6, outputs: 6, left: [2, 2], right: [3, 2], terms: 1 },
        Structure::Kronecker { inputs: 6, outputs: 6, left: [big, big], right: [1, 1], terms: 1 },
        Structure::Kronecker { inputs: 1, outputs: 1, left: [1, 1 << 20], right: [1 << 20, 1], terms: 1 },
        Structure::TwoLevelToeplitz { inputs: 12, outputs: 4, columns: 0 },
        Structure::TwoLevelToeplitz { inputs: 12, outputs: 4, columns: 5 },
        Structure::Butterfly { inputs: 1 << 24, outputs: 1 << 24 },
        tensor_train(6, 6, [&[], &[], &[]]),
        tensor_train(6, 6, [&[2, 3], &[2, 3], &[]]),
        tensor_train(6, 6, [&[2, 3], &[6], &[2]]),
        tensor_train(6, 6, [&[2, 2], &[2, 3], &[2]]),
        tensor_train(6, 6, [&[2, 3], &[5, 1], &[2]]),
        tensor_train(6, 6, [&[2, 3], &[2, 3], &[1 << 24]]),
        tensor_train(1, 1, [&[1 << 24; 8], &[1 << 24; 8], &[1 << 24; 7]]),
        tensor_train(1, 1, [&[1, 1, 1 << 20], &[1 << 20, 1, 1], &[1, 1]]),
        tensor_train(1, 1, [&[1 << 14, 1], &[1 << 14, 1], &[1 << 10]]),
    ];
    for structure in faults {
        assert!(structure.check().is_err() && structure.prepare(&[&[]]).is_err(), "{structure:?}");
    }
    let structure = Structure::Circulant { inputs: 4, outputs: 6, seed: 0 };
    assert!(structure.prepare(&[&[0.0; 4]]).unwrap_err().0.contains("parameters of [4] values"));
    let prepared = structure.prepare(&[&[0.0; 8]]).unwrap();
    assert!(prepared.forward(&[0.0; 5]).is_err() && prepared.backward(&[0.0; 4], &[0.0; 5]).is_err());
    assert_eq!(prepared.forward(&[]).unwrap(), Vec::<f32>::new());
}
