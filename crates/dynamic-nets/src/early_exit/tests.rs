use briquette_core::cost::Cost;
use briquette_core::stored::Storage;
use briquette_core::zoo::{Arch, Wanted};
use briquette_handmade::{refusal, run, small};
use briquette_runtime::{Engine, Model};
use burn::tensor::{Device, TensorData};
use serde_json::json;

use super::outcomes::tests::{LABELS, LOGITS};
use super::*;

/// `early-exit` of the reference values: the weighted sum of the exits' losses and its gradients.
#[test]
fn every_exit_learns_from_all_samples() {
    let device = Device::flex().autodiff();
    let taps = LOGITS.map(|exit| Tensor::<2>::from_data(TensorData::new(exit.concat(), [6, 4]), &device).require_grad());
    let exits = ["a", "b", "c"].map(str::to_string).to_vec();
    let mut joint = Joint { exits, weights: vec![1.0, 0.6, 0.3], recipe: Recipe::default() };
    let images = Tensor::zeros([6, 1, 4, 4], &device);
    let values = taps.clone().map(briquette_core::net::Value::Vector);
    let net = small();
    let seen =
        Seen { net: &net, images: &images, labels: &LABELS, ids: &[], logits: &taps[2], taps: &values, epoch: 0.0, draw: None };
    let loss = joint.term(&seen).unwrap();
    let floats = briquette_core::coding::floats::<2>;
    assert!((f64::from(loss.clone().inner().into_scalar::<f32>()) - 3.605_597_85).abs() < 2e-5);
    let gradients = loss.backward();
    let first = [
        [-0.1649268612, 0.008995939235, 0.1553643928, 0.000566529163, 0.05450728946, -0.1587866151],
        [-0.0767066403, 0.06629857001, 0.004154401308, 0.006253668981, 0.01122373524, -0.06430428141],
        [-0.03877595502, 0.0001701726703, 0.0001288712223, 0.03847691113, 0.000107042003, -0.004237451894],
    ];
    for (exit, expected) in taps.iter().zip(first) {
        let found = floats(exit.grad(&gradients).unwrap());
        assert!(found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-6), "{found:?}");
    }
}

fn exits(after: &[&str], head: &str, threshold: f64) -> EarlyExit {
    let exits = json!({ "after": after, "head": head });
    serde_json::from_value(json!({ "exits": exits, "threshold": threshold, "train": {} })).unwrap()
}

fn narrow(name: &str) -> Net {
    let arch = Arch::named(name).unwrap();
    arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap()
}

fn ran(net: &Net, threads: usize, batch: usize) -> Vec<f32> {
    let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
    let engine = Engine::new(&Model::from_bytes(&bytes).unwrap(), threads).unwrap();
    let size = engine.input_shape().iter().product::<usize>();
    let images: Vec<f32> = (0..6 * size).map(|i| ((i * i * 7) % 251) as f32 / 250.0).collect();
    images.chunks(batch * size).flat_map(|images| engine.run(images, images.len() / size).unwrap()).collect()
}

/// Behind blocks, and inside one, where the shortcut's value goes on too.
#[test]
fn where_none_leaves_the_outputs_are_those_of_the_whole_network_bit_by_bit() {
    for (name, after) in [
        ("resnet20", &["layer1.2", "layer2.2"][..]),
        ("resnet20", &["layer2.1.relu1"]),
        ("wrn-16-1", &["layer1.0"]),
        ("vgg11-cifar", &["relu1", "relu2"]),
        ("lenet300", &["relu1"]),
    ] {
        for head in ["conv", "linear"] {
            let net = exits(after, head, 0.0).plan(narrow(name)).unwrap();
            for batch in [1, 6] {
                assert_eq!(ran(&net, 2, batch), ran(&narrow(name), 1, batch), "{name}");
            }
            let all = exits(after, head, 10.0_f64.ln()).plan(narrow(name)).unwrap();
            assert!(ran(&all, 1, 6) == ran(&all, 2, 6) && ran(&all, 1, 6) != ran(&net, 1, 6));
        }
    }
}

