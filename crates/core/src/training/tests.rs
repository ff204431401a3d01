use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::context::{Data, Memory, Silent};
use crate::net::{Op, Value};
use crate::zoo::{Arch, Wanted};

#[test]
fn smoothing_spreads_the_target_over_all_classes() {
    let device = Device::flex();
    let logits = Tensor::<2>::from_floats([[2.0, 0.0, -1.0]], &device);
    let total = (2.0_f64.exp() + 1.0 + (-1.0_f64).exp()).ln();
    let plain = f64::from(floats(cross_entropy(logits.clone(), &[0], 0.0))[0]);
    assert!((plain - (total - 2.0)).abs() < 1e-6);
    let smooth = f64::from(floats(cross_entropy(logits, &[0], 0.3))[0]);
    let expected = 0.8 * (total - 2.0) + 0.1 * total + 0.1 * (total + 1.0);
    assert!((smooth - expected).abs() < 1e-6);
}

#[test]
fn the_square_hinge_is_its_definition_and_trains() {
    let device = Device::flex();
    let logits = Tensor::<2>::from_floats([[2.0, 0.5, -3.0], [0.0, 0.25, 1.0]], &device);
    // Margins 1 - t z: -1, 1.5, -2; then 1, 0.75, 2.
    let expected = (0.0 + 2.25 + 0.0 + 1.0 + 0.5625 + 4.0) / 6.0;
    assert!((floats(square_hinge(logits, &[0, 1]))[0] - expected).abs() < 1e-6);
    let settings = serde_json::json!({ "epochs": 4, "batch": 10, "lr": 0.01, "loss": "square-hinge" });
    let (net, _) = trained(settings, Extras::default()).unwrap();
    assert!(evaluate(&net, &halves().test, &Device::flex(), &mut Silent).unwrap().accuracy > 0.95);
    let settings = serde_json::json!({ "epochs": 1, "loss": "square-hinge", "label-smoothing": 0.1 });
    let refused = trained(settings, Extras::default()).unwrap_err().to_string();
    assert!(refused.contains("label-smoothing is of the cross-entropy"), "{refused}");
}

#[test]
fn ties_go_to_the_lower_class_and_nan_never_hits() {
    assert_eq!(hits(&[1.0, 1.0, 0.0, 1.0], &[0, 1], 1), 2);
    assert_eq!(hits(&[1.0, 1.0], &[1], 1), 0);
    assert_eq!(hits(&[f32::NAN, f32::NAN], &[0], 1), 0);
    assert_eq!(hits(&[5.0, 4.0, 3.0], &[2], 3), 1);
}

/// Images that are black above or below the middle, 28x28; the label says where.
fn halves() -> Data {
    let images = |count: usize| {
        let pixels =
            (0..count).flat_map(|i| (0..784).map(move |p| if (p < 392) == (i % 2 == 0) { 200 } else { (i * p % 90) as u8 }));
        let labels = (0..count).map(|i| (i % 2) as u16).collect();
        Dataset::from_memory("halves", [1, 28, 28], 2, pixels.collect(), labels).unwrap()
    };
    Data { train: images(120), valid: images(20), test: images(40) }
}

fn net() -> Net {
    let arch = Arch::named("lenet300").unwrap();
    arch.build(&Wanted { width: 0.1, classes: 2, ..arch.wanted() }, &Device::flex()).unwrap()
}

fn trained(settings: serde_json::Value, extras: Extras<'_>) -> Result<(Net, Vec<Epoch>)> {
    let (data, mut silent) = (halves(), Silent);
    let mut cx = Context::new(&Device::flex(), 7, &data, &mut silent);
    let net = fit(net(), &serde_json::from_value(settings).unwrap(), extras, &mut cx)?;
    Ok((net, cx.curve))
}

