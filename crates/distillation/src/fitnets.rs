//! A hidden layer of the teacher as a hint for one of the student.
//!
//! The student's maps `[batch, channels, height, width]` go through a [`Regressor`] where they are of another shape than the teacher's, and
//! [`hint`] is the mean over everything of the squared difference. What the paper calls the loss is `channels height width / 2` times that.
//! As a pass the hint comes alone first, `alone = { train = ... }`, and then the whole student learns by what `train` has under `distill`. In the paper the
//! weight of the soft targets falls meanwhile, [`decay`], from 4 to 1 for CIFAR with a temperature of 3, as `lambda` of soft targets may.
//!
//! ```
//! use briquette_distillation::fitnets::{Regressor, hint};
//! use burn::tensor::{Device, Tensor};
//! use rand::SeedableRng;
//! use rand_chacha::ChaCha8Rng;
//!
//! let (device, mut rng) = (Device::flex().autodiff(), ChaCha8Rng::seed_from_u64(1));
//! let regressor = Regressor::new([4, 8, 8], [16, 8, 8], [false, true], &mut rng, &device).unwrap().unwrap();
//! let loss = hint(regressor.forward(Tensor::ones([2, 4, 8, 8], &device)), Tensor::ones([2, 16, 8, 8], &device)).unwrap();
//! assert!(regressor.weight.val().grad(&loss.backward()).is_some());
//! ```
//!
//! Romero, Ballas, Kahou, Chassang, Gatta, Bengio. "FitNets: Hints for Thin Deep Nets". ICLR 2015. arXiv:1412.6550.
//! Differs from the paper: a teacher's map of exactly twice the student's height and width, which the authors' code refuses, has a transposed
//! convolution; a batch norm may stand in the regressor; and soft targets keep their factor `T^2`, which that code lacks.

use briquette_core::archive::Archive;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::Seen;
use briquette_core::teaching::{Distiller, Learned, Lesson, Pair, Shown, Taught};
use burn::module::{Module, Param};
use burn::tensor::Gradients;
use burn::tensor::module::{batch_norm_train, conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Device, Tensor, activation};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::taps::{Points, Stages, Taps, weighable};
use crate::tensors::{fit, uniform};

/// The mean over everything of `(s - t)^2` of maps of one shape `[batch, channels, height, width]`, those of the student from the regressor.
///
/// # Errors
/// Where shapes differ.
pub fn hint(student: Tensor<4>, teacher: Tensor<4>) -> Result<Tensor<1>> {
    fit(student.dims() == teacher.dims(), "fitnets", &student.dims(), &teacher.dims(), "need one shape")?;
    Ok((student - teacher).square().mean())
}

/// The weight of soft targets in an epoch, counted from 0: `from` before epoch `start`, `to` from epoch `saturate` on, and in equal steps
/// in between.
///
/// # Errors
/// Where `saturate` comes before `start`.
pub fn decay(epoch: usize, [from, to]: [f64; 2], [start, saturate]: [usize; 2]) -> Result<f64> {
    if saturate < start {
        return Err(Error::Invalid(format!(
            "fitnets: a weight that falls from epoch {start} on cannot have fallen by epoch {saturate}"
        )));
    }
    let steps = saturate - start + 1;
    let taken = (epoch + 1).saturating_sub(start).min(steps);
    Ok(from + (to - from) * taken as f64 / steps as f64)
}

/// What gives the student's maps the shape of the teacher's, and trains beside it: a convolution with a bias, a batch norm if wanted, and ReLU if
/// the teacher's layer has it. It serves training alone, so that the norm is by the batch's own statistics.
#[derive(Module, Debug)]
pub struct Regressor {
    /// `[channels of the teacher, of the student, height, width]`; of a transposed convolution the student's channels first.
    pub weight: Param<Tensor<4>>,
    /// `[channels of the teacher]`.
    pub bias: Param<Tensor<1>>,
    /// Scale and shift of the batch norm, `[channels of the teacher]`.
    pub norm: Option<[Param<Tensor<1>>; 2]>,
    transposed: bool,
    rectify: bool,
}

