use std::collections::BTreeMap;

use briquette_core::builder::Conv;
use briquette_core::coding::floats;
use briquette_core::context::{Data, Finding, Silent};
use briquette_core::cost::Cost;
use briquette_core::stored::Storage;
use briquette_core::training::evaluate_counted;
use briquette_data::Dataset;
use briquette_handmade::{get, refusal, set, small};
use briquette_runtime::{Engine, Model};
use burn::tensor::TensorData;
use serde_json::json;

use super::*;

const LOGITS: [f32; 4] = [0.3, -0.6, 1.1, 0.2];

/// All policies of four blocks, in the order of the reference values, under which a class is found where the first block runs with another one.
fn policies() -> Vec<(Vec<bool>, bool)> {
    let of = |number: usize| (0..4).map(|block| number >> (3 - block) & 1 == 1).collect::<Vec<_>>();
    (0..16).map(of).map(|run| (run.clone(), run[0] && run[1..].contains(&true))).collect()
}

fn gradient(loss: impl Fn(Tensor<2>) -> Tensor<1>, rows: usize) -> (f64, Vec<f64>) {
    let z: Vec<f32> = (0..rows).flat_map(|_| LOGITS).collect();
    let z = Tensor::<2>::from_data(TensorData::new(z, [rows, 4]), &Device::flex().autodiff()).require_grad();
    let loss = loss(z.clone());
    let value = f64::from(floats(loss.clone().inner())[0]);
    let all = floats(z.grad(&loss.backward()).unwrap());
    (value, (0..4).map(|block| all.iter().skip(block).step_by(4).map(|v| f64::from(*v)).sum()).collect())
}

fn near(found: &[f64], expected: &[f64]) {
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-5), "{found:?} {expected:?}");
}

/// `block-drop` of the reference values: over all policies, each as often as it is drawn, the gradient is minus that of the expected reward, whatever the
/// advantage is over.
#[test]
fn the_expected_gradient_is_that_of_the_expected_reward() {
    for (alpha, penalty, expected_reward, expected) in [
        (0.8, -1.0, -0.265_911_218_2, [0.197_685_479_5, -0.001_223_398_069, 0.014_064_793_96, 0.006_293_389_4]),
        (1.0, -5.0, -2.077_722_093, [1.243_597_231, 0.041_728_001_79, 0.153_401_791_2, 0.089_835_215_12]),
    ] {
        let probable = |run: &[bool]| -> f64 {
            let s = LOGITS.map(|z| 1.0 / (1.0 + f64::from(-z).exp())).map(|s| alpha * s + (1.0 - alpha) * (1.0 - s));
            run.iter().zip(s).map(|(run, s)| if *run { s } else { 1.0 - s }).product()
        };
        let all = policies();
        let mean: f64 = all.iter().map(|(run, found)| probable(run) * reward(run, *found, penalty)).sum();
        near(&[mean], &[expected_reward]);
        let greedy = reward(&[true, false, true, true], true, penalty);
        assert_eq!(greedy, 0.4375);
        for baseline in [0.0, greedy] {
            let weighted: Vec<f64> =
                all.iter().map(|(run, found)| probable(run) * (reward(run, *found, penalty) - baseline)).collect();
            let drawn = all.iter().flat_map(|(run, _)| run.clone()).collect::<Vec<_>>();
            let (_, found) = gradient(|z| policy_loss(z, alpha, &drawn, &weighted, &[true; 4]), 16);
            near(&found, &expected.map(|v| -v));
        }
    }
}

/// `block-drop` of the reference values: one draw, and the entropy of the authors' code.
#[test]
fn a_draw_and_the_entropy_have_the_losses_and_gradients_of_the_authors_code() {
    for (alpha, loss, of_loss, bonus, of_bonus) in [
        (
            0.8,
            0.726_561_498_3,
            [-0.084_154_279_27, 0.073_029_450_21, -0.054_036_029_8, 0.098_722_392_5],
            1.312_636_06,
            [-0.057_557_697_41, -0.015_750_200_92, -0.064_019_470_85, -0.054_196_295_44],
        ),
        (
            1.0,
            0.649_161_684_2,
            [-0.132_986_713_5, 0.110_732_404_3, -0.078_043_717, 0.171_823_124_2],
            1.230_525_851,
            [-0.108_941_564_6, 0.008_576_652_278, -0.133_531_894_3, -0.099_467_289_76],
        ),
    ] {
        let (value, found) = gradient(|z| policy_loss(z, alpha, &[true, false, true, false], &[0.3125], &[true; 4]), 1);
        near(&[value], &[loss]);
        near(&found, &of_loss);
        let (value, found) = gradient(|z| entropy(z, alpha, &[true; 4]), 1);
        near(&[value], &[bonus]);
        near(&found, &of_bonus);
        let (_, found) = gradient(
            |z| {
                policy_loss(z.clone(), alpha, &[true; 4], &[0.5], &[false, false, true, true])
                    + entropy(z, alpha, &[false, true, true, true])
            },
            1,
        );
        assert!(found[0] == 0.0 && found[1..].iter().all(|v| *v != 0.0), "{found:?}");
    }
}

