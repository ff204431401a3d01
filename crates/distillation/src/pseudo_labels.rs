//! Labels that an ensemble gives to samples without any.
//!
//! The label of a sample is the class of the highest mean probability `sum_m softmax(v_m) / M` of the teachers' logits `v_1 .. v_M`; a student
//! learns from it as from any other. The samples are the training images, whose own labels nobody looks at, those of a folder that are `unlabelled`, and
//! with `munge` others that are drawn around both: each image exchanges with its nearest neighbour each pixel with the probability `p`, drawn with the
//! deviation `|a - b| / s` of the two. Images of a folder are read when their turn comes; those that others are drawn around lie in memory.
//!
//! ```
//! use briquette_distillation::pseudo_labels::labels;
//! use burn::tensor::{Device, Tensor};
//!
//! let of = |values: [[f32; 2]; 2]| Tensor::<2>::from_floats(values, &Device::flex());
//! // Of two teachers the surer one prevails.
//! assert_eq!(labels(&[of([[2.0, 0.0], [0.0, 5.0]]), of([[0.0, 1.0], [1.0, 0.0]])]).unwrap(), [0, 1]);
//! ```
//!
//! Bucilă, Caruana, Niculescu-Mizil. "Model Compression". KDD 2006.
//! Differs from the paper: the teachers give probabilities of any number of classes where the paper's give one score.

mod munge;

use briquette_core::context::{Context, Data};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::streams::stream;
use briquette_core::training::{Recipe, Teacher, images, tune};
use briquette_core::values::floats;
use briquette_data::{Dataset, Loader};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::ensemble::arithmetic;
use crate::student::Student;

pub use munge::Munge;

/// The training of a network, or of a `student` in its place, on labels of teachers: of the network at hand unless `teachers` names others.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PseudoLabels {
    student: Option<Student>,
    /// The teachers.
    #[serde(default)]
    teachers: Vec<Teacher>,
    /// Training images that are taken, all without it.
    images: Option<usize>,
    /// A folder of images without labels, or of tar archives of such, which come beside the training images.
    unlabelled: Option<String>,
    /// Other images around these.
    munge: Option<Munge>,
    /// The training.
    #[serde(default)]
    train: Recipe,
    /// Most images that a trial run takes of the folder.
    #[serde(skip)]
    most: Option<usize>,
}

/// Images that a trial run takes of each kind.
const TRIAL: usize = 500;

impl Method for PseudoLabels {
    const NAME: &'static str = "pseudo-labels";
    const FAMILY: &'static str = "knowledge distillation";
    const PAPER: &'static str = "Bucilă, Caruana, Niculescu-Mizil, KDD 2006";
    const EXAMPLE: &'static str = "munge = { times = 1 }";
}

impl Pass for PseudoLabels {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        self.check()?;
        let teachers: Vec<Net> = match &self.teachers[..] {
            [] => vec![net.valid()],
            several => several.iter().map(|teacher| Ok(teacher.network(&net, cx)?.valid())).collect::<Result<_>>()?,
        };
        let student = Student::or(self.student.as_ref(), net, cx.seed, &cx.device)?;
        let data = Data { train: self.labelled(&teachers, cx)?, valid: cx.data.valid.clone(), test: cx.data.test.clone() };
        let mut on = Context::new(&cx.device, cx.seed, &data, cx.host);
        (on.distillations, on.storage, on.stage) = (cx.distillations, cx.storage, cx.stage);
        let trained = tune(student, Some(&self.train), &mut on);
        let (curve, stage) = (std::mem::take(&mut on.curve), on.stage);
        cx.curve.extend(curve);
        cx.stage = stage;
        trained
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.check()?;
        let device = net.device();
        Student::or(self.student.as_ref(), net, 0, &device)
    }

    fn replaces(&self) -> bool {
        self.student.is_some()
    }

    fn learns_from_before(&self) -> bool {
        self.teachers.is_empty() || self.teachers.iter().any(Teacher::is_before_pass)
    }

    fn shorten(&mut self) {
        self.images = Some(self.images.map_or(TRIAL, |images| images.min(TRIAL)));
        self.most = Some(TRIAL);
    }
}

impl PseudoLabels {
    fn check(&self) -> Result<()> {
        self.train.check()?;
        if self.images == Some(0) && self.unlabelled.is_none() {
            return Err(Error::Invalid("pseudo-labels: `images = 0` leaves none to label; name a folder as `unlabelled`".into()));
        }
        self.munge.iter().try_for_each(Munge::check)
    }

