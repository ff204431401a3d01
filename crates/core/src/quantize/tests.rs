use std::collections::BTreeMap;

use burn::module::Module;

use super::*;
use crate::coding::{self, Coding, Source, coding_of, floats};

const BASE: [f32; 6] = [0.9, -0.2, 0.31, -3.0, 0.05, 2.4];

fn coded(grid: Grid, rounding: Rounding, learned: bool, device: &Device) -> Param<Tensor<2>> {
    let base = Tensor::<2>::from_data(TensorData::new(BASE.to_vec(), [2, 3]), device);
    Coding { mask: None, source: Source::Grid { grid, rounding, learned } }.attach(Param::from_tensor(base))
}

fn rows(levels: u32, steps: [f32; 2], zeros: [f32; 2]) -> Grid {
    Grid { levels, axis: Some(0), steps: steps.to_vec(), zeros: zeros.to_vec() }
}

#[test]
fn weights_take_the_values_of_the_grid_and_learn_inside_it() {
    let device = Device::flex().autodiff();
    let param = coded(rows(5, [0.5, 0.25], [2.0, 1.0]), Rounding::Nearest, false, &device).train();
    assert_eq!(floats(param.val()), [1.0, 0.0, 0.5, -0.25, 0.0, 0.75]);
    let factors = Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device);
    let grads = (param.val() * factors).sum().backward();
    assert_eq!(floats(param.base().grad(&grads).unwrap()), [1.0, 2.0, 3.0, 0.0, 5.0, 0.0]);
}

#[test]
fn binary_weights_are_signs_and_all_of_them_learn() {
    let device = Device::flex().autodiff();
    let param = coded(rows(2, [0.5, 3.0], [0.5, 0.5]), Rounding::Nearest, false, &device).train();
    assert_eq!(floats(param.val()), [0.25, -0.25, 0.25, -1.5, 1.5, 1.5]);
    let grads = param.val().sum().backward();
    assert_eq!(floats(param.base().grad(&grads).unwrap()), [1.0; 6]);
}

/// The surrogate is linear in the step once codes and clipping are held fixed.
#[test]
fn a_learned_step_has_the_gradient_of_its_surrogate() {
    let device = Device::flex().autodiff();
    let (levels, step, zero) = (8, 0.4_f32, 3.0_f32);
    let param = coded(Grid::uniform(levels, step, zero), Rounding::Nearest, true, &device).train();
    let upstream = [0.3_f32, -1.0, 2.0, 0.7, -0.4, 1.1];
    let factors = Tensor::<2>::from_data(TensorData::new(upstream.to_vec(), [2, 3]), &device);
    let grads = (param.val() * factors).sum().backward();
    let mut found = None;
    struct Steps<'a>(&'a burn::tensor::Gradients, &'a mut Option<f32>);
    impl burn::module::ModuleVisitor for Steps<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D == 1 && param.lazy_shape()[0] == 1 {
                *self.1 = param.val().grad(self.0).map(|gradient| floats(gradient)[0]).or(*self.1);
            }
        }
    }
    param.visit(&mut Steps(&grads, &mut found));
    // The residue of rounding, held fixed, belongs to the code: step (x / step0 + residue) clipped to the ends.
    let surrogate = |s: f64| -> f64 {
        let last = f64::from(levels - 1);
        let value = |x: f32| {
            let u = f64::from(x) / f64::from(step) + f64::from(zero);
            let residue = (u.clamp(0.0, last) + 0.5).floor() - u.clamp(0.0, last);
            (((f64::from(x) / s + f64::from(zero)).clamp(0.0, last) + residue) - f64::from(zero)) * s
        };
        BASE.iter().zip(upstream).map(|(x, factor)| value(*x) * f64::from(factor)).sum()
    };
    let slope = (surrogate(f64::from(step) + 1e-5) - surrogate(f64::from(step) - 1e-5)) / 2e-5;
    let scale = 1.0 / (6.0 * f64::from(levels - 1) / 2.0).sqrt();
    assert!((f64::from(found.unwrap()) - slope * scale).abs() < 1e-4, "{found:?}, {}", slope * scale);
}

