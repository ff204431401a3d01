//! What a recipe says of teachers, and the objective that comes of it.

use std::collections::BTreeSet;

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Recipe;
use super::kept::Kept;
use crate::archive::Archive;
use crate::context::{Context, Host};
use crate::error::{Error, Result};
use crate::net::{self, Net};
use crate::objective::{Objective, Seen, Taps};
use crate::streams::stream;
use crate::task::Task;
use crate::teaching::{Distillation, Distiller, Lesson, Mean, Pair, Shown};
use crate::types::{Bytes, Ratio};

/// What a recipe says of a teacher: the loss by name, its settings, and whose network it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Distill {
    /// Name of the loss.
    pub method: String,
    /// The teacher, or several; without one the network as it was before the pass. A config in which nothing has trained that is refused: its logits are
    /// those of drawn weights.
    #[serde(default, deserialize_with = "super::recipe::one_or_several")]
    pub teacher: Vec<Teacher>,
    /// How several teachers are one.
    #[serde(default)]
    pub mean: Mean,
    /// Whether what the teacher says is kept, so that it is asked once.
    #[serde(default)]
    pub cache: Option<Cache>,
    /// Factor of the task's own loss, in the place of that which the loss leaves of it.
    #[serde(default)]
    pub task: Option<Ratio>,
    /// The loss's own settings.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// Whose network a teacher is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a teacher is the name of a container, \"before-pass\", \"before-first-pass\", or a table as of `model`"
)]
pub enum Teacher {
    /// A container's, or [`BEFORE_PASS`], or [`BEFORE_FIRST_PASS`].
    Named(String),
    /// As `model` of a config: an architecture with the file of its weights.
    Model(Map<String, Value>),
}

/// The name of the network as it was before the pass.
pub const BEFORE_PASS: &str = "before-pass";
/// The name of the network that the run started from.
pub const BEFORE_FIRST_PASS: &str = "before-first-pass";

impl Teacher {
    /// Whether it is the network as it was before the pass.
    pub fn is_before_pass(&self) -> bool {
        matches!(self, Self::Named(name) if name == BEFORE_PASS)
    }

    /// The network, on the device at hand, for the images and classes of `student`.
    ///
    /// # Errors
    /// When it cannot be had, or is for others.
    pub fn network(&self, student: &Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.load(cx)?;
        alike(&net, student)?;
        Ok(net)
    }

    fn load(&self, cx: &mut Context<'_>) -> Result<Net> {
        match self {
            Self::Named(name) if name == BEFORE_PASS => cx.host.before(&cx.device),
            Self::Named(name) if name == BEFORE_FIRST_PASS => cx.host.first(&cx.device),
            Self::Named(file) => cx.load(file),
            Self::Model(spec) => cx.host.model(spec, &cx.device),
        }
    }
}

/// How a teacher's answers are kept on disk, for this run and for others with the same teacher and images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cache {
    /// Fixed draws of the augmentation that each image has; an epoch takes one of them, in turn.
    pub draws: usize,
    /// What the file may take.
    #[serde(default = "limit")]
    pub limit: Bytes,
}

fn limit() -> Bytes {
    Bytes(1_000_000_000)
}

impl Distill {
    /// Whether it learns from the network as it was before the pass.
    pub fn before_pass(&self) -> bool {
        self.teacher.is_empty() || self.teacher.iter().any(Teacher::is_before_pass)
    }

    /// Whether it learns from the network that the run started from.
    pub fn before_first_pass(&self) -> bool {
        self.teacher.iter().any(|teacher| matches!(teacher, Teacher::Named(name) if name == BEFORE_FIRST_PASS))
    }