#[test]
fn every_optimizer_learns_what_is_easy() {
    for (optimizer, precision) in [("sgd", "f32"), ("adam", "f32"), ("adamw", "f32"), ("adam", "bf16")] {
        let settings = serde_json::json!({
            "epochs": 4, "batch": 10, "lr": 0.01, "optimizer": optimizer, "weight-decay": 1e-3, "clip": 1.0, "precision": precision
        });
        let (net, curve) = trained(settings, Extras::default()).unwrap();
        let score = evaluate(&net, &halves().test, &Device::flex(), &mut Silent).unwrap();
        assert!(score.accuracy > 0.95, "{optimizer}: {score:?}");
        assert_eq!(curve.len(), 4);
        assert!(curve[3].train_loss < 0.5 * curve[0].train_loss, "{optimizer}: {curve:?}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_training_and_says_what_to_do() {
    let error =
        trained(serde_json::json!({ "epochs": 5, "batch": 10, "lr": 1e30, "optimizer": "sgd" }), Extras::default()).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
    assert!(error.to_string().contains("lower the learning rate (now "), "{error}");
}

#[test]
fn the_chosen_epoch_is_the_best_on_the_validation_split() {
    // The rate is far too high from the second half on: the last epoch is not the best.
    let settings = |choose: &str| {
        let schedule = serde_json::json!({ "step": { "at": [0.5], "factor": 3000.0 } });
        serde_json::json!({ "epochs": 4, "batch": 10, "lr": 0.01, "optimizer": "sgd", "schedule": schedule, "choose": choose })
    };
    let accuracy = |choose: &str| {
        let (net, curve) = trained(settings(choose), Extras::default()).unwrap();
        (evaluate(&net, &halves().valid, &Device::flex(), &mut Silent).unwrap().accuracy, curve)
    };
    let (best, curve) = accuracy("best");
    let (last, _) = accuracy("last");
    let most = curve.iter().map(|epoch| epoch.valid_accuracy).fold(0.0, f64::max);
    assert_eq!((best, last), (most, curve[3].valid_accuracy));
    assert!(best > last, "{curve:?}");
}

#[test]
fn objectives_and_projections_take_part_in_every_step() {
    /// Pulls the logits to zero, strongly.
    struct Small;
    impl Objective for Small {
        fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
            Ok(seen.logits.clone().powi_scalar(2).mean().mul_scalar(100.0))
        }
    }
    struct Count(AtomicUsize);
    impl Projection for Count {
        fn see(&mut self, net: &Net, gradients: &GradientsParams, lr: f64) {
            let Op::Linear(last) = &net.nodes[net.nodes.len() - 1].op else { panic!("the last node is a linear layer") };
            assert!(lr > 0.0 && gradients.get::<2>(last.weight.id).is_some());
        }

        fn project(&mut self, net: Net, step: usize, steps: usize) -> Net {
            assert_eq!((self.0.fetch_add(1, Ordering::Relaxed), steps), (step, 96));
            net
        }
    }
    let mut count = Count(AtomicUsize::new(0));
    let mut small = Small;
    let extras = Extras { objectives: vec![&mut small], projections: vec![&mut count], ..Extras::default() };
    let (_, curve) = trained(serde_json::json!({ "epochs": 8, "batch": 10, "lr": 0.01 }), extras).unwrap();
    assert_eq!(count.0.into_inner(), 96);
    // Without the term the same recipe tells the two classes apart; with it, it must not.
    assert!(curve[7].train_accuracy < 0.6 && curve[7].train_loss > 2.0_f64.ln(), "{curve:?}");
}

#[test]
fn an_objective_sees_images_labels_and_taps_of_the_one_forward_pass_and_may_take_the_place_of_the_task() {
    /// Pulls what a node puts out to zero, in the place of the task.
    struct Quiet {
        node: usize,
        seen: usize,
    }
    impl Objective for Quiet {
        fn taps(&self, _: &Net) -> Result<Vec<usize>> {
            Ok(vec![self.node, 0])
        }

        fn task(&self) -> f64 {
            0.0
        }

        fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
            let [Value::Vector(features), Value::Map(input)] = seen.taps else { panic!("{:?}", seen.taps) };
            assert_eq!(floats(input.clone()), floats(seen.images.clone()));
            let data = halves().train;
            let mut pixels = vec![0; data.shape.iter().product()];
            for (row, (id, label)) in seen.ids.iter().zip(seen.labels).enumerate() {
                assert_eq!(data.label(*id as usize), *label);
                data.read(*id as usize, &mut pixels).unwrap();
                let image = floats(seen.images.clone().narrow(0, row, 1));
                assert!(image.iter().zip(&pixels).all(|(a, b)| *a == f32::from(*b) / 255.0));
            }
            // The logits are those of the features that were tapped.
            let again = seen.net.forward(seen.images.clone());
            assert_eq!(floats(again), floats(seen.logits.clone()));
            self.seen += seen.labels.len();
            Ok(features.clone().powi_scalar(2).mean())
        }
    }
    let settings = || serde_json::json!({ "epochs": 6, "batch": 10, "lr": 0.01, "choose": "last" });
    let (plain, _) = trained(settings(), Extras::default()).unwrap();
    let node = plain.nodes.len() - 1;
    let mut quiet = Quiet { node, seen: 0 };
    let (quieted, _) = trained(settings(), Extras { objectives: vec![&mut quiet], ..Extras::default() }).unwrap();
    assert_eq!(quiet.seen, 6 * halves().train.len());
    let size = |net: &Net| {
        let batch = Loader::ordered(&halves().train, 20).next().unwrap().unwrap();
        floats(net.forward(images(&batch, halves().train.shape, &Device::flex())).powi_scalar(2).mean())[0]
    };
    assert!(size(&quieted) < 0.1 * size(&plain), "{} {}", size(&quieted), size(&plain));
    let mut beyond = Quiet { node: 99, seen: 0 };
    let refused = trained(settings(), Extras { objectives: vec![&mut beyond], ..Extras::default() });
    assert!(refused.unwrap_err().to_string().starts_with("node 99 is looked at by the loss"));
}

