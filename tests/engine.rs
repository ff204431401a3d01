//! The engine, which knows nothing of Burn, against Burn's forward pass.

use briquette_core::cost::Cost;
use briquette_core::net::{Net, Node, Op};
use briquette_core::stored::Storage;
use briquette_core::zoo::Wanted;
use briquette_runtime::layers::Arity;
use briquette_runtime::{Activation, Engine, Layer, Model, Padding, StepGradient, Structure, Window, layers};

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest difference of the two outputs, relative to the largest logit.
pub(crate) fn difference(net: &Net, model: &Model, images: Vec<f32>, batch: usize) -> f32 {
    let engine = Engine::new(model, 2).unwrap().run(&images, batch).unwrap();
    let shape = net.input_shape();
    let images = Tensor::<4>::from_data(TensorData::new(images, [batch, shape[0], shape[1], shape[2]]), &net.device());
    let burn = briquette_core::coding::floats(net.forward(images));
    assert_eq!(engine.len(), burn.len());
    let scale = burn.iter().fold(1e-6_f32, |most, v| most.max(v.abs()));
    engine.iter().zip(&burn).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / scale
}

/// Random vectors in place of zero biases and neutral normalization.
fn stir(net: Net, rng: &mut ChaCha8Rng) -> Net {
    let device = net.device();
    let nodes = net.nodes.into_iter().map(|node| {
        let mut parameters = node.parameters();
        for parameter in parameters.iter_mut().filter(|parameter| parameter.shape.len() == 1) {
            let range = if matches!(parameter.name, "gamma" | "var") { 0.5..1.5 } else { -0.5..0.5 };
            parameter.base.iter_mut().for_each(|v| *v = rng.random_range(range.clone()));
        }
        node.with(parameters, &device).unwrap()
    });
    Net { nodes: nodes.collect() }
}

#[test]
fn the_networks_that_tables_start_from_are_read_and_run() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let containers: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "brq")).collect();
    assert!(!containers.is_empty());
    for path in containers {
        let model =
            Model::from_bytes(&std::fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let net = Net::from_model(&model, &Device::flex()).unwrap();
        let image: Vec<f32> = (0..net.input_shape().iter().product()).map(|i| (i % 17) as f32 / 17.0).collect();
        let logits = Engine::new(&model, 1).unwrap().run(&image, 1).unwrap();
        assert!(logits.iter().all(|value| value.is_finite()), "{}", path.display());
    }
}

#[test]
fn engine_and_burn_agree_on_every_net_of_the_zoo() {
    for arch in briquette_runner::zoo() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        // Narrow where the full net is heavy: the operations and their wiring are the same.
        let macs = Cost::of(&arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap().macs();
        let width = if arch.input[1] > 32 || macs > 1_000_000_000 { 0.125 } else { 0.5 };
        let normalization = Some((vec![0.4; arch.input[0]], vec![0.3; arch.input[0]]));
        let wanted = Wanted { width, normalization, ..arch.wanted() };
        let net = stir(arch.build(&wanted, &Device::flex()).unwrap(), &mut rng);
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let model = Model::from_bytes(&bytes).unwrap();
        let batch = 2;
        let images = (0..batch * arch.input.iter().product::<usize>()).map(|_| rng.random_range(0.0..1.0)).collect();
        let difference = difference(&net, &model, images, batch);
        assert!(difference <= 1e-4, "{}: {difference}", arch.name);
    }
}

/// Layers with usual settings for four channels, and whether a vector of four features is one that they take.
fn layers() -> Vec<(Layer, bool)> {
    let window = Window { padding: Padding::all(1), ..Window::new([3, 2], [2, 1]) };
    // Of five rows and six columns the last windows of both axes go beyond the border.
    let sides = Padding([[1, 0], [0, 1]]);
    let open = Window { padding: sides, ceil: true, ..Window::new([3, 3], [3, 4]) };
    let (size, alpha, beta, k) = (4, 0.5, 0.75, 2.0);
    let structure = Structure::Circulant { inputs: 4, outputs: 6, seed: 1 };
    vec![
        (Layer::Normalize(layers::Normalize { mean: vec![0.1, 0.2, 0.3, 0.4], std: vec![0.5, 0.6, 0.7, 0.8] }), false),
        (Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::all(1), dilation: [1, 1], groups: 2 }), false),
        (
            Layer::Conv2d(layers::Conv2d { stride: [2, 1], padding: Padding([[0, 2], [3, 1]]), dilation: [1, 2], groups: 2 }),
            false,
        ),
        (Layer::Linear(layers::Linear), true),
        (Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-3 }), true),
        (Layer::LocalResponseNorm(layers::LocalResponseNorm { size, alpha, beta, k }), false),
        (Layer::LocalResponseNorm(layers::LocalResponseNorm { size: 23, alpha, beta, k }), false),
        (Layer::Activation(Activation::Gelu), true),
        (Layer::Softmax(layers::Softmax), true),
        (Layer::MaxPool(layers::MaxPool { window }), false),
        (Layer::AvgPool(layers::AvgPool { window, count_padding: true }), false),
        (Layer::AvgPool(layers::AvgPool { window, count_padding: false }), false),
        (Layer::MaxPool(layers::MaxPool { window: open }), false),
        (Layer::AvgPool(layers::AvgPool { window: open, count_padding: true }), false),
        (Layer::AvgPool(layers::AvgPool { window: open, count_padding: false }), false),
        (Layer::AdaptiveAvgPool(layers::AdaptiveAvgPool { output: [2, 3] }), false),
        (Layer::GlobalAvgPool(layers::GlobalAvgPool), false),
        (Layer::Add(layers::Add), true),
        (Layer::Concat(layers::Concat), true),
        (Layer::ChannelSlice(layers::ChannelSlice { start: 1, len: 2 }), true),
        (Layer::PadShortcut(layers::PadShortcut { stride: 2, before: 1, after: 2 }), false),
        (layers::Permute { order: vec![2, 0, 3, 1] }.into(), true),
        (Layer::Flatten(layers::Flatten), true),
        (Layer::Dropout(layers::Dropout { p: 0.5 }), true),
        (Layer::Structured(layers::Structured { structure }), true),
        (Layer::Quantize(layers::Quantize { levels: 5, zero: 2.0, train: StepGradient::Fixed }), true),
        (Layer::MeanMagnitude(layers::MeanMagnitude), true),
        (Layer::Multiply(layers::Multiply), true),
        (layers::Clip { low: Some(-0.5), high: Some(0.25) }.into(), true),
        (layers::Pad { padding: Padding([[1, 3], [2, 0]]) }.into(), false),
        (layers::Negate.into(), true),
        (layers::Affine.into(), true),
        (layers::SpatialSampling { stride: 2, grid: 4 }.into(), false),
        (layers::ChannelPool { grid: [2, 2], window: [1, 2], reduction: layers::Reduction::Max }.into(), true),
        (layers::ChannelPool { grid: [1, 2], window: [1, 2], reduction: layers::Reduction::Mean }.into(), true),
        (layers::Regroup { maps: 2, apart: true, back: false }.into(), false),
        (layers::Cyclic::Roll.into(), true),
        (layers::Cyclic::Rms.into(), true),
        (layers::Experts { experts: 4, chosen: 2, inputs: 4, outputs: 3 }.into(), true),
        (layers::Noise { epsilon: 1e-2 }.into(), true),
    ]
}

