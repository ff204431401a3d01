use burn::module::Module;

use super::*;
use briquette_handmade::{get, images, refusal, run, set, small};

fn settings() -> SoftWeightSharing {
    let settings = serde_json::json!({
        "components": 3, "pi-zero": 0.6, "tau": 20.0, "prior": { "alpha": 2.0, "beta": 0.1 }, "train": { "lr": 1e-3 }
    });
    serde_json::from_value(settings).unwrap()
}

/// A mixture that is not symmetric.
fn mixture(net: &Net) -> Mixture {
    let device = net.device();
    Mixture {
        means: Learned::new(vec![-0.3, 0.1, 0.4], &device),
        deviations: Learned::new(vec![-1.5, -1.0, -1.2, -0.8], &device),
        shares: Learned::new(vec![0.2, -0.3, 0.5], &device),
        ..settings().mixture(&tensors(net, None), 40).unwrap()
    }
}

fn value(mixture: &Mixture, net: &Net) -> f64 {
    f64::from(mixture.term(tensors(&net.deep_clone().train(), None)).into_scalar::<f32>())
}

#[test]
fn gradients_by_weights_means_deviations_and_shares_agree_with_differences() {
    let net = small();
    let trained = net.deep_clone().train();
    let before = mixture(&net);
    let gradients = before.term(tensors(&trained, None)).backward();
    let check = |what: &str, gradient: f32, moved: &dyn Fn(f32) -> f64| {
        let difference = (moved(4e-3) - moved(-4e-3)) / 8e-3;
        assert!((difference - f64::from(gradient)).abs() < 0.02 + 0.01 * difference.abs(), "{what}: {gradient} and {difference}");
    };
    for layer in ["conv1", "fc2"] {
        let weights = get(&net, layer, "weight");
        let gradient = trained.nodes[net.index(layer).unwrap()].gradient("weight", &gradients).unwrap();
        for i in 0..weights.len() {
            check(layer, gradient[i], &|step| {
                let mut weights = weights.clone();
                weights[i] += step;
                value(&before, &set(net.deep_clone(), layer, "weight", &weights))
            });
        }
    }
    let parts: [fn(&mut Mixture) -> &mut Learned; 3] = [|m| &mut m.means, |m| &mut m.deviations, |m| &mut m.shares];
    let learned = [("mean", &before.means), ("deviation", &before.deviations), ("share", &before.shares)];
    for ((what, learned), part) in learned.into_iter().zip(parts) {
        let values = floats(learned.values.clone().inner());
        let gradient = floats(learned.values.grad(&gradients).unwrap());
        for i in 0..values.len() {
            check(what, gradient[i], &|step| {
                let (mut values, mut moved) = (values.clone(), mixture(&net));
                values[i] += step;
                *part(&mut moved) = Learned::new(values, &net.device());
                value(&moved, &net)
            });
        }
    }
}

#[test]
fn a_weight_takes_the_mean_of_the_component_most_responsible_for_it() {
    let component = |share: f64, mean: f64| Component { share, mean, variance: 0.01 };
    let components = [component(0.9, 0.0), component(0.05, 0.5), component(0.05, -0.5)];
    let mut weights = get(&small(), "fc2", "weight");
    // Where the densities 0.9 exp(-50 w^2) and 0.05 exp(-50 (w - 0.5)^2) cross, at w = 0.25 + ln(18) / 50 = 0.308.
    weights[..5].copy_from_slice(&[0.30, 0.32, -0.31, 0.9, -0.05]);
    let hard = |weights: &[f32]| {
        let net = set(small(), "fc2", "weight", weights);
        let names: Vec<String> = net.nodes.iter().map(|node| node.name.clone()).collect();
        harden(net, &components, |weight| Some(names[weight.node()?].clone()))
    };
    let net = hard(&weights).unwrap();
    assert_eq!(get(&net, "fc2", "weight")[..5], [0.0, 0.5, -0.5, 0.5, 0.0]);
    let lost = hard(&[0.1; 15]).unwrap_err().to_string();
    assert!(lost.starts_with("node 'fc2': all its weights fell to the component at zero"), "{lost}");
}

