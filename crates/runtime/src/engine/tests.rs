mod branches;
mod grids;

use proptest::prelude::*;

use super::*;
use crate::{Activation, Coded, Layer, Node, Padding, Permission, Sizes, Structure, Window, layers};

/// Deterministic values in -1..1 with the given share of zeros in tenths.
fn values(count: usize, seed: usize, zeros: usize) -> Vec<f32> {
    let mut state = seed as u64 * 2 + 1;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as usize
    };
    (0..count)
        .map(|_| (draw(), draw()))
        .map(|(a, b)| if a % 10 < zeros { 0.0 } else { (b % 2001) as f32 / 1000.0 - 1.0 })
        .collect()
}

fn node(name: &str, inputs: &[usize], layer: Layer, tensors: &[(&str, &[usize], &[f32])]) -> Node {
    let coded = |(name, shape, values): &(&str, &[usize], &[f32])| {
        ((*name).to_owned(), Coded::encode(shape, values, None, &Permission::default()).unwrap())
    };
    Node { name: name.into(), inputs: inputs.to_vec(), layer, tensors: tensors.iter().map(coded).collect() }
}

fn model(input: &[usize], mut nodes: Vec<Node>) -> Model {
    nodes.insert(0, node("input", &[], Layer::Input(layers::Input { shape: input.to_vec() }), &[]));
    Model { nodes, meta: Default::default() }
}

/// A model of this one layer on one input.
fn single(input: &[usize], layer: Layer) -> Model {
    model(input, vec![node("layer", &[0], layer, &[])])
}

fn run(model: &Model, input: &[f32], batch: usize) -> Vec<f32> {
    Engine::new(model, 1).unwrap().run(input, batch).unwrap()
}

#[track_caller]
fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "element {i}: {a} and {b}");
    }
}

/// The definition of a convolution, in 64 bits.
#[derive(Debug, Clone)]
struct Case {
    input: [usize; 3],
    weight: [usize; 4],
    stride: [usize; 2],
    padding: Padding,
    dilation: [usize; 2],
    groups: usize,
    zeros: usize,
    /// Every so many taps are zero in all filters of a group, in each group others; none if 0.
    thin: usize,
}

impl Case {
    fn model(&self) -> Model {
        let layer = Layer::Conv2d(layers::Conv2d {
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        });
        let (weight, bias) = (self.weights(), self.bias());
        let tensors: [(&str, &[usize], &[f32]); 2] = [("weight", &self.weight, &weight), ("bias", &self.weight[..1], &bias)];
        model(&self.input, vec![node("conv", &[0], layer, &tensors)])
    }

    fn weights(&self) -> Vec<f32> {
        let mut weights = values(self.weight.iter().product(), 3, self.zeros);
        let depth: usize = self.weight[1..].iter().product();
        let thinned = |i: usize| self.thinned(i / depth / (self.weight[0] / self.groups), i % depth);
        weights.iter_mut().enumerate().filter(|(i, _)| thinned(*i)).for_each(|(_, weight)| *weight = 0.0);
        weights
    }

    fn thinned(&self, group: usize, tap: usize) -> bool {
        (tap + group).checked_rem(self.thin) == Some(0)
    }

    fn bias(&self) -> Vec<f32> {
        values(self.weight[0], 4, 0)
    }

    fn reference(&self, x: &[f32], output: &[usize]) -> Vec<f32> {
        let ([c, h, w], [_, fan, kh, kw], weight, bias) = (self.input, self.weight, self.weights(), self.bias());
        let (sample, per_group) = (c * h * w, self.weight[0] / self.groups);
        let mut out = Vec::new();
        for x in x.chunks(sample) {
            for (o, bias) in bias.iter().enumerate() {
                for (oy, ox) in (0..output[1]).flat_map(|oy| (0..output[2]).map(move |ox| (oy, ox))) {
                    let mut sum = f64::from(*bias);
                    for (i, ky, kx) in (0..fan).flat_map(|i| (0..kh).flat_map(move |ky| (0..kw).map(move |kx| (i, ky, kx)))) {
                        let iy = (oy * self.stride[0] + ky * self.dilation[0]).checked_sub(self.padding.before(0));
                        let ix = (ox * self.stride[1] + kx * self.dilation[1]).checked_sub(self.padding.before(1));
                        if let (Some(iy), Some(ix)) = (iy.filter(|y| *y < h), ix.filter(|x| *x < w)) {
                            let channel = o / per_group * fan + i;
                            let weight = weight[((o * fan + i) * kh + ky) * kw + kx];
                            sum += f64::from(weight) * f64::from(x[(channel * h + iy) * w + ix]);
                        }
                    }
                    out.push(sum as f32);
                }
            }
        }
        out
    }
}

