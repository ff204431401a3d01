//! Channels as samples of a distribution, which the student's are to match.
//!
//! Each channel of maps `[batch, channels, height, width]` is a vector over positions, divided by its norm: `s_i` of the student, `t_j` of the
//! teacher. The loss is the squared maximum mean discrepancy `mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j)`, the mean over the
//! batch, with a weight of 50 on CIFAR. Numbers of channels may differ; the larger maps are averaged to the size of the smaller. A channel without
//! any activation is the vector 0, and has no gradient.
//!
//! ```
//! use briquette_distillation::selectivity::{Kernel, selectivity};
//! use burn::tensor::{Device, Tensor};
//!
//! let maps = |channels: usize| Tensor::<4>::ones([2, channels, 4, 4], &Device::flex());
//! // Channels that all look at the same thing are alike, however many there are.
//! let loss: f32 = selectivity(maps(3), maps(8), Kernel::Polynomial).unwrap().into_scalar();
//! assert!(loss.abs() < 1e-5);
//! ```
//!
//! Huang, Wang. "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer". arXiv:1707.01219, 2017.
//! Differs from the paper: sizes need not agree, and `sigma^2` of the Gaussian kernel, a constant to the gradient, is the mean squared distance of
//! the student's channels from the teacher's over the batch.

use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::teaching::{Distiller, Lesson, Pair, Taught};
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::taps::{OverMaps, Points, Stages, Taps, weighable};
use crate::tensors::{one_size, units};

/// A kernel `k(x, y)`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// `x y`: the loss compares the mean channels alone.
    Linear,
    /// `(x y)^2`.
    #[default]
    Polynomial,
    /// `exp(-||x - y||^2 / (2 sigma^2))`.
    Gaussian,
}

/// The squared discrepancy of the channels of maps `[batch, channels, height, width]`, the mean over the batch. Products of channels are matrices
/// `[batch, channels, channels]`; nothing larger is held.
///
/// # Errors
/// Where batches differ.
pub fn selectivity(student: Tensor<4>, teacher: Tensor<4>, kernel: Kernel) -> Result<Tensor<1>> {
    let [s, t] = one_size("selectivity", student, teacher)?.map(channels);
    Ok(match kernel {
        Kernel::Linear => (s.mean_dim(1) - t.mean_dim(1)).square().sum_dim(2).mean(),
        Kernel::Polynomial => discrepancy(&s, &t, |x, y| products(x, y).square()),
        Kernel::Gaussian => {
            let spread = distances(&s, &t).detach().mean().clamp_min(1e-12).mul_scalar(2.0).reshape([1, 1, 1]);
            discrepancy(&s, &t, |x, y| (distances(x, y) / spread.clone()).neg().exp())
        }
    })
}

/// `[batch, channels, positions]`.
fn channels(maps: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = maps.dims();
    units(maps.reshape([batch, channels, height * width]), 2)
}

fn discrepancy(s: &Tensor<3>, t: &Tensor<3>, kernel: impl Fn(&Tensor<3>, &Tensor<3>) -> Tensor<3>) -> Tensor<1> {
    kernel(s, s).mean() + kernel(t, t).mean() - kernel(s, t).mean().mul_scalar(2.0)
}

fn products(x: &Tensor<3>, y: &Tensor<3>) -> Tensor<3> {
    x.clone().matmul(y.clone().swap_dims(1, 2))
}

fn distances(x: &Tensor<3>, y: &Tensor<3>) -> Tensor<3> {
    let squares = |x: &Tensor<3>| x.clone().square().sum_dim(2);
    squares(x) + squares(y).swap_dims(1, 2) - products(x, y).mul_scalar(2.0)
}

/// Neuron selectivity at the ends of the stages, or at `taps`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Selectivity {
    /// Factor of the sum over all taps.
    #[serde(default = "fifty")]
    weight: f64,
    /// What channels are compared by.
    #[serde(default)]
    kernel: Kernel,
    /// Where it looks; the last maps of each size without it.
    taps: Option<Points>,
}

fn fifty() -> f64 {
    50.0
}

impl Taught for Selectivity {
    const NAME: &'static str = "selectivity";
    const PAPER: &'static str = "Huang, Wang, 2017, arXiv:1707.01219";
    const EXAMPLE: &'static str = "weight = 50.0\ntrain = { epochs = 10 }";
}

