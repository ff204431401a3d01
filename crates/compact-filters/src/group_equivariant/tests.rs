use std::collections::BTreeMap;

use briquette_core::coding::{Source, floats};
use briquette_core::context::Finding;
use briquette_core::cost::Cost;
use briquette_core::net::Value;
use briquette_core::stored::Storage;
use briquette_core::zoo::Arch;
use briquette_core::{Activation, Window, layers};
use briquette_handmade::{get, refusal, run, set, small};
use briquette_runtime::{Engine, Model};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Value as Json, json};

use super::*;
use crate::goldens::{golden, moved, near};

const GOLDENS: &str = include_str!("goldens.txt");

/// `[g a]` of elements, from what they do to a square of nine values.
fn product(g: usize, a: usize) -> usize {
    let square: Vec<f32> = (0..9).map(|i| i as f32).collect();
    let both = moved(&moved(&square, a), g);
    (0..8).find(|element| moved(&square, *element) == both).unwrap()
}

fn inverse(g: usize) -> usize {
    (0..8).find(|h| product(g, *h) == 0).unwrap()
}

/// The network with these base values behind a layer's weight.
fn based(mut net: Net, layer: &str, values: &[f32]) -> Net {
    let (index, device) = (net.index(layer).unwrap(), net.device());
    let node = net.nodes.remove(index);
    let mut parameters = node.parameters();
    for stored in parameters.iter_mut().filter(|stored| stored.name == "weight") {
        let Source::Shared { rule, values: old, .. } = &stored.coding.source else { panic!("{layer} shares nothing") };
        assert_eq!(old.len(), values.len());
        stored.coding.source = Source::shared(*rule, values.to_vec(), &stored.shape).unwrap();
    }
    net.nodes.insert(index, node.with(parameters, &device).unwrap());
    net
}

/// One image as a batch.
fn batch(net: &Net, image: &[f32]) -> Tensor<4> {
    let shape = net.input_shape();
    Tensor::from_data(TensorData::new(image.to_vec(), [1, shape[0], shape[1], shape[2]]), &net.device())
}

/// What every node makes of an image.
fn traced(net: &Net, image: &[f32]) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    net.trace(batch(net, image), |index, value| {
        let values = match value.clone() {
            Value::Map(x) => floats(x),
            Value::Vector(x) => floats(x),
        };
        all.insert(net.nodes[index].name.clone(), values);
        value
    });
    all
}

fn engine(net: &Net, images: &[f32]) -> Vec<f32> {
    let model = Model::from_bytes(&net.to_model(Storage::default()).unwrap().to_bytes().unwrap()).unwrap();
    let image: usize = net.input_shape().iter().product();
    Engine::new(&model, 1).unwrap().run(images, images.len() / image).unwrap()
}

/// [`super::violation`] of one image.
fn violation(net: &Net, image: &[f32], maps: &str, group: Group) -> f32 {
    super::violation(net, &batch(net, image), maps, group).unwrap()
}

fn noise(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * i * 31 + 7 * i) % 101) as f32 / 50.0 - 1.0).collect()
}

/// Two group convolutions of 3 by 3 with padding 1 and stride `stride` in the second, of 2 and 1 channels.
fn two(group: Group, side: usize, stride: usize) -> Net {
    let mut b = Builder::new([2, side, side], 1, &Device::flex());
    let input = b.input();
    let x = lift(&mut b, "lift", input, Conv::new(2, 3).same().no_bias(), group);
    let x = b.relu("relu", x);
    let x = convolve(&mut b, "group", x, Conv::new(1, 3).same().stride(stride).no_bias(), group);
    let most = pool(&mut b, "max", x, group, Reduction::Max);
    let mean = pool(&mut b, "mean", x, group, Reduction::Mean);
    let both = b.fixed("both", &[most, mean], layers::Concat);
    b.flatten("flatten", both);
    b.finish().unwrap()
}

