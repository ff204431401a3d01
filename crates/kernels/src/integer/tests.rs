use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::windows::by_definition;
use crate::{Padding, Precision};

/// Sizes with all remainders of tiles and words, and such as need more than one part of a panel.
const SIZES: [usize; 17] = [0, 1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 31, 33, 48, 64, 65, 130];

fn weights(rng: &mut impl Rng, count: usize, extreme: bool) -> Vec<i8> {
    (0..count).map(|_| if extreme { [-128, 127][rng.random_range(0..2)] } else { rng.random_range(-128..=127) }).collect()
}

fn activations(rng: &mut impl Rng, count: usize, extreme: bool) -> Vec<u8> {
    (0..count).map(|_| if extreme { [0, 255, 255][rng.random_range(0..3)] } else { rng.random_range(0..=255) }).collect()
}

fn naive(w: &[i8], x: &[u8], [rows, columns, count]: [usize; 3]) -> Vec<i32> {
    let of = |i: usize, row: usize| {
        let pairs = w[row * columns..][..columns].iter().zip(&x[i * columns..][..columns]);
        pairs.map(|(w, x)| i32::from(*w) * i32::from(*x)).sum()
    };
    (0..count).flat_map(|i| (0..rows).map(move |row| of(i, row))).collect()
}

fn turned<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

#[test]
fn products_follow_the_definition_on_every_instruction_set() {
    for seed in 0..600 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut size = || SIZES[rng.random_range(0..SIZES.len())];
        let (rows, mut columns, count) = (size(), size(), size());
        if seed % 20 == 0 {
            // More words than a part of a panel has.
            columns += 2045 + rng.random_range(0..8);
        }
        let extreme = seed % 3 == 0;
        let (w, x) = (weights(&mut rng, rows * columns, extreme), activations(&mut rng, count * columns, extreme));
        let wanted = naive(&w, &x, [rows, columns, count]);
        let wanted_turned = turned(&wanted, count, rows);
        let stride = count + rng.random_range(0..3);
        let mut planes = vec![9; columns * stride];
        for (plane, values) in planes.chunks_mut(stride.max(1)).zip(turned(&x, count, columns).chunks(count.max(1))) {
            plane[..count].copy_from_slice(values);
        }
        // The last row ends with the last column.
        planes.truncate(columns.saturating_sub(1) * stride + count);
        for isa in WordIsa::all() {
            let packed = Weights::pack_on(isa, rows, columns, &w).unwrap();
            for threads in [1, 2] {
                let mut out = vec![7; rows * count];
                packed.times_rows(count, &x, &mut out, threads).unwrap();
                assert_eq!(out, wanted, "{isa:?}: {rows} rows, {columns} columns, {count} activations");
                out.fill(7);
                packed.times_columns(Columns { values: &planes, stride, count }, &mut out, threads).unwrap();
                assert_eq!(out, wanted_turned, "{isa:?}: {rows} rows, {columns} columns, {count} activations in columns");
            }
        }
    }
}

#[test]
fn products_large_enough_for_several_threads_are_the_same() {
    for (seed, shape) in [[97, 300, 101], [10, 4101, 40], [600, 520, 3], [64, 64, 1000], [1, 70000, 3]].into_iter().enumerate() {
        let [rows, columns, count] = shape;
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        let (w, x) = (weights(&mut rng, rows * columns, false), activations(&mut rng, count * columns, false));
        let wanted = naive(&w, &x, shape);
        let planes = turned(&x, count, columns);
        for isa in WordIsa::all() {
            let packed = Weights::pack_on(isa, rows, columns, &w).unwrap();
            for threads in [1, 2] {
                let mut out = vec![7; rows * count];
                packed.times_rows(count, &x, &mut out, threads).unwrap();
                assert!(out == wanted, "{isa:?}: {shape:?} on {threads} threads");
                packed.times_columns(Columns { values: &planes, stride: count, count }, &mut out, threads).unwrap();
                assert!(out == turned(&wanted, count, rows), "{isa:?}: {shape:?} on {threads} threads, in columns");
            }
        }
    }
}

#[test]
fn the_largest_sums_are_exact_and_larger_ones_are_refused() {
    // 255 * 127 * 66311 and 255 * 128 * 65793 are the last that fit.
    for (w, columns) in [(127, 66311), (-128, 65793)] {
        let x = vec![255; columns];
        for isa in WordIsa::all() {
            let mut out = [0];
            let packed = Weights::pack_on(isa, 1, columns, &vec![w; columns]).unwrap();
            packed.times_rows(1, &x, &mut out, 1).unwrap();
            assert_eq!(i64::from(out[0]), 255 * i64::from(w) * columns as i64, "{isa:?}");
        }
        let error = Weights::pack(1, columns + 1, &vec![w; columns + 1]).unwrap_err().to_string();
        assert!(error.contains("may not fit 32 bits"), "{error}");
    }
}

