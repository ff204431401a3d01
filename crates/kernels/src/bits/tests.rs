use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::lanes::Isa;
use crate::windows::by_definition;
use crate::{Padding, Precision};

const SIZES: [usize; 18] = [0, 1, 2, 3, 5, 6, 7, 16, 17, 31, 33, 63, 64, 65, 96, 127, 130, 300];

fn signs(rng: &mut impl Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| [-1.0, 1.0][rng.random_range(0..2)]).collect()
}

fn naive(w: &[f32], x: &[f32], [rows, columns, count]: [usize; 3]) -> Vec<i32> {
    let of = |i: usize, row: usize| {
        let pairs = w[row * columns..][..columns].iter().zip(&x[i * columns..][..columns]);
        pairs.map(|(w, x)| (w * x) as i32).sum()
    };
    (0..count).flat_map(|i| (0..rows).map(move |row| of(i, row))).collect()
}

#[test]
fn products_follow_the_definition_on_every_instruction_set() {
    for seed in 0..600 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut size = || SIZES[rng.random_range(0..SIZES.len())];
        let (rows, mut columns, count) = (size(), size(), size());
        if seed % 30 == 0 {
            // More words than a part of a panel has.
            columns += 16384 - 64 + rng.random_range(0..128);
        }
        let (rows, count) = if columns > 1000 { (rows % 70, count % 9) } else { (rows, count) };
        let (mut w, mut x) = (signs(&mut rng, rows * columns), signs(&mut rng, count * columns));
        if seed % 10 == 0 {
            // All differ: counts are as large as they get.
            w.fill(1.0);
            x.fill(-1.0);
        }
        let wanted = naive(&w, &x, [rows, columns, count]);
        let (w, x) = (Matrix::of_signs(rows, columns, &w, 1).unwrap(), Matrix::of_signs(count, columns, &x, 1).unwrap());
        for isa in WordIsa::all() {
            let packed = Weights::pack_on(isa, &w).unwrap();
            for threads in [1, 2] {
                let mut out = vec![7; rows * count];
                packed.times(&x, &mut out, threads).unwrap();
                assert!(out == wanted, "{isa:?}: {rows} rows, {columns} columns, {count} activations");
            }
        }
    }
}

#[test]
fn signs_are_those_of_the_values_on_every_instruction_set() {
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut size = || SIZES[rng.random_range(0..SIZES.len())];
        let (rows, columns) = (size(), size());
        let special = [0.0, -0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, -1e-45];
        let values: Vec<f32> = (0..rows * columns)
            .map(|_| if rng.random_bool(0.3) { special[rng.random_range(0..8)] } else { rng.random_range(-1.0..1.0) })
            .collect();
        let wanted = Matrix::of_bits(rows, columns, values.iter().map(|x| *x >= 0.0));
        assert!((0..rows * columns).all(|place| wanted.is_set(place / columns, place % columns) == (values[place] >= 0.0)));
        let planes: Vec<f32> = (0..rows * columns).map(|place| values[place % rows * columns + place / rows]).collect();
        for isa in Isa::all() {
            for threads in [1, 2] {
                let found = Matrix::of_signs_on(isa, rows, columns, &values, threads).unwrap();
                assert!(found == wanted, "{isa:?}: {rows} rows of {columns}");
            }
            assert!(Matrix::of_planes_on(isa, rows, columns, &planes).unwrap() == wanted, "{isa:?}: {columns} planes of {rows}");
        }
        // A row that is packed in several pieces.
        if seed == 0 {
            let values: Vec<f32> = (0..140_001).map(|_| rng.random_range(-1.0..1.0)).collect();
            let wanted = Matrix::of_bits(1, values.len(), values.iter().map(|x| *x >= 0.0));
            assert!([1, 2].iter().all(|threads| Matrix::of_signs(1, values.len(), &values, *threads).unwrap() == wanted));
        }
    }
}

#[test]
fn bits_behind_the_last_column_do_not_count() {
    let words = vec![u64::MAX; 6];
    let x = Matrix::from_words(3, 65, words).unwrap();
    assert_eq!(x.words(), [u64::MAX, 1, u64::MAX, 1, u64::MAX, 1]);
    let mut out = [0; 9];
    Weights::pack(&x).unwrap().times(&x, &mut out, 1).unwrap();
    assert_eq!(out, [65; 9]);
    assert!(Matrix::from_words(3, 65, vec![0; 5]).unwrap_err().to_string().contains("5 words for 3 rows of 65 signs"));
    assert_eq!(Matrix::from_words(2, 0, Vec::new()).unwrap().words_of_row(), 0);
}

#[test]
fn taps_beyond_the_border_are_zero() {
    let mut padded = 0;
    for seed in 0..150 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let groups = [1, 1, 1, 2, 3][rng.random_range(0..5)];
        let channels = groups * [1, 2, 3, 5, 16, 64, 65, 128][rng.random_range(0..8)];
        let shape = Conv2d {
            batch: 1,
            input: [rng.random_range(1..9), rng.random_range(1..9), channels],
            filters: groups * rng.random_range(1..40),
            kernel: [rng.random_range(1..4), rng.random_range(1..4)],
            stride: [rng.random_range(1..3), rng.random_range(1..3)],
            padding: Padding([
                [rng.random_range(0..3), rng.random_range(0..3)],
                [rng.random_range(0..5), rng.random_range(0..5)],
            ]),
            dilation: [rng.random_range(1..3), rng.random_range(1..3)],
            groups,
            precision: Precision::F32,
        };
        let Ok([_, _, filters]) = shape.output() else { continue };
        let batch = rng.random_range(0..3);
        let [rows, columns, _] = shape.input;
        let (each, area) = (channels / groups, shape.kernel[0] * shape.kernel[1]);
        let (w, x) = (signs(&mut rng, filters * each * area), signs(&mut rng, batch * rows * columns * channels));
        let wanted = by_definition(&shape, batch, |weight, pixel| {
            padded += usize::from(pixel.is_none());
            pixel.map_or(0, |pixel| (w[weight] * x[pixel]) as i32)
        });
        let w = Matrix::of_signs(filters, each * area, &w, 1).unwrap();
        let x = Matrix::of_signs(batch, rows * columns * channels, &x, 1).unwrap();
        for isa in WordIsa::all() {
            let conv = Convolution::pack_on(isa, shape, &w).unwrap();
            for threads in [1, 2] {
                let mut out = vec![7; wanted.len()];
                conv.forward(&x, &mut out, threads).unwrap();
                assert!(out == wanted, "{isa:?}: {shape:?}");
            }
        }
    }
    assert!(padded > 1000);
}

#[test]
fn what_does_not_fit_is_refused_with_its_shapes() {
    let error = Matrix::of_signs(2, 3, &[0.0; 5], 1).unwrap_err().to_string();
    assert_eq!(error, "5 values for 2 rows of 3 signs");
    let (w, x) = (Matrix::of_signs(2, 3, &[0.0; 6], 1).unwrap(), Matrix::of_signs(1, 4, &[0.0; 4], 1).unwrap());
    let error = Weights::pack(&w).unwrap().times(&x, &mut [0; 2], 1).unwrap_err().to_string();
    assert_eq!(error, "signs [1, 4] by weights [2, 3] into 2 results");
}
