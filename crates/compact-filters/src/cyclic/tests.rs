use briquette_core::builder::{At, Builder, Conv};
use briquette_core::coding::{Coding, Source, floats};
use briquette_core::cost::Cost;
use briquette_core::stored::Storage;
use briquette_core::zoo::Arch;
use briquette_handmade::{get, refusal, run, small};
use briquette_runtime::{Engine, Model};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Value, json};

use super::*;
use crate::goldens::{golden, moved, near};

const GOLDENS: &str = include_str!("goldens.txt");

/// Outputs of Burn, which are those of the engine.
fn outputs(net: &Net, images: &[f32]) -> Vec<f32> {
    let shape = net.input_shape();
    let batch = images.len() / shape.iter().product::<usize>();
    let x = Tensor::<4>::from_data(TensorData::new(images.to_vec(), [batch, shape[0], shape[1], shape[2]]), &net.device());
    let found = floats(net.forward(x));
    let model = Model::from_bytes(&net.to_model(Storage::default()).unwrap().to_bytes().unwrap()).unwrap();
    near(&Engine::new(&model, 1).unwrap().run(images, batch).unwrap(), &found, "engine");
    found
}

fn net(shape: [usize; 3], layers: impl FnOnce(&mut Builder, At) -> At) -> Net {
    let mut b = Builder::new(shape, 1, &Device::flex());
    let input = b.input();
    let x = layers(&mut b, input);
    b.flatten("flatten", x);
    b.finish().unwrap()
}

/// Of `[views, batch, ..]`, as the goldens have it, `[batch, views, ..]`.
fn by_image(values: &[f32], views: usize, batch: usize) -> Vec<f32> {
    let block = values.len() / views / batch;
    (0..values.len())
        .map(|at| (at / block / views, at / block % views, at % block))
        .map(|(b, v, i)| values[(v * batch + b) * block + i])
        .collect()
}

#[test]
fn views_are_sliced_rolled_stacked_and_pooled_as_in_the_authors_program() {
    let slice = net([1, 3, 3], |b, x| b.fixed("slice", &[x], Views::Slice));
    let image: Vec<f32> = (1..10).map(|i| i as f32).collect();
    let views =
        [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 6, 9, 2, 5, 8, 1, 4, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1], [7, 4, 1, 8, 5, 2, 9, 6, 3]];
    assert_eq!(outputs(&slice, &image), views.concat().iter().map(|i| *i as f32).collect::<Vec<_>>());
    let x = by_image(&golden(GOLDENS, "x"), 4, 2);
    for (of, name, views) in [
        (Views::Roll, "roll", 4),
        (Views::Stack, "stack", 1),
        (Views::Mean, "mean", 1),
        (Views::Max, "max", 1),
        (Views::Rms, "rms", 1),
    ] {
        let net = net([8, 3, 3], |b, x| b.fixed(name, &[x], of));
        near(&outputs(&net, &x), &by_image(&golden(GOLDENS, name), views, 2), name);
    }
    let dense = net([12, 1, 1], |b, x| {
        let x = b.flatten("features", x);
        b.fixed("roll", &[x], Views::Roll)
    });
    near(&outputs(&dense, &golden(GOLDENS, "dense")), &golden(GOLDENS, "dense.roll"), "dense");
}

/// The network with these filters behind those of all views.
fn tiled(mut net: Net, layer: &str, values: &[f32]) -> Net {
    let (index, device) = (net.index(layer).unwrap(), net.device());
    let node = net.nodes.remove(index);
    let mut parameters = node.parameters();
    for stored in parameters.iter_mut().filter(|stored| stored.name == "weight") {
        let source = Source::shared(Places::Tiles { times: 4 }, values.to_vec(), &stored.shape).unwrap();
        stored.coding = Coding { mask: None, source };
    }
    net.nodes.insert(index, node.with(parameters, &device).unwrap());
    net
}

