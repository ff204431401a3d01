use briquette_kernels::structured::Sizes;
use briquette_kernels::{Padding, Structure};

use super::*;

#[test]
fn every_layer_comes_back() {
    let window = Window { padding: Padding([[1, 2], [0, 1]]), ceil: true, ..Window::new([3, 2], [2, 1]) };
    let (inputs, outputs, seed) = (6, 300, u64::MAX - 1);
    let mut layers: Vec<Layer> = vec![
        Input { shape: vec![3, 224, 200] }.into(),
        Normalize { mean: vec![0.5, 0.25], std: vec![0.1, 0.2] }.into(),
        Conv2d { stride: [1, 2], padding: Padding([[3, 4], [3, 300]]), dilation: [5, 6], groups: 300 }.into(),
        Linear.into(),
        BatchNorm { epsilon: 1e-5 }.into(),
        LocalResponseNorm { size: 5, alpha: 1e-4, beta: 0.75, k: 2.0 }.into(),
        Softmax.into(),
        MaxPool { window }.into(),
        AvgPool { window, count_padding: true }.into(),
        AdaptiveAvgPool { output: [6, 7] }.into(),
        GlobalAvgPool.into(),
        Add.into(),
        Concat.into(),
        ChannelSlice { start: 3, len: 9 }.into(),
        PadShortcut { stride: 2, before: 8, after: 7 }.into(),
        Permute { order: vec![2, 0, 3, 1] }.into(),
        Flatten.into(),
        Dropout { p: 0.5 }.into(),
        MeanMagnitude.into(),
        Multiply.into(),
        Negate.into(),
        Pad { padding: Padding([[1, 3], [2, 0]]) }.into(),
        Clip { low: Some(-0.5), high: None }.into(),
        Gate { measure: Measure::Entropy, threshold: 0.25 }.into(),
        Gate { measure: Measure::Confidence, threshold: 0.5 }.into(),
        Gate { measure: Measure::Sigmoid, threshold: 0.5 }.into(),
        Route { leaving: true }.into(),
        Merge.into(),
        Affine.into(),
        SpatialSampling { stride: 2, grid: 300 }.into(),
        DetailPreservingPool { symmetric: true }.into(),
        DetailPreservingPool { symmetric: false }.into(),
        Experts { experts: 300, chosen: 2, inputs: 784, outputs: 10 }.into(),
        Noise { epsilon: 1e-2 }.into(),
        ChannelPool { grid: [3, 300], window: [2, 5], reduction: Reduction::Max }.into(),
        ChannelPool { grid: [1, 8], window: [1, 8], reduction: Reduction::Mean }.into(),
        Regroup { maps: 300, apart: false, back: true }.into(),
        Regroup { maps: 4, apart: true, back: false }.into(),
    ];
    layers.extend([Cyclic::Slice, Cyclic::Roll, Cyclic::Stack, Cyclic::Mean, Cyclic::Max, Cyclic::Rms].map(Layer::from));
    layers.extend(
        [StepGradient::Fixed, StepGradient::Learned, StepGradient::Clip]
            .map(|train| Quantize { levels: 16, zero: 7.5, train }.into()),
    );
    layers.extend(
        [
            Activation::Relu,
            Activation::LeakyRelu { slope: 0.01 },
            Activation::Relu6,
            Activation::Sigmoid,
            Activation::Tanh,
            Activation::Gelu,
            Activation::Silu,
        ]
        .map(Layer::from),
    );
    layers.extend(
        [
            Structure::Circulant { inputs, outputs, seed },
            Structure::Fastfood { inputs, outputs, seed },
            Structure::Acdc { inputs, outputs, layers: 7, seed },
            Structure::ToeplitzLike { inputs, outputs, rank: 4 },
            Structure::TwoLevelToeplitz { inputs, outputs, columns: 1 },
            Structure::Kronecker { inputs, outputs, left: [20, 2], right: [15, 3], terms: 5 },
            Structure::Butterfly { inputs, outputs },
            train(inputs, outputs),
        ]
        .map(|structure| Structured { structure }.into()),
    );
    let (mut seen, mut names) = (std::collections::BTreeSet::new(), std::collections::BTreeMap::new());
    for layer in layers {
        let mut bytes = Vec::new();
        layer.write(&mut bytes);
        seen.insert(bytes[0]);
        let named = *names.entry(layer.kind().name()).or_insert(bytes[0]);
        assert_eq!(named, bytes[0], "two kinds of layers are called {}", layer.kind().name());
        let mut reader = Reader::new(&bytes);
        assert_eq!(Layer::read(&mut reader).unwrap(), layer);
        assert!(reader.end().is_ok());
    }
    let known = (0..=u8::MAX).filter(|tag| !matches!(Layer::read(&mut Reader::new(&[*tag])), Err(error) if error.to_string().contains(&format!("layer {tag}"))));
    assert_eq!(known.collect::<Vec<_>>(), seen.into_iter().collect::<Vec<_>>(), "the list above has a layer of each kind");
}

