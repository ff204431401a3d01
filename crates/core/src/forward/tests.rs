use briquette_runtime::layers;
use burn::module::Module;
use burn::tensor::{Device, Distribution};

use super::*;
use crate::builder::{Builder, Conv};
use crate::coding::floats;
use crate::training::cross_entropy;
use crate::zoo::{Arch, Wanted};

fn narrow(name: &str) -> Net {
    let arch = Arch::named(name).unwrap();
    arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap()
}

/// Two normalized branches that meet in a sum, and a map that two nodes read.
fn branches() -> Net {
    let mut b = Builder::new([3, 9, 9], 3, &Device::flex());
    let stem = b.conv("stem", b.input(), Conv::new(6, 3).stride(2));
    let left = b.conv("left", stem, Conv::new(5, 3).same().no_bias());
    let left = b.batch_norm("left-norm", left);
    let right = b.conv("right", stem, Conv::new(5, 1));
    let right = b.batch_norm("right-norm", right);
    let sum = b.add("sum", &[left, right]);
    let sum = b.relu("relu", sum);
    let both = b.fixed("both", &[sum, stem], layers::Concat);
    let pooled = b.global_avg_pool("pool", both);
    b.linear("fc", pooled, 5);
    b.finish().unwrap()
}

#[test]
fn products_with_mean_magnitudes_agree_with_the_engine_however_maps_lie() {
    let mut b = Builder::new([3, 9, 9], 3, &Device::flex());
    let mean = b.fixed("mean", &[b.input()], layers::MeanMagnitude);
    let first = b.fixed("first", &[b.input(), mean], layers::Multiply);
    let conv = b.conv("conv", first, Conv::new(6, 3));
    let inner = b.fixed("inner", &[conv], layers::MeanMagnitude);
    let scaled = b.fixed("scaled", &[conv, inner], layers::Multiply);
    let square = b.fixed("square", &[scaled, conv], layers::Multiply);
    let x = b.flatten("flatten", square);
    let size = b.fixed("size", &[x], layers::MeanMagnitude);
    let x = b.fixed("vector", &[x, size], layers::Multiply);
    b.linear("fc", x, 5);
    let net = b.finish().unwrap();
    let x = Tensor::<4>::random([3, 3, 9, 9], Distribution::Normal(0.0, 1.0), &Device::flex());
    let ours = floats(net.forward(x.clone()));
    let model = net.to_model(crate::stored::Storage::default()).unwrap();
    let engine = briquette_runtime::Engine::new(&model, 1).unwrap().run(&floats(x.clone()), 3).unwrap();
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs()));
    assert!(near(&ours, &engine), "{ours:?} {engine:?}");
    assert!(near(&floats(net.trace(x, |_, value| value).vector()), &engine));
}

#[test]
fn nodes_are_joined_where_nobody_looks_between() {
    let net = narrow("resnet20");
    let joined = |training: bool| -> Vec<String> {
        let named = |step: &Step| {
            let name = |index: usize| net.nodes[index].name.clone();
            let residual = step.residual.map_or(String::new(), |index| format!(" + {}", name(index)));
            format!("{}{residual} -> {}", name(step.node), name(step.output))
        };
        steps(&net, Some(training)).iter().map(named).collect()
    };
    let (training, inference) = (joined(true), joined(false));
    assert_eq!(
        training[..6],
        [
            "conv1 -> conv1",
            "conv1.norm -> relu1",
            "layer1.0.conv1 -> layer1.0.conv1",
            "layer1.0.conv1.norm -> layer1.0.relu1",
            "layer1.0.conv2 -> layer1.0.conv2",
            "layer1.0.conv2.norm + relu1 -> layer1.0.relu2",
        ]
    );
    assert_eq!(
        inference[..3],
        ["conv1 -> relu1", "layer1.0.conv1 -> layer1.0.relu1", "layer1.0.conv2 + relu1 -> layer1.0.relu2",]
    );
    assert_eq!(steps(&net, None).len(), net.nodes.len() - 1);
}

#[test]
fn what_is_joined_computes_what_the_nodes_do() {
    let device = Device::flex();
    device.seed(9);
    for name in ["lenet5", "lenet300", "resnet20", "vgg11-cifar", "branches"] {
        let net = if name == "branches" { branches() } else { narrow(name) };
        let shape = net.input_shape();
        let x = Tensor::<4>::random([5, shape[0], shape[1], shape[2]], Distribution::Normal(0.0, 1.0), &device);
        let traced = floats(net.trace(x.clone(), |_, value| value).vector());
        let near = |a: &[f32], b: &[f32]| {
            let scale = b.iter().fold(1e-3_f32, |most, v| most.max(v.abs()));
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * scale)
        };
        assert!(near(&floats(net.forward(x.clone())), &traced), "{name}");

        let gradients = |run: &dyn Fn(&Net, Tensor<4>) -> Tensor<2>| -> Vec<f32> {
            let net = net.deep_clone().train();
            let x = Tensor::from_data(x.to_data(), &device.clone().autodiff());
            let grads = cross_entropy(run(&net, x), &[0, 1, 2, 3, 4], 0.0).backward();
            net.weighted().flat_map(|(_, node)| node.gradient("weight", &grads).unwrap()).collect()
        };
        let joined = gradients(&|net, x| net.forward(x));
        let alone = gradients(&|net, x| net.trace(x, |_, value| value).vector());
        assert!(near(&joined, &alone), "{name}");
    }
}

#[test]
fn taps_see_maps_channels_first_and_may_change_them() {
    let mut b = Builder::new([2, 5, 7], 3, &Device::flex());
    let x = b.conv("conv", b.input(), Conv::new(4, 3));
    let x = b.relu("relu", x);
    let x = b.flatten("flatten", x);
    b.linear("fc", x, 3);
    let net = b.finish().unwrap();
    let x = Tensor::<4>::ones([2, 2, 5, 7], &Device::flex());
    let mut shapes = Vec::new();
    let zeroed = net.trace(x, |index, value| match value {
        Value::Map(x) => {
            shapes.push(x.dims());
            Value::Map(if index == 1 { x.mul_scalar(0.0) } else { x })
        }
        vector @ Value::Vector(_) => vector,
    });
    assert_eq!(shapes, [[2, 2, 5, 7], [2, 4, 3, 5], [2, 4, 3, 5]]);
    assert!(floats(zeroed.vector()).iter().all(|v| *v == 0.0));
}
