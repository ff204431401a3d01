//! Learning from networks that do not learn any more.
//!
//! A [`Distiller`] is the settings of a loss, a [`Lesson`] the loss of one training, and a teacher one network or several. What a recipe's `distill`
//! names becomes one objective for each teacher, which sees every image once, for however many lessons there are.

use std::fmt::Debug;

use briquette_data::Dataset;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Gradients, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::net::{Net, Value};
use crate::objective::Seen;
use crate::training::Descent;

/// How the probabilities of several teachers become those of one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mean {
    /// Their mean.
    #[default]
    Arithmetic,
    /// Their geometric mean, normalized: that of the mean logits.
    Geometric,
}

/// What the teachers make of a batch; nothing of it carries gradients.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The logits of each teacher, `[batch, classes]`.
    pub logits: &'a [Tensor<2>],
    /// How they are one.
    pub mean: Mean,
    /// The outputs of the nodes that the lesson looks at in the teacher.
    pub taps: &'a [Value],
}

/// A loss of a student against its teacher, through one training.
pub trait Lesson {
    /// The nodes that it looks at, by index: the student's and the teacher's. Those of several teachers are none.
    fn taps(&self) -> [&[usize]; 2] {
        [&[], &[]]
    }

    /// The loss of this step, a scalar that carries gradients; the frame multiplies it by [`Distiller::weight`].
    ///
    /// # Errors
    /// When what it sees has no such loss.
    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>>;

    /// Trains the tensors of its own, if any.
    fn learn(&mut self, _gradients: &mut Gradients, _lr: f64) {}

    /// Keeps in the training's state what outlives a step.
    ///
    /// # Errors
    /// Those of the archive.
    fn keep(&mut self, _archive: &mut Archive<'_>) -> Result<()> {
        Ok(())
    }
}

/// A teacher and a student at the beginning of a training.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The teachers, in evaluation form.
    pub teachers: &'a [Net],
    /// The network in training.
    pub student: &'a Net,
    /// The images that it will see.
    pub images: &'a Dataset,
    /// Where both compute.
    pub device: &'a Device,
    /// An optimizer as the student's, for the tensors of a lesson.
    pub optimizer: Descent,
    /// Seeds what a lesson draws.
    pub seed: u64,
}

impl Pair<'_> {
    /// The teacher, for lessons that look into it.
    ///
    /// # Errors
    /// When there are several, whose feature maps have no mean.
    pub fn teacher(&self) -> Result<&Net> {
        match self.teachers {
            [one] => Ok(one),
            several => {
                let detail = "looks at feature maps, of which an ensemble has no common ones";
                Err(Error::Invalid(format!("{detail}: name one `teacher`, not {}", several.len())))
            }
        }
    }
}

/// The settings of a loss against a teacher.
pub trait Distiller: Debug + Send {
    /// The loss of a training of this pair.
    ///
    /// # Errors
    /// When the two do not go together.
    fn lesson(&self, pair: &Pair<'_>) -> Result<Box<dyn Lesson>>;

    /// Refuses a teacher and a student that have not what the loss looks at, as far as a plan can tell.
    ///
    /// # Errors
    /// As [`Distiller::lesson`].
    fn fits(&self, _teacher: &Net, _student: &Net) -> Result<()> {
        Ok(())
    }

    /// What the loss is multiplied by. With 0 there is no teacher, and the training is the task's alone.
    fn weight(&self) -> f64;

    /// Factor of the task's own loss. Those of several are multiplied.
    fn task(&self) -> f64 {
        1.0
    }

    /// Refuses settings out of their ranges.
    ///
    /// # Errors
    /// Names the setting and its range.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// What names a loss in a config. The deserialized struct is the loss; fields are its settings.
pub trait Taught: Distiller + DeserializeOwned + 'static {
    /// Name in a config; also the name of its file.
    const NAME: &'static str;
    /// Authors, venue and year.
    const PAPER: &'static str;
    /// Settings that run as a pass, as TOML lines.
    const EXAMPLE: &'static str;
}

/// A [`Taught`] in a crate's list.
#[derive(Debug, Clone, Copy)]
pub struct Distillation {
    /// [`Taught::NAME`].
    pub name: &'static str,
    /// Reads the settings.
    pub parse: fn(serde_json::Value) -> std::result::Result<Box<dyn Distiller>, serde_json::Error>,
}

impl Distillation {
    /// The entry of a loss.
    pub const fn of<T: Taught>() -> Self {
        let parse = |settings| {
            let read: T = serde_json::from_value(settings)?;
            read.check().map_err(serde::de::Error::custom)?;
            Ok(Box::new(read) as Box<dyn Distiller>)
        };
        Self { name: T::NAME, parse }
    }
}

/// A module that a lesson trains beside the student.
#[derive(Debug)]
pub struct Learned<M> {
    module: M,
    optimizer: Descent,
}

impl<M: Module> Learned<M> {
    /// The module before its first step; it lies on a device with gradients.
    pub fn new(module: M, optimizer: Descent) -> Self {
        Self { module, optimizer }
    }

    /// The module as it is.
    pub fn get(&self) -> &M {
        &self.module
    }

    /// A step at the rate `lr` by what the gradients hold for the module.
    pub fn learn(&mut self, gradients: &mut Gradients, lr: f64) {
        let own = GradientsParams::from_module(gradients, &self.module);
        self.module = self.optimizer.step(lr, self.module.clone(), own);
    }

    /// Keeps the module and what its optimizer remembers.
    ///
    /// # Errors
    /// Those of the archive.
    pub fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        self.module = archive.module(self.module.clone())?;
        self.optimizer.keep(&self.module, archive)
    }
}