/// A tensor train of two cores.
fn train(inputs: usize, outputs: usize) -> Structure {
    let [rows, columns, ranks] =
        [&[20, outputs.div_ceil(20)][..], &[2, inputs.div_ceil(2)], &[3]].map(|s| Sizes::new(s).unwrap());
    Structure::TensorTrain { inputs, outputs, rows, columns, ranks }
}

#[test]
fn a_tensor_train_of_hostile_sizes_is_corrupt() {
    let Structure::TensorTrain { rows, columns, .. } = train(6, 40) else { unreachable!() };
    let mut sound = Vec::new();
    Layer::from(Structured { structure: train(6, 40) }).write(&mut sound);
    let place = sound.len() - 6;
    assert_eq!(sound[place..], [2, 20, 2, 2, 3, 3], "the number of cores, {rows:?}, {columns:?} and the rank");
    for (at, byte) in [(0, 0), (0, 9), (0, 1), (1, 0), (1, 19), (4, 2), (5, 0)] {
        let mut bytes = sound.clone();
        bytes[place + at] = byte;
        assert!(matches!(Layer::read(&mut Reader::new(&bytes)), Err(Error::Corrupt { .. })), "{at}: {byte}");
    }
}

#[test]
fn a_structural_matrix_of_no_sense_is_corrupt() {
    for structure in [
        Structure::Circulant { inputs: 0, outputs: 3, seed: 0 },
        Structure::ToeplitzLike { inputs: 1 << 24, outputs: 1 << 24, rank: usize::MAX >> 1 },
        Structure::Kronecker { inputs: 9, outputs: 9, left: [1, 1], right: [1, 1], terms: 1 },
    ] {
        let mut bytes = Vec::new();
        Layer::from(Structured { structure }).write(&mut bytes);
        assert!(matches!(Layer::read(&mut Reader::new(&bytes)), Err(Error::Corrupt { .. })), "{structure:?}");
    }
}

#[test]
fn convolution_follows_the_usual_formula() {
    let conv = Layer::from(Conv2d { stride: [2, 2], padding: Padding::all(3), dilation: [1, 1], groups: 1 });
    let weight = [64, 3, 7, 7];
    let out = conv.output_shape(&[&[3, 224, 224]], Some(&weight)).unwrap();
    assert_eq!(out, [64, 112, 112]);
    assert_eq!(conv.macs(weight.iter().product(), &out), 118_013_952);
}

#[test]
fn shapes_that_do_not_fit_name_both_sides() {
    let of = |layer: Layer, inputs: &[&[usize]], weight: Option<&[usize]>| {
        layer.output_shape(inputs, weight).map_err(|error| error.to_string())
    };
    let error = of(Linear.into(), &[&[800]], Some(&[10, 500])).unwrap_err();
    assert_eq!(error, "linear: weight Some([10, 500]) does not take the input [800]");
    assert!(of(Add.into(), &[&[8, 4, 4], &[16, 4, 4]], None).is_err());
    let error = of(Multiply.into(), &[&[8, 4, 4], &[1, 4, 3]], None).unwrap_err();
    assert_eq!(error, "multiply: inputs of the shapes [8, 4, 4] and [1, 4, 3]");
    assert_eq!(of(Multiply.into(), &[&[8]], None).unwrap_err(), "multiply takes two input(s), 1 are wired");
    assert_eq!(of(Multiply.into(), &[&[8, 4, 4], &[1, 4, 4]], None).unwrap(), [8, 4, 4]);
    let pool = |window| ChannelPool { grid: [2, 2], window, reduction: Reduction::Max };
    assert_eq!(of(pool([2, 1]).into(), &[&[8, 4, 3]], None).unwrap(), [4, 4, 3]);
    let error = of(pool([1, 1]).into(), &[&[6]], None).unwrap_err();
    assert_eq!(error, "channel-pool: 6 channels are no multiple of the 2 by 2 of a grid");
    assert_eq!(of(MeanMagnitude.into(), &[&[8, 4, 3]], None).unwrap(), [1, 4, 3]);
    assert!(of(MaxPool { window: Window::square(3) }.into(), &[&[1, 2, 2]], None).is_err());
}
