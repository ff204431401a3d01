mod constants;
mod cost;

use briquette_runtime::layers::{Gate, Measure, Merge, Route};
use briquette_runtime::{Activation, Grid, Layer, Places, Product, Stage, layers};
use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::builder::{At, Builder, Conv};
use crate::coding::{Coding, Rounding, Source};
use crate::random_nets::{agree, coded, noise, on_an_edge, output, random_net, stir};
use crate::stored::{Storage, Stored};
use crate::zoo::Arch;

fn zoo(name: &str) -> Net {
    let arch = Arch::named(name).unwrap();
    arch.build(&arch.wanted(), &Device::flex()).unwrap()
}

/// Random flags that leave at least the first unit.
fn random_keep(group: &ChannelGroup, rng: &mut ChaCha8Rng) -> Keep {
    Keep::new((0..group.len()).map(|unit| unit == 0 || rng.random()).collect())
}

#[test]
fn masked_equals_cut_on_a_thousand_random_nets() {
    let (mut cut_nets, mut refused, mut edges) = (0, 0, 0);
    for seed in 0..1000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let net = random_net(&mut rng);
        let net = if seed % 2 == 0 { net } else { coded(net, &mut rng) };
        let groups = net.channel_groups().unwrap();
        let cuts: Vec<(&ChannelGroup, Keep)> =
            groups.iter().filter(|group| group.frozen.is_none()).map(|group| (group, random_keep(group, &mut rng))).collect();
        let input = noise(&mut rng, 2 * net.input_shape().iter().product::<usize>());
        let masked = match net.deep_clone().mask(&cuts) {
            Ok(masked) => masked,
            // A unit that stays need not reach every layer of its group; a layer left without channels is refused.
            Err(error) => {
                assert!(error.to_string().contains("would keep none"), "seed {seed}: {error}");
                refused += 1;
                continue;
            }
        };
        if on_an_edge(&masked, &input) {
            edges += 1;
            continue;
        }
        let before = net.num_params_of_weights();
        let cut = net.keep(&cuts).unwrap();
        cut_nets += usize::from(cut.num_params_of_weights() < before);
        let (masked, cut) = (output(&masked, &input), output(&cut, &input));
        assert!(agree(&masked, &cut), "seed {seed}: masked {masked:?}, cut {cut:?}");
    }
    assert!(cut_nets > 700 && refused < 200, "{cut_nets} cut, {refused} refused, {edges} on an edge");
}

impl Net {
    fn num_params_of_weights(&self) -> usize {
        crate::cost::Cost::of(self).unwrap().weights()
    }
}

fn printed(net: &Net) -> Vec<String> {
    net.channel_groups().unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn the_groups_of_a_residual_net_print_readably() {
    let printed = printed(&zoo("resnet56"));
    assert_eq!(printed.len(), 1 + 27 + 1);
    assert_eq!(
        printed[0],
        "conv1: 64 units; 16 of conv1 .. layer1.8.conv2 (10 layers), 32 of layer2.0.conv2 .. layer2.8.conv2 (9 layers), \
         64 of layer3.0.conv2 .. layer3.8.conv2 (9 layers)"
    );
    assert_eq!(printed[1], "layer1.0.conv1: 16 units; 16 of layer1.0.conv1");
    assert_eq!(printed[28], "fc: 10 units; 10 of fc; frozen: they are the network's output");
}

#[test]
fn the_groups_of_a_concatenation_print_readably() {
    let mut b = Builder::new([3, 8, 8], 0, &Device::flex());
    let x = b.input();
    let left = b.conv("left", x, Conv::new(4, 1));
    let right = b.conv("right", x, Conv::new(6, 3).same());
    let x = b.fixed("concat", &[left, right], layers::Concat);
    let x = b.conv("depthwise", x, Conv::new(10, 3).same().groups(10));
    let x = b.fixed("gate", &[x], Layer::Activation(Activation::Sigmoid));
    let x = b.conv("grouped", x, Conv::new(6, 1).groups(2));
    let x = b.flatten("flatten", x);
    b.linear("fc", x, 2);
    assert_eq!(
        printed(&b.finish().unwrap()),
        [
            "left: 5 units; 4 of left, 6 of right, 10 of depthwise; frozen: 'gate' (sigmoid) turns a masked channel into something else \
             than zeros",
            "grouped: 3 units; 6 of grouped",
            "fc: 2 units; 2 of fc; frozen: they are the network's output",
        ]
    );
}

#[test]
fn shortcuts_with_zero_channels_are_cut_with_what_they_join() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let net = stir(zoo("resnet20"), &mut rng);
    let groups = net.channel_groups().unwrap();
    let scores: Vec<f64> = (0..groups[0].len()).map(|unit| groups[0].filters(unit).len() as f64 + 0.1 * unit as f64).collect();
    let cuts = [(&groups[0], Keep::top(&scores, 40))];
    let input = noise(&mut rng, 3 * 32 * 32);
    let masked = output(&net.deep_clone().mask(&cuts).unwrap(), &input);
    let cut = net.deep_clone().keep(&cuts).unwrap();
    assert!(agree(&masked, &output(&cut, &input)));
    assert_eq!(cut.nodes[cut.index("layer3.0.conv2").unwrap()].op.weight_shape().unwrap()[0], 40);
}