    /// The loss's settings, read.
    ///
    /// # Errors
    /// An unknown name, with the nearest ones, and settings that do not read.
    pub fn distiller(&self, known: &[&'static [Distillation]]) -> Result<Box<dyn Distiller>> {
        let all = || known.iter().copied().flatten();
        let found = all().find(|one| one.name == self.method);
        let found = found.ok_or_else(|| Error::unknown("distillation", &self.method, all().map(|one| one.name)))?;
        (found.parse)(self.settings.clone().into()).map_err(|error| Error::Invalid(format!("distill ({}): {error}", self.method)))
    }

    fn shares_a_teacher(&self, other: &Self) -> bool {
        (&self.teacher, self.mean, self.cache) == (&other.teacher, other.mean, other.cache)
    }
}

impl Recipe {
    /// How many fixed draws of the augmentation each image has, where a teacher's answers are kept.
    pub(super) fn draws(&self, known: &[&'static [Distillation]]) -> Result<Option<usize>> {
        let mut draws = BTreeSet::new();
        for (distill, cache) in self.distill.iter().filter_map(|distill| Some((distill, distill.cache?))) {
            if distill.distiller(known)?.weight() != 0.0 {
                draws.insert(cache.draws);
            }
        }
        match draws.into_iter().collect::<Vec<_>>()[..] {
            [] => Ok(None),
            [0] => Err(Error::Invalid("distill: `cache.draws` is at least 1".into())),
            [one] => Ok(Some(one)),
            ref several => {
                let detail = "the images of a training are drawn one way; give all caches the same `draws`";
                Err(Error::Invalid(format!("distill: caches of {several:?} draws: {detail}")))
            }
        }
    }

    /// The objectives of a training of `student`, one for each teacher; `seed` is the training's.
    pub(super) fn taught(&self, student: &Net, seed: u64, cx: &mut Context<'_>) -> Result<Vec<Teaching>> {
        let mut groups: Vec<Vec<(&Distill, Box<dyn Distiller>)>> = Vec::new();
        for distill in &self.distill {
            let distiller = distill.distiller(cx.distillations)?;
            // What weighs nothing asks no teacher.
            if distiller.weight() == 0.0 {
                if distill.task.is_some() {
                    let detail = "weighs nothing, and leaves the task as it is; leave out `task`, or the loss";
                    return Err(Error::Invalid(format!("distill ({}): {detail}", distill.method)));
                }
                continue;
            }
            match groups.iter_mut().find(|group| group[0].0.shares_a_teacher(distill)) {
                Some(group) => group.push((distill, distiller)),
                None => groups.push(vec![(distill, distiller)]),
            }
        }
        let mut lessons = 0;
        groups.iter().map(|group| Teaching::new(self, group, student, (seed, &mut lessons), cx)).collect()
    }
}

/// Lessons of one student from one teacher, or from several as one.
pub(super) struct Teaching {
    teachers: Vec<Net>,
    mean: Mean,
    lessons: Vec<(f64, Box<dyn Lesson>)>,
    task: f64,
    kept: Option<Kept>,
}

impl Teaching {
    fn new(
        recipe: &Recipe,
        group: &[(&Distill, Box<dyn Distiller>)],
        student: &Net,
        (seed, drawn): (u64, &mut usize),
        cx: &mut Context<'_>,
    ) -> Result<Self> {
        let (first, names) = (group[0].0, group.iter().map(|(distill, _)| distill.method.as_str()).collect::<Vec<_>>());
        let within = |error: Error| Error::Invalid(format!("distill ({}): {error}", names.join(", ")));
        let before = [Teacher::Named(BEFORE_PASS.into())];
        let named = if first.teacher.is_empty() { &before[..] } else { &first.teacher[..] };
        let teachers = named.iter().map(|teacher| Ok(teacher.load(cx)?.valid())).collect::<Result<Vec<_>>>()?;
        for teacher in &teachers {
            alike(teacher, student).map_err(within)?;
        }
        let mut lessons = Vec::new();
        for (_, distiller) in group {
            // Numbered over all teachers, so that no two lessons draw alike.
            let seed = stream(seed, &format!("lesson-{drawn}"));
            *drawn += 1;
            let (images, device, optimizer) = (&cx.data.train, &cx.device, recipe.optimizer());
            let pair = Pair { teachers: &teachers, student, images, device, optimizer, seed };
            lessons.push((distiller.weight(), distiller.lesson(&pair).map_err(within)?));
        }
        let task = group.iter().map(|(distill, distiller)| distill.task.map_or_else(|| distiller.task(), Ratio::get)).product();
        let mut teaching = Self { teachers, mean: first.mean, lessons, task, kept: None };
        if let Some(cache) = first.cache {
            let shapes = teaching.teachers[0].shapes()?;
            match teaching.wanted().iter().find(|node| shapes[**node].len() > 1) {
                // Maps are too large to be kept, and who computes them has the logits too.
                Some(node) => cx.note(format!(
                    "the maps of '{}' that {} looks at are not kept in the cache; the teacher is asked in every step",
                    teaching.teachers[0].nodes[*node].name,
                    names.join(", ")
                )),
                None => {
                    let wanted = teaching.wanted();
                    let vectors: Vec<(usize, usize)> =
                        wanted.iter().map(|node| (*node, shapes[*node].iter().product())).collect();
                    teaching.kept = Some(Kept::open(cache, &teaching.teachers, &vectors, &recipe.augment, cx).map_err(within)?);
                }
            }
        }
        Ok(teaching)
    }

