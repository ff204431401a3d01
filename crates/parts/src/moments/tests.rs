use briquette_core::context::Silent;
use briquette_core::net::Net;
use briquette_handmade::{context, dependent, images, small};
use burn::tensor::{Tensor, TensorData};

use super::*;

fn conv2(net: &Net) -> Reading {
    Reading::of(net, &net.channel_groups().unwrap()[0], net.index("conv2").unwrap())
}

#[test]
fn what_a_layer_computes_is_what_its_weights_make_of_the_sampled_inputs() {
    let (net, data, mut silent) = (dependent(), images(), Silent);
    let sample = Sample { images: 40, positions: 20, hold_back: false };
    let found = moments(&net, &net, &conv2(&net), sample, "patches", &mut context(&data, &mut silent)).unwrap();
    let width = found.width();
    assert_eq!(width, 16);
    for (weights, targets) in found.weights.chunks_exact(width).zip(found.targets.chunks_exact(width)) {
        for (target, inputs) in targets.iter().zip(found.inputs.chunks_exact(width)) {
            let product: f64 = inputs.iter().zip(weights).map(|(a, b)| a * b).sum();
            assert!((product - target).abs() < 1e-3 * (1.0 + target.abs()), "{product} and {target}");
        }
    }
    let contributions = found.contributions();
    for c in 0..4 {
        let sum: f64 = contributions.products[4 * c..4 * c + 4].iter().sum();
        let target = contributions.with_target[c];
        assert!((sum - target).abs() < 1e-3 * (1.0 + target.abs()), "{sum} and {target}");
    }
    assert_eq!(contributions.products[4 * 2 + 2], 0.0);
}

/// Moments of `rows` places at which a layer of 2 outputs reads 12 numbers, and computes of them what `truth` says but for noise.
fn noisy(rows: usize, truth: &[f64]) -> Moments {
    let mut rng = ChaCha8Rng::seed_from_u64(rows as u64);
    let mut place = || {
        let x: Vec<f32> = (0..12).map(|_| rng.random_range(-1.0..1.0)).collect();
        let y: Vec<f32> = truth
            .chunks(12)
            .map(|w| w.iter().zip(&x).map(|(w, x)| *w as f32 * x).sum::<f32>() + rng.random_range(-0.4..0.4))
            .collect();
        (x, y)
    };
    let mut found = Moments {
        channels: 6,
        inputs: vec![0.0; 144],
        targets: vec![0.0; 24],
        squares: 0.0,
        weights: truth.iter().map(|w| w * 1.1).collect(),
        rows,
        held: Rows::default(),
    };
    for _ in 0..rows {
        let (x, y) = place();
        add_products(&mut found.inputs, (&x, 12), (&x, 12));
        add_products(&mut found.targets, (&y, 2), (&x, 12));
    }
    for _ in 0..200 {
        let (x, y) = place();
        found.held.inputs.extend(x);
        found.held.outputs.extend(y);
    }
    found
}

#[test]
fn a_fit_to_fewer_rows_than_unknowns_is_held_to_what_other_images_say() {
    let truth: Vec<f64> = (0..24).map(|i| ((i * i * 5 + 3) % 17) as f64 / 8.0 - 1.0).collect();
    let all = [true; 6];
    let off = |weights: &[f64]| weights.iter().zip(&truth).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let unheld = |moments: &Moments| Moments { held: Rows::default(), ..moments.clone() }.reconstructed(&all);
    // With rows enough the fit is right, and nothing pulls.
    let many = noisy(2000, &truth);
    assert!(off(&many.reconstructed(&all)) < 0.01 && off(&many.reconstructed(&all)) < off(&many.weights));
    // With too few it follows the noise, and is worse than no fit at all, unless it is held.
    let few = noisy(13, &truth);
    assert!(off(&unheld(&few)) > off(&few.weights), "{} and {}", off(&unheld(&few)), off(&few.weights));
    let held = few.reconstructed(&all);
    assert!(off(&held) < 0.5 * off(&unheld(&few)), "{} and {}", off(&held), off(&unheld(&few)));
    assert!(few.missed(&held).unwrap() <= few.missed(&few.weights).unwrap());
}

#[test]
fn products_are_sums_over_rows_in_panels_and_without() {
    for (width, columns) in [(3, 5), (150, 131), (200, 97)] {
        let value = |i: usize, by: usize| ((i * i * by + i) % 19) as f32 / 9.0 - 1.0;
        let a: Vec<f32> = (0..7 * width).map(|i| value(i, 3)).collect();
        let b: Vec<f32> = (0..7 * columns).map(|i| value(i, 5)).collect();
        let mut sums = vec![0.5; width * columns];
        add_products(&mut sums, (&a, width), (&b, columns));
        for (at, sum) in sums.iter().enumerate() {
            let (i, j) = (at / columns, at % columns);
            let expected: f64 = (0..7).map(|row| f64::from(a[row * width + i]) * f64::from(b[row * columns + j])).sum();
            assert!((sum - 0.5 - expected).abs() < 1e-9, "{width} {columns} {at}: {sum} and {expected}");
        }
    }
}

#[test]
fn every_tenth_image_is_held_back_and_not_fitted() {
    let (data, mut silent, net) = (images(), Silent, small());
    let sample = Sample { images: 40, positions: 3, hold_back: true };
    let found = moments(&net, &net, &conv2(&net), sample, "patches", &mut context(&data, &mut silent)).unwrap();
    assert_eq!((found.rows, found.held.outputs.len() / 3, found.held.inputs.len() / 16), (36 * 3, 4 * 3, 4 * 3));
    assert!(found.missed(&found.weights).unwrap() < 1e-6);
    let half: Vec<f64> = found.weights.iter().map(|w| 0.5 * w).collect();
    assert!((found.missed(&half).unwrap() - 0.25).abs() < 1e-4);
}

#[test]
fn a_system_is_solved_and_what_it_leaves_open_stays_at_the_guess() {
    let found = solve(vec![4.0, 2.0, 2.0, 3.0], vec![(vec![8.0, 8.0], vec![0.0; 2])]);
    assert!((found[0][0] - 1.0).abs() < 1e-5 && (found[0][1] - 2.0).abs() < 1e-5, "{found:?}");
    let open = solve(vec![1.0, 0.0, 0.0, 0.0], vec![(vec![3.0, 0.0], vec![0.0, 7.0])]);
    assert!((open[0][0] - 3.0).abs() < 1e-5 && (open[0][1] - 7.0).abs() < 1e-9, "{open:?}");
    assert_eq!(solve(vec![0.0; 4], vec![(vec![0.0; 2], vec![5.0, 6.0])]), [[5.0, 6.0]]);
}

#[test]
fn padding_strides_and_dilation_meet_the_right_pixels() {
    let device = Device::flex();
    let read = Tensor::<4>::from_data(TensorData::new((1..=9).map(|v| v as f32).collect::<Vec<_>>(), [1, 1, 3, 3]), &device);
    let computed = Tensor::<4>::zeros([1, 1, 1, 1], &device);
    let taps = |window: Window| {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        window.rows(Value::Map(read.clone()), Value::Map(computed.clone()), 1, &mut rng).0
    };
    let plain = Window { kernel: [2, 2], stride: [2, 2], padding: Padding([[1, 0], [0, 2]]), dilation: [1, 1] };
    assert_eq!(taps(plain), [0.0, 0.0, 1.0, 2.0]);
    assert_eq!(taps(Window { padding: Padding([[0, 3], [0, 0]]), dilation: [2, 1], ..plain }), [1.0, 2.0, 7.0, 8.0]);
}
