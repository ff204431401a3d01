//! Each sample recognized in the other network's embedding.
//!
//! Two linear [`Embeddings`], both trained, map the student's and the teacher's features to unit vectors `v` of one length. A bank remembers the
//! vectors of all `n` samples for each network. With the temperature `T` the score of a student's `v` for an entry `m` of the teacher's bank is
//! `P = exp(m v / T) / Z`; each sample has `K` negatives besides its positive, `c = K / n`, and the loss is
//! `-log(P_0 / (P_0 + c + eps)) - sum_k log(c / (P_k + c + eps))`, `eps = 1e-7`, the mean over the batch; another such term sets the teacher's `v` against
//! the student's bank. `Z` of either direction is `n` times the mean of `exp(m v / T)` over the first batch, and stays. Banks are read, then
//! updated: `m <- normalize((m + v) / 2)` for the batch's samples. Neither banks nor `Z` have gradients.
//!
//! ```
//! use briquette_distillation::contrastive::{Draws, Positive};
//! use rand::SeedableRng;
//! use rand_chacha::ChaCha8Rng;
//!
//! let draws = Draws::new(&[0, 0, 1, 1]).unwrap();
//! let rows = draws.rows(&[2], 2, Positive::Exact, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
//! // The sample itself, and both of the other class.
//! assert!(rows[0] == 2 && rows[1..].contains(&0) && rows[1..].contains(&1));
//! ```
//!
//! Tian, Krishnan, Isola. "Contrastive Representation Distillation". ICLR 2020. arXiv:1910.10699.
//! Differs from the authors' code in arithmetic: logarithms of scores are added where scores are multiplied, and products are with the whole bank,
//! `[batch, n]` numbers in the place of `[batch, K + 1, length]`.

mod draws;

use briquette_core::archive::Archive;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::Seen;
use briquette_core::teaching::{Distiller, Lesson, Pair, Shown, Taught};
use briquette_core::training::Descent;
use briquette_core::values::floats;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::optim::GradientsParams;
use burn::tensor::Gradients;
use burn::tensor::{Device, IndexingUpdateOp, Tensor, activation};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::taps::{Points, Taps, flat, weighable};

pub use draws::{Draws, Positive};

use crate::tensors::{fit, indices, uniform, units};

/// What the denominators are larger by.
const EPSILON: f64 = 1e-7;

/// How the loss looks at vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Length of the vectors; 128 in the paper.
    pub length: usize,
    /// `T`; 0.07 in the paper.
    pub temperature: f64,
    /// Share of the old vector in a bank's update; 1/2 in the paper.
    pub momentum: f64,
}

/// The linear maps of both networks' features, with all tensors that train beside the student.
#[derive(Module, Debug)]
pub struct Embeddings {
    /// Of the student's features.
    pub student: Linear,
    /// Of the teacher's features.
    pub teacher: Linear,
}

/// Embeddings, banks and normalizers: all that outlives a step.
#[derive(Debug, Clone)]
pub struct Contrast {
    /// What trains.
    pub embeddings: Embeddings,
    /// The student's and the teacher's vectors, `[n, length]` each.
    pub banks: [Tensor<2>; 2],
    /// `Z` of the student's and of the teacher's vectors, once the first batch was seen.
    pub normalizers: Option<[f64; 2]>,
    settings: Settings,
}

impl Contrast {
    /// For networks of so many features, `[student, teacher]`, and `samples` to learn from. Weights and biases are drawn from
    /// `+-1 / sqrt(features)`, banks from `+-1 / sqrt(length / 3)`.
    ///
    /// # Errors
    /// Where settings are out of range, or there are no features or samples.
    pub fn new(features: [usize; 2], samples: usize, settings: Settings, rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        let Settings { length, temperature, momentum } = settings;
        let in_range = temperature.is_finite() && temperature > 0.0 && (0.0..=1.0).contains(&momentum);
        if !in_range || length == 0 || samples == 0 || features.contains(&0) {
            let detail = format!("{settings:?} for {features:?} features and {samples} samples");
            return Err(Error::Invalid(format!(
                "contrastive: {detail}; sizes and the temperature are above 0, the momentum is a share"
            )));
        }
        let mut linear = |features: usize| {
            let reach = (features as f32).sqrt().recip();
            let weight = Param::from_tensor(uniform([features, length], reach, rng, device));
            Linear { weight, bias: Some(Param::from_tensor(uniform([length], reach, rng, device))) }
        };
        let embeddings = Embeddings { student: linear(features[0]), teacher: linear(features[1]) };
        let reach = (3.0 / length as f32).sqrt();
        let banks = [(); 2].map(|()| uniform([samples, length], reach, rng, device));
        Ok(Self { embeddings, banks, normalizers: None, settings })
    }

