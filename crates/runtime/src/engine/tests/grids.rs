//! Layers in integers against the same layers in floats.

use super::*;
use crate::{Coder, Grid, Padding, layers};

/// A convolution on a grid behind a quantizer, with normalization and a rectifier, and a fully connected layer behind another.
#[derive(Debug, Clone)]
struct OnGrids {
    /// Levels and zero of both weights, which have a step for each output if `rows`.
    weights: (u32, f32),
    rows: bool,
    inputs: (u32, f32),
    groups: usize,
    padding: Padding,
    seed: usize,
}

impl OnGrids {
    fn model(&self) -> Model {
        let (levels, zero) = self.weights;
        let tensor = |shape: &[usize], seed: usize| {
            let channels = if self.rows { shape[0] } else { 1 };
            // Powers of two, so that floats are exact, too.
            let steps: Vec<f32> = (0..channels).map(|c| 0.25 / (1 << (c % 3)) as f32).collect();
            let grid = Grid { levels, axis: self.rows.then_some(0), steps, zeros: vec![zero; channels] };
            let channel = grid.channel_of(shape);
            let codes = values(shape.iter().product(), self.seed + seed, 0);
            let code = |x: f32| (((x + 1.0) / 2.0 * levels as f32) as u16).min(levels as u16 - 1);
            let on: Vec<f32> = codes.iter().enumerate().map(|(i, x)| grid.value(channel(i), code(*x))).collect();
            Coded::on_grid(shape, &on, None, &grid, Coder::Packed).unwrap()
        };
        let quantize = |name: &str, from: usize| {
            let layer =
                Layer::Quantize(layers::Quantize { levels: self.inputs.0, zero: self.inputs.1, train: Default::default() });
            node(name, &[from], layer, &[("step", &[1], &[2.0_f32.powi(-5)])])
        };
        let conv = Layer::Conv2d(layers::Conv2d { stride: [1, 2], padding: self.padding, dilation: [1, 1], groups: self.groups });
        let mut conv = node("conv", &[1], conv, &[("bias", &[6], &[0.5, -0.25, 0.0, 1.0, 0.125, -2.0])]);
        conv.tensors.insert(0, ("weight".into(), tensor(&[6, 4 / self.groups, 3, 2], 1)));
        let norm: [(&str, &[usize], &[f32]); 4] =
            [("gamma", &[6], &[0.5; 6]), ("beta", &[6], &[0.25; 6]), ("mean", &[6], &[-0.5; 6]), ("var", &[6], &[4.0; 6])];
        let mut nodes = vec![
            quantize("first", 0),
            conv,
            node("norm", &[2], Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-30 }), &norm),
            node("relu", &[3], Layer::Activation(Activation::Relu), &[]),
            quantize("second", 4),
            node("flat", &[5], Layer::Flatten(layers::Flatten), &[]),
        ];
        let shape = model(&[4, 5, 6], nodes.clone()).check().unwrap()[6].clone();
        let mut fc = node("fc", &[6], Layer::Linear(layers::Linear), &[]);
        fc.tensors.push(("weight".into(), tensor(&[3, shape[0]], 2)));
        nodes.push(fc);
        model(&[4, 5, 6], nodes)
    }
}

fn on_grids() -> impl Strategy<Value = OnGrids> {
    let weights =
        prop_oneof![Just((2, 0.5)), Just((3, 1.0)), Just((255, 127.0)), Just((256, 100.0)), Just((16, 7.5)), Just((8, 0.0))];
    let inputs = prop_oneof![Just((2, 0.5)), Just((256, 0.0)), Just((256, 31.0)), Just((4, 0.0)), Just((16, 7.5))];
    let groups = prop_oneof![3 => Just(1), 1 => Just(2)];
    let padding = [[0_usize..3, 0_usize..3], [0_usize..2, 0_usize..2]].prop_map(Padding);
    (weights, any::<bool>(), inputs, groups, padding, 0_usize..1000)
        .prop_map(|(weights, rows, inputs, groups, padding, seed)| OnGrids { weights, rows, inputs, groups, padding, seed })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn integers_give_what_floats_give_bit_for_bit(case in on_grids()) {
        let model = case.model();
        let shapes = model.check().unwrap();
        let input = values(3 * 120, case.seed, 2);
        let threads = threads::Threads::new(1).unwrap();
        let floats = Program::lower(&model, &shapes, false).run(&input, 3, &threads, &mut Vec::new(), &mut |_, _, work| work());
        prop_assert_eq!(&Engine::new(&model, 1).unwrap().run(&input, 3).unwrap(), &floats);
        prop_assert_eq!(&Engine::new(&model, 2).unwrap().run(&input, 3).unwrap(), &floats);
    }
}

