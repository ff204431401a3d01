//! What a recipe says of a teacher.

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::net::Net;
use crate::objective::{Distillation, Distiller, Objective};

/// What a recipe says of a teacher: the objective by name, its settings, and whose network it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Distill {
    /// Name of the objective.
    pub method: String,
    /// The container of the teacher; without one the teacher is the network as it was before the pass. A config in which nothing has trained that is
    /// refused: its logits are those of drawn weights.
    #[serde(default)]
    pub teacher: Option<String>,
    /// The objective's own settings.
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

impl Distill {
    /// The objective's settings, read.
    ///
    /// # Errors
    /// An unknown name, with the nearest ones, and settings that do not read.
    pub fn distiller(&self, known: &[&'static [Distillation]]) -> Result<Box<dyn Distiller>> {
        let all = || known.iter().copied().flatten();
        let found = all().find(|one| one.name == self.method);
        let found = found.ok_or_else(|| Error::unknown("distillation", &self.method, all().map(|one| one.name)))?;
        (found.parse)(self.settings.clone().into()).map_err(|error| Error::Invalid(format!("distill ({}): {error}", self.method)))
    }

    /// The objective of a training of `student`.
    pub(super) fn objective(&self, student: &Net, cx: &mut Context<'_>) -> Result<Box<dyn Objective>> {
        let distiller = self.distiller(cx.distillations)?;
        let teacher = match &self.teacher {
            None => cx.host.before(&cx.device)?,
            Some(file) => cx.load(file)?,
        };
        distiller.objective(teacher.valid(), student)
    }
}
