//! The teacher's logits as targets of a regression.
//!
//! Of logits `v` of the teacher and `z` of the student, `1/2 sum_k (z_k - v_k)^2`, the mean over the batch. Gradient: `(z - v) / batch`. For
//! centred logits it is what soft targets become at high temperatures, times the number of classes.
//!
//! ```
//! use briquette_distillation::logits::logits;
//! use burn::tensor::{Device, Tensor};
//!
//! let of = |values: [f32; 2]| Tensor::<2>::from_floats([values], &Device::flex());
//! let loss: f32 = logits(of([1.0, 2.0]), of([0.0, 4.0])).unwrap().into_scalar();
//! assert_eq!(loss, 0.5 * (1.0 + 4.0));
//! ```
//!
//! Ba, Caruana. "Do Deep Nets Really Need to be Deep?". NIPS 2014. arXiv:1312.6184.

use briquette_core::error::{Error, Result};
use briquette_core::objective::Seen;
use briquette_core::teaching::{Distiller, Lesson, Pair, Shown, Taught};
use briquette_core::types::Ratio;
use briquette_core::values::floats;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;

use crate::ensemble::as_one;
use crate::tensors::same_logits;

/// `1/2 sum_k (z_k - v_k)^2` of the student's logits `z` and the teacher's `v`, both `[batch, classes]`, the mean over the batch. Code that takes
/// the mean over classes too has it `2 / classes` times.
///
/// # Errors
/// Where shapes differ.
pub fn logits(student: Tensor<2>, teacher: Tensor<2>) -> Result<Tensor<1>> {
    same_logits("logits", &student, &teacher)?;
    let [batch, _] = student.dims();
    Ok((student - teacher).square().sum().div_scalar(2.0 * batch as f64))
}

/// Each class's mean and deviation of a teacher's logits over the set that it teaches on.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardization {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Standardization {
    /// That of logits `[samples, classes]`; the deviation is the population's.
    ///
    /// # Errors
    /// Where a class has no deviation, or one that is not finite.
    pub fn of(logits: Tensor<2>) -> Result<Self> {
        let [samples, classes] = logits.dims();
        let values = floats(logits);
        let over = |term: &dyn Fn(f64) -> f64, class: usize| {
            values.iter().skip(class).step_by(classes).map(|value| term(f64::from(*value))).sum::<f64>() / samples as f64
        };
        let statistics = (0..classes).map(|class| {
            let mean = over(&|value| value, class);
            let deviation = over(&|value| (value - mean).powi(2), class).sqrt();
            match deviation.is_normal() {
                true => Ok((mean as f32, deviation as f32)),
                false => {
                    let detail =
                        format!("logits: the teacher's logit of class {class} deviates by {deviation} over {samples} samples");
                    Err(Error::Invalid(format!("{detail}; such targets cannot be standardized")))
                }
            }
        });
        let (mean, deviation) = statistics.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Self { mean, deviation })
    }

    /// The targets `(v_k - mean_k) / deviation_k` of logits `v` `[batch, classes]`.
    ///
    /// # Errors
    /// Where these are of another number of classes.
    pub fn targets(&self, teacher: Tensor<2>) -> Result<Tensor<2>> {
        let (dims, classes) = (teacher.dims(), self.mean.len());
        if dims[1] != classes {
            return Err(Error::Invalid(format!("logits: {dims:?} cannot be standardized by means of {classes} classes")));
        }
        let row =
            |values: &[f32], device: &Device| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, classes]), device);
        let device = teacher.device();
        Ok((teacher - row(&self.mean, &device)) / row(&self.deviation, &device))
    }
}

/// The teacher's logits as targets; of several teachers the mean, or what has the mean of their probabilities.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Logits {
    /// Share of the loss that is the teacher's.
    #[serde(default = "all")]
    lambda: Ratio,
}

fn all() -> Ratio {
    Ratio::try_from(1.0).expect("a share")
}

impl Taught for Logits {
    const NAME: &'static str = "logits";
    const PAPER: &'static str = "Ba, Caruana, NIPS 2014, arXiv:1312.6184";
    const EXAMPLE: &'static str = "lambda = 1.0\ntrain = { epochs = 10 }";
}

impl Distiller for Logits {
    fn lesson(&self, _: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        Ok(Box::new(*self))
    }

    fn weight(&self) -> f64 {
        self.lambda.get()
    }

    fn task(&self) -> f64 {
        1.0 - self.lambda.get()
    }
}

impl Lesson for Logits {
    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        logits(seen.logits.clone(), as_one(shown, 1.0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{golden, input, is_none_of_none, near, tensor};
    use crate::soft_targets::divergence;

    const GOLDEN: &str = include_str!("golden/logits.txt");

    #[test]
    fn value_and_gradient_are_golden_and_centred_the_limit_of_soft_targets() {
        let (student, teacher) = (input("student_logits", [4, 5]).require_grad(), input("teacher_logits", [4, 5]));
        let term = logits(student.clone(), teacher.clone()).unwrap();
        near(&floats(term.clone()), &golden(GOLDEN, "value"), 2e-5);
        near(&floats(student.grad(&term.backward()).unwrap()), &golden(GOLDEN, "gradient"), 2e-5);
        is_none_of_none(&student, |student| logits(student, teacher.clone()));

        let centred = |logits: Tensor<2>| logits.clone() - logits.mean_dim(1);
        let (z, v) = (centred(student.clone()).detach().require_grad(), centred(teacher.clone()));
        let gradient = z.grad(&logits(z.clone(), v).unwrap().backward()).unwrap().div_scalar(5.0);
        near(&floats(gradient), &golden(GOLDEN, "limit"), 2e-5);
        let soft = divergence(teacher, student.clone(), 1e3).mul_scalar(1e6);
        near(&floats(student.grad(&soft.backward()).unwrap()), &golden(GOLDEN, "limit"), 1e-2);
    }

    #[test]
    fn targets_are_standardized_by_class() {
        let teacher = input("teacher_logits", [4, 5]);
        let standardization = Standardization::of(teacher.clone()).unwrap();
        near(&standardization.mean, &golden(GOLDEN, "mean"), 2e-5);
        near(&standardization.deviation, &golden(GOLDEN, "std"), 2e-5);
        near(&floats(standardization.targets(teacher).unwrap()), &golden(GOLDEN, "targets"), 2e-5);

        let refusal = |values: Vec<f32>| Standardization::of(tensor(values, [2, 2])).unwrap_err().to_string();
        let constant = refusal(vec![1.0, 3.0, 2.0, 3.0]);
        let told = "logits: the teacher's logit of class 1 deviates by 0 over 2 samples; such targets cannot be standardized";
        assert_eq!(constant, told);
        assert!(refusal(vec![1.0, 3.0, f32::NAN, 4.0]).contains("class 0 deviates by NaN"));
        let error = standardization.targets(input("teacher_logits", [5, 4])).unwrap_err().to_string();
        assert_eq!(error, "logits: [5, 4] cannot be standardized by means of 5 classes");
    }

    #[test]
    fn logits_of_other_classes_are_refused() {
        let error = logits(input("student_logits", [4, 5]), input("teacher_logits", [4, 4])).unwrap_err().to_string();
        assert_eq!(error, "logits: the student's [4, 5] and the teacher's [4, 4] need the same samples and classes");
    }
}
