use half::f16;
use proptest::prelude::*;

use super::*;
use crate::Places;
use crate::bytes::{Put as _, Reader};

const CODERS: [Coder; 3] = [Coder::Packed, Coder::Huffman, Coder::Entropy];
const FORMATS: [ValueFormat; 3] = [ValueFormat::F32, ValueFormat::F16, ValueFormat::Codebook];

/// Every permission.
fn permissions() -> impl Iterator<Item = Permission> {
    FORMATS.into_iter().flat_map(|values| CODERS.map(|coder| Permission { values, coder }))
}

/// The mask that keeps what is not zero.
fn nonzero(values: &[f32]) -> Vec<bool> {
    values.iter().map(|value| *value != 0.0).collect()
}

/// No mask, the one that keeps what is not zero, and one that keeps some zeros and removes some values, too.
fn masks(values: &[f32]) -> [Option<Vec<bool>>; 3] {
    let mixed = values.iter().enumerate().map(|(i, value)| (*value != 0.0 && i % 7 != 1) || i % 11 == 3);
    [None, Some(nonzero(values)), Some(mixed.collect())]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The mask that comes back.
fn owned(mask: Option<&[bool]>) -> Option<Vec<bool>> {
    mask.filter(|mask| mask.contains(&false)).map(<[bool]>::to_vec)
}

/// What decoding must give.
fn expected(values: &[f32], mask: Option<&[bool]>, permission: &Permission) -> Vec<u32> {
    let mask = mask.filter(|mask| mask.contains(&false));
    let value = |(i, value): (usize, &f32)| {
        let rounded = if permission.values == ValueFormat::F16 { f16::from_f32(*value).to_f32() } else { *value };
        if mask.is_some_and(|mask| !mask[i] || rounded == 0.0) { 0.0 } else { rounded }
    };
    bits(&values.iter().enumerate().map(value).collect::<Vec<_>>())
}

/// Through the bytes and back.
fn reread(coded: &Coded) -> Coded {
    let mut bytes = Vec::new();
    coded.write(&mut bytes);
    assert_eq!(bytes.len(), coded.stored());
    assert_eq!(8 * bytes.len() as u64, coded.bits().total());
    let mut reader = Reader::new(&bytes);
    let back = Coded::read(&mut reader).unwrap();
    assert_eq!(reader.left(), 0);
    back
}

/// Weights as they come: any bits, few distinct values, mostly zeros.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    let any_bits = any::<u32>().prop_map(f32::from_bits);
    let shared = (0_i8..9).prop_map(|index| f32::from(index) * 0.25 - 1.0);
    let pruned = prop_oneof![19 => Just(0.0_f32), 1 => -1.0_f32..1.0];
    let pruned_shared = prop_oneof![19 => Just(0.0_f32), 1 => (1_i8..5).prop_map(f32::from), 1 => Just(-0.0)];
    prop_oneof![
        prop::collection::vec(any_bits, 0..200),
        prop::collection::vec(shared, 0..600),
        prop::collection::vec(pruned, 0..2000),
        prop::collection::vec(pruned_shared, 0..6000),
    ]
}

