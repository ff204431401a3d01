//! Several teachers as one.
//!
//! Both means of the softened probabilities of logits `v_1 .. v_M` are logits again, which any loss takes as those of one teacher.
//!
//! Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network". NIPS 2014 Deep Learning Workshop. arXiv:1503.02531.

use briquette_core::error::{Error, Result};
use briquette_core::teaching::{Mean, Shown};
use burn::tensor::{Tensor, activation};

use crate::tensors::log_sum_exp;

/// The geometric mean of the members' probabilities, whatever the temperature: the mean `sum_m v_m / M` of their logits `[batch, classes]`.
///
/// # Errors
/// Where there are no members, or of different shapes.
pub fn geometric(members: &[Tensor<2>]) -> Result<Tensor<2>> {
    Ok(stacked(members)?.mean_dim(0).squeeze_dim(0))
}

/// The arithmetic mean of the members' probabilities at a temperature `T`: logits `T log(sum_m softmax(v_m / T) / M)` `[batch, classes]`, whose
/// soft-max over `T` is that mean.
///
/// # Errors
/// Where there are no members, or of different shapes.
pub fn arithmetic(members: &[Tensor<2>], temperature: f64) -> Result<Tensor<2>> {
    let logs = activation::log_softmax(stacked(members)?.div_scalar(temperature), 2);
    let mean = log_sum_exp(logs, 0).sub_scalar((members.len() as f64).ln());
    Ok(mean.squeeze_dim(0).mul_scalar(temperature))
}

/// The logits of one teacher for all that are shown, for losses that look at them at this temperature.
pub(crate) fn as_one(shown: &Shown<'_>, temperature: f64) -> Result<Tensor<2>> {
    match (shown.logits, shown.mean) {
        ([one], _) => Ok(one.clone()),
        (several, Mean::Geometric) => geometric(several),
        (several, Mean::Arithmetic) => arithmetic(several, temperature),
    }
}

fn stacked(members: &[Tensor<2>]) -> Result<Tensor<3>> {
    let Some(first) = members.first() else { return Err(Error::Invalid("an ensemble without members teaches nothing".into())) };
    match members.iter().find(|member| member.dims() != first.dims()) {
        None => Ok(Tensor::stack(members.to_vec(), 0)),
        Some(other) => {
            let detail = format!(
                "logits of an ensemble are {:?} and {:?}, not of the same samples and classes",
                first.dims(),
                other.dims()
            );
            Err(Error::Invalid(detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::values::floats;

    use super::*;
    use crate::golden::{golden, input, meets, near};
    use crate::soft_targets::divergence;

    const GOLDEN: &str = include_str!("golden/ensemble.txt");

    #[test]
    fn both_means_teach_as_their_probabilities_do() {
        let members = ["teacher_logits", "teacher2_logits"].map(|name| input(name, [4, 5]));
        for (name, mean) in [("arithmetic", arithmetic(&members, 3.0)), ("geometric", geometric(&members))] {
            let mean = mean.unwrap();
            near(&floats(activation::softmax(mean.clone().div_scalar(3.0), 1)), &golden(GOLDEN, name), 2e-5);
            let loss = |student| Ok(divergence(mean.clone(), student, 3.0).mul_scalar(9.0));
            meets((GOLDEN, name, 2e-5), input("student_logits", [4, 5]), loss);
        }
        let far = members.map(|member| member.mul_scalar(1e3));
        assert!(floats(arithmetic(&far, 1.0).unwrap()).iter().all(|logit| logit.is_finite()));
    }

    #[test]
    fn members_of_other_shapes_or_none_are_refused() {
        let refusal = |members: &[Tensor<2>]| geometric(members).unwrap_err().to_string();
        assert_eq!(refusal(&[]), "an ensemble without members teaches nothing");
        let others = [input("teacher_logits", [4, 5]), input("teacher_logits", [5, 4])];
        assert_eq!(refusal(&others), "logits of an ensemble are [4, 5] and [5, 4], not of the same samples and classes");
    }
}
