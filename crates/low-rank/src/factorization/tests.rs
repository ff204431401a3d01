use briquette_core::builder::{Builder, Conv};
use briquette_core::context::{Memory, Silent};
use briquette_core::cost::Cost;
use briquette_core::price::{Bytes, Price as _};
use briquette_handmade::{context, images, refusal, run, set};
use briquette_pruning_sharing::pruning::magnitude::Magnitude;
use serde_json::json;

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
    let refused = run::<TensorTrain>(net(), json!({ "ranks": { "ms": 1e3 } })).unwrap_err().to_string();
    assert!(refused.contains("structural matrices have no budget of `ms`"), "{refused}");
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