#[test]
fn convolutions_are_those_of_the_authors_program() {
    for (group, name) in [(Group::P4, "p4"), (Group::P4m, "p4m")] {
        let of = |what: &str| golden(GOLDENS, &format!("{name}.{what}"));
        let net = based(two(group, 6, 1), "lift", &of("w1"));
        let net = based(net, "group", &of("w2"));
        let x = golden(GOLDENS, "x");
        let found = traced(&net, &x);
        if group == Group::P4 {
            near(&found["lift"], &of("lift"), "lift");
        }
        near(&found["group"], &of("output"), name);
        near(&found["max"], &of("max"), name);
        near(&found["mean"], &of("mean"), name);
        near(&engine(&net, &x), &found["flatten"], "engine");
        assert!(violation(&net, &x, "group", group) < 1e-5);
    }
}

#[test]
fn products_of_elements_are_those_of_the_authors_program() {
    let table = |order: usize| (0..order).map(|g| (0..order).map(|h| product(g, h)).collect::<Vec<_>>()).collect::<Vec<_>>();
    assert_eq!(table(4), [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]);
    let p4m = table(8);
    assert_eq!((&p4m[1][4..], &p4m[4][..], &p4m[5][..4]), (&[7, 4, 5, 6][..], &[4, 5, 6, 7, 0, 1, 2, 3][..], &[5, 6, 7, 4][..]));
    assert_eq!((0..8).map(inverse).collect::<Vec<_>>(), [0, 3, 2, 1, 4, 5, 6, 7]);
    for group in [Group::P4, Group::P4m] {
        let all = || 0..group.order();
        assert!(all().all(|a| all().all(|s| group.undone(a, s) == product(inverse(a), s))), "{group:?}");
    }
}

#[test]
fn a_stride_that_leaves_out_one_end_breaks_the_symmetry_and_another_does_not() {
    // 6 + 2 - 3 is no multiple of 2, 7 + 2 - 3 is.
    let off = |side: usize| violation(&two(Group::P4, side, 2), &noise(2 * side * side), "group", Group::P4);
    assert!(off(6) > 0.1 && off(7) < 1e-5, "{} {}", off(6), off(7));
}

#[test]
fn kernels_of_two_pixels_turn_about_their_middle() {
    let mut b = Builder::new([1, 5, 5], 1, &Device::flex());
    let input = b.input();
    let x = lift(&mut b, "lift", input, Conv::new(2, 2), Group::P4);
    let x = convolve(&mut b, "group", x, Conv::new(2, 2), Group::P4);
    b.flatten("flatten", x);
    let net = b.finish().unwrap();
    assert!(violation(&net, &noise(25), "group.bias.split", Group::P4) < 1e-5);
}

#[test]
fn a_batch_norm_is_one_for_all_maps_of_a_channel() {
    let mut b = Builder::new([8, 2, 2], 1, &Device::flex());
    let input = b.input();
    let x = batch_norm(&mut b, "norm", input, Group::P4);
    b.flatten("flatten", x);
    let net = b.finish().unwrap();
    let (x, expected) = (golden(GOLDENS, "bn.x"), golden(GOLDENS, "bn.output"));
    let batch = Tensor::<4>::from_data(TensorData::new(x.clone(), [2, 8, 2, 2]), &Device::flex().autodiff());
    near(&floats(net.train().forward(batch)), &expected, "in training");
    let mut b = Builder::new([8, 2, 2], 1, &Device::flex());
    let input = b.input();
    let at = batch_norm(&mut b, "norm", input, Group::P4);
    b.flatten("flatten", at);
    let net = set(set(b.finish().unwrap(), "norm", "mean", &[0.01125, 0.0175]), "norm", "var", &[0.870_217_2, 1.244_243_7]);
    near(&engine(&net, &x), &expected, "in the engine");
}

/// Convolutions with and without batch norm and bias, a residual connection, pooling, and a head, on 9 by 9.
fn plain(residual: bool) -> Net {
    let mut b = Builder::new([1, 9, 9], 3, &Device::flex());
    let mut x = b.conv("conv1", b.input(), Conv::new(8, 3).same());
    x = b.batch_norm("norm1", x);
    let short = b.relu("relu1", x);
    x = b.conv("conv2", short, Conv::new(8, 3).same().no_bias());
    x = b.batch_norm("norm2", x);
    if residual {
        x = b.add("add", &[x, short]);
    }
    x = b.relu("relu2", x);
    x = b.max_pool("pool1", x, Window::new([3, 3], [2, 2]));
    x = b.conv("conv3", x, Conv::new(16, 2));
    x = b.fixed("act3", &[x], Activation::Tanh);
    x = b.global_avg_pool("pool2", x);
    b.linear("fc", x, 3);
    b.finish().unwrap()
}

