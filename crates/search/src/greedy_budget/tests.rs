use briquette_core::context::{Data, Host, Memory, Silent};
use briquette_core::price::{Bytes, Macs, Price as _};
use briquette_handmade::{context, images, labelled, small};
use serde_json::json;

use super::*;

const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS, briquette_low_rank::METHODS]);

fn read(settings: Value) -> GreedyBudget {
    GreedyBudget::read(settings, METHODS).unwrap()
}

fn run(settings: Value, data: &Data, host: &mut dyn Host) -> Result<Net> {
    read(settings).run(small(), &mut context(data, host))
}

fn macs(net: &Net) -> f64 {
    Macs.of(net).unwrap()
}

fn shapes(net: &Net) -> Vec<usize> {
    ["conv1", "conv2", "fc1"].map(|layer| net.nodes[net.index(layer).unwrap()].op.weight_shape().unwrap()[0]).to_vec()
}

#[test]
fn a_budget_is_met_by_ratios_of_which_each_layer_has_its_own() {
    let data = labelled(&small());
    for share in [0.4, 0.6, 0.8] {
        let settings = json!({ "probe": { "method": "filter-l1" }, "sweep": { "ratio": [0.8, 0.6, 0.4, 0.2] }, "budget": { "macs": share } });
        let net = run(settings, &data, &mut Silent).unwrap();
        assert!(macs(&net) <= share * macs(&small()), "{:?}", shapes(&net));
        // One more filter of any layer is more than the budget pays, or it is met within 2 %.
        let dearer = |layer: usize| {
            let groups = small().channel_groups().unwrap();
            let free: Vec<_> = groups.iter().filter(|group| group.frozen.is_none()).collect();
            let counts: Vec<usize> =
                shapes(&net).iter().enumerate().map(|(at, count)| count + usize::from(at == layer)).collect();
            let possible = counts.iter().zip(&free).all(|(count, group)| *count <= group.len());
            let cuts: Vec<_> =
                free.iter().zip(counts).map(|(group, count)| (*group, group.best(&vec![0.0; group.len()], count))).collect();
            !possible || Macs.after(&small(), &cuts).unwrap() > share * macs(&small())
        };
        assert!(macs(&net) >= 0.98 * share * macs(&small()) || (0..3).all(dearer), "{share}: {:?}", shapes(&net));
    }
}

#[test]
fn bits_and_ranks_are_chosen_as_ratios_are() {
    let data = labelled(&small());
    let bits = json!({ "probe": { "method": "kmeans-sharing" }, "sweep": { "bits": [1, 2, 4] }, "budget": { "bytes": 0.95 } });
    let net = run(bits, &data, &mut Silent).unwrap();
    let left = Bytes.of(&net).unwrap() / Bytes.of(&small()).unwrap();
    assert!((0.75..=0.95).contains(&left), "{left}");
    let probe = json!({ "method": "svd", "layers": ["fc"] });
    let ranks = json!({ "probe": probe, "sweep": { "ranks": { "fraction": [0.2, 0.4, 0.6] } }, "layers": ["fc1"], "budget": { "macs": 0.9 } });
    let net = run(ranks, &data, &mut Silent).unwrap();
    let left = macs(&net) / macs(&small());
    assert!((0.85..=0.9).contains(&left), "{left}");
}

#[test]
fn no_more_accuracy_is_lost_than_may_be() {
    let data = labelled(&small());
    let accuracy = |net: &Net| evaluate(net, &data.valid, &net.device(), &mut Silent).unwrap().accuracy;
    for points in [0.0, 10.0, 100.0] {
        let settings = json!({ "probe": { "method": "kmeans-sharing" }, "sweep": { "bits": [1, 3] }, "max-drop": points });
        let net = run(settings, &data, &mut Silent).unwrap();
        let (before, after) = (accuracy(&small()), accuracy(&net));
        assert!(after >= before - points / 100.0 - 1e-9, "{points}: {before} {after}");
        let cheapest = run(
            json!({ "probe": { "method": "kmeans-sharing" }, "sweep": { "bits": [1] }, "max-drop": 100 }),
            &data,
            &mut Silent,
        );
        if points == 100.0 {
            assert_eq!(Bytes.of(&net).unwrap(), Bytes.of(&cheapest.unwrap()).unwrap());
        }
    }
}