#[test]
fn sums_correct_zero_points() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let [rows, columns, count] = [5, 29, 11];
    let (w, x) = (weights(&mut rng, rows * columns, false), activations(&mut rng, count * columns, false));
    let (zero_w, zero_x) = (-7, 131);
    let packed = Weights::pack(rows, columns, &w).unwrap();
    let mut out = vec![0; rows * count];
    packed.times_rows(count, &x, &mut out, 1).unwrap();
    let of_x = row_sums(count, &x).unwrap();
    let planes = turned(&x, count, columns);
    assert_eq!(of_x, column_sums(columns, Columns { values: &planes, stride: count, count }).unwrap());
    for (i, row) in (0..count).flat_map(|i| (0..rows).map(move |row| (i, row))) {
        let wanted: i32 =
            (0..columns).map(|c| (i32::from(w[row * columns + c]) - zero_w) * (i32::from(x[i * columns + c]) - zero_x)).sum();
        let constant = columns as i32 * zero_w * zero_x;
        assert_eq!(out[i * rows + row] - zero_x * packed.sums()[row] - zero_w * of_x[i] + constant, wanted);
    }
}

#[test]
fn convolution_follows_the_definition_and_pads_with_the_zero_point() {
    let mut padded = 0;
    for seed in 0..150 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let groups = [1, 1, 1, 2, 3][rng.random_range(0..5)];
        let shape = Conv2d {
            batch: 1,
            input: [rng.random_range(1..12), rng.random_range(1..12), groups * rng.random_range(1..7)],
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
        let Ok([height, width, filters]) = shape.output() else { continue };
        let batch = rng.random_range(0..4);
        let [rows, columns, channels] = shape.input;
        let (each, area) = (channels / groups, shape.kernel[0] * shape.kernel[1]);
        let zero = rng.random_range(0..=255);
        let (w, x) =
            (weights(&mut rng, filters * each * area, false), activations(&mut rng, batch * rows * columns * channels, false));
        let wanted = by_definition(&shape, batch, |weight, pixel| {
            padded += usize::from(pixel.is_none());
            i32::from(w[weight]) * i32::from(pixel.map_or(zero, |pixel| x[pixel]))
        });
        for isa in WordIsa::all() {
            let conv = Convolution::pack_on(isa, shape, &w).unwrap();
            assert_eq!(conv.output(), [height, width, filters]);
            for threads in [1, 2] {
                let mut out = vec![7; wanted.len()];
                conv.forward(batch, &x, zero, &mut out, threads).unwrap();
                assert!(out == wanted, "{isa:?}: {shape:?}");
            }
        }
        let sums: Vec<i32> = w.chunks(each * area).map(|filter| filter.iter().map(|w| i32::from(*w)).sum()).collect();
        assert_eq!(Convolution::pack(shape, &w).unwrap().sums(), sums);
    }
    assert!(padded > 1000);
}

#[test]
fn what_does_not_fit_is_refused_with_its_shapes() {
    let error = Weights::pack(2, 3, &[0; 5]).unwrap_err().to_string();
    assert_eq!(error, "5 weights for a matrix of 2 rows and 3 columns");
    assert!(Weights::pack(usize::MAX, 2, &[]).is_err());
    let packed = Weights::pack(2, 3, &[1; 6]).unwrap();
    let error = packed.times_rows(2, &[0; 5], &mut [0; 4], 1).unwrap_err().to_string();
    assert_eq!(error, "activations and output have 5 and 4 values, 2 by weights of 2 rows and 3 columns");
    for (values, stride, count) in [(5, 2, 2), (6, 1, 2), (6, usize::MAX, 2)] {
        let columns = Columns { values: &[0; 6][..values], stride, count };
        assert!(packed.times_columns(columns, &mut [0; 4], 1).is_err(), "{values} {stride} {count}");
    }
    assert!(column_sums(3, Columns { values: &[0; 5], stride: 2, count: 2 }).is_err());
    let shape = Conv2d {
        batch: 1,
        input: [4, 4, 2],
        filters: 3,
        kernel: [3, 3],
        stride: [1, 1],
        padding: Padding::NONE,
        dilation: [1, 1],
        groups: 1,
        precision: Precision::F32,
    };
    assert!(Convolution::pack(shape, &[0; 53]).unwrap_err().to_string().contains("53 weights"));
    let error = Convolution::pack(shape, &[0; 54]).unwrap().forward(2, &[0; 64], 0, &mut [0; 23], 1).unwrap_err().to_string();
    assert!(error.contains("have 64 and 23 values"), "{error}");
}
