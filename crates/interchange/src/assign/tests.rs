use briquette_core::builder::{Builder, Conv};
use briquette_core::zoo::{Arch, Wanted};
use burn::tensor::{Device, Tensor};

use super::*;

/// Every parameter of the network under the names that `rename` gives to its layers, filled with numbers of the layer's own.
fn file(net: &Net, rename: impl Fn(&str) -> String) -> Checkpoint {
    let mut tensors = BTreeMap::new();
    for (index, node) in net.nodes.iter().enumerate() {
        for stored in node.parameters() {
            let values = (0..stored.base.len()).map(|i| 0.5 + (index * 7 + i) as f32 % 11.0 * 0.05).collect();
            let name = format!("{}.{}", rename(&node.name), foreign_name(&node.op, stored.name));
            tensors.insert(name, Foreign { shape: stored.shape, values });
        }
    }
    Checkpoint { path: "net.pt".into(), tensors, ..Checkpoint::default() }
}

fn plain(name: &str) -> String {
    name.to_string()
}

/// Two convolutions of one shape with a norm each, and a fully connected layer.
fn net() -> Net {
    let mut b = Builder::new([2, 4, 4], 1, &Device::flex());
    let mut x = b.input();
    for name in ["conv1", "conv2"] {
        x = b.conv(name, x, Conv::new(2, 3).same().no_bias());
        x = b.batch_norm(&format!("{name}.norm"), x);
    }
    let x = b.global_avg_pool("pool", x);
    b.linear("fc", x, 3);
    b.finish().unwrap()
}

fn values(net: &Net) -> Vec<Vec<f32>> {
    net.nodes.iter().flat_map(Node::parameters).map(|stored| stored.values()).collect()
}

fn refusal(checkpoint: &Checkpoint, table: Option<&Table>) -> String {
    let error = assign(net(), checkpoint, table).unwrap_err().to_string();
    assert!(error.starts_with("net.pt: "), "{error}");
    error
}

fn tensor(values: &[f32]) -> Foreign {
    Foreign { shape: vec![values.len()], values: values.to_vec() }
}

#[test]
fn every_tensor_of_the_model_is_used_or_named() {
    let mut checkpoint = file(&net(), |name| format!("state_dict.{name}"));
    checkpoint.roots = ["state_dict", "optimizer", "extra"].map(str::to_string).into();
    let whole = values(&assign(net(), &checkpoint, None).unwrap());
    for aside in ["state_dict.conv1.norm.num_batches_tracked", "optimizer.state.3.exp_avg", "best", "extra.temperature"] {
        checkpoint.tensors.insert(aside.into(), tensor(&[1.0, 2.0]));
    }
    assert_eq!(values(&assign(net(), &checkpoint, None).unwrap()), whole);
    for extra in ["state_dict.conv1.scale", "state_dict.temperature", "state_dict.head.bias"] {
        let mut more = checkpoint.clone();
        more.tensors.insert(extra.into(), tensor(&[1.0, 2.0]));
        let error = refusal(&more, None);
        assert!(error.contains(&format!("no place for '{extra}', ")), "{error}");
        let table =
            ["conv1", "conv2", "conv1.norm", "conv2.norm", "fc"].map(|name| (name.to_string(), format!("state_dict.{name}")));
        assert!(refusal(&more, Some(&table.into())).contains(extra));
    }
    checkpoint.unread.insert("state_dict.conv1.observer".into(), "an object of the class torch.ao.Observer".into());
    assert!(refusal(&checkpoint, None).contains("'state_dict.conv1.observer' (an object of the class torch.ao.Observer)"));
}

#[test]
fn a_child_of_a_pickled_module_that_has_no_place_is_named() {
    let mut checkpoint = file(&net(), plain);
    checkpoint.roots = ["conv1", "conv2", "fc", "prelu", "optimizer"].map(str::to_string).into();
    for aside in ["conv1.norm.num_batches_tracked", "optimizer.state.0.exp_avg"] {
        checkpoint.tensors.insert(aside.into(), tensor(&[1.0]));
    }
    assert!(assign(net(), &checkpoint, None).is_ok());
    for extra in ["prelu.weight", "scale"] {
        let mut more = checkpoint.clone();
        more.tensors.insert(extra.into(), tensor(&[0.25]));
        assert!(refusal(&more, None).contains(&format!("no place for '{extra}', ")));
    }
}

