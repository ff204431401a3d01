//! Soft targets in two parts, with a weight each.
//!
//! Of softened probabilities `p` of the teacher and `q` of the student and the label `y`, the relative entropy of `p` from `q` is
//! `TCKD + (1 - p_y) NCKD`: `TCKD` is that of `(p_y, 1 - p_y)` from `(q_y, 1 - q_y)`, `NCKD` that of the probabilities of the other classes among
//! themselves. The loss `alpha TCKD + beta NCKD` frees the second from the teacher's confidence.
//!
//! ```
//! use briquette_distillation::decoupled::parts;
//! use burn::tensor::{Device, Tensor};
//!
//! let of = |values: [f32; 3]| Tensor::<2>::from_floats([values], &Device::flex());
//! // The same odds among the classes that are not the target's: only the target's own part is left.
//! let [target, others] = parts(of([0.0, 1.0, 2.0]), of([5.0, 1.0, 2.0]), &[0], 1.0).unwrap().map(|part| part.into_scalar::<f32>());
//! assert!(target > 0.1 && others.abs() < 1e-5);
//! ```
//!
//! Zhao, Cui, Song, Qiu, Liang. "Decoupled Knowledge Distillation". CVPR 2022. arXiv:2203.08679.
//! Differs from the authors' code in arithmetic: probabilities that underflow are never taken a logarithm of.

use briquette_core::error::{Error, Result};
use briquette_core::objective::Seen;
use briquette_core::teaching::{Distiller, Lesson, Pair, Shown, Taught};
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::ensemble::as_one;
use crate::soft_targets::divergence;
use crate::taps::weighable;
use crate::tensors::{indices, log_sum_exp, same_logits};

/// `alpha T^2 TCKD + beta T^2 NCKD` of logits `[batch, classes]` at the temperature `T`, the mean over the batch.
///
/// # Errors
/// Those of [`parts`].
pub fn decoupled(
    student: Tensor<2>,
    teacher: Tensor<2>,
    labels: &[u16],
    temperature: f64,
    [alpha, beta]: [f64; 2],
) -> Result<Tensor<1>> {
    let [tckd, nckd] = parts(student, teacher, labels, temperature)?;
    Ok((tckd.mul_scalar(alpha) + nckd.mul_scalar(beta)).mul_scalar(temperature * temperature))
}

/// `TCKD` and `NCKD` of logits `[batch, classes]` at a temperature, the means over the batch, without the factor `T^2`.
///
/// # Errors
/// Where shapes differ, there is a single class, or labels are not one for each sample or of no class.
pub fn parts(student: Tensor<2>, teacher: Tensor<2>, labels: &[u16], temperature: f64) -> Result<[Tensor<1>; 2]> {
    same_logits("decoupled", &student, &teacher)?;
    let [batch, classes] = student.dims();
    if classes < 2 || labels.len() != batch || labels.iter().any(|label| usize::from(*label) >= classes) {
        let most = labels.iter().max().map_or_else(|| "none".into(), |label| format!("up to {label}"));
        let detail = format!("logits {:?} and {} labels, {most}, do not fit", [batch, classes], labels.len());
        return Err(Error::Invalid(format!("decoupled: {detail}; each sample has a label of at least two classes")));
    }
    let device = student.device();
    let labels = labels.iter().map(|label| usize::from(*label));
    let others = labels.clone().flat_map(|label| (0..classes).filter(move |class| *class != label));
    let others = indices(others, [batch, classes - 1], &device);
    let label = indices(labels, [batch, 1], &device);
    let split = |logits: Tensor<2>| {
        let logits = logits.div_scalar(temperature);
        let others = logits.clone().gather(1, others.clone());
        let two = Tensor::cat(vec![logits.gather(1, label.clone()), log_sum_exp(others.clone(), 1)], 1);
        (two, others)
    };
    let ((two, others), (teachers_two, teachers_others)) = (split(student), split(teacher));
    Ok([divergence(teachers_two, two, 1.0), divergence(teachers_others, others, 1.0)])
}

/// The target class and the other classes apart, beside the task's whole loss.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Decoupled {
    /// Factor of both.
    #[serde(default = "one")]
    weight: f64,
    /// Factor of the target class's part.
    #[serde(default = "one")]
    alpha: f64,
    /// Factor of the other classes' part.
    #[serde(default = "two")]
    beta: f64,
    /// `T`.
    #[serde(default = "four")]
    temperature: f64,
    /// Epochs over which the factor of both rises from zero.
    #[serde(default)]
    rise: f64,
}

fn one() -> f64 {
    1.0
}

fn two() -> f64 {
    2.0
}

fn four() -> f64 {
    4.0
}

impl Taught for Decoupled {
    const NAME: &'static str = "decoupled";
    const PAPER: &'static str = "Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv:2203.08679";
    const EXAMPLE: &'static str = "alpha = 1.0\nbeta = 2.0\ntemperature = 4.0\ntrain = { epochs = 10 }";
}