    /// The loss of features `[batch, features]` of the samples `ids`, with the rows of [`Draws`], each a positive and its negatives, one after the
    /// other; then both banks take up the batch.
    ///
    /// # Errors
    /// Where batches, ids, rows and banks do not fit, a sample comes twice, or the scores of the first batch are not finite.
    pub fn loss(&mut self, student: Tensor<2>, teacher: Tensor<2>, ids: &[u32], rows: &[u32]) -> Result<Tensor<1>> {
        let width = self.check(&student, &teacher, ids, rows)?;
        let (batch, device) = (ids.len(), student.device());
        let [samples, _] = self.banks[0].dims();
        let vectors = [self.embeddings.student.forward(student), self.embeddings.teacher.forward(teacher)].map(|v| units(v, 1));
        let rows = indices(rows.iter().map(|id| *id as usize), [batch, width], &device);
        let scores = |of: usize, bank: usize| {
            let products = vectors[of].clone().matmul(self.banks[bank].clone().transpose());
            products.gather(1, rows.clone()).div_scalar(self.settings.temperature)
        };
        let scores = [scores(0, 1), scores(1, 0)];
        let normalizers = match self.normalizers {
            Some(normalizers) => normalizers,
            None => first_normalizers(&scores, samples)?,
        };
        self.normalizers = Some(normalizers);
        let [first, second] = scores;
        let noise = (width - 1) as f64 / samples as f64;
        let loss = term(first, normalizers[0], noise) + term(second, normalizers[1], noise);

        let ids = indices(ids.iter().map(|id| *id as usize), [batch], &device);
        for (bank, vectors) in self.banks.iter_mut().zip(vectors) {
            let old = bank.clone().select(0, ids.clone());
            let mixed =
                old.clone().mul_scalar(self.settings.momentum) + vectors.detach().mul_scalar(1.0 - self.settings.momentum);
            *bank = bank.clone().select_assign(0, ids.clone(), units(mixed, 1) - old, IndexingUpdateOp::Add);
        }
        Ok(loss)
    }

    /// How many entries a row has.
    fn check(&self, student: &Tensor<2>, teacher: &Tensor<2>, ids: &[u32], rows: &[u32]) -> Result<usize> {
        let [student, teacher] = [student.dims(), teacher.dims()];
        let Embeddings { student: of_student, teacher: of_teacher } = &self.embeddings;
        let known = [of_student, of_teacher].map(|linear| linear.weight.val().dims()[0]);
        let rule = format!("need a batch of {} samples, and features {known:?}", ids.len());
        fit(student == [ids.len(), known[0]] && teacher == [ids.len(), known[1]], "contrastive", &student, &teacher, &rule)?;
        let [samples, _] = self.banks[0].dims();
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        let wrong = if rows.is_empty() || !rows.len().is_multiple_of(ids.len()) || rows.len() < 2 * ids.len() {
            format!("{} drawn samples are not a positive and equally many negatives for each of {}", rows.len(), ids.len())
        } else if let Some(id) = ids.iter().chain(rows).find(|id| **id as usize >= samples) {
            format!("sample {id} is none of the {samples} of the banks")
        } else if let Some(two) = sorted.windows(2).find(|two| two[0] == two[1]) {
            format!("sample {} comes twice in a batch, which leaves its place in the banks open", two[0])
        } else {
            return Ok(rows.len() / ids.len());
        };
        Err(Error::Invalid(format!("contrastive: {wrong}")))
    }
}

/// `n` times the mean of exponentials, in double precision.
fn first_normalizers(scores: &[Tensor<2>; 2], samples: usize) -> Result<[f64; 2]> {
    let normalizers = scores.each_ref().map(|scores| {
        let scores = floats(scores.clone());
        scores.iter().map(|score| f64::from(*score).exp()).sum::<f64>() / scores.len() as f64 * samples as f64
    });
    match normalizers.iter().all(|z| z.is_normal()) {
        true => Ok(normalizers),
        false => Err(Error::Invalid(format!("contrastive: the scores of the first batch give the normalizers {normalizers:?}"))),
    }
}

/// The mean over rows of the negative logarithms, of scores `log(P Z)` `[batch, 1 + K]` whose first are of the positives.
fn term(scores: Tensor<2>, normalizer: f64, noise: f64) -> Tensor<1> {
    let [batch, width] = scores.dims();
    let odds = scores.sub_scalar(normalizer.ln() + (noise + EPSILON).ln());
    let positives = activation::log_sigmoid(odds.clone().slice([0..batch, 0..1])).sum();
    let negatives = activation::log_sigmoid(odds.slice([0..batch, 1..width]).neg()).sum();
    let constant = (width - 1) as f64 * (noise / (noise + EPSILON)).ln();
    (positives + negatives).div_scalar(-(batch as f64)).sub_scalar(constant)
}

