use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::operand::round_to_bf16;

/// The definition, in double precision: calls `visit(y, w, x)` with the flat indices of every product.
fn products_of(conv: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
    let [oh, ow, filters] = conv.output().unwrap();
    let [height, width, channels] = conv.input;
    let (per_group, per_filter) = (filters / conv.groups, channels / conv.groups);
    for (n, f, r, c) in (0..conv.batch)
        .flat_map(|n| (0..filters).flat_map(move |f| (0..oh).flat_map(move |r| (0..ow).map(move |c| (n, f, r, c)))))
    {
        let y = ((n * oh + r) * ow + c) * filters + f;
        for channel in 0..per_filter {
            for (kh, kw) in (0..conv.kernel[0]).flat_map(|kh| (0..conv.kernel[1]).map(move |kw| (kh, kw))) {
                let row = (r * conv.stride[0] + kh * conv.dilation[0]).wrapping_sub(conv.padding.before(0));
                let column = (c * conv.stride[1] + kw * conv.dilation[1]).wrapping_sub(conv.padding.before(1));
                if row < height && column < width {
                    let x = ((n * height + row) * width + column) * channels + f / per_group * per_filter + channel;
                    visit(y, ((f * per_filter + channel) * conv.kernel[0] + kh) * conv.kernel[1] + kw, x);
                }
            }
        }
    }
}

struct Case {
    conv: Conv2d,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
    bias: Vec<f32>,
}

/// Sizes of one, odd and prime ones, empty batches, groups, depthwise, strides, dilation, and other padding on each side.
fn case(seed: u64) -> Option<Case> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let groups = [1, 1, 1, 2, 3][rng.random_range(0..5)];
    let channels = groups * [1, 2, 3, 5, 8, 17, 40][rng.random_range(0..7)];
    let filters =
        if rng.random_range(0..5) == 0 { channels } else { groups * [1, 2, 3, 7, 8, 16, 19, 33][rng.random_range(0..8)] };
    let conv = Conv2d {
        batch: [0, 1, 2, 3, 17][rng.random_range(0..5)],
        input: [rng.random_range(1..14), rng.random_range(1..20), channels],
        filters,
        kernel: [rng.random_range(1..5), rng.random_range(1..5)],
        stride: [rng.random_range(1..4), rng.random_range(1..4)],
        padding: Padding(std::array::from_fn(|_| [rng.random_range(0..4), rng.random_range(0..4)])),
        dilation: [rng.random_range(1..3), rng.random_range(1..3)],
        groups: if filters == channels && rng.random() { channels } else { groups },
        precision: if seed.is_multiple_of(3) { Precision::Bf16 } else { Precision::F32 },
    };
    let out = conv.output().ok()?;
    let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let w = noise(filters * channels / conv.groups * conv.kernel[0] * conv.kernel[1]);
    let (x, dy) = (noise(conv.batch * conv.input.iter().product::<usize>()), noise(conv.batch * out.iter().product::<usize>()));
    let mut case = Case { conv, x, w, dy, bias: noise(filters) };
    if conv.precision == Precision::Bf16 {
        // The definition is that of factors that bf16 holds.
        [&mut case.x, &mut case.w, &mut case.dy].into_iter().for_each(|values| round_to_bf16(values));
    }
    Some(case)
}

fn close(what: &str, found: &[f32], expected: &[f64], conv: &Conv2d, isa: Isa) {
    let scale = expected.iter().fold(1.0_f64, |most, v| most.max(v.abs()));
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= 1e-5 * scale, "{what} {i}: {found}, not {expected}: {conv:?} on {isa:?}");
    }
}

#[test]
fn all_three_products_follow_the_definition_on_every_instruction_set() {
    let mut tried = 0;
    for Case { conv, x, w, dy, bias } in (0..900).filter_map(case) {
        tried += 1;
        let mut y: Vec<f64> = (0..dy.len()).map(|i| f64::from(bias[i % conv.filters])).collect();
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        products_of(&conv, |iy, iw, ix| {
            y[iy] += f64::from(w[iw]) * f64::from(x[ix]);
            dx[ix] += f64::from(w[iw]) * f64::from(dy[iy]);
            dw[iw] += f64::from(x[ix]) * f64::from(dy[iy]);
        });
        for isa in Isa::all() {
            close("output", &conv.forward_on(isa, &x, &w, &Epilogue::biased(&bias)).unwrap(), &y, &conv, isa);
            close("input gradient", &conv.input_gradient_on(isa, &dy, &w).unwrap(), &dx, &conv, isa);
            close("weight gradient", &conv.weight_gradient_on(isa, &x, &dy).unwrap(), &dw, &conv, isa);
        }
    }
    assert!(tried >= 500, "{tried} shapes");
}