#[test]
fn a_weight_of_a_type_that_is_not_read_is_named() {
    let mut checkpoint = file(&net(), plain);
    checkpoint.tensors.remove("fc.weight");
    checkpoint.unread.insert("fc.weight".into(), "a tensor of the type F8_E4M3".into());
    let error = refusal(&checkpoint, None);
    assert!(error.ends_with("; not read: 'fc.weight' (a tensor of the type F8_E4M3)"), "{error}");
    let table = ["conv1", "conv2", "conv1.norm", "conv2.norm", "fc"].map(|name| (name.to_string(), name.to_string()));
    let error = refusal(&checkpoint, Some(&table.into()));
    assert!(error.contains("layer 'fc' needs 'fc.weight', which is a tensor of the type F8_E4M3 that cannot be read"), "{error}");
}

#[test]
fn the_bias_before_a_norm_moves_into_its_mean() {
    // The same function with the bias where the file has it.
    let mut checkpoint = file(&net(), plain);
    checkpoint.tensors.insert("conv2.bias".into(), tensor(&[0.75, -0.5]));
    let device = Device::flex();
    let without = net();
    let index = without.index("conv2").unwrap();
    let mut nodes = assign(net(), &file(&net(), plain), None).unwrap().nodes;
    let mut parameters = nodes[index].parameters();
    parameters.push(Stored { name: "bias", shape: vec![2], base: vec![0.75, -0.5], coding: Coding::default() });
    let conv = nodes.remove(index);
    nodes.insert(index, conv.with(parameters, &device).unwrap());
    let expected = Net { nodes };
    let x = || Tensor::<4>::ones([1, 2, 4, 4], &device) * 0.3;
    let outputs = |net: &Net| net.forward(x()).into_data().convert::<f32>().try_into_vec::<f32>().unwrap();
    let moved = outputs(&assign(net(), &checkpoint, None).unwrap());
    let dropped = outputs(&assign(net(), &file(&net(), plain), None).unwrap());
    let off = |found: &[f32]| outputs(&expected).iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off(&moved) < 1e-5 && off(&dropped) > 1e-2, "{} and {}", off(&moved), off(&dropped));

    // Of another length it is no bias of the layer, and behind a pooling it would not be the same function.
    checkpoint.tensors.insert("conv2.bias".into(), tensor(&[0.75]));
    assert!(refusal(&checkpoint, None).contains("'conv2.bias'"));
    let arch = Arch::named("lenet5-norm").unwrap();
    let pooled = || arch.build(&arch.wanted(), &device).unwrap();
    let mut checkpoint = file(&pooled(), plain);
    checkpoint.tensors.insert("conv1.bias".into(), tensor(&[0.5; 20]));
    let error = assign(pooled(), &checkpoint, None).unwrap_err().to_string();
    assert!(error.contains("no place for 'conv1.bias'"), "{error}");
}

#[test]
fn blocks_beyond_the_ninth_stay_in_their_place() {
    let arch = Arch::named("resnet110").unwrap();
    let build = || arch.build(&Wanted { width: 0.125, ..arch.wanted() }, &Device::flex()).unwrap();
    // layer1.10.conv2.norm becomes stage1_unit11_bn2.
    let rename = |name: &str| {
        let (name, kind) = name.strip_suffix(".norm").map_or((name, "conv"), |name| (name, "bn"));
        match name.strip_prefix("layer") {
            Some(rest) => {
                let mut parts = rest.split('.');
                let [stage, block, conv] = std::array::from_fn(|_| parts.next().unwrap());
                format!("stage{stage}_unit{}_{}", block.parse::<usize>().unwrap() + 1, conv.replace("conv", kind))
            }
            None => name.replace("conv", kind),
        }
    };
    let (checkpoint, plain) = (file(&build(), rename), file(&build(), plain));
    assert!(checkpoint.tensors.contains_key("stage1_unit11_bn2.running_mean"));
    let expected = values(&assign(build(), &plain, None).unwrap());
    assert_eq!(values(&assign(build(), &checkpoint, None).unwrap()), expected);
}

