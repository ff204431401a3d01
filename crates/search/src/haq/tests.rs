use briquette_core::context::{Data, Host, Memory, Silent};
use briquette_core::price::{Bytes, Price as _};
use briquette_handmade::{context, images, labelled, small};

use super::*;

const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);

fn read(settings: Value) -> Haq {
    Haq::read(settings, METHODS).unwrap()
}

fn run(settings: Value, data: &Data, host: &mut dyn Host) -> Result<Net> {
    read(settings).run(small(), &mut context(data, host))
}

fn levels(net: &Net) -> Vec<u32> {
    let weights = ["conv1", "conv2", "fc1", "fc2"].map(|layer| net.nodes[net.index(layer).unwrap()].weight().unwrap());
    weights
        .iter()
        .map(|weight| match &weight.coding.source {
            briquette_core::coding::Source::Grid { grid, .. } => (grid.levels + 1).ilog2(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// What the public code makes of actions, but for the action 0 that it takes to 0 bits.
#[test]
fn actions_are_bits_as_published() {
    let from_one = [(0.0, 1), (0.05, 1), (0.14, 2), (0.15, 2), (0.5, 4), (0.72, 6), (0.86, 7), (0.95, 8), (1.0, 8)];
    let from_two = [(0.0, 2), (0.05, 2), (0.14, 2), (0.15, 3), (0.5, 5), (0.72, 7), (0.86, 8), (0.95, 8), (1.0, 8)];
    for (least, golden) in [(1, from_one), (2, from_two)] {
        for (action, expected) in golden {
            assert_eq!(bits(action, least, 8), expected, "{action} from {least}");
        }
    }
    for of in 2..=8 {
        assert_eq!(bits(((of - 2) as f64 + 0.5) / 7.0, 2, 8), of, "the middle of a bit's actions");
    }
}

#[test]
fn the_bytes_are_within_the_budget_and_the_ends_keep_theirs() {
    let data = labelled(&small());
    let within = |bytes: f64, host: &mut Memory| {
        let budget = json!({ "bytes": bytes as u64 });
        run(json!({ "budget": budget, "episodes": 8, "explore": 3, "hidden": 8 }), &data, host).unwrap()
    };
    // What is more than enough is given back in full.
    let all = within(1e6, &mut Memory::default());
    assert_eq!(levels(&all), [8; 4]);
    let bytes = Bytes.of(&all).unwrap() - 30.0;
    let mut host = Memory::default();
    let net = within(bytes, &mut host);
    assert!(Bytes.of(&net).unwrap() <= bytes);
    let found = levels(&net);
    assert!(found[0] == 8 && found[3] == 8 && found[1] + found[2] < 14, "{found:?}");
    // A run that is stopped and goes on has measured some of it.
    let (key, state) = host.states.iter().next().unwrap();
    let mut kept: std::collections::BTreeMap<String, Value> = serde_json::from_slice(state).unwrap();
    kept.pop_last();
    let mut resumed = Memory::default();
    resumed.states.insert(key.clone(), serde_json::to_vec(&kept).unwrap());
    assert!(within(bytes, &mut resumed).to_state() == net.to_state());
    assert_eq!(resumed.states, host.states);
}

#[test]
fn products_count_by_the_bits_of_both_factors() {
    let haq = read(json!({ "budget": { "macs": 0.05 }, "activations": true }));
    let (net, places) = (small(), haq.places(&small()).unwrap());
    let costs = Costs::counted(&haq, &net, &places).unwrap().unwrap();
    let macs: Vec<f64> =
        Cost::of(&net).unwrap().layers.iter().map(|layer| layer.macs as f64).filter(|macs| *macs > 0.0).collect();
    let found = costs.of(&places.bits(&[4, 2, 3, 8]));
    let expected = (64.0 * macs[0] + 8.0 * macs[1] + 24.0 * macs[2] + 64.0 * macs[3]) / 1024.0;
    assert!((found - expected).abs() < 1e-9, "{found} and {expected}");
    // What layers read may have bits by layer.
    let probe = json!({ "method": "fixed-point", "activations": { "conv2": 4, "rest": 8 } });
    let given = read(json!({ "budget": { "macs": 0.05 }, "probe": probe }));
    let weights = given.places(&net).unwrap();
    let found = Costs::counted(&given, &net, &weights).unwrap().unwrap().of(&weights.bits(&[4, 3]));
    let expected = (64.0 * macs[0] + 16.0 * macs[1] + 24.0 * macs[2] + 64.0 * macs[3]) / 1024.0;
    assert!((found - expected).abs() < 1e-9, "{found} and {expected}");
    assert_eq!(places.told(&[4, 2, 3, 8]), "bits of conv1 8 by 8, conv2 4 by 2, fc1 3 by 8, fc2 8 by 8");
}

#[test]
fn times_are_measured_once_and_found_again() {
    let settings = json!({ "budget": { "ms": 1000.0 }, "least": 7, "episodes": 2, "explore": 1, "hidden": 8 });
    let (data, mut host) = (images(), Memory::default());
    run(settings.clone(), &data, &mut host).unwrap();
    let table = host.states["latencies"].clone();
    let mut again = Memory::default();
    again.states.insert("latencies".into(), table.clone());
    run(settings, &data, &mut again).unwrap();
    assert_eq!(again.states["latencies"], table);
}

#[test]
fn what_cannot_be_met_is_refused_with_what_can() {
    let refused = |settings: Value| {
        let ran = run(settings.clone(), &images(), &mut Silent).unwrap_err().to_string();
        assert_eq!(read(settings).plan(small()).unwrap_err().to_string(), ran);
        ran
    };
    let budget = refused(json!({ "budget": { "macs": 0.001 }, "activations": true }));
    assert!(
        budget.starts_with("`budget = { macs = 0.001 }` cannot be met: at the least the network comes to macs = 0."),
        "{budget}"
    );
    let one = refused(json!({ "budget": { "bytes": 0.9 }, "least": 1, "most": 1 }));
    assert!(one.contains("2 to 8 or 16"), "{one}");
    let some = refused(json!({ "budget": { "bytes": 0.9 }, "least": 1 }));
    assert!(some.contains("2 to 8 or 16"), "{some}");
    let weights = refused(json!({ "budget": { "bytes": "20 B" } }));
    assert!(weights.contains("cannot be met: the weights alone come to bytes = "), "{weights}");
    let bytes = run(json!({ "budget": { "bytes": "300 B" } }), &images(), &mut Silent).unwrap_err().to_string();
    assert!(bytes.contains("cannot be met: at the least the network comes to bytes = "), "{bytes}");
    let refusal = |settings: Value| Haq::read(settings, METHODS).unwrap_err().to_string();
    let order = refusal(json!({ "budget": { "macs": 0.5 }, "least": 8, "most": 4 }));
    assert!(order.contains("`least` is at most `most`"), "{order}");
    let other = refusal(json!({ "budget": { "macs": 0.5 }, "probe": { "method": "magnitude" } }));
    assert!(other.contains("unknown field `bits`"), "{other}");
}