#[test]
fn codings_lose_the_entries_of_their_weights() {
    let net = zoo("lenet300");
    let device = net.device();
    let index = net.index("fc2").unwrap();
    let mut nodes = net.nodes;
    let node = nodes.remove(index);
    let mut parameters = node.parameters();
    let count = parameters[0].base.len();
    let source = Source::Codebook { centroids: vec![-1.0, 1.0], assignment: (0..count).map(|i| (i / 300 % 2) as u32).collect() };
    parameters[0].coding = Coding { mask: Some((0..count).map(|i| i % 300 != 5).collect()), source };
    nodes.insert(index, node.with(parameters, &device).unwrap());
    let net = Net { nodes };
    let groups = net.channel_groups().unwrap();
    let cuts = [
        (&groups[0], Keep::new((0..300).map(|unit| unit >= 4).collect())),
        (&groups[1], Keep::new((0..100).map(|unit| unit != 0).collect())),
    ];
    let cut = net.keep(&cuts).unwrap();
    let weight = cut.nodes[index].weight().unwrap();
    assert_eq!(weight.shape, [99, 296]);
    let Source::Codebook { assignment, .. } = &weight.coding.source else { panic!("the codebook is gone") };
    assert!(assignment.iter().enumerate().all(|(i, &a)| a == ((i / 296 + 1) % 2) as u32));
    assert!(weight.coding.mask.unwrap().iter().enumerate().all(|(i, &keep)| keep == (i % 296 != 1)));
}

/// LeNet-300-100 whose second layer has this source, cut to 99 outputs, and if `inputs` to 296 inputs: the layer's weight, and what of the
/// whole one is left.
fn cut_fc2(source: impl Fn(&[usize]) -> Source, inputs: bool) -> (Stored, Vec<f32>) {
    let net = zoo("lenet300");
    let (index, device) = (net.index("fc2").unwrap(), net.device());
    let mut nodes = net.nodes;
    let node = nodes.remove(index);
    let mut parameters = node.parameters();
    parameters[0].coding = Coding { mask: None, source: source(&parameters[0].shape) };
    let whole = parameters[0].values();
    nodes.insert(index, node.with(parameters, &device).unwrap());
    let net = Net { nodes };
    let groups = net.channel_groups().unwrap();
    let mut cuts = vec![(&groups[1], Keep::new((0..100).map(|unit| unit != 2).collect()))];
    if inputs {
        cuts.push((&groups[0], Keep::new((0..300).map(|unit| unit >= 4).collect())));
    }
    let cut = net.keep(&cuts).unwrap();
    let stays = |i: &usize| i / 300 != 2 && !(inputs && i % 300 < 4);
    let left = (0..whole.len()).filter(stays).map(|i| whole[i]).collect();
    (cut.nodes[index].weight().unwrap(), left)
}