#[test]
fn the_curriculum_goes_from_the_last_block_to_the_first() {
    let of = |epochs, epoch| {
        let learning = Learning { logits: vec![0; 4], gates: vec![0; 4], stage: Stage::Alone { epochs }, penalty: -1.0 };
        learning.counted(epoch).iter().filter(|counted| **counted).count()
    };
    assert_eq!([0.0, 0.9, 1.0, 2.5, 3.0, 9.0].map(|epoch| of(10, epoch)), [1, 1, 2, 3, 4, 4]);
    assert_eq!([0.0, 1.0, 2.0].map(|epoch| of(3, epoch)), [2, 3, 4]);
    let learning = Learning { logits: vec![0; 3], gates: vec![0; 3], stage: Stage::Alone { epochs: 3 }, penalty: -1.0 };
    assert_eq!(learning.counted(0.0), [false, false, true]);
}

fn method() -> BlockDrop {
    serde_json::from_value(json!({ "width": 0.25, "train": { "choose": "last" } })).unwrap()
}

fn narrow(name: &str) -> Net {
    let arch = Arch::named(name).unwrap();
    arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap()
}

/// The network with logits of its own for each image, by the mean of a policy's features.
fn drawn(parted: &Parted) -> Net {
    let blocks = parted.gates.len();
    (0..blocks).fold(parted.net.deep_clone(), |net, block| {
        let name = format!("policy.keep{block}");
        let weight: Vec<f32> = (0..get(&net, &name, "weight").len()).map(|i| ((i * 7 + block * 5) % 11) as f32 - 5.0).collect();
        set(net, &name, "weight", &weight)
    })
}

fn pixels(net: &Net, count: usize) -> Vec<f32> {
    let size = net.input_shape().iter().product::<usize>();
    (0..count * size).map(|i| ((i * i * 7) % 251) as f32 / 250.0 * ((i / size) as f32 / count as f32)).collect()
}

fn batch(net: &Net, pixels: Vec<f32>) -> Tensor<4> {
    let shape = net.input_shape();
    let count = pixels.len() / shape.iter().product::<usize>();
    Tensor::from_data(TensorData::new(pixels, [count, shape[0], shape[1], shape[2]]), &Device::flex())
}

/// With shortcuts that pad, that project, and without rectifiers behind sums.
#[test]
fn a_dropped_block_is_its_shortcut_without_the_rectifier_and_all_blocks_are_the_whole_network() {
    for name in ["resnet20", "wrn-16-1", "mobilenet-v2"] {
        let net = narrow(name);
        let parted = method().parted(net.deep_clone(), 1).unwrap();
        let images = || batch(&net, pixels(&net, 2));
        assert_eq!(floats(parted.net.forward(images())), floats(net.forward(images())), "{name}");
        for (block, found) in crate::residual::blocks(&net).iter().enumerate() {
            let mut decisions: BTreeMap<usize, Vec<bool>> = parted.gates.iter().map(|gate| (*gate, vec![true; 2])).collect();
            decisions.insert(parted.gates[block], vec![false; 2]);
            let dropped = floats(parted.net.forward_decided(images(), decisions).unwrap());
            let (sum, shortcut) = found.detour().unwrap();
            let end = *members(&net, found.branch.end, sum, shortcut).last().unwrap();
            let (around, _) = net.clone().bypass_all(&[(end, shortcut)]).unwrap();
            let expected = floats(around.forward(images()));
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
            assert!(dropped.iter().zip(&expected).all(near), "{name}, block {block}");
        }
    }
}

/// A projection ends in a batch norm, whose values have both signs.
#[test]
fn a_dropped_block_hands_on_its_projection_as_it_is() {
    let arch = Arch::named("resnet18").unwrap();
    let net = arch.build(&Wanted { width: 0.25, size: Some(64), ..arch.wanted() }, &Device::flex()).unwrap();
    let parted = method().parted(net.deep_clone(), 1).unwrap();
    let images = || batch(&net, pixels(&net, 2));
    let mut decisions: BTreeMap<usize, Vec<bool>> = parted.gates.iter().map(|gate| (*gate, vec![true; 2])).collect();
    decisions.insert(parted.gates[2], vec![false; 2]);
    let dropped = floats(parted.net.forward_decided(images(), decisions).unwrap());
    let without = |node: &str| {
        let pair = [node, "layer2.0.shortcut.norm"].map(|name| net.index(name).unwrap());
        floats(net.clone().bypass_all(&[pair.into()]).unwrap().0.forward(images()))
    };
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
    assert!(dropped.iter().zip(&without("layer2.0.relu")).all(near));
    let rectified = without("layer2.0.add");
    assert!(dropped.iter().zip(&rectified).any(|(a, b)| (a - b).abs() > 1e-3 * (1.0 + b.abs())), "{dropped:?} {rectified:?}");
}