/// The linear form of the loss by each operand is its gradient, so a difference of any width is exact but for rounding.
#[test]
fn gradients_are_the_differences_of_the_loss() {
    let single = |case: &Case| case.conv.precision == Precision::F32;
    for Case { conv, x, w, dy, .. } in (2000..2100).filter_map(case).filter(single) {
        let loss = |x: &[f32], w: &[f32]| -> f64 {
            let y = conv.forward(x, w, &Epilogue::default()).unwrap();
            y.iter().zip(&dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum()
        };
        let (dx, dw) = (conv.input_gradient(&dy, &w).unwrap(), conv.weight_gradient(&x, &dy).unwrap());
        let difference = |values: &[f32], at: usize, loss: &dyn Fn(&[f32]) -> f64| {
            let moved = |by: f32| {
                let mut values = values.to_vec();
                values[at] += by;
                loss(&values)
            };
            (moved(1.0) - moved(-1.0)) / 2.0
        };
        for at in (0..x.len()).step_by(x.len() / 3 + 1) {
            let expected = difference(&x, at, &|x| loss(x, &w));
            assert!((f64::from(dx[at]) - expected).abs() < 1e-3, "dx {at}: {} and {expected}: {conv:?}", dx[at]);
        }
        for at in (0..w.len()).step_by(w.len() / 3 + 1) {
            let expected = difference(&w, at, &|w| loss(&x, w));
            assert!((f64::from(dw[at]) - expected).abs() < 1e-2, "dw {at}: {} and {expected}: {conv:?}", dw[at]);
        }
    }
}

#[test]
fn an_epilogue_scales_shifts_adds_and_rectifies() {
    for seed in 0..60 {
        let Some(Case { conv, x, w, dy: residual, bias }) = case(seed) else { continue };
        let scale: Vec<f32> = bias.iter().map(|b| b + 0.5).collect();
        let plain = conv.forward(&x, &w, &Epilogue::default()).unwrap();
        let wanted: Vec<f64> = (plain.iter().enumerate())
            .map(|(i, y)| {
                let f = i % conv.filters;
                (f64::from(*y) * f64::from(scale[f]) + f64::from(bias[f]) + f64::from(residual[i])).max(0.0)
            })
            .collect();
        let epilogue = Epilogue { scale: Some(&scale), bias: Some(&bias), residual: Some(&residual), rectify: true };
        for isa in Isa::all() {
            close("output", &conv.forward_on(isa, &x, &w, &epilogue).unwrap(), &wanted, &conv, isa);
        }
    }
}

pub(crate) const PLAIN: Conv2d = Conv2d {
    batch: 1,
    input: [4, 4, 3],
    filters: 2,
    kernel: [3, 3],
    stride: [1, 1],
    padding: Padding::NONE,
    dilation: [1, 1],
    groups: 1,
    precision: Precision::F32,
};

#[test]
fn large_images_are_cut_into_bands() {
    let conv = Conv2d { batch: 2, input: [61, 70, 24], filters: 20, padding: Padding::all(1), ..PLAIN };
    for conv in [conv, Conv2d { stride: [2, 3], dilation: [2, 1], ..conv }, Conv2d { groups: 2, ..conv }] {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        let out: usize = conv.output().unwrap().iter().product();
        let (x, w, dy) = (noise(2 * 61 * 70 * 24), noise(20 * 24 * 9 / conv.groups), noise(2 * out));
        let run = |isa| {
            let y = conv.forward_on(isa, &x, &w, &Epilogue::default()).unwrap();
            let dx = conv.input_gradient_on(isa, &dy, &w).unwrap();
            [y, dx, conv.weight_gradient_on(isa, &x, &dy).unwrap()]
        };
        let mut wanted = [vec![0.0; 2 * out], vec![0.0; x.len()], vec![0.0; w.len()]];
        products_of(&conv, |iy, iw, ix| {
            wanted[0][iy] += f64::from(w[iw]) * f64::from(x[ix]);
            wanted[1][ix] += f64::from(w[iw]) * f64::from(dy[iy]);
            wanted[2][iw] += f64::from(x[ix]) * f64::from(dy[iy]);
        });
        for (found, wanted) in run(Isa::of_this_machine()).iter().zip(&wanted) {
            close("product", found, wanted, &conv, Isa::of_this_machine());
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let conv = Conv2d { batch: 37, input: [9, 11, 6], filters: 7, padding: Padding::all(1), ..PLAIN };
    for conv in [conv, Conv2d { batch: 3, input: [2, 2, 64], filters: 200, ..conv }, Conv2d { filters: 6, groups: 6, ..conv }] {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        let x = noise(conv.batch * conv.input.iter().product::<usize>());
        let (w, dy) = (
            noise(conv.filters * conv.input[2] / conv.groups * 9),
            noise(conv.batch * conv.output().unwrap().iter().product::<usize>()),
        );
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let y = conv.forward(&x, &w, &Epilogue::default()).unwrap();
                [y, conv.input_gradient(&dy, &w).unwrap(), conv.weight_gradient(&x, &dy).unwrap()]
            })
        };
        assert!(run(1) == run(2) && run(2) == run(5));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_shapes() {
    let conv = PLAIN;
    let none = Epilogue::default();
    let error = conv.forward(&[0.0; 47], &[0.0; 54], &none).unwrap_err().to_string();
    assert!(error.contains("have 47, 54 and 8 values") && error.contains("takes [48, 54, 8]"), "{error}");
    let error = conv.forward(&[0.0; 48], &[0.0; 54], &Epilogue::biased(&[0.0; 3])).unwrap_err().to_string();
    assert_eq!(error, "a bias of 3 values for 2 filters and 8 results");
    let error = conv.forward(&[0.0; 48], &[0.0; 54], &Epilogue { residual: Some(&[0.0; 7]), ..none }).unwrap_err().to_string();
    assert_eq!(error, "a residual of 7 values for 2 filters and 8 results");
    assert!(Conv2d { kernel: [5, 3], ..conv }.output().unwrap_err().to_string().contains("does not fit an image"));
    assert!(Conv2d { groups: 2, ..conv }.output().unwrap_err().to_string().contains("do not divide into 2 groups"));
    assert!(Conv2d { stride: [0, 1], ..conv }.output().is_err() && Conv2d { dilation: [1, 0], ..conv }.output().is_err());
}

#[test]
fn sizes_beyond_what_can_be_counted_are_refused() {
    let plain = Conv2d { input: [2, 2, 1], filters: 1, kernel: [1, 1], ..PLAIN };
    let (half, whole) = (1 << (usize::BITS - 2), 1 << (usize::BITS - 1));
    // Each product or sum would wrap around to what an empty slice, or one of a single value, has.
    for conv in [
        Conv2d { batch: half, ..plain },
        Conv2d { input: [half, 4, 1], ..plain },
        Conv2d { filters: half, kernel: [2, 2], ..plain },
        Conv2d { padding: Padding([[whole, whole], [0, 0]]), ..plain },
        Conv2d { padding: Padding([[0, 0], [1, usize::MAX - 2]]), stride: [1, usize::MAX], ..plain },
        Conv2d { kernel: [2, 1], dilation: [usize::MAX, 1], ..plain },
        // Places in an image have 32 bits.
        Conv2d { batch: 0, input: [1 << 16, 1 << 16, 1], ..plain },
    ] {
        for len in [0, 1, 4] {
            let values = vec![1.0; len];
            assert!(conv.forward(&values, &[1.0], &Epilogue::default()).is_err(), "{conv:?} with {len} values");
            assert!(conv.forward(&values, &[], &Epilogue::default()).is_err(), "{conv:?} with {len} values");
            assert!(conv.input_gradient(&values, &[1.0]).is_err() && conv.weight_gradient(&values, &values).is_err(), "{conv:?}");
        }
        assert!(crate::integer::Convolution::pack(Conv2d { batch: 1, ..conv }, &[]).is_err() || conv.batch == half, "{conv:?}");
    }
    let linear = crate::Linear { rows: half, inputs: 4, outputs: 4, precision: Precision::F32 };
    assert!(linear.forward(&[], &[1.0; 16], &Epilogue::default()).is_err() && linear.input_gradient(&[], &[1.0; 16]).is_err());
    let long = crate::Linear { rows: 1, inputs: u32::MAX as usize, outputs: 0, ..linear };
    assert!(long.input_gradient(&[], &[]).is_err());
    assert!(crate::BatchNorm { rows: half, channels: 4 }.moments(&[]).is_err());
    let pool = crate::MaxPool2d { batch: half, input: [2, 2, 1], kernel: [1, 1], stride: [1, 1], padding: Padding::NONE };
    assert!(pool.forward(&[]).is_err() && pool.gradient(&[], &[]).is_err());
    assert!(
        crate::MaxPool2d { batch: 1, kernel: [whole, 1], padding: Padding([[whole - 1, whole - 1], [0, 0]]), ..pool }
            .output()
            .is_err()
    );
    let shortcut = crate::PadShortcut { batch: 1, input: [1, 1, 1], stride: 1, before: usize::MAX, after: 0 };
    assert!(shortcut.forward(&[1.0]).is_err() && shortcut.gradient(&[]).is_err());
    assert!(crate::PadShortcut { stride: 0, before: 0, ..shortcut }.forward(&[1.0]).is_err());
}
