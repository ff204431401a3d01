//! Where a loss looks into both networks.

use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op, Value};
use briquette_core::objective::Seen;
use briquette_core::teaching::{Lesson, Shown};
use burn::tensor::Tensor;
use serde::Deserialize;

/// Nodes by name, or blocks by what the names of their nodes begin with, of which the last node counts: one list for both networks, or a list for each.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "`taps` are names of nodes, for both networks or as { student = [...], teacher = [...] }")]
pub enum Points {
    /// The same names in both.
    Same(Vec<String>),
    /// Names in each.
    Each {
        /// In the student.
        student: Vec<String>,
        /// In the teacher.
        teacher: Vec<String>,
    },
}

/// The nodes that a loss looks at, as many in the student as in the teacher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taps {
    student: Vec<usize>,
    teacher: Vec<usize>,
}

/// Which of the stages' ends a loss looks at where nothing is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stages {
    All,
    Middle,
    Last,
}

impl Taps {
    /// The feature maps that are named, or those at the ends of the stages.
    pub(crate) fn maps(points: Option<&Points>, stages: Stages, teacher: &Net, student: &Net) -> Result<Self> {
        let taps = match points {
            Some(points) => Self::named(points, student, teacher)?,
            None => {
                let ends = [ends(student)?, ends(teacher)?];
                let [of_student, of_teacher] = ends.each_ref().map(Vec::len);
                if of_student != of_teacher || of_student == 0 {
                    let detail = format!("the student has {of_student} sizes of feature maps, the teacher {of_teacher}");
                    return Err(Error::Invalid(format!("{detail}; name the `taps`, as many of both")));
                }
                let [student, teacher] = ends.map(|ends| match stages {
                    Stages::All => ends,
                    Stages::Middle => vec![ends[ends.len() / 2]],
                    Stages::Last => ends[ends.len() - 1..].to_vec(),
                });
                Self { student, teacher }
            }
        };
        for (net, nodes) in [(student, &taps.student), (teacher, &taps.teacher)] {
            let shapes = net.shapes()?;
            if let Some(node) = nodes.iter().find(|node| shapes[**node].len() != 3) {
                return Err(Error::node(&net.nodes[*node].name, "gives no feature maps; name a node that does under `taps`"));
            }
        }
        Ok(taps)
    }

    /// The node that is named, or what the last fully connected layer reads.
    pub(crate) fn features(points: Option<&Points>, teacher: &Net, student: &Net) -> Result<Self> {
        let taps = match points {
            Some(points) => Self::named(points, student, teacher)?,
            None => Self { student: vec![features(student)?], teacher: vec![features(teacher)?] },
        };
        match taps.student.len() {
            1 => Ok(taps),
            several => Err(Error::Invalid(format!("looks at one node of each network; `taps` names {several}"))),
        }
    }

    fn named(points: &Points, student: &Net, teacher: &Net) -> Result<Self> {
        let (of_student, of_teacher) = match points {
            Points::Same(names) => (names, names),
            Points::Each { student, teacher } => (student, teacher),
        };
        if of_student.len() != of_teacher.len() || of_student.is_empty() {
            let detail = format!("{} nodes of the student and {} of the teacher", of_student.len(), of_teacher.len());
            return Err(Error::Invalid(format!("`taps` names {detail}; name as many of both, and at least one")));
        }
        let places = |net: &Net, names: &[String], whose: &str| -> Result<Vec<usize>> {
            let place = |name: &String| net.behind(name).map_err(|error| Error::Invalid(format!("taps of the {whose}: {error}")));
            names.iter().map(place).collect()
        };
        Ok(Self { student: places(student, of_student, "student")?, teacher: places(teacher, of_teacher, "teacher")? })
    }

    /// As [`Lesson::taps`] gives them.
    pub(crate) fn both(&self) -> [&[usize]; 2] {
        [&self.student, &self.teacher]
    }

    /// The shapes of what the taps give, without the batch.
    pub(crate) fn shapes(&self, teacher: &Net, student: &Net) -> Result<[Vec<Vec<usize>>; 2]> {
        let of = |net: &Net, nodes: &[usize]| -> Result<Vec<Vec<usize>>> {
            let shapes = net.shapes()?;
            Ok(nodes.iter().map(|node| shapes[*node].clone()).collect())
        };
        Ok([of(student, &self.student)?, of(teacher, &self.teacher)?])
    }
}

/// The last node of each size of feature maps, behind the first layer with weights.
fn ends(net: &Net) -> Result<Vec<usize>> {
    let shapes = net.shapes()?;
    let first = net.nodes.iter().position(|node| node.weight().is_some()).unwrap_or(0);
    let mut ends: Vec<(usize, [usize; 2])> = Vec::new();
    for (index, shape) in shapes.iter().enumerate().skip(first) {
        let &[_, height, width] = shape.as_slice() else { continue };
        match ends.iter_mut().find(|(_, size)| *size == [height, width]) {
            _ if height * width == 1 => {}
            Some((end, _)) => *end = index,
            None => ends.push((index, [height, width])),
        }
    }
    Ok(ends.into_iter().map(|(end, _)| end).collect())
}

/// What the last fully connected layer reads.
fn features(net: &Net) -> Result<usize> {
    let last = net.nodes.iter().rev().find(|node| matches!(node.op, Op::Linear(_)));
    last.map(|node| node.inputs[0])
        .ok_or_else(|| Error::Invalid("has no fully connected layer; name the node under `taps`".into()))
}

/// A loss between feature maps, summed over all taps.
pub(crate) struct OverMaps<F> {
    pub(crate) taps: Taps,
    pub(crate) loss: F,
}