#[test]
fn eight_bits_and_single_bits_take_the_place_of_floats() {
    let names = |case: &OnGrids| {
        let engine = Engine::new(&case.model(), 1).unwrap();
        let names: Vec<String> = engine.program.steps.iter().map(|step| step.name.clone()).collect();
        (names, engine.program.weight_bytes())
    };
    let case = OnGrids { weights: (255, 127.0), rows: true, inputs: (256, 0.0), groups: 1, padding: Padding::all(1), seed: 1 };
    assert_eq!(names(&case).0, ["conv", "fc"]);
    let border = OnGrids { inputs: (16, 7.5), ..case.clone() };
    assert_eq!(names(&border).0, ["first", "first, turned", "conv", "conv, turned", "fc"], "the border has no code");
    let shape = [256, 512];
    let bytes = |levels: u32, zero: f32| {
        let grid = Grid::uniform(levels, 1.0, zero);
        let on: Vec<f32> = (0..shape[0] * shape[1]).map(|i| grid.value(0, (i % levels as usize) as u16)).collect();
        let weight = Coded::on_grid(&shape, &on, None, &grid, Coder::Packed).unwrap();
        let quantize = Layer::Quantize(layers::Quantize { levels, zero, train: Default::default() });
        let mut fc = node("fc", &[1], Layer::Linear(layers::Linear), &[]);
        fc.tensors.push(("weight".into(), weight));
        let model = model(&[512], vec![node("quantize", &[0], quantize, &[("step", &[1], &[1.0])]), fc]);
        Engine::new(&model, 1).unwrap().program.weight_bytes() as f64 / (shape[0] * shape[1]) as f64
    };
    assert!(bytes(255, 127.0) < 1.1 && bytes(2, 0.5) < 0.2, "{} and {}", bytes(255, 127.0), bytes(2, 0.5));
}

#[test]
fn codes_go_through_routes_and_merges_of_one_grid() {
    use crate::layers::{Gate, Measure, Merge, Route};
    let grid = Grid::uniform(255, 2.0_f32.powi(-7), 127.0);
    let fc = |name: &str, from: usize, shape: [usize; 2]| {
        let codes = values(shape[0] * shape[1], from, 0);
        let on: Vec<f32> = codes.iter().map(|x| grid.value(0, grid.nearest(0, *x))).collect();
        let mut fc = node(name, &[from], Layer::Linear(layers::Linear), &[]);
        fc.tensors.push(("weight".into(), Coded::on_grid(&shape, &on, None, &grid, Coder::Packed).unwrap()));
        fc
    };
    let quantize = |name: &str, from: usize, step: f32| {
        let layer = layers::Quantize { levels: 256, zero: 128.0, train: Default::default() };
        node(name, &[from], layer.into(), &[("step", &[1], &[step])])
    };
    // The last layer reads what both branches bring onto a grid, the second of them onto this one.
    let model = |other: f32| {
        let weights = values(12, 3, 0);
        let gate = Gate { measure: Measure::Confidence, threshold: 0.4 };
        let nodes = vec![
            node("logits", &[0], Layer::Linear(layers::Linear), &[("weight", &[2, 6], &weights)]),
            node("gate", &[1], gate.into(), &[]),
            quantize("codes", 0, 0.0625),
            node("left", &[3, 2], Route { leaving: true }.into(), &[]),
            node("on", &[3, 2], Route { leaving: false }.into(), &[]),
            fc("inner", 5, [6, 6]),
            quantize("inner-codes", 6, other),
            node("merge", &[4, 7, 2], Merge.into(), &[]),
            fc("last", 8, [3, 6]),
        ];
        let threshold = |threshold: f32| {
            let mut nodes = nodes.clone();
            nodes[1].layer = Gate { threshold, ..gate }.into();
            super::model(&[6], nodes)
        };
        let inputs = values(60, 9, 0);
        let parts = |model: &Model| {
            let counted = Engine::new(model, 1).unwrap().run_counted(&inputs, 10).unwrap().1;
            counted.iter().any(|(name, rows)| name == "inner" && (2..9).contains(rows))
        };
        (50..100).map(|percent| threshold(percent as f32 / 100.0)).find(parts).expect("a threshold that parts them")
    };
    for (other, whole) in [(0.0625, true), (0.125, false)] {
        let model = model(other);
        let engine = Engine::new(&model, 1).unwrap();
        let in_integers = |name: &str| {
            let step = engine.program.steps.iter().find(|step| step.name == name).unwrap();
            format!("{:?}", step.operation).starts_with("Quantized")
        };
        assert_eq!((in_integers("logits"), in_integers("inner"), in_integers("last")), (false, true, whole));
        let (input, threads) = (values(60, 9, 0), threads::Threads::new(1).unwrap());
        let floats = Program::lower(&model, &model.check().unwrap(), false);
        let floats = floats.run(&input, 10, &threads, &mut Vec::new(), &mut |_, _, work| work());
        assert_eq!(engine.run(&input, 10).unwrap(), floats);
    }
}
