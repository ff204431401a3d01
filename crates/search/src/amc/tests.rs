use briquette_core::context::{Data, Host, Memory, Silent};
use briquette_core::price::{Macs, Price as _};
use briquette_core::zoo::{Arch, Wanted};
use briquette_handmade::{context, images, labelled, small};

use super::*;

const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);

fn read(settings: Value) -> Amc {
    Amc::read(settings, METHODS).unwrap()
}

fn run(settings: Value, data: &Data, host: &mut dyn Host) -> Result<Net> {
    read(settings).run(small(), &mut context(data, host))
}

/// What the public code makes of actions on a chain of layers, whose inputs an action keeps: the first input and the last output stay.
#[test]
fn actions_are_cut_down_as_published() {
    let flops = [10.0, 40.0, 40.0, 20.0, 5.0];
    let whole: f64 = flops.iter().sum();
    // Shares in units so fine that they are as good as numbers.
    let unit = 1e9;
    let cost = |units: &[usize]| {
        let share = |at: usize| if at == 0 { 1.0 } else { units.get(at).map_or(1.0, |units| *units as f64 / unit) };
        (0..5).map(|at| flops[at] * share(at) * share(at + 1)).sum::<f64>()
    };
    let golden = [
        ([0.9; 5], 0.5, [1.0, 0.9, 0.9, 0.3775, 0.2], 0.5),
        ([1.0, 0.3, 0.5, 0.7, 0.6], 0.5, [1.0, 0.3, 0.5, 0.7, 0.6], 0.299_130_434_8),
        ([1.0; 5], 0.3, [1.0, 1.0, 0.472_916_666_7, 0.2, 0.2], 0.3),
    ];
    for (actions, preserved, clipped, ratio) in golden {
        let mut units = [(0.2 * unit) as usize; 5];
        for (at, (action, expected)) in actions.into_iter().zip(clipped).enumerate().skip(1) {
            let found = clip((action * unit) as usize, units[at], |more| {
                let mut tried = units;
                tried[at] = more;
                Ok(cost(&tried) <= preserved * whole)
            });
            units[at] = found.unwrap();
            assert!((units[at] as f64 / unit - expected).abs() < 1e-8, "{at}: {units:?}");
        }
        assert!((cost(&units) / whole - ratio).abs() < 1e-8);
    }
}

#[test]
fn the_best_of_all_walks_meets_the_budget_and_a_run_that_goes_on_finds_it_again() {
    let settings = json!({ "budget": { "macs": 0.6 }, "round": 1, "episodes": 12, "explore": 4, "hidden": 8 });
    let data = labelled(&small());
    let mut whole = Memory::default();
    let net = run(settings.clone(), &data, &mut whole).unwrap();
    let [before, after] = [&small(), &net].map(|net| Macs.of(net).unwrap());
    assert!(after <= 0.6 * before, "{after} of {before}");
    // The state of a run that was stopped after some of its walks.
    let (key, bytes) = whole.states.iter().next().unwrap();
    let mut kept: std::collections::BTreeMap<String, Value> = serde_json::from_slice(bytes).unwrap();
    let all = kept.len();
    while kept.len() > all / 2 {
        kept.pop_first();
    }
    let mut host = Memory::default();
    host.states.insert(key.clone(), serde_json::to_vec(&kept).unwrap());
    assert!(run(settings, &data, &mut host).unwrap().to_state() == net.to_state());
    assert_eq!(host.states, whole.states);
}

/// What shortcuts that pad join has units of very different cost.
#[test]
fn what_padded_shortcuts_join_costs_what_the_method_keeps_of_it() {
    let arch = Arch::named("resnet20").unwrap();
    let net = arch.build(&Wanted { width: 0.5, ..arch.wanted() }, &burn::tensor::Device::flex()).unwrap();
    let limit = 0.5 * Macs.of(&net).unwrap();
    let planned = read(json!({ "budget": { "macs": 0.5 }, "round": 1 })).plan(net).unwrap();
    let found = Macs.of(&planned).unwrap();
    assert!((0.98 * limit..=limit).contains(&found), "{}", found / limit);
}

#[test]
fn channels_stay_in_multiples_and_within_their_least() {
    let cuts = |round: usize, least: f64| {
        let groups = groups(&small(), &Layers::default(), &Layers::default()).unwrap();
        Cuts { groups, least, round }
    };
    // 4, 3 and 5 channels.
    let fine = cuts(1, 0.3);
    assert_eq!((fine.least(), fine.most()), (vec![2, 1, 2], vec![4, 3, 5]));
    let pairs = cuts(2, 0.0);
    assert_eq!((pairs.least(), pairs.most()), (vec![1, 1, 1], vec![2, 2, 3]));
    assert_eq!(pairs.told(&[1, 2, 3]), "conv1 2 of 4, conv2 3 of 3, fc1 5 of 5");
    let [(_, table)] = pairs.tables(&[1, 2, 2]);
    assert_eq!(Value::Object(table), json!({ "conv1": 0.5, "fc1": 1.0 - 0.8 }));
    for group in 0..3 {
        for multiples in 1..=fine.most()[group] {
            assert_eq!(fine.multiples(group, fine.share(group, multiples)), multiples);
        }
    }
}

#[test]
fn what_cannot_be_met_is_refused_with_what_can() {
    let refused = |settings: Value| {
        let ran = run(settings.clone(), &images(), &mut Silent).unwrap_err().to_string();
        assert_eq!(read(settings).plan(small()).unwrap_err().to_string(), ran);
        ran
    };
    let budget = refused(json!({ "budget": { "macs": 0.01 }, "round": 1 }));
    assert!(
        budget.starts_with("`budget = { macs = 0.01 }` cannot be met: at the least the network comes to macs = 0."),
        "{budget}"
    );
    let output = refused(json!({ "budget": { "macs": 0.5 }, "layers": ["fc2"] }));
    assert!(output.contains("node 'fc2': its channels cannot be cut"), "{output}");
    let refusal = |settings: Value| Amc::read(settings, METHODS).unwrap_err().to_string();
    let probe = refusal(json!({ "budget": { "macs": 0.5 }, "probe": { "method": "filter-l1", "ratio": 0.5 } }));
    assert!(probe.contains("`ratio` stands in `probe`"), "{probe}");
    let other = refusal(json!({ "budget": { "macs": 0.5 }, "probe": { "method": "magnitude" } }));
    assert!(other.contains("unknown field `ratio`"), "{other}");
}
