use std::collections::BTreeMap;

use briquette_core::builder::{Builder, Conv};
use briquette_core::context::{Memory, Silent};
use briquette_core::cost::Cost;
use briquette_core::price::{Bytes, Price as _};
use briquette_core::training::evaluate;
use briquette_handmade::{context, images, labelled, refusal, run, set};
use briquette_pruning_sharing::pruning::magnitude::Magnitude;
use briquette_runtime::Padding;
use serde_json::{Value, json};

use super::*;
use crate::bicluster::Bicluster;
use crate::bn_low_rank::BnLowRank;
use crate::cp::Cp;
use crate::separable::Separable;
use crate::svd::Svd;
use crate::tensor_train::TensorTrain;
use crate::tucker2::Tucker2;

/// Three convolutions, one with a stride and one in groups, and two fully connected layers, for images of 4 by 4.
fn net() -> Net {
    let mut b = Builder::new([1, 4, 4], 3, &Device::flex());
    let mut x = b.conv("lift", b.input(), Conv::new(16, 3).same());
    x = b.relu("relu1", x);
    x = b.conv("strided", x, Conv::new(24, 3).same().stride(2));
    x = b.relu("relu2", x);
    x = b.conv("grouped", x, Conv::new(32, 3).same().groups(2));
    x = b.flatten("flatten", x);
    x = b.linear("fc1", x, 40);
    x = b.relu("relu3", x);
    b.linear("fc2", x, 3);
    b.finish().unwrap()
}

fn macs(net: &Net) -> u64 {
    Cost::of(net).unwrap().macs()
}

#[test]
fn budgets_are_kept_by_every_form() {
    fn keeps<F: Factorization>(more: &serde_json::Value) {
        for share in [0.5, 0.8] {
            let settings = |ranks: serde_json::Value| crate::proof::with(&json!({ "ranks": ranks }), more.clone());
            let of_macs = run::<Factorized<F>>(net(), settings(json!({ "macs": share }))).unwrap();
            let kept = macs(&of_macs) as f64 / macs(&net()) as f64;
            assert!(kept <= share && kept > 0.6 * share, "{}: {kept} of {share} multiply-accumulates", F::NAME);
            let method: Factorized<F> = serde_json::from_value(settings(json!({ "macs": share }))).unwrap();
            assert!(macs(&method.plan(net()).unwrap()) as f64 <= share * macs(&net()) as f64, "{}: planned", F::NAME);
            let of_bytes = run::<Factorized<F>>(net(), settings(json!({ "bytes": share }))).unwrap();
            let kept = Bytes.of(&of_bytes).unwrap() / Bytes.of(&net()).unwrap();
            assert!(kept <= share, "{}: {kept} of {share} bytes", F::NAME);
        }
    }
    keeps::<crate::svd::Truncated>(&json!({}));
    keeps::<crate::bn_low_rank::Pair>(&json!({}));
    keeps::<crate::tensor_train::Train>(&json!({ "cores": 2 }));
}

#[test]
fn a_budget_in_milliseconds_is_told_what_it_came_to() {
    let (data, mut silent) = (images(), Silent);
    let mut cx = context(&data, &mut silent);
    let method: Svd = serde_json::from_value(json!({ "ranks": { "ms": 1e3 } })).unwrap();
    method.run(net(), &mut cx).unwrap();
    let notes: Vec<String> = cx.findings.iter().map(|finding| format!("{finding:?}")).collect();
    assert!(notes.iter().any(|note| note.contains("ms in the engine, of 1000 asked for")), "{notes:?}");
    let refused = run::<Svd>(net(), json!({ "ranks": { "ms": 1e-9 } })).unwrap_err().to_string();
    assert!(refused.contains("`ranks = { ms = 0.000000001 }` cannot be met"), "{refused}");
    // Structural matrices are measured, too.
    let train = |ms: f64| run::<TensorTrain>(net(), json!({ "layers": ["fc1"], "ranks": { "ms": ms } }));
    assert!(train(1e3).is_ok() && train(1e-9).unwrap_err().to_string().contains("cannot be met"));
}

/// What svd makes of [`net`] on images that it classifies without an error.
fn budgeted(ranks: &Value, host: &mut Memory) -> Net {
    let data = labelled(&net());
    let method: Svd = serde_json::from_value(json!({ "ranks": ranks })).unwrap();
    method.run(net(), &mut context(&data, host)).unwrap()
}

