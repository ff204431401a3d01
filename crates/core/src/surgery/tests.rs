mod codings;
mod constants;
mod cost;
mod fold;

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
fn a_block_of_branches_takes_a_nodes_place() {
    let net = zoo("resnet20");
    let input = noise(&mut ChaCha8Rng::seed_from_u64(1), 3 * 32 * 32);
    let before = output(&net, &input);
    let index = net.index("layer1.0.relu1").unwrap();
    let node = |name: &str, inputs: &[usize], op| Node { op, name: name.into(), inputs: inputs.to_vec() };
    let block = vec![
        node("kept", &net.nodes[index].inputs, Op::fixed(Layer::Activation(Activation::Relu))),
        node("negated", &[index], Op::fixed(layers::Negate)),
        node("sum", &[index, index + 1, index], Op::fixed(layers::Add)),
    ];
    let net = net.replace(index, block).unwrap();
    assert_eq!(output(&net, &input), before);
    let refused = net.replace(index, Vec::new()).unwrap_err().to_string();
    assert_eq!(refused, "node 'kept': cannot be replaced by nothing");
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

#[test]
fn copies_change_no_output_of_a_thousand_random_nets() {
    let mut wider = 0;
    for seed in 0..1000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let net = random_net(&mut rng);
        let groups = net.channel_groups().unwrap();
        let mut times = |group: &ChannelGroup| (0..group.len()).map(|_| rng.random_range(1..4)).collect::<Vec<usize>>();
        let copies: Vec<(&ChannelGroup, Vec<usize>)> =
            groups.iter().filter(|group| group.frozen.is_none()).map(|group| (group, times(group))).collect();
        let input = noise(&mut rng, 2 * net.input_shape().iter().product::<usize>());
        let before = net.num_params_of_weights();
        match net.deep_clone().widen(&copies) {
            Ok(wide) => {
                wider += usize::from(wide.num_params_of_weights() > before);
                let (net, wide) = (output(&net, &input), output(&wide, &input));
                assert!(agree(&net, &wide), "seed {seed}: {net:?}, wider {wide:?}");
            }
            Err(error) => assert!(error.to_string().contains("cannot be copied one by one"), "seed {seed}: {error}"),
        }
    }
    assert!(wider > 500, "{wider}");
}