impl Distiller for Decoupled {
    fn lesson(&self, _: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        Ok(Box::new(*self))
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::Invalid(format!("decoupled: a temperature is above 0, not {}", self.temperature)));
        }
        let factors = [("weight", self.weight), ("alpha", self.alpha), ("beta", self.beta), ("rise", self.rise)];
        weighable(Self::NAME, &factors)
    }
}

impl Lesson for Decoupled {
    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        let Self { alpha, beta, temperature, rise, .. } = *self;
        let risen = if rise == 0.0 { 1.0 } else { ((seen.epoch.floor() + 1.0) / rise).min(1.0) };
        let teacher = as_one(shown, temperature)?;
        Ok(decoupled(seen.logits.clone(), teacher, seen.labels, temperature, [alpha, beta])?.mul_scalar(risen))
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::values::floats;

    use super::*;
    use crate::golden::{golden, input, meets, near, tensor};

    const GOLDEN: &str = include_str!("golden/decoupled.txt");
    const LABELS: [u16; 4] = [2, 0, 4, 1];

    #[test]
    fn values_and_gradients_are_golden() {
        let teacher = input("teacher_logits", [4, 5]);
        for (temperature, beta) in [(4.0, 8.0), (4.0, 2.0), (1.0, 0.5)] {
            let loss = |student| decoupled(student, teacher.clone(), &LABELS, temperature, [1.0, beta]);
            meets((GOLDEN, &format!("{temperature} {beta}"), 2e-5), input("student_logits", [4, 5]), loss);
        }
        for temperature in [4.0, 1.0] {
            let found = parts(input("student_logits", [4, 5]), teacher.clone(), &LABELS, temperature).unwrap();
            for (part, name) in found.into_iter().zip(["tckd", "nckd"]) {
                near(
                    &floats(part.mul_scalar(temperature * temperature)),
                    &golden(GOLDEN, &format!("{temperature} {name}")),
                    2e-5,
                );
            }
        }
    }

    #[test]
    fn the_parts_of_a_sample_make_up_its_divergence() {
        let [student, teacher] = ["student_logits", "teacher_logits"].map(|name| input(name, [4, 5]));
        for temperature in [1.0, 4.0] {
            for (sample, p) in golden(GOLDEN, &format!("{temperature} target")).into_iter().enumerate() {
                let row = |logits: &Tensor<2>| logits.clone().narrow(0, sample, 1);
                let [tckd, nckd] = parts(row(&student), row(&teacher), &LABELS[sample..=sample], temperature).unwrap();
                let whole = floats(divergence(row(&teacher), row(&student), temperature));
                near(&floats(tckd + nckd.mul_scalar(1.0 - p)), &whole, 2e-5);
            }
        }
    }

    #[test]
    fn logits_far_apart_stay_finite() {
        let student = tensor(vec![200.0, -200.0, 0.0, -200.0, 200.0, -200.0], [2, 3]).require_grad();
        let teacher = tensor(vec![-200.0, 200.0, -200.0, 200.0, -200.0, -200.0], [2, 3]);
        let term = decoupled(student.clone(), teacher, &[0, 1], 1.0, [1.0, 1.0]).unwrap();
        let gradient = floats(student.grad(&term.backward()).unwrap());
        // TCKD is 200 and 400 - log 2, NCKD 200 and log 2.
        near(&floats(term), &[400.0], 1e-5);
        assert!(gradient.iter().all(|slope| slope.is_finite()) && gradient.iter().any(|slope| *slope != 0.0), "{gradient:?}");
    }

    #[test]
    fn two_classes_have_nothing_among_others() {
        let logits = |values: [f32; 2]| tensor(values.to_vec(), [1, 2]);
        let [tckd, nckd] = parts(logits([1.0, -0.5]), logits([0.0, 2.0]), &[1], 2.0).unwrap();
        near(&floats(tckd), &floats(divergence(logits([0.0, 2.0]), logits([1.0, -0.5]), 2.0)), 2e-5);
        assert_eq!(floats(nckd), [0.0]);
    }

    #[test]
    fn labels_of_no_class_and_other_shapes_are_refused() {
        let logits = || input("student_logits", [4, 5]);
        let error = parts(logits(), logits(), &[0, 1, 5, 2], 1.0).unwrap_err().to_string();
        let told = "decoupled: logits [4, 5] and 4 labels, up to 5, do not fit; each sample has a label of at least two classes";
        assert_eq!(error, told);
        assert!(parts(logits(), logits(), &[0, 1], 1.0).is_err());
        let error = parts(logits(), input("teacher_logits", [2, 5]), &LABELS, 1.0).unwrap_err().to_string();
        assert_eq!(error, "decoupled: the student's [4, 5] and the teacher's [2, 5] need the same samples and classes");
    }
}
