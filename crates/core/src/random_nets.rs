//! Networks that tests draw: of every wiring that surgery and the engine have to understand.

use briquette_runtime::layers::{ChannelPool, Cyclic, Gate, Measure, Merge, Reduction, Regroup, Route};
use briquette_runtime::{Activation, Engine, Grid, Layer, Places, Product, Stage, StepGradient, Window, layers};
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::builder::{At, Builder, Conv};
use crate::coding::{Coding, Rounding, Source, floats};
use crate::net::{Net, Node, Value};
use crate::quantize::Quantize;
use crate::stored::Storage;
use crate::streams::standard_normal;

pub(crate) fn noise(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| standard_normal(rng) as f32).collect()
}

pub(crate) fn output(net: &Net, input: &[f32]) -> Vec<f32> {
    let shape = net.input_shape();
    let batch = input.len() / shape.iter().product::<usize>();
    let input = Tensor::<4>::from_data(TensorData::new(input.to_vec(), [batch, shape[0], shape[1], shape[2]]), &net.device());
    floats(net.forward(input))
}

pub(crate) fn agree(a: &[f32], b: &[f32]) -> bool {
    let scale = a.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * scale)
}

/// Fresh nets have zero biases and neutral normalization, under which a forgotten entry would not show.
pub(crate) fn stir(net: Net, rng: &mut ChaCha8Rng) -> Net {
    let device = net.device();
    let nodes = net.nodes.into_iter().map(|node| {
        let mut parameters = node.parameters();
        for parameter in parameters.iter_mut().filter(|parameter| parameter.shape.len() == 1) {
            parameter.base = noise(rng, parameter.base.len());
            if parameter.name == "var" {
                parameter.base.iter_mut().for_each(|v| *v = v.abs() + 0.5);
            }
        }
        node.with(parameters, &device).unwrap()
    });
    Net { nodes: nodes.collect() }
}

/// A random network of 3 to 9 blocks, each one of: convolution, grouped or depthwise convolution, residual addition or product, concatenation,
/// channel split, option-A shortcut, pooling of pixels and of channels, scale and shift, quarter turns, channels of several maps, two branches behind a
/// gate; then a flatten or a global pool and one or two fully connected layers. Some
/// have an early exit. Some layers, and some routes, read through a quantizer.
pub(crate) fn random_net(rng: &mut ChaCha8Rng) -> Net {
    let mut b = Builder::new([rng.random_range(1..4), 8, 8], rng.random(), &burn::tensor::Device::flex());
    let mut x = b.input();
    let (blocks, mut early) = (rng.random_range(3..10), None);
    for block in 0..blocks {
        if early.is_none() && rng.random_ratio(1, 20) {
            let logits = random_logits(&mut b, x, "early", 3);
            let measure = if rng.random() { Measure::Entropy } else { Measure::Confidence };
            let decision = b.fixed("early-gate", &[logits], Gate { measure, threshold: rng.random_range(0.4..0.9) });
            x = b.fixed("go-on", &[x, decision], Route { leaving: false });
            early = Some((b.fixed("leave", &[logits, decision], Route { leaving: true }), decision));
        }
        x = random_block(&mut b, x, &format!("b{block}"), rng);
    }
    if rng.random() {
        x = b.global_avg_pool("pool", x);
    } else {
        x = b.flatten("flatten", x);
        x = b.batch_norm("flat-norm", x);
    }
    if rng.random() {
        x = b.linear("hidden", x, rng.random_range(2..9));
        x = b.relu("hidden-relu", x);
    }
    let late = b.linear("out", x, 3);
    if let Some((leaving, decision)) = early {
        b.fixed("exits", &[leaving, late, decision], Merge);
    }
    quantized(stir(b.finish().unwrap(), rng), rng)
}

/// The network with a quantizer of any kind in front of some layers and routes.
fn quantized(mut net: Net, rng: &mut ChaCha8Rng) -> Net {
    let read = |node: &&Node| node.dense().is_some() || matches!(node.op.layer(), Layer::Route(_));
    let names: Vec<String> = net.nodes.iter().filter(read).map(|node| node.name.clone()).collect();
    for name in names.into_iter().filter(|_| rng.random_ratio(1, 5)).collect::<Vec<_>>() {
        let levels = [4, 16, 255][rng.random_range(0..3)];
        // An odd number about the middle of two codes has no 0, which freezes the channels.
        let zero = [0.0, 0.0, (levels / 2) as f32, (levels - 1) as f32 / 2.0][rng.random_range(0..4)];
        let train = [StepGradient::Fixed, StepGradient::Learned, StepGradient::Clip][rng.random_range(0..3)];
        let scale = rng.random_range(0.1..0.4) * train.steps(levels, zero);
        let scale = Param::from_tensor(Tensor::from_floats([scale], &net.device()));
        let reader = net.index(&name).unwrap();
        let op = Quantize::new(scale, levels, zero, train).into();
        net = net.interpose(reader, format!("{name}-quantized"), op).unwrap();
    }
    net
}