impl Regressor {
    /// The regressor from the student's `[channels, height, width]` to the teacher's; none where they agree. Maps of one size have a convolution
    /// by single pixels, larger ones of the student one without padding by as many pixels more than they are larger, and such of half the teacher's
    /// size a transposed convolution by 4x4 pixels of stride 2 and padding 1. Weights are drawn from `[-0.05, 0.05)`, biases begin at zero.
    ///
    /// # Errors
    /// Where no such convolution has the teacher's shape.
    pub fn new(
        student: [usize; 3],
        teacher: [usize; 3],
        [norm, rectify]: [bool; 2],
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Result<Option<Self>> {
        if student == teacher {
            return Ok(None);
        }
        let ([from, height, width], [to, rows, columns]) = (student, teacher);
        let transposed = [rows, columns] == [2 * height, 2 * width];
        let rule = "have no regressor between them; tap maps of one size, larger ones of the student, or such of half the teacher's size";
        fit(transposed || height >= rows && width >= columns, "fitnets", &student, &teacher, rule)?;
        let shape = if transposed { [from, to, 4, 4] } else { [to, from, height - rows + 1, width - columns + 1] };
        let weight = Param::from_tensor(uniform(shape, 0.05, rng, device));
        let all = |tensor: fn([usize; 1], &Device) -> Tensor<1>| Param::from_tensor(tensor([to], device));
        let norm =
            norm.then(|| [all(|shape, device| Tensor::ones(shape, device)), all(|shape, device| Tensor::zeros(shape, device))]);
        let bias = all(|shape, device| Tensor::zeros(shape, device));
        Ok(Some(Self { weight, bias, norm, transposed, rectify }))
    }

    /// The teacher's shape of the student's maps `[batch, channels, height, width]`.
    pub fn forward(&self, student: Tensor<4>) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), Some(self.bias.val()));
        let maps = match self.transposed {
            true => conv_transpose2d(student, weight, bias, ConvTransposeOptions::new([2, 2], [1, 1], [0, 0], [1, 1], 1)),
            false => conv2d(student, weight, bias, ConvOptions::new([1, 1], [0, 0], [1, 1], 1)),
        };
        let maps = match &self.norm {
            Some([scale, shift]) => batch_norm_train(maps, scale.val(), shift.val(), 1e-5).output,
            None => maps,
        };
        if self.rectify { activation::relu(maps) } else { maps }
    }
}

/// A hint: feature maps of the teacher that those of the student come near to, through a regressor where their shapes differ.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Fitnets {
    /// Factor of the hint's loss.
    #[serde(default = "hundred")]
    weight: f64,
    /// Whether the regressor has a batch norm.
    #[serde(default)]
    norm: bool,
    /// Whether the regressor ends in a rectifier; as it should where the hint's layer does.
    #[serde(default = "yes")]
    rectify: bool,
    /// The node of both networks; the end of the middle stage without it.
    taps: Option<Points>,
}

fn hundred() -> f64 {
    100.0
}

fn yes() -> bool {
    true
}

impl Taught for Fitnets {
    const NAME: &'static str = "fitnets";
    const PAPER: &'static str = "Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv:1412.6550";
    const EXAMPLE: &'static str = "weight = 100.0\ntrain = { epochs = 10 }";
}

impl Distiller for Fitnets {
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        let taps = Taps::maps(self.taps.as_ref(), Stages::Middle, pair.teacher()?, pair.student)?;
        let shapes = taps.shapes(pair.teacher()?, pair.student)?;
        let [student, teacher] = shapes.map(|shapes| [shapes[0][0], shapes[0][1], shapes[0][2]]);
        let mut rng = ChaCha8Rng::seed_from_u64(pair.seed);
        let device = pair.device.clone().autodiff();
        let regressor = Regressor::new(student, teacher, [self.norm, self.rectify], &mut rng, &device)?;
        Ok(Box::new(Hint { taps, regressor: regressor.map(|regressor| Learned::new(regressor, pair.optimizer.clone())) }))
    }

    fn fits(&self, teacher: &Net, student: &Net) -> Result<()> {
        Taps::maps(self.taps.as_ref(), Stages::Middle, teacher, student).map(drop)
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn check(&self) -> Result<()> {
        weighable(Self::NAME, &[("weight", self.weight)])
    }
}

struct Hint {
    taps: Taps,
    regressor: Option<Learned<Regressor>>,
}

