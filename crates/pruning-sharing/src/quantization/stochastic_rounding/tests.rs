use briquette_core::builder::{Builder, Conv};
use briquette_core::coding::floats;
use briquette_core::context::Silent;
use briquette_core::stored::Storage;
use briquette_core::training::evaluate;
use burn::tensor::{Device, Distribution};

use super::*;
use crate::quantization::fixed_point::FixedPoint;
use briquette_handmade::{get, images, outputs, refusal, run, set, small, stirred};

#[test]
fn the_mean_of_what_is_rounded_is_the_value_and_the_format_saturates() {
    let (format, device) = (Format { integer: 3, fraction: 2 }, Device::flex());
    chance::seed(9);
    let x = [0.1_f32, -0.6, 1.9, -3.99, 0.25, 0.0];
    let draws = 4000;
    let many = Tensor::<1>::from_floats(x, &device).reshape([1, 6]).repeat_dim(0, draws);
    let drawn = format.round(many, By::Stochastic);
    assert!(floats(drawn.clone()).iter().all(|v| (v * 4.0).fract() == 0.0));
    let mean = floats(drawn.mean_dim(0));
    // Four standard errors of a step of a quarter.
    assert!(mean.iter().zip(x).all(|(mean, x)| (mean - x).abs() < 4.0 * 0.125 / (draws as f32).sqrt()), "{mean:?}");
    for by in [By::Stochastic, By::Nearest] {
        let ends = format.round(Tensor::<1>::from_floats([9.0, -9.0, 3.9, -4.0], &device), by);
        assert_eq!(floats(ends)[..2], [3.75, -4.0]);
    }
    let nearest = floats(format.round(Tensor::<1>::from_floats(x, &device), By::Nearest));
    assert_eq!(nearest, [0.0, -0.5, 2.0, -4.0, 0.25, 0.0]);
}

/// A step a tenth of the format's, taken two hundred times: 20 steps in the mean, with a deviation of `sqrt(200 * 0.09)`.
#[test]
fn steps_below_the_format_move_weights_by_chance_only() {
    let (format, device) = (Format { integer: 2, fraction: 6 }, Device::flex());
    chance::seed(4);
    let after = |by| {
        let mut weights = Tensor::<1>::zeros([400], &device);
        for _ in 0..200 {
            weights = format.round(weights.add_scalar(0.1 / 64.0), by);
        }
        f64::from(floats(weights.mean())[0]) * 64.0
    };
    assert_eq!(after(By::Nearest), 0.0);
    assert!((after(By::Stochastic) - 20.0).abs() < 4.0 * (200.0_f64 * 0.09 / 400.0).sqrt());
}

#[test]
fn sixteen_bits_train_as_floats_do_and_what_is_left_is_in_the_format() {
    let (data, device) = (images(), Device::flex());
    let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
    let train = serde_json::json!({ "epochs": 40, "batch": 10, "lr": 0.01, "choose": "last" });
    let recipe: Recipe = serde_json::from_value(train.clone()).unwrap();
    let mut silent = Silent;
    let float = fit(stirred(), &recipe, Extras::default(), &mut briquette_handmade::context(&data, &mut silent)).unwrap();
    let activations = serde_json::json!({ "integer": 6, "fraction": 10 });
    let trained =
        run::<StochasticRounding>(stirred(), serde_json::json!({ "activations": activations, "train": train })).unwrap();
    assert!(loss(&trained) < loss(&stirred()) - 0.8 * (loss(&stirred()) - loss(&float)), "{} {}", loss(&trained), loss(&float));
    let in_format = |values: Vec<f32>| values.iter().all(|v| (v * 16384.0).fract() == 0.0 && (-2.0..2.0).contains(v));
    for layer in ["conv1", "conv2", "fc1", "fc2"] {
        assert!(in_format(get(&trained, layer, "weight")), "{layer}");
    }
    assert!(in_format(get(&trained, "fc1", "bias")));
    let back = Net::from_model(&trained.to_model(Storage::default()).unwrap(), &device).unwrap();
    assert_eq!(outputs(&back), outputs(&trained));
}