/// Whether the order of a sum may decide to which code a quantizer takes what it reads, or on which branch a gate sends a sample.
pub(crate) fn on_an_edge(net: &Net, input: &[f32]) -> bool {
    let shape = net.input_shape();
    let images = Tensor::<1>::from_floats(input, &net.device()).reshape([-1, shape[0] as i32, shape[1] as i32, shape[2] as i32]);
    let mut found = false;
    net.trace(images, |index, value| {
        let read = || match value.clone() {
            Value::Map(x) => floats(x),
            Value::Vector(x) => floats(x),
        };
        for node in net.nodes.iter().filter(|node| node.inputs.first() == Some(&index)) {
            if let Layer::Gate(gate) = node.op.layer() {
                let classes = net.shapes().unwrap()[index][0];
                found |= read().chunks(classes).any(|logits| close(&gate, logits));
            }
            let Some(quantize) = node.op.quantize() else { continue };
            let (step, last) = (floats(quantize.step())[0], (quantize.levels - 1) as f32);
            let codes = read().into_iter().filter(|x| *x != 0.0).map(|x| x / step + quantize.zero);
            found |= codes.filter(|u| (0.0..last).contains(u)).any(|u| (u.fract() - 0.5).abs() < 1e-4 + 1e-5 * u);
        }
        value
    });
    found
}

/// Whether the largest logit, a little larger or smaller, would have the gate decide otherwise.
fn close(gate: &Gate, logits: &[f32]) -> bool {
    let largest = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let little = logits.iter().fold(1.0_f32, |most, z| most.max(z.abs())) * 1e-4;
    let leaves = [-little, little].map(|by| {
        let mut moved = logits.to_vec();
        moved[largest] += by;
        gate.leaves(&moved)
    });
    leaves[0] != leaves[1]
}

/// The network with its weights under codings of every kind, some of them masked.
pub(crate) fn coded(net: Net, rng: &mut ChaCha8Rng) -> Net {
    let device = net.device();
    let nodes = net.nodes.into_iter().map(|node| {
        let mut parameters = node.parameters();
        for weight in parameters.iter_mut().filter(|parameter| parameter.name == "weight") {
            let mask = rng.random_ratio(1, 3).then(|| (0..weight.base.len()).map(|_| rng.random_ratio(3, 4)).collect());
            weight.coding = Coding { mask, source: random_source(&weight.shape, rng) };
        }
        node.with(parameters, &device).unwrap()
    });
    Net { nodes: nodes.collect() }
}

fn random_source(shape: &[usize], rng: &mut ChaCha8Rng) -> Source {
    let (count, out) = (shape.iter().product::<usize>(), shape[0]);
    match rng.random_range(0..9) {
        0 => Source::Free,
        1 => {
            Source::Codebook { centroids: vec![-0.3, 0.1, 0.4], assignment: (0..count).map(|_| rng.random_range(0..3)).collect() }
        }
        2 | 3 => Source::Ternary { scales: [0.2, 0.3], share: rng.random_range(0.05..0.6) },
        4 => Source::Shared {
            rule: Places::Hash { seed: 7 },
            values: vec![0.3, -0.2, 0.1],
            places: Places::Hash { seed: 7 }.all(&[count], 3),
        },
        5 => {
            let columns = count / out;
            let width = 5.min(columns);
            let stage = Stage {
                centroids: (0..3 * columns).map(|i| (i % 23) as f32 * 0.02 - 0.2).collect(),
                indices: (0..columns.div_ceil(width) * out).map(|_| rng.random_range(0..3)).collect(),
            };
            Source::Product { product: Product { width, columns, taps: 1, stages: vec![stage] }, transposed: false }
        }
        _ => {
            let roundings = [Rounding::Nearest, Rounding::Stochastic, Rounding::Tanh, Rounding::Tanh, Rounding::Threshold];
            let rounding = roundings[rng.random_range(0..roundings.len())];
            let levels = if rounding == Rounding::Threshold { 3 } else { [3, 4, 16][rng.random_range(0..3)] };
            let axis = if rng.random() { Some(0) } else { None };
            let channels = if axis.is_some() { out } else { 1 };
            let steps = (0..channels).map(|_| rng.random_range(0.05..0.3)).collect();
            let grid = Grid { levels, axis, steps, zeros: vec![(levels - 1) as f32 / 2.0; channels] };
            Source::Grid { grid, rounding, learned: rng.random() }
        }
    }
}