#[test]
fn every_layer_computes_on_vectors_as_on_maps_or_refuses_them() {
    let device = Device::flex();
    let node = |name: &str, inputs: &[usize], op: Op| Node { op, name: name.into(), inputs: inputs.to_vec() };
    let fixed = |name: &str, inputs: &[usize], layer: Layer| node(name, inputs, Op::fixed(layer));
    for (layer, takes_vectors) in layers() {
        for vector in [false, true] {
            // What the layer reads is a node of its own, so that a vector may come from images.
            let before = if vector { Layer::GlobalAvgPool(layers::GlobalAvgPool) } else { Layer::Activation(Activation::Tanh) };
            let inputs: &[usize] = match layer.kind().arity() {
                Arity::Two | Arity::More => &[1, 1],
                Arity::Zero | Arity::One | Arity::Three => &[1],
            };
            let mut rng = ChaCha8Rng::seed_from_u64(8);
            let mut parameter = |name: &'static str, shape: &[usize]| briquette_core::stored::Stored {
                name,
                shape: shape.to_vec(),
                base: (0..shape.iter().product()).map(|_| rng.random_range(0.2..1.0)).collect(),
                coding: Default::default(),
            };
            let parameters = match &layer {
                Layer::Conv2d(_) => vec![parameter("weight", &[6, 2, 3, 3])],
                Layer::Linear(_) => vec![parameter("weight", &[6, 4])],
                Layer::BatchNorm(_) => ["gamma", "beta", "mean", "var"].map(|name| parameter(name, &[4])).to_vec(),
                Layer::Affine(_) => ["scale", "shift"].map(|name| parameter(name, &[4])).to_vec(),
                Layer::Structured(layers::Structured { structure }) => {
                    structure.parameters().iter().map(|p| parameter(p.name, &p.shape)).collect()
                }
                Layer::Quantize(_) => vec![parameter("step", &[1])],
                Layer::Experts(_) => vec![parameter("weights", &[4, 3, 4]), parameter("biases", &[12])],
                plain => {
                    assert!(plain.kind().tensors().is_empty(), "{plain:?} has parameters, which this test does not make");
                    Vec::new()
                }
            };
            let at_hand = fixed("layer", inputs, Layer::Flatten(layers::Flatten)).replaced(&layer, parameters, &device).unwrap();
            let input = fixed("input", &[], Layer::Input(layers::Input { shape: vec![4, 5, 6] }));
            let mut nodes = vec![input, fixed("before", &[0], before), at_hand];
            nodes.push(fixed("flat", &[2], Layer::Flatten(layers::Flatten)));
            let net = Net { nodes };
            // What turns is square.
            let of_vectors = matches!(layer, Layer::Linear(_) | Layer::Cyclic(_) | Layer::Experts(_) | Layer::Noise(_));
            let taken = if vector { takes_vectors } else { !of_vectors };
            match net.shapes() {
                Ok(_) => assert!(taken, "{layer:?} on a {}", if vector { "vector" } else { "map" }),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!taken && error.starts_with(&format!("node 'layer': {}", layer.kind().name())), "{layer:?}: {error}");
                }
            }
            // The container of the same network says the same.
            let Ok(model) = net.to_model(Storage::default()) else {
                assert!(!taken, "{layer:?}");
                continue;
            };
            assert_eq!(Engine::new(&model, 1).is_ok(), taken, "{layer:?}");
            assert_eq!(Net::from_model(&model, &device).is_ok(), taken, "{layer:?}");
            assert_eq!(Model::verify(&model.to_bytes().unwrap()).is_empty(), taken, "{layer:?}");
            if taken {
                let images = (0..3 * 120).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
                let difference = difference(&net, &model, images, 3);
                assert!(difference <= 1e-5, "{layer:?} on a {}: {difference}", if vector { "vector" } else { "map" });
            }
        }
    }
}