#[test]
fn a_rewritten_network_turns_with_its_input_and_runs_in_the_engine() {
    for (group, name) in [(Group::P4, "p4"), (Group::P4m, "p4m")] {
        for init in ["random", "fit"] {
            let net = run::<GroupEquivariant>(plain(true), json!({ "group": name, "init": init })).unwrap();
            let image = noise(81);
            for maps in ["norm1.split", "add", "pool1", "conv3.bias.split"] {
                assert!(violation(&net, &image, maps, group) < 1e-5, "{name} {init} {maps}");
            }
            let logits = |element: usize| traced(&net, &moved(&image, element))["fc"].clone();
            (1..group.order()).for_each(|element| near(&logits(element), &logits(0), "logits"));
            near(&engine(&net, &image), &logits(0), "engine");
            assert!(net.channel_groups().unwrap().iter().all(|group| group.frozen.is_some() || group.name == "fc"));
        }
    }
}

/// [`small`] takes images of 4 by 4, to which kernels of 2 fit without padding.
#[test]
fn training_keeps_the_symmetry_and_changes_base_filters_alone() {
    let settings = |epochs: usize| json!({ "group": "p4", "tune": { "epochs": epochs, "batch": 8, "lr": 0.01 } });
    let [start, net] = [0, 3].map(|epochs| run::<GroupEquivariant>(small(), settings(epochs)).unwrap());
    assert_ne!(get(&start, "conv1", "weight"), get(&net, "conv1", "weight"));
    assert_ne!(get(&start, "conv2.bias", "shift"), get(&net, "conv2.bias", "shift"));
    for maps in ["norm1.split", "conv2.bias.split"] {
        assert!(violation(&net, &noise(16), maps, Group::P4) < 1e-5, "{maps}");
    }
    let (coded, back) =
        (net.to_model(Storage::default()).unwrap(), |model: &Model| Net::from_model(model, &Device::flex()).unwrap());
    assert_eq!(traced(&back(&coded), &noise(16)), traced(&net, &noise(16)));
    assert_eq!(Cost::of(&back(&coded)).unwrap(), Cost::of(&net).unwrap());
}

#[test]
fn filters_that_turn_already_are_fitted_exactly() {
    let once = run::<GroupEquivariant>(plain(false), json!({ "group": "p4", "init": "fit" })).unwrap();
    // The filters as they are, without what they share.
    let mut free = plain(false);
    for layer in ["conv1", "conv2"] {
        free = set(free, layer, "weight", &get(&once, layer, "weight"));
    }
    let twice = run::<GroupEquivariant>(free, json!({ "group": "p4", "init": "fit" })).unwrap();
    for layer in ["conv1", "conv2"] {
        near(&get(&twice, layer, "weight"), &get(&once, layer, "weight"), layer);
    }
    // Filters that do not are as near as a mean is: no part of what is left lies along any base value.
    let left = |net: &Net| {
        get(&plain(false), "conv1", "weight").iter().zip(get(net, "conv1", "weight")).map(|(a, b)| a - b).collect::<Vec<_>>()
    };
    let by_turn = left(&once);
    let maps: Vec<&[f32]> = by_turn.chunks(9).collect();
    for family in maps.chunks(4) {
        let back: Vec<Vec<f32>> = family.iter().enumerate().map(|(t, map)| moved(map, (4 - t) % 4)).collect();
        assert!((0..9).all(|at| back.iter().map(|map| map[at]).sum::<f32>().abs() < 1e-5));
    }
}

