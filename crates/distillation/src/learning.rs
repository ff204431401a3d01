//! A loss against a teacher as a pass of its own.

use std::fmt;
use std::marker::PhantomData;

use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::teaching::Taught;
use briquette_core::training::{Distill, Recipe, tune};
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, Value};

use crate::student::Student;

/// The training of a network, or of a `student` in its place, by the loss `T` against a teacher: the network at hand unless `teacher` names another.
/// What `train` itself has under `distill` comes beside it.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub struct Learning<T: Taught> {
    student: Option<Student>,
    recipe: Recipe,
    loss: PhantomData<fn() -> T>,
}

#[derive(Deserialize)]
struct Written {
    student: Option<Student>,
    #[serde(default)]
    train: Recipe,
    /// Everything else is what `distill` of a recipe has.
    #[serde(flatten)]
    distill: Map<String, Value>,
}

impl<T: Taught> TryFrom<Written> for Learning<T> {
    type Error = serde_json::Error;

    fn try_from(mut written: Written) -> std::result::Result<Self, serde_json::Error> {
        written.distill.insert("method".into(), T::NAME.into());
        let distill: Distill = serde_json::from_value(written.distill.into())?;
        let read: T = serde_json::from_value(distill.settings.clone().into())?;
        read.check().map_err(serde_json::Error::custom)?;
        written.train.distill.push(distill);
        Ok(Self { student: written.student, recipe: written.train, loss: PhantomData })
    }
}

impl<T: Taught> fmt::Debug for Learning<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(T::NAME).field("student", &self.student).field("recipe", &self.recipe).finish()
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
        let student = match &self.student {
            Some(student) => student.beside(&net, cx.seed, &cx.device)?,
            None => net,
        };
        tune(student, Some(&self.recipe), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.student.as_ref().map_or(Ok(net.clone()), |student| student.beside(&net, 0, &net.device()))
    }

    fn replaces(&self) -> bool {
        self.student.is_some()
    }

    fn learns_from_before(&self) -> bool {
        self.recipe.distill.iter().any(Distill::before_pass)
    }

    fn shorten(&mut self) {
        self.recipe.shrink();
    }
}
