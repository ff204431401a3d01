use super::*;

#[test]
fn folded_norms_leave_the_outputs_and_the_masks() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for name in ["resnet20", "vgg16", "lenet5"] {
        let arch = Arch::named(name).unwrap();
        let net = arch.build(&crate::zoo::Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
        let mut net = stir(net, &mut rng);
        let masked = net.weighted().next().unwrap().0;
        let node = net.nodes.remove(masked);
        let mut parameters = node.parameters();
        let mask: Vec<bool> = (0..parameters[0].base.len()).map(|i| i % 3 != 0).collect();
        parameters[0].coding.mask = Some(mask.clone());
        net.nodes.insert(masked, node.with(parameters, &Device::flex()).unwrap());
        let count = 2 * net.input_shape().iter().product::<usize>();
        let pixels: Vec<f32> = noise(&mut rng, count);
        let expected = output(&net, &pixels);
        let norms = net.nodes.iter().filter(|node| matches!(node.op, Op::BatchNorm(_))).count();
        let nodes = net.nodes.len();
        let folded = net.fold_norms().unwrap();
        assert_eq!(folded.nodes.len(), nodes - norms, "{name}");
        assert_eq!(folded.nodes[masked].weight().unwrap().coding.mask, Some(mask));
        let scale = expected.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
        let worst = output(&folded, &pixels).iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "{name}: {worst}");
    }
}

#[test]
fn norms_folded_into_grids_leave_the_codes_or_mirror_them() {
    for (levels, axis, zero) in [(3, None, 1.0), (16, Some(0), 5.0), (2, Some(0), 0.5)] {
        let mut b = Builder::new([2, 3, 3], 1, &Device::flex());
        let conv = b.conv("conv", b.input(), Conv::new(4, 1));
        let norm = b.batch_norm("norm", conv);
        b.global_avg_pool("pool", norm);
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let mut net = stir(b.finish().unwrap(), &mut rng);
        let channels = if axis.is_some() { 4 } else { 1 };
        let steps = (1..=channels).map(|c| 0.3 / c as f32).collect();
        let grid = Grid { levels, axis, steps, zeros: vec![zero; channels] };
        for (name, parameter) in [("conv", "weight"), ("norm", "gamma")] {
            let index = net.index(name).unwrap();
            let node = net.nodes.remove(index);
            let mut parameters = node.parameters();
            let stored = parameters.iter_mut().find(|stored| stored.name == parameter).unwrap();
            if name == "conv" {
                stored.coding.source = Source::Grid { grid: grid.clone(), rounding: Rounding::Nearest, learned: false };
            } else {
                stored.base = vec![0.5, -2.0, 0.0, -0.1];
            }
            net.nodes.insert(index, node.with(parameters, &Device::flex()).unwrap());
        }
        let codes = |net: &Net| {
            let weight = net.nodes[net.index("conv").unwrap()].weight().unwrap();
            let Source::Grid { grid, .. } = &weight.coding.source else { panic!("no grid") };
            let channel = grid.channel_of(&weight.shape);
            weight.values().iter().enumerate().map(|(i, w)| grid.nearest(channel(i), *w)).collect::<Vec<_>>()
        };
        let input = noise(&mut rng, 36);
        let (before, expected) = (codes(&net), output(&net, &input));
        let folded = net.fold_norms().unwrap();
        let after = codes(&folded);
        for (i, (before, after)) in before.iter().zip(after).enumerate() {
            match i / 2 {
                0 => assert_eq!(after, *before),
                2 => assert_eq!(f32::from(after), zero.ceil()),
                _ => assert_eq!(after, levels as u16 - 1 - before),
            }
        }
        let found = output(&folded, &input);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
        Net::from_model(&folded.to_model(Storage::default()).unwrap(), &Device::flex()).unwrap();
    }
}