    /// The images, and those around them, with the teachers' labels.
    fn labelled(&self, teachers: &[Net], cx: &mut Context<'_>) -> Result<Dataset> {
        let train = &cx.data.train;
        let mut sets = vec![train.take(self.images.unwrap_or(usize::MAX))];
        if let Some(folder) = &self.unlabelled {
            sets.push(cx.host.unlabelled(folder, train.shape)?.take(self.most.unwrap_or(usize::MAX)));
        }
        if let Some(munge) = &self.munge {
            let mut pixels = Vec::new();
            for (set, image) in sets.iter().flat_map(|set| (0..set.len()).map(move |image| (set, image))) {
                pixels.extend(set.pixel(image)?);
            }
            let size = train.shape.iter().product();
            let around = munge.around(&pixels, size, stream(cx.seed, "munge"), &cx.device);
            let labels = vec![0; around.len() / size];
            sets.push(Dataset::from_memory("munge", train.shape, train.classes, around, labels)?);
        }
        let count = sets.iter().map(Dataset::len).sum();
        let of = |labels| Dataset::labelled(&train.name, &sets, train.classes, labels);
        // Any labels will do to have the images seen.
        let unlabelled = of(vec![0; count])?;
        let mut found = Vec::with_capacity(count);
        for batch in Loader::ordered(&unlabelled, 100) {
            if cx.host.stop_requested() {
                return Err(Error::Stopped);
            }
            let batch = batch?;
            let seen = images(&batch, train.shape, &cx.device);
            let logits: Vec<Tensor<2>> = teachers.iter().map(|teacher| teacher.forward(seen.clone())).collect();
            found.extend(labels(&logits)?);
        }
        Ok(of(found)?)
    }
}