/// The network that is used says the same of every image: whatever the one in training learns, validation sees one class of two.
#[test]
fn validation_sees_the_network_as_it_is_used_and_training_goes_on_with_its_own() {
    struct Nothing;
    impl Settle for Nothing {
        fn settle(&self, net: Net, _: &mut Context<'_>) -> Result<Net> {
            let nodes = net.nodes.into_iter().map(|node| {
                let mut parameters = node.parameters();
                parameters.iter_mut().for_each(|stored| stored.base.fill(0.0));
                node.with(parameters, &Device::flex())
            });
            Ok(Net { nodes: nodes.collect::<Result<_>>()? })
        }
    }
    let settings = serde_json::json!({ "epochs": 4, "batch": 10, "lr": 0.01, "choose": "last" });
    let (net, curve) = trained(settings.clone(), Extras { settle: Some(&Nothing), ..Extras::default() }).unwrap();
    assert!(curve.iter().all(|epoch| epoch.valid_accuracy == 0.5), "{curve:?}");
    let (without, _) = trained(settings, Extras::default()).unwrap();
    assert!(net.to_state() == without.to_state());
}

/// The states that a training leaves, and its net.
fn saved(settings: &serde_json::Value) -> Result<(Memory, Net)> {
    let (data, mut host) = (halves(), Memory::default());
    let recipe = serde_json::from_value(settings.clone()).unwrap();
    let net = fit(net(), &recipe, Extras::default(), &mut Context::new(&Device::flex(), 7, &data, &mut host))?;
    Ok((host, net))
}

#[test]
fn a_state_holds_the_chosen_network_once_and_what_the_optimizer_remembers() {
    let size = |optimizer: &str, choose: &str| {
        // The rate is far too high from the second half on: the last epoch is not the best.
        let schedule = serde_json::json!({ "step": { "at": [0.5], "factor": 3000.0 } });
        let settings = serde_json::json!({
            "epochs": 4, "batch": 10, "lr": 0.01, "optimizer": optimizer, "schedule": schedule, "choose": choose
        });
        saved(&settings).unwrap().0.states["training-0"].len() as f64 / net().to_state().len() as f64
    };
    let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 0.1, "{found} networks instead of {wanted}");
    near(size("sgd", "last"), 2.0);
    near(size("sgd", "best"), 3.0);
    near(size("adam", "last"), 3.0);
}