#[test]
fn folding_leaves_the_function_under_every_coding_or_is_refused() {
    let grid = |levels: u32, axis: Option<usize>, rounding| {
        let channels = if axis.is_some() { 4 } else { 1 };
        let steps = (1..=channels).map(|c| 0.3 / c as f32).collect();
        let grid = Grid { levels, axis, steps, zeros: vec![(levels - 1) as f32 / 2.0; channels] };
        Source::Grid { grid, rounding, learned: false }
    };
    let stage = Stage { centroids: (0..8).map(|i| i as f32 * 0.1 - 0.3).collect(), indices: (0..4).map(|i| i % 2).collect() };
    let places = Places::Hash { seed: 7 }.all(&[16], 3);
    let mut sources = vec![
        Source::Free,
        Source::Codebook { centroids: vec![-0.3, 0.1, 0.4], assignment: (0..16).map(|i| i % 3).collect() },
        Source::Ternary { scales: [0.2, 0.3], share: 0.05 },
        Source::Shared { rule: Places::Hash { seed: 7 }, values: vec![0.3, -0.2, 0.1], places },
        Source::Product { product: Product { width: 4, columns: 4, taps: 1, stages: vec![stage] }, transposed: false },
    ];
    for rounding in [Rounding::Nearest, Rounding::Stochastic, Rounding::Tanh, Rounding::Threshold] {
        sources.extend([None, Some(0)].map(|axis| grid(3, axis, rounding)));
    }
    sources.extend([Rounding::Nearest, Rounding::Tanh].map(|rounding| grid(16, Some(0), rounding)));
    for (source, masked) in sources.iter().flat_map(|source| [(source, false), (source, true)]) {
        let folds = matches!(source, Source::Free | Source::Grid { .. });
        let mut b = Builder::new([4, 3, 3], 1, &Device::flex());
        let conv = b.conv("conv", b.input(), Conv::new(4, 1));
        let norm = b.batch_norm("norm", conv);
        b.global_avg_pool("pool", norm);
        let mut rng = ChaCha8Rng::seed_from_u64(10);
        let mut net = stir(b.finish().unwrap(), &mut rng);
        let index = net.index("conv").unwrap();
        let node = net.nodes.remove(index);
        let mut parameters = node.parameters();
        let mask = masked.then(|| (0..16).map(|i| i % 3 != 1).collect());
        parameters[0].coding = Coding { mask, source: source.clone() };
        net.nodes.insert(index, node.with(parameters, &Device::flex()).unwrap());
        let input = noise(&mut rng, 36);
        let expected = output(&net, &input);
        match net.fold_norms() {
            Ok(folded) => {
                let found = output(&folded, &input);
                let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5);
                assert!(folds && near, "{source:?}, masked {masked}: {found:?} {expected:?}");
            }
            Err(error) => assert!(!folds && error.to_string().contains("its weights are shared"), "{source:?}: {error}"),
        }
    }
}

#[test]
fn norms_that_share_their_input_or_follow_no_layer_stay_and_shared_weights_are_refused() {
    let mut b = Builder::new([2, 3, 3], 1, &Device::flex());
    let first = b.batch_norm("first", b.input());
    let conv = b.conv("conv", first, Conv::new(4, 1));
    let norm = b.batch_norm("norm", conv);
    let sum = b.add("sum", &[conv, norm]);
    let other = b.conv("other", sum, Conv::new(4, 1));
    let last = b.batch_norm("last", other);
    b.global_avg_pool("pool", last);
    let mut net = b.finish().unwrap();
    let names = |net: &Net| net.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    let folded = net.deep_clone().fold_norms().unwrap();
    assert_eq!(names(&folded)[1..], ["first", "conv", "norm", "sum", "other", "pool"]);
    let index = net.index("other").unwrap();
    let node = net.nodes.remove(index);
    let mut parameters = node.parameters();
    parameters[0].coding.source = Source::Codebook { centroids: vec![0.5], assignment: vec![0; 16] };
    net.nodes.insert(index, node.with(parameters, &Device::flex()).unwrap());
    let error = net.fold_norms().unwrap_err().to_string();
    assert!(error.starts_with("node 'other': its weights are shared; put fold-norms"), "{error}");
}