fn case() -> impl Strategy<Value = Case> {
    let pair = |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
    let channels = prop_oneof![
        Just((1, 1, 1)),
        (1_usize..6, 1_usize..6).prop_map(|(i, o)| (1, i, o)),
        (2_usize..4, 1_usize..3, 1_usize..3),
        (2_usize..8, Just(1), 1_usize..3)
    ];
    let padding = [[0_usize..4, 0_usize..4], [0_usize..4, 0_usize..4]].prop_map(Padding);
    let size = prop_oneof![4 => 1_usize..12, 1 => prop_oneof![Just(13_usize), Just(23), Just(41)]];
    (channels, [size.clone(), size], pair(1..=4), pair(1..=3), padding, pair(1..=2), prop_oneof![Just(0_usize), Just(9)])
        .prop_filter_map("the kernel must fit", |((groups, fan, per_group), size, kernel, stride, padding, dilation, zeros)| {
            let fits = |axis: usize| size[axis] + padding.0[axis].iter().sum::<usize>() > (kernel[axis] - 1) * dilation[axis];
            (fits(0) && fits(1)).then_some(Case {
                input: [groups * fan, size[0], size[1]],
                weight: [groups * per_group, fan, kernel[0], kernel[1]],
                stride,
                padding,
                dilation,
                groups,
                zeros,
                thin: 0,
            })
        })
}

/// The rows or columns that the windows of a pooling see, those of the padding included, by PyTorch's words: windows that go beyond the padding
/// are left out, with `ceil` only those that begin in the padding behind the input, and none goes beyond the padding.
fn windows_of(window: &Window, axis: usize, size: usize) -> Vec<Vec<i64>> {
    let [kernel, stride] = [window.kernel[axis] as i64, window.stride[axis] as i64];
    let (size, [before, after]) = (size as i64, window.padding.0[axis].map(|side| side as i64));
    let starts = (0..).map(|position| position * stride - before);
    // With `ceil` there is another window as long as the one before it leaves something over.
    let counts = |start: &i64| match window.ceil {
        true => *start < size && start - stride + kernel < size + after,
        false => start + kernel <= size + after,
    };
    starts.take_while(counts).map(|start| (start..(start + kernel).min(size + after)).collect()).collect()
}