#[test]
fn a_policy_reads_the_input_where_a_block_normalizes_it() {
    let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
    let x = b.input();
    let branch = b.normalize(x, &[0.5], &[0.25]);
    let branch = b.conv("conv", branch, Conv::new(1, 3).same());
    let sum = b.add("add", &[branch, x]);
    let flat = b.flatten("flatten", sum);
    b.linear("fc", flat, 3);
    let net = b.finish().unwrap();
    let parted = method().parted(net.deep_clone(), 1).unwrap();
    let images = || batch(&net, pixels(&net, 2));
    assert_eq!(floats(parted.net.forward(images())), floats(net.forward(images())));
    let dropped = parted.net.forward_decided(images(), [(parted.gates[0], vec![false; 2])].into()).unwrap();
    let around = net.clone().bypass_all(&[(net.index("add").unwrap(), 0)]).unwrap().0;
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
    assert!(floats(dropped).iter().zip(&floats(around.forward(images()))).all(near));
}

#[test]
fn the_container_says_what_burn_says_and_computes_what_is_not_dropped_alone() {
    let parted = method().parted(narrow("resnet20"), 1).unwrap();
    let net = drawn(&parted);
    let images = pixels(&net, 12);
    let (logits, counts) = net.forward_counted(batch(&net, images.clone()));
    let burn = floats(logits);
    let model = Model::from_bytes(&net.to_model(Storage::default()).unwrap().to_bytes().unwrap()).unwrap();
    let size = burn.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
    for (threads, at_once) in [(1, 12), (2, 12), (1, 5), (2, 1)] {
        let engine = Engine::new(&model, threads).unwrap();
        let (mut outputs, mut steps) = (Vec::new(), BTreeMap::<String, usize>::new());
        for chunk in images.chunks(at_once * 3072) {
            let (output, samples) = engine.run_counted(chunk, chunk.len() / 3072).unwrap();
            outputs.extend(output);
            samples.into_iter().for_each(|(step, samples)| *steps.entry(step).or_default() += samples);
        }
        assert!(outputs.iter().zip(&burn).all(|(a, b)| (a - b).abs() < 1e-4 * size), "batches of {at_once}");
        for (step, samples) in counts.iter().filter(|(step, _)| step.contains("conv")) {
            assert_eq!(steps[step], *samples, "{step}");
        }
    }
    let convolutions = counts.iter().filter(|(step, _)| step.ends_with(".conv1") && step.starts_with("layer"));
    let runs: Vec<usize> = convolutions.map(|(_, samples)| *samples).collect();
    assert!(runs.len() == 9 && runs.iter().any(|runs| (1..12).contains(runs)), "{runs:?}");
    let cost = Cost::of(&net).unwrap();
    let share = |step: &str| counts.iter().find(|(name, _)| name == step).map(|(_, samples)| *samples as f64 / 12.0);
    assert!(cost.expected_macs(share).unwrap() < cost.macs() as f64);
}

fn two_blocks() -> Net {
    let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
    let mut x = b.conv("stem", b.input(), Conv::new(4, 3).same());
    x = b.relu("relu", x);
    for block in ["a", "b"] {
        let branch = b.conv(block, x, Conv::new(4, 3).same().no_bias());
        let branch = b.batch_norm(&format!("{block}.norm"), branch);
        x = b.add(&format!("{block}.add"), &[branch, x]);
        x = b.relu(&format!("{block}.relu"), x);
    }
    x = b.flatten("flatten", x);
    b.linear("fc", x, 3);
    b.finish().unwrap()
}