/// The class that the members, whose logits are `[batch, classes]` each, give to every sample, the lowest of equals.
///
/// # Errors
/// Where there are no members, or of different shapes, or where a probability is no number.
pub fn labels(members: &[Tensor<2>]) -> Result<Vec<u16>> {
    let mean = arithmetic(members, 1.0)?;
    let [_, classes] = mean.dims();
    let label = |(sample, scores): (usize, &[f32])| {
        if scores.iter().any(|score| score.is_nan()) {
            return Err(Error::Invalid(format!("pseudo-labels: the teachers' logits of sample {sample} are not finite")));
        }
        let best = (1..classes).fold(0, |best, class| if scores[class] > scores[best] { class } else { best });
        u16::try_from(best)
            .map_err(|_| Error::Invalid(format!("pseudo-labels: labels have 16 bits, too few for {classes} classes")))
    };
    floats(mean).chunks(classes.max(1)).enumerate().map(label).collect()
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Memory;
    use briquette_core::passes::Train;
    use briquette_core::training::cross_entropy;
    use briquette_handmade::{labelled, outputs, refusal, run, small};
    use burn::tensor::activation;
    use serde_json::json;

    use super::*;
    use crate::golden::{golden, input, near, tensor};
    use crate::soft_targets::divergence;

    const GOLDEN: &str = include_str!("golden/pseudo_labels.txt");

    #[test]
    fn labels_and_probabilities_of_two_teachers_are_learned_as_golden_ones() {
        let members = ["teacher_logits", "teacher2_logits"].map(|name| input(name, [4, 5]));
        let labels = labels(&members).unwrap();
        assert_eq!(labels, [0, 2, 4, 1]);
        let mean = arithmetic(&members, 1.0).unwrap();
        near(&floats(activation::softmax(mean.clone(), 1)), &golden(GOLDEN, "ensemble probabilities"), 2e-5);

        let student = input("student_logits", [4, 5]).require_grad();
        let hard = cross_entropy(student.clone(), &labels, 0.0);
        near(&floats(hard.clone()), &golden(GOLDEN, "hard value"), 2e-5);
        near(&floats(student.grad(&hard.backward()).unwrap()), &golden(GOLDEN, "hard grad"), 2e-5);
        // The cross-entropy is the divergence and the targets' own entropy, which has no gradient.
        let soft = divergence(mean.clone(), student.clone(), 1.0);
        let entropy = -(activation::softmax(mean.clone(), 1) * activation::log_softmax(mean, 1)).sum().div_scalar(4.0);
        near(&floats(soft.clone() + entropy), &golden(GOLDEN, "soft value"), 2e-5);
        near(&floats(student.grad(&soft.backward()).unwrap()), &golden(GOLDEN, "soft grad"), 2e-5);
    }

    #[test]
    fn equals_are_the_lowest_class_and_what_is_no_number_has_no_label() {
        assert_eq!(labels(&[tensor(vec![1.0, 1.0, 0.0, 0.0, 2.0, 2.0], [2, 3])]).unwrap(), [0, 1]);
        let error = labels(&[tensor(vec![1.0, 0.0, 0.0, f32::NAN], [2, 2])]).unwrap_err().to_string();
        assert_eq!(error, "pseudo-labels: the teachers' logits of sample 1 are not finite");
    }

    #[test]
    fn a_student_learns_what_its_teacher_says_and_not_what_the_labels_do() {
        // The student begins as its teacher; the labels of the images are of no network, and part it from it.
        let teacher = small();
        let names = |net: &Net| {
            let data = labelled(net);
            (0..data.train.len()).map(|image| data.train.label(image)).collect::<Vec<u16>>()
        };
        let train = json!({ "epochs": 30, "batch": 20, "lr": 0.02, "choose": "last" });
        let same = |net: &Net| names(net).iter().zip(names(&teacher)).filter(|(a, b)| **a == *b).count();
        let net = run::<PseudoLabels>(small(), json!({ "munge": { "times": 1 }, "train": train.clone() })).unwrap();
        let apart = run::<Train>(small(), train).unwrap();
        assert!(same(&net) >= 36 && same(&apart) < 36, "{} and {} of 40", same(&net), same(&apart));
        assert!(outputs(&net).iter().all(|value| value.is_finite()) && net.valid().num_params() == teacher.num_params());
    }

    /// A network trained on the labels of `small`, of these training images and of a folder's.
    fn taught(settings: serde_json::Value, folder: Dataset) -> Result<Vec<f32>> {
        let mut settings = settings;
        settings["train"] = json!({ "epochs": 2, "batch": 20, "lr": 0.02, "choose": "last" });
        let (data, mut host) = (briquette_handmade::images(), Memory::default());
        host.unlabelled.insert("more".into(), folder);
        let method: PseudoLabels = serde_json::from_value(settings).unwrap();
        method.run(small(), &mut Context::new(&small().device(), 3, &data, &mut host)).map(|net| outputs(&net))
    }

    #[test]
    fn images_of_a_folder_teach_as_training_images_do() {
        let all = briquette_handmade::images().train;
        let halves = [all.take(20), all.subset(&(20..40).collect::<Vec<_>>())];
        let both = taught(json!({ "images": 20, "unlabelled": "more" }), halves[1].clone()).unwrap();
        assert_eq!(both, taught(json!({}), halves[1].clone()).unwrap());
        // The labels that they happen to have are of no account, and none of the training images is needed.
        let mute = Dataset::labelled("mute", std::slice::from_ref(&all), 1, vec![0; 40]).unwrap();
        assert_eq!(taught(json!({ "images": 0, "unlabelled": "more" }), mute.clone()).unwrap(), both);
        let around = json!({ "images": 0, "unlabelled": "more", "munge": { "times": 1 } });
        assert_eq!(taught(around, mute).unwrap(), taught(json!({ "munge": { "times": 1 } }), all).unwrap());
    }

    #[test]
    fn without_images_and_without_their_folder_there_is_nothing_to_label() {
        let none = refusal::<PseudoLabels>(small(), json!({ "images": 0 }));
        assert_eq!(none, "pseudo-labels: `images = 0` leaves none to label; name a folder as `unlabelled`");
        let gone = run::<PseudoLabels>(small(), json!({ "unlabelled": "gone" })).unwrap_err().to_string();
        assert_eq!(gone, "cannot read the images in gone: this host has no folders");
    }

    #[test]
    fn draws_out_of_range_are_refused() {
        let refused = |munge| refusal::<PseudoLabels>(small(), json!({ "munge": munge }));
        assert!(refused(json!({ "times": 1, "probability": 1.5 })).contains("`probability` lies in [0, 1]"));
        assert!(refused(json!({ "times": 1, "variance": 0.0 })).contains("`variance` is above 0"));
    }
}