proptest! {
    #[test]
    fn convolution_is_its_definition(case in case(), batch in 1_usize..4) {
        let model = case.model();
        let input = values(case.input.iter().product::<usize>() * batch, 5, 0);
        let output = model.check().unwrap().pop().unwrap();
        assert_close(&run(&model, &input, batch), &case.reference(&input, &output), 1e-5);
    }

    #[test]
    fn a_convolution_without_some_taps_is_its_definition_and_holds_fewer_weights(mut case in case(), every in 2_usize..5) {
        let depth = case.weight[1..].iter().product::<usize>();
        // With one tap nothing can go, and depthwise convolutions keep all.
        prop_assume!(depth > 1 && (case.groups == 1 || case.weight[1] > 1));
        case.zeros = 0;
        case.thin = every;
        let model = case.model();
        let input = values(case.input.iter().product(), 5, 0);
        let output = model.check().unwrap().pop().unwrap();
        assert_close(&run(&model, &input, 1), &case.reference(&input, &output), 1e-5);
        let gone = (0..case.groups).map(|group| (0..depth).filter(|tap| case.thinned(group, *tap)).count()).sum::<usize>();
        let kept = case.groups * depth - gone;
        // A place and a value for each weight, of each filter where they begin, and the bias.
        let most = 8 * (case.weight[0] / case.groups * kept + case.weight[0] + 1) + 4 * case.weight[0];
        prop_assert!(gone < kept || Engine::new(&model, 1).unwrap().program.weight_bytes() <= most);
    }

    #[test]
    fn linear_is_its_definition(inputs in 1_usize..70, outputs in 1_usize..150, batch in 1_usize..6, zeros in 0_usize..10) {
        let (weight, bias) = (values(inputs * outputs, 1, zeros), values(outputs, 2, 0));
        let tensors: [(&str, &[usize], &[f32]); 2] = [("weight", &[outputs, inputs], &weight), ("bias", &[outputs], &bias)];
        let model = model(&[inputs], vec![node("fc", &[0], Layer::Linear(layers::Linear), &tensors)]);
        let input = values(inputs * batch, 3, 0);
        let row = |x: &[f32], o: usize| {
            let products = x.iter().zip(&weight[o * inputs..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
            (products.sum::<f64>() + f64::from(bias[o])) as f32
        };
        let expected: Vec<f32> = input.chunks(inputs).flat_map(|x| (0..outputs).map(move |o| row(x, o))).collect();
        assert_close(&run(&model, &input, batch), &expected, 1e-5);
    }

    #[test]
    fn pools_are_their_definitions(
        (h, w) in (1_usize..14, 1_usize..14),
        kernel in [1_usize..4, 1_usize..4],
        stride in [1_usize..4, 1_usize..4],
        sides in [[0_usize..3, 0_usize..3], [0_usize..3, 0_usize..3]],
        ceil in any::<bool>(),
        // Of both signs, or all below zero.
        shift in prop_oneof![Just(0.0), Just(-1.5)],
    ) {
        let padding = Padding([0, 1].map(|axis| sides[axis].map(|side| side.min(kernel[axis] - 1))));
        let fits = |axis: usize| [h, w][axis] + padding.0[axis].iter().sum::<usize>() >= kernel[axis];
        prop_assume!(fits(0) && fits(1));
        let window = Window { kernel, stride, padding, ceil };
        let [rows, columns] = [0, 1].map(|axis| windows_of(&window, axis, [h, w][axis]));
        let input: Vec<f32> = values(2 * h * w, 7, 0).iter().map(|x| x + shift).collect();
        for (layer, mean, count) in [
            (Layer::MaxPool(layers::MaxPool { window }), false, false),
            (Layer::AvgPool(layers::AvgPool { window, count_padding: true }), true, true),
            (Layer::AvgPool(layers::AvgPool { window, count_padding: false }), true, false),
        ] {
            let model = single(&[2, h, w], layer);
            let shape = model.check().unwrap().pop().unwrap();
            prop_assert_eq!(&shape, &[2, rows.len(), columns.len()]);
            let mut expected = Vec::new();
            let windows = || rows.iter().flat_map(|rows| columns.iter().map(move |columns| (rows, columns)));
            for (c, (rows, columns)) in (0..2).flat_map(|c| windows().map(move |window| (c, window))) {
                let inside = |place: &i64, size: usize| usize::try_from(*place).ok().filter(|place| *place < size);
                let seen: Vec<f32> = (rows.iter().filter_map(|y| inside(y, h)))
                    .flat_map(|y| columns.iter().filter_map(move |x| Some((y, inside(x, w)?))))
                    .map(|(y, x)| input[(c * h + y) * w + x])
                    .collect();
                let divisor = if count { rows.len() * columns.len() } else { seen.len() } as f32;
                let max = seen.iter().copied().reduce(f32::max).unwrap();
                expected.push(if mean { seen.iter().sum::<f32>() / divisor } else { max });
            }
            assert_close(&run(&model, &input, 1), &expected, 1e-6);
        }
    }
}

#[test]
fn no_maximum_is_that_of_padding() {
    let input = [-3.0, -1.0, -4.0, -2.0];
    let of = |kernel: usize, stride: usize, sides: [usize; 2], ceil: bool, input: &[f32]| {
        let window = Window { kernel: [1, kernel], stride: [1, stride], padding: Padding([[0, 0], sides]), ceil };
        run(&single(&[1, 1, input.len()], Layer::MaxPool(layers::MaxPool { window })), input, 1)
    };
    assert_eq!(of(3, 1, [1, 1], false, &input), [-1.0, -1.0, -1.0, -2.0]);
    assert_eq!(of(3, 2, [2, 2], false, &input), [-3.0, -1.0, -2.0]);
    assert_eq!(of(3, 3, [0, 0], true, &input), [-1.0, -2.0], "the last window sees one value and what lies behind it");
    // With `ceil` a third window would lie in the padding alone, and is none.
    assert_eq!(of(2, 2, [0, 1], true, &input), [-1.0, -2.0]);
    assert_eq!(of(2, 2, [1, 1], true, &input), [-3.0, -1.0, -2.0]);
    assert_eq!(of(3, 3, [2, 2], true, &[-5.0, -6.0]), [-5.0, -6.0]);
    assert_eq!(of(3, 2, [2, 2], true, &[-5.0]), [-5.0, -5.0]);
}

#[test]
fn adaptive_pooling_follows_the_window_rule() {
    // torch.nn.functional.adaptive_avg_pool1d(torch.arange(5.), 3) = [0.5, 2.0, 3.5]: windows 0..2, 1..4, 3..5.
    let input = [0.0, 1.0, 2.0, 3.0, 4.0];
    assert_eq!(
        run(&single(&[1, 1, 5], Layer::AdaptiveAvgPool(layers::AdaptiveAvgPool { output: [1, 3] })), &input, 1),
        [0.5, 2.0, 3.5]
    );
    assert_eq!(run(&single(&[1, 5, 1], Layer::AdaptiveAvgPool(layers::AdaptiveAvgPool { output: [7, 1] })), &input, 1).len(), 7);
    assert_eq!(run(&single(&[1, 5, 1], Layer::GlobalAvgPool(layers::GlobalAvgPool)), &input, 1), [2.0]);
}

#[test]
fn shapes_and_norms_are_their_definitions() {
    let input = values(2 * 3 * 4, 9, 0);
    let [a, b] = [&input[..12], &input[12..]];
    assert_eq!(run(&single(&[2, 3, 4], Layer::Flatten(layers::Flatten)), &input, 1), input);
    assert_eq!(run(&single(&[2, 3, 4], Layer::Dropout(layers::Dropout { p: 0.5 })), &input, 1), input);
    assert_eq!(run(&single(&[2, 3, 4], Layer::ChannelSlice(layers::ChannelSlice { start: 1, len: 1 })), &input, 1), b);
    let normalize = Layer::Normalize(layers::Normalize { mean: vec![0.5, 0.25], std: vec![0.5, 2.0] });
    let expected: Vec<f32> = a.iter().map(|x| (x - 0.5) / 0.5).chain(b.iter().map(|x| (x - 0.25) / 2.0)).collect();
    assert_eq!(run(&single(&[2, 3, 4], normalize), &input, 1), expected);

    let twice = model(
        &[2, 3, 4],
        vec![node("add", &[0, 0], Layer::Add(layers::Add), &[]), node("concat", &[1, 0, 1], Layer::Concat(layers::Concat), &[])],
    );
    let doubled: Vec<f32> = input.iter().map(|x| x + x).collect();
    assert_eq!(run(&twice, &input, 1), [&doubled[..], &input, &doubled].concat());

    let mean: Vec<f32> = a.iter().zip(b).map(|(a, b)| (a.abs() + b.abs()) / 2.0).collect();
    let magnitude = node("mean", &[0], Layer::MeanMagnitude(layers::MeanMagnitude), &[]);
    assert_eq!(run(&model(&[2, 3, 4], vec![magnitude.clone()]), &input, 1), mean);
    let scaled = model(&[2, 3, 4], vec![magnitude, node("multiply", &[0, 1], Layer::Multiply(layers::Multiply), &[])]);
    let expected: Vec<f32> = input.iter().zip(mean.iter().cycle()).map(|(x, mean)| x * mean).collect();
    assert_eq!(run(&scaled, &[&input[..], &[0.0; 24], &input].concat(), 3), [&expected[..], &[0.0; 24], &expected].concat());
    let squared = model(&[2, 3, 4], vec![node("multiply", &[0, 0], Layer::Multiply(layers::Multiply), &[])]);
    assert_eq!(run(&squared, &input, 1), input.iter().map(|x| x * x).collect::<Vec<f32>>());

    let shortcut = Layer::PadShortcut(layers::PadShortcut { stride: 2, before: 1, after: 2 });
    let kept = [0, 2, 8, 10];
    let planes = [vec![0.0; 4], kept.map(|i| a[i]).to_vec(), kept.map(|i| b[i]).to_vec(), vec![0.0; 8]].concat();
    assert_eq!(run(&single(&[2, 3, 4], shortcut), &input, 1), planes);

    let soft = run(&single(&[4], Layer::Softmax(layers::Softmax)), &[1.0, 2.0, 3.0, 4.0], 1);
    assert_close(&soft, &[0.032_058_6, 0.087_144_3, 0.236_882_8, 0.643_914_3], 1e-6);

    for size in [1, 2, 3, 5] {
        let (alpha, beta, k) = (0.9, 0.75, 2.0);
        let out =
            run(&single(&[6, 1, 4], Layer::LocalResponseNorm(layers::LocalResponseNorm { size, alpha, beta, k })), &input, 1);
        let expected: Vec<f32> = (0..24)
            .map(|i| {
                let (c, position) = (i / 4, i % 4);
                // As torch.nn.functional.local_response_norm: size / 2 channels in front, (size - 1) / 2 behind.
                let window = (0..6).filter(|o| o + size / 2 >= c && *o <= c + (size - 1) / 2);
                let sum: f64 = window.map(|o| f64::from(input[o * 4 + position]).powi(2)).sum();
                (f64::from(input[i]) / (k + alpha / size as f64 * sum).powf(beta)) as f32
            })
            .collect();
        assert_close(&out, &expected, 1e-6);
    }
}

/// A residual network with everything that can fuse, and some that must not.
fn residual() -> Model {
    let conv = |groups| Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::all(1), dilation: [1, 1], groups });
    let weight = |count, seed, zeros| values(count, seed, zeros);
    let (dense, depth, sparse, fc) =
        (weight(8 * 3 * 9, 1, 0), weight(8 * 9, 2, 0), weight(8 * 8 * 9, 3, 9), weight(10 * 8 * 25, 4, 9));
    let (gamma, beta, mean) = (values(8, 5, 0), values(8, 6, 0), values(8, 7, 0));
    let var: Vec<f32> = values(8, 8, 0).iter().map(|v| v.abs() + 0.1).collect();
    let norm: [(&str, &[usize], &[f32]); 4] =
        [("gamma", &[8], &gamma), ("beta", &[8], &beta), ("mean", &[8], &mean), ("var", &[8], &var)];
    let bn = Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-5 });
    let relu = Layer::Activation(Activation::Relu);
    model(
        &[3, 10, 11],
        vec![
            node("conv1", &[0], conv(1), &[("weight", &[8, 3, 3, 3], &dense), ("bias", &[8], &gamma)]),
            node("bn1", &[1], bn.clone(), &norm),
            node("relu1", &[2], relu.clone(), &[]),
            node("conv2", &[3], conv(8), &[("weight", &[8, 1, 3, 3], &depth)]),
            node("bn2", &[4], bn.clone(), &norm),
            node("drop", &[5], Layer::Dropout(layers::Dropout { p: 0.1 }), &[]),
            node("gelu", &[6], Layer::Activation(Activation::Gelu), &[]),
            node("conv3", &[7], conv(1), &[("weight", &[8, 8, 3, 3], &sparse)]),
            node("bn3", &[8], bn.clone(), &norm),
            node("both", &[8, 9, 3], Layer::Add(layers::Add), &[]),
            node("relu3", &[10], relu.clone(), &[]),
            node("bn4", &[11], bn, &norm),
            node("sigmoid", &[12], Layer::Activation(Activation::Sigmoid), &[]),
            node("pool", &[13], Layer::MaxPool(layers::MaxPool { window: Window::square(2) }), &[]),
            node("flat", &[14], Layer::Flatten(layers::Flatten), &[]),
            node("fc", &[15], Layer::Linear(layers::Linear), &[("weight", &[10, 200], &fc)]),
            node("softmax", &[16], Layer::Softmax(layers::Softmax), &[]),
        ],
    )
}

