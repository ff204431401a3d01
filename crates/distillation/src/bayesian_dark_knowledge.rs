//! A student of what a posterior predicts on the mean, which a Markov chain of its teacher's weights samples while the student learns.
//!
//! The teacher's weights `theta` go on by stochastic gradient Langevin dynamics, a step for each batch of `n` of the `N` training images:
//! `theta <- theta + epsilon / 2 (-lambda theta + N / n sum_i grad ln p(y_i | x_i, theta)) + N(0, epsilon)`, with the precision `lambda` of a Gaussian prior.
//! The student's loss on the next batch, `N(0, s^2)` on its pixels, is the mean of `sum_k p_k ln(p_k / q_k)`, `p` the probabilities of the teacher as it is
//! then, `q` its own, so that over the training it comes to the mean prediction of all teachers that there were. [`Langevin`] is the chain of any module of
//! Burn, [`divergence`] its student's loss, [`gaussian`] that of a regression:
//!
//! ```
//! use briquette_core::chance;
//! use briquette_core::training::cross_entropy;
//! use briquette_distillation::bayesian_dark_knowledge::Langevin;
//! use briquette_distillation::soft_targets::divergence;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::optim::GradientsParams;
//! use burn::tensor::{Device, Tensor};
//!
//! let device = Device::flex().autodiff();
//! let layer = || -> Linear { LinearConfig::new(2, 2).init(&device) };
//! let (mut teacher, student, mut chain) = (layer(), layer(), Langevin::new(0.01, 1.0, 100));
//! chance::seed(7);
//! let images = Tensor::<2>::from_floats([[2.0, 0.0], [0.0, 2.0]], &device);
//! for _ in 0..100 {
//!     let loss = cross_entropy(teacher.forward(images.clone()), &[0, 1], 0.0);
//!     let gradients = GradientsParams::from_grads(loss.backward(), &teacher);
//!     teacher = chain.step(teacher, gradients);
//! }
//! let noisy = images + chance::normal_like(&Tensor::<2>::zeros([2, 2], &device)).mul_scalar(0.05);
//! let taught = teacher.forward(noisy.clone()).detach();
//! let gradients = divergence(taught.clone(), student.forward(noisy), 1.0).backward();
//! assert!(student.weight.val().grad(&gradients).is_some() && teacher.weight.val().grad(&gradients).is_none());
//! let logits = taught.into_data().try_into_vec::<f32>().unwrap();
//! assert!(logits[0] > logits[1] && logits[2] < logits[3]);
//! ```
//!
//! Balan, Rathod, Murphy, Welling. "Bayesian Dark Knowledge". NIPS 2015. arXiv:1506.04416.
//! Welling, Teh. "Bayesian Learning via Stochastic Gradient Langevin Dynamics". ICML 2011.
//! Differs from the paper: batches are drawn without replacement in an epoch, each teaches the teacher once it has taught the student, and `epsilon` stays the same.

mod langevin;

use briquette_core::archive::Archive;
use briquette_core::chance::normal_like;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::{Objective, Seen, Taps};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Extras, Forward, Recipe, cross_entropy, fit};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::soft_targets::divergence;
use crate::student::Student;
use crate::tensors::fit as fits;

pub use langevin::Langevin;

/// The training of a network, or of a `student` in its place, by the Markov chain that begins at the network at hand.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BayesianDarkKnowledge {
    student: Option<Student>,
    /// `epsilon`: the variance of a step's noise, and twice the factor of its gradient.
    #[serde(default = "short")]
    epsilon: f64,
    /// `lambda`: the precision of the prior.
    #[serde(default = "one")]
    prior: f64,
    /// `s`: the deviation of the noise on the student's pixels, of which the brightest is 1.
    #[serde(default = "slight")]
    noise: f64,
    /// Epochs of the chain before the student learns.
    #[serde(default = "once")]
    burn_in: usize,
    /// Steps of the chain from one sample that teaches to the next.
    #[serde(default = "once")]
    thinning: usize,
    /// The student's training, whose batches the teacher has, too.
    #[serde(default)]
    train: Recipe,
}