    /// The nodes of the teacher that the lessons look at, of all lessons in turn.
    fn wanted(&self) -> Vec<usize> {
        self.lessons.iter().flat_map(|(_, lesson)| lesson.taps()[1].to_vec()).collect()
    }

    /// What the teachers make of the images.
    fn shown(&mut self, seen: &Seen<'_>) -> Result<(Vec<Tensor<2>>, Vec<net::Value>)> {
        let device = seen.images.device();
        if let (Some(kept), Some(draw)) = (&self.kept, seen.draw)
            && let Some(answers) = kept.answers(seen.ids, draw, &device)
        {
            return Ok(answers);
        }
        let mut taps = Taps::of(self.wanted());
        let images = seen.images.clone().inner();
        let logits: Vec<Tensor<2>> = match &self.teachers[..] {
            [one] => vec![one.tapped(images, &mut taps)],
            several => several.iter().map(|teacher| teacher.forward(images.clone())).collect(),
        };
        let taps = taps.values()?;
        if let (Some(kept), Some(draw)) = (&mut self.kept, seen.draw) {
            kept.keep(seen.ids, draw, &logits, &taps);
        }
        let traced = |value: net::Value| match value {
            net::Value::Map(map) => net::Value::Map(Tensor::from_inner(map)),
            net::Value::Vector(vector) => net::Value::Vector(Tensor::from_inner(vector)),
        };
        Ok((logits.into_iter().map(Tensor::from_inner).collect(), taps.into_iter().map(traced).collect()))
    }
}

/// Refuses a teacher of other images or classes.
fn alike(teacher: &Net, student: &Net) -> Result<()> {
    let (of_teacher, of_student) = (Task::of(teacher)?, Task::of(student)?);
    if of_teacher == of_student {
        return Ok(());
    }
    let told = |task: &Task| format!("images of shape {:?} and {} classes", task.shape, task.classes);
    Err(Error::Invalid(format!("the teacher is for {}, the student for {}", told(&of_teacher), told(&of_student))))
}

impl Objective for Teaching {
    fn taps(&self, _: &Net) -> Result<Vec<usize>> {
        Ok(self.lessons.iter().flat_map(|(_, lesson)| lesson.taps()[0].to_vec()).collect())
    }

    fn task(&self) -> f64 {
        self.task
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        let (logits, values) = self.shown(seen)?;
        let (mut of_student, mut of_teacher) = (seen.taps, &values[..]);
        let mut whole = None;
        for (weight, lesson) in &mut self.lessons {
            let [student, teacher] = lesson.taps().map(<[usize]>::len);
            let seen = Seen { taps: of_student.split_off(..student).unwrap_or_default(), ..*seen };
            let taps = of_teacher.split_off(..teacher).unwrap_or_default();
            let term = lesson.term(&seen, &Shown { logits: &logits, mean: self.mean, taps })?.mul_scalar(*weight);
            whole = Some(whole.map_or_else(|| term.clone(), |whole: Tensor<1>| whole + term.clone()));
        }
        whole.ok_or_else(|| Error::Invalid("a teacher without a lesson".into()))
    }

    fn learn(&mut self, gradients: &mut Gradients, lr: f64) {
        self.lessons.iter_mut().for_each(|(_, lesson)| lesson.learn(gradients, lr));
    }

    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        self.lessons.iter_mut().try_for_each(|(_, lesson)| lesson.keep(archive))
    }

    fn epoch_ended(&mut self, host: &mut dyn Host) -> Result<()> {
        self.kept.as_mut().map_or(Ok(()), |kept| kept.save(host))
    }
}