#[test]
fn fused_equals_unfused() {
    let model = residual();
    let engine = Engine::new(&model, 1).unwrap();
    let plain = unfused(&model);
    let names = |engine: &Engine| -> Vec<String> { engine.program.steps.iter().map(|step| step.name.clone()).collect() };
    assert_eq!(names(&plain).iter().filter(|name| !name.ends_with(", turned")).count(), 15);
    let wanted = [
        "input, turned",
        "conv1",
        "conv2",
        "conv2, turned",
        "conv3",
        "bn3",
        "conv3, turned",
        "bn3, turned",
        "both",
        "bn4",
        "pool",
        "pool, turned",
        "fc",
        "softmax",
    ];
    assert_eq!(names(&engine), wanted, "only what has lost its weights takes its maps channels first");
    let input = values(3 * 330, 11, 0);
    assert_close(&engine.run(&input, 3).unwrap(), &plain.run(&input, 3).unwrap(), 1e-5);
}

#[test]
fn every_thread_count_gives_the_same_bits() {
    let model = residual();
    for batch in [1, 2, 35] {
        let input = values(batch * 330, 12, 0);
        let one = Engine::new(&model, 1).unwrap().run(&input, batch).unwrap();
        assert_eq!(one.len(), batch * 10);
        for threads in [2, 3] {
            let engine = Engine::new(&model, threads).unwrap();
            assert_eq!(engine.run(&input, batch).unwrap(), one);
            let (timed, times) = engine.run_timed(&input, batch).unwrap();
            assert_eq!((timed, times.len()), (one.clone(), engine.program.steps.len()));
        }
    }
}

