//! Values that no network can compute with.

use std::fmt;

use crate::layers::Setting;
use crate::{Coded, Error, Layer, Model, Node};

/// A tensor of a network that holds NaN or infinite values, or variances that give none but these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFinite {
    /// The layer.
    pub layer: String,
    /// Its tensor, or the setting that the values are.
    pub tensor: String,
    /// How many values are not finite.
    pub values: usize,
    /// Out of how many.
    pub of: usize,
}

impl NotFinite {
    /// Counts the values of a layer's tensor that are not finite; none where all are. Of a batch norm's `var` those count as well whose
    /// `1 / sqrt(var + epsilon)` is not.
    pub fn of(name: &str, layer: &Layer, tensor: &str, values: &[f32]) -> Option<Self> {
        let kind = layer.kind();
        let bad = values.iter().filter(|value| !kind.usable(tensor, **value)).count();
        (bad > 0).then(|| Self { layer: name.into(), tensor: tensor.into(), values: bad, of: values.len() })
    }

    /// Counts the settings of a layer that are not finite, and deviations by which the input cannot be divided.
    pub fn settings(name: &str, layer: &Layer) -> Vec<Self> {
        let unusable = layer.kind().settings().into_iter().filter(|setting| setting.unusable > 0);
        let found =
            |setting: Setting| Self { layer: name.into(), tensor: setting.name.into(), values: setting.unusable, of: setting.of };
        unusable.map(found).collect()
    }
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, tensor, values, of } = self;
        write!(f, "{values} of {of} value(s) of '{layer}.{tensor}' are not finite")
    }
}

impl Node {
    /// The node's tensors and settings that are not finite.
    fn not_finite(&self) -> Vec<NotFinite> {
        let found = |(tensor, coded): &(String, Coded)| NotFinite::of(&self.name, &self.layer, tensor, &coded.decode());
        let tensors = self.tensors.iter().filter_map(found);
        NotFinite::settings(&self.name, &self.layer).into_iter().chain(tensors).collect()
    }
}

impl Model {
    /// Every tensor, and every setting of a layer, that holds NaN or infinite values, in order.
    pub fn not_finite(&self) -> Vec<NotFinite> {
        self.nodes.iter().flat_map(Node::not_finite).collect()
    }

    /// Refuses a network with values that are not finite.
    ///
    /// # Errors
    /// Names every tensor of [`Model::not_finite`].
    pub fn finite(&self) -> Result<(), Error> {
        Error::unless_finite(self.not_finite())
    }
}

impl Error {
    /// An error that names these tensors, if there are any.
    ///
    /// # Errors
    /// The error.
    pub fn unless_finite(tensors: Vec<NotFinite>) -> Result<(), Self> {
        if tensors.is_empty() { Ok(()) } else { Err(Error::NotFinite { tensors }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Permission, ValueFormat, layers};

    /// A batch norm behind a normalization of the input, with these variances.
    fn model(std: f32, variances: &[f32; 3], values: ValueFormat) -> Model {
        let permission = Permission { values, ..Permission::default() };
        let tensor = |name: &str, values: &[f32]| (name.to_string(), Coded::encode(&[3], values, None, &permission).unwrap());
        let node = |name: &str, inputs, layer, tensors| Node { name: name.into(), inputs, layer, tensors };
        let ones = [1.0; 3];
        let tensors = vec![tensor("gamma", &ones), tensor("beta", &ones), tensor("mean", &ones), tensor("var", variances)];
        Model {
            nodes: vec![
                node("input", vec![], Layer::Input(layers::Input { shape: vec![3, 4, 4] }), vec![]),
                node(
                    "scale",
                    vec![0],
                    Layer::Normalize(layers::Normalize { mean: vec![0.0; 3], std: vec![1.0, std, 1.0] }),
                    vec![],
                ),
                node("norm", vec![1], Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-5 }), tensors),
            ],
            ..Model::default()
        }
    }

    fn said(model: &Model) -> Vec<String> {
        model.not_finite().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_not_finite_is_named_and_counted() {
        assert_eq!(said(&model(0.5, &[0.0, 1.0, 2.0], ValueFormat::F32)), Vec::<String>::new());
        let bad = model(0.0, &[f32::NAN, -1.0, f32::INFINITY], ValueFormat::F32);
        let expected = ["1 of 3 value(s) of 'scale.std' are not finite", "3 of 3 value(s) of 'norm.var' are not finite"];
        assert_eq!(said(&bad), expected);
        let norm = model(0.5, &[f32::NAN, -1.0, f32::INFINITY], ValueFormat::F32);
        assert!(norm.check().is_ok(), "shapes and wiring hold all the same");
        let error = bad.finite().unwrap_err().to_string();
        assert!(expected.iter().all(|line| error.contains(line)), "{error}");
    }

    #[test]
    fn a_container_with_values_that_are_not_finite_is_not_sound() {
        // Half precision holds nothing above 65504.
        let bytes = model(0.5, &[1.0, 1e6, 1.0], ValueFormat::F16).to_bytes().unwrap();
        assert_eq!(Model::verify(&bytes), ["1 of 3 value(s) of 'norm.var' are not finite"]);
    }
}
