//! Networks with weights set by hand, and a few images, for the tests of the methods.

use briquette_core::builder::{Builder, Conv};
use briquette_core::coding::{Rounding, Source, floats};
use briquette_core::context::{Context, Data, Host, Silent};
use briquette_core::error::Result;
use briquette_core::net::{Net, Node};
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::Pass;
use briquette_core::training::{self, evaluate, probe, renew};
use briquette_data::{Dataset, Loader};
use burn::tensor::{Device, Tensor};
use serde::de::DeserializeOwned;

/// Two convolutions of 4 and 3 filters, the first with batch norm, and two fully connected layers of 5 and 3 outputs, for images of 4 by 4.
pub fn small() -> Net {
    let mut b = Builder::new([1, 4, 4], 11, &Device::flex());
    let mut x = b.conv("conv1", b.input(), Conv::new(4, 2).no_bias());
    x = b.batch_norm("norm1", x);
    x = b.relu("relu1", x);
    x = b.conv("conv2", x, Conv::new(3, 2));
    x = b.relu("relu2", x);
    x = b.flatten("flatten", x);
    x = b.linear("fc1", x, 5);
    x = b.relu("relu3", x);
    b.linear("fc2", x, 3);
    b.finish().unwrap()
}

/// [`small`] with a normalization that shifts.
pub fn stirred() -> Net {
    set(set(small(), "norm1", "beta", &[0.3, 0.5, -0.1, 0.2]), "norm1", "mean", &[0.1, 0.0, -0.2, 0.3])
}

/// [`small`], but channel 1 of the first convolution computes twice what channel 3 does, and channel 2 is not read.
pub fn dependent() -> Net {
    let mut filters = get(&small(), "conv1", "weight");
    (0..4).for_each(|tap| filters[4 + tap] = 2.0 * filters[12 + tap]);
    let mut readers = get(&small(), "conv2", "weight");
    (0..3 * 4 * 4).filter(|i| i / 4 % 4 == 2).for_each(|i| readers[i] = 0.0);
    set(set(small(), "conv1", "weight", &filters), "conv2", "weight", &readers)
}

/// The network with other values in a parameter of a layer, in the layout of `Node::weight`.
pub fn set(mut net: Net, layer: &str, parameter: &str, values: &[f32]) -> Net {
    let (index, device) = (net.index(layer).unwrap(), net.device());
    let node = net.nodes.remove(index);
    let mut parameters = node.parameters();
    let changed = parameters.iter_mut().find(|stored| stored.name == parameter).unwrap();
    assert_eq!(changed.base.len(), values.len(), "{layer}.{parameter} is {:?}", changed.shape);
    changed.base = values.to_vec();
    net.nodes.insert(index, node.with(parameters, &device).unwrap());
    net
}

/// The effective values of a parameter.
pub fn get(net: &Net, layer: &str, parameter: &str) -> Vec<f32> {
    let parameters = net.nodes[net.index(layer).unwrap()].parameters();
    parameters.iter().find(|stored| stored.name == parameter).unwrap().values()
}

/// 40 images of 4 by 4 in 3 classes.
pub fn images() -> Data {
    let labels = (0..40).map(|i| i % 3).collect();
    let all = Dataset::from_memory("handmade", [1, 4, 4], 3, pixels(), labels).unwrap();
    Data { train: all.clone(), valid: all.clone(), test: all }
}

/// [`images`] with the classes that a network finds in them.
pub fn labelled(net: &Net) -> Data {
    let largest = |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u16;
    // In the order in which they lie; a probe draws its own.
    let plain = images().train;
    let batch = Loader::ordered(&plain, plain.len()).next().unwrap().unwrap();
    let logits = floats(net.forward(training::images(&batch, plain.shape, &net.device())));
    let labels = logits.chunks_exact(3).map(largest).collect();
    let all = Dataset::from_memory("labelled", [1, 4, 4], 3, pixels(), labels).unwrap();
    Data { train: all.clone(), valid: all.clone(), test: all }
}

fn pixels() -> Vec<u8> {
    (0..40_usize * 16).map(|i| (i * i * 31 % 251) as u8).collect()
}

/// Outputs for all [`images`], in an order of their own.
pub fn outputs(net: &Net) -> Vec<f32> {
    let (data, mut silent) = (images(), Silent);
    let mut outputs = Vec::new();
    probe(&mut context(&data, &mut silent), "all", (1, 40), &Device::flex(), |images, _| {
        outputs = floats(net.forward(images));
        Ok(())
    })
    .unwrap();
    outputs
}

/// Runs a method with these settings.
pub fn run<P: Pass + DeserializeOwned>(net: Net, settings: serde_json::Value) -> Result<Net> {
    let (data, mut silent) = (images(), Silent);
    serde_json::from_value::<P>(settings).unwrap().run(net, &mut context(&data, &mut silent))
}

/// Runs a method that takes the last epoch, and checks that what it hands on is what was validated: a network whose batch norms have the
/// statistics of what they read.
pub fn settles<P: Pass + DeserializeOwned>(net: Net, settings: serde_json::Value) {
    let (data, mut silent, device) = (images(), Silent, Device::flex());
    let mut cx = context(&data, &mut silent);
    let net = serde_json::from_value::<P>(settings).unwrap().run(net, &mut cx).unwrap();
    let score = evaluate(&net, &data.valid, &device, &mut Silent).unwrap();
    assert_eq!(cx.curve.last().unwrap().valid_accuracy, score.accuracy);
    let drawn =
        |node: &Node| matches!(node.weight()?.coding.source, Source::Grid { rounding: Rounding::Stochastic, .. }).then_some(());
    assert_eq!(net.nodes.iter().find_map(drawn), None, "a later training would draw");
    let anew = renew(net.deep_clone(), &mut cx).unwrap();
    for parameter in ["mean", "var"] {
        assert_eq!(get(&net, "norm1", parameter), get(&anew, "norm1", parameter), "{parameter}");
    }
}

/// What a method says against these settings: to who plans it, and in the same words to who runs it without a plan.
pub fn refusal<P: Pass + DeserializeOwned>(net: Net, settings: serde_json::Value) -> String {
    let method: P = serde_json::from_value(settings).unwrap();
    let (data, mut silent) = (images(), Silent);
    // Plans draw by the seed 0.
    let mut cx = Context { seed: 0, ..context(&data, &mut silent) };
    let ran = method.run(net.deep_clone(), &mut cx).unwrap_err().to_string();
    let planned = method.plan(net).unwrap_err().to_string();
    assert_eq!(ran, planned, "a run says something else than a plan");
    planned
}

/// A context of seed 3.
pub fn context<'a>(data: &'a Data, host: &'a mut dyn Host) -> Context<'a> {
    Context::new(&Device::flex(), 3, data, host)
}

/// An objective's term for one image of zeros.
pub fn term(objective: &mut dyn Objective, net: &Net, device: &Device) -> Tensor<1> {
    let (images, logits) = (Tensor::zeros([1, 1, 4, 4], device), Tensor::zeros([1, 3], device));
    objective
        .term(&Seen { net, images: &images, labels: &[0], ids: &[0], logits: &logits, taps: &[], epoch: 0.0, draw: None })
        .unwrap()
}
