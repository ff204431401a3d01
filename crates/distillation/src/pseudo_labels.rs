//! Labels that an ensemble gives to samples without any.
//!
//! The label of a sample is the class of the highest mean probability `sum_m softmax(v_m) / M` of the teachers' logits `v_1 .. v_M`; a student
//! learns from it as from any other.
//!
//! Bucilă, Caruana, Niculescu-Mizil. "Model Compression". KDD 2006.
//! Differs from the paper: the teachers give probabilities of any number of classes where the paper's give one score, and samples are those at
//! hand where the paper draws them around these (MUNGE).

use briquette_core::error::{Error, Result};
use briquette_core::values::floats;
use burn::tensor::Tensor;

use crate::ensemble::arithmetic;

/// The class that the members, whose logits are `[batch, classes]` each, give to every sample, the lowest of equals.
///
/// # Errors
/// Where there are no members, or of different shapes, or where a probability is no number.
pub fn labels(members: &[Tensor<2>]) -> Result<Vec<u16>> {
    let mean = arithmetic(members, 1.0)?;
    let [_, classes] = mean.dims();
    let label = |(sample, scores): (usize, &[f32])| {
        if scores.iter().any(|score| score.is_nan()) {
            return Err(Error::Invalid(format!("pseudo-labels: the teachers' logits of sample {sample} are not finite")));
        }
        let best = (1..classes).fold(0, |best, class| if scores[class] > scores[best] { class } else { best });
        u16::try_from(best)
            .map_err(|_| Error::Invalid(format!("pseudo-labels: labels have 16 bits, too few for {classes} classes")))
    };
    floats(mean).chunks(classes.max(1)).enumerate().map(label).collect()
}

#[cfg(test)]
mod tests {
    use briquette_core::training::cross_entropy;
    use burn::tensor::activation;

    use super::*;
    use crate::golden::{golden, input, near, tensor};
    use crate::soft_targets::divergence;

    const GOLDEN: &str = include_str!("golden/pseudo_labels.txt");

    #[test]
    fn labels_and_probabilities_of_two_teachers_are_learned_as_golden_ones() {
        let members = ["teacher_logits", "teacher2_logits"].map(|name| input(name, [4, 5]));
        let labels = labels(&members).unwrap();
        assert_eq!(labels, [0, 2, 4, 1]);
        let mean = arithmetic(&members, 1.0).unwrap();
        near(&floats(activation::softmax(mean.clone(), 1)), &golden(GOLDEN, "ensemble probabilities"), 2e-5);

        let student = input("student_logits", [4, 5]).require_grad();
        let hard = cross_entropy(student.clone(), &labels, 0.0);
        near(&floats(hard.clone()), &golden(GOLDEN, "hard value"), 2e-5);
        near(&floats(student.grad(&hard.backward()).unwrap()), &golden(GOLDEN, "hard grad"), 2e-5);
        // The cross-entropy is the divergence and the targets' own entropy, which has no gradient.
        let soft = divergence(mean.clone(), student.clone(), 1.0);
        let entropy = -(activation::softmax(mean.clone(), 1) * activation::log_softmax(mean, 1)).sum().div_scalar(4.0);
        near(&floats(soft.clone() + entropy), &golden(GOLDEN, "soft value"), 2e-5);
        near(&floats(student.grad(&soft.backward()).unwrap()), &golden(GOLDEN, "soft grad"), 2e-5);
    }

    #[test]
    fn equals_are_the_lowest_class_and_what_is_no_number_has_no_label() {
        assert_eq!(labels(&[tensor(vec![1.0, 1.0, 0.0, 0.0, 2.0, 2.0], [2, 3])]).unwrap(), [0, 1]);
        let error = labels(&[tensor(vec![1.0, 0.0, 0.0, f32::NAN], [2, 2])]).unwrap_err().to_string();
        assert_eq!(error, "pseudo-labels: the teachers' logits of sample 1 are not finite");
    }
}