fn random_block(b: &mut Builder, x: At, name: &str, rng: &mut ChaCha8Rng) -> At {
    let channels = b.shape(x)[0];
    let sub = |part: &str| format!("{name}.{part}");
    match rng.random_range(0..14) {
        0 | 1 => random_unit(b, x, &sub("conv"), Conv::new(rng.random_range(2..9), 3).same(), rng),
        2 => {
            let conv = Conv::new(channels * rng.random_range(1..3), 3).same().groups(channels);
            random_unit(b, x, &sub("depthwise"), conv, rng)
        }
        3 if channels.is_multiple_of(2) => {
            random_unit(b, x, &sub("grouped"), Conv::new(2 * rng.random_range(1..5), 3).same().groups(2), rng)
        }
        4 => {
            let inner = random_unit(b, x, &sub("inner"), Conv::new(rng.random_range(2..9), 1), rng);
            let outer = random_unit(b, inner, &sub("outer"), Conv::new(channels, 3).same(), rng);
            let join = if rng.random() { Layer::Add(layers::Add) } else { Layer::Multiply(layers::Multiply) };
            b.fixed(&sub("join"), &[x, outer], join)
        }
        5 => {
            let left = random_unit(b, x, &sub("left"), Conv::new(rng.random_range(2..6), 1), rng);
            let right = random_unit(b, x, &sub("right"), Conv::new(rng.random_range(2..6), 3).same(), rng);
            let all = b.fixed(&sub("concat"), &[left, x, right], layers::Concat);
            b.batch_norm(&sub("concat-norm"), all)
        }
        6 if channels >= 4 => {
            let start = rng.random_range(1..channels / 2);
            let head = b.fixed(&sub("head"), &[x], layers::ChannelSlice { start: 0, len: start });
            let tail = b.fixed(&sub("tail"), &[x], layers::ChannelSlice { start, len: channels - start });
            let tail = random_unit(b, tail, &sub("tail-conv"), Conv::new(4, 3).same(), rng);
            b.fixed(&sub("join"), &[tail, head], layers::Concat)
        }
        7 => {
            let layer = layers::PadShortcut { stride: 1, before: rng.random_range(0..3), after: rng.random_range(1..3) };
            let wide = b.fixed(&sub("shortcut"), &[x], layer);
            let filters = b.shape(wide)[0];
            let body = random_unit(b, x, &sub("wide"), Conv::new(filters, 3).same(), rng);
            b.add(&sub("add"), &[body, wide])
        }
        8 if b.shape(x)[1] >= 4 => {
            let window = Window::square(2);
            let layer = if rng.random() {
                Layer::MaxPool(layers::MaxPool { window })
            } else {
                Layer::AvgPool(layers::AvgPool { window, count_padding: true })
            };
            b.fixed(&sub("pool"), &[x], layer)
        }
        9 => {
            let out = rng.random_range(1..6);
            random_branches(b, x, name, out, 2, rng)
        }
        10 => {
            let x = random_unit(b, x, &sub("few"), Conv::new(rng.random_range(1..3), 1), rng);
            let mut x = b.fixed(&sub("slice"), &[x], Cyclic::Slice);
            if rng.random() {
                x = b.conv(&sub("views"), x, Conv::new(4 * rng.random_range(1..3), 3).same().groups(4));
                x = b.fixed(&sub("roll"), &[x], Cyclic::Roll);
            }
            let pools = [Cyclic::Stack, Cyclic::Mean, Cyclic::Max, Cyclic::Rms];
            b.fixed(&sub("turn-back"), &[x], pools[rng.random_range(0..pools.len())])
        }
        11 => {
            let (maps, apart) = (rng.random_range(1..4), rng.random());
            let x = b.conv(&sub("maps"), x, Conv::new(maps * rng.random_range(1..4), 3).same());
            let x = b.fixed(&sub("together"), &[x], Regroup { maps, apart, back: false });
            let x = b.batch_norm(&sub("norm"), x);
            b.fixed(&sub("again"), &[x], Regroup { maps, apart, back: true })
        }
        12 => b.affine(&sub("affine"), x, rng.random(), 0.0),
        13 => {
            let grid = [rng.random_range(1..3), rng.random_range(1..4)];
            let window = grid.map(|side| rng.random_range(1..=side));
            let filters = grid[0] * grid[1] * rng.random_range(1..4);
            let x = random_unit(b, x, &sub("grids"), Conv::new(filters, 3).same(), rng);
            let reduction = if rng.random() { Reduction::Max } else { Reduction::Mean };
            b.fixed(&sub("channel-pool"), &[x], ChannelPool { grid, window, reduction })
        }
        _ => b.relu(&sub("relu"), x),
    }
}

