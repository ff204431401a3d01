use briquette_core::builder::Builder;
use briquette_core::context::{Data, Silent};
use briquette_core::training::evaluate;
use briquette_core::{Activation, Layer};
use briquette_data::Dataset;
use burn::tensor::Device;

use super::*;
use crate::pruning::magnitude;
use briquette_handmade::{context, get, images, refusal, run, set, small};

const DAMPING: f64 = 0.01;
const SIZE: usize = 6;

/// Four vectors, fewer than weights, and the matrix that they make.
fn hessian() -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let vector = |s: usize| (0..SIZE).map(|i| ((s * 7 + i * i * 3 + s * i) % 11) as f64 / 5.0 - 1.0).collect();
    let vectors: Vec<Vec<f64>> = (1..5).map(vector).collect();
    let entry = |i: usize, j: usize| vectors.iter().map(|x| x[i] * x[j]).sum::<f64>() / 4.0 + if i == j { DAMPING } else { 0.0 };
    let matrix = (0..SIZE).map(|i| (0..SIZE).map(|j| entry(i, j)).collect()).collect();
    (vectors, matrix)
}

fn block() -> Block {
    let mut inverse = Inverse::new(SIZE, DAMPING);
    hessian().0.iter().for_each(|x| inverse.add(x, 4.0, &mut Vec::new()));
    Block { places: (0..SIZE).collect(), weights: vec![0.5, -1.0, 0.2, 2.0, -0.3, 0.8], inverse }
}