#[test]
fn a_cut_breaks_a_hash_up_into_the_codebook_of_its_values() {
    let hashed = |values: usize| {
        move |shape: &[usize]| {
            let values: Vec<f32> = (1..=values).map(|i| i as f32 * 1e-4).collect();
            let places = Places::Hash { seed: 3 }.all(shape, values.len());
            Source::Shared { rule: Places::Hash { seed: 3 }, values, places }
        }
    };
    let (weight, left) = cut_fc2(hashed(50), false);
    assert!(weight.values() == left);
    assert!(matches!(&weight.coding.source, Source::Codebook { centroids, .. } if centroids.len() == 100));
}

#[test]
fn a_product_loses_rows_and_is_broken_up_by_columns() {
    let product = |shape: &[usize]| {
        let stage = briquette_runtime::Stage {
            centroids: (0..4 * shape[1]).map(|i| (i % 53) as f32 * 0.01).collect(),
            indices: (0..75 * shape[0]).map(|i| (i * i % 4) as u16).collect(),
        };
        let product = briquette_runtime::Product { width: 4, columns: shape[1], taps: 1, stages: vec![stage.clone(), stage] };
        Source::Product { product, transposed: false }
    };
    let (weight, left) = cut_fc2(product, false);
    assert!(weight.values() == left && matches!(&weight.coding.source, Source::Product { product, .. } if product.rows() == 99));
    let (weight, left) = cut_fc2(product, true);
    assert!(weight.values() == left && matches!(weight.coding.source, Source::Codebook { .. }));
}

#[test]
fn keeping_all_changes_nothing() {
    let net = zoo("lenet5");
    let groups = net.channel_groups().unwrap();
    let cuts: Vec<_> = groups.iter().map(|group| (group, Keep::new(vec![true; group.len()]))).collect();
    let state = net.to_state();
    assert!(net.keep(&cuts).unwrap().to_state() == state);
}

#[test]
fn cuts_that_cannot_hold_are_refused_by_name() {
    let net = zoo("lenet5");
    let groups = net.channel_groups().unwrap();
    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["conv1", "conv2", "fc1", "fc2"]);
    let refusal = |cuts: &[(&ChannelGroup, Keep)]| net.deep_clone().keep(cuts).unwrap_err().to_string();
    assert_eq!(
        refusal(&[(&groups[1], Keep::new(vec![false; 50]))]),
        "node 'conv2': would keep none of its 50 channels; remove less"
    );
    assert_eq!(
        refusal(&[(&groups[3], Keep::top(&[0.0; 10], 5))]),
        "node 'fc2': its channels cannot be cut: they are the network's output"
    );
    assert_eq!(refusal(&[(&groups[0], Keep::new(vec![true]))]), "node 'conv1': 1 flags for a group of 20 units");
    let other = zoo("resnet20").channel_groups().unwrap();
    assert!(refusal(&[(&other[0], Keep::top(&[0.0; 64], 5))]).contains("not of this network"));
}

#[test]
fn a_node_becomes_a_chain() {
    let net = zoo("resnet20");
    let input = noise(&mut ChaCha8Rng::seed_from_u64(1), 3 * 32 * 32);
    let before = output(&net, &input);
    let index = net.index("layer1.0.relu1").unwrap();
    let relu = || Op::fixed(Layer::Activation(Activation::Relu));
    let net = net.rewrite(index, vec![("a".into(), relu()), ("b".into(), relu())]).unwrap();
    assert_eq!(output(&net, &input), before);
    assert_eq!(net.nodes[index + 2].inputs, [index + 1]);
    let taken = net.rewrite(index, vec![("conv1".into(), relu())]).unwrap_err();
    assert_eq!(taken.to_string(), "node 'conv1': the name is taken by an earlier node");
}

