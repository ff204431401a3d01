use briquette_core::builder::{Builder, Conv};
use briquette_core::context::{Data, Host, Memory, Silent};
use briquette_handmade::{context, get, images, labelled, set, small};
use burn::tensor::Device;

use super::*;

const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);

fn read(settings: Value) -> NetworkToNetwork {
    NetworkToNetwork::read(settings, METHODS).unwrap()
}

/// Three convolutions of as many channels, the second with a batch norm.
fn deep() -> Net {
    let mut b = Builder::new([1, 4, 4], 11, &Device::flex());
    let mut x = b.conv("conv1", b.input(), Conv::new(4, 3).same());
    x = b.relu("relu1", x);
    x = b.conv("conv2", x, Conv::new(4, 3).same().no_bias());
    x = b.batch_norm("norm2", x);
    x = b.relu("relu2", x);
    x = b.conv("conv3", x, Conv::new(4, 3).same());
    x = b.relu("relu3", x);
    x = b.flatten("flatten", x);
    b.linear("fc", x, 3);
    b.finish().unwrap()
}

fn run(settings: Value, data: &Data, host: &mut dyn Host) -> Result<Net> {
    read(settings).run(deep(), &mut context(data, host))
}

fn params(net: &Net) -> f64 {
    Cost::of(net).unwrap().params() as f64
}

/// What the public code rewards, but after iteration 15, where it would forget the constraint.
#[test]
fn rewards_are_as_published() {
    let of = |accuracy: f64, params: f64| reward(accuracy / 0.92, params / 1e6);
    for (accuracy, params, golden) in
        [(0.92, 1e5, 0.99), (0.9, 5e4, 0.975_815_217_4), (0.8, 1e4, 0.869_478_260_9), (0.93, 9e5, 0.192_065_217_4)]
    {
        assert!((of(accuracy, params) - golden).abs() < 1e-8);
    }
    let violating = of(0.9, 3e5);
    for (iteration, golden) in [(0, 0.890_217_391_3), (5, -0.626_623_725_2), (10, -0.976_663_982_8), (15, -1.0), (30, -1.0)] {
        assert!((constrained(violating, iteration) - golden).abs() < 1e-8, "{iteration}");
    }
    assert_eq!(of(0.99, 1e6), -1.0);
}

#[test]
fn inner_layers_that_keep_their_shape_can_go_with_what_follows_them() {
    let (net, method) = (deep(), read(json!({ "train": {} })));
    let removable = method.removable(&net).unwrap();
    let names = |pair: &(usize, usize)| [pair.0, pair.1].map(|node| net.nodes[node].name.clone());
    assert_eq!(removable.iter().map(names).collect::<Vec<_>>(), [["conv2", "relu2"], ["conv3", "relu3"]]);
    let pairs: Vec<(usize, usize)> = removable.iter().map(|(node, end)| (*end, net.nodes[*node].inputs[0])).collect();
    let left = net.bypass_all(&pairs).unwrap().0;
    assert_eq!(left.own_weights().map(|(_, node)| node.name.as_str()).collect::<Vec<_>>(), ["conv1", "fc"]);
    assert!(method.removable(&small()).unwrap().is_empty(), "its convolutions change their maps");
}

#[test]
fn the_best_child_is_smaller_within_the_budget_and_found_again() {
    let train = json!({ "epochs": 1, "batch": 20 });
    let settings = json!({ "train": train, "episodes": 3, "rollouts": 3, "floor": 1, "budget": { "bytes": 0.9 } });
    let (data, mut host) = (images(), Memory::default());
    let net = run(settings.clone(), &data, &mut host).unwrap();
    assert!(params(&net) < params(&deep()));
    let (key, state) = host.states.iter().find(|(key, _)| key.starts_with("network-to-network")).unwrap();
    let mut kept: std::collections::BTreeMap<String, Value> = serde_json::from_slice(state).unwrap();
    let all = kept.len();
    while kept.len() > all / 2 {
        kept.pop_first();
    }
    let mut resumed = Memory::default();
    resumed.states.insert(key.clone(), serde_json::to_vec(&kept).unwrap());
    assert!(run(settings, &data, &mut resumed).unwrap().to_state() == net.to_state());
}

/// Rewards are shares of what the network reaches.
#[test]
fn a_network_that_reaches_nothing_is_refused() {
    // The classes of a network that says the opposite.
    let opposite = ["weight", "bias"].into_iter().fold(deep(), |net, name| {
        let values: Vec<f32> = get(&net, "fc", name).iter().map(|value| -value).collect();
        set(net, "fc", name, &values)
    });
    let data = labelled(&opposite);
    let refused = run(json!({ "train": { "epochs": 1 }, "floor": 1 }), &data, &mut Silent).unwrap_err().to_string();
    assert!(refused.contains("finds the class of no validation image"), "{refused}");
}

/// A parent is chosen by what the policy learned from, though no child is within the budget yet.
#[test]
fn what_is_over_the_budget_can_still_lead() {
    let (net, method) = (deep(), read(json!({ "train": {}, "floor": 1, "budget": { "bytes": 0.9 } })));
    let (data, mut host) = (images(), Silent);
    let mut cx = context(&data, &mut host);
    let mut meter = Meter::new(method.settings.budget.unwrap(), &net, &mut cx).unwrap();
    meter.limit = 0.0;
    let points = Points::load("family", cx.host).unwrap();
    let mut family = Family {
        method: &method,
        images: data.valid.clone(),
        meter: Some(meter),
        points,
        params: params(&net),
        accuracy: 1.0,
        lead: None,
        best: None,
    };
    let child = without_layers(&net, &method.removable(&net).unwrap()).unwrap();
    family.points.get("a child", &mut cx, |_| Ok(briquette_core::scan::Measured { accuracy: 0.5, loss: None })).unwrap().unwrap();
    let shaped = family.worth("a child".into(), child.deep_clone(), 5, &mut cx).unwrap();
    assert_eq!(shaped, constrained(reward(0.5, params(&child) / params(&net)), 5));
    assert!(family.best.is_none() && family.lead.is_some_and(|lead| lead.reward == shaped));
}

#[test]
fn what_leaves_nothing_to_choose_is_refused() {
    let refused = |settings: Value| {
        let ran = run(settings.clone(), &images(), &mut Silent).unwrap_err().to_string();
        assert_eq!(read(settings).plan(deep()).unwrap_err().to_string(), ran);
        ran
    };
    let nothing = refused(json!({ "train": {}, "layers": ["conv1"], "floor": 4 }));
    assert_eq!(nothing, "network-to-network: neither layers nor channels can go");
    let tight = refused(json!({ "train": { "epochs": 1 }, "episodes": 1, "budget": { "bytes": 10 } }));
    assert!(tight.starts_with("`budget = { bytes = 10 }` cannot be met: at the least the network comes to bytes = "), "{tight}");
}
