//! Where the teacher looks, as a target.
//!
//! The attention of maps `A` `[batch, channels, height, width]` is `Q = mean_c |A_c|^p`, a vector over positions, divided by its norm. The loss of a
//! pair of layers is the mean over batch and positions of `(Q_s - Q_t)^2`; that of a network sums over pairs, with a weight of 1000 on CIFAR. The
//! larger maps are averaged to the size of the smaller before the power. A sample without any activation looks nowhere: its `Q` is zero and has
//! no gradient.
//!
//! ```
//! use briquette_distillation::attention_transfer::attention_transfer;
//! use burn::tensor::{Device, Tensor};
//!
//! let maps = |value: f32| Tensor::<4>::full([2, 3, 4, 4], value, &Device::flex());
//! // A map that is the same everywhere is the same attention, however large its values and many its channels.
//! let loss: f32 = attention_transfer(maps(0.1), maps(7.0), 2).unwrap().into_scalar();
//! assert!(loss.abs() < 1e-9);
//! ```
//!
//! Zagoruyko, Komodakis. "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention Transfer".
//! ICLR 2017. arXiv:1612.03928.
//! Differs from the paper as the authors' code does: squared differences take the place of their norm, which is [`by_norm`], so that the
//! weights of the two differ by orders of magnitude; and sizes need not agree.

use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::teaching::{Distiller, Lesson, Pair, Taught};
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::taps::{OverMaps, Points, Stages, Taps, weighable};
use crate::tensors::{one_size, rows, units};

/// `Q` of maps `[batch, channels, height, width]`: `[batch, height width]`, `mean_c |A_c|^p` over its norm.
pub fn attention(maps: Tensor<4>, p: i32) -> Tensor<2> {
    units(rows(maps.abs().powi_scalar(p).mean_dim(1)), 1)
}

/// The mean over batch and positions of `(Q_s - Q_t)^2`, the form of the authors' code, for maps `[batch, channels, height, width]` of any
/// channels and sizes; `p` is 2 as a rule.
///
/// # Errors
/// Where batches differ, or `p` is below 1.
pub fn attention_transfer(student: Tensor<4>, teacher: Tensor<4>, p: i32) -> Result<Tensor<1>> {
    Ok(difference(student, teacher, p)?.square().mean())
}

/// `||Q_s - Q_t||`, the mean over the batch: the paper's form, whose weight is smaller by the positions of the whole batch. Attentions that agree
/// have no gradient.
///
/// # Errors
/// Where batches differ, or `p` is below 1.
pub fn by_norm(student: Tensor<4>, teacher: Tensor<4>, p: i32) -> Result<Tensor<1>> {
    Ok(difference(student, teacher, p)?.square().sum_dim(1).clamp_min(1e-24).sqrt().mean())
}

fn difference(student: Tensor<4>, teacher: Tensor<4>, p: i32) -> Result<Tensor<2>> {
    if p < 1 {
        return Err(Error::Invalid(format!("attention-transfer: the power p is at least 1, not {p}")));
    }
    let [student, teacher] = one_size("attention-transfer", student, teacher)?.map(|maps| attention(maps, p));
    Ok(student - teacher)
}

/// Attention maps at the ends of the stages, or at `taps`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AttentionTransfer {
    /// `beta`, the factor of the sum over all taps.
    #[serde(default = "thousand")]
    weight: f64,
    /// Power of the activations, at least 1.
    #[serde(default = "two")]
    p: i32,
    /// Where it looks; the last maps of each size without it.
    taps: Option<Points>,
}

fn thousand() -> f64 {
    1000.0
}

fn two() -> i32 {
    2
}

impl Taught for AttentionTransfer {
    const NAME: &'static str = "attention-transfer";
    const PAPER: &'static str = "Zagoruyko, Komodakis, ICLR 2017, arXiv:1612.03928";
    const EXAMPLE: &'static str = "weight = 1000.0\ntrain = { epochs = 10 }";
}

impl Distiller for AttentionTransfer {
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        let (taps, p) = (Taps::maps(self.taps.as_ref(), Stages::All, pair.teacher()?, pair.student)?, self.p);
        Ok(Box::new(OverMaps { taps, loss: move |student, teacher| attention_transfer(student, teacher, p) }))
    }

    fn fits(&self, teacher: &Net, student: &Net) -> Result<()> {
        Taps::maps(self.taps.as_ref(), Stages::All, teacher, student).map(drop)
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn check(&self) -> Result<()> {
        weighable(Self::NAME, &[("weight", self.weight), ("p", f64::from(self.p) - 1.0)])
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::values::floats;
    use burn::tensor::DType;

    use super::*;
    use crate::golden::{bears_zeros, golden, input, meets, near, slopes_agree};

    const GOLDEN: &str = include_str!("golden/attention_transfer.txt");

    #[test]
    fn values_and_gradients_are_golden() {
        let (student, teacher) = (input("student_map", [4, 3, 4, 4]), input("teacher_map", [4, 6, 4, 4]));
        let small = input("teacher_map_small", [4, 6, 2, 2]);
        near(&floats(attention(student.clone(), 2)), &golden(GOLDEN, "student"), 2e-5);
        near(&floats(attention(teacher.clone(), 2)), &golden(GOLDEN, "teacher"), 2e-5);
        meets((GOLDEN, "same", 2e-5), student.clone(), |student| attention_transfer(student, teacher.clone(), 2));
        meets((GOLDEN, "smaller", 2e-5), student.clone(), |student| attention_transfer(student, small.clone(), 2));
        meets((GOLDEN, "fourth", 2e-5), student.clone(), |student| attention_transfer(student, teacher.clone(), 4));
        meets((GOLDEN, "paper", 2e-5), student, |student| by_norm(student, teacher.clone(), 2));
    }

    #[test]
    fn odd_powers_are_of_magnitudes() {
        let teacher = input("teacher_map", [4, 6, 4, 4]).cast(DType::F64);
        for p in [1, 3] {
            let loss = |student| attention_transfer(student, teacher.clone(), p).unwrap();
            slopes_agree(&input("student_map", [4, 3, 4, 4]), loss);
            let turned = attention(teacher.clone().neg(), p) - attention(teacher.clone(), p);
            assert_eq!(floats(turned.abs().max()), [0.0]);
        }
    }

    #[test]
    fn maps_of_zeros_and_of_the_teacher_have_finite_gradients() {
        let teacher = input("teacher_map", [4, 6, 4, 4]);
        bears_zeros([4, 3, 4, 4], |student| attention_transfer(student, teacher.clone(), 2));
        bears_zeros([4, 3, 4, 4], |student| by_norm(student, teacher.clone(), 2));
        let student = teacher.clone().require_grad();
        let term = by_norm(student.clone(), teacher, 2).unwrap();
        assert!(floats(student.grad(&term.backward()).unwrap()).iter().all(|slope| *slope == 0.0));
    }

    #[test]
    fn other_batches_and_powers_below_one_are_refused() {
        let (student, teacher) = (input("student_map", [4, 3, 4, 4]), input("teacher_map", [3, 6, 4, 4]));
        let error = attention_transfer(student.clone(), teacher, 2).unwrap_err().to_string();
        assert_eq!(error, "attention-transfer: the student's [4, 3, 4, 4] and the teacher's [3, 6, 4, 4] need the same samples");
        let error = by_norm(student.clone(), student, 0).unwrap_err().to_string();
        assert_eq!(error, "attention-transfer: the power p is at least 1, not 0");
    }
}