#[test]
fn a_network_that_turns_already_is_fitted_by_itself() {
    let fit = json!({ "group": "p4", "init": "fit", "pool": "mean" });
    let once = run::<GroupEquivariant>(plain(true), fit.clone()).unwrap();
    let each = |values: &[f32], maps: usize| values.iter().flat_map(|x| std::iter::repeat_n(*x, maps)).collect::<Vec<f32>>();
    // The same filters, biases, norms and readers of each family, without what they share.
    let mut free = plain(true);
    for layer in ["conv1", "conv2", "conv3"] {
        free = set(free, layer, "weight", &get(&once, layer, "weight"));
    }
    free = set(free, "conv3", "bias", &each(&[0.1, -0.2, 0.3, 0.0], 4));
    free = set(free, "conv1", "bias", &each(&[0.4, -0.3], 4));
    for (tensor, values) in [("gamma", [0.5, 2.0]), ("beta", [0.3, -0.1]), ("mean", [0.1, 0.2]), ("var", [0.6, 1.5])] {
        free = set(free, "norm1", tensor, &each(&values, 4));
    }
    let heads: Vec<f32> = (0..12).map(|i| (i * 5 % 7) as f32 / 4.0 - 0.6).collect();
    free = set(free, "fc", "weight", &each(&heads, 4));
    let fitted = run::<GroupEquivariant>(free.deep_clone(), fit).unwrap();
    let image = noise(81);
    near(&traced(&fitted, &image)["fc"], &traced(&free, &image)["fc"], "logits");
}

#[test]
fn widths_are_shares_of_the_filters() {
    let channels = |more: Json| {
        let mut settings = json!({ "group": "p4m" });
        settings.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        let net = run::<GroupEquivariant>(plain(false), settings).unwrap();
        ["conv1", "conv3"].map(|layer| net.nodes[net.index(layer).unwrap()].op.weight_shape().unwrap()[0] / 8)
    };
    assert_eq!(channels(json!({})), [3, 6]);
    assert_eq!(channels(json!({ "width": 0.5 })), [4, 8]);
    assert_eq!(channels(json!({ "init": "fit" })), [1, 2]);
}

#[test]
fn shortcuts_that_pad_channels_pad_whole_ones() {
    let mut b = Builder::new([1, 9, 9], 3, &Device::flex());
    let x = b.conv("conv1", b.input(), Conv::new(8, 3).same());
    let short = b.relu("relu1", x);
    let x = b.conv("conv2", short, Conv::new(20, 3).same().stride(2));
    let short = b.fixed("short", &[short], PadShortcut { stride: 2, before: 6, after: 6 });
    let x = b.add("add", &[x, short]);
    let x = b.global_avg_pool("pool", x);
    b.linear("fc", x, 3);
    let net = run::<GroupEquivariant>(b.finish().unwrap(), json!({ "group": "p4" })).unwrap();
    assert!(violation(&net, &noise(81), "add", Group::P4) < 1e-5);
}

#[test]
fn what_has_no_symmetry_is_not_measured() {
    let net = two(Group::P4, 6, 1);
    let refused = |image: &[f32], maps: &str, group: Group| {
        super::violation(&net, &batch(&net, image), maps, group).unwrap_err().to_string()
    };
    assert_eq!(refused(&[f32::NAN; 72], "lift", Group::P4), "node 'lift': makes values that are not finite");
    assert_eq!(refused(&noise(72), "both", Group::P4), "node 'both': has no maps of the group on squares");
    assert_eq!(refused(&noise(72), "flatten", Group::P4), "node 'flatten': has no maps of the group on squares");
    assert!(refused(&noise(72), "lifted", Group::P4).contains("lift"));
}

#[test]
fn strides_that_break_the_symmetry_are_in_the_report() {
    let mut b = Builder::new([1, 4, 4], 3, &Device::flex());
    let x = b.conv("conv1", b.input(), Conv::new(4, 3).same().stride(2));
    let x = b.relu("relu1", x);
    let x = b.conv("conv2", x, Conv::new(4, 2));
    let x = b.flatten("flatten", x);
    b.linear("fc", x, 3);
    let (net, data, mut silent) = (b.finish().unwrap(), briquette_handmade::images(), briquette_core::context::Silent);
    let mut noted = |exact: bool, net: &Net| {
        let method: GroupEquivariant = serde_json::from_value(json!({ "group": "p4", "exact": exact })).unwrap();
        let mut cx = briquette_handmade::context(&data, &mut silent);
        method.run(net.deep_clone(), &mut cx).map(|_| cx.findings).map_err(|error| error.to_string())
    };
    let found = noted(false, &net).unwrap();
    let [Finding::Note(note)] = &found[..] else { panic!("{found:?}") };
    let start = "conv1: stride 2 on 4 x 4 breaks the symmetry: where images turn, its maps differ from turned ones by ";
    let share: f32 = note.strip_prefix(start).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(share > 1.0, "{note}");
    assert!(noted(true, &net).unwrap_err().starts_with("node 'conv1': in steps of 2 leaves out"));
    assert_eq!(noted(false, &small()), Ok(Vec::new()));
}