#[test]
fn the_recursion_gives_the_inverse_and_removal_the_inverse_of_what_is_left() {
    let (_, matrix) = hessian();
    let mut inverse = block().inverse;
    for removed in [None, Some(1), Some(4)] {
        removed.into_iter().for_each(|q| drop(inverse.remove(q)));
        let alive: Vec<usize> = (0..SIZE).filter(|i| inverse.at(*i, *i) != 0.0).collect();
        assert_eq!(alive.len(), removed.map_or(SIZE, |q| if q == 1 { 5 } else { 4 }));
        for (&i, &j) in alive.iter().flat_map(|i| alive.iter().map(move |j| (i, j))) {
            let product: f64 = alive.iter().map(|&k| matrix[i][k] * inverse.at(k, j)).sum();
            assert!((product - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j}: {product}");
        }
    }
}

#[test]
fn a_deletion_costs_its_saliency_and_no_other_move_costs_less() {
    let (_, matrix) = hessian();
    let cost = |dw: &[f64]| -> f64 {
        let pairs = (0..SIZE).flat_map(|i| (0..SIZE).map(move |j| (i, j)));
        0.5 * pairs.map(|(i, j)| dw[i] * matrix[i][j] * dw[j]).sum::<f64>()
    };
    let mut block = block();
    for q in 0..SIZE {
        let mut deleted = self::block();
        let saliency = deleted.weights[q].powi(2) / (2.0 * deleted.inverse.at(q, q));
        deleted.delete(q);
        let dw: Vec<f64> = deleted.weights.iter().zip(&block.weights).map(|(new, old)| new - old).collect();
        assert_eq!(deleted.weights[q], 0.0);
        assert!((cost(&dw) - saliency).abs() < 1e-9 * (1.0 + saliency), "{q}: {} and {saliency}", cost(&dw));
        for i in (0..SIZE).filter(|i| *i != q) {
            for step in [-1e-3, 1e-3] {
                let mut other = dw.clone();
                other[i] += step;
                assert!(cost(&other) > cost(&dw), "{q} {i}");
            }
        }
    }
    let least = (0..SIZE).map(|q| block.weights[q].powi(2) / (2.0 * block.inverse.at(q, q))).fold(f64::INFINITY, f64::min);
    assert_eq!(block.cheapest().unwrap().0, least);
    delete(std::slice::from_mut(&mut block), 4);
    assert_eq!(block.weights.iter().filter(|w| **w != 0.0).count(), 2);
}

#[test]
fn the_heap_deletes_what_a_scan_of_all_blocks_would() {
    let number = |i: usize| (i * i * 7919 + i * 104_729) % 1009;
    let random = || -> Vec<Block> {
        let block = |b: usize| {
            let size = 1 + number(b) % 7;
            let mut inverse = Inverse::new(size, 0.05);
            for s in 0..4 {
                let x: Vec<f64> = (0..size).map(|i| number(b * 31 + s * 7 + i) as f64 / 500.0 - 1.0).collect();
                inverse.add(&x, 4.0, &mut Vec::new());
            }
            // Some blocks are twins, and some weights are gone already.
            let weight = |i: usize| (number(b / 2 * 13 + i) % 40) as f64 / 20.0 - 1.0;
            Block { places: (0..size).collect(), weights: (0..size).map(weight).collect(), inverse }
        };
        (0..60).map(block).collect()
    };
    let alive: usize = random().iter().map(|block| block.weights.iter().filter(|w| **w != 0.0).count()).sum();
    for count in [1, alive / 3, alive - 5, alive + 9] {
        let (mut by_heap, mut by_scan) = (random(), random());
        delete(&mut by_heap, count);
        for _ in 0..count {
            let all = by_scan.iter().enumerate().filter_map(|(b, block)| block.cheapest().map(|(cost, q)| (cost, b, q)));
            let Some((_, b, q)) = all.min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            by_scan[b].delete(q);
        }
        let weights = |blocks: &[Block]| blocks.iter().flat_map(|block| block.weights.clone()).collect::<Vec<_>>();
        assert_eq!(weights(&by_heap), weights(&by_scan), "{count}");
    }
}

#[test]
fn how_many_looks_the_memory_allows_changes_no_deletion() {
    let keep = serde_json::json!({ "conv1": 0.5, "conv2": 0.5, "fc1": 0.3, "fc2": 0.6 });
    let settings = serde_json::json!({ "keep": keep, "blocks": { "size": 4 }, "calibration-images": 6 });
    let method: OptimalBrainSurgeon = serde_json::from_value(settings).unwrap();
    let pruned = |limit: u128| {
        let (data, mut silent) = (images(), Silent);
        let wanted = method.check(&small()).unwrap().into_iter().map(|(index, share)| (index, share.get()));
        method.operate(small(), wanted, limit, &mut context(&data, &mut silent)).unwrap().to_state()
    };
    let together = pruned(u128::MAX);
    assert!(pruned(0) == together && together != small().to_state());
}

/// The four points of XOR.
fn xor() -> Data {
    let all = Dataset::from_memory("xor", [2, 1, 1], 2, vec![0, 0, 0, 255, 255, 0, 255, 255], vec![0, 1, 1, 0]).unwrap();
    Data { train: all.clone(), valid: all.clone(), test: all }
}

/// Three hidden units trained on XOR.
fn trained(seed: u64) -> Net {
    let mut b = Builder::new([2, 1, 1], seed, &Device::flex());
    let mut x = b.flatten("flatten", b.input());
    x = b.linear("fc1", x, 3);
    x = b.fixed("tanh", &[x], Layer::Activation(Activation::Tanh));
    b.linear("fc2", x, 2);
    let recipe = serde_json::json!({ "epochs": 300, "batch": 4, "lr": 0.05, "choose": "last" });
    let (data, mut silent) = (xor(), Silent);
    let recipe: Recipe = serde_json::from_value(recipe).unwrap();
    fit(b.finish().unwrap(), &recipe, Extras::default(), &mut context(&data, &mut silent)).unwrap()
}

fn right(net: &Net) -> f64 {
    evaluate(net, &xor().test, &Device::flex(), &mut Silent).unwrap().accuracy
}

#[test]
fn half_the_output_weights_of_xor_can_go_but_not_the_smallest() {
    let (mut solved, mut magnitude_right) = (0, 0);
    for net in (0..8).map(trained).filter(|net| right(net) == 1.0) {
        solved += 1;
        let fc2 = net.index("fc2").unwrap();
        let settings = serde_json::json!({ "keep": { "fc2": 0.5 }, "blocks": "layer" });
        let method: OptimalBrainSurgeon = serde_json::from_value(settings).unwrap();
        let (data, mut silent) = (xor(), Silent);
        let pruned = method.run(net.deep_clone(), &mut context(&data, &mut silent)).unwrap();
        assert_eq!(get(&pruned, "fc2", "weight").iter().filter(|w| **w != 0.0).count(), 3);
        assert_eq!(right(&pruned), 1.0);
        let smallest_gone = magnitude::prune(net, |weight| (weight.node() == Some(fc2)).then_some(0.5));
        magnitude_right += usize::from(right(&smallest_gone) == 1.0);
    }
    assert!(solved >= 6 && magnitude_right * 3 < solved, "magnitude: {magnitude_right} of {solved}");
}

#[test]
fn what_a_layer_keeps_is_its_share_whatever_the_blocks() {
    for blocks in [serde_json::json!("layer"), serde_json::json!("row"), serde_json::json!({ "size": 5 })] {
        for rounds in [1, 2] {
            let settings = serde_json::json!({ "keep": { "fc1": 0.3, "conv2": 0.5 }, "blocks": blocks, "calibration-images": 4, "rounds": rounds });
            let net = run::<OptimalBrainSurgeon>(small(), settings).unwrap();
            let left = |layer: &str| get(&net, layer, "weight").iter().filter(|w| **w != 0.0).count();
            assert_eq!((left("fc1"), left("conv2"), left("fc2")), (18, 24, 15));
        }
    }
}

#[test]
fn settings_that_cannot_be_met_are_refused() {
    let none = refusal::<OptimalBrainSurgeon>(small(), serde_json::json!({ "keep": { "fc1": 0.0 } }));
    assert_eq!(none, "node 'fc1': keep = 0 would remove every weight; keep a share above 0");
    let arch = briquette_core::zoo::Arch::named("lenet300").unwrap();
    let lenet = arch.build(&arch.wanted(), &Device::flex()).unwrap();
    let large = refusal::<OptimalBrainSurgeon>(lenet, serde_json::json!({ "keep": 0.5 }));
    let facts = "node 'fc1': the inverses of its 300 blocks take 1407 MiB, `memory-mib` allows 512; ";
    assert_eq!(large, format!("{facts}raise it, or set `blocks = {{ size = 285 }}` or less"));
    let damping = refusal::<OptimalBrainSurgeon>(small(), serde_json::json!({ "keep": 0.5, "damping": 0.0 }));
    assert_eq!(damping, "optimal-brain-surgeon: damping must be positive, is 0");
    let broken = set(small(), "fc2", "weight", &[f32::NAN; 15]);
    let broken = run::<OptimalBrainSurgeon>(broken, serde_json::json!({ "keep": { "fc1": 0.5 } })).unwrap_err().to_string();
    assert!(broken.contains("not finite"), "{broken}");
}
