//! Which samples of a batch are alike to the teacher, as a target.
//!
//! Of features `F` `[batch, features]` the similarities `F F^T` `[batch, batch]`, each row over its norm, are `G`; the loss is `||G_s - G_t||_F^2 /
//! batch^2`, with a weight of 3000 on CIFAR. Features of the two need not be as many. A sample without any feature is like no other, and its row has no gradient.
//!
//! ```
//! use briquette_distillation::similarity::similarity;
//! use burn::tensor::{Device, Tensor};
//!
//! let features = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &Device::flex());
//! // Other features of the same samples, of which none is like another either.
//! let others = Tensor::<2>::from_floats([[0.0, 0.0, 5.0], [2.0, 0.0, 0.0]], &Device::flex());
//! let loss: f32 = similarity(features, others).unwrap().into_scalar();
//! assert!(loss.abs() < 1e-6);
//! ```
//!
//! Tung, Mori. "Similarity-Preserving Knowledge Distillation". ICCV 2019. arXiv:1907.09682.

use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::teaching::{Distiller, Lesson, Pair, Taught};
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::taps::{OverMaps, Points, Stages, Taps, weighable};
use crate::tensors::{fit, rows, units};

/// `||G_s - G_t||_F^2 / batch^2` of features whose first dimension is the batch; maps count by all their values.
///
/// # Errors
/// Where batches differ.
pub fn similarity<const S: usize, const T: usize>(student: Tensor<S>, teacher: Tensor<T>) -> Result<Tensor<1>> {
    fit(student.dims()[0] == teacher.dims()[0], "similarity", &student.dims(), &teacher.dims(), "need the same samples")?;
    Ok((similarities(rows(student)) - similarities(rows(teacher))).square().mean())
}

fn similarities(features: Tensor<2>) -> Tensor<2> {
    units(features.clone().matmul(features.transpose()), 1)
}

/// Similarities within a batch at the end of the last stage, or at `taps`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Similarity {
    /// Factor of the sum over all taps.
    #[serde(default = "three_thousand")]
    weight: f64,
    /// Where it looks; the last maps without it.
    taps: Option<Points>,
}

fn three_thousand() -> f64 {
    3000.0
}

impl Taught for Similarity {
    const NAME: &'static str = "similarity";
    const PAPER: &'static str = "Tung, Mori, ICCV 2019, arXiv:1907.09682";
    const EXAMPLE: &'static str = "weight = 3000.0\ntrain = { epochs = 10 }";
}

impl Distiller for Similarity {
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        let taps = Taps::maps(self.taps.as_ref(), Stages::Last, pair.teacher()?, pair.student)?;
        Ok(Box::new(OverMaps { taps, loss: similarity::<4, 4> }))
    }

    fn fits(&self, teacher: &Net, student: &Net) -> Result<()> {
        Taps::maps(self.taps.as_ref(), Stages::Last, teacher, student).map(drop)
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn check(&self) -> Result<()> {
        weighable(Self::NAME, &[("weight", self.weight)])
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::values::floats;

    use super::*;
    use crate::golden::{bears_zeros, input, meets, tensor};

    const GOLDEN: &str = include_str!("golden/similarity.txt");

    #[test]
    fn values_and_gradients_are_golden() {
        let teacher = input("teacher_embedding", [4, 8]);
        meets((GOLDEN, "embedding", 2e-5), input("student_embedding", [4, 6]), |student| similarity(student, teacher.clone()));
        let teacher = input("teacher_map_small", [4, 6, 2, 2]);
        meets((GOLDEN, "map", 2e-5), input("student_map", [4, 3, 4, 4]), |student| similarity(student, teacher.clone()));
    }

    #[test]
    fn samples_without_features_have_finite_gradients_and_other_batches_are_refused() {
        let teacher = input("teacher_embedding", [4, 8]);
        bears_zeros([4, 6], |student| similarity(student, teacher.clone()));
        let mut one = floats(input("student_embedding", [4, 6]));
        one[..6].fill(0.0);
        let student = tensor(one, [4, 6]).require_grad();
        let term = similarity(student.clone(), teacher.clone()).unwrap();
        let gradient = floats(student.grad(&term.backward()).unwrap());
        assert!(gradient.iter().all(|slope| slope.abs() < 1.0), "{gradient:?}");
        let error = similarity(input("student_embedding", [3, 8]), teacher).unwrap_err().to_string();
        assert_eq!(error, "similarity: the student's [3, 8] and the teacher's [4, 8] need the same samples");
    }
}
