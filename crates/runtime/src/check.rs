//! Whether a model is whole: wiring, names, shapes.

use std::collections::HashSet;

use crate::layers::Extent;
use crate::{Coded, Error, Layer, Model, Node, activations, branches};

impl Model {
    /// Checks the wiring, the names, every shape, and how much of the feature maps has to be held at a time
    /// ([`MAX_ACTIVATIONS`](activations::MAX_ACTIVATIONS)); returns the output shape of each node.
    ///
    /// # Errors
    /// The first fault, with the node it is in.
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
        let wired = self.nodes.iter().map(|node| (&node.layer, node.inputs.as_slice()));
        branches::paths(wired).map_err(|(position, detail)| {
            Error::Wiring { detail }.within(format!("node {position} {:?}", self.nodes[position].name))
        })?;
        let size = |shape: &Vec<usize>| shape.iter().product();
        activations::bounded(self.nodes.iter().zip(&shapes).map(|(node, shape)| (node.inputs.as_slice(), size(shape))))?;
        Ok(shapes)
    }
}

fn output_shape(position: usize, node: &Node, shapes: &[Vec<usize>]) -> Result<Vec<usize>, Error> {
    let wiring = |detail: String| Err(Error::Wiring { detail });
    let kind = node.layer.kind();
    match (matches!(node.layer, Layer::Input(_)), position) {
        (true, 0) | (false, 1..) => {}
        (true, 1..) => return wiring("only node 0 is an input".into()),
        (false, 0) => return wiring(format!("node 0 is a {}, not an input", kind.name())),
    }
    if let Some(input) = node.inputs.iter().find(|input| **input >= position) {
        return wiring(format!("input {input} is not an earlier node"));
    }
    let inputs: Vec<&[usize]> = node.inputs.iter().map(|input| shapes[*input].as_slice()).collect();
    let shape = node.layer.output_shape(&inputs, node.tensor("weight").map(Coded::shape))?;
    let tensors = kind.tensors();
    if let Some(tensor) = tensors.iter().find(|tensor| tensor.required && node.tensor(tensor.name).is_none()) {
        return wiring(format!("the tensor {:?} is missing", tensor.name));
    }
    let mut names = HashSet::new();
    for (name, coded) in &node.tensors {
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name == name) else {
            return wiring(format!("a {} has no tensor {name:?}", kind.name()));
        };
        if !names.insert(name) {
            return wiring(format!("two tensors {name:?}"));
        }
        let expected = match &tensor.shape {
            Extent::Free => coded.shape(),
            Extent::Outputs => &shape[..1],
            Extent::Exactly(shape) => shape,
        };
        if coded.shape() != expected {
            return wiring(format!("{name} has the shape {:?}, expected {expected:?}", coded.shape()));
        }
        if let Layer::Quantize(quantize) = &node.layer {
            let step = quantize.step(coded.decode()[0]);
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
    use crate::container::tests::example;
    use crate::layers::MAX_WINDOW;
    use crate::{Padding, Permission, Window, layers};

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
        assert!(fault(|model| model.nodes[1].layer = Layer::Add(layers::Add)).contains("takes two or more"));
        assert!(fault(|model| drop(model.nodes.remove(0))).contains("not an input"));
        assert!(fault(|model| model.nodes.clear()).contains("without nodes"));
        assert!(fault(|model| model.nodes[2].tensors.truncate(3)).contains("\"var\" is missing"));
        let bias = Coded::encode(&[3], &[0.0; 3], None, &Permission::default()).unwrap();
        assert!(fault(|model| model.nodes[1].tensors[1].1 = bias).contains("bias has the shape [3], expected [4]"));
    }

    #[test]
    fn feature_maps_beyond_the_limit_are_refused_before_anything_is_made_of_them() {
        let node =
            |name: &str, inputs: &[usize], layer| Node { name: name.into(), inputs: inputs.to_vec(), layer, tensors: vec![] };
        let pool = |output| Layer::AdaptiveAvgPool(layers::AdaptiveAvgPool { output });
        let of = |outputs: &[[usize; 2]]| {
            let mut nodes = vec![node("x", &[], Layer::Input(layers::Input { shape: vec![1, 1, 1] }))];
            nodes.extend(outputs.iter().enumerate().map(|(i, output)| node(&format!("pool{i}"), &[i], pool(*output))));
            Model { nodes, meta: Default::default() }
        };
        // Each in itself, and both together.
        for (model, expected) in [
            (
                of(&[[1 << 14, 1 << 14]]),
                "adaptive-avg-pool: the output [1, 16384, 16384] of one sample has more values than the limit of 67108864",
            ),
            (of(&[[1 << 25, 1], [1 << 25, 1], [1 << 25, 2]]), "needed at a time: 100663296 is more than the limit of 67108864"),
        ] {
            let bytes = model.to_bytes().unwrap();
            assert!(bytes.len() < 100 && Model::verify(&bytes)[0].contains(expected), "{:?}", Model::verify(&bytes));
            assert!(model.check().is_err() && crate::Engine::new(&model, 1).is_err());
        }
        assert!(of(&[[1 << 25, 1], [1 << 25, 1], [1 << 12, 1 << 12]]).check().is_ok());
    }

    #[test]
    fn settings_that_no_layer_takes_are_refused() {
        let of = |shape: &[usize], layer: Layer| {
            let input = Node {
                name: "x".into(),
                inputs: vec![],
                layer: Layer::Input(layers::Input { shape: shape.to_vec() }),
                tensors: vec![],
            };
            let node = Node { name: "y".into(), inputs: vec![0], layer, tensors: vec![] };
            Model { nodes: vec![input, node], meta: Default::default() }.check().is_ok()
        };
        let window = |side: usize| {
            Layer::MaxPool(layers::MaxPool {
                window: Window { padding: Padding::all(side - 1), ..Window::new([side; 2], [1; 2]) },
            })
        };
        assert!(of(&[1, 9, 9], window(9)) && !of(&[1, 9, 9], window(1 << 13)));
        let norm = |size: usize| Layer::LocalResponseNorm(layers::LocalResponseNorm { size, alpha: 1.0, beta: 0.75, k: 1.0 });
        assert!(of(&[1, 9, 9], norm(usize::MAX >> 1)) && !of(&[1, 9, 9], norm(0)) && !of(&[9], norm(3)));
        let epsilon = |epsilon: f64| Layer::BatchNorm(layers::BatchNorm { epsilon }).kind().check().is_ok();
        let slope = |slope: f64| Layer::Activation(crate::Activation::LeakyRelu { slope }).kind().check().is_ok();
        let p = |p: f64| Layer::Dropout(layers::Dropout { p }).kind().check().is_ok();
        assert!(epsilon(1e-5) && !epsilon(-1.2e-34) && !epsilon(0.0) && !epsilon(f64::NAN) && !epsilon(f64::INFINITY));
        assert!(slope(-0.1) && !slope(f64::NAN) && p(0.0) && p(0.9) && !p(1.0) && !p(-0.1) && !p(f64::NAN));
        let pixels = |mean: f32, std: f32| Layer::Normalize(layers::Normalize { mean: vec![mean], std: vec![std] });
        assert!(of(&[1, 9, 9], pixels(0.5, 0.5)) && !of(&[1], pixels(0.5, 0.5)));
        for (mean, std) in [(f32::NAN, 1.0), (0.5, 0.0), (0.5, -1.0), (0.5, f32::INFINITY)] {
            assert!(!of(&[1, 9, 9], pixels(mean, std)), "{mean} {std}");
        }
        for shape in [&[][..], &[3, 4], &[1, 2, 3, 4], &[0]] {
            assert!(!of(shape, Layer::Softmax(layers::Softmax)), "{shape:?}");
        }
    }

    #[test]
    fn padding_that_makes_maps_beyond_the_limit_is_refused_whatever_the_output() {
        let of = |layer: Layer, weight: Option<[usize; 4]>| {
            let node = |name: &str, inputs: Vec<usize>, layer, tensors| Node { name: name.into(), inputs, layer, tensors };
            let input = node("x", vec![], Layer::Input(layers::Input { shape: vec![1, 5, 5] }), vec![]);
            let tensor = |shape: [usize; 4]| {
                let values = vec![1.0; shape.iter().product()];
                ("weight".to_string(), Coded::encode(&shape, &values, None, &Permission::default()).unwrap())
            };
            let model = Model {
                nodes: vec![input, node("y", vec![0], layer, weight.map(tensor).into_iter().collect())],
                meta: Default::default(),
            };
            let bytes = model.to_bytes().unwrap();
            let read = Model::from_bytes(&bytes).unwrap();
            assert_eq!(read.to_bytes().unwrap(), bytes);
            Model::verify(&bytes)
        };
        let half = usize::MAX >> 2;
        for sides in [
            [[half, half], [0, 0]],
            [[0, usize::MAX >> 1], [usize::MAX >> 1, 0]],
            [[1 << 25, 0], [0, 1 << 25]],
            [[0, 1 << 26], [0; 2]],
        ] {
            let padding = Padding(sides);
            let conv = layers::Conv2d { stride: [1 << 30, 1 << 30], padding, dilation: [1, 1], groups: 1 };
            let faults = of(conv.into(), Some([1, 1, 3, 3]));
            assert!(faults[0].contains("has more values than the limit of 67108864"), "{faults:?}");
            assert!(!of(layers::Pad { padding }.into(), None).is_empty());
            let window = Window { padding, ..Window::new([3, 3], [1 << 30, 1 << 30]) };
            assert!(of(layers::MaxPool { window }.into(), None)[0].contains("does not fit the input"));
        }
        // What `ceil` adds is bounded as well, and a window may begin behind none of its padding.
        let wide = Window { ceil: true, ..Window::new([MAX_WINDOW, MAX_WINDOW], [MAX_WINDOW, MAX_WINDOW]) };
        assert!(of(layers::MaxPool { window: wide }.into(), None).is_empty());
        let far = Window { padding: Padding([[0, 0], [0, 3]]), ..Window::new([3, 3], [1, 1]) };
        assert!(!of(layers::AvgPool { window: far, count_padding: true }.into(), None).is_empty());
        let near = Window { padding: Padding([[0, 0], [0, 2]]), ..far };
        assert!(of(layers::AvgPool { window: near, count_padding: true }.into(), None).is_empty());
        for stride in [0, usize::MAX >> 1] {
            let window = Window { ceil: true, ..Window::new([3, 3], [stride, 1]) };
            assert_eq!(of(layers::MaxPool { window }.into(), None).is_empty(), stride > 0, "{stride}");
        }
    }
}
