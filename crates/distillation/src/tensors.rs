//! What several losses are made of.

use briquette_core::error::{Error, Result};
use burn::tensor::module::adaptive_avg_pool2d;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The largest norm that counts as zero.
const ZERO: f64 = 1e-12;

/// Refuses, with both shapes, what does not fit.
pub(crate) fn fit(fits: bool, method: &str, student: &[usize], teacher: &[usize], rule: &str) -> Result<()> {
    match fits {
        true => Ok(()),
        false => Err(Error::Invalid(format!("{method}: the student's {student:?} and the teacher's {teacher:?} {rule}"))),
    }
}

/// Refuses logits of other samples or other classes.
pub(crate) fn same_logits(method: &str, student: &Tensor<2>, teacher: &Tensor<2>) -> Result<()> {
    let (student, teacher) = (student.dims(), teacher.dims());
    fit(student == teacher, method, &student, &teacher, "need the same samples and classes")
}

/// `[batch, features]` of a tensor of any rank.
pub(crate) fn rows<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let dims = x.dims();
    x.reshape([dims[0], dims[1..].iter().product()])
}

/// Vectors along `dim` over their norm. Those of a norm of at most 1e-12 become zero and carry no gradient: divided by 1e-12 instead, as references have
/// it, they would carry one that no step survives.
pub(crate) fn units<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let squares = x.clone().square().sum_dim(dim);
    let none = squares.clone().lower_equal_scalar(ZERO * ZERO);
    x / squares.mask_fill(none, f32::INFINITY).sqrt()
}

/// `log sum exp x` along `dim`.
pub(crate) fn log_sum_exp<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let most = x.clone().detach().max_dim(dim);
    (x - most.clone()).exp().sum_dim(dim).log() + most
}

/// Maps `[batch, channels, height, width]` of one height and one width, the smaller of both: the other's are averaged over adaptive windows.
pub(crate) fn one_size(method: &str, student: Tensor<4>, teacher: Tensor<4>) -> Result<[Tensor<4>; 2]> {
    let ([batch, _, height, width], [others, _, rows, columns]) = (student.dims(), teacher.dims());
    fit(batch == others, method, &student.dims(), &teacher.dims(), "need the same samples")?;
    let size = [height.min(rows), width.min(columns)];
    let pooled = |maps: Tensor<4>| if maps.dims()[2..] == size { maps } else { adaptive_avg_pool2d(maps, size) };
    Ok([student, teacher].map(pooled))
}

/// Draws from `[-reach, reach)`.
pub(crate) fn uniform<const D: usize>(shape: [usize; D], reach: f32, rng: &mut ChaCha8Rng, device: &Device) -> Tensor<D> {
    let draws = (0..shape.iter().product()).map(|_| rng.random_range(-reach..reach)).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(draws, shape), device)
}

/// Indices on a device.
pub(crate) fn indices<const D: usize>(
    values: impl IntoIterator<Item = usize>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    let values = values.into_iter().map(|index| index as i64).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use briquette_core::values::floats;

    use super::*;
    use crate::golden::{input, slopes_agree};

    #[test]
    fn maps_of_any_two_sizes_meet_at_the_smaller() {
        let student = input("student_map", [4, 3, 4, 4]);
        let wide = input("student_map", [4, 4, 2, 6]);
        let [a, b] = one_size("test", student.clone(), wide).unwrap();
        assert_eq!((a.dims(), b.dims()), ([4, 3, 2, 4], [4, 4, 2, 4]));
        // Four rows into three: 0..2, 1..3, 2..4.
        let third = input("student_map", [4, 4, 3, 4]);
        let [pooled, _] = one_size("test", student.clone(), third.clone()).unwrap();
        let (pooled, whole) = (floats(pooled), floats(student.clone()));
        assert!((pooled[4] - (whole[4] + whole[8]) / 2.0).abs() < 1e-6);
        slopes_agree(&student, |student| {
            let [pooled, _] = one_size("test", student, third.clone()).unwrap();
            pooled.powi_scalar(3).sum()
        });
        let other = one_size("test", input("teacher_map_small", [3, 8, 2, 2]), input("teacher_map_small", [4, 6, 2, 2]));
        let error = other.unwrap_err().to_string();
        assert_eq!(error, "test: the student's [3, 8, 2, 2] and the teacher's [4, 6, 2, 2] need the same samples");
    }

    #[test]
    fn sums_of_exponentials_do_not_overflow() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[200.0, 200.0, -200.0], [-200.0, -200.0, -400.0]], &device);
        let found = floats(log_sum_exp(x, 1));
        assert!((found[0] - 200.0 - 2.0_f32.ln()).abs() < 1e-4 && (found[1] + 200.0 - 2.0_f32.ln()).abs() < 1e-4, "{found:?}");
    }
}