#[test]
fn a_convolution_that_makes_the_classes_is_refused() {
    let arch = Arch::named("all-cnn-c").unwrap();
    let plan = |settings: Json| {
        let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        serde_json::from_value::<GroupEquivariant>(settings).unwrap().plan(net)
    };
    assert_eq!(
        plan(json!({ "group": "p4", "exact": false })).unwrap_err().to_string(),
        "group-equivariant: the network would have 5 outputs instead of 10; name the convolution that makes them in `except`"
    );
    let kept = plan(json!({ "group": "p4", "exact": false, "except": ["conv9"] })).unwrap();
    assert_eq!(kept.shapes().unwrap().last().unwrap()[..], [10]);
}

#[test]
fn what_has_no_symmetric_form_is_refused() {
    let p4 = || json!({ "group": "p4" });
    let refused = |net: Net, settings: Json| refusal::<GroupEquivariant>(net, settings);
    let with = |key: &str, value: Json| json!({ "group": "p4", key: value });
    assert_eq!(refused(plain(false), with("width", json!(1.5))), "`width` lies in (0, 1], not 1.5");
    let kept = refused(plain(false), json!({ "group": "p4", "init": "fit", "width": 0.25 }));
    assert!(kept.starts_with("`init` \"fit\" keeps the number of maps"), "{kept}");
    let fit = refused(small(), with("init", json!("fit")));
    assert!(fit.starts_with("node 'conv2': is [3, 4, 2, 2] and would become [4, 4, 2, 2]"), "{fit}");
    assert_eq!(
        refused(small(), with("layers", json!(["fc1"]))),
        "node 'fc1': is no convolution; name convolutions alone in `layers`"
    );
    let broken = set(small(), "conv2", "weight", &[f32::NAN; 48]);
    assert_eq!(refused(broken, p4()), "node 'conv2': holds the weight NaN; train it anew or clip it");
    let twice = run::<GroupEquivariant>(small(), p4()).unwrap();
    assert!(refused(twice, p4()).starts_with("node 'conv1': is pruned, quantized or shares its weights"));
    let of = |conv: Conv, sides: [usize; 2]| {
        let mut b = Builder::new([2, sides[0], sides[1]], 1, &Device::flex());
        let x = b.conv("conv", b.input(), conv);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    };
    let cases = [
        (of(Conv::new(4, 3), [6, 7]), "reads maps of 6 by 7; only squares turn"),
        (of(Conv::new(4, 3).stride(2), [6, 6]), "in steps of 2 leaves out what is at one end of 6 pixels"),
        (of(Conv::new(4, 3).groups(2), [6, 6]), "has groups of channels"),
        (
            of(Conv { padding: briquette_core::Padding([[0, 1], [0, 1]]), ..Conv::new(4, 2) }, [6, 6]),
            "is padded more on one side",
        ),
    ];
    for (net, why) in cases {
        let refused = refused(net, p4());
        assert!(refused.starts_with(&format!("node 'conv': {why}")), "{refused}");
    }
    let mut b = Builder::new([1, 6, 6], 1, &Device::flex());
    let x = b.conv("conv", b.input(), Conv::new(4, 3));
    let x = b.fixed("slice", &[x], layers::ChannelSlice { start: 0, len: 2 });
    let x = b.flatten("flatten", x);
    b.linear("fc", x, 3);
    let sliced = refused(b.finish().unwrap(), p4());
    assert!(sliced.starts_with("node 'slice': (channel-slice) cannot stand between channels of several maps"), "{sliced}");
}