/// A layer of torchvision's module by the name that it has in the zoo.
fn torchvision(arch: &str, name: &str) -> String {
    let (layer, norm) = name.strip_suffix(".norm").map_or((name, false), |layer| (layer, true));
    let (first, part) = layer.split_once('.').unwrap_or((layer, ""));
    let (kind, number) = first.split_at(first.find(|c: char| c.is_ascii_digit()).unwrap_or(first.len()));
    let number: usize = number.parse().unwrap_or(0);
    let nth = usize::from(norm);
    match (arch, kind) {
        ("alexnet-one-tower", "conv") => format!("features.{}", [0, 3, 6, 8, 10][number - 1]),
        ("alexnet-one-tower", _) => format!("classifier.{}", [1, 4, 6][number - 6]),
        ("googlenet", "fc") => "fc".into(),
        ("googlenet", _) => {
            let layer = layer.replace(".reduce", ".0").replace("branch4.conv", "branch4.1").replace(".conv", ".1");
            format!("{layer}.{}", if norm { "bn" } else { "conv" })
        }
        ("mobilenet-v2", "conv") => format!("features.{}.{nth}", if number == 1 { 0 } else { 18 }),
        ("mobilenet-v2", "block") => {
            let first = number == 1;
            let part = match part {
                "expand" => format!("0.{nth}"),
                "depthwise" => format!("{}.{nth}", if first { 0 } else { 1 }),
                _ => format!("{}", nth + if first { 1 } else { 2 }),
            };
            format!("features.{number}.conv.{part}")
        }
        ("squeezenet1.1", "conv") if number == 1 => "features.0".into(),
        ("squeezenet1.1", "fire") => format!("features.{}.{part}", [3, 4, 6, 7, 9, 10, 11, 12][number - 2]),
        _ => "classifier.1".into(),
    }
}

#[test]
fn checkpoints_of_torchvision_need_no_table() {
    for name in ["alexnet-one-tower", "googlenet", "mobilenet-v2", "squeezenet1.1"] {
        let arch = Arch::named(name).unwrap();
        let build = || arch.build(&Wanted { width: 0.125, ..arch.wanted() }, &Device::flex()).unwrap();
        let (checkpoint, plain) = (file(&build(), |layer| torchvision(name, layer)), file(&build(), plain));
        assert_eq!(checkpoint.tensors.len(), plain.tensors.len(), "{name}");
        let assigned = |checkpoint: &Checkpoint| {
            values(&assign(build(), checkpoint, None).unwrap_or_else(|error| panic!("{name}: {error}")))
        };
        assert_eq!(assigned(&checkpoint), assigned(&plain), "{name}");
    }
}

#[test]
fn modules_that_could_change_places_are_refused_with_the_mapping() {
    let rename = |name: &str| name.replace("conv1", "second").replace("conv2", "first");
    let checkpoint = file(&net(), rename);
    let error = refusal(&checkpoint, None);
    assert!(error.contains("'first' and 'second' have one shape, [2, 2, 3, 3], and their names tell no order"), "{error}");
    assert!(
        error.contains("--table FILE") && error.contains("\"conv1\" = \"first\"\n\"conv1.norm\" = \"first.norm\""),
        "{error}"
    );
    // The table from the text, put right.
    let table: Table = error
        .lines()
        .filter_map(|line| {
            let (layer, module) = line.split_once(" = ")?;
            let swap = |name: &str| match name.trim_matches('"').split_once("first") {
                Some((_, rest)) => format!("second{rest}"),
                None => name.trim_matches('"').replace("second", "first"),
            };
            Some((layer.trim_matches('"').to_string(), swap(module)))
        })
        .collect();
    assert_eq!(table.len(), 5);
    let expected = values(&assign(net(), &file(&net(), plain), None).unwrap());
    assert_eq!(values(&assign(net(), &checkpoint, Some(&table)).unwrap()), expected);

    let mut twice = table.clone();
    twice.insert("conv2".into(), table["conv1"].clone());
    assert!(refusal(&checkpoint, Some(&twice)).contains("gives 'second' to two layers, 'conv1' and 'conv2'"));
}

#[test]
fn an_order_against_the_names_is_refused() {
    // By shape alone `conv2` comes first.
    let arch = Arch::named("lenet5").unwrap();
    let build = || arch.build(&arch.wanted(), &Device::flex()).unwrap();
    let swap = |name: &str| match name {
        "conv1" => "c2".to_string(),
        "conv2" => "c1".to_string(),
        other => other.to_string(),
    };
    let error = assign(build(), &file(&build(), swap), None).unwrap_err().to_string();
    assert!(
        error.contains("order and names disagree: 'c2' would come before 'c1'") && error.contains("\"conv1\" = \"c2\""),
        "{error}"
    );
    // The one is called as the other layer is.
    let shifted = |name: &str| name.replace("conv2", "conv3").replace("conv1", "conv2");
    let error = refusal(&file(&net(), |name| format!("module.{}", shifted(name))), None);
    assert!(error.contains("'module.conv2' would go by its place to 'conv1', by its name to 'conv2'"), "{error}");
}