/// Contrasts with other samples, drawn anew in every step.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Contrastive {
    /// Factor of the loss.
    #[serde(default = "most")]
    weight: f64,
    /// Negatives of each sample.
    #[serde(default = "many")]
    negatives: usize,
    /// Length of the vectors.
    #[serde(default = "length")]
    length: usize,
    /// `T`.
    #[serde(default = "cold")]
    temperature: f64,
    /// Share of the old vector in a bank's update.
    #[serde(default = "half")]
    momentum: f64,
    /// Which sample is a sample's positive.
    #[serde(default)]
    positive: Positive,
    /// The node of both networks; what the last fully connected layer reads without it.
    taps: Option<Points>,
}

fn most() -> f64 {
    0.8
}

fn many() -> usize {
    16_384
}

fn length() -> usize {
    128
}

fn cold() -> f64 {
    0.07
}

fn half() -> f64 {
    0.5
}

impl Taught for Contrastive {
    const NAME: &'static str = "contrastive";
    const PAPER: &'static str = "Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699";
    const EXAMPLE: &'static str = "weight = 0.8\nnegatives = 256\ntrain = { epochs = 10 }";
}

impl Distiller for Contrastive {
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        let taps = Taps::features(self.taps.as_ref(), pair.teacher()?, pair.student)?;
        let features = taps.shapes(pair.teacher()?, pair.student)?.map(|shapes| shapes[0].iter().product());
        let settings = Settings { length: self.length, temperature: self.temperature, momentum: self.momentum };
        let mut rng = ChaCha8Rng::seed_from_u64(pair.seed);
        let device = pair.device.clone().autodiff();
        let labels: Vec<u16> = (0..pair.images.len()).map(|at| pair.images.label(at)).collect();
        let contrast = Contrast::new(features, labels.len(), settings, &mut rng, &device)?;
        let (draws, optimizer) = (Draws::new(&labels)?, pair.optimizer.clone());
        Ok(Box::new(Contrasts { taps, contrast, draws, optimizer, rng, steps: 0, settings: self.clone() }))
    }

    fn fits(&self, teacher: &Net, student: &Net) -> Result<()> {
        Taps::features(self.taps.as_ref(), teacher, student).map(drop)
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn check(&self) -> Result<()> {
        if self.negatives == 0 {
            return Err(Error::Invalid("contrastive: `negatives` is at least 1".into()));
        }
        if self.length == 0 || !(self.temperature.is_finite() && self.temperature > 0.0) || !(0.0..=1.0).contains(&self.momentum)
        {
            let detail = "`length` and `temperature` are above 0, and `momentum` lies in [0, 1]";
            return Err(Error::Invalid(format!("contrastive: {detail}")));
        }
        weighable(Self::NAME, &[("weight", self.weight)])
    }
}

struct Contrasts {
    taps: Taps,
    contrast: Contrast,
    draws: Draws,
    optimizer: Descent,
    /// Each step has a stream of its own.
    rng: ChaCha8Rng,
    steps: u64,
    settings: Contrastive,
}

