//! Whether a model is whole: wiring, names, shapes.

use std::collections::HashSet;

use crate::{Coded, Error, Layer, Model, Node};

impl Model {
    /// Checks the wiring, the names, and every shape; returns the output shape of each node.
    ///
    /// # Errors
    /// The first fault, with the node it is in. A custom layer is one: no kernels are registered here yet.
    pub fn check(&self) -> Result<Vec<Vec<usize>>, Error> {
        if self.nodes.is_empty() {
            return Err(Error::Wiring { detail: "a model without nodes".into() });
        }
        let mut names = HashSet::new();
        let mut shapes: Vec<Vec<usize>> = Vec::with_capacity(self.nodes.len());
        for (position, node) in self.nodes.iter().enumerate() {
            let shape = match names.insert(node.name.as_str()) {
                true => output_shape(position, node, &shapes),
                false => Err(Error::Wiring { detail: "the name is taken".into() }),
            };
            shapes.push(shape.map_err(|error| error.within(format!("node {position} {:?}", node.name)))?);
        }
        Ok(shapes)
    }
}

fn output_shape(position: usize, node: &Node, shapes: &[Vec<usize>]) -> Result<Vec<usize>, Error> {
    let wiring = |detail: String| Err(Error::Wiring { detail });
    match (&node.layer, position) {
        (Layer::Input { shape }, 0) if shape.is_empty() => return wiring("the input has no dimensions".into()),
        (Layer::Input { .. }, 0) => {}
        (Layer::Input { .. }, _) => return wiring("only node 0 is an input".into()),
        (Layer::LocalResponseNorm { size: 0, .. }, _) => return wiring("a window of 0 channels".into()),
        (layer, 0) => return wiring(format!("node 0 is a {}, not an input", layer.kind())),
        (Layer::Custom { kernel, .. }, _) => return Err(Error::UnknownKernel { kernel: kernel.clone() }),
        _ => {}
    }
    if let Some(input) = node.inputs.iter().find(|input| **input >= position) {
        return wiring(format!("input {input} is not an earlier node"));
    }
    let inputs: Vec<&[usize]> = node.inputs.iter().map(|input| shapes[*input].as_slice()).collect();
    let weight = node.tensor("weight").map(Coded::shape);
    let shape = node.layer.output_shape(&inputs, weight)?;
    let parameters = match node.layer {
        Layer::Structured(structure) => structure.parameters(),
        _ => Vec::new(),
    };
    let named: Vec<&str> = match node.layer {
        Layer::Quantize { train, .. } => vec![train.tensor()],
        _ => parameters.iter().map(|parameter| parameter.name).collect(),
    };
    let (required, optional): (&[&str], &[&str]) = match node.layer {
        Layer::Conv2d { .. } | Layer::Linear => (&["weight"], &["bias"]),
        Layer::BatchNorm { .. } => (&["gamma", "beta", "mean", "var"], &[]),
        Layer::Structured(_) => (&named, &["bias"]),
        Layer::Quantize { .. } => (&named, &[]),
        _ => (&[], &[]),
    };
    if let Some(name) = required.iter().find(|name| node.tensor(name).is_none()) {
        return wiring(format!("the tensor {name:?} is missing"));
    }
    let mut names = HashSet::new();
    for (name, coded) in &node.tensors {
        if !required.contains(&name.as_str()) && !optional.contains(&name.as_str()) {
            return wiring(format!("a {} has no tensor {name:?}", node.layer.kind()));
        }
        if !names.insert(name) {
            return wiring(format!("two tensors {name:?}"));
        }
        let matrix = parameters.iter().find(|parameter| parameter.name == name).map(|parameter| &parameter.shape[..]);
        let expected = matrix.unwrap_or(if matches!(node.layer, Layer::Quantize { .. }) { &[1] } else { &shape[..1] });
        if name != "weight" && coded.shape() != expected {
            return wiring(format!("{name} has the shape {:?}, expected {expected:?}", coded.shape()));
        }
        if let Layer::Quantize { levels, zero, train } = node.layer {
            let step = coded.decode()[0] / train.steps(levels, zero);
            if !(step.is_finite() && step > 0.0) {
                return wiring(format!("a step of {step}; it must be positive"));
            }
        }
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plan;
    use crate::container::tests::example;

    fn fault(change: impl FnOnce(&mut Model)) -> String {
        let mut model = example();
        change(&mut model);
        let mut error: &dyn std::error::Error = &model.check().unwrap_err();
        let mut text = error.to_string();
        while let Some(source) = error.source() {
            text = format!("{text} <- {source}");
            error = source;
        }
        text
    }

    #[test]
    fn a_whole_model_tells_its_shapes() {
        let shapes = example().check().unwrap();
        assert_eq!(shapes[0], [2, 6, 6]);
        assert_eq!(shapes.last().unwrap(), &[5]);
    }

    #[test]
    fn faults_name_the_node_and_both_sides() {
        assert!(fault(|model| model.nodes[2].name = "conv".into()).contains("the name is taken"));
        assert!(fault(|model| model.nodes[1].inputs = vec![3]).contains("input 3 is not an earlier node"));
        assert!(fault(|model| model.nodes[1].layer = Layer::Add).contains("takes two or more"));
        assert!(fault(|model| drop(model.nodes.remove(0))).contains("not an input"));
        assert!(fault(|model| model.nodes.clear()).contains("without nodes"));
        assert!(fault(|model| model.nodes[2].tensors.truncate(3)).contains("\"var\" is missing"));
        let custom = Layer::Custom { kernel: "fft".into(), config: String::new() };
        assert!(fault(|model| model.nodes[3].layer = custom).contains("unknown kernel \"fft\""));
        let bias = Coded::encode(&[3], &[0.0; 3], &Plan::default()).unwrap();
        assert!(fault(|model| model.nodes[1].tensors[1].1 = bias).contains("bias has the shape [3], expected [4]"));
    }
}