fn short() -> f64 {
    1e-6
}

fn one() -> f64 {
    1.0
}

fn slight() -> f64 {
    0.05
}

fn once() -> usize {
    1
}

impl Method for BayesianDarkKnowledge {
    const NAME: &'static str = "bayesian-dark-knowledge";
    const FAMILY: &'static str = "knowledge distillation";
    const PAPER: &'static str = "Balan, Rathod, Murphy, Welling, NIPS 2015, arXiv:1506.04416";
    const EXAMPLE: &'static str = "epsilon = 1e-5\nthinning = 2\ntrain = { epochs = 10 }";
}

impl Pass for BayesianDarkKnowledge {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        self.check()?;
        net.finite()?;
        let student = Student::or(self.student.as_ref(), net.deep_clone(), cx.seed, &cx.device)?;
        let chain = Langevin::new(self.epsilon, self.prior, cx.data.train.len());
        let mut noise = chain.noise();
        let extras = Extras { projections: vec![&mut noise], ..Extras::default() };
        let teacher = fit(net, &chain.burn_in(self.burn_in, &self.train), extras, cx).map_err(|error| self.or_diverged(error))?;
        let mut posterior = Posterior::new(teacher, chain, self.thinning);
        let noisy = Noisy(self.noise);
        let extras = Extras { objectives: vec![&mut posterior], forward: Some(&noisy), ..Extras::default() };
        fit(student, &self.train, extras, cx).map_err(|error| self.or_diverged(error))
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.check()?;
        let device = net.device();
        Student::or(self.student.as_ref(), net, 0, &device)
    }

    fn replaces(&self) -> bool {
        self.student.is_some()
    }

    fn shorten(&mut self) {
        self.burn_in = self.burn_in.min(1);
    }
}

impl BayesianDarkKnowledge {
    fn check(&self) -> Result<()> {
        self.train.check()?;
        let within = |value: f64| value.is_finite() && value >= 0.0;
        let rules = [
            (within(self.epsilon) && self.epsilon > 0.0, "`epsilon` is above 0"),
            (within(self.prior) && within(self.noise), "`prior` and `noise` are 0 or above"),
            (self.thinning > 0, "`thinning` is at least 1"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Error::Invalid(format!("bayesian-dark-knowledge: {rule}"))),
            None => Ok(()),
        }
    }

    /// A chain that leaves all bounds takes the student's loss along.
    fn or_diverged(&self, error: Error) -> Error {
        match error {
            diverged @ Error::Diverged { .. } => {
                let detail = format!("where `epsilon` = {} is too long a step for the teacher, lower it", self.epsilon);
                Error::Invalid(format!("bayesian-dark-knowledge: {diverged}; {detail}"))
            }
            other => other,
        }
    }
}

/// The chain of teachers, and the one that teaches.
struct Posterior {
    chain: Langevin,
    teacher: Net,
    sample: Net,
    thinning: usize,
    steps: u64,
}

impl Posterior {
    fn new(teacher: Net, chain: Langevin, thinning: usize) -> Self {
        Self { chain, sample: teacher.valid(), teacher: teacher.train(), thinning, steps: 0 }
    }

    /// Takes the chain a step further, and what it comes to as a sample where it is time for one.
    fn step(&mut self, seen: &Seen<'_>) {
        let loss = cross_entropy(self.teacher.forward(seen.images.clone()), seen.labels, 0.0);
        let gradients = GradientsParams::from_grads(loss.backward(), &self.teacher);
        self.teacher = self.chain.step(self.teacher.clone(), gradients);
        self.steps += 1;
        if self.steps.is_multiple_of(self.thinning as u64) {
            self.sample = self.teacher.valid();
        }
    }
}

/// The node of the input.
const INPUT: usize = 0;

impl Objective for Posterior {
    fn taps(&self, _: &Net) -> Result<Vec<usize>> {
        Ok(vec![INPUT])
    }