/// A convolution, perhaps normalized, and an activation.
fn random_unit(b: &mut Builder, x: At, name: &str, conv: Conv, rng: &mut ChaCha8Rng) -> At {
    let mut x = b.conv(name, x, if rng.random() { conv } else { conv.no_bias() });
    if rng.random() {
        x = b.batch_norm(&format!("{name}-norm"), x);
    }
    let functions = [Activation::Relu, Activation::Tanh, Activation::LeakyRelu { slope: 0.1 }, Activation::Silu];
    b.fixed(&format!("{name}-act"), &[x], Layer::Activation(functions[rng.random_range(0..functions.len())]))
}

/// Two branches behind a gate, each of `out` channels, and of at most so many gates one behind the other.
fn random_branches(b: &mut Builder, x: At, name: &str, out: usize, gates: usize, rng: &mut ChaCha8Rng) -> At {
    let sub = |part: &str| format!("{name}.{part}");
    let measure = [Measure::Entropy, Measure::Confidence, Measure::Sigmoid][rng.random_range(0..3)];
    let count = if measure == Measure::Sigmoid { 1 } else { rng.random_range(2..5) };
    let logits = random_logits(b, x, &sub("logits"), count);
    let decision = b.fixed(&sub("gate"), &[logits], Gate { measure, threshold: rng.random_range(0.4..0.9) });
    // What was computed before the gate may be read behind it.
    let wide = random_unit(b, x, &sub("before"), Conv::new(out, 1), rng);
    let [left, on] = [true, false].map(|leaving| {
        let sub = |part: &str| sub(&format!("{}-{part}", if leaving { "left" } else { "on" }));
        let route = |b: &mut Builder, part: &str, x: At| b.fixed(&sub(part), &[x, decision], Route { leaving });
        match rng.random_range(0..4) {
            0 => route(b, "wide", wide),
            1 if gates > 1 => {
                let x = route(b, "route", x);
                random_branches(b, x, &sub("again"), out, gates - 1, rng)
            }
            2 => {
                let (x, wide) = (route(b, "route", x), route(b, "wide", wide));
                let own = random_unit(b, x, &sub("own"), Conv::new(out, 3).same(), rng);
                b.add(&sub("add"), &[own, wide])
            }
            _ => {
                let x = route(b, "route", x);
                random_unit(b, x, &sub("own"), Conv::new(out, 3).same(), rng)
            }
        }
    });
    b.fixed(&sub("merge"), &[left, on, decision], Merge)
}

fn random_logits(b: &mut Builder, x: At, name: &str, classes: usize) -> At {
    // What is pooled is much the same for all noise, and few gates would part it.
    let flat = b.flatten(&format!("{name}-flat"), x);
    b.linear(name, flat, classes)
}

#[test]
fn the_engine_computes_each_sample_as_burn_does_whatever_it_skips() {
    let (samples, mut parted, mut edges) = (5, 0, 0);
    for seed in 0..500 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let net = random_net(&mut rng);
        let net = if seed % 2 == 0 { net } else { coded(net, &mut rng) };
        let image: usize = net.input_shape().iter().product();
        let input = noise(&mut rng, samples * image);
        if on_an_edge(&net, &input) {
            edges += 1;
            continue;
        }
        let expected = output(&net, &input);
        let model = net.to_model(Storage::default()).unwrap();
        for (batch, threads) in [(1, 1), (2, 2), (3, 1), (samples, 2)] {
            let engine = Engine::new(&model, threads).unwrap();
            let runs = input.chunks(batch * image).map(|images| engine.run_counted(images, images.len() / image).unwrap());
            let (outputs, counts): (Vec<_>, Vec<_>) = runs.unzip();
            let found = outputs.concat();
            assert!(agree(&expected, &found), "seed {seed}, batches of {batch}: {expected:?}, {found:?}");
            parted += usize::from(batch == samples && counts[0].iter().any(|(_, rows)| (1..samples).contains(rows)));
        }
    }
    assert!(parted > 60 && edges < 200, "{parted} parted, {edges} on an edge");
}