#[test]
fn what_was_measured_is_not_measured_again() {
    let settings = json!({ "probe": { "method": "filter-l1" }, "sweep": { "ratio": [0.75, 0.5] }, "budget": { "macs": 0.6 } });
    let (data, mut host) = (labelled(&small()), Memory::default());
    let net = run(settings.clone(), &data, &mut host).unwrap();
    let (key, state) = host.states.iter().next().unwrap();
    // A dictionary that says something else is believed.
    let mut told: std::collections::BTreeMap<String, Value> = serde_json::from_slice(state).unwrap();
    assert_eq!(told.len(), 1 + 3 * 2);
    for (name, value) in &mut told {
        let bears = name.starts_with("conv1");
        value["Ok"]["accuracy"] = json!(if bears { 1.0 } else { 0.0 });
    }
    let mut other = Memory::default();
    other.states.insert(key.clone(), serde_json::to_vec(&told).unwrap());
    let misled = run(settings, &data, &mut other).unwrap();
    let [misled, net] = [shapes(&misled), shapes(&net)];
    assert!(misled[0] < net[0], "the layer that seems to bear everything: {misled:?} and {net:?}");
}

#[test]
fn layers_that_are_cut_together_have_one_value() {
    use briquette_core::zoo::{Arch, Wanted};
    let arch = Arch::named("resnet20").unwrap();
    let net = arch.build(&Wanted { width: 0.5, ..arch.wanted() }, &burn::tensor::Device::flex()).unwrap();
    let greedy = read(json!({ "probe": { "method": "filter-l1" }, "sweep": { "ratio": [0.5] }, "budget": { "macs": 0.5 } }));
    let units = greedy.units(&net).unwrap();
    let groups = net.channel_groups().unwrap();
    assert_eq!(units.len(), groups.iter().filter(|group| group.frozen.is_none()).count());
    let together = greedy.probe.with(&greedy.settings.sweep.table(units::cheapest(&units))).unwrap().plan(net.deep_clone());
    assert!(macs(&together.unwrap()) < 0.5 * macs(&net));
}

#[test]
fn steps_between_values_are_whole_numbers_or_eighths() {
    let numbers = |values: Vec<Number>| values.iter().map(|value| value.as_f64().unwrap()).collect::<Vec<f64>>();
    assert_eq!(numbers(between(&8.into(), &4.into(), true)), [7.0, 6.0, 5.0]);
    assert_eq!(numbers(between(&2.into(), &3.into(), true)), [0.0; 0]);
    let half = |value: f64| Number::from_f64(value).unwrap();
    assert_eq!(numbers(between(&half(0.5), &half(0.1), false)), [0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15]);
}

#[test]
fn what_is_given_back_is_no_less_accurate_and_no_dearer_than_the_layer_as_it_is() {
    let rungs = |trials: &[(Option<i64>, f64, f64)]| Rungs {
        layer: "conv1".into(),
        values: trials.iter().map(|(value, ..)| value.map(Number::from)).collect(),
        trials: trials.iter().map(|(_, cost, accuracy)| Trial { cost: *cost, accuracy: *accuracy }).collect(),
    };
    let above = |trials: &[(Option<i64>, f64, f64)], rung: usize| -> Vec<Option<i64>> {
        let found = rungs(trials).above(rung, |from, to| between(from, to, true));
        found.iter().map(|value| value.as_ref().and_then(Number::as_i64)).collect()
    };
    // Four bits are worse than two, and nine are dearer than none.
    let table = [(Some(2), 1.0, 0.7), (Some(4), 2.0, 0.6), (Some(6), 3.0, 0.8), (None, 5.0, 0.9), (Some(9), 6.0, 0.9)];
    assert_eq!(above(&table, 0), [Some(2), Some(3), Some(5), Some(6), None]);
    assert_eq!(above(&table, 3), [None]);
    let spared = [(Some(2), 1.0, 0.7), (None, 5.0, 0.6), (Some(9), 6.0, 0.9)];
    assert_eq!(above(&spared, 0), [Some(2)]);
}

#[test]
fn what_cannot_be_chosen_is_refused() {
    let refused = |settings: Value| {
        let ran = run(settings.clone(), &images(), &mut Silent).unwrap_err().to_string();
        assert_eq!(read(settings).plan(small()).unwrap_err().to_string(), ran);
        ran
    };
    let with = |more: Value| {
        let mut settings = json!({ "probe": { "method": "filter-l1" }, "sweep": { "ratio": [0.5] } });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    let budget = refused(with(json!({ "budget": { "macs": 0.1 } })));
    assert!(
        budget.starts_with("`budget = { macs = 0.1 }` cannot be met: at the least the network comes to macs = 0."),
        "{budget}"
    );
    let both = refused(with(json!({ "budget": { "macs": 0.5 }, "max-drop": 1 })));
    assert_eq!(both, "greedy-budget takes exactly one of `budget` and `max-drop`");
    assert!(refused(with(json!({ "max-drop": -1 }))).contains("a number of points of at least 0, not -1"));
    let output = refused(with(json!({ "budget": { "macs": 0.5 }, "layers": ["fc2"] })));
    assert!(output.starts_with("fc2, ratio = 0.5: node 'fc2': its channels cannot be cut"), "{output}");
}
