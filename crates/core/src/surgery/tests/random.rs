//! Random networks, codings and cuts.

use super::*;

/// A random network of 3 to 9 blocks, each one of: convolution, grouped or depthwise convolution, residual addition or product, concatenation,
/// channel split, option-A shortcut, pooling; then a flatten or a global pool and one or two fully connected layers. Some layers read through a
/// quantizer.
pub(super) fn random_net(rng: &mut ChaCha8Rng) -> Net {
    let mut b = Builder::new([rng.random_range(1..4), 8, 8], rng.random(), &Device::flex());
    let mut x = b.input();
    for block in 0..rng.random_range(3..10) {
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
    b.linear("out", x, 3);
    quantized(stir(b.finish().unwrap(), rng), rng)
}

/// The network with a quantizer of any kind in front of some layers.
pub(super) fn quantized(mut net: Net, rng: &mut ChaCha8Rng) -> Net {
    let names: Vec<String> = net.weighted().map(|(_, node)| node.name.clone()).collect();
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

/// Whether the order of a sum may decide to which code a quantizer takes what it reads.
pub(super) fn on_an_edge(net: &Net, input: &[f32]) -> bool {
    let shape = net.input_shape();
    let images = Tensor::<1>::from_floats(input, &net.device()).reshape([-1, shape[0] as i32, shape[1] as i32, shape[2] as i32]);
    let mut found = false;
    net.trace(images, |index, value| {
        let read = || match value.clone() {
            Value::Map(x) => crate::coding::floats(x),
            Value::Vector(x) => crate::coding::floats(x),
        };
        for node in net.nodes.iter().filter(|node| node.inputs.first() == Some(&index)) {
            let Some(quantize) = node.op.quantize() else { continue };
            let (step, last) = (crate::coding::floats(quantize.step())[0], (quantize.levels - 1) as f32);
            let codes = read().into_iter().filter(|x| *x != 0.0).map(|x| x / step + quantize.zero);
            found |= codes.filter(|u| (0.0..last).contains(u)).any(|u| (u.fract() - 0.5).abs() < 1e-4 + 1e-5 * u);
        }
        value
    });
    found
}

/// The network with its weights under codings of every kind, some of them masked.
pub(super) fn coded(net: Net, rng: &mut ChaCha8Rng) -> Net {
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

pub(super) fn random_source(shape: &[usize], rng: &mut ChaCha8Rng) -> Source {
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
    let unit = |b: &mut Builder, x: At, part: &str, conv: Conv, rng: &mut ChaCha8Rng| {
        let mut x = b.conv(&sub(part), x, if rng.random() { conv } else { conv.no_bias() });
        if rng.random() {
            x = b.batch_norm(&sub(&format!("{part}-norm")), x);
        }
        let functions = [Activation::Relu, Activation::Tanh, Activation::LeakyRelu { slope: 0.1 }, Activation::Silu];
        b.fixed(&sub(&format!("{part}-act")), &[x], Layer::Activation(functions[rng.random_range(0..functions.len())]))
    };
    match rng.random_range(0..9) {
        0 | 1 => unit(b, x, "conv", Conv::new(rng.random_range(2..9), 3).same(), rng),
        2 => unit(b, x, "depthwise", Conv::new(channels * rng.random_range(1..3), 3).same().groups(channels), rng),
        3 if channels.is_multiple_of(2) => unit(b, x, "grouped", Conv::new(2 * rng.random_range(1..5), 3).same().groups(2), rng),
        4 => {
            let inner = unit(b, x, "inner", Conv::new(rng.random_range(2..9), 1), rng);
            let outer = unit(b, inner, "outer", Conv::new(channels, 3).same(), rng);
            let join = if rng.random() { Layer::Add(layers::Add) } else { Layer::Multiply(layers::Multiply) };
            b.fixed(&sub("join"), &[x, outer], join)
        }
        5 => {
            let left = unit(b, x, "left", Conv::new(rng.random_range(2..6), 1), rng);
            let right = unit(b, x, "right", Conv::new(rng.random_range(2..6), 3).same(), rng);
            let all = b.fixed(&sub("concat"), &[left, x, right], layers::Concat);
            b.batch_norm(&sub("concat-norm"), all)
        }
        6 if channels >= 4 => {
            let start = rng.random_range(1..channels / 2);
            let head = b.fixed(&sub("head"), &[x], layers::ChannelSlice { start: 0, len: start });
            let tail = b.fixed(&sub("tail"), &[x], layers::ChannelSlice { start, len: channels - start });
            let tail = unit(b, tail, "tail-conv", Conv::new(4, 3).same(), rng);
            b.fixed(&sub("join"), &[tail, head], layers::Concat)
        }
        7 => {
            let layer = Layer::PadShortcut(layers::PadShortcut {
                stride: 1,
                before: rng.random_range(0..3),
                after: rng.random_range(1..3),
            });
            let wide = b.fixed(&sub("shortcut"), &[x], layer);
            let filters = b.shape(wide)[0];
            let body = unit(b, x, "wide", Conv::new(filters, 3).same(), rng);
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
        _ => b.relu(&sub("relu"), x),
    }
}

/// Random flags that leave at least the first unit.
pub(super) fn random_keep(group: &ChannelGroup, rng: &mut ChaCha8Rng) -> Keep {
    Keep::new((0..group.len()).map(|unit| unit == 0 || rng.random()).collect())
}