#[test]
fn channels_are_not_mixed_up_by_flattening() {
    let weight = values(2 * 9, 1, 0);
    let (ones, shift) = ([1.0; 18], values(18, 2, 0));
    let norm: [(&str, &[usize], &[f32]); 4] =
        [("gamma", &[18], &ones), ("beta", &[18], &shift), ("mean", &[18], &[0.0; 18]), ("var", &[18], &ones)];
    let conv = Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::all(1), dilation: [1, 1], groups: 1 });
    let model = model(
        &[1, 3, 3],
        vec![
            node("conv", &[0], conv, &[("weight", &[2, 1, 3, 3], &weight)]),
            node("flat", &[1], Layer::Flatten(layers::Flatten), &[]),
            node("bn", &[2], Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-30 }), &norm),
        ],
    );
    let input = values(9, 3, 0);
    let mut front = model.clone();
    front.nodes.truncate(2);
    let expected: Vec<f32> = run(&front, &input, 1).iter().zip(&shift).map(|(x, b)| x + b).collect();
    assert_close(&run(&model, &input, 1), &expected, 1e-6);
}

#[test]
fn memory_counts_weights_and_live_activations() {
    // Two inputs of 4 floats, an output of 16, a result of 16; the weights are 64 floats.
    let weight = values(64, 1, 0);
    let model = model(&[4], vec![node("fc", &[0], Layer::Linear(layers::Linear), &[("weight", &[16, 4], &weight)])]);
    assert_eq!(Engine::new(&model, 1).unwrap().peak_bytes(2), 4 * (64 + 2 * (4 + 16) + 2 * 16));
}

