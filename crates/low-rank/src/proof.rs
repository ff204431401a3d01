//! What every method of this crate owes, as checks for the methods' own tests.

use briquette_core::builder::Builder;
use briquette_core::coding::floats;
use briquette_core::cost::Cost;
use briquette_core::net::{Net, Op};
use briquette_core::pass::Pass;
use briquette_core::stored::{Storage, Stored};
use briquette_core::streams::{standard_normal, stream};
use briquette_handmade::{run, set};
use briquette_runtime::{Engine, Model};
use burn::nn::conv::Conv2dConfig;
use burn::nn::{LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The convolutions `[4, 9, 8] -> 6` of this kernel with strides, paddings per side, dilations and groups.
pub(crate) fn convolutions(kernel: [usize; 2]) -> Vec<Net> {
    let plain = Conv2dConfig::new([4, 6], kernel);
    let sided = PaddingConfig2d::Explicit(1, 2, 0, 1);
    let all = [
        plain.clone(),
        plain.clone().with_stride([2, 1]).with_padding(sided.clone()),
        plain.clone().with_stride([1, 3]).with_padding(sided.clone()).with_dilation([2, 1]),
        plain.clone().with_groups(2).with_padding(sided).with_stride([2, 2]),
        plain.with_bias(false).with_dilation([1, 2]),
    ];
    all.into_iter().map(|config| around(&[4, 9, 8], |device| Op::Conv2d(config.init(device)))).collect()
}

/// A fully connected layer of 12 inputs and 9 outputs.
pub(crate) fn connected() -> Net {
    around(&[12, 1, 1], |device| Op::Linear(LinearConfig::new(12, 9).init(device)))
}

fn around(input: &[usize; 3], layer: impl Fn(&Device) -> Op) -> Net {
    let device = Device::flex();
    let mut b = Builder::new(*input, 1, &device);
    let op = layer(&device);
    let flat = matches!(op, Op::Linear(_));
    let mut x = b.input();
    if flat {
        x = b.flatten("flatten", x);
    }
    x = b.push("layer", &[x], op);
    if !flat {
        b.flatten("flatten", x);
    }
    let net = b.finish().unwrap();
    // Burn draws from one generator for all tests that run at once.
    let parameters = net.nodes[net.index("layer").unwrap()].parameters();
    let drawn = |net, stored: &Stored| set(net, "layer", stored.name, &noise(stored.name, stored.base.len()));
    parameters.iter().fold(net, drawn)
}

/// Normal numbers, always the same of this name.
fn noise(name: &str, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(stream(5, name));
    (0..count).map(|_| standard_normal(&mut rng) as f32).collect()
}

/// The networks with a convolution whose kernel, in each group, is a sum of so many rank-one tensors.
pub(crate) fn planted(nets: Vec<Net>, rank: usize) -> Vec<Net> {
    let plant = |net: Net| {
        let [n, c, kh, kw] = net.nodes[net.index("layer").unwrap()].op.weight_shape().unwrap()[..] else { panic!("a kernel") };
        let factor = |seed: usize, at: usize, term: usize| (((at + 1) * (seed + 3 * term + 5) * 37 % 23) as f32 - 11.0) / 12.0;
        let value = |at: usize| {
            let place = [at / (c * kh * kw), at / (kh * kw) % c, at / kw % kh, at % kw];
            (0..rank).map(|term| place.iter().enumerate().map(|(mode, at)| factor(mode, *at, term)).product::<f32>()).sum()
        };
        set(net, "layer", "weight", &(0..n * c * kh * kw).map(value).collect::<Vec<f32>>())
    };
    nets.into_iter().map(plant).collect()
}

/// Outputs for three images.
pub(crate) fn outputs(net: &Net) -> Vec<f32> {
    floats(net.forward(images(net)))
}

fn images(net: &Net) -> Tensor<4> {
    let [c, h, w] = net.input_shape()[..] else { panic!("images") };
    Tensor::from_data(TensorData::new(noise("images", 3 * c * h * w), [3, c, h, w]), &net.device())
}

/// The largest difference between outputs, over their largest magnitude.
pub(crate) fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(f32::MIN_POSITIVE, |most, v| most.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size
}

/// The settings with further ones.
pub(crate) fn with(settings: &Value, mut more: Value) -> Value {
    let mut all = settings.clone();
    all.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
    all
}

/// At full rank, unless the settings name another, the chain computes what the layer did, here, from its container and in the engine; a plan has
/// its shapes and its cost.
pub(crate) fn reproduces<P: Pass + DeserializeOwned>(nets: Vec<Net>, settings: &Value) {
    let settings = with(&with(&json!({ "ranks": { "fraction": 1.0 } }), settings.clone()), json!({ "break-even": "off" }));
    for net in nets {
        let expected = outputs(&net);
        let chained = run::<P>(net.deep_clone(), settings.clone()).unwrap();
        assert_ne!(Cost::of(&chained).unwrap(), Cost::of(&net).unwrap(), "nothing was replaced");
        let found = outputs(&chained);
        assert!(apart(&found, &expected) < 1e-4, "{:?}: {}", net.nodes[1].op.layer(), apart(&found, &expected));
        let bytes = chained.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let model = Model::from_bytes(&bytes).unwrap();
        assert!(apart(&outputs(&Net::from_model(&model, &Device::flex()).unwrap()), &found) < 1e-6);
        let engine = Engine::new(&model, 1).unwrap().run(&floats(images(&net)), 3).unwrap();
        assert!(apart(&engine, &expected) < 1e-4);
        let planned = serde_json::from_value::<P>(settings.clone()).unwrap().plan(net).unwrap();
        assert_eq!(planned.shapes().unwrap(), chained.shapes().unwrap());
        assert_eq!(Cost::of(&planned).unwrap(), Cost::of(&chained).unwrap());
    }
}
