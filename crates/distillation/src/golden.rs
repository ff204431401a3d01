//! Values and gradients of public code, computed in double precision, and the tensors that they are of: lines `name: numbers`, row-major.

use briquette_core::error::Result;
use briquette_core::values::floats;
use burn::tensor::{DType, Device, Tensor, TensorData};

const INPUTS: &str = include_str!("golden/inputs.txt");

/// The numbers of a line.
pub(crate) fn golden(text: &str, name: &str) -> Vec<f32> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_else(|| panic!("no {name}"));
    line.split(' ').map(|number| number.parse().unwrap()).collect()
}

/// Numbers as a tensor without gradients.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}

/// The first values of an input.
pub(crate) fn input<const D: usize>(name: &str, shape: [usize; D]) -> Tensor<D> {
    let mut values = golden(INPUTS, name);
    values.truncate(shape.iter().product());
    tensor(values, shape)
}

/// Whether values agree with golden ones, up to `tolerance` of the largest.
pub(crate) fn near(found: &[f32], expected: &[f32], tolerance: f32) {
    let size = expected.iter().fold(0.0, |size: f32, value| size.max(value.abs()));
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.iter().all(|value| value.is_finite()), "{found:?}");
    assert!(found.len() == expected.len() && off <= tolerance * size, "off by {off} of {size}: {found:?}, {expected:?}");
}

/// Whether a loss and its gradient are those of the lines `name value` and `name gradient`; and whether a student that is no number makes it none.
pub(crate) fn meets<const D: usize>(
    (text, name, tolerance): (&str, &str, f32),
    student: Tensor<D>,
    loss: impl Fn(Tensor<D>) -> Result<Tensor<1>>,
) {
    let student = student.require_grad();
    let term = loss(student.clone()).unwrap();
    near(&floats(term.clone()), &golden(text, &format!("{name} value")), tolerance);
    near(&floats(student.grad(&term.backward()).unwrap()), &golden(text, &format!("{name} gradient")), tolerance);
    is_none_of_none(&student, loss);
}

/// Whether a loss is no number where one value of the student is none.
pub(crate) fn is_none_of_none<const D: usize>(student: &Tensor<D>, loss: impl Fn(Tensor<D>) -> Result<Tensor<1>>) {
    let mut values = floats(student.clone());
    values[1] = f32::NAN;
    assert!(floats(loss(tensor(values, student.dims())).unwrap())[0].is_nan());
}

/// Whether a loss of zeros and its gradient are finite.
pub(crate) fn bears_zeros<const D: usize>(shape: [usize; D], loss: impl Fn(Tensor<D>) -> Result<Tensor<1>>) {
    let student = tensor(vec![0.0; shape.iter().product()], shape).require_grad();
    let term = loss(student.clone()).unwrap();
    let gradient = floats(student.grad(&term.backward()).unwrap());
    assert!(floats(term)[0].is_finite() && gradient.iter().all(|value| value.abs() < 1e3), "{gradient:?}");
}

/// Whether a gradient is that of finite differences, both in double precision.
pub(crate) fn slopes_agree<const D: usize>(at: &Tensor<D>, loss: impl Fn(Tensor<D>) -> Tensor<1>) {
    let (values, shape) = (floats(at.clone()).into_iter().map(f64::from).collect::<Vec<_>>(), at.dims());
    let double = |values: Vec<f64>| Tensor::<D>::from_data(TensorData::new(values, shape), (&at.device(), DType::F64));
    let single = |x: Tensor<1>| x.into_data().convert::<f64>().try_into_vec::<f64>().unwrap();
    let student = double(values.clone()).require_grad();
    let gradient = single(student.grad(&loss(student.clone()).backward()).unwrap().reshape([values.len()]));
    let size = gradient.iter().fold(0.0, |size: f64, slope| size.max(slope.abs()));
    assert!(size > 0.0, "nothing is learned");
    for i in 0..values.len() {
        let moved = |by: f64| {
            let mut values = values.clone();
            values[i] += by;
            single(loss(double(values)))[0]
        };
        let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!((slope - gradient[i]).abs() < 1e-6 * size.max(1e-3), "{i}: {}, {slope}", gradient[i]);
    }
}