#[test]
fn training_gathers_the_weights_at_means_that_move() {
    let train = serde_json::json!({ "epochs": 60, "batch": 20, "lr": 0.01, "choose": "last" });
    let spread = |tau: f64| {
        let settings = serde_json::json!({
            "components": 4, "pi-zero": 0.7, "tau": tau, "rate": 0.01, "prior": { "alpha": 2.0, "beta": 0.005 }, "train": train
        });
        let method: SoftWeightSharing = serde_json::from_value(settings).unwrap();
        let (data, mut silent) = (images(), briquette_core::context::Silent);
        let mut cx = briquette_handmade::context(&data, &mut silent);
        let mut mixture = method.mixture(&tensors(&small(), None), 40).unwrap();
        let start = mixture.components();
        let net = fit(small(), &method.train, Extras { objectives: vec![&mut mixture], ..Extras::default() }, &mut cx).unwrap();
        let components = mixture.components();
        assert!(start.iter().zip(&components).skip(1).all(|(a, b)| a.mean != b.mean && a.share != b.share));
        assert_eq!((components[0].mean, components[0].share), (0.0, 0.7));
        let weights: Vec<f32> = ["conv1", "conv2", "fc1", "fc2"].iter().flat_map(|layer| get(&net, layer, "weight")).collect();
        let far = |w: &f32| components.iter().map(|c| (f64::from(*w) - c.mean).abs()).fold(f64::INFINITY, f64::min);
        weights.iter().map(far).sum::<f64>() / weights.len() as f64
    };
    let (free, held) = (spread(1e-9), spread(5.0));
    assert!(held < 0.5 * free, "{held} and {free}");
}

#[test]
fn the_result_is_masked_and_shared_and_stays_so_while_it_is_tuned() {
    let settings = serde_json::json!({
        "components": 4, "pi-zero": 0.7, "tau": 0.5, "rate": 0.01,
        "train": { "epochs": 10, "batch": 20, "lr": 0.01 }, "tune": { "epochs": 1, "batch": 20 }
    });
    let net = run::<SoftWeightSharing>(small(), settings).unwrap();
    for layer in ["conv1", "conv2", "fc1", "fc2"] {
        let mut values = get(&net, layer, "weight");
        values.sort_by(f32::total_cmp);
        values.dedup();
        assert!(values.len() <= 5, "{layer}: {values:?}");
    }
}

#[test]
fn masked_weights_stay_zero_and_take_no_part() {
    let pruned = crate::pruning::magnitude::prune(small(), |_| Some(0.5));
    let left = |net: &Net| ["conv1", "conv2", "fc1", "fc2"].map(|layer| get(net, layer, "weight")).concat();
    let before = left(&pruned);
    let mixture = Mixture { prior: None, ..mixture(&pruned) };
    let components = mixture.components();
    let log = |w: &f32| {
        let density = |c: &Component| (c.log_density(f64::from(*w)) - 0.5 * std::f64::consts::TAU.ln()).exp();
        components.iter().map(density).sum::<f64>().ln()
    };
    let expected = -mixture.scale * before.iter().filter(|w| **w != 0.0).map(log).sum::<f64>();
    let found = value(&mixture, &pruned);
    assert!((found - expected).abs() < 1e-5 * expected.abs(), "{found} and {expected}");
    let settings = serde_json::json!({
        "components": 4, "pi-zero": 0.7, "tau": 0.5, "rate": 0.01, "train": { "epochs": 5, "batch": 20, "lr": 0.01 }
    });
    let after = left(&run::<SoftWeightSharing>(pruned, settings).unwrap());
    assert!(before.iter().zip(&after).all(|(before, after)| *before != 0.0 || *after == 0.0));
    assert!(after.iter().any(|w| *w != 0.0));
}

#[test]
fn settings_and_layers_that_do_not_fit_are_refused() {
    let train = serde_json::json!({});
    let tau = refusal::<SoftWeightSharing>(small(), serde_json::json!({ "tau": 0.0, "train": train }));
    assert_eq!(tau, "soft-weight-sharing: tau must be above 0, is 0");
    let pi = refusal::<SoftWeightSharing>(small(), serde_json::json!({ "pi-zero": 1.0, "train": train }));
    assert_eq!(pi, "soft-weight-sharing: pi-zero lies between 0 and 1, not 1");
    let shared =
        crate::quantization::kmeans_sharing::share(small(), |_| Some(2), crate::quantization::kmeans_sharing::Init::Linear);
    let shared = refusal::<SoftWeightSharing>(shared, serde_json::json!({ "train": train }));
    assert!(shared.starts_with("node 'conv1': its weights are shared already"), "{shared}");
}
