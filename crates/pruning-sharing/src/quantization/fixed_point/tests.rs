use briquette_core::coding::{Source, floats};
use briquette_core::context::Silent;
use briquette_core::net::{Op, Value};
use briquette_core::promises::Promises;
use briquette_core::stored::Storage;
use briquette_core::training::{evaluate, probe};
use briquette_core::{Grid, Layer, layers};
use burn::tensor::Device;

use super::*;
use briquette_handmade::{context, get, images, outputs, refusal, run, set, small, stirred};

/// [`stirred`], trained on the images.
fn trained() -> Net {
    let (data, mut silent) = (images(), Silent);
    let recipe: Recipe = serde_json::from_value(serde_json::json!({ "epochs": 60, "batch": 10, "lr": 0.01 })).unwrap();
    fit(stirred(), &recipe, Extras::default(), &mut context(&data, &mut silent)).unwrap()
}

fn settings(more: serde_json::Value) -> serde_json::Value {
    let mut all = serde_json::json!({ "bits": 8, "activations": 8, "calibration-images": 40, "batch": 10 });
    if let (Some(all), serde_json::Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
    all
}

#[test]
fn activations_have_bits_by_layer() {
    let levels = |activations: serde_json::Value| -> Vec<(String, u32)> {
        let net = run::<FixedPoint>(small(), settings(serde_json::json!({ "activations": activations }))).unwrap();
        let reads = |(_, node): (usize, &briquette_core::net::Node)| {
            let read = net.nodes[node.inputs[0]].op.layer();
            let briquette_core::Layer::Quantize(layers::Quantize { levels, .. }) = read else { return None };
            Some((node.name.clone(), levels))
        };
        net.weighted().filter_map(reads).collect()
    };
    let found = levels(serde_json::json!({ "conv1": 8, "fc*": 4 }));
    assert_eq!(found, [("conv1", 256), ("fc1", 16), ("fc2", 16)].map(|(name, levels)| (name.to_string(), levels)));
    assert_eq!(levels(serde_json::json!(5)).len(), 4);
    let more = serde_json::json!({ "activations": { "conv1": 8 }, "except": ["conv1"] });
    let error = refusal::<FixedPoint>(small(), settings(more));
    assert_eq!(
        error,
        "node 'conv1': has bits for the activations that it reads, but its weights are left alone; quantize both or neither"
    );
}

/// Root of the mean squared error of the outputs, over the deviation of the outputs.
fn error(net: &Net, float: &[f32]) -> f64 {
    let found = outputs(net);
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    (squares(&mut found.iter().zip(float).map(|(a, b)| a - b)) / squares(&mut float.iter().copied())).sqrt()
}

/// What every node puts out for the images.
fn activations(net: &Net) -> Vec<Vec<f32>> {
    let (data, mut silent) = (images(), Silent);
    let mut all = vec![Vec::new(); net.nodes.len()];
    probe(&mut context(&data, &mut silent), "all", (1, 40), &Device::flex(), |images, _| {
        net.trace(images, |node, value| {
            all[node] = match &value {
                Value::Map(x) => floats(x.clone()),
                Value::Vector(x) => floats(x.clone()),
            };
            value
        });
        Ok(())
    })
    .unwrap();
    all
}

fn grid(net: &Net, layer: &str) -> Grid {
    let source = net.nodes[net.index(layer).unwrap()].weight().unwrap().coding.source;
    let Source::Grid { grid, .. } = source else { panic!("{layer} is {source:?}") };
    grid
}

#[test]
fn weights_and_inputs_are_eight_bit_integers_and_sums_are_those_of_integers() {
    for more in [serde_json::json!({}), serde_json::json!({ "weights": "affine", "per": "tensor", "bias-correction": true })] {
        let net = run::<FixedPoint>(trained(), settings(more)).unwrap();
        assert!(net.nodes.iter().all(|node| !matches!(node.op, Op::BatchNorm(_))));
        let values = activations(&net);
        for (index, node) in net.weighted() {
            let grid = grid(&net, &node.name);
            let (weight, input) = (node.weight().unwrap(), node.inputs[0]);
            assert!(grid.levels <= 256 && grid.zeros.iter().all(|zero| zero.fract() == 0.0));
            let channel = grid.channel_of(&weight.shape);
            let codes: Vec<i32> =
                weight.values().iter().enumerate().map(|(i, w)| i32::from(grid.nearest(channel(i), *w))).collect();
            for (i, (w, code)) in weight.values().iter().zip(&codes).enumerate() {
                assert_eq!(*w, grid.value(channel(i), *code as u16));
            }
            let Some(quantize) = net.nodes[input].op.quantize() else { panic!("{} reads no integers", node.name) };
            let step = floats(quantize.scale.val())[0];
            let inputs: Vec<i32> = values[input].iter().map(|x| (x / step + quantize.zero).round() as i32).collect();
            assert!(inputs.iter().all(|code| (0..256).contains(code)), "{}", node.name);
            assert!(inputs.iter().zip(&values[input]).all(|(code, x)| *x == (*code as f32 - quantize.zero) * step));
            if let Op::Linear(_) = node.op {
                let bias = get(&net, &node.name, "bias");
                let (out, wide) = (weight.shape[0], weight.shape[1]);
                for (i, y) in values[index].iter().enumerate() {
                    let (row, column) = (&inputs[i / out * wide..][..wide], i % out);
                    let products = row
                        .iter()
                        .zip(&codes[column * wide..][..wide])
                        .map(|(x, w)| (x - quantize.zero as i32) * (w - grid.zeros[channel(column * wide)] as i32));
                    let exact = products.sum::<i32>() as f32 * step * grid.steps[channel(column * wide)] + bias[column];
                    assert!((exact - y).abs() < 1e-4 * y.abs().max(1.0), "{exact} {y}");
                }
            }
        }
        let back = Net::from_model(&net.to_model(Storage::default()).unwrap(), &Device::flex()).unwrap();
        assert_eq!(outputs(&back), outputs(&net));
    }
}

#[test]
fn eight_bits_change_nearly_nothing_and_the_error_falls_with_every_two_bits() {
    let net = trained();
    let float = outputs(&net);
    let after = |bits: u32, more: serde_json::Value| {
        let mut all = settings(more);
        all["bits"] = bits.into();
        all["activations"] = bits.min(8).into();
        run::<FixedPoint>(net.deep_clone(), all).unwrap()
    };
    for observer in ["min-max", "moving-average", "percentile", "kl", "mse"] {
        let found = error(&after(8, serde_json::json!({ "observer": observer })), &float);
        assert!(found < if observer == "kl" || observer == "moving-average" { 0.1 } else { 0.02 }, "{observer}: {found}");
    }
    let errors = [2, 4, 6, 8].map(|bits| error(&after(bits, serde_json::json!({})), &float));
    assert!(errors.windows(2).all(|pair| pair[1] < 0.6 * pair[0]), "{errors:?}");
    let (data, device) = (images(), Device::flex());
    let score = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().accuracy;
    assert!((score(&after(8, serde_json::json!({}))) - score(&net)).abs() < 0.03);
    let weights_only = serde_json::json!({ "activations": null, "bits": 16 });
    assert!(error(&run::<FixedPoint>(net.deep_clone(), settings(weights_only)).unwrap(), &float) < 1e-3);
}

#[test]
fn a_step_for_each_channel_loses_less_than_one_for_all() {
    let scaled: Vec<f32> =
        get(&stirred(), "conv2", "weight").iter().enumerate().map(|(i, w)| w * [0.05, 1.0, 4.0][i / 16]).collect();
    let net = set(stirred(), "conv2", "weight", &scaled).fold_norms().unwrap();
    let lost = |per: &str, bits: u32| {
        let quantized = run::<FixedPoint>(net.deep_clone(), serde_json::json!({ "bits": bits, "per": per })).unwrap();
        let layers = ["conv1", "conv2", "fc1", "fc2"];
        let squares = layers.map(|layer| {
            let (before, after) = (get(&net, layer, "weight"), get(&quantized, layer, "weight"));
            before.iter().zip(after).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        });
        squares.iter().sum::<f64>()
    };
    for bits in [3, 4, 8] {
        assert!(lost("channel", bits) <= lost("tensor", bits), "{bits} bits");
    }
}

#[test]
fn corrected_biases_restore_the_mean_outputs() {
    let net = trained().fold_norms().unwrap();
    let names = ["conv1", "conv2", "fc1", "fc2"].map(String::from);
    let amount = Calibration { images: 40, batch: 10 };
    let (data, mut silent) = (images(), Silent);
    let mut means = |net: &Net| output_means(net, &names, amount, &mut context(&data, &mut silent)).unwrap();
    let float = means(&net);
    let mut shift = |correct: bool| {
        let more = serde_json::json!({ "bits": 3, "activations": 4, "bias-correction": correct });
        let found = means(&run::<FixedPoint>(net.deep_clone(), settings(more)).unwrap());
        let shifts = float.iter().flat_map(|(name, means)| means.iter().zip(&found[name]).map(|(a, b)| (a - b).abs()));
        shifts.fold(0.0, f64::max)
    };
    let (plain, corrected) = (shift(false), shift(true));
    assert!(corrected < 1e-5 && plain > 1e-2, "{corrected} {plain}");
}

#[test]
fn equalized_channels_lose_less_under_one_step_for_all() {
    // The first two filters of conv1 are far smaller than the others, and what reads them far larger.
    let (conv1, conv2) = (get(&stirred(), "conv1", "weight"), get(&stirred(), "conv2", "weight"));
    let factor = |channel: usize| if channel < 2 { 0.01 } else { 1.0 };
    let net = set(small(), "conv1", "weight", &conv1.iter().enumerate().map(|(i, w)| w * factor(i / 4)).collect::<Vec<_>>());
    let net = set(net, "conv2", "weight", &conv2.iter().enumerate().map(|(i, w)| w / factor(i / 4 % 4)).collect::<Vec<_>>());
    let float = outputs(&net);
    let of = |equalize: bool| {
        let more = serde_json::json!({ "bits": 5, "activations": null, "per": "tensor", "equalize": equalize });
        error(&run::<FixedPoint>(net.deep_clone(), settings(more)).unwrap(), &float)
    };
    assert!(of(true) < 0.5 * of(false), "{} {}", of(true), of(false));
}

#[test]
fn training_with_rounding_mends_two_bits_and_ends_on_the_grid() {
    let net = trained();
    let (data, device) = (images(), Device::flex());
    let loss = |net: &Net| evaluate(net, &data.test, &device, &mut Silent).unwrap().loss;
    let few = |more: serde_json::Value| {
        let mut all = settings(more);
        all["bits"] = 2.into();
        all["activations"] = 3.into();
        run::<FixedPoint>(net.deep_clone(), all).unwrap()
    };
    let rounded = loss(&few(serde_json::json!({})));
    for learned in [false, true] {
        let tune = serde_json::json!({ "epochs": 30, "batch": 10, "lr": 0.005 });
        let tuned = few(serde_json::json!({ "tune": tune, "learned": learned }));
        assert!(loss(&tuned) < rounded, "{} {rounded}", loss(&tuned));
        for (_, node) in tuned.weighted() {
            let (grid, weight) = (grid(&tuned, &node.name), node.weight().unwrap());
            let channel = grid.channel_of(&weight.shape);
            let on = |(i, w): (usize, &f32)| *w == grid.value(channel(i), grid.nearest(channel(i), *w));
            assert!(weight.values().iter().enumerate().all(on), "{}", node.name);
        }
        let moved = grid(&tuned, "fc1").steps != grid(&few(serde_json::json!({})), "fc1").steps;
        assert_eq!(moved, learned);
    }
}

#[test]
fn norms_folded_after_the_training_leave_its_outputs_and_its_codes_integers() {
    for per in ["tensor", "channel"] {
        let tune = serde_json::json!({ "epochs": 2, "batch": 10, "lr": 0.01 });
        let more = serde_json::json!({ "bits": 2, "per": per, "fold": false, "learned": true, "tune": tune });
        let kept = run::<FixedPoint>(trained(), settings(more)).unwrap();
        let folded = kept.deep_clone().fold_norms().unwrap();
        Promises::of(&kept).check(&folded).unwrap();
        let norms = |net: &Net| net.nodes.iter().filter(|node| matches!(node.op, Op::BatchNorm(_))).count();
        assert!(norms(&kept) > 0 && norms(&folded) == 0);
        let (expected, found) = (outputs(&kept), outputs(&folded));
        // A rounding of activations may fall to the other side where the two differ in the last bit.
        let differ = expected.iter().zip(&found).filter(|(a, b)| (*a - *b).abs() > 1e-3 * a.abs().max(1.0)).count();
        assert!(differ * 50 <= expected.len(), "{differ} of {}", expected.len());
        let weight = folded.nodes[folded.index("conv1").unwrap()].weight().unwrap();
        let grid = grid(&folded, "conv1");
        let channel = grid.channel_of(&weight.shape);
        assert!(weight.values().iter().enumerate().all(|(i, w)| *w == grid.value(channel(i), grid.nearest(channel(i), *w))));
    }
}

#[test]
fn a_layer_of_zeros_and_a_channel_that_never_fires_stay_zero() {
    let mut weights = get(&stirred(), "conv1", "weight");
    weights[..4].fill(0.0);
    let net = set(set(stirred(), "conv1", "weight", &weights), "fc1", "weight", &vec![0.0; get(&small(), "fc1", "weight").len()]);
    let net = set(net, "fc1", "bias", &[-1.0; 5]);
    for per in ["tensor", "channel"] {
        for observer in ["min-max", "moving-average", "percentile", "kl", "mse"] {
            let more = serde_json::json!({ "per": per, "observer": observer, "reach": "mse", "bias-correction": true, "equalize": true });
            let net = run::<FixedPoint>(net.deep_clone(), settings(more)).unwrap();
            assert!(outputs(&net).iter().all(|y| y.is_finite()), "{per} {observer}");
            assert!(get(&net, "fc1", "weight").iter().all(|w| *w == 0.0));
            net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        }
    }
}

#[test]
fn weights_at_the_code_of_zero_are_tuned_after_the_network_was_read_from_a_file() {
    let net = run::<FixedPoint>(trained(), settings(serde_json::json!({ "bits": 4, "activations": 8 }))).unwrap();
    let back = Net::from_model(&net.to_model(Storage::default()).unwrap(), &Device::flex()).unwrap();
    let zeros = |net: &Net| get(net, "fc1", "weight").iter().map(|w| *w == 0.0).collect::<Vec<_>>();
    let recipe: Recipe = serde_json::from_value(serde_json::json!({ "epochs": 10, "batch": 10, "lr": 0.05 })).unwrap();
    let (data, mut silent) = (images(), Silent);
    let tuned = briquette_core::training::tune(back.deep_clone(), Some(&recipe), &mut context(&data, &mut silent)).unwrap();
    let moved = zeros(&back).iter().zip(zeros(&tuned)).filter(|(before, after)| **before && !after).count();
    assert!(moved > 0, "{:?} and {:?}", get(&back, "fc1", "weight"), get(&tuned, "fc1", "weight"));
}

#[test]
fn layers_that_are_spared_and_masks_stay() {
    let mask: Vec<bool> = (0..15).map(|i| i % 2 == 0).collect();
    let fc2 = small().index("fc2").unwrap();
    let net = briquette_parts::masks::mask_layers(stirred(), |i, _| (i == fc2).then(|| mask.clone())).unwrap();
    let more = serde_json::json!({ "except": ["conv*"], "fold": false, "weights": "affine" });
    let quantized = run::<FixedPoint>(net.deep_clone(), settings(more)).unwrap();
    assert_eq!(get(&quantized, "conv1", "weight"), get(&net, "conv1", "weight"));
    assert!(quantized.nodes.iter().any(|node| matches!(node.op, Op::BatchNorm(_))));
    assert_eq!(quantized.nodes.iter().filter(|node| node.op.quantize().is_some()).count(), 2);
    assert!(get(&quantized, "fc2", "weight").iter().zip(&mask).all(|(w, keep)| *keep || *w == 0.0));
    assert_eq!(quantized.nodes[quantized.index("fc2").unwrap()].weight().unwrap().coding.mask, Some(mask));
    let Layer::Quantize(layers::Quantize { zero, levels, .. }) =
        quantized.nodes[quantized.index("flatten-quantized").unwrap()].op.layer()
    else {
        panic!("no quantizer")
    };
    assert_eq!((zero, levels), (0.0, 256));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |more: serde_json::Value| refusal::<FixedPoint>(small(), settings(more));
    assert_eq!(refused(serde_json::json!({ "bits": 9 })), "node 'conv1': fixed-point takes 2 to 8 or 16 bits, not 9");
    assert_eq!(refused(serde_json::json!({ "bits": { "fc1": 1 } })), "node 'fc1': fixed-point takes 2 to 8 or 16 bits, not 1");
    assert_eq!(refused(serde_json::json!({ "activations": 16 })), "fixed-point: `activations` takes 2 to 8 bits, not 16");
    assert!(
        refused(serde_json::json!({ "calibration-images": 0 }))
            .starts_with("fixed-point: `calibration-images` and `batch` must be at least 1")
    );
    assert_eq!(
        refused(serde_json::json!({ "learned": true })),
        "fixed-point: `learned` takes a training; add `tune` or leave it out"
    );
}

#[test]
fn the_plan_has_the_structure_of_the_result() {
    let method: FixedPoint = serde_json::from_value(settings(serde_json::json!({}))).unwrap();
    let names = |net: &Net| net.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    let done = run::<FixedPoint>(stirred(), settings(serde_json::json!({}))).unwrap();
    assert_eq!(names(&method.plan(stirred()).unwrap()), names(&done));
    assert!(!names(&done).contains(&"norm1".to_string()));
}