#[test]
fn a_network_of_views_turns_with_its_input() {
    let built = net([1, 6, 6], |b, x| {
        let x = b.fixed("slice", &[x], Views::Slice);
        let x = b.conv("a", x, Conv::new(4, 3).same().groups(4).no_bias());
        let x = b.relu("relu", x);
        let x = b.fixed("roll", &[x], Views::Roll);
        let x = b.conv("b", x, Conv::new(4, 3).same().groups(4).no_bias());
        b.fixed("pool", &[x], Views::Mean)
    });
    let built = tiled(tiled(built, "a", &golden(GOLDENS, "net.a")), "b", &golden(GOLDENS, "net.b"));
    let x = golden(GOLDENS, "net.x");
    let still = outputs(&built, &x);
    near(&still, &golden(GOLDENS, "net.output"), "net");
    (1..4).for_each(|turns| near(&outputs(&built, &moved(&x, turns)), &moved(&still, turns), "turned"));
}

#[test]
fn training_keeps_the_symmetry() {
    let settings = |epochs: usize| json!({ "pool": "max", "tune": { "epochs": epochs, "batch": 8, "lr": 0.01 } });
    let [start, trained] = [0, 3].map(|epochs| run::<Cyclic>(small(), settings(epochs)).unwrap());
    assert_ne!(get(&start, "conv1", "weight"), get(&trained, "conv1", "weight"));
    // The head sees the whole image, which turns; what it reads is compared.
    let pooled = |net: &Net, image: &[f32]| {
        let x = Tensor::<4>::from_data(TensorData::new(image.to_vec(), [1, 1, 4, 4]), &net.device());
        let (mut found, at) = (Vec::new(), net.index("flatten.pool").unwrap());
        net.trace(x, |index, value| {
            if index == at {
                found = floats(value.clone().map());
            }
            value
        });
        found
    };
    let image: Vec<f32> = (0..16).map(|i| ((i * i * 31) % 101) as f32 / 50.0 - 1.0).collect();
    for net in [&start, &trained] {
        let (still, turned) = (pooled(net, &image), pooled(net, &moved(&image, 1)));
        let expected: Vec<f32> = still.chunks(4).flat_map(|map| moved(map, 1)).collect();
        assert!(still.iter().any(|x| *x != still[0]));
        near(&turned, &expected, "turned");
    }
    outputs(&trained, &image);
}

#[test]
fn vgg_16_has_a_quarter_of_its_convolutions_weights() {
    let arch = Arch::named("vgg16-cifar").unwrap();
    let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
    let cost = |net: &Net| Cost::of(net).unwrap();
    let convolutions =
        |cost: &Cost| cost.layers.iter().filter(|layer| layer.kind == "conv2d").map(|layer| layer.weights).sum::<usize>();
    let before = cost(&net);
    let after = cost(&serde_json::from_value::<Cyclic>(json!({})).unwrap().plan(net).unwrap());
    assert_eq!((convolutions(&before), convolutions(&after)), (14_710_464, 3_677_616));
    let rest = |cost: &Cost| cost.weights() - convolutions(cost);
    assert_eq!((rest(&before), rest(&after)), (267_264, 267_264));
}

#[test]
fn what_does_not_turn_is_refused() {
    let refused = |sides: [usize; 2], conv: Conv, settings: Value| {
        let mut b = Builder::new([1, sides[0], sides[1]], 1, &Device::flex());
        let x = b.conv("conv", b.input(), conv);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        refusal::<Cyclic>(b.finish().unwrap(), settings)
    };
    let why = refused([6, 7], Conv::new(4, 3), json!({}));
    assert!(why.starts_with("node 'conv': reads maps of 6 by 7; only squares turn"), "{why}");
    let uneven = Conv { padding: briquette_core::Padding([[0, 1], [0, 1]]), ..Conv::new(4, 2) };
    let why = refused([6, 6], uneven, json!({}));
    assert!(why.starts_with("node 'conv': is padded more on one side"), "{why}");
    let why = refused([6, 6], Conv::new(4, 3).stride(2), json!({}));
    assert!(why.starts_with("node 'conv': in steps of 2 leaves out"), "{why}");
    let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
    let x = b.conv("conv", b.input(), Conv::new(4, 1));
    let x = b.fixed("concat", &[x, x], briquette_core::layers::Concat);
    b.flatten("flatten", x);
    let why = refusal::<Cyclic>(b.finish().unwrap(), json!({}));
    assert!(why.starts_with("node 'concat': (concat) cannot stand between channels of several maps"), "{why}");
}