#[test]
fn eight_bits_learn_by_chance_where_the_nearest_stands_still() {
    let (data, device) = (images(), Device::flex());
    let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
    let after = |rounding: &str, epochs: usize| {
        let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.005, "optimizer": "sgd", "momentum": 0.0 });
        let format = serde_json::json!({ "integer": 2, "fraction": 6 });
        run::<StochasticRounding>(stirred(), serde_json::json!({ "weights": format, "rounding": rounding, "train": train }))
            .unwrap()
    };
    let (start, nearest, chance) = (after("nearest", 0), after("nearest", 40), after("stochastic", 40));
    assert_eq!(get(&start, "fc2", "weight"), get(&nearest, "fc2", "weight"));
    assert_ne!(get(&start, "fc2", "weight"), get(&chance, "fc2", "weight"));
    assert!(loss(&chance) < loss(&start), "{} {}", loss(&chance), loss(&start));
}

#[test]
fn gradients_lie_in_their_format_and_are_right_on_the_mean() {
    let format = serde_json::json!({ "integer": 2, "fraction": 5 });
    let settings = serde_json::json!({ "gradients": format, "except": ["conv1"], "train": {} });
    let method: StochasticRounding = serde_json::from_value(settings).unwrap();
    let net = method.plan(stirred()).unwrap();
    let layers = ["conv2", "fc1", "fc2"].map(String::from).into();
    let way = method.way(&net, &layers).unwrap().unwrap();
    let net = net.probed();
    let x = Tensor::<4>::random([5, 1, 4, 4], Distribution::Uniform(0.0, 1.0), &Device::flex().autodiff());
    let gradient = |logits: Tensor<2>, layer: &str, parameter: &str| {
        let gradients = logits.powi_scalar(2).mean().backward();
        net.nodes[net.index(layer).unwrap()].gradient(parameter, &gradients).unwrap()
    };
    let on_format = |values: &[f32]| values.iter().all(|dy| (dy * 32.0).fract() == 0.0 && (-2.0..2.0).contains(dy));
    for (layer, parameter) in [("fc2", "weight"), ("fc2", "bias"), ("fc1", "weight"), ("conv2", "weight")] {
        let exact = gradient(net.forward(x.clone()), layer, parameter);
        let mut mean = vec![0.0; exact.len()];
        for draw in 0..2000 {
            chance::seed(draw);
            let found = gradient(way.forward(&net, x.clone(), &mut Taps::default()), layer, parameter);
            assert!(on_format(&found), "{layer}: {found:?}");
            mean.iter_mut().zip(found).for_each(|(mean, found)| *mean += found / 2000.0);
        }
        assert!(!on_format(&exact), "{layer}");
        // Four standard errors of steps of 1/32, of which each output's gradient adds up to a few.
        assert!(mean.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 8e-3), "{layer}: {mean:?} {exact:?}");
    }
}

#[test]
fn a_network_trains_in_sixteen_bits_throughout() {
    let (data, device) = (images(), Device::flex());
    let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
    let after = |fraction: u32, rounding: &str, epochs: usize| {
        let format = |integer: u32, fraction: u32| serde_json::json!({ "integer": integer, "fraction": fraction });
        let train = serde_json::json!({ "epochs": epochs, "batch": 10, "lr": 0.1, "optimizer": "sgd", "choose": "last" });
        let settings = serde_json::json!({
            "activations": format(6, 10), "gradients": format(2, fraction), "rounding": rounding, "train": train
        });
        run::<StochasticRounding>(stirred(), settings).unwrap()
    };
    let (start, trained) = (loss(&stirred()), loss(&after(14, "stochastic", 60)));
    assert!(trained < 0.95 * start, "{trained} {start}");
    // Of two bits behind the point the nearest is 0 for all, and only statistics move.
    let parameters = |net: &Net| {
        let biases = ["conv2", "fc1", "fc2"].map(|layer| get(net, layer, "bias"));
        ["conv1", "conv2", "fc1", "fc2"].map(|layer| get(net, layer, "weight")).into_iter().chain(biases).collect::<Vec<_>>()
    };
    let [begun, nearest, chance] = [("nearest", 0), ("nearest", 60), ("stochastic", 60)].map(|(by, epochs)| after(2, by, epochs));
    assert_eq!(parameters(&nearest), parameters(&begun));
    assert!(parameters(&chance).iter().zip(parameters(&begun)).all(|(after, before)| *after != before));
}

