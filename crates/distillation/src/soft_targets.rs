//! The teacher's probabilities, softened, as targets.
//!
//! Of logits `v` of the teacher and `z` of the student, with the temperature `T`, a step minimizes
//! `(1 - lambda) H(y, softmax(z)) + lambda T^2 sum_k p_k log(p_k / q_k)` with `p = softmax(v / T)` and `q = softmax(z / T)`, the mean over the batch: the
//! factor `T^2` keeps the gradient of the second term, `lambda T (q - p)`, as large whatever the temperature. The teacher sees the images as they were
//! augmented for the student. A `lambda` that falls, `{ from = 4.0, to = 1.0, start = 5, saturate = 40 }` as FitNets have it
//! ([`decay`]), is no share: the task's loss has the factor 1 beside it, unless `task` says otherwise.
//!
//! ```
//! use briquette_core::training::Recipe;
//! use briquette_distillation::DISTILLATIONS;
//!
//! let tune = r#"{ "epochs": 4, "distill": { "method": "soft-targets", "temperature": 4.0 } }"#;
//! let recipe: Recipe = serde_json::from_str(tune).unwrap();
//! assert!(recipe.distill[0].distiller(&[DISTILLATIONS]).is_ok());
//! ```
//!
//! Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network". NIPS 2014 Deep Learning Workshop. arXiv:1503.02531.
//! Differs from the paper: the relative entropy takes the place of the cross-entropy, from which it differs by what no weight changes.

use briquette_core::error::{Error, Result};
use briquette_core::objective::Seen;
use briquette_core::teaching::{Distiller, Lesson, Pair, Shown, Taught};
use briquette_core::types::Ratio;
use burn::tensor::{Tensor, activation};
use serde::Deserialize;

use crate::ensemble::as_one;
use crate::fitnets::decay;
use crate::taps::weighable;

/// Softened probabilities of a teacher as targets.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SoftTargets {
    /// `T`, at least 1.
    #[serde(default = "four")]
    pub temperature: f64,
    /// How much of the loss is the teacher's.
    #[serde(default = "most")]
    pub lambda: Lambda,
}

/// The weight of the teacher's loss.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(untagged, expecting = "`lambda` is a share in [0, 1], or a table with `from`, `to`, `start` and `saturate`")]
pub enum Lambda {
    /// The same in all epochs; what it leaves of 1 is the task's.
    Share(Ratio),
    /// Falling, or rising, beside the whole loss of the task.
    Scheduled(Scheduled),
}

/// A weight that changes in equal steps of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scheduled {
    /// The weight before epoch `start`, epochs counted from 0.
    pub from: f64,
    /// The weight from epoch `saturate` on.
    pub to: f64,
    /// The first epoch with another weight.
    #[serde(default)]
    pub start: usize,
    /// The first epoch with the last weight.
    pub saturate: usize,
}

impl Scheduled {
    fn at(self, epoch: f64) -> Result<f64> {
        decay(epoch as usize, [self.from, self.to], [self.start, self.saturate])
    }
}

impl Taught for SoftTargets {
    const NAME: &'static str = "soft-targets";
    const PAPER: &'static str = "Hinton, Vinyals, Dean, NIPS 2014 workshop, arXiv:1503.02531";
    const EXAMPLE: &'static str = "temperature = 4.0\nlambda = 0.9\ntrain = { epochs = 10 }";
}

impl Distiller for SoftTargets {
    fn lesson(&self, _: &Pair<'_>) -> Result<Box<dyn Lesson>> {
        Ok(Box::new(*self))
    }

    fn weight(&self) -> f64 {
        match self.lambda {
            Lambda::Share(share) => share.get(),
            Lambda::Scheduled(_) => 1.0,
        }
    }

    fn task(&self) -> f64 {
        match self.lambda {
            Lambda::Share(share) => 1.0 - share.get(),
            Lambda::Scheduled(_) => 1.0,
        }
    }

    fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 1.0) {
            return Err(Error::Invalid(format!("soft-targets: a temperature is at least 1, not {}", self.temperature)));
        }
        match self.lambda {
            Lambda::Share(_) => Ok(()),
            Lambda::Scheduled(scheduled) => {
                weighable(Self::NAME, &[("from", scheduled.from), ("to", scheduled.to)])?;
                scheduled.at(0.0).map(drop)
            }
        }
    }
}

impl Lesson for SoftTargets {
    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        let teacher = as_one(shown, self.temperature)?;
        let weight = match self.lambda {
            Lambda::Share(_) => 1.0,
            Lambda::Scheduled(scheduled) => scheduled.at(seen.epoch)?,
        };
        let divergence = divergence(teacher, seen.logits.clone(), self.temperature);
        Ok(divergence.mul_scalar(weight * self.temperature * self.temperature))
    }
}

/// Mean over the rows of `sum_k p_k log(p_k / q_k)`, `p` and `q` the soft-max of the teacher's and of the student's logits `[batch, classes]` over
/// the temperature.
pub fn divergence(teacher: Tensor<2>, student: Tensor<2>, temperature: f64) -> Tensor<1> {
    let [rows, _] = student.dims();
    let [p, q] = [teacher, student].map(|logits| activation::log_softmax(logits.div_scalar(temperature), 1));
    (p.clone().exp() * (p - q)).sum().div_scalar(rows as f64)
}

fn four() -> f64 {
    4.0
}

