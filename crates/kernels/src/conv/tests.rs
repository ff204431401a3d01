use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// The definition, in double precision: calls `visit(y, w, x)` with the flat indices of every product.
fn products_of(conv: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
    let [filters, oh, ow] = conv.output().unwrap();
    let [channels, height, width] = conv.input;
    let (per_group, per_filter) = (filters / conv.groups, channels / conv.groups);
    for (n, f, r, c) in (0..conv.batch)
        .flat_map(|n| (0..filters).flat_map(move |f| (0..oh).flat_map(move |r| (0..ow).map(move |c| (n, f, r, c)))))
    {
        let y = ((n * filters + f) * oh + r) * ow + c;
        for channel in 0..per_filter {
            for (kh, kw) in (0..conv.kernel[0]).flat_map(|kh| (0..conv.kernel[1]).map(move |kw| (kh, kw))) {
                let row = (r * conv.stride[0] + kh * conv.dilation[0]).wrapping_sub(conv.padding[0]);
                let column = (c * conv.stride[1] + kw * conv.dilation[1]).wrapping_sub(conv.padding[1]);
                if row < height && column < width {
                    let x = ((n * channels + f / per_group * per_filter + channel) * height + row) * width + column;
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

/// Widths of one, odd and prime sizes, empty batches, groups, depthwise, strides and dilation.
fn case(seed: u64) -> Option<Case> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let groups = [1, 1, 1, 2, 3][rng.random_range(0..5)];
    let channels = groups * rng.random_range(1..6);
    let filters = if rng.random_range(0..5) == 0 { channels } else { groups * rng.random_range(1..10) };
    let conv = Conv2d {
        batch: [0, 1, 2, 3, 17][rng.random_range(0..5)],
        input: [channels, rng.random_range(1..14), rng.random_range(1..20)],
        filters,
        kernel: [rng.random_range(1..5), rng.random_range(1..5)],
        stride: [rng.random_range(1..4), rng.random_range(1..4)],
        padding: [rng.random_range(0..4), rng.random_range(0..4)],
        dilation: [rng.random_range(1..3), rng.random_range(1..3)],
        groups: if filters == channels && rng.random() { channels } else { groups },
    };
    let out = conv.output().ok()?;
    let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let w = noise(filters * channels / conv.groups * conv.kernel[0] * conv.kernel[1]);
    let (x, dy) = (noise(conv.batch * conv.input.iter().product::<usize>()), noise(conv.batch * out.iter().product::<usize>()));
    Some(Case { conv, x, w, dy, bias: noise(filters) })
}

fn close(what: &str, found: &[f32], expected: &[f64], conv: &Conv2d) {
    let scale = expected.iter().fold(1.0_f64, |most, v| most.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= 1e-5 * scale, "{what} {i}: {found}, not {expected}: {conv:?}");
    }
}

#[test]
fn all_three_products_follow_the_definition_on_every_instruction_set() {
    let mut tried = 0;
    for Case { conv, x, w, dy, bias } in (0..900).filter_map(case) {
        tried += 1;
        let out = conv.output().unwrap();
        let pixels = out[1] * out[2];
        let mut y: Vec<f64> = (0..dy.len()).map(|i| f64::from(bias[i / pixels % conv.filters])).collect();
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        products_of(&conv, |iy, iw, ix| {
            y[iy] += f64::from(w[iw]) * f64::from(x[ix]);
            dx[ix] += f64::from(w[iw]) * f64::from(dy[iy]);
            dw[iw] += f64::from(x[ix]) * f64::from(dy[iy]);
        });
        for isa in [Isa::Portable, Isa::of_this_machine()] {
            let (mut found_y, mut found_dx, mut found_dw) =
                (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()], vec![f32::NAN; w.len()]);
            conv.forward_with(isa, &x, &w, Some(&bias), &mut found_y).unwrap();
            conv.input_gradient_with(isa, &dy, &w, &mut found_dx).unwrap();
            conv.weight_gradient_with(isa, &x, &dy, &mut found_dw).unwrap();
            close("output", &found_y, &y, &conv);
            close("input gradient", &found_dx, &dx, &conv);
            close("weight gradient", &found_dw, &dw, &conv);
        }
    }
    assert!(tried >= 500, "{tried} shapes");
}

const PLAIN: Conv2d = Conv2d {
    batch: 1,
    input: [3, 4, 4],
    filters: 2,
    kernel: [3, 3],
    stride: [1, 1],
    padding: [0, 0],
    dilation: [1, 1],
    groups: 1,
};

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let conv = Conv2d { batch: 37, input: [6, 9, 11], filters: 7, padding: [1, 1], ..PLAIN };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let (x, w, dy) = (noise(37 * 6 * 99), noise(7 * 6 * 9), noise(37 * 7 * 99));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        pool.install(|| {
            conv.forward(&x, &w, None, &mut y).unwrap();
            conv.input_gradient(&dy, &w, &mut dx).unwrap();
            conv.weight_gradient(&x, &dy, &mut dw).unwrap();
        });
        [y, dx, dw]
    };
    assert!(run(1) == run(2) && run(2) == run(5));
}

#[test]
fn what_does_not_fit_is_refused_with_its_shapes() {
    let conv = PLAIN;
    let error = conv.forward(&[0.0; 47], &[0.0; 54], None, &mut [0.0; 8]).unwrap_err().to_string();
    assert!(error.contains("have 47, 54 and 8 values") && error.contains("takes [48, 54, 8]"), "{error}");
    let error = conv.forward(&[0.0; 48], &[0.0; 54], Some(&[0.0; 3]), &mut [0.0; 8]).unwrap_err().to_string();
    assert_eq!(error, "a bias of 3 values for 2 filters");
    assert!(Conv2d { kernel: [5, 3], ..conv }.output().unwrap_err().to_string().contains("does not fit an image"));
    assert!(Conv2d { groups: 2, ..conv }.output().unwrap_err().to_string().contains("do not divide into 2 groups"));
    assert!(Conv2d { stride: [0, 1], ..conv }.output().is_err() && Conv2d { dilation: [1, 0], ..conv }.output().is_err());
}