impl Lesson for Hint {
    fn taps(&self) -> [&[usize]; 2] {
        self.taps.both()
    }

    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        let student = seen.taps[0].clone().map();
        let student = self.regressor.as_ref().map_or(student.clone(), |regressor| regressor.get().forward(student));
        hint(student, shown.taps[0].clone().map())
    }

    fn learn(&mut self, gradients: &mut Gradients, lr: f64) {
        self.regressor.iter_mut().for_each(|regressor| regressor.learn(gradients, lr));
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        self.regressor.iter_mut().try_for_each(|regressor| regressor.keep(archive))
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::values::floats;
    use burn::tensor::DType;
    use rand::SeedableRng;

    use super::*;
    use crate::golden::{bears_zeros, golden, input, meets, near, slopes_agree, tensor};

    const GOLDEN: &str = include_str!("golden/fitnets.txt");

    fn regressor(student: [usize; 3], teacher: [usize; 3], forms: [bool; 2]) -> Regressor {
        let device = Device::flex().autodiff();
        Regressor::new(student, teacher, forms, &mut ChaCha8Rng::seed_from_u64(5), &device).unwrap().unwrap()
    }

    #[test]
    fn values_and_gradients_are_golden() {
        let (student, teacher) = (input("student_map", [4, 3, 4, 4]), input("teacher_map", [4, 6, 4, 4]));
        let small = input("teacher_map_small", [4, 6, 2, 2]);
        for (name, weights, teacher) in
            [("linear", "linear", teacher.clone()), ("rectified", "linear", teacher), ("valid", "valid", small)]
        {
            let [_, _, side, _] = teacher.dims();
            let mut regressor = regressor([3, 4, 4], [6, side, side], [false, name == "rectified"]);
            let weight = golden(GOLDEN, &format!("{weights} weight"));
            regressor.weight = regressor.weight.map(|old| tensor(weight, old.dims()).require_grad());
            if name != "valid" {
                regressor.bias = regressor.bias.map(|_| tensor(golden(GOLDEN, "linear bias"), [6]).require_grad());
            }
            let loss = |student| hint(regressor.forward(student), teacher.clone());
            meets((GOLDEN, name, 2e-5), student.clone(), loss);
            let gradients = loss(student.clone()).unwrap().backward();
            let of_weight = floats(regressor.weight.val().grad(&gradients).unwrap());
            near(&of_weight, &golden(GOLDEN, &format!("{name} weight gradient")), 2e-5);
            if name != "valid" {
                let of_bias = floats(regressor.bias.val().grad(&gradients).unwrap());
                near(&of_bias, &golden(GOLDEN, &format!("{name} bias gradient")), 2e-5);
            }
        }
    }

    #[test]
    fn the_regressor_follows_from_the_shapes() {
        let shape = |student, teacher| regressor(student, teacher, [false, false]).weight.val().dims();
        assert_eq!(shape([3, 8, 8], [6, 8, 8]), [6, 3, 1, 1]);
        assert_eq!(shape([3, 8, 7], [3, 4, 5]), [3, 3, 5, 3]);
        assert_eq!(shape([3, 4, 2], [6, 8, 4]), [3, 6, 4, 4]);
        let (mut rng, device) = (ChaCha8Rng::seed_from_u64(5), Device::flex());
        let mut between = |student, teacher| Regressor::new(student, teacher, [true, true], &mut rng, &device);
        assert!(between([3, 4, 4], [3, 4, 4]).unwrap().is_none());
        let error = between([3, 4, 4], [6, 12, 12]).unwrap_err().to_string();
        assert!(error.starts_with("fitnets: the student's [3, 4, 4] and the teacher's [6, 12, 12] have no regressor"), "{error}");
        assert!(between([3, 4, 8], [6, 8, 4]).is_err());
    }

    #[test]
    fn norms_and_transposed_convolutions_have_the_gradients_of_finite_differences() {
        for (student, teacher) in [([3, 4, 4], [2, 4, 4]), ([3, 2, 2], [2, 4, 4]), ([3, 4, 4], [2, 2, 3])] {
            let target = input("teacher_map", [2, teacher[0], teacher[1], teacher[2]]);
            let regressor = regressor(student, teacher, [true, true]);
            assert_eq!(regressor.num_params(), regressor.weight.val().shape().num_elements() + 3 * teacher[0]);
            let maps = input("student_map", [2, student[0], student[1], student[2]]);
            bears_zeros(maps.dims(), |student| hint(regressor.forward(student), target.clone()));
            let double = Regressor {
                weight: regressor.weight.map(|weight| weight.cast(DType::F64)),
                bias: regressor.bias.map(|bias| bias.cast(DType::F64)),
                norm: regressor.norm.map(|norm| norm.map(|values| values.map(|values| values.cast(DType::F64)))),
                ..regressor
            };
            slopes_agree(&maps, |maps| hint(double.forward(maps), target.clone().cast(DType::F64)).unwrap());
        }
    }

    #[test]
    fn the_weight_of_soft_targets_falls_as_the_golden_one() {
        let weight = |epoch| decay(epoch, [4.0, 1.0], [5, 400]).unwrap() as f32;
        let expected = [4.0, 4.0, 3.992_424, 3.984_848, 3.272_727, 1.007_576, 1.0, 1.0];
        near(&[0, 4, 5, 6, 100, 399, 400, 500].map(weight), &expected, 1e-6);
        let error = decay(0, [4.0, 1.0], [5, 4]).unwrap_err().to_string();
        assert_eq!(error, "fitnets: a weight that falls from epoch 5 on cannot have fallen by epoch 4");
    }

    #[test]
    fn maps_of_other_shapes_are_refused() {
        let error = hint(input("student_map", [4, 3, 4, 4]), input("teacher_map", [4, 6, 4, 4])).unwrap_err().to_string();
        assert_eq!(error, "fitnets: the student's [4, 3, 4, 4] and the teacher's [4, 6, 4, 4] need one shape");
    }
}