#[test]
fn an_image_costs_what_lies_before_its_exit() {
    let method = exits(&["relu1", "relu2"], "linear", 0.1);
    let wired = method.wired(small(), 1).unwrap();
    let (cost, paths) = (Cost::of(&wired.net).unwrap(), wired.net.paths().unwrap());
    let macs = |name: &str| cost.layers.iter().find(|layer| layer.name == name).unwrap().macs;
    let along = |exit: usize| cost.macs_along(&paths, |gate| wired.gates.get(exit) == Some(&gate));
    let first = macs("conv1") + macs("exit1.fc");
    let second = first + macs("conv2") + macs("exit2.fc");
    assert_eq!([along(0), along(1), along(2)], [first, second, cost.macs()]);
}

#[test]
fn a_run_trains_the_heads_and_says_what_leaves_where() {
    let settings = json!({ "exits": { "after": ["relu1", "relu2"] }, "threshold": { "leave": [0.25, 0.5] },
        "weights": [1.0, 0.6, 0.3], "train": { "epochs": 1, "batch": 20, "lr": 0.01 } });
    let (data, mut silent) = (briquette_handmade::images(), briquette_core::context::Silent);
    let mut cx = briquette_handmade::context(&data, &mut silent);
    let method: EarlyExit = serde_json::from_value(settings.clone()).unwrap();
    let start = method.wired(small(), cx.seed).unwrap().net;
    let net = method.run(small(), &mut cx).unwrap();
    for node in ["exit1.conv", "exit1.fc", "exit2.fc", "fc2", "conv1"] {
        let weight = |net: &Net| briquette_handmade::get(net, node, "weight");
        assert!(weight(&start) != weight(&net), "{node}");
    }
    let notes: Vec<&String> =
        cx.findings.iter().filter_map(|found| if let Finding::Note(note) = found { Some(note) } else { None }).collect();
    assert!(
        notes.len() == 4 && notes[0].contains("exit1.fc, entropy below") && notes[0].contains("25.00 % of the validation"),
        "{notes:?}"
    );
    assert!(matches!(cx.findings.last(), Some(Finding::Tradeoff(_))));
    assert!(run::<EarlyExit>(net, settings).unwrap_err().to_string().contains("already decides which samples go on"));
}

#[test]
fn what_is_no_exit_is_refused() {
    let refuse = |after: &[&str], threshold: serde_json::Value, weights: &[f64]| {
        let settings = json!({ "exits": { "after": after }, "threshold": threshold, "weights": weights, "train": {} });
        refusal::<EarlyExit>(small(), settings)
    };
    assert!(refuse(&["relu9"], json!(0.1), &[]).starts_with("unknown layer 'relu9'"));
    assert_eq!(refuse(&["fc2"], json!(0.1), &[]), "node 'fc2': is the output, which is the last exit anyway");
    assert_eq!(refuse(&["relu1", "relu1"], json!(0.1), &[]), "node 'relu1': has an exit behind it already");
    let turned = refuse(&["relu2", "relu1"], json!(0.1), &[]);
    assert!(turned.contains("'relu1'") && turned.contains("name exits from the first to the last"), "{turned}");
    assert_eq!(refuse(&[], json!(0.1), &[]), "`after` of `exits` names no node");
    assert_eq!(refuse(&["relu1"], json!(1.2), &[]), "a threshold of 1.2; with 3 classes it lies in [0, 1.0986]");
    assert_eq!(refuse(&["relu1"], json!([0.1, 0.2]), &[]), "`threshold` has 2 values for 1 exits besides the output");
    assert_eq!(
        refuse(&["relu1", "relu2"], json!({ "leave": [0.6, 0.5] }), &[]),
        "`leave` has shares that add up to 1.1; they are of all images"
    );
    assert_eq!(
        refuse(&["relu1"], json!({ "max-drop": -1.0 }), &[]),
        "`max-drop` is -1; it is in points of accuracy, and not negative"
    );
    assert_eq!(refuse(&["relu1"], json!(0.1), &[1.0]), "`weights` has 1 values; the network has 2 exits, its output among them");
    assert_eq!(refuse(&["relu1"], json!(0.1), &[1.0, -1.0]), "a weight of -1 in `weights`; it is a number that is not negative");
    let settings = json!({ "exits": { "after": ["relu1"] }, "threshold": { "keep": 1 }, "train": {} });
    assert!(
        serde_json::from_value::<EarlyExit>(settings).unwrap_err().to_string().starts_with("a threshold is a number, a list")
    );
}
