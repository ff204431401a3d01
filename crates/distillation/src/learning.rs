//! A loss against a teacher as a pass of its own.

use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::teaching::Taught;
use briquette_core::training::{Choose, Distill, Recipe, tune};
use briquette_core::types::Ratio;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::fmt;

use crate::soft_targets::SoftTargets;
use crate::student::Student;

/// The training of a network, or of a `student` in its place, by the loss `T` against a teacher: the network at hand unless `teacher` names another.
/// What `train` itself has under `distill` comes beside it. With `alone` there are two trainings, as FitNets have: the first by the loss alone, without the
/// task's, and the second, `train`, by what it has under `distill`, or by soft targets.
pub struct Learning<T> {
    student: Option<Student>,
    trainings: Vec<Recipe>,
    loss: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Written {
    student: Option<Student>,
    alone: Option<Alone>,
    train: Recipe,
    /// Everything else is what `distill` of a recipe has.
    #[serde(flatten)]
    distill: Map<String, Value>,
}

/// A training before, by the loss alone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Alone {
    train: Recipe,
}

impl<'de, T: Taught> Deserialize<'de> for Learning<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::read(Written::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<T: Taught> Learning<T> {
    fn read(mut written: Written) -> std::result::Result<Self, serde_json::Error> {
        written.distill.insert("method".into(), T::NAME.into());
        let distill: Distill = serde_json::from_value(std::mem::take(&mut written.distill).into())?;
        let loss: T = serde_json::from_value(distill.settings.clone().into())?;
        loss.check().map_err(serde_json::Error::custom)?;
        let Written { student, alone, mut train, .. } = written;
        let trainings = match alone {
            None => {
                train.distill.push(distill);
                vec![train]
            }
            Some(Alone { train: mut first }) => {
                if train.distill.is_empty() {
                    let (method, settings) = (SoftTargets::NAME.into(), Map::new());
                    train.distill.push(Distill { method, settings, task: None, ..distill.clone() });
                }
                // What is behind the hint has learned nothing yet, and no accuracy tells the epochs apart.
                first.choose = Choose::Last;
                first.distill.push(Distill { task: Some(Ratio::default()), ..distill });
                vec![first, train]
            }
        };
        Ok(Self { student, trainings, loss })
    }
}

impl<T: Taught> fmt::Debug for Learning<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(T::NAME).field("student", &self.student).field("trainings", &self.trainings).finish()
    }
}

impl<T: Taught> Method for Learning<T> {
    const NAME: &'static str = T::NAME;
    const FAMILY: &'static str = "knowledge distillation";
    const PAPER: &'static str = T::PAPER;
    const EXAMPLE: &'static str = T::EXAMPLE;
}

impl<T: Taught> Pass for Learning<T> {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let student = Student::or(self.student.as_ref(), net, cx.seed, &cx.device)?;
        self.trainings.iter().try_fold(student, |net, recipe| tune(net, Some(recipe), cx))
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.trainings.iter().try_for_each(Recipe::check)?;
        let student = Student::or(self.student.as_ref(), net.clone(), 0, &net.device())?;
        if self.learns_from_before() {
            self.loss.fits(&net, &student)?;
        }
        Ok(student)
    }

    fn replaces(&self) -> bool {
        self.student.is_some()
    }

    fn learns_from_before(&self) -> bool {
        self.loss.weight() > 0.0 && self.trainings.iter().flat_map(|recipe| &recipe.distill).any(Distill::before_pass)
    }

    fn shorten(&mut self) {
        self.trainings.iter_mut().for_each(Recipe::shrink);
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Memory;
    use briquette_core::stored::Storage;
    use briquette_core::zoo::Arch;
    use briquette_handmade::{images, small};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::DISTILLATIONS;

    fn read(mut settings: serde_json::Value) -> std::result::Result<Learning<SoftTargets>, serde_json::Error> {
        if settings.get("train").is_none() {
            settings["train"] = json!({});
        }
        serde_json::from_value(settings)
    }

    #[test]
    fn a_student_takes_the_place_of_its_teacher() {
        let arch = Arch::named("lenet300").unwrap();
        let teacher = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let method = read(json!({ "student": { "arch": "lenet300", "width": 0.1 } })).unwrap();
        let student = method.plan(teacher.deep_clone()).unwrap();
        assert_eq!(student.nodes[student.index("fc1").unwrap()].op.weight_shape().unwrap(), [30, 784]);
        assert!(method.replaces() && method.learns_from_before());
        let named = read(json!({ "teacher": "teacher.brq" })).unwrap();
        assert!(!named.replaces() && !named.learns_from_before());
        assert!(!read(json!({ "lambda": 0.0 })).unwrap().learns_from_before());
    }

    #[test]
    fn losses_of_the_recipe_come_beside_that_of_the_pass() {
        let data = images();
        let mut host = Memory { before: Some(small()), ..Memory::default() };
        host.files.insert("twin.brq".into(), small().to_model(Storage::default()).unwrap().to_bytes().unwrap());
        let mut cx = Context::new(&Device::flex(), 3, &data, &mut host);
        cx.distillations = &[DISTILLATIONS];
        let logits = json!({ "method": "logits", "lambda": 0.5, "teacher": "twin.brq" });
        let method = read(json!({ "lambda": 0.5, "train": { "epochs": 1, "batch": 20, "distill": logits } })).unwrap();
        assert_eq!(method.trainings[0].distill.len(), 2);
        method.run(small(), &mut cx).unwrap();
    }

    #[test]
    fn hints_come_first_and_alone() {
        let method: Learning<crate::fitnets::Fitnets> = serde_json::from_value(json!({
            "taps": ["relu1"], "alone": { "train": { "epochs": 1 } }, "train": { "epochs": 2 } }))
        .unwrap();
        let told =
            method.trainings.iter().map(|recipe| (recipe.epochs, recipe.distill[0].method.as_str(), recipe.distill[0].task));
        let none = Ratio::try_from(0.0).ok();
        assert_eq!(told.collect::<Vec<_>>(), [(1, "fitnets", none), (2, "soft-targets", None)]);
        assert_eq!(method.trainings[0].choose, Choose::Last);
    }

    #[test]
    fn what_does_not_read_is_refused_where_it_stands() {
        let refused = |settings| read(settings).map(drop).unwrap_err().to_string();
        assert!(refused(json!({ "temprature": 2 })).contains("unknown field `temprature`"));
        assert!(refused(json!({ "temperature": 0.1 })).contains("a temperature is at least 1, not 0.1"));
        assert!(refused(json!({ "student": 3 })).contains("a student is the name of an architecture"));
        assert!(refused(json!({ "teacher": 3 })).contains("a teacher is the name of a container"));
        let unknown = read(json!({ "student": "resnet21" })).unwrap().plan(small()).unwrap_err().to_string();
        assert!(unknown.contains("unknown model 'resnet21'; did you mean"), "{unknown}");
    }
}
