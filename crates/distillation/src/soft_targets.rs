//! The teacher's probabilities, softened, as targets.
//!
//! Of logits `v` of the teacher and `z` of the student, with the temperature `T` and the weight `w`, a step minimizes
//! `(1 - w) H(y, softmax(z)) + w T^2 sum_k p_k log(p_k / q_k)` with `p = softmax(v / T)` and `q = softmax(z / T)`, the mean over the batch: the
//! factor `T^2` keeps the gradient of the second term, `w T (q - p)`, as large whatever the temperature. The teacher sees the images as they were
//! augmented for the student.
//!
//! ```
//! use briquette_core::training::Recipe;
//! use briquette_distillation::DISTILLATIONS;
//!
//! let tune = r#"{ "epochs": 4, "distill": { "method": "soft-targets", "temperature": 4.0 } }"#;
//! let recipe: Recipe = serde_json::from_str(tune).unwrap();
//! assert!(recipe.distill.unwrap().distiller(&[DISTILLATIONS]).is_ok());
//! ```
//!
//! Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network". NIPS 2014 Deep Learning Workshop. arXiv:1503.02531.
//! Differs from the paper: the relative entropy takes the place of the cross-entropy, from which it differs by what no weight changes.

use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::objective::{Distillation, Distiller, Objective, Seen};
use briquette_core::task::Task;
use briquette_core::types::Ratio;
use burn::tensor::{Tensor, activation};
use serde::Deserialize;

/// Softened probabilities of a teacher as targets.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SoftTargets {
    /// `T`, at least 1.
    #[serde(default = "four")]
    pub temperature: f64,
    /// `w`: share of the loss that is the teacher's.
    #[serde(default = "most")]
    pub weight: Ratio,
}

/// The entry of [`SoftTargets`].
pub const ENTRY: Distillation = Distillation {
    name: "soft-targets",
    paper: "Hinton, Vinyals, Dean, NIPS 2014 workshop, arXiv:1503.02531",
    example: "temperature = 4.0\nweight = 0.9",
    parse: |settings| Ok(Box::new(serde_json::from_value::<SoftTargets>(settings)?)),
};

impl Distiller for SoftTargets {
    fn objective(&self, teacher: Net, student: &Net) -> Result<Box<dyn Objective>> {
        if !(self.temperature.is_finite() && self.temperature >= 1.0) {
            return Err(Error::Invalid(format!("soft-targets: a temperature is at least 1, not {}", self.temperature)));
        }
        let (of_teacher, of_student) = (Task::of(&teacher)?, Task::of(student)?);
        if of_teacher != of_student {
            let told = |task: &Task| format!("images of shape {:?} and {} classes", task.shape, task.classes);
            let detail = format!("the teacher is for {}, the student for {}", told(&of_teacher), told(&of_student));
            return Err(Error::Invalid(format!("soft-targets: {detail}")));
        }
        Ok(Box::new(Taught { teacher, settings: *self }))
    }
}

struct Taught {
    teacher: Net,
    settings: SoftTargets,
}

impl Objective for Taught {
    fn task(&self) -> f64 {
        1.0 - self.settings.weight.get()
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        let SoftTargets { temperature, weight } = self.settings;
        let teacher = Tensor::from_inner(self.teacher.forward(seen.images.clone().inner()));
        Ok(divergence(teacher, seen.logits.clone(), temperature).mul_scalar(weight.get() * temperature * temperature))
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

fn most() -> Ratio {
    Ratio::try_from(0.9).expect("a share")
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::context::{Context, Memory};
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
        let settings = serde_json::json!({ "method": "soft-targets", "temperature": 2.0, "weight": 1.0 });
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
        let cold = SoftTargets { temperature: 0.5, weight: most() };
        let error = cold.objective(small(), &small()).map(drop).unwrap_err().to_string();
        assert_eq!(error, "soft-targets: a temperature is at least 1, not 0.5");
    }
}