#[test]
fn a_budget_goes_by_accuracies_where_it_is_told_to() {
    let data = labelled(&net());
    // The least accuracy with one layer at a time as it is in a network.
    let least = |found: &Net| {
        let alone = |name: &&str| {
            let rank = found.nodes[found.index(&format!("{name}.reduce")).ok()?].op.weight_shape().unwrap()[0];
            let one = run::<Svd>(net(), json!({ "ranks": { *name: rank }, "break-even": "off" })).unwrap();
            Some(evaluate(&one, &data.valid, &Device::flex(), &mut Silent).unwrap().accuracy)
        };
        ["lift", "strided", "grouped", "fc1", "fc2"].iter().filter_map(alone).fold(1.0, f64::min)
    };
    for share in [0.5, 0.7] {
        let by_energy = budgeted(&json!({ "macs": share }), &mut Memory::default());
        let by_accuracy = budgeted(&json!({ "macs": share, "on": "accuracy" }), &mut Memory::default());
        assert!(macs(&by_accuracy) as f64 <= share * macs(&net()) as f64);
        let [of_energy, of_accuracy] = [&by_energy, &by_accuracy].map(least);
        assert!(of_accuracy > of_energy, "{share}: {of_accuracy} and {of_energy}");
    }
    let of_bytes = budgeted(&json!({ "bytes": 0.5, "on": "accuracy", "images": 20 }), &mut Memory::default());
    assert!(Bytes.of(&of_bytes).unwrap() <= 0.5 * Bytes.of(&net()).unwrap());
}

#[test]
fn accuracies_are_measured_once() {
    let (mut host, ranks) = (Memory::default(), json!({ "macs": 0.6, "on": "accuracy" }));
    let first = budgeted(&ranks, &mut host);
    let kept = host.states[crate::trials::KEPT].clone();
    assert!(budgeted(&ranks, &mut host).to_state() == first.to_state() && host.states[crate::trials::KEPT] == kept);
    // As if fc1 bore no rank at all.
    let mut points: BTreeMap<String, Value> = serde_json::from_slice(&kept).unwrap();
    points.iter_mut().filter(|(name, _)| name.starts_with("fc1")).for_each(|(_, point)| point["Ok"]["accuracy"] = 0.0.into());
    host.states.insert(crate::trials::KEPT.into(), serde_json::to_vec(&points).unwrap());
    assert!(budgeted(&ranks, &mut host).index("fc1").is_ok());
    let (mut data, mut silent) = (images(), Silent);
    data.valid = data.valid.take(0);
    let method: Svd = serde_json::from_value(json!({ "ranks": ranks })).unwrap();
    let error = method.run(net(), &mut context(&data, &mut silent)).unwrap_err().to_string();
    assert!(error.contains("measures on validation images, and there are none; set `valid` of `data`"), "{error}");
}

#[test]
fn ranks_of_a_layer_in_groups_are_multiples_in_all_groups_together() {
    for (multiple, rank) in [(1, 10), (3, 12), (8, 16)] {
        let ranks = json!({ "grouped": { "fraction": 0.4, "multiple": multiple } });
        let found = run::<Svd>(net(), json!({ "ranks": ranks, "break-even": "off" })).unwrap();
        assert_eq!(found.nodes[found.index("grouped.reduce").unwrap()].op.weight_shape().unwrap()[0], rank, "{multiple}");
    }
}

#[test]
fn chains_break_even_at_the_published_ranks() {
    // Channels, filters, kernel; then the ranks at which Tai's pair, scheme 1, CP of 4 and of 3 modes, and the weight SVD break even.
    for ([c, n, d], even) in [
        ([96, 256, 5], [349, 24, 1697, 1629, 94]),
        ([3, 64, 3], [8, 8, 23, 22, 2]),
        ([64, 64, 3], [96, 8, 275, 269, 57]),
        ([512, 512, 3], [768, 8, 2290, 2283, 460]),
        ([96, 128, 3], [164, 8, 480, 474, 88]),
    ] {
        let layer = Layer {
            shape: [n, c, d, d],
            groups: 1,
            stride: [1; 2],
            padding: Padding::NONE,
            dilation: [1; 2],
            input: [d; 2],
            connected: false,
        };
        fn most<F: Factorization>(layer: &Layer, settings: Value) -> usize {
            let form: F = serde_json::from_value(settings).unwrap();
            let gains = |rank: &usize| layer.weights_of(&form.links(layer, &[*rank])) <= layer.weights();
            (1..4000).take_while(gains).count()
        }
        let found = [
            most::<crate::bn_low_rank::Pair>(&layer, json!({})),
            most::<crate::separable::Filters>(&layer, json!({ "scheme": 1 })),
            most::<crate::cp::Canonical>(&layer, json!({ "modes": 4 })),
            most::<crate::cp::Canonical>(&layer, json!({ "modes": 3 })),
            most::<crate::svd::Truncated>(&layer, json!({})),
        ];
        assert_eq!(found, even, "{c} {n} {d}");
    }
}

