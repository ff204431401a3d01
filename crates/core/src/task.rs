//! What a network is for, held against what data ask of it.

use briquette_data::Dataset;

use crate::error::{Error, Result};
use crate::net::Net;

/// The images that a network takes and the classes that it tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Shape of an image, `[channels, height, width]`.
    pub shape: Vec<usize>,
    /// Number of logits.
    pub classes: usize,
}

impl Task {
    /// The task of a network.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn of(net: &Net) -> Result<Self> {
        let shapes = net.shapes()?;
        Ok(Self::between(&net.input_shape(), shapes.last().map_or(&[], Vec::as_slice)))
    }

    /// The task of whatever turns inputs of one shape into outputs of the other.
    pub fn between(input: &[usize], output: &[usize]) -> Self {
        Self { shape: input.to_vec(), classes: output.iter().product() }
    }

    /// Whether a data set has such images and as many classes.
    ///
    /// # Errors
    /// Names the data set, and both sides of what differs.
    pub fn check(&self, data: &Dataset) -> Result<()> {
        self.suits(&data.name, &data.shape, data.classes)
    }

    /// [`Task::check`] of a data set of which no more than this is known yet.
    ///
    /// # Errors
    /// As [`Task::check`].
    pub fn suits(&self, data: &str, shape: &[usize], classes: usize) -> Result<()> {
        let mut differ = Vec::new();
        if self.shape != shape {
            differ.push(format!("takes images of shape {:?}, the data have {shape:?}", self.shape));
        }
        if self.classes != classes {
            differ.push(format!("tells {} classes apart, the data have {classes}", self.classes));
        }
        if differ.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the network does not fit the data '{data}': it {}; name a pair that fits",
            differ.join("; it ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Context, Data, Memory};
    use crate::pass::Pass;
    use crate::passes::{Load, Save};
    use crate::training::{Extras, Recipe, evaluate, fit};
    use crate::zoo::{Arch, Wanted};
    use burn::tensor::Device;

    fn net(classes: usize) -> Net {
        let arch = Arch::named("lenet300").unwrap();
        arch.build(&Wanted { width: 0.05, classes, ..arch.wanted() }, &Device::flex()).unwrap()
    }

    fn images(shape: [usize; 3], classes: usize) -> Data {
        let labels = (0..12).map(|i| (i % classes) as u16).collect();
        let all = Dataset::from_memory("mine", shape, classes, vec![7; 12 * 784], labels).unwrap();
        Data { train: all.clone(), valid: all.clone(), test: all }
    }

    #[test]
    fn a_network_is_for_images_of_one_shape_and_a_number_of_classes() {
        let task = Task::of(&net(3)).unwrap();
        assert_eq!(task, Task { shape: vec![1, 28, 28], classes: 3 });
        task.check(&images([1, 28, 28], 3).test).unwrap();
        let error = task.check(&images([1, 14, 56], 2).test).unwrap_err().to_string();
        let both = "it takes images of shape [1, 28, 28], the data have [1, 14, 56]; it tells 3 classes apart, the data have 2";
        assert_eq!(error, format!("the network does not fit the data 'mine': {both}; name a pair that fits"));
    }

    #[test]
    fn classes_match_wherever_a_network_meets_data() {
        let device = Device::flex();
        // Labels beyond the logits would index out of bounds, logits beyond the labels be scored as if nothing were wrong.
        for (has, asked) in [(10, 3), (3, 10)] {
            let (own, data, mut host) = (images([1, 28, 28], has), images([1, 28, 28], asked), Memory::default());
            let expected = format!("tells {has} classes apart, the data have {asked}");
            let named = |error: Error| assert!(error.to_string().contains(&expected), "{error}");

            named(evaluate(&net(has), &data.test, &device, &mut host).unwrap_err());
            let recipe: Recipe = serde_json::from_str(r#"{ "epochs": 1 }"#).unwrap();
            named(fit(net(has), &recipe, Extras::default(), &mut Context::new(&device, 1, &data, &mut host)).unwrap_err());

            let save = Save { file: "other.brq".into() };
            save.run(net(has), &mut Context::new(&device, 1, &own, &mut host)).unwrap();
            let load = Load { file: "other.brq".into() };
            named(load.run(net(asked), &mut Context::new(&device, 1, &data, &mut host)).unwrap_err());
        }
    }
}