#[test]
fn a_damaged_state_is_one_error_that_says_what_to_do() {
    let settings = serde_json::json!({ "epochs": 1, "batch": 10 });
    let state = saved(&settings).unwrap().0.states.remove("training-0").unwrap();
    let resumed = |state: Vec<u8>| {
        let (data, mut host) = (halves(), Memory::default());
        host.states.insert("training-0".into(), state);
        let recipe = serde_json::from_value(settings.clone()).unwrap();
        let mut cx = Context::new(&Device::flex(), 7, &data, &mut host);
        fit(net(), &recipe, Extras::default(), &mut cx).map_or_else(|error| error.to_string(), |_| "trained".into())
    };
    assert_eq!(resumed(state.clone()), "trained");
    let wrong = |detail: &str| format!("saved state: training-0: {detail}; remove the file, and this training begins anew");
    for part in 0..20 {
        let at = part * state.len() / 20;
        assert_eq!(resumed(state[..at].to_vec()), wrong("it is cut short"));
        let mut flipped = state.clone();
        flipped[at] ^= 16;
        assert!(resumed(flipped).ends_with("; remove the file, and this training begins anew"), "byte {at}");
    }
    let mut flipped = state.clone();
    let last_moment = state.len() - 10;
    flipped[last_moment] ^= 16;
    assert_eq!(resumed(flipped), wrong("it is damaged: the checksum differs"));
}

#[test]
fn a_state_of_another_network_is_refused() {
    let (data, mut host, recipe) = (halves(), Memory::default(), Recipe::default());
    let mut run = |net: Net| fit(net, &recipe, Extras::default(), &mut Context::new(&Device::flex(), 3, &data, &mut host));
    run(net()).unwrap();
    assert!(run(net()).is_ok());
    let arch = Arch::named("lenet300").unwrap();
    let wider = arch.build(&Wanted { width: 0.2, classes: 2, ..arch.wanted() }, &Device::flex()).unwrap();
    // Without a bias, all weights have the same shapes.
    let mut unbiased = net();
    let at = unbiased.index("fc2").unwrap();
    let node = unbiased.nodes.remove(at);
    let weight = node.parameters().into_iter().filter(|stored| stored.name == "weight").collect();
    unbiased.nodes.insert(at, node.with(weight, &Device::flex()).unwrap());
    for other in [wider, unbiased] {
        let error = run(other).unwrap_err().to_string();
        assert!(error.contains("training-0 is of another network; remove the file"), "{error}");
    }
}

/// Images of which one cannot be read.
#[derive(Debug)]
struct Hole(Dataset, usize);

impl briquette_data::Images for Hole {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn label(&self, i: usize) -> u16 {
        self.0.label(i)
    }

    fn read(&self, i: usize, pixels: &mut [u8]) -> std::result::Result<(), briquette_data::Error> {
        self.0.read(i, pixels)?;
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        if i == self.1 { Err(briquette_data::Error::Io { path: "train/7.png".into(), reason: gone() }) } else { Ok(()) }
    }
}

#[test]
fn an_image_that_cannot_be_read_ends_a_training_with_one_error_that_names_it() {
    let with_hole = |set: &Dataset, i| {
        let images = std::sync::Arc::new(Hole(set.clone(), i));
        Dataset::new("holes", set.shape, set.classes, images).unwrap()
    };
    let run = |data: &Data| {
        let (mut host, recipe) = (Memory::default(), serde_json::from_str(r#"{ "epochs": 2, "batch": 10 }"#).unwrap());
        let result = fit(net(), &recipe, Extras::default(), &mut Context::new(&Device::flex(), 7, data, &mut host));
        (result, host.states.len())
    };
    let whole = run(&halves()).0.unwrap();
    // Read one by one as the training asks for them, the images are those that lie in memory, and so are the weights.
    let data = halves();
    let read = Data { train: with_hole(&data.train, usize::MAX), valid: with_hole(&data.valid, usize::MAX), test: data.test };
    assert!(run(&read).0.unwrap().to_state() == whole.to_state());
    for (train, valid) in [(77, usize::MAX), (usize::MAX, 3)] {
        let data = halves();
        let data = Data { train: with_hole(&data.train, train), valid: with_hole(&data.valid, valid), test: data.test };
        let (result, states) = run(&data);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Data(_)) && error.to_string().starts_with("train/7.png: "), "{error}");
        assert_eq!(states, 0, "no state of an epoch that was not whole");
    }
}