#[test]
fn what_a_measurement_chose_stays_when_a_run_goes_on() {
    let (data, mut host) = (images(), Memory::default());
    let method: Svd = serde_json::from_value(json!({ "ranks": 4, "layers": ["fc1"], "break-even": "measured" })).unwrap();
    assert!(method.estimate().is_some());
    method.run(net(), &mut context(&data, &mut host)).unwrap();
    assert!(host.states.contains_key(KEPT));
    host.states.insert(KEPT.into(), br#"[["fc1", [2]]]"#.to_vec());
    let resumed = method.run(net(), &mut context(&data, &mut host)).unwrap();
    assert_eq!(resumed.nodes[resumed.index("fc1.reduce").unwrap()].op.weight_shape().unwrap(), [2, 128]);
}

#[test]
fn layers_that_would_not_gain_are_left_and_the_report_says_so() {
    let (data, mut silent) = (images(), Silent);
    let mut cx = context(&data, &mut silent);
    let method: Svd = serde_json::from_value(json!({ "ranks": { "fc1": 38, "fc2": 1 } })).unwrap();
    let found = method.run(net(), &mut cx).unwrap();
    assert!(found.index("fc1").is_ok() && found.index("fc2.reduce").is_ok());
    let notes: Vec<String> = cx.findings.iter().map(|finding| format!("{finding:?}")).collect();
    assert!(
        notes.iter().any(|note| note.contains("fc1 is left as it is: with rank 38 its chain would take 6384 weights")),
        "{notes:?}"
    );
}

#[test]
fn codings_are_refused_where_a_chain_comes_or_dissolved_with_a_note() {
    let pruned = || run::<Magnitude>(net(), json!({ "keep": { "fc1": 0.5 } })).unwrap();
    let refused = refusal::<Svd>(pruned(), json!({ "ranks": { "fc1": 4 } }));
    assert!(refused.starts_with("node 'fc1': is pruned; put svd before the pass that prunes it"), "{refused}");
    // A layer of which no rank speaks is not asked.
    assert!(run::<Svd>(pruned(), json!({ "ranks": { "fc2": 1 } })).is_ok());
    let (data, mut silent) = (images(), Silent);
    let mut cx = context(&data, &mut silent);
    let method: Svd =
        serde_json::from_value(json!({ "ranks": { "fc1": 40 }, "coded": "dissolve", "break-even": "off" })).unwrap();
    let dissolved = method.run(pruned(), &mut cx).unwrap();
    assert!(cx.findings.iter().any(|finding| format!("{finding:?}").contains("fc1: its mask or shared weights are dissolved")));
    assert!(crate::proof::apart(&briquette_handmade::outputs(&dissolved), &briquette_handmade::outputs(&pruned())) < 1e-4);
}

#[test]
fn training_comes_once_or_after_each_layer() {
    for (order, trainings) in [("whole", 1), ("layer-by-layer", 2)] {
        let (data, mut silent) = (images(), Silent);
        let mut cx = context(&data, &mut silent);
        let settings = json!({ "layers": ["fc1", "fc2"], "ranks": 1, "order": order, "tune": { "epochs": 1, "lr": 1e-3 } });
        serde_json::from_value::<Svd>(settings).unwrap().run(net(), &mut cx).unwrap();
        assert_eq!(cx.curve.len(), trainings);
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let refused = |settings| refusal::<Svd>(net(), settings);
    assert!(refused(json!({ "ranks": 1, "order": "layer-by-layer" })).contains("it needs `tune`"));
    assert!(
        refused(json!({ "ranks": { "macs": 0.5 }, "break-even": "measured" }))
            .contains("would break a budget of `macs` or `bytes`")
    );
    assert!(refused(json!({ "ranks": { "bytes": 0.5 }, "coded": "dissolve" })).contains("what a dissolved coding took"));
    assert_eq!(
        refused(json!({ "ranks": { "fc2": 1 }, "layers": ["fc1", "fc2"] })),
        "node 'fc1': is named in `layers`, but has no rank in `ranks`; add it or `rest`"
    );
    let why = refusal::<BnLowRank>(net(), json!({ "ranks": { "strided": 2, "fc1": 2 } }));
    assert!(why.starts_with("node 'fc1': has a kernel of 1 by 1"), "{why}");
}

#[test]
fn weights_that_are_not_finite_are_refused_by_every_form() {
    let mut values = vec![0.1; 24 * 16 * 9];
    values[7] = f32::NAN;
    let broken = || set(net(), "strided", "weight", &values);
    let named = |error: String| assert_eq!(error, "node 'strided': holds the weight NaN; train it anew or clip it");
    let settings = || json!({ "layers": ["strided"], "ranks": { "energy": 0.5 }, "break-even": "off" });
    named(run::<Svd>(broken(), settings()).unwrap_err().to_string());
    named(run::<Tucker2>(broken(), settings()).unwrap_err().to_string());
    named(run::<Cp>(broken(), json!({ "layers": ["strided"], "ranks": 2, "break-even": "off" })).unwrap_err().to_string());
    named(run::<Separable>(broken(), settings()).unwrap_err().to_string());
    named(run::<Bicluster>(broken(), settings()).unwrap_err().to_string());
    let kernel = burn::tensor::Tensor::<2>::from_floats([[f32::NAN, 1.0], [0.0, 1.0]], &Device::flex());
    assert!(crate::svd::decompose(kernel, 1).is_err());
}