#[test]
fn the_best_units_leave_every_layer_a_filter() {
    let net = zoo("resnet20");
    let groups = net.channel_groups().unwrap();
    // Units that few layers share score highest, so that the top alone would empty the first stage.
    let group = &groups[0];
    let scores: Vec<f64> = (0..group.len()).map(|unit| -(group.filters(unit).len() as f64) - 1e-3 * unit as f64).collect();
    let refused = zoo("resnet20").keep(&[(group, Keep::top(&scores, 4))]).unwrap_err().to_string();
    assert!(refused.contains("would keep none of its 16 channels"), "{refused}");
    for count in [1, 4] {
        let keep = group.best(&scores, count);
        assert!((count..count + 3).contains(&keep.count()), "{keep:?}");
        assert!(zoo("resnet20").keep(&[(group, keep)]).is_ok());
    }
    assert_eq!(group.best(&scores, 60), Keep::top(&scores, 60));
    assert_eq!(group.best(&scores, 0).count(), 0);
}

/// The network with the weights that read a unit set to zero.
fn unread(mut net: Net, readers: &[(usize, usize)]) -> Net {
    let device = net.device();
    for &(index, channel) in readers {
        let node = net.nodes.remove(index);
        let mut parameters = node.parameters();
        let shape = parameters[0].shape.clone();
        let area: usize = shape[2..].iter().product();
        let read = |i: usize| i / area % shape[1] == channel;
        parameters[0].base.iter_mut().enumerate().filter(|(i, _)| read(*i)).for_each(|(_, w)| *w = 0.0);
        net.nodes.insert(index, node.with(parameters, &device).unwrap());
    }
    net
}

#[test]
fn a_unit_whose_readers_are_zero_is_cut_with_no_change_of_the_output() {
    let mut cut_units = 0;
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let net = random_net(&mut rng);
        let groups = net.channel_groups().unwrap();
        let Some(group) = groups.iter().find(|group| group.frozen.is_none() && group.len() > 1) else { continue };
        let unit = rng.random_range(0..group.len());
        let net = unread(net, group.readers(unit));
        let input = noise(&mut rng, net.input_shape().iter().product());
        if on_an_edge(&net, &input) {
            continue;
        }
        let before = output(&net, &input);
        let Ok(cut) = net.keep(&[(group, Keep::new((0..group.len()).map(|u| u != unit).collect()))]) else { continue };
        assert!(agree(&before, &output(&cut, &input)), "seed {seed}: {group}");
        cut_units += 1;
    }
    assert!(cut_units > 200, "{cut_units}");
}

#[test]
fn a_bypassed_branch_goes_with_all_that_only_it_needed() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut net = stir(zoo("resnet20"), &mut rng);
    let norm = net.index("layer2.1.conv2.norm").unwrap();
    let (node, device) = (net.nodes.remove(norm), net.device());
    let mut parameters = node.parameters();
    parameters.iter_mut().filter(|p| ["gamma", "beta"].contains(&p.name)).for_each(|p| p.base.fill(0.0));
    net.nodes.insert(norm, node.with(parameters, &device).unwrap());
    let input = noise(&mut rng, 3 * 32 * 32);
    let (before, count) = (output(&net, &input), net.nodes.len());
    let (add, shortcut) = (net.index("layer2.1.add").unwrap(), net.index("layer2.0.relu2").unwrap());
    let refused = net.deep_clone().bypass(shortcut, add).unwrap_err().to_string();
    assert_eq!(refused, "node 'layer2.0.relu2': cannot be bypassed by 'layer2.1.add', which is later or of another shape");
    let net = net.bypass(add, shortcut).unwrap();
    // Two convolutions, their norms, a rectifier and the addition.
    assert_eq!(net.nodes.len(), count - 6);
    assert!(agree(&before, &output(&net, &input)));
}

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