#[test]
fn the_policy_learns_alone_and_then_with_everything() {
    let (net, data) = (two_blocks(), briquette_handmade::images());
    let trained = |tune: serde_json::Value| {
        let mut silent = Silent;
        let mut cx = briquette_handmade::context(&data, &mut silent);
        let train = json!({ "epochs": 3, "batch": 10, "lr": 0.05, "choose": "last" });
        let method: BlockDrop = serde_json::from_value(json!({ "width": 0.25, "train": train, "tune": tune })).unwrap();
        let out = method.run(net.deep_clone(), &mut cx).unwrap();
        (out, cx.findings)
    };
    let (alone, findings) = trained(json!(null));
    for (node, parameter) in [("stem", "weight"), ("a", "weight"), ("a.norm", "gamma"), ("a.norm", "mean"), ("fc", "weight")] {
        assert_eq!(get(&alone, node, parameter), get(&net, node, parameter), "{node} is frozen");
    }
    let seed = briquette_handmade::context(&data, &mut Silent).seed;
    let start = method().parted(net.deep_clone(), seed).unwrap().net;
    for node in ["policy.conv1", "policy.keep0", "policy.keep1"] {
        assert!(get(&alone, node, "weight") != get(&start, node, "weight"), "{node}");
    }
    assert!(get(&alone, "policy.conv1.norm", "mean").iter().any(|m| *m != 0.0));
    let notes: Vec<&String> =
        findings.iter().filter_map(|f| if let Finding::Note(note) = f { Some(note) } else { None }).collect();
    assert!(notes.iter().any(|note| note.contains("of 2 blocks run on the mean; in percent of the images: ")), "{notes:?}");
    let Some(Finding::Tradeoff(curve)) = findings.iter().find(|f| matches!(f, Finding::Tradeoff(_))) else { panic!("no curve") };
    assert!(curve.points.is_sorted_by(|a, b| a.balance.macs >= b.balance.macs) && curve.points.len() == 21);
    let (joint, _) = trained(json!({ "epochs": 1, "batch": 10, "lr": 0.01, "choose": "last" }));
    for (node, parameter) in [("stem", "weight"), ("a", "weight"), ("a.norm", "mean"), ("policy.conv1", "weight")] {
        assert!(get(&joint, node, parameter) != get(&alone, node, parameter), "{node}");
    }
}

#[test]
fn what_does_not_help_is_dropped() {
    // The branches give nothing, so that all classes are found without them.
    let net = set(set(two_blocks(), "a.norm", "gamma", &[0.0; 4]), "b.norm", "gamma", &[0.0; 4]);
    let pixels: Vec<u8> = (0..40_usize * 16).map(|i| (i * i * 31 % 251) as u8).collect();
    let logits = floats(net.forward(batch(&net, pixels.iter().map(|v| f32::from(*v) / 255.0).collect())));
    let largest = |row: &[f32]| (0..3).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u16;
    let all = Dataset::from_memory("found", [1, 4, 4], 3, pixels, logits.chunks(3).map(largest).collect()).unwrap();
    let data = Data { train: all.clone(), valid: all.clone(), test: all };
    let mut silent = Silent;
    let mut cx = briquette_handmade::context(&data, &mut silent);
    let train = json!({ "epochs": 12, "batch": 10, "lr": 0.05, "schedule": "constant", "choose": "last" });
    let method: BlockDrop = serde_json::from_value(json!({ "width": 0.25, "train": train })).unwrap();
    let out = method.run(net, &mut cx).unwrap();
    let (score, reached) = evaluate_counted(&out, &data.valid, &Device::flex(), &mut Silent).unwrap();
    assert!(score.accuracy > 0.9 && reached["a"] + reached["b"] < 0.5, "{score:?} {reached:?}");
}

#[test]
fn what_has_no_blocks_or_cannot_learn_is_refused() {
    let refuse = |settings: serde_json::Value| refusal::<BlockDrop>(small(), settings);
    let train = json!({ "choose": "last" });
    assert_eq!(
        refuse(json!({ "train": train })),
        "block-drop: the network has no residual blocks, of which any could be dropped"
    );
    assert!(refuse(json!({ "train": {} })).ends_with("say `choose = \"last\"` in the recipe"));
    assert_eq!(refuse(json!({ "width": 0.0, "train": train })), "block-drop: `width` is 0; it lies in (0, 16]");
    assert!(
        refuse(json!({ "penalty": [1.0, -1.0], "train": train })).starts_with("block-drop: a `penalty` of 1; it is a reward")
    );
    let distill = json!({ "choose": "last", "distill": { "method": "soft-targets" } });
    assert!(refuse(json!({ "train": distill })).contains("put `distill` into `tune`"));
    let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
    let x = b.conv("stem", b.input(), Conv::new(4, 3).same());
    let outer = b.conv("outer1", x, Conv::new(4, 3).same());
    let inner = b.conv("inner", outer, Conv::new(4, 3).same());
    let outer = b.add("inner.add", &[inner, outer]);
    let outer = b.conv("outer2", outer, Conv::new(4, 3).same());
    let sum = b.add("outer.add", &[outer, x]);
    let flat = b.flatten("flatten", sum);
    b.linear("fc", flat, 3);
    let nested = refusal::<BlockDrop>(b.finish().unwrap(), json!({ "train": train }));
    assert_eq!(
        nested,
        "node 'inner': lies in a residual block within another one; blocks are dropped that stand one behind another"
    );
    let net = two_blocks();
    let twice = refusal::<BlockDrop>(method().plan(net).unwrap(), json!({ "train": train }));
    assert_eq!(
        twice,
        "node 'policy.block0.gate': already decides which samples go on; drop blocks of a network in which nothing does"
    );
}