    fn task(&self) -> f64 {
        0.0
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        // What the student saw, with its noise.
        let images = seen.taps[0].clone().map().inner();
        let taught = Tensor::from_inner(self.sample.forward(images));
        let term = divergence(taught, seen.logits.clone(), 1.0);
        self.step(seen);
        Ok(term)
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        // In the form that is validated, running statistics are those of all batches so far.
        self.teacher = archive.module(self.teacher.valid())?.train();
        self.sample = archive.module(self.sample.clone())?;
        archive.numbers(std::slice::from_mut(&mut self.steps))
    }
}

/// Adds noise of this deviation to what the student sees.
struct Noisy(f64);

impl Forward for Noisy {
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        let noise = normal_like(&images).mul_scalar(self.0);
        net.tapped(images + noise, taps)
    }
}

/// The mean over all values of what a student loses that predicts `N(m, e^a)` where its teacher predicts `N(t, 1 / b)`: `E[-ln N(y | m, e^a)]` for `y` of
/// the teacher, `(a + e^-a ((m - t)^2 + 1 / b)) / 2` without the constant. `mean` is `m`, `log_variance` `a`, `teacher` `t`, and `precision` `b`.
///
/// # Errors
/// Where shapes differ.
pub fn gaussian<const D: usize>(
    mean: Tensor<D>,
    log_variance: Tensor<D>,
    teacher: Tensor<D>,
    precision: f64,
) -> Result<Tensor<1>> {
    let of = |other: &Tensor<D>| {
        fits(mean.dims() == other.dims(), "bayesian-dark-knowledge", &mean.dims(), &other.dims(), "need one shape")
    };
    of(&teacher)?;
    of(&log_variance)?;
    let off = (mean - teacher).square().add_scalar(1.0 / precision);
    Ok((log_variance.clone() + log_variance.neg().exp() * off).mean().mul_scalar(0.5))
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Memory;
    use briquette_core::training::tune;
    use briquette_core::values::floats;
    use briquette_handmade::{get, images, outputs, refusal, run, set, small};
    use burn::tensor::{Device, activation};
    use serde_json::json;

    use super::*;
    use crate::DISTILLATIONS;
    use crate::golden::{golden, input, near, slopes_agree, tensor};

    const GOLDEN: &str = include_str!("golden/bayesian_dark_knowledge.txt");

    #[test]
    fn gradients_of_both_students_are_golden() {
        let (student, teacher) = (input("student_logits", [4, 5]).require_grad(), input("teacher_logits", [4, 5]));
        let gradients = divergence(teacher, student.clone(), 1.0).backward();
        near(&floats(student.grad(&gradients).unwrap()), &golden(GOLDEN, "classification gradient"), 2e-5);

        let one = |value: f32| tensor(vec![value], [1]).require_grad();
        let (mean, log_variance) = (one(0.4), one(-0.3));
        let loss = gaussian(mean.clone(), log_variance.clone(), one(0.9), 1.25).unwrap();
        near(&floats(loss.clone()), &golden(GOLDEN, "regression value"), 2e-5);
        let gradients = loss.backward();
        near(&floats(mean.grad(&gradients).unwrap()), &golden(GOLDEN, "regression mean gradient"), 2e-5);
        near(&floats(log_variance.grad(&gradients).unwrap()), &golden(GOLDEN, "regression variance gradient"), 2e-5);
        let (at, others) = (input("student_logits", [2, 3]), input("teacher_logits", [2, 3]));
        slopes_agree(&at, |at| {
            gaussian(at.clone(), at.mul_scalar(0.1), others.clone().cast(burn::tensor::DType::F64), 2.0).unwrap()
        });
        let error = gaussian(one(0.0), one(0.0), input("teacher_logits", [2]), 1.0).unwrap_err().to_string();
        assert!(error.contains("[1] and the teacher's [2] need one shape"), "{error}");
    }

    /// A student unlike `small`.
    fn other() -> Net {
        let less: Vec<f32> = get(&small(), "fc2", "weight").iter().map(|weight| -0.4 * weight).collect();
        set(small(), "fc2", "weight", &less)
    }

    /// `other`, trained from a chain that begins at `small`, and the chain's last sample.
    fn taught(settings: &serde_json::Value, epochs: usize, lr: f64) -> [Net; 2] {
        let data = images();
        let mut host = Memory::default();
        let mut cx = Context::new(&Device::flex(), 3, &data, &mut host);
        let train = json!({ "epochs": epochs, "batch": 20, "lr": lr, "choose": "last" });
        let mut settings = settings.clone();
        settings["train"] = train;
        let method: BayesianDarkKnowledge = serde_json::from_value(settings).unwrap();
        let chain = Langevin::new(method.epsilon, method.prior, data.train.len());
        let mut posterior = Posterior::new(small(), chain, method.thinning);
        let noisy = Noisy(method.noise);
        let extras = Extras { objectives: vec![&mut posterior], forward: Some(&noisy), ..Extras::default() };
        let student = fit(other(), &method.train, extras, &mut cx).unwrap();
        [student, posterior.sample]
    }

    #[test]
    fn a_chain_of_which_nothing_but_the_start_teaches_is_a_teacher_with_soft_targets() {
        let [student, _] = taught(&json!({ "noise": 0.0, "thinning": 1000 }), 3, 0.02);
        let data = images();
        let mut host = Memory { before: Some(small()), ..Memory::default() };
        let mut cx = Context::new(&Device::flex(), 3, &data, &mut host);
        cx.distillations = &[DISTILLATIONS];
        let distill = json!({ "method": "soft-targets", "temperature": 1.0, "lambda": 1.0 });
        let recipe = json!({ "epochs": 3, "batch": 20, "lr": 0.02, "choose": "last", "distill": distill });
        let recipe: Recipe = serde_json::from_value(recipe).unwrap();
        let expected = outputs(&tune(other(), Some(&recipe), &mut cx).unwrap());
        near(&outputs(&student), &expected, 1e-4);
        let [moved, _] = taught(&json!({ "noise": 0.0, "thinning": 1, "epsilon": 0.02 }), 3, 0.02).map(|net| outputs(&net));
        assert!(moved.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-2));
    }

    #[test]
    fn a_student_comes_to_what_the_chain_predicts() {
        let probabilities = |net: &Net| {
            let logits = outputs(net);
            floats(activation::softmax(tensor::<2>(logits, [40, 3]), 1))
        };
        // So short steps leave the teacher about where it is, but for its running statistics.
        let [student, teacher] = taught(&json!({ "epsilon": 1e-7, "noise": 0.02 }), 150, 5e-3);
        let off = |net: &Net| {
            let pairs = probabilities(net).into_iter().zip(probabilities(&teacher));
            pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / 120.0
        };
        assert!(off(&student) < 0.4 * off(&other()), "{} {}", off(&student), off(&other()));
    }

    #[test]
    fn what_cannot_be_a_chain_is_refused_and_one_that_leaves_all_bounds_named() {
        let refused = |settings| refusal::<BayesianDarkKnowledge>(small(), settings);
        assert_eq!(refused(json!({ "epsilon": 0.0 })), "bayesian-dark-knowledge: `epsilon` is above 0");
        assert_eq!(refused(json!({ "prior": -1.0 })), "bayesian-dark-knowledge: `prior` and `noise` are 0 or above");
        assert_eq!(refused(json!({ "thinning": 0 })), "bayesian-dark-knowledge: `thinning` is at least 1");
        for burn_in in [0, 4] {
            let settings = json!({ "epsilon": 1e12, "burn-in": burn_in, "train": { "epochs": 4, "batch": 4 } });
            let error = run::<BayesianDarkKnowledge>(small(), settings).unwrap_err().to_string();
            assert!(error.contains("`epsilon` = 1000000000000 is too long a step for the teacher"), "{error}");
        }
    }
}