impl Distiller for Selectivity {
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        let (taps, kernel) = (Taps::maps(self.taps.as_ref(), Stages::All, pair.teacher()?, pair.student)?, self.kernel);
        Ok(Box::new(OverMaps { taps, loss: move |student, teacher| selectivity(student, teacher, kernel) }))
    }

    fn fits(&self, teacher: &Net, student: &Net) -> Result<()> {
        Taps::maps(self.taps.as_ref(), Stages::All, teacher, student).map(drop)
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
    use burn::tensor::DType;

    use super::*;
    use crate::golden::{bears_zeros, input, is_none_of_none, meets, near, slopes_agree};

    const GOLDEN: &str = include_str!("golden/selectivity.txt");

    #[test]
    fn values_and_gradients_are_golden() {
        let (student, teacher) = (input("student_map", [4, 3, 4, 4]), input("teacher_map", [4, 6, 4, 4]));
        let small = input("teacher_map_small", [4, 6, 2, 2]);
        meets((GOLDEN, "polynomial", 2e-5), student.clone(), |student| selectivity(student, teacher.clone(), Kernel::Polynomial));
        meets((GOLDEN, "pooled", 2e-5), student.clone(), |student| selectivity(student, small.clone(), Kernel::Polynomial));
        meets((GOLDEN, "linear", 2e-5), student, |student| selectivity(student, teacher.clone(), Kernel::Linear));
    }

    #[test]
    fn the_gaussian_kernel_is_that_of_a_double_loop() {
        let (student, teacher) = (input("student_map", [4, 3, 4, 4]), input("teacher_map", [4, 6, 4, 4]));
        let loss = |student| selectivity(student, teacher.clone(), Kernel::Gaussian);
        let unit = |maps: Tensor<4>, n: usize| -> Vec<Vec<Vec<f32>>> {
            let values = floats(channels(maps));
            values.chunks(16 * n).map(|sample| sample.chunks(16).map(<[f32]>::to_vec).collect()).collect()
        };
        let (s, t) = (unit(student.clone(), 3), unit(teacher.clone(), 6));
        let distance = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f32>();
        let over = |x: &[Vec<f32>], y: &[Vec<f32>], term: &dyn Fn(f32) -> f32| {
            let terms = x.iter().flat_map(|x| y.iter().map(|y| term(distance(x, y))));
            terms.sum::<f32>() / (x.len() * y.len()) as f32
        };
        let spread = s.iter().zip(&t).map(|(s, t)| over(s, t, &|d| d)).sum::<f32>() / 4.0;
        let k = |d: f32| (-d / (2.0 * spread)).exp();
        let terms = s.iter().zip(&t).map(|(s, t)| over(s, s, &k) + over(t, t, &k) - 2.0 * over(s, t, &k));
        near(&floats(loss(student.clone()).unwrap()), &[terms.sum::<f32>() / 4.0], 2e-5);
        is_none_of_none(&student, loss);
    }

    #[test]
    fn the_gaussian_kernel_has_the_gradient_of_a_fixed_sigma() {
        let [s, t] = [input("student_map", [4, 3, 4, 4]), input("teacher_map", [4, 3, 4, 4])].map(|maps| maps.cast(DType::F64));
        let [student, teacher] = [s.clone(), t].map(channels);
        let spread = distances(&student, &teacher).mean().mul_scalar(2.0).reshape([1, 1, 1]);
        let fixed = |s| discrepancy(&channels(s), &teacher, |x, y| (distances(x, y) / spread.clone()).neg().exp());
        slopes_agree(&s, fixed);
        let gradient = |loss: &dyn Fn(Tensor<4>) -> Tensor<1>| {
            let s = s.clone().require_grad();
            floats(s.grad(&loss(s.clone()).backward()).unwrap())
        };
        let t = input("teacher_map", [4, 3, 4, 4]).cast(DType::F64);
        near(&gradient(&|s| selectivity(s, t.clone(), Kernel::Gaussian).unwrap()), &gradient(&fixed), 1e-6);
    }

    #[test]
    fn channels_without_activations_have_finite_gradients() {
        let teacher = input("teacher_map", [4, 6, 4, 4]);
        for kernel in [Kernel::Linear, Kernel::Polynomial, Kernel::Gaussian] {
            bears_zeros([4, 3, 4, 4], |student| selectivity(student, teacher.clone(), kernel));
        }
        let same = selectivity(teacher.clone(), teacher, Kernel::Gaussian).unwrap();
        assert!(floats(same)[0].abs() < 1e-6);
    }

    #[test]
    fn other_batches_are_refused() {
        let student = input("student_map", [3, 4, 4, 4]);
        let error = selectivity(student, input("teacher_map", [4, 6, 4, 4]), Kernel::Linear).unwrap_err().to_string();
        assert_eq!(error, "selectivity: the student's [3, 4, 4, 4] and the teacher's [4, 6, 4, 4] need the same samples");
    }
}