#[test]
fn a_network_that_is_there_twice_is_chosen_by_prefix() {
    let mut both = file(&net(), |name| format!("state_dict.module.{name}"));
    let mut ema = file(&net(), |name| format!("state_dict_ema.module.{name}"));
    ema.tensors.values_mut().for_each(|tensor| tensor.values.iter_mut().for_each(|value| *value += 1.0));
    both.tensors.extend(ema.tensors);
    both.roots = ["state_dict", "state_dict_ema"].map(str::to_string).into();
    let error = refusal(&both, None);
    assert!(
        error.contains("more than once")
            && error.contains("--prefix 'state_dict.module'")
            && error.contains("'state_dict_ema.module'"),
        "{error}"
    );
    let at = |prefix: &str| values(&assign(net(), &both.clone().under(prefix).unwrap(), None).unwrap());
    assert_eq!(at("state_dict"), values(&assign(net(), &file(&net(), plain), None).unwrap()));
    assert_ne!(at("state_dict"), at("state_dict_ema.module"));

    // The same where no name of ours helps.
    let numbers = |name: &str| name.replace("conv", "features.").replace(".norm", ".bn");
    let mut both = file(&net(), |name| format!("model.{}", numbers(name)));
    both.tensors.extend(file(&net(), |name| format!("teacher.{}", numbers(name))).tensors);
    let error = refusal(&both, None);
    assert!(error.contains("holds 4 module(s)") && error.contains("below each of 'model', 'teacher'"), "{error}");
    assert!(assign(net(), &both.under("teacher").unwrap(), None).is_ok());
}

#[test]
fn the_masks_of_a_file_become_masks() {
    let mut checkpoint = file(&net(), plain);
    let mut masks = BTreeMap::new();
    for name in ["conv2", "fc"] {
        let weight = checkpoint.tensors.remove(&format!("{name}.weight")).unwrap();
        let mask = (0..weight.values.len()).map(|i| f32::from(i % 3 != 1)).collect();
        masks.insert(name, weight.values.iter().zip(&mask).map(|(w, m): (&f32, &f32)| w * m).collect::<Vec<f32>>());
        let mask = Foreign { shape: weight.shape.clone(), values: mask };
        checkpoint.tensors.extend([(format!("{name}.weight_orig"), weight), (format!("{name}.weight_mask"), mask)]);
    }
    checkpoint.masks = crate::masks::apply(&mut checkpoint.tensors, &mut BTreeMap::new(), "").masks;
    let net = assign(net(), &checkpoint, None).unwrap();
    for (name, expected) in masks {
        let weight = net.nodes[net.index(name).unwrap()].weight().unwrap();
        assert_eq!(weight.values(), expected);
        let kept: Vec<bool> = (0..expected.len()).map(|i| i % 3 != 1).collect();
        assert_eq!(weight.coding.mask, Some(kept), "{name}");
    }
    assert_eq!(net.nodes[net.index("conv1").unwrap()].weight().unwrap().coding, Coding::default());
    // What is called a mask and is none.
    checkpoint.tensors.insert("conv1.weight_mask".into(), tensor(&[0.25, 0.5]));
    let error = refusal(&checkpoint, None);
    assert!(error.contains("'conv1.weight_mask'") && error.contains("a mask is one of zeros and ones"), "{error}");
}

#[test]
fn a_mask_that_may_be_of_several_weights_is_refused_by_name() {
    let mut checkpoint = file(&net(), |name| format!("state_dict.{name}"));
    checkpoint.roots = ["state_dict", "masks"].map(str::to_string).into();
    checkpoint.tensors.insert("masks.norm.weight".into(), tensor(&[1.0, 0.0]));
    let found = crate::masks::apply(&mut checkpoint.tensors, &mut BTreeMap::new(), "");
    (checkpoint.masks, checkpoint.unclear) = (found.masks, found.unclear);
    let error = refusal(&checkpoint, None);
    let of = "'state_dict.conv1.norm.weight', 'state_dict.conv2.norm.weight'";
    assert!(error.contains(&format!("no place for 'masks.norm.weight' (a mask that may be of {of})")), "{error}");
    // A part of the file that the mask is not in cannot do without it either.
    let error = refusal(&checkpoint.under("state_dict").unwrap(), None);
    assert!(error.contains("'masks.norm.weight' (a mask that may be of 'conv1.norm.weight', 'conv2.norm.weight')"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_named_and_counted() {
    let mut checkpoint = file(&net(), |name| format!("module.{name}"));
    checkpoint.tensors.get_mut("module.conv2.weight").unwrap().values[3..5].fill(f32::NAN);
    checkpoint.tensors.get_mut("module.conv1.norm.running_var").unwrap().values[1] = f32::INFINITY;
    let error = refusal(&checkpoint, None);
    assert!(error.contains("2 of 36 value(s) of 'module.conv2.weight' are not finite"), "{error}");
    assert!(error.contains("1 of 2 value(s) of 'module.conv1.norm.running_var' are not finite"), "{error}");
}