impl Lesson for Contrasts {
    fn taps(&self) -> [&[usize]; 2] {
        self.taps.both()
    }

    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        self.steps += 1;
        let mut rng = self.rng.clone();
        rng.set_stream(self.steps);
        let rows = self.draws.rows(seen.ids, self.settings.negatives, self.settings.positive, &mut rng)?;
        self.contrast.loss(flat(&seen.taps[0]), flat(&shown.taps[0]), seen.ids, &rows)
    }

    fn learn(&mut self, gradients: &mut Gradients, lr: f64) {
        let embeddings = &mut self.contrast.embeddings;
        let own = GradientsParams::from_module(gradients, embeddings);
        *embeddings = self.optimizer.step(lr, embeddings.clone(), own);
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        let contrast = &mut self.contrast;
        let mut steps = [self.steps];
        archive.numbers(&mut steps)?;
        self.steps = steps[0];
        // Normalizers are positive: zero stands for none yet.
        let mut normalizers = contrast.normalizers.unwrap_or_default();
        archive.numbers(&mut normalizers)?;
        contrast.normalizers = Some(normalizers).filter(|normalizers| normalizers[0] > 0.0);
        contrast.banks.iter_mut().try_for_each(|bank| archive.tensor(bank))?;
        contrast.embeddings = archive.module(contrast.embeddings.clone())?;
        self.optimizer.keep(&contrast.embeddings, archive)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::golden::{golden, input, near, tensor};

    const GOLDEN: &str = include_str!("golden/contrastive.txt");
    const IDS: [u32; 4] = [3, 0, 7, 5];
    const ROWS: [u32; 16] = [3, 1, 8, 9, 0, 2, 4, 6, 7, 1, 9, 2, 5, 8, 6, 4];

    fn contrast() -> Contrast {
        let settings = Settings { length: 4, temperature: 0.07, momentum: 0.5 };
        let device = Device::flex().autodiff();
        let mut contrast = Contrast::new([6, 8], 10, settings, &mut ChaCha8Rng::seed_from_u64(1), &device).unwrap();
        for (linear, name) in [(&mut contrast.embeddings.student, 's'), (&mut contrast.embeddings.teacher, 't')] {
            // PyTorch's matrices are `[out, in]`.
            let [features, length] = linear.weight.val().dims();
            let weight = tensor(golden(GOLDEN, &format!("embed {name} weight")), [length, features]).transpose();
            let bias = tensor(golden(GOLDEN, &format!("embed {name} bias")), [length]);
            *linear = Linear { weight: Param::from_tensor(weight), bias: Some(Param::from_tensor(bias)) };
        }
        contrast.banks = ["memory student", "memory teacher"].map(|name| tensor(golden(GOLDEN, name), [10, 4]));
        contrast
    }

    #[test]
    fn two_steps_are_golden() {
        let mut contrast = contrast();
        let teacher = input("teacher_embedding", [4, 8]);
        for step in ["first", "second"] {
            let student = input("student_embedding", [4, 6]).require_grad();
            let loss = contrast.loss(student.clone(), teacher.clone(), &IDS, &ROWS).unwrap();
            near(&floats(loss.clone()), &golden(GOLDEN, &format!("{step} value")), 1e-4);
            let gradients = loss.backward();
            near(&floats(student.grad(&gradients).unwrap()), &golden(GOLDEN, &format!("{step} gradient")), 1e-4);
            near(&contrast.normalizers.unwrap().map(|z| z as f32), &golden(GOLDEN, "Z"), 1e-4);
            if step == "second" {
                for (linear, name) in [(&contrast.embeddings.student, 's'), (&contrast.embeddings.teacher, 't')] {
                    let of_weight = linear.weight.val().grad(&gradients).unwrap().transpose();
                    near(&floats(of_weight), &golden(GOLDEN, &format!("grad embed {name} weight")), 1e-4);
                    let of_bias = linear.bias.as_ref().unwrap().val().grad(&gradients).unwrap();
                    near(&floats(of_bias), &golden(GOLDEN, &format!("grad embed {name} bias")), 1e-4);
                }
            }
        }
        for (bank, name) in contrast.banks.iter().zip(["memory student after", "memory teacher after"]) {
            near(&floats(bank.clone()), &golden(GOLDEN, name), 1e-4);
        }
    }

    #[test]
    fn features_that_are_no_numbers_give_no_loss() {
        let mut contrast = contrast();
        let mut values = floats(input("student_embedding", [4, 6]));
        values[1] = f32::NAN;
        let (poor, teacher) = (tensor(values, [4, 6]), input("teacher_embedding", [4, 8]));
        let error = contrast.loss(poor.clone(), teacher.clone(), &IDS, &ROWS).unwrap_err().to_string();
        assert!(error.starts_with("contrastive: the scores of the first batch give the normalizers [NaN"), "{error}");
        contrast.loss(input("student_embedding", [4, 6]), teacher.clone(), &IDS, &ROWS).unwrap();
        assert!(floats(contrast.loss(poor, teacher, &IDS, &ROWS).unwrap())[0].is_nan());
    }

    #[test]
    fn what_does_not_fit_the_banks_is_refused() {
        let mut contrast = contrast();
        let mut refusal = |features: usize, ids: &[u32], rows: &[u32]| {
            let student = input("teacher_embedding", [4, features]);
            contrast.loss(student, input("teacher_embedding", [4, 8]), ids, rows).unwrap_err().to_string()
        };
        let told = "contrastive: the student's [4, 7] and the teacher's [4, 8] need a batch of 4 samples, and features [6, 8]";
        assert_eq!(refusal(7, &IDS, &ROWS), told);
        assert!(refusal(6, &IDS[..3], &ROWS).contains("need a batch of 3 samples"));
        assert!(refusal(6, &IDS, &ROWS[..15]).contains("15 drawn samples are not a positive"));
        assert!(refusal(6, &IDS, &IDS).contains("4 drawn samples are not a positive"));
        assert_eq!(refusal(6, &[3, 0, 7, 10], &ROWS), "contrastive: sample 10 is none of the 10 of the banks");
        assert!(refusal(6, &[3, 0, 7, 3], &ROWS).starts_with("contrastive: sample 3 comes twice in a batch"));
        let settings = Settings { length: 4, temperature: 0.0, momentum: 0.5 };
        let cold = Contrast::new([6, 8], 10, settings, &mut ChaCha8Rng::seed_from_u64(1), &Device::flex());
        assert!(cold.unwrap_err().to_string().ends_with("sizes and the temperature are above 0, the momentum is a share"));
    }
}