/// Uniform numbers in 0..1, the same in every run.
fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A pruned layer whose survivors share `1 << bits` values, bell-shaped with a hole around zero.
fn layer(draw: &mut impl FnMut() -> f64, count: usize, density: f64, bits: u32) -> Vec<f32> {
    let levels = f64::from(1_u32 << bits);
    let mut weight = || {
        if draw() >= density {
            return 0.0;
        }
        let bell = (0..6).map(|_| draw()).sum::<f64>() / 6.0;
        let level = (bell * levels).floor().min(levels - 1.0) - levels / 2.0 + 0.5;
        (level / levels) as f32
    };
    (0..count).map(|_| weight()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_plan_gives_the_values_back(values in weights()) {
        for (mask, permission) in masks(&values).iter().flat_map(|mask| permissions().map(move |permission| (mask.as_deref(), permission))) {
            let coded = Coded::encode(&[values.len()], &values, mask, &permission).unwrap();
            prop_assert_eq!(bits(&coded.decode()), expected(&values, mask, &permission), "{:?}", permission);
            let back = reread(&coded);
            prop_assert_eq!(bits(&back.decode()), expected(&values, mask, &permission), "{:?}", permission);
            prop_assert_eq!(back.mask(), owned(mask), "{:?}", permission);
            prop_assert!(back == coded || values.iter().any(|value| value.is_nan()));
            prop_assert_eq!((back.nonzero(), back.bits(), back.summary()), (coded.nonzero(), coded.bits(), coded.summary()));
            prop_assert_eq!(coded.nonzero(), coded.decode().iter().filter(|value| **value != 0.0).count());
        }
    }

    #[test]
    fn a_plan_that_permits_more_is_never_larger(values in weights()) {
        for values_format in FORMATS {
            let size = |mask: Option<&[bool]>, coder| {
                let permission = Permission { values: values_format, coder };
                Coded::encode(&[values.len()], &values, mask, &permission).unwrap().bits().total()
            };
            for mask in &masks(&values) {
                prop_assert!(size(mask.as_deref(), Coder::Packed) >= size(mask.as_deref(), Coder::Huffman));
                prop_assert!(size(mask.as_deref(), Coder::Huffman) >= size(mask.as_deref(), Coder::Entropy));
            }
            // A mask of the zeros takes no room: the dense form holds it, too.
            prop_assert!(size(Some(&nonzero(&values)), Coder::Packed) <= size(None, Coder::Packed));
        }
    }
}

#[test]
fn the_worked_example_of_deep_compression() {
    // Han, Mao, Dally, section 3: 16 weights that share 4 values, r = n b / (n log2 k + k b) = 16 * 32 / (16 * 2 + 4 * 32) = 3.2.
    let values: Vec<f32> = (0..16_u8).map(|i| f32::from(i % 4) - 1.5).collect();
    let permission = |values| Permission { values, coder: Coder::Packed };
    let dense = Coded::encode(&[4, 4], &values, None, &permission(ValueFormat::F32)).unwrap().bits();
    let shared = Coded::encode(&[4, 4], &values, None, &permission(ValueFormat::Codebook)).unwrap().bits();
    assert_eq!((dense.values, shared.values, shared.codebook), (512, 32, 128));
    assert_eq!(dense.values as f64 / (shared.values + shared.codebook) as f64, 3.2);
}

#[test]
fn distances_overflow_into_fillers() {
    let mut values = vec![0.0; 300];
    (values[0], values[1], values[299]) = (1.0, 2.0, 3.0);
    let coded = Coded::encode(&[300], &values, Some(&nonzero(&values)), &Permission::default()).unwrap();
    assert_eq!((coded.decode(), coded.nonzero()), (values, 3));
    let summary = coded.summary();
    assert!(summary.sparse && summary.gap_bits.is_some());
    assert_eq!(coded.bits().values, 3 * 32);
}

#[test]
fn a_sixteen_bit_plan_rounds_once() {
    let permission = Permission { values: ValueFormat::F16, ..Permission::default() };
    let coded = Coded::encode(&[3], &[0.1, 1e-9, 70000.0], None, &permission).unwrap();
    assert_eq!(coded.decode(), [0.099_975_586, 0.0, f32::INFINITY]);
    assert_eq!(Coded::encode(&[3], &coded.decode(), None, &permission).unwrap(), coded);
    let mask = [true, true, false];
    let masked = Coded::encode(&[3], &[0.1, -1e-9, 0.0], Some(&mask), &permission).unwrap();
    assert_eq!((masked.nonzero(), bits(&masked.decode())[1], masked.mask()), (1, 0, Some(mask.to_vec())));
}

#[test]
fn a_weight_that_happens_to_be_zero_is_not_masked() {
    let values: Vec<f32> = (0..600).map(|i| if i % 3 == 0 { 0.0 } else { (i % 5) as f32 * 0.25 - 0.5 }).collect();
    let grid = Grid::uniform(5, 0.25, 2.0);
    let mask: Vec<bool> = (0..600).map(|i| i % 2 == 0).collect();
    let masked: Vec<f32> = values.iter().zip(&mask).map(|(value, keep)| if *keep { *value } else { 0.0 }).collect();
    for (values, mask) in [(&values, None), (&masked, Some(&mask[..]))] {
        let codebook = |coder| Permission { values: ValueFormat::Codebook, coder };
        for coder in CODERS {
            for coded in [
                Coded::encode(&[20, 30], values, mask, &codebook(coder)).unwrap(),
                Coded::encode(&[20, 30], values, mask, &Permission::default()).unwrap(),
                Coded::on_grid(&[20, 30], values, mask, &grid, coder).unwrap(),
            ] {
                let back = reread(&coded);
                assert_eq!((&back.decode(), back.mask().as_deref()), (values, mask), "{:?}", back.summary());
            }
        }
    }
}

#[test]
fn a_mask_takes_no_bytes_where_the_dense_form_is_smaller() {
    let mut values: Vec<f32> = (1..=64).map(|i| i as f32 * 0.3).collect();
    (values[7], values[40]) = (0.0, 0.0);
    let permission = Permission::default();
    let plain = Coded::encode(&[64], &values, None, &permission).unwrap();
    let masked = Coded::encode(&[64], &values, Some(&nonzero(&values)), &permission).unwrap();
    assert_eq!((masked.stored(), masked.summary().sparse), (plain.stored(), false));
    // A kept zero beside a masked one takes none, either.
    let mut mask = nonzero(&values);
    mask[7] = true;
    let mixed = Coded::encode(&[64], &values, Some(&mask), &permission).unwrap();
    assert_eq!((mixed.stored(), reread(&mixed).mask()), (plain.stored(), Some(mask)));
    // One that keeps everything is none.
    assert_eq!(Coded::encode(&[64], &values, Some(&[true; 64]), &permission).unwrap(), plain);
    assert!(matches!(Coded::encode(&[64], &values, Some(&[true; 63]), &permission), Err(Error::Count { values: 63, .. })));
}

#[test]
fn one_kept_zero_in_a_large_masked_tensor_is_found_again() {
    let mask: Vec<bool> = (0..100_000).map(|i| i == 5).collect();
    let values = vec![0.0; mask.len()];
    let grid = Grid::uniform(3, 0.5, 1.0);
    for coder in CODERS {
        let coded =
            Coded::encode(&[mask.len()], &values, Some(&mask), &Permission { values: ValueFormat::Codebook, coder }).unwrap();
        assert_eq!(reread(&coded).mask().as_ref(), Some(&mask));
        let coded = Coded::on_grid(&[mask.len()], &values, Some(&mask), &grid, coder).unwrap();
        assert_eq!(reread(&coded).mask().as_ref(), Some(&mask));
    }
}

#[test]
fn what_cannot_be_stored_is_an_error() {
    let shared = Permission { values: ValueFormat::Codebook, coder: Coder::Packed };
    let distinct: Vec<f32> = (0..65_537_u32).map(|i| f32::from_bits(0x3f80_0000 + i)).collect();
    let mask: Vec<bool> = (0..=distinct.len()).map(|i| i > 0).collect();
    let masked = [&[0.0], &distinct[..]].concat();
    for (values, mask) in [(&distinct, None), (&masked, Some(&mask[..]))] {
        let error = Coded::encode(&[values.len()], values, mask, &shared).unwrap_err();
        assert_eq!(error.to_string(), "more than 65536 distinct values do not fit a codebook");
    }
    assert!(Coded::encode(&[65_536], &distinct[1..], None, &shared).is_ok());
    assert!(Coded::encode(&[65_537], &masked[..65_537], Some(&mask[..65_537]), &shared).is_ok());
    assert!(matches!(Coded::encode(&[2, 3], &[0.0; 5], None, &shared), Err(Error::Count { .. })));
    assert!(matches!(Coded::encode(&[1; 9], &[0.0], None, &shared), Err(Error::Limit { .. })));
    assert!(matches!(Coded::encode(&[usize::MAX, 2], &[0.0], None, &shared), Err(Error::Limit { .. })));
}

#[test]
fn an_empty_layer_costs_what_bounds_the_reader() {
    // A stream of no bytes may stand for 4096 elements only; a larger tensor of zeros takes a bit each.
    for (count, most) in [(4096, 8), (100_000, 12_600)] {
        for coder in CODERS {
            let permission = Permission { values: ValueFormat::Codebook, coder };
            let coded = Coded::encode(&[count], &vec![0.0; count], Some(&vec![false; count]), &permission).unwrap();
            assert!(coded.stored() <= most, "{} bytes for {count}", coded.stored());
            assert_eq!(reread(&coded).decode(), vec![0.0; count]);
            assert_eq!(reread(&coded).mask(), Some(vec![false; count]));
        }
    }
}

#[test]
fn lenet_300_100_at_a_twentieth_is_forty_times_smaller() {
    let mut draw = uniform(1);
    let (mut parameters, mut bits) = (0, Bits::default());
    for (rows, columns, density) in [(300, 784, 0.05), (100, 300, 0.05), (10, 100, 0.2)] {
        let permission = Permission { values: ValueFormat::Codebook, coder: Coder::Entropy };
        let weight = layer(&mut draw, rows * columns, density, 6);
        bits += Coded::encode(&[rows, columns], &weight, Some(&nonzero(&weight)), &permission).unwrap().bits();
        let bias: Vec<f32> = (0..rows).map(|_| draw() as f32).collect();
        bits += Coded::encode(&[rows], &bias, None, &permission).unwrap().bits();
        parameters += rows * columns + rows;
    }
    let rate = 32.0 * parameters as f64 / bits.total() as f64;
    assert!(rate > 40.0, "{rate}: {bits:?}");
    assert!(bits.header < 600, "{bits:?}");
}

#[test]
fn forged_tensors_are_refused_without_memory() {
    // A gigabyte of elements in a few bytes: sparse without entries, one Huffman symbol, a codebook that is not there.
    let mut shape = vec![1];
    shape.put_varint(1 << 30);
    for (flags, rest) in
        [(0x10_u8, &[0, 0][..]), (0x16, &[0, 0, 0]), (0x06, &[1, 0, 0, 0, 0, 2, 0x10, 0]), (0x02, &[0xff, 0xff, 3])]
    {
        let bytes = [&[flags][..], &shape, rest].concat();
        assert!(Coded::read(&mut Reader::new(&bytes)).is_err(), "{flags:#x}");
    }
}

#[test]
fn masks_that_keep_everything_are_refused() {
    // Dense with the flag of masked zeros and no zero; sparse with a distance of 1 before each of two values.
    for bytes in [&[0x20, 1, 1, 0, 0, 0x80, 0x3f][..], &[0x10, 1, 2, 0, 2, 0xc0, 0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x3f]] {
        let error = Coded::read(&mut Reader::new(bytes)).unwrap_err();
        assert_eq!(error.to_string(), "corrupt: a mask that keeps everything");
    }
    let masked = [0x20, 1, 2, 0, 0, 0x80, 0x3f, 0, 0, 0, 0];
    assert_eq!(Coded::read(&mut Reader::new(&masked)).unwrap().mask(), Some(vec![true, false]));
    let coder_of_no_distances = [0x60, 1, 1, 0, 0, 0, 0];
    assert!(Coded::read(&mut Reader::new(&coder_of_no_distances)).is_err());
}

/// What a mask leaves of the values.
fn left(values: &[f32], mask: Option<&[bool]>) -> Vec<f32> {
    values.iter().enumerate().map(|(i, value)| if mask.is_none_or(|mask| mask[i]) { *value } else { 0.0 }).collect()
}

/// A tensor on a grid: its shape, the grid, and values, some of them left out.
fn on_grid() -> impl Strategy<Value = (Vec<usize>, Grid, Vec<f32>)> {
    let shape = prop::collection::vec(1_usize..7, 1..4);
    (shape, 2_u32..300, any::<u64>(), prop_oneof![Just(0.0), Just(0.3), Just(0.97)]).prop_map(|(shape, levels, seed, pruned)| {
        let mut draw = uniform(seed);
        let axis = (draw() < 0.7).then(|| (draw() * shape.len() as f64) as usize);
        let channels = axis.map_or(1, |axis| shape[axis]);
        let steps = (0..channels).map(|_| (draw() + 0.01) as f32).collect();
        let zeros: Vec<f32> = match draw() < 0.5 {
            true => vec![(levels - 1) as f32 / 2.0; channels],
            false => (0..channels).map(|_| (draw() * f64::from(levels)).floor() as f32).collect(),
        };
        let grid = Grid { levels, axis, steps, zeros };
        let channel = grid.channel_of(&shape);
        let mut value = |i: usize| {
            let code = (draw() * f64::from(levels)) as u16;
            if draw() < pruned { 0.0 } else { grid.value(channel(i), code) }
        };
        let values = (0..shape.iter().product()).map(&mut value).collect();
        (shape, grid, values)
    })
}

proptest! {
    #[test]
    fn what_lies_on_a_grid_comes_back_with_its_codes((shape, grid, values) in on_grid()) {
        for (mask, coder) in masks(&values).iter().flat_map(|mask| CODERS.map(|coder| (mask.as_deref(), coder))) {
            let coded = Coded::on_grid(&shape, &values, mask, &grid, coder).unwrap();
            let values = left(&values, mask);
            prop_assert_eq!(&coded.decode(), &values);
            let back = reread(&coded);
            prop_assert_eq!(&back.decode(), &values);
            prop_assert_eq!(back.mask(), owned(mask));
            prop_assert_eq!((back.nonzero(), back.bits(), back.summary()), (coded.nonzero(), coded.bits(), coded.summary()));
            if let Some((found, codes)) = back.codes() {
                prop_assert_eq!(found, &grid);
                let channel = grid.channel_of(&shape);
                prop_assert!(codes.iter().enumerate().all(|(i, code)| grid.value(channel(i), *code) == values[i]));
            }
        }
    }
}

#[test]
fn a_code_of_one_bit_takes_one_bit() {
    let values: Vec<f32> = (0..4096).map(|i| if i * i % 7 < 3 { 0.25 } else { -0.25 }).collect();
    let grid = Grid::uniform(2, 0.5, 0.5);
    let coded = Coded::on_grid(&[64, 64], &values, None, &grid, Coder::Packed).unwrap();
    assert_eq!((coded.bits().values, coded.summary().value_format), (4096, ValueFormat::Grid));
    let codes = coded.codes().unwrap().1;
    assert!(codes.iter().zip(&values).all(|(code, value)| (*code == 1) == (*value > 0.0)));
}

#[test]
fn grids_that_make_no_sense_are_refused() {
    let on = |grid: Grid| Coded::on_grid(&[2, 3], &[0.0; 6], None, &grid, Coder::Packed).unwrap_err().to_string();
    assert_eq!(on(Grid::uniform(1, 0.5, 0.0)), "corrupt: a grid of 1 levels; it takes 2 to 65536");
    assert_eq!(on(Grid::uniform(4, f32::NAN, 0.0)), "corrupt: a grid of the step NaN");
    assert_eq!(on(Grid::uniform(4, 0.5, 0.25)), "corrupt: a grid with 0 at the code 0.25 of 4");
    assert_eq!(on(Grid { axis: Some(2), ..Grid::uniform(4, 0.5, 1.0) }), "corrupt: a grid along axis 2 of [2, 3]");
    assert_eq!(on(Grid { axis: Some(1), ..Grid::uniform(4, 0.5, 1.0) }), "corrupt: 1 steps and 1 zeros of a grid for 3");
}

proptest! {
    #[test]
    fn hashed_values_come_back_with_their_base_values(
        seed in any::<u64>(),
        buckets in prop::collection::vec((-8_i8..8).prop_map(|value| f32::from(value) * 0.37), 1..40),
        shape in (1_usize..30, 1_usize..30),
        pruned in any::<bool>(),
    ) {
        let hashed = Shared { places: Places::Hash { seed }, values: buckets };
        let shape = [shape.0, shape.1];
        let count = shape[0] * shape[1];
        let mask = pruned.then(|| (0..count).map(|i| i % 3 != 0).collect::<Vec<_>>());
        let values = left(&hashed.expand(&shape), mask.as_deref());
        for values_format in [ValueFormat::F32, ValueFormat::F16] {
            for coder in CODERS {
                let permission = Permission { values: values_format, coder };
                let coded = Coded::shared(&shape, &values, mask.as_deref(), &hashed, &permission).unwrap();
                prop_assert_eq!(coded.summary().value_format, ValueFormat::Shared);
                let back = reread(&coded);
                prop_assert!(back == coded);
                prop_assert_eq!(back.mask(), mask.clone());
                let expected: Vec<f32> = expected(&values, mask.as_deref(), &permission).into_iter().map(f32::from_bits).collect();
                // Without a bit for each value, a zero has the sign of its place.
                prop_assert_eq!(back.decode(), expected);
                let found = back.as_shared().unwrap();
                prop_assert_eq!((found.places, found.values.len()), (hashed.places, hashed.values.len()));
            }
        }
    }

    #[test]
    fn values_shared_by_any_rule_come_back_with_their_base_values(
        (meta, channels, kernel, more) in (1_usize..3, 1_usize..4, 1_usize..4, 0_usize..3),
        rule in 0_usize..3,
    ) {
        let (places, filters) = match rule {
            0 => (Places::Windows { sides: [kernel + more, kernel + 1] }, meta * (more + 1) * 2),
            1 => (Places::Turns { mirrored: more == 1, grouped: more == 2 }, meta * 8),
            _ => (Places::Tiles { times: more + 1 }, meta * (more + 1)),
        };
        let shape = [filters, 4 * channels, kernel, kernel];
        let count = places.count(&shape).unwrap().unwrap();
        let shared = Shared { places, values: (0..count).map(|i| i as f32 * 0.25 - 1.0).collect() };
        let values = shared.expand(&shape);
        let coded = Coded::shared(&shape, &values, None, &shared, &Permission::default()).unwrap();
        prop_assert_eq!(coded.bits().codebook, 32 * count as u64);
        let back = reread(&coded);
        prop_assert_eq!(back.decode(), values);
        prop_assert_eq!(back.as_shared(), Some(shared));
    }

    #[test]
    fn products_come_back_with_their_stages(
        (outputs, columns, width) in (1_usize..12, 1_usize..20).prop_flat_map(|(r, c)| (Just(r), Just(c), 1..=c)),
        taps in prop::sample::select(vec![1_usize, 2, 9]),
        counts in prop::collection::vec(1_usize..9, 1..4),
        pruned in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (mut draw, rows) = (uniform(seed), outputs * taps);
        let mut stage = |count: usize| crate::Stage {
            centroids: (0..count * columns).map(|_| draw() as f32 - 0.5).collect(),
            indices: (0..columns.div_ceil(width) * rows).map(|_| (draw() * count as f64) as u16).collect(),
        };
        let product = Product { width, columns, taps, stages: counts.iter().map(|count| stage(*count)).collect() };
        let mask = pruned.then(|| (0..rows * columns).map(|i| i % 3 != 0).collect::<Vec<_>>());
        let (values, mask) = (left(&product.values(), mask.as_deref()), mask.as_deref());
        let shapes = if taps > 1 { [vec![outputs, columns, taps], vec![outputs, columns, 1, taps]] } else { [vec![rows, columns], vec![rows, 1, columns]] };
        for (coder, shape) in CODERS.into_iter().flat_map(|coder| shapes.clone().map(|s| (coder, s))) {
            let permission = Permission { values: ValueFormat::F32, coder };
            let coded = Coded::product(&shape, &values, mask, &product, &permission).unwrap();
            let back = reread(&coded);
            prop_assert_eq!(back.decode(), values.clone());
            prop_assert_eq!((&back, back.as_product().unwrap()), (&coded, product.clone()));
            let rounded = Coded::product(&shape, &values, mask, &product, &Permission { values: ValueFormat::F16, ..permission }).unwrap();
            prop_assert!(reread(&rounded) == rounded && rounded.stored() < coded.stored());
        }
    }
}

#[test]
fn base_values_take_four_bytes_each_and_a_product_what_its_formula_says() {
    let hashed = Shared { places: Places::Hash { seed: 3 }, values: (0..1000).map(|i| i as f32 * 0.01 - 5.0).collect() };
    let values = hashed.expand(&[80, 100]);
    let coded = Coded::shared(&[80, 100], &values, None, &hashed, &Permission::default()).unwrap();
    assert_eq!((coded.bits().codebook, coded.bits().values), (32 * 1000, 0));
    // Flags, rank, two dimensions, the count, the rule with its seed, and how floats are written.
    assert_eq!(coded.stored(), 4 * 1000 + 1 + 1 + 2 + 2 + 9 + 1);
    // rows ceil(columns / width) log2 k bits of indices and 32 k columns of centroids, in every stage.
    let (rows, columns, width, k) = (96, 50, 4, 16);
    let stage = crate::Stage {
        centroids: (0..k * columns).map(|i| (i % 37) as f32).collect(),
        indices: (0..rows * 13).map(|i| (i * i % 16) as u16).collect(),
    };
    let product = Product { width, columns, taps: 1, stages: vec![stage.clone(), stage] };
    let coded = Coded::product(&[rows, columns], &product.values(), None, &product, &Permission::default()).unwrap();
    let bits = coded.bits();
    assert_eq!((bits.values, bits.codebook), (2 * (rows * 13 * 4) as u64, 2 * (32 * k * columns) as u64));
    assert!(bits.total() < bits.values + bits.codebook + 8 * 16, "{bits:?}");
}

/// 256 filters of 256 channels and 3 by 3 taps, 128 centroids of 4 channels: with a codebook for every block of taps centroids take more than
/// half of the floats, shared by the taps as much as the indices.
#[test]
fn taps_that_share_centroids_make_a_convolution_nine_times_smaller() {
    let shape = [256, 256, 3, 3];
    let bits = |columns: usize, taps: usize| {
        let stage = crate::Stage {
            centroids: (0..128 * columns).map(|i| (i % 251) as f32 * 0.01).collect(),
            indices: (0..columns / 4 * 256 * taps).map(|i| (i * i % 128) as u16).collect(),
        };
        let product = Product { width: 4, columns, taps, stages: vec![stage] };
        let coded = Coded::product(&shape, &product.values(), None, &product, &Permission::default()).unwrap();
        assert_eq!(reread(&coded).decode(), product.values());
        coded.bits().total() as f64
    };
    let floats = 32.0 * shape.iter().product::<usize>() as f64;
    let (apart, shared) = (floats / bits(256 * 9, 1), floats / bits(256, 9));
    assert!((1.7..1.9).contains(&apart) && (9.0..9.2).contains(&shared), "{apart} and {shared}");
}

#[test]
fn values_beside_their_rule_or_product_are_stored_as_they_are() {
    let hashed = Shared { places: Places::Hash { seed: 3 }, values: vec![0.5, 1.0] };
    let mut values = hashed.expand(&[40]);
    values[7] = 9.0;
    let coded = Coded::shared(&[40], &values, None, &hashed, &Permission::default()).unwrap();
    assert_eq!((coded.summary().value_format, coded.decode()), (ValueFormat::F32, values));
    // One bucket of 4 bytes may stand for 20480 values, not for more.
    for (count, format) in [(20_480, ValueFormat::Shared), (20_481, ValueFormat::F32)] {
        let hashed = Shared { places: Places::Hash { seed: 3 }, values: vec![0.5] };
        let values = hashed.expand(&[count]);
        assert_eq!(
            Coded::shared(&[count], &values, None, &hashed, &Permission::default()).unwrap().summary().value_format,
            format
        );
    }
    let refused =
        |product: &Product| Coded::product(&[2, 3], &[0.0; 6], None, product, &Permission::default()).unwrap_err().to_string();
    let stage = crate::Stage { centroids: vec![0.0; 6], indices: vec![0, 1, 1, 0] };
    let product = |width| Product { width, columns: 3, taps: 1, stages: vec![stage.clone()] };
    assert!(Coded::product(&[2, 3], &[0.0; 6], None, &product(2), &Permission::default()).is_ok());
    assert_eq!(refused(&product(4)), "corrupt: blocks of 4 of 3 columns");
    assert_eq!(refused(&product(1)), "corrupt: 6 centroid values and 4 indices for [2, 3]");
    let mut beyond = product(2);
    beyond.stages[0].indices[3] = 2;
    assert_eq!(refused(&beyond), "corrupt: centroid 2 of 2");
    beyond.stages.clear();
    assert_eq!(refused(&beyond), "corrupt: a product of 0 stages; it takes 1 to 16");
    let by_tap = Product { taps: 3, ..product(2) };
    assert_eq!(refused(&by_tap), "corrupt: a product whose taps share centroids, of the shape [2, 3]");
    let other = Coded::product(&[2, 3, 2], &[0.0; 12], None, &by_tap, &Permission::default()).unwrap_err().to_string();
    assert_eq!(other, "corrupt: a product of 3 taps for [2, 3, 2]");
    let none = Shared { places: Places::Hash { seed: 0 }, values: vec![] };
    let refused = Coded::shared(&[1], &[0.0], None, &none, &Permission::default()).unwrap_err().to_string();
    assert_eq!(refused, "corrupt: shared values: there are none");
}

#[test]
fn a_size_of_zero_hides_no_others() {
    let side = 1 << 30;
    for shape in [&[side, side, side, 0][..], &[0, side, side, side], &[side, side]] {
        assert!(
            matches!(Coded::encode(shape, &[], None, &Permission::default()), Err(Error::Limit { what: "elements", .. })),
            "{shape:?}"
        );
        let mut bytes = vec![0, shape.len() as u8];
        shape.iter().for_each(|size| bytes.put_varint(*size));
        assert!(matches!(Coded::read(&mut Reader::new(&bytes)), Err(Error::Limit { .. })), "{shape:?}");
    }
    assert_eq!(Coded::encode(&[3, 0], &[], None, &Permission::default()).unwrap().decode(), Vec::<f32>::new());
}
