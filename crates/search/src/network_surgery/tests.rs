use briquette_handmade::{context, images, outputs, refusal, run, small};
use serde_json::json;

use super::golden::{INPUTS, START, STEPS, TARGETS};
use super::*;

fn near(found: f64, wanted: f64, within: f64) -> bool {
    (found - wanted).abs() <= within * wanted.abs().max(1.0)
}

#[test]
fn thresholds_and_probabilities_are_golden() {
    for (c, threshold) in [(-0.5, 0.239_490_933_5), (0.0, 0.363_458_333_3), (0.5, 0.487_425_733_2), (1.0, 0.611_393_131_1)] {
        assert!(near(Cut::of(&START, c).threshold, threshold, 1e-7));
    }
    assert_eq!(Cut::of(&START, -9.0).threshold, 0.0);
    let share = |gamma: f64, power: f64, step: usize| {
        let surgery = Surgery { layers: BTreeMap::new(), gamma, power, until: 1.0, seed: 0 };
        let changes = |seed| Surgery { seed, layers: BTreeMap::new(), ..surgery }.changes(step, usize::MAX);
        (0..4000).filter(|seed| changes(*seed)).count() as f64 / 4000.0
    };
    for (gamma, power, step, probability) in
        [(1e-4, 1.0, 0, 1.0), (1e-4, 1.0, 7000, 0.588_235_294_1), (1e-3, 0.5, 14_000, 0.258_198_889_7)]
    {
        // Four deviations of a mean of 4,000 draws.
        assert!((share(gamma, power, step) - probability).abs() < 0.032, "{gamma} {power} {step}");
    }
}

/// A linear layer with half the squared error, mean over the samples, by plain gradient descent.
#[test]
fn a_run_with_splices_is_golden() {
    let mut layer = Layer { cut: Cut::of(&START, 0.25), parameters: START.to_vec(), used: vec![true; 24] };
    let mut splices = 0;
    for (number, step) in STEPS.iter().enumerate() {
        let probability = (1.0 + 0.1 * number as f64).powf(-1.0);
        assert_eq!(step.updated, number < 7 && probability > step.draw);
        let before = layer.used.clone();
        if step.updated {
            layer.choose();
        }
        splices += layer.used.iter().zip(before).filter(|(now, before)| **now && !before).count();
        assert_eq!(layer.used.iter().map(|used| u8::from(*used)).collect::<Vec<_>>(), step.used, "step {number}");
        let used: Vec<f32> = layer.in_use().collect();
        let (mut loss, mut slopes) = (0.0, [0.0_f32; 24]);
        for (x, target) in INPUTS.iter().zip(TARGETS) {
            for (output, target) in target.iter().enumerate() {
                let product: f32 = x.iter().zip(&used[5 * output..]).map(|(x, w)| x * w).sum();
                let error = product + used[20 + output] - target;
                loss += f64::from(error * error) / 16.0;
                x.iter().enumerate().for_each(|(input, x)| slopes[5 * output + input] += error * x / 8.0);
                slopes[20 + output] += error / 8.0;
            }
        }
        assert!(near(loss, step.loss, 2e-5), "step {number}: {loss}");
        let stepped: Vec<f32> = used.iter().zip(slopes).map(|(w, slope)| w - 0.5 * slope).collect();
        layer.follow(&stepped);
        let apart = layer.parameters.iter().zip(step.after).find(|(w, after)| !near(f64::from(**w), f64::from(*after), 2e-5));
        assert!(apart.is_none(), "step {number}: {apart:?}");
    }
    assert_eq!(splices, 14);
}

#[test]
fn what_is_cut_is_masked_and_stays_so_while_it_is_tuned() {
    let train = json!({ "epochs": 3, "batch": 20, "lr": 0.01 });
    let net = run::<NetworkSurgery>(small(), json!({ "c": 0.2, "train": train, "tune": train })).unwrap();
    let masks: Vec<Vec<bool>> = net.weighted().filter_map(|(_, node)| node.dense()?.mask()).collect();
    let (all, kept) = (masks.concat().len(), masks.concat().into_iter().filter(|stays| *stays).count());
    assert!(kept > 0 && 10 * kept < 9 * all, "{kept} of {all}");
    for (_, node) in net.weighted() {
        let Some(mask) = node.dense().and_then(|dense| dense.mask()) else { continue };
        let values = parameters(node).unwrap().remove(0);
        assert!(values.iter().zip(mask).all(|(w, stays)| stays || *w == 0.0), "{}", node.name);
    }
    assert!(outputs(&net).iter().all(|value| value.is_finite()));
}

#[test]
fn what_is_out_of_use_learns_and_comes_back() {
    let (data, mut host) = (images(), briquette_core::context::Silent);
    let method: NetworkSurgery =
        serde_json::from_value(json!({ "c": 1.0, "until": 1.0, "train": { "epochs": 6, "batch": 5, "lr": 0.05 } })).unwrap();
    let chosen = method.check(&small()).unwrap();
    let layers: BTreeMap<usize, Layer> =
        chosen.iter().map(|(index, c)| (*index, Layer::of(&small().nodes[*index], *c).unwrap())).collect();
    let mut surgery = Surgery { layers, gamma: 0.0, power: 1.0, until: 1.0, seed: 3 };
    let net = surgery.begun(small());
    let cut: Vec<Vec<bool>> = surgery.layers.values().map(|layer| layer.used.clone()).collect();
    let mut cx = context(&data, &mut host);
    fit(net, &method.train, Extras { projections: vec![&mut surgery], ..Extras::default() }, &mut cx).unwrap();
    let ended = surgery.layers.values().map(|layer| &layer.used);
    let spliced = cut.iter().zip(ended).map(|(before, after)| before.iter().zip(after).filter(|(b, a)| !**b && **a).count());
    assert!(spliced.sum::<usize>() > 0);
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let train = json!({ "epochs": 1 });
    let refused = |settings| refusal::<NetworkSurgery>(small(), settings);
    assert!(refused(json!({ "c": 0.2, "gamma": -1.0, "train": train })).contains("`gamma` and `power` are at least 0"));
    assert!(refused(json!({ "c": { "nowhere": 1.0 }, "train": train })).contains("unknown layer 'nowhere'"));
}