#[test]
fn ternary_weights_and_squashed_ones_follow_their_formulas() {
    let device = Device::flex();
    let ternary = coded(rows(3, [1.0, 2.0], [1.0, 1.0]), Rounding::Threshold, false, &device);
    // Thresholds 0.7 * 0.47 and 0.7 * 1.817.
    assert_eq!(floats(ternary.val()), [1.0, 0.0, 0.0, -2.0, 0.0, 2.0]);
    let squashed = coded(Grid::uniform(4, 2.0 / 3.0, 1.5), Rounding::Tanh, false, &device);
    let largest = 3.0_f32.tanh();
    let expected = BASE.map(|w| (((w.tanh() / largest + 1.0) / 2.0 * 3.0).round() / 3.0 * 2.0) - 1.0);
    let close = floats(squashed.val()).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close, "{:?} {expected:?}", floats(squashed.val()));
}

/// The slope of the weighted sum of `values` by each weight, by differences.
fn slopes(factors: [f64; 6], values: impl Fn(&[f64; 6]) -> [f64; 6]) -> [f64; 6] {
    let loss = |base: &[f64; 6]| values(base).iter().zip(factors).map(|(value, factor)| value * factor).sum::<f64>();
    std::array::from_fn(|i| {
        let moved = |by: f64| {
            let mut base = BASE.map(f64::from);
            base[i] += by;
            loss(&base)
        };
        (moved(1e-5) - moved(-1e-5)) / 2e-5
    })
}

fn gradient(param: &Param<Tensor<2>>, factors: [f64; 6], device: &Device) -> Vec<f32> {
    let factors = Tensor::<2>::from_data(TensorData::new(factors.map(|factor| factor as f32).to_vec(), [2, 3]), device);
    let grads = (param.val() * factors).sum().backward();
    floats(param.base().grad(&grads).unwrap())
}

const UPSTREAM: [f64; 6] = [0.3, -1.0, 2.0, 0.7, -0.4, 1.1];

/// Without rounding, squashed weights are `tanh(w) / max |tanh(w)|`; the largest weight moves all of them.
#[test]
fn squashed_weights_have_the_gradient_of_their_surrogate() {
    let device = Device::flex().autodiff();
    let param = coded(Grid::uniform(4, 2.0 / 3.0, 1.5), Rounding::Tanh, false, &device).train();
    let expected = slopes(UPSTREAM, |base| {
        let largest = base.iter().fold(0.0_f64, |m, w| m.max(w.tanh().abs()));
        base.map(|w| w.tanh() / largest)
    });
    let found = gradient(&param, UPSTREAM, &device);
    let near = found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4);
    assert!(near, "{found:?} {expected:?}");
}