#[test]
fn gradients_and_activations_of_a_layer_that_an_earlier_pass_quantized_stay_exact() {
    let earlier = serde_json::json!({ "bits": 8, "activations": 8, "layers": ["fc2"], "fold": false });
    let earlier = run::<FixedPoint>(stirred(), earlier).unwrap();
    // One step, so that what is above the rounded gradients is the same.
    let after = |gradients: Option<Format>| {
        let train = serde_json::json!({ "epochs": 1, "batch": 40, "lr": 0.1, "optimizer": "sgd", "choose": "last" });
        let mut settings = serde_json::json!({ "layers": ["conv2"], "train": train });
        if let Some(Format { integer, fraction }) = gradients {
            settings["gradients"] = serde_json::json!({ "integer": integer, "fraction": fraction });
        }
        run::<StochasticRounding>(earlier.deep_clone(), settings).unwrap()
    };
    let (exact, coarse) = (after(None), after(Some(Format { integer: 2, fraction: 5 })));
    let far = |layer: &str| {
        let (a, b) = (get(&exact, layer, "bias"), get(&coarse, layer, "bias"));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(far("fc2") < 1e-6 && far("conv2") > 1e-4, "{} {}", far("fc2"), far("conv2"));
    let format = serde_json::json!({ "integer": 6, "fraction": 2 });
    let settings = serde_json::json!({ "activations": format, "layers": ["conv2"], "train": {} });
    let method: StochasticRounding = serde_json::from_value(settings).unwrap();
    let net = method.plan(earlier).unwrap();
    let way = method.way(&net, &["conv2".to_string()].into()).unwrap().unwrap();
    assert_eq!(
        (way.layers, way.noisy.unwrap().quantizers.into_values().collect()),
        (vec![net.index("conv2").unwrap()], vec![net.index("relu1").unwrap()])
    );
}

#[test]
fn draws_reach_the_layers_and_no_shortcut_past_them() {
    let block = |weight: f32| {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let conv1 = b.conv("conv1", b.input(), Conv::new(3, 3).same());
        let x = b.relu("relu1", conv1);
        let conv2 = b.conv("conv2", x, Conv::new(3, 1).no_bias());
        let sum = b.add("sum", &[x, conv2]);
        let x = b.global_avg_pool("pool", sum);
        b.linear("fc", x, 3);
        let format = serde_json::json!({ "integer": 4, "fraction": 2 });
        let settings = serde_json::json!({ "activations": format, "layers": ["conv2"], "train": {} });
        let method: StochasticRounding = serde_json::from_value(settings).unwrap();
        let net = method.plan(set(b.finish().unwrap(), "conv2", "weight", &[weight; 9])).unwrap();
        let way = method.way(&net, &["conv2".to_string()].into()).unwrap().unwrap();
        (net, way)
    };
    let x = Tensor::<4>::random([5, 1, 4, 4], Distribution::Uniform(0.0, 1.0), &Device::flex());
    let (net, way) = block(0.0);
    assert_eq!(floats(way.forward(&net, x.clone(), &mut Taps::default())), floats(net.forward(x.clone())));
    // What the layer reads is drawn, and on the mean it is what the shortcut carries.
    let (net, way) = block(0.5);
    let drawn = |seed: u64| {
        chance::seed(seed);
        floats(way.forward(&net, x.clone(), &mut Taps::default()))
    };
    let draws: Vec<Vec<f32>> = (0..2000).map(drawn).collect();
    assert_ne!(draws[0], draws[1]);
    let quantizer = net.nodes[net.index("conv2").unwrap()].inputs[0];
    let read = net.nodes[quantizer].inputs[0];
    let real = floats(net.deep_clone().bypass(quantizer, read).unwrap().forward(x.clone()));
    let mean = |at: usize| draws.iter().map(|draw| draw[at]).sum::<f32>() / draws.len() as f32;
    assert!(real.iter().enumerate().all(|(at, real)| (mean(at) - real).abs() < 1e-2), "{real:?}");
}

#[test]
fn formats_that_do_not_fit_are_refused() {
    let refused = |integer: u32, fraction: u32| {
        let format = serde_json::json!({ "integer": integer, "fraction": fraction });
        refusal::<StochasticRounding>(small(), serde_json::json!({ "weights": format, "train": {} }))
    };
    let detail = "it takes 2 to 16 bits, at least one of them before the point";
    for (integer, fraction) in [(0, 8), (4, 13), (1, 0), (u32::MAX, 1)] {
        assert_eq!(refused(integer, fraction), format!("stochastic-rounding: `weights` is <{integer}, {fraction}>; {detail}"));
    }
}