#[test]
fn wrong_use_is_an_error() {
    let model = residual();
    assert!(matches!(Engine::new(&model, 0), Err(Error::NoThreads)));
    let engine = Engine::new(&model, 1).unwrap();
    assert_eq!(engine.run(&[], 0).unwrap(), Vec::<f32>::new());
    assert!(matches!(engine.run(&[0.0; 5], 1), Err(Error::Input { expected: 330, found: 5, .. })));
    assert_eq!((engine.input_shape(), engine.output_shape()), (&[3, 10, 11][..], &[10][..]));
}

#[test]
fn structural_matrices_equal_their_dense_forms_on_vectors_and_on_every_pixel() {
    let (inputs, outputs) = (10, 13);
    let [rows, columns, ranks] = [&[2, 7][..], &[5, 2], &[3]].map(|sizes| Sizes::new(sizes).unwrap());
    let structures = [
        Structure::Circulant { inputs, outputs, seed: 1 },
        Structure::Fastfood { inputs, outputs, seed: 2 },
        Structure::Acdc { inputs, outputs, layers: 2, seed: 3 },
        Structure::ToeplitzLike { inputs, outputs, rank: 2 },
        Structure::TwoLevelToeplitz { inputs, outputs, columns: 5 },
        Structure::Kronecker { inputs, outputs, left: [4, 5], right: [4, 2], terms: 2 },
        Structure::Butterfly { inputs, outputs },
        Structure::TensorTrain { inputs, outputs, rows, columns, ranks },
    ];
    for structure in structures {
        let shapes = structure.parameters();
        let parameters: Vec<Vec<f32>> = shapes.iter().zip(1..).map(|(p, seed)| values(p.count(), seed, 0)).collect();
        let slices: Vec<&[f32]> = parameters.iter().map(Vec::as_slice).collect();
        let (dense, bias) = (structure.dense(&slices).unwrap(), values(outputs, 9, 0));
        let mut tensors: Vec<(&str, &[usize], &[f32])> =
            shapes.iter().zip(&slices).map(|(p, values)| (p.name, &p.shape[..], *values)).collect();
        tensors.push(("bias", &[13], &bias));
        let relu = || node("relu", &[1], Layer::Activation(Activation::Relu), &[]);
        let conv = Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::NONE, dilation: [1, 1], groups: 1 });
        for (input, twin, weight) in
            [(&[10][..], Layer::Linear(layers::Linear), &[13, 10][..]), (&[10, 3, 2], conv, &[13, 10, 1, 1])]
        {
            let model_of = |layer: Layer, tensors: &[(&str, &[usize], &[f32])]| {
                model(input, vec![node("layer", &[0], layer, tensors), relu()])
            };
            let fast = model_of(Layer::Structured(layers::Structured { structure }), &tensors);
            let dense = model_of(twin, &[("weight", weight, &dense), ("bias", &[13], &bias)]);
            let batch = 5;
            let x = values(batch * input.iter().product::<usize>(), 4, 0);
            assert_close(&run(&fast, &x, batch), &run(&dense, &x, batch), 1e-5);
            let back = Model::from_bytes(&fast.to_bytes().unwrap()).unwrap();
            assert_eq!((&back, Engine::new(&back, 3).unwrap().run(&x, batch).unwrap()), (&fast, run(&fast, &x, batch)));
        }
        let mut wrong = model(&[10], vec![node("layer", &[0], Layer::Structured(layers::Structured { structure }), &tensors)]);
        wrong.nodes[1].tensors.remove(0);
        assert!(Engine::new(&wrong, 1).unwrap_err().to_string().contains("node 1"));
        tensors[0].1 = &[1, 1];
        tensors[0].2 = &[0.5];
        let wrong = model(&[10], vec![node("layer", &[0], Layer::Structured(layers::Structured { structure }), &tensors)]);
        assert!(Engine::new(&wrong, 1).is_err());
    }
}

