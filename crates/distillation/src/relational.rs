//! Distances and angles between the samples of a batch, as targets.
//!
//! Of embeddings `e` `[batch, features]`, one of the student and one of the teacher, [`distance`] compares `||e_i - e_j||` over its mean over all
//! pairs, each network's own, and [`angle`] the cosines of the angles at `e_j` between `e_i` and `e_k`; differences `d` count by Huber's loss, `d^2 / 2` up to
//! 1 and `|d| - 1/2` beyond. A weight of 25 and of 50 is common for classifiers, of 1 and of 2 for metric learning.
//!
//! ```
//! use briquette_distillation::relational::distance;
//! use burn::tensor::{Device, Tensor};
//!
//! let points = Tensor::<2>::from_floats([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], &Device::flex());
//! // Distances count in units of their mean.
//! let loss: f32 = distance(points.clone(), points.mul_scalar(10.0)).unwrap().into_scalar();
//! assert!(loss.abs() < 1e-6);
//! ```
//!
//! Park, Kim, Lu, Cho. "Relational Knowledge Distillation". CVPR 2019. arXiv:1904.05068.
//! As in the authors' code, means are over all of `batch^2` or `batch^3` terms, those of a sample with itself, which are zero, among them.

use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::Seen;
use briquette_core::teaching::{Distiller, Lesson, Pair, Taught};
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::taps::{OverFeatures, Points, Taps, weighable};
use crate::tensors::{fit, units};

/// The most triples, `batch^3`, whose angles are compared, and the most differences, `batch^2 features`, that they are made of: tensors of 64 MiB, of which
/// a training holds several. It is a batch of 256 of as many features.
pub const TRIPLES: usize = 1 << 24;

/// The mean over all `batch^2` pairs of Huber's loss of the distances over their mean. Embeddings `[batch, features]` of the two need not have as
/// many features. Distances are at least 1e-6, where they have no gradient any more.
///
/// # Errors
/// Where batches differ or have fewer than 2 samples.
pub fn distance(student: Tensor<2>, teacher: Tensor<2>) -> Result<Tensor<1>> {
    paired(&student, &teacher, 2, "distances")?;
    Ok(huber(distances(student) - distances(teacher)).mean())
}

/// The mean over all `batch^3` triples of Huber's loss of the cosines. Samples that coincide have none, which counts as 0.
///
/// # Errors
/// Where batches differ, have fewer than 3 samples, or more than [`TRIPLES`] triples.
pub fn angle(student: Tensor<2>, teacher: Tensor<2>) -> Result<Tensor<1>> {
    paired(&student, &teacher, 3, "angles")?;
    let ([batch, features], [_, others]) = (student.dims(), teacher.dims());
    if batch.saturating_pow(2).saturating_mul(batch.max(features).max(others)) > TRIPLES {
        let detail =
            format!("the angles of {batch} samples of {} features take more than {TRIPLES} values", features.max(others));
        return Err(Error::Invalid(format!("relational: {detail}; lower `batch`, set `angle = 0`, or tap fewer features")));
    }
    Ok(huber(cosines(student) - cosines(teacher)).mean())
}

fn paired(student: &Tensor<2>, teacher: &Tensor<2>, least: usize, what: &str) -> Result<()> {
    let (student, teacher) = (student.dims(), teacher.dims());
    let rule = format!("need the same samples, at least {least}, for {what}");
    fit(student[0] == teacher[0] && student[0] >= least, "relational", &student, &teacher, &rule)
}

/// `[batch, batch]`.
fn distances(embeddings: Tensor<2>) -> Tensor<2> {
    let [batch, _] = embeddings.dims();
    let squares = embeddings.clone().square().sum_dim(1);
    let products = embeddings.clone().matmul(embeddings.transpose());
    let squared = squares.clone() + squares.transpose() - products.mul_scalar(2.0);
    let itself = Tensor::diag_mask([batch, batch], 0, &squared.device()).bool_not();
    let distances = squared.clamp_min(1e-12).sqrt().mask_fill(itself, 0.0);
    let mean = distances.clone().sum().div_scalar((batch * (batch - 1)) as f64);
    distances / mean.unsqueeze()
}

/// `[batch, batch, batch]`, the corner first.
fn cosines(embeddings: Tensor<2>) -> Tensor<3> {
    let sides = embeddings.clone().unsqueeze_dim::<3>(0) - embeddings.unsqueeze_dim::<3>(1);
    let sides = units(sides, 2);
    sides.clone().matmul(sides.swap_dims(1, 2))
}

fn huber<const D: usize>(difference: Tensor<D>) -> Tensor<D> {
    let size = difference.abs();
    let quadratic = size.clone().clamp_max(1.0);
    quadratic.clone() * (size - quadratic.mul_scalar(0.5))
}