fn most() -> Lambda {
    Lambda::Share(Ratio::try_from(0.9).expect("a share"))
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::context::{Context, Memory};
    use briquette_core::net::Net;
    use briquette_core::training::{Recipe, tune};
    use briquette_handmade::{images, outputs, small};
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::DISTILLATIONS;

    #[test]
    fn the_gradient_is_that_of_finite_differences_and_as_large_at_any_temperature() {
        let device = Device::flex().autodiff();
        let logits = |values: Vec<f32>| Tensor::<2>::from_data(TensorData::new(values, [2, 3]), &device);
        let (v, z) = (vec![1.0, -2.0, 0.5, 3.0, 0.0, -1.0], vec![0.2, 0.4, -0.3, 1.0, -1.5, 0.1]);
        let mut sizes = Vec::new();
        for temperature in [1.0, 4.0, 20.0] {
            let loss = |z: Vec<f32>| divergence(logits(v.clone()), logits(z), temperature).mul_scalar(temperature * temperature);
            let student = logits(z.clone()).require_grad();
            let term = divergence(logits(v.clone()), student.clone(), temperature).mul_scalar(temperature * temperature);
            let gradient = floats(student.grad(&term.backward()).unwrap());
            for (i, found) in gradient.iter().enumerate() {
                let at = |by: f32| {
                    let mut moved = z.clone();
                    moved[i] += by;
                    f64::from(floats(loss(moved).inner())[0])
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((slope - f64::from(*found)).abs() < 5e-3, "{temperature} {i}: {found}, {slope}");
            }
            sizes.push(gradient.iter().map(|g| g * g).sum::<f32>().sqrt());
        }
        assert!(sizes.iter().all(|size| (0.3..3.0).contains(&(size / sizes[0]))), "{sizes:?}");
        let same = divergence(logits(v.clone()), logits(v), 2.0);
        assert!(floats(same.inner())[0].abs() < 1e-6);
    }

    #[test]
    fn a_student_comes_nearer_to_the_network_from_before_the_pass_or_to_another() {
        let teacher = small();
        let student = || {
            let parameters = |node: &briquette_core::net::Node| {
                let mut parameters = node.parameters();
                parameters.iter_mut().filter(|p| p.name == "weight").for_each(|p| p.base.iter_mut().for_each(|w| *w *= 0.3));
                node.clone().with(parameters, &Device::flex()).unwrap()
            };
            Net { nodes: teacher.nodes.iter().map(parameters).collect() }
        };
        let off = |net: &Net| outputs(net).iter().zip(outputs(&teacher)).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let settings = serde_json::json!({ "method": "soft-targets", "temperature": 2.0, "lambda": 1.0 });
        let taught = |distill: serde_json::Value, host: &mut Memory| {
            let recipe: Recipe = serde_json::from_value(
                serde_json::json!({ "epochs": 80, "batch": 20, "lr": 0.02, "choose": "last", "distill": distill }),
            )
            .unwrap();
            let data = images();
            let mut cx = Context::new(&Device::flex(), 3, &data, host);
            cx.distillations = &[DISTILLATIONS];
            tune(student(), Some(&recipe), &mut cx)
        };
        let mut host = Memory { before: Some(teacher.deep_clone()), ..Memory::default() };
        let near = taught(settings.clone(), &mut host).unwrap();
        assert!(off(&near) < 0.2 * off(&student()), "{} {}", off(&near), off(&student()));
        // The teacher is a copy: it has not learned.
        assert_eq!(outputs(host.before.as_ref().unwrap()), outputs(&teacher));
        // From a file, at the same precision, the same student comes out.
        let file = teacher.to_model(briquette_core::stored::Storage::default()).unwrap().to_bytes().unwrap();
        let mut files = Memory { files: [("teacher.brq".to_string(), file)].into(), ..Memory::default() };
        let mut named = settings.clone();
        named["teacher"] = "teacher.brq".into();
        assert_eq!(outputs(&taught(named, &mut files).unwrap()), outputs(&near));
        // Without either there is nobody to learn from.
        let nobody = taught(settings, &mut Memory::default()).unwrap_err().to_string();
        assert_eq!(nobody, "the network from before the pass is not kept here; name the `teacher` of `distill`");
    }

    /// The network after two epochs of a recipe with this `distill`, learning from itself as it was.
    fn after(distill: &serde_json::Value, host: &mut Memory) -> Vec<f32> {
        let mut recipe =
            serde_json::json!({ "epochs": 2, "batch": 20, "lr": 0.02, "choose": "last", "augment": { "flip": true } });
        recipe["distill"] = distill.clone();
        let (recipe, data): (Recipe, _) = (serde_json::from_value(recipe).unwrap(), images());
        host.before = Some(small());
        let mut cx = Context::new(&Device::flex(), 3, &data, host);
        cx.distillations = &[DISTILLATIONS];
        outputs(&tune(small(), Some(&recipe), &mut cx).unwrap())
    }

    #[test]
    fn what_weighs_nothing_is_plain_training_and_asks_no_teacher() {
        let plain = after(&serde_json::json!([]), &mut Memory::default());
        let nobody = serde_json::json!({ "method": "soft-targets", "lambda": 0.0, "teacher": "nowhere.brq" });
        assert_eq!(after(&nobody, &mut Memory::default()), plain);
    }

    #[test]
    fn a_weight_falls_with_the_epochs_beside_the_whole_loss_of_the_task() {
        let falling =
            serde_json::json!({ "temperature": 2.0, "lambda": { "from": 4.0, "to": 1.0, "start": 5, "saturate": 400 } });
        let mut falling: SoftTargets = serde_json::from_value(falling).unwrap();
        falling.check().unwrap();
        assert_eq!((falling.weight(), falling.task()), (1.0, 1.0));
        let device = Device::flex().autodiff();
        let [student, teacher] = [[[0.2, 0.4, -0.3]], [[1.0, -2.0, 0.5]]].map(|logits| Tensor::<2>::from_floats(logits, &device));
        let (net, images) = (small(), Tensor::zeros([1, 1, 4, 4], &device));
        let mut term = |epoch: f64| {
            let seen =
                Seen { net: &net, images: &images, labels: &[0], ids: &[0], logits: &student, taps: &[], epoch, draw: None };
            let logits = [teacher.clone()];
            let shown = Shown { logits: &logits, mean: Default::default(), taps: &[] };
            floats(falling.term(&seen, &shown).unwrap().inner())[0]
        };
        let whole = floats(divergence(teacher.clone(), student.clone(), 2.0).inner())[0] * 4.0;
        for (epoch, weight) in [(0.0, 4.0), (4.9, 4.0), (5.5, 3.992_424), (100.0, 3.272_727), (399.2, 1.007_576), (500.0, 1.0)] {
            assert!((term(epoch) / whole - weight).abs() < 1e-4, "{epoch}: {} of {whole}", term(epoch));
        }
        // A training in which nothing falls is that of the weight it has, the task's loss whole.
        let (still, whole) = (serde_json::json!({ "from": 0.5, "to": 0.5, "saturate": 1 }), serde_json::json!(0.5));
        let distill = |lambda| serde_json::json!({ "method": "soft-targets", "lambda": lambda, "task": 1.0 });
        assert_eq!(after(&distill(still), &mut Memory::default()), after(&distill(whole), &mut Memory::default()));
    }

    #[test]
    fn several_losses_and_several_teachers_that_are_one_add_up_to_the_same() {
        let one = |lambda: f64| serde_json::json!({ "method": "soft-targets", "lambda": lambda, "temperature": 2.0 });
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        let whole = after(&one(1.0), &mut Memory::default());
        let mut host = Memory::default();
        let file = small().to_model(briquette_core::stored::Storage::default()).unwrap().to_bytes().unwrap();
        host.files.insert("twin.brq".into(), file);
        for mean in ["arithmetic", "geometric"] {
            let mut both = one(1.0);
            (both["teacher"], both["mean"]) = (serde_json::json!(["before-pass", "twin.brq"]), mean.into());
            assert!(near(&after(&both, &mut host), &whole), "{mean}");
        }
        // The shares of the task multiply: half of it, and half as much again.
        let halves = after(&serde_json::json!([one(0.5), one(0.5)]), &mut Memory::default());
        assert!(!near(&halves, &whole) && halves.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn answers_that_are_kept_teach_as_those_that_are_asked_for() {
        let mut host = Memory::default();
        let cached = serde_json::json!({ "method": "soft-targets", "cache": { "draws": 2 } });
        let asked = after(&cached, &mut host);
        assert_eq!(host.kept.len(), 1);
        host.states.clear();
        assert_eq!(after(&cached, &mut host), asked);
    }

    #[test]
    fn names_and_settings_that_do_not_read_are_refused() {
        let refusal = |distill: serde_json::Value| {
            let distill: briquette_core::training::Distill = serde_json::from_value(distill).unwrap();
            distill.distiller(&[DISTILLATIONS]).map(drop).unwrap_err().to_string()
        };
        let unknown = refusal(serde_json::json!({ "method": "soft-target" }));
        assert_eq!(unknown, "unknown distillation 'soft-target'; did you mean 'soft-targets'?");
        let key = refusal(serde_json::json!({ "method": "soft-targets", "temprature": 2 }));
        assert!(key.starts_with("distill (soft-targets): unknown field `temprature`"), "{key}");
        let backwards = serde_json::json!({ "from": 4.0, "to": 1.0, "start": 5, "saturate": 4 });
        let backwards = refusal(serde_json::json!({ "method": "soft-targets", "lambda": backwards }));
        assert!(backwards.ends_with("a weight that falls from epoch 5 on cannot have fallen by epoch 4"), "{backwards}");
        let table = refusal(serde_json::json!({ "method": "soft-targets", "lambda": { "from": 4.0 } }));
        assert!(table.contains("`lambda` is a share in [0, 1], or a table with `from`, `to`, `start` and `saturate`"), "{table}");
        let cold = refusal(serde_json::json!({ "method": "soft-targets", "temperature": 0.5 }));
        assert_eq!(cold, "distill (soft-targets): soft-targets: a temperature is at least 1, not 0.5");
    }
}