#[test]
fn means_over_channels_freeze_them_and_products_join_them() {
    let frozen = |build: &dyn Fn(&mut Builder, At) -> At| {
        let mut b = Builder::new([2, 6, 6], 1, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4, 3));
        let x = build(&mut b, x);
        let x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        b.finish().unwrap().channel_groups().unwrap()
    };
    let scaled = frozen(&|b, x| {
        let mean = b.fixed("mean", &[x], layers::MeanMagnitude);
        b.fixed("multiply", &[x, mean], layers::Multiply)
    });
    assert_eq!(scaled[0].frozen.as_deref(), Some("'mean' (mean-magnitude) divides by their number"));
    let gated = frozen(&|b, x| {
        let gate = b.conv("gate", x, Conv::new(1, 1));
        b.fixed("multiply", &[x, gate], layers::Multiply)
    });
    assert_eq!((gated[0].frozen.as_deref(), gated[0].len()), (None, 4));
    assert_eq!(gated[1].frozen.as_deref(), Some("'multiply' (multiply) scales all channels by them"));
    let joined = frozen(&|b, x| {
        let other = b.conv("other", x, Conv::new(4, 1));
        b.fixed("multiply", &[x, other], layers::Multiply)
    });
    assert_eq!((joined[0].frozen.as_deref(), joined[0].len(), joined.len()), (None, 4, 2));
    assert_eq!(joined[0].producers().count(), 2);
}

#[test]
fn a_gates_decision_is_no_channel_of_the_values_that_go_by_it() {
    // A value of one channel takes both branches; one pads it, so that it lies among the four channels in which they meet.
    let build = |threshold: f32| {
        let mut b = Builder::new([2, 6, 6], 4, &Device::flex());
        let one = b.conv("one", b.input(), Conv::new(1, 3).same());
        let pooled = b.global_avg_pool("pool", one);
        let logits = b.linear("logits", pooled, 2);
        let gate = b.fixed("gate", &[logits], Gate { measure: Measure::Confidence, threshold });
        let [left, on] = [("left", true), ("on", false)].map(|(name, leaving)| b.fixed(name, &[one, gate], Route { leaving }));
        let wide = b.fixed("wide", &[on], layers::PadShortcut { stride: 1, before: 1, after: 2 });
        let body = b.conv("body", on, Conv::new(4, 3).same());
        let on = b.add("add", &[body, wide]);
        let left = b.conv("other", left, Conv::new(4, 1));
        let x = b.fixed("merge", &[left, on, gate], Merge);
        let x = b.global_avg_pool("mean", x);
        b.linear("fc", x, 3);
        stir(b.finish().unwrap(), &mut ChaCha8Rng::seed_from_u64(5))
    };
    let input = noise(&mut ChaCha8Rng::seed_from_u64(6), 8 * 72);
    let taken = |net: &Net| {
        let engine = briquette_runtime::Engine::new(&net.to_model(Storage::default()).unwrap(), 1).unwrap();
        engine.run_counted(&input, 8).unwrap().1.into_iter().find(|(step, _)| step == "body").unwrap().1
    };
    let net = (50..100).map(|percent| build(percent as f32 / 100.0)).find(|net| (1..8).contains(&taken(net))).unwrap();
    let expected = [
        "one: 4 units; 1 of one, 4 of body .. other (2 layers)",
        "logits: 2 units; 2 of logits; frozen: 'gate' (gate) decides by all of them",
        "fc: 3 units; 3 of fc; frozen: they are the network's output",
    ];
    assert_eq!(printed(&net), expected);
    let groups = net.channel_groups().unwrap();
    let cuts = |keep: [bool; 4]| [(&groups[0], Keep::new(keep.to_vec()))];
    let without = cuts([true, false, true, false]);
    let (masked, cut) = (net.deep_clone().mask(&without).unwrap(), net.deep_clone().keep(&without).unwrap());
    assert_eq!(net.cost_after(&without).unwrap(), crate::cost::Cost::of(&cut).unwrap());
    assert!(agree(&output(&masked, &input), &output(&cut, &input)) && taken(&cut) == taken(&net));
    let alone = net.keep(&cuts([false, true, true, true])).unwrap_err().to_string();
    assert_eq!(alone, "node 'one': would keep none of its 1 channels; remove less");
}