/// Distances and angles between the features of a batch.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Relational {
    /// Factor of both.
    #[serde(default = "one")]
    weight: f64,
    /// Factor of the distances.
    #[serde(default = "of_distances")]
    distance: f64,
    /// Factor of the angles; with 0 they are not computed, and batches may be of any size.
    #[serde(default = "of_angles")]
    angle: f64,
    /// The node of both networks whose output counts; what the last fully connected layer reads without it.
    taps: Option<Points>,
}

fn one() -> f64 {
    1.0
}

fn of_distances() -> f64 {
    25.0
}

fn of_angles() -> f64 {
    50.0
}

impl Taught for Relational {
    const NAME: &'static str = "relational";
    const PAPER: &'static str = "Park, Kim, Lu, Cho, CVPR 2019, arXiv:1904.05068";
    const EXAMPLE: &'static str = "distance = 25.0\nangle = 50.0\ntrain = { epochs = 10 }";
}

impl Distiller for Relational {
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        let (taps, [distances, angles]) =
            (Taps::features(self.taps.as_ref(), pair.teacher()?, pair.student)?, [self.distance, self.angle]);
        let loss = move |student: Tensor<2>, teacher: Tensor<2>, _: &Seen<'_>| {
            let apart = distance(student.clone(), teacher.clone())?.mul_scalar(distances);
            // The last batch of an epoch may be of two samples, between which there are no angles.
            if angles == 0.0 || student.dims()[0] < 3 {
                Ok(apart)
            } else {
                Ok(apart + angle(student, teacher)?.mul_scalar(angles))
            }
        };
        Ok(Box::new(OverFeatures { taps, loss }))
    }

    fn fits(&self, teacher: &Net, student: &Net) -> Result<()> {
        Taps::features(self.taps.as_ref(), teacher, student).map(drop)
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn check(&self) -> Result<()> {
        weighable(Self::NAME, &[("weight", self.weight), ("distance", self.distance), ("angle", self.angle)])
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::values::floats;
    use burn::tensor::DType;

    use super::*;
    use crate::golden::{bears_zeros, golden, input, meets, near, slopes_agree, tensor};

    const GOLDEN: &str = include_str!("golden/relational.txt");

    #[test]
    fn values_and_gradients_are_golden() {
        let teacher = input("teacher_embedding", [4, 8]);
        meets((GOLDEN, "distance", 2e-5), input("student_embedding", [4, 6]), |student| distance(student, teacher.clone()));
        meets((GOLDEN, "angle", 1e-4), input("student_embedding", [4, 6]), |student| angle(student, teacher.clone()));
        let together = |student: Tensor<2>| {
            distance(student.clone(), teacher.clone()).unwrap().mul_scalar(25.0)
                + angle(student, teacher.clone()).unwrap().mul_scalar(50.0)
        };
        let parts = golden(GOLDEN, "distance value")[0] * 25.0 + golden(GOLDEN, "angle value")[0] * 50.0;
        near(&floats(together(input("student_embedding", [4, 6]))), &[parts], 1e-4);
    }

    #[test]
    fn large_differences_count_by_their_size() {
        let x = tensor(vec![0.0, 0.5, -0.5, 1.0, 3.0, -3.0], [6]);
        assert_eq!(floats(huber(x.clone())), [0.0, 0.125, 0.125, 0.5, 2.5, 2.5]);
        slopes_agree(&tensor(vec![0.1, 0.5, -0.5, 3.0, -3.0], [5]), |x| huber(x).sum());
        // One pair of the teacher's is so far apart that the difference passes 1.
        let teacher = tensor(vec![0.0, 0.0, 0.1, 0.0, 0.0, 0.1, 50.0, 0.0], [4, 2]).cast(DType::F64);
        slopes_agree(&input("student_embedding", [4, 6]), |student| distance(student, teacher.clone()).unwrap());
    }

    #[test]
    fn samples_that_coincide_have_finite_gradients() {
        let teacher = input("teacher_embedding", [4, 8]);
        bears_zeros([4, 6], |student| distance(student, teacher.clone()));
        bears_zeros([4, 6], |student| angle(student, teacher.clone()));
    }

    #[test]
    fn batches_that_differ_or_are_too_small_or_too_large_are_refused() {
        let [one, two] = [1, 2].map(|batch| input("student_embedding", [batch, 3]));
        let error = distance(one.clone(), one).unwrap_err().to_string();
        assert_eq!(
            error,
            "relational: the student's [1, 3] and the teacher's [1, 3] need the same samples, at least 2, for distances"
        );
        let error = angle(two.clone(), input("student_embedding", [3, 3])).unwrap_err().to_string();
        assert_eq!(
            error,
            "relational: the student's [2, 3] and the teacher's [3, 3] need the same samples, at least 3, for angles"
        );
        assert!(distance(two.clone(), two).is_ok());
        let many = tensor(vec![0.0; 257], [257, 1]);
        let error = angle(many.clone(), many).unwrap_err().to_string();
        assert!(error.starts_with("relational: the angles of 257 samples of"), "{error}");
    }
}
