//! What is minimized beside the task's own loss.

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use serde::{Deserialize, Serialize};

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::net::{Net, Value};
use crate::pass::Context;

/// A step of a training, in the eyes of an objective: all that its one forward pass met.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The network in training.
    pub net: &'a Net,
    /// `[batch, channels, height, width]`.
    pub images: &'a Tensor<4>,
    /// `[batch]`.
    pub labels: &'a [u16],
    /// Which of the training images they are, `[batch]`: the same image has the same number in every epoch.
    pub ids: &'a [u32],
    /// `[batch, classes]`.
    pub logits: &'a Tensor<2>,
    /// The outputs of the nodes that [`Objective::taps`] names, in its order, with their place in the graph of gradients.
    pub taps: &'a [Value],
}

/// A term of the loss.
pub trait Objective {
    /// Nodes whose outputs the term looks at, by index.
    ///
    /// # Errors
    /// When the network has no such nodes.
    fn taps(&self, _net: &Net) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }

    /// Factor of the task's own loss. Those of several objectives are multiplied.
    fn task(&self) -> f64 {
        1.0
    }

    /// The term for this step; a scalar that carries gradients.
    ///
    /// # Errors
    /// When what it sees has no such term.
    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>>;

    /// Trains the tensors that the term has of its own, if any, by the gradients of the whole loss; `lr` is the network's rate.
    fn learn(&mut self, _gradients: &Gradients, _lr: f64) {}

    /// Keeps in the training's state what outlives a step, the tensors of its own among it.
    ///
    /// # Errors
    /// Those of the archive.
    fn keep(&mut self, _archive: &mut Archive<'_>) -> Result<()> {
        Ok(())
    }
}

/// Outputs that are wanted of a forward pass, and that it has met.
#[derive(Debug, Default)]
pub struct Taps {
    wanted: Vec<usize>,
    met: Vec<Option<Value>>,
}

impl Taps {
    /// The outputs of these nodes, of which one may be wanted twice.
    pub fn of(wanted: Vec<usize>) -> Self {
        Self { met: vec![None; wanted.len()], wanted }
    }

    /// Whether none is wanted.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Takes the output of a node, if it is wanted.
    pub fn meet(&mut self, node: usize, output: &Value) {
        let places = self.wanted.iter().zip(&mut self.met).filter(|(wanted, _)| **wanted == node);
        places.for_each(|(_, met)| *met = Some(output.clone()));
    }

    /// What was met, in the order of what was wanted.
    fn values(self) -> Result<Vec<Value>> {
        let missed =
            |node: usize| Error::Invalid(format!("node {node} is looked at by the loss, and the forward pass has no such node"));
        self.wanted.into_iter().zip(self.met).map(|(node, met)| met.ok_or_else(|| missed(node))).collect()
    }
}

impl Net {
    /// [`Net::forward`], with the outputs that `taps` wants.
    pub fn tapped(&self, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        if taps.is_empty() {
            return self.forward(images);
        }
        let logits = self.trace(images, |node, output| {
            taps.meet(node, &output);
            output
        });
        logits.vector()
    }
}

/// What the objectives of a training look at, and what they leave of the task's own loss.
#[derive(Debug)]
pub(super) struct Watched {
    /// Of each, the nodes.
    taps: Vec<Vec<usize>>,
    task: f64,
}

impl Watched {
    pub(super) fn by(objectives: &[&mut dyn Objective], net: &Net) -> Result<Self> {
        let taps: Vec<Vec<usize>> = objectives.iter().map(|objective| objective.taps(net)).collect::<Result<_>>()?;
        if let Some(beyond) = taps.iter().flatten().find(|node| **node >= net.nodes.len()) {
            return Err(Error::Invalid(format!(
                "node {beyond} is looked at by the loss, and the network has {}",
                net.nodes.len()
            )));
        }
        let task = objectives.iter().map(|objective| objective.task()).product();
        Ok(Self { taps, task })
    }

    /// What the next forward pass has to meet.
    pub(super) fn taps(&self) -> Taps {
        Taps::of(self.taps.concat())
    }

    /// The whole loss, of the task's own.
    pub(super) fn loss(
        &self,
        objectives: &mut [&mut dyn Objective],
        task: Tensor<1>,
        met: Taps,
        seen: Seen<'_>,
    ) -> Result<Tensor<1>> {
        let values = met.values()?;
        let mut values = &values[..];
        // Exactly 1 leaves the graph as it was.
        let mut loss = if self.task.to_bits() == 1.0_f64.to_bits() { task } else { task.mul_scalar(self.task) };
        for (objective, taps) in objectives.iter_mut().zip(&self.taps) {
            let own = values.split_off(..taps.len()).unwrap_or_default();
            loss = loss + objective.term(&Seen { taps: own, ..seen })?;
        }
        Ok(loss)
    }
}

/// An objective that a recipe names: it holds the network in training against a teacher.
pub trait Distiller: std::fmt::Debug {
    /// The objective. The teacher is in evaluation form, on the student's device, and carries no gradients.
    ///
    /// # Errors
    /// When the two do not go together.
    fn objective(&self, teacher: Net, student: &Net) -> Result<Box<dyn Objective>>;
}

/// A [`Distiller`] in a crate's list.
#[derive(Debug, Clone, Copy)]
pub struct Distillation {
    /// Name in a config.
    pub name: &'static str,
    /// Authors, venue and year.
    pub paper: &'static str,
    /// Settings that run, as TOML without the line `method`.
    pub example: &'static str,
    /// Reads the settings.
    pub parse: fn(serde_json::Value) -> std::result::Result<Box<dyn Distiller>, serde_json::Error>,
}

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
        let distiller = self.distiller(cx.catalogue.distillations())?;
        let teacher = match &self.teacher {
            None => cx.host.before(&cx.device)?,
            Some(file) => cx.load(file)?,
        };
        distiller.objective(teacher.valid(), student)
    }
}