impl<F: FnMut(Tensor<4>, Tensor<4>) -> Result<Tensor<1>>> Lesson for OverMaps<F> {
    fn taps(&self) -> [&[usize]; 2] {
        self.taps.both()
    }

    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        let pairs = seen.taps.iter().zip(shown.taps);
        let mut terms = pairs.map(|(student, teacher)| (self.loss)(student.clone().map(), teacher.clone().map()));
        let first = terms.next().ok_or_else(|| Error::Invalid("nothing is tapped".into()))??;
        terms.try_fold(first, |sum, term| Ok(sum + term?))
    }
}

/// A loss between the features of both networks, one vector for each sample.
pub(crate) struct OverFeatures<F> {
    pub(crate) taps: Taps,
    pub(crate) loss: F,
}

impl<F: FnMut(Tensor<2>, Tensor<2>, &Seen<'_>) -> Result<Tensor<1>>> Lesson for OverFeatures<F> {
    fn taps(&self) -> [&[usize]; 2] {
        self.taps.both()
    }

    fn term(&mut self, seen: &Seen<'_>, shown: &Shown<'_>) -> Result<Tensor<1>> {
        (self.loss)(flat(&seen.taps[0]), flat(&shown.taps[0]), seen)
    }
}

/// A value as one vector for each sample.
pub(crate) fn flat(value: &Value) -> Tensor<2> {
    match value.clone() {
        Value::Map(map) => map.flatten(1, 3),
        Value::Vector(vector) => vector,
    }
}

/// Refuses a factor of a loss that is not finite or negative.
pub(crate) fn weighable(name: &str, factors: &[(&str, f64)]) -> Result<()> {
    match factors.iter().find(|(_, factor)| !(factor.is_finite() && *factor >= 0.0)) {
        Some((key, factor)) => Err(Error::Invalid(format!("{name}: `{key}` is a number of at least 0, not {factor}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::teaching::Pair;
    use briquette_core::training::Recipe;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_handmade::images;
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;

    fn net(name: &str, width: f64) -> Net {
        let arch = Arch::named(name).unwrap();
        arch.build(&Wanted { width, ..arch.wanted() }, &Device::flex()).unwrap()
    }

    /// What is looked at in a student and in its teacher, by name.
    fn names(student: &Net, teacher: &Net, taps: Result<Taps>) -> Result<[Vec<String>; 2]> {
        let taps = taps?;
        let named = |net: &Net, nodes: &[usize]| nodes.iter().map(|node| net.nodes[*node].name.clone()).collect();
        Ok([named(student, taps.both()[0]), named(teacher, taps.both()[1])])
    }

    #[test]
    fn stages_end_where_maps_become_smaller_and_features_are_what_the_classifier_reads() {
        let (student, teacher) = (net("resnet20", 0.5), net("resnet32", 0.25));
        let maps = |stages| names(&student, &teacher, Taps::maps(None, stages, &teacher, &student)).unwrap();
        let ends = |blocks: usize| (1..=3).map(|stage| format!("layer{stage}.{}.relu2", blocks - 1)).collect::<Vec<_>>();
        assert_eq!(maps(Stages::All), [ends(3), ends(5)]);
        assert_eq!(maps(Stages::Middle), [ends(3)[1..2].to_vec(), ends(5)[1..2].to_vec()]);
        assert_eq!(maps(Stages::Last), [ends(3)[2..].to_vec(), ends(5)[2..].to_vec()]);
        let features = names(&student, &teacher, Taps::features(None, &teacher, &student)).unwrap();
        let before = |net: &Net| {
            let last = net.nodes.iter().rev().find(|node| matches!(node.op, Op::Linear(_))).unwrap();
            vec![net.nodes[last.inputs[0]].name.clone()]
        };
        assert_eq!(features, [before(&student), before(&teacher)]);
    }

    #[test]
    fn nodes_are_named_alone_or_by_their_block_and_what_does_not_fit_is_refused() {
        let (student, teacher) = (net("resnet20", 0.5), net("lenet5", 0.2));
        let find = |points: serde_json::Value| {
            let points: Points = serde_json::from_value(points).unwrap();
            names(&student, &teacher, Taps::maps(Some(&points), Stages::All, &teacher, &student))
        };
        let found = find(json!({ "student": ["layer1.2"], "teacher": ["pool1"] })).unwrap();
        assert_eq!(found, [vec!["layer1.2.relu2".to_string()], vec!["pool1".to_string()]]);
        let refused = |points| find(points).unwrap_err().to_string();
        assert!(refused(json!(["pool1"])).starts_with("taps of the student: unknown layer 'pool1'"));
        assert!(
            refused(json!({ "student": ["layer1.2"], "teacher": [] })).contains("1 nodes of the student and 0 of the teacher")
        );
        assert!(refused(json!({ "student": ["layer1.2"], "teacher": ["relu1"] })).contains("gives no feature maps"));
        let counts = Taps::maps(None, Stages::All, &teacher, &student).unwrap_err().to_string();
        assert!(counts.contains("the student has 3 sizes of feature maps, the teacher"), "{counts}");
    }

    #[test]
    fn several_teachers_have_no_maps_in_common() {
        let (data, teachers) = (images(), [net("lenet5", 0.2), net("lenet5", 0.2)]);
        let (device, optimizer) = (Device::flex(), Recipe::default().optimizer());
        let pair = Pair { teachers: &teachers, student: &teachers[0], images: &data.train, device: &device, optimizer, seed: 1 };
        let error = pair.teacher().map(drop).unwrap_err().to_string();
        assert!(error.contains("an ensemble has no common ones: name one `teacher`, not 2"), "{error}");
    }
}