#[test]
fn large_feature_maps_go_through_a_few_samples_at_a_time() {
    let pools = [
        Layer::AdaptiveAvgPool(layers::AdaptiveAvgPool { output: [1 << 11, 1 << 12] }),
        Layer::GlobalAvgPool(layers::GlobalAvgPool),
    ];
    let nodes = pools.iter().enumerate().map(|(i, layer)| node(&format!("pool{i}"), &[i], layer.clone(), &[]));
    let small = model(&[1, 2, 2], nodes.collect());
    let large = model(
        &[1, 2, 2],
        vec![node("pool", &[0], Layer::AdaptiveAvgPool(layers::AdaptiveAvgPool { output: [1 << 12, 1 << 13] }), &[])],
    );
    let held = |model: &Model, batch: usize| Engine::new(model, 1).unwrap().peak_bytes(batch) as u64 / 4;
    assert_eq!(held(&small, 1), (1 << 23) + 4 + 1);
    // Of 32 samples 31 stay within the limit.
    assert_eq!(held(&small, 32), 31 * ((1 << 23) + 4) + 32);
    let result = 32_u64 << 25;
    assert_eq!(held(&large, 32) - result, 7 * ((1 << 25) + 4));
    // As many as are asked for come out, each as if alone.
    let input: Vec<f32> = (0..2 * 4).map(|i| i as f32).collect();
    assert_close(&run(&small, &input, 2), &[1.5, 5.5], 1e-3);
}

#[test]
fn many_groups_of_one_position_come_out_as_one_by_one() {
    // More pieces of the output than are listed at once: they are worked on in parts.
    let (groups, batch) = (600_000, 2);
    let weight: Vec<f32> = (0..2 * groups).map(|i| (i % 7) as f32).collect();
    let conv = Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::NONE, dilation: [1, 1], groups });
    // Two channels in each group, so that it is no depthwise convolution.
    let model = model(&[2 * groups, 1, 1], vec![node("conv", &[0], conv, &[("weight", &[groups, 2, 1, 1], &weight)])]);
    let input: Vec<f32> = (0..batch * 2 * groups).map(|i| (i % 5) as f32).collect();
    let expected: Vec<f32> =
        (0..batch * groups).map(|i| (0..2).map(|k| input[2 * i + k] * weight[2 * (i % groups) + k]).sum()).collect();
    assert!(run(&model, &input, batch) == expected);
}

/// A dense convolution, whose maps lie channels last, in front of each layer that takes them either way: as if each had its maps channels first.
#[test]
fn layers_compute_alike_however_their_maps_lie() {
    let weight = values(6 * 4, 1, 0);
    let conv = || {
        let layer = layers::Conv2d { stride: [1, 1], padding: Padding::NONE, dilation: [1, 1], groups: 1 };
        node("conv", &[0], layer.into(), &[("weight", &[6, 4, 1, 1], &weight)])
    };
    let few = values(6 * 6 * 9, 2, 9);
    let sparse = |name: &str, input: usize| {
        let layer = layers::Conv2d { stride: [1, 1], padding: Padding::all(1), dilation: [1, 1], groups: 1 };
        node(name, &[input], layer.into(), &[("weight", &[6, 6, 3, 3], &few)])
    };
    let of_channel = values(6, 3, 0);
    let affine: [(&str, &[usize], &[f32]); 2] = [("scale", &[6], &of_channel), ("shift", &[6], &of_channel)];
    let window = |ceil: bool| Window { padding: Padding([[1, 0], [0, 1]]), ceil, ..Window::new([3, 2], [2, 2]) };
    let one = |layer: Layer, tensors: &[(&str, &[usize], &[f32])]| vec![node("layer", &[1], layer, tensors)];
    let chains: Vec<Vec<Node>> = vec![
        one(layers::MaxPool { window: window(true) }.into(), &[]),
        one(layers::AvgPool { window: window(false), count_padding: true }.into(), &[]),
        one(layers::AvgPool { window: window(true), count_padding: false }.into(), &[]),
        one(layers::AdaptiveAvgPool { output: [2, 3] }.into(), &[]),
        one(layers::PadShortcut { stride: 2, before: 1, after: 2 }.into(), &[]),
        one(layers::ChannelSlice { start: 2, len: 3 }.into(), &[]),
        one(layers::Affine.into(), &affine),
        one(layers::Clip { low: Some(-0.2), high: None }.into(), &[]),
        one(layers::Negate.into(), &[]),
        one(Activation::Gelu.into(), &[]),
        vec![sparse("sparse", 1), node("both", &[1, 2], layers::Concat.into(), &[])],
        vec![
            sparse("sparse", 1),
            node("both", &[2, 1], layers::Add.into(), &[]),
            node("relu", &[3], Activation::Relu.into(), &[]),
        ],
        vec![
            sparse("one", 1),
            sparse("two", 1),
            node("both", &[2, 3], layers::Add.into(), &[]),
            node("affine", &[4], layers::Affine.into(), &affine),
        ],
    ];
    let x = values(2 * 4 * 5 * 7, 4, 0);
    let between = run(&model(&[4, 5, 7], vec![conv()]), &x, 2);
    for chain in chains {
        let names: Vec<String> = chain.iter().map(|node| node.name.clone()).collect();
        let nearer = |node: &Node| Node { inputs: node.inputs.iter().map(|input| input - 1).collect(), ..node.clone() };
        let alone = unfused(&model(&[6, 5, 7], chain.iter().map(nearer).collect()));
        let whole = model(&[4, 5, 7], [vec![conv()], chain].concat());
        let (found, wanted) = (run(&whole, &x, 2), alone.run(&between, 2).unwrap());
        assert!(found.len() == wanted.len(), "{names:?}");
        assert_close(&found, &wanted, 1e-5);
    }
}

