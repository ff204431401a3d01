//! Padding that differs from side to side is what a `pad` node in front of the layer makes, wherever the layer runs.

use briquette_core::coding::floats;
use briquette_core::cost::Cost;
use briquette_core::net::{Net, Node, Op};
use briquette_core::stored::{Storage, Stored};
use briquette_runtime::{Activation, Engine, Layer, Model, Padding, Window, layers};
use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const INPUT: [usize; 3] = [4, 7, 6];

/// `layer` behind a rectifier, so that zeros around its input never win, and its padding once more as a node of its own.
fn nets(layer: &Layer) -> [Net; 2] {
    let device = Device::flex();
    let node = |name: &str, inputs: &[usize], op: Op| Node { op, name: name.into(), inputs: inputs.to_vec() };
    let fixed = |name: &str, inputs: &[usize], layer: Layer| node(name, inputs, Op::fixed(layer));
    let weight = |groups: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let shape = vec![8, 4 / groups, 3, 2];
        let base = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        vec![Stored { name: "weight", shape, base, coding: Default::default() }]
    };
    let (padding, plain, parameters) = match layer {
        Layer::Conv2d(conv) => (conv.padding, layers::Conv2d { padding: Padding::NONE, ..*conv }.into(), weight(conv.groups)),
        Layer::MaxPool(layers::MaxPool { window }) => {
            (window.padding, layers::MaxPool { window: Window { padding: Padding::NONE, ..*window } }.into(), Vec::new())
        }
        Layer::AvgPool(pool) => {
            let window = Window { padding: Padding::NONE, ..pool.window };
            (pool.window.padding, layers::AvgPool { window, ..*pool }.into(), Vec::new())
        }
        other => panic!("{other:?} has no padding"),
    };
    let with = |from: usize, layer: &Layer| {
        fixed("layer", &[from], layers::Flatten.into()).replaced(layer, parameters.clone(), &device).unwrap()
    };
    let head = || {
        vec![fixed("input", &[], layers::Input { shape: INPUT.to_vec() }.into()), fixed("relu", &[0], Activation::Relu.into())]
    };
    let mut inside = head();
    inside.extend([with(1, layer), fixed("flat", &[2], layers::Flatten.into())]);
    let mut around = head();
    around.extend([fixed("pad", &[1], layers::Pad { padding }.into()), with(2, &plain)]);
    around.push(fixed("flat", &[3], layers::Flatten.into()));
    [inside, around].map(|nodes| Net { nodes })
}

/// Layers with padding that differs from side to side.
fn padded() -> Vec<Layer> {
    let sides = [[[0, 2], [1, 0]], [[2, 0], [0, 1]], [[1, 2], [0, 0]], [[1, 1], [0, 0]]].map(Padding);
    let mut all = Vec::new();
    for padding in sides {
        for (groups, stride, dilation) in [(1, [1, 1], [1, 1]), (2, [2, 3], [1, 1]), (4, [1, 2], [2, 1]), (1, [2, 1], [1, 2])] {
            all.push(layers::Conv2d { stride, padding, dilation, groups }.into());
        }
        for stride in [[1, 1], [2, 3]] {
            let window = Window { padding, ..Window::new([3, 2], stride) };
            all.push(layers::MaxPool { window }.into());
            all.push(layers::AvgPool { window, count_padding: true }.into());
        }
    }
    all
}

fn near(what: &Layer, found: &[f32], wanted: &[f32]) {
    let off = |(a, b): (&f32, &f32)| (a - b).abs() / (1.0 + b.abs());
    let near = found.len() == wanted.len() && found.iter().zip(wanted).all(|pair| off(pair) < 1e-5);
    assert!(near, "{what:?}: {found:?} and {wanted:?}");
}

#[test]
fn a_layer_with_padding_is_the_layer_without_behind_a_pad_in_training_and_in_the_engine() {
    let device = Device::flex();
    device.seed(6);
    for layer in padded() {
        let nets = nets(&layer);
        let x = floats(Tensor::<4>::random([3, INPUT[0], INPUT[1], INPUT[2]], Distribution::Normal(0.0, 1.0), &device));
        let of = |net: &Net| {
            let net = net.deep_clone().train();
            let images = TensorData::new(x.clone(), [3, INPUT[0], INPUT[1], INPUT[2]]);
            let images = Tensor::<4>::from_data(images, &device.clone().autodiff()).require_grad();
            let y = net.forward(images.clone());
            let grads = y.clone().powi_scalar(3).sum().backward();
            let weight = net.nodes.iter().find_map(|node| node.gradient("weight", &grads)).unwrap_or_default();
            [floats(y.inner()), floats(images.grad(&grads).unwrap()), weight]
        };
        let [inside, around] = [of(&nets[0]), of(&nets[1])];
        inside.iter().zip(&around).for_each(|(inside, around)| near(&layer, inside, around));
        for net in &nets {
            let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
            assert!(Model::verify(&bytes).is_empty());
            let model = Model::from_bytes(&bytes).unwrap();
            near(&layer, &Engine::new(&model, 1).unwrap().run(&x, 3).unwrap(), &inside[0]);
            let back = Net::from_model(&model, &device).unwrap();
            assert_eq!(back.shapes().unwrap(), net.shapes().unwrap());
        }
        let [inside, around] = [&nets[0], &nets[1]].map(|net| Cost::of(net).unwrap().macs());
        assert_eq!(inside, around);
    }
}