/// Without rounding, ternary weights are the weights.
#[test]
fn ternary_weights_have_the_gradient_of_their_surrogate() {
    let device = Device::flex().autodiff();
    let param = coded(rows(3, [1.0, 2.0], [1.0, 1.0]), Rounding::Threshold, false, &device).train();
    let (found, expected) = (gradient(&param, UPSTREAM, &device), slopes(UPSTREAM, |base| *base));
    assert!(found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{found:?}");
}

/// With the codes held fixed, the weights are linear in the scales; the weights underneath see the scales as factors.
#[test]
fn trained_ternary_scales_have_the_gradient_of_their_surrogate() {
    let device = Device::flex().autodiff();
    let (n, p, share) = (0.5_f32, 1.5_f32, 0.1_f32);
    let base = Tensor::<2>::from_data(TensorData::new(BASE.to_vec(), [2, 3]), &device);
    let source = Source::Ternary { scales: [n, p], share };
    let param = Coding { mask: None, source: source.clone() }.attach(Param::from_tensor(base)).train();
    // The threshold is a tenth of 3.
    assert_eq!(floats(param.val()), [1.5, 0.0, 1.5, -0.5, 0.0, 1.5]);
    assert_eq!(coding_of(&param).source, source);
    assert_eq!(coding::weights(&param)[0].values, floats(param.val()));
    let factors = UPSTREAM.map(|factor| factor as f32);
    let upstream = Tensor::<2>::from_data(TensorData::new(factors.to_vec(), [2, 3]), &device);
    let grads = (param.val() * upstream).sum().backward();
    struct Scales<'a>(&'a burn::tensor::Gradients, Vec<f32>);
    impl burn::module::ModuleVisitor for Scales<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D == 1 && param.lazy_shape()[0] == 2 {
                self.1 = param.val().grad(self.0).map(floats).unwrap_or_default();
            }
        }
    }
    let mut found = Scales(&grads, Vec::new());
    param.visit(&mut found);
    let value = |n: f64, p: f64| UPSTREAM.iter().zip([p, 0.0, p, -n, 0.0, p]).map(|(g, w)| g * w).sum::<f64>();
    let slope = |moved: &dyn Fn(f64) -> f64| (moved(1e-5) - moved(-1e-5)) / 2e-5;
    let (n, p) = (f64::from(n), f64::from(p));
    let expected = [slope(&|by| value(n + by, p)), slope(&|by| value(n, p + by))];
    assert!(found.1.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{:?} {expected:?}", found.1);
    let expected = slopes(UPSTREAM, |base| {
        let factors = [p, 1.0, p, n, 1.0, p];
        std::array::from_fn(|i| factors[i] * base[i])
    });
    let found = floats(param.base().grad(&grads).unwrap());
    assert!(found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{found:?}");
}

#[test]
fn stochastic_rounding_has_the_value_as_its_mean() {
    let device = Device::flex().autodiff();
    let param = coded(Grid::uniform(9, 0.5, 4.0), Rounding::Stochastic, false, &device).train();
    chance::seed(5);
    let draws = 4000;
    let mut mean = [0.0; 6];
    for _ in 0..draws {
        floats(param.val().inner()).iter().zip(&mut mean).for_each(|(value, mean)| *mean += f64::from(*value) / f64::from(draws));
    }
    let inside = BASE.map(|w| f64::from(w.clamp(-2.0, 2.0)));
    assert!(mean.iter().zip(inside).all(|(mean, w)| (mean - w).abs() < 0.02), "{mean:?}");
    let still = coded(Grid::uniform(9, 0.5, 4.0), Rounding::Stochastic, false, &Device::flex());
    assert_eq!(floats(still.val()), [1.0, 0.0, 0.5, -2.0, 0.0, 2.0]);
}

#[test]
fn values_underneath_survive_recoding_and_host_and_device_agree() {
    let device = Device::flex();
    let source = Source::Grid { grid: rows(5, [0.5, 0.25], [2.0, 1.5]), rounding: Rounding::Nearest, learned: true };
    let param = coded(rows(5, [0.5, 0.25], [2.0, 1.5]), Rounding::Nearest, true, &device);
    assert_eq!(coding_of(&param), Coding { mask: None, source: source.clone() });
    let listed = coding::weights(&param).remove(0);
    assert_eq!(listed.values, floats(param.val()));
    let mask = Some(vec![true, false, true, true, true, true]);
    let masked = Coding { mask, source };
    let param = coding::recode(param, BTreeMap::from([(String::new(), masked.clone())]));
    assert_eq!((floats(param.base()).as_slice(), coding_of(&param)), (&BASE[..], masked));
    let param = coding::adjust(param, |_, base, steps| (base.clamp(-1.0, 1.0), steps.mul_scalar(2.0)));
    assert_eq!(floats(param.base()), [0.9, -0.2, 0.31, -1.0, 0.05, 1.0]);
    assert_eq!(floats(param.val()), [1.0, 0.0, 0.0, -0.75, 0.25, 1.25]);
}

#[test]
fn the_kernel_computes_what_the_operations_of_burn_do() {
    let device = Device::flex().autodiff();
    chance::seed(6);
    let x = Tensor::<2>::random([17, 40], burn::tensor::Distribution::Normal(0.0, 1.0), &device).require_grad();
    let factors = Tensor::<2>::random([17, 40], burn::tensor::Distribution::Normal(0.0, 1.0), &device);
    for train in [StepGradient::Fixed, StepGradient::Learned, StepGradient::Clip] {
        for (levels, zero) in [(2, 0.5), (4, 0.0), (16, 7.0), (255, 127.0)] {
            let scale = 2.5 / levels as f32 * train.steps(levels, zero);
            let quantize = Quantize::new(Param::from_tensor(Tensor::from_floats([scale], &device)), levels, zero, train);
            let run = |y: Tensor<2>| {
                let grads = (y.clone() * factors.clone()).sum().backward();
                let step = quantize.scale.val().grad(&grads).map_or_else(Vec::new, floats);
                (floats(y.inner()), [floats(x.grad(&grads).unwrap()), step].concat())
            };
            let (ours, burns) = (run(quantize.forward(x.clone())), run(quantize.composed(x.clone())));
            assert_eq!(ours.0, burns.0);
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4 * b.abs().max(1.0);
            assert!(ours.1.len() == burns.1.len() && ours.1.iter().zip(&burns.1).all(near), "{train:?} {levels}");
        }
    }
}

#[test]
fn activations_learn_inside_the_grid_and_steps_as_their_rule_says() {
    let device = Device::flex().autodiff();
    let gradients = |train, zero| {
        let quantize = Quantize::new(Param::from_tensor(Tensor::from_floats([0.5], &device)), 4, zero, train);
        let x = Tensor::<2>::from_floats([[0.3, 0.6, 5.0, -0.7]], &device).require_grad();
        let y = quantize.forward(x.clone());
        let values = floats(y.clone());
        let grads = (y * Tensor::<2>::from_floats([[1.0, 2.0, 3.0, 4.0]], &device)).sum().backward();
        (values, floats(x.grad(&grads).unwrap()), quantize.scale.val().grad(&grads).map(|gradient| floats(gradient)[0]))
    };
    let (values, inputs, step) = gradients(StepGradient::Fixed, 0.0);
    assert_eq!((values.as_slice(), inputs.as_slice(), step), (&[0.5, 0.5, 1.5, 0.0][..], &[1.0, 2.0, 0.0, 0.0][..], None));
    // Inside (q - zero - x / step) of 0.4 and -0.2, above 3, below 0.
    let (_, _, step) = gradients(StepGradient::Learned, 0.0);
    let expected = (0.4 - 0.2 * 2.0 + 3.0 * 3.0) / (4.0_f64 * 1.5).sqrt();
    assert!((f64::from(step.unwrap()) - expected).abs() < 1e-5, "{step:?} {expected}");
    // A clip value of 0.5 lies below the second, too.
    let (values, inputs, alpha) = gradients(StepGradient::Clip, 0.0);
    let third = 0.5 / 3.0;
    assert!(values.iter().zip([2.0 * third, 0.5, 0.5, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{values:?}");
    assert_eq!((inputs.as_slice(), alpha), (&[1.0, 0.0, 0.0, 0.0][..], Some(2.0 + 3.0)));
    let (values, inputs, _) = gradients(StepGradient::Fixed, 1.5);
    assert_eq!((values.as_slice(), inputs.as_slice()), (&[0.25, 0.75, 0.75, -0.75][..], &[1.0, 2.0, 0.0, 4.0][..]));
}

#[test]
fn a_clip_value_has_the_gradient_of_its_surrogate() {
    let device = Device::flex().autodiff();
    let x = [-0.4_f32, 0.3, 1.9, 2.1, 2.6, 7.0];
    let factors = [1.0_f32, -2.0, 3.0, -1.5, 0.5, 4.0];
    let surrogate = |alpha: f64| x.iter().zip(factors).map(|(x, f)| f64::from(f) * f64::from(*x).clamp(0.0, alpha)).sum::<f64>();
    for levels in [4, 16, 256] {
        let alpha = 2.0_f32;
        let step = Quantize::new(Param::from_tensor(Tensor::from_floats([1.7], &device)), levels, 0.0, StepGradient::Clip).step();
        assert_eq!(floats(step.inner()), [1.7 / StepGradient::Clip.steps(levels, 0.0)], "as the engine has it");
        let clip = Quantize::new(Param::from_tensor(Tensor::from_floats([alpha], &device)), levels, 0.0, StepGradient::Clip);
        let pixels = Tensor::<2>::from_floats([x], &device);
        for y in [clip.forward(pixels.clone()), clip.composed(pixels)] {
            assert_eq!(floats(y.clone().inner())[5], alpha);
            let grads = (y * Tensor::<2>::from_floats([factors], &device)).sum().backward();
            let found = f64::from(floats(clip.scale.val().grad(&grads).unwrap())[0]);
            let expected = (surrogate(2.0 + 1e-3) - surrogate(2.0 - 1e-3)) / 2e-3;
            assert!((found - expected).abs() < 1e-3, "{levels} levels: {found} and {expected}");
        }
    }
}

#[test]
fn thresholds_and_scales_are_over_what_a_mask_keeps() {
    let device = Device::flex();
    let base = || Param::from_tensor(Tensor::<2>::from_data(TensorData::new(BASE.to_vec(), [2, 3]), &device));
    // Without the mask, 0.7 times the mean magnitude of all is 0.8 and the largest 3.
    let mask = Some(vec![true, true, true, false, true, false]);
    let values = |source: Source| floats(Coding { mask: mask.clone(), source }.attach(base()).val());
    let grid = |levels, step, zero, rounding| Source::Grid { grid: Grid::uniform(levels, step, zero), rounding, learned: false };
    // 0.7 * (0.9 + 0.2 + 0.31 + 0.05) / 4 = 0.2555
    assert_eq!(values(grid(3, 1.0, 1.0, Rounding::Threshold)), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    let squashed = values(grid(255, 1.0 / 127.0, 127.0, Rounding::Tanh));
    assert_eq!((squashed[0], squashed[3]), (1.0, 0.0));
    assert_eq!(values(Source::Ternary { scales: [0.3, 0.7], share: 0.2 }), [0.7, -0.3, 0.7, 0.0, 0.0, 0.0]);
    let host = |source: Source| Coding { mask: mask.clone(), source }.values(BASE.to_vec(), &[2, 3]);
    for source in [grid(3, 1.0, 1.0, Rounding::Threshold), Source::Ternary { scales: [0.3, 0.7], share: 0.2 }] {
        assert_eq!(host(source.clone()), values(source));
    }
}

#[test]
fn a_learned_step_moves_by_what_a_mask_keeps() {
    let device = Device::flex().autodiff();
    let gradient = |values: &[f32], mask: Option<Vec<bool>>| {
        let base = Param::from_tensor(Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &device));
        let source = Source::Grid { grid: Grid::uniform(8, 0.4, 3.0), rounding: Rounding::Nearest, learned: true };
        let param = Coding { mask, source }.attach(base).train();
        let grads = param.val().sum().backward();
        let mut found = Vec::new();
        struct Steps<'a>(&'a burn::tensor::Gradients, &'a mut Vec<f32>);
        impl burn::module::ModuleVisitor for Steps<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if D == 1 && param.lazy_shape()[0] == 1 {
                    self.1.extend(param.val().grad(self.0).map(|gradient| floats(gradient)[0]));
                }
            }
        }
        param.visit(&mut Steps(&grads, &mut found));
        found[0]
    };
    let kept = gradient(&[0.9, -0.2, 0.31], None);
    let masked = gradient(&[0.9, 5.0, -0.2, 7.0, 0.31, 0.0], Some(vec![true, false, true, false, true, false]));
    assert!((kept - masked).abs() < 1e-6 && kept != 0.0, "{kept} {masked}");
}