/// An engine that computes node by node.
fn unfused(model: &Model) -> Engine {
    Engine { program: Program::lower(model, &model.check().unwrap(), false), ..Engine::new(model, 1).unwrap() }
}

#[test]
fn the_later_of_two_branches_computes_their_sum() {
    let conv = |name: &str, input: usize, weight: &[f32]| {
        let layer = layers::Conv2d { stride: [1, 1], padding: Padding::all(1), dilation: [1, 1], groups: 1 };
        node(name, &[input], layer.into(), &[("weight", &[8, 8, 3, 3], weight)])
    };
    let scale = values(8, 3, 0);
    let affine: [(&str, &[usize], &[f32]); 2] = [("scale", &[8], &scale), ("shift", &[8], &scale)];
    for zeros in [0, 9] {
        let (one, two) = (values(8 * 8 * 9, 1, zeros), values(8 * 8 * 9, 2, zeros));
        let nodes = vec![
            conv("one", 0, &one),
            node("relu1", &[1], Activation::Relu.into(), &[]),
            conv("two", 2, &two),
            node("sum", &[3, 2], layers::Add.into(), &[]),
            // Of a sum a factor is not the layer's.
            node("affine", &[4], layers::Affine.into(), &affine),
            node("relu2", &[5], Activation::Relu.into(), &[]),
            node("again", &[6, 2], layers::Add.into(), &[]),
        ];
        let model = model(&[8, 5, 6], nodes);
        let engine = Engine::new(&model, 1).unwrap();
        let names: Vec<&str> = engine.program.steps.iter().map(|step| step.name.as_str()).collect();
        let wanted: &[&str] = match zeros {
            0 => &["input, turned", "one", "two", "affine", "again", "again, turned"],
            _ => &["one", "two", "affine", "again"],
        };
        assert_eq!(names, wanted);
        let x = values(3 * 240, 5, 0);
        assert_close(&engine.run(&x, 3).unwrap(), &unfused(&model).run(&x, 3).unwrap(), 1e-5);
    }
}

#[test]
fn a_pixel_of_few_weights_meets_its_padding() {
    let (weight, bias, x) = (values(8 * 32, 1, 9), values(8, 2, 0), values(32, 3, 0));
    for (padding, stride, pixels) in [(Padding::all(1), [1, 1], 9), (Padding([[1, 0], [1, 0]]), [2, 2], 1)] {
        let layer = layers::Conv2d { stride, padding, dilation: [1, 1], groups: 1 };
        let tensors: [(&str, &[usize], &[f32]); 2] = [("weight", &[8, 32, 1, 1], &weight), ("bias", &[8], &bias)];
        let model = model(&[32, 1, 1], vec![node("conv", &[0], layer.into(), &tensors)]);
        let of = |filter: usize, pixel: usize| {
            let sum: f32 = weight[filter * 32..][..32].iter().zip(&x).map(|(w, x)| w * x).sum();
            // The image is the pixel in the middle of nine, and none of a single one.
            bias[filter] + if (pixels, pixel) == (9, 4) { sum } else { 0.0 }
        };
        let wanted: Vec<f32> = (0..8 * pixels).map(|place| of(place / pixels, place % pixels)).collect();
        assert_close(&run(&model, &x, 1), &wanted, 1e-5);
    }
}
