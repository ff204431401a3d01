//! Whatever is wrong, one clear error says where and what to do.

use std::collections::HashMap;

use briquette_runtime::{Coded, Layer, Model, Permission};
use safetensors::tensor::{Dtype, TensorView};

use crate::program::{Bench, SMALL};

#[test]
fn faults_of_a_config_are_bad_usage_and_name_what_would_be_right() {
    let cases = [
        (SMALL.replace("rounds", "round"), "pass 1 (magnitude): unknown field `round`"),
        (SMALL.replace("\"magnitude\"", "\"magnitud\""), "unknown method 'magnitud'; did you mean 'magnitude'?"),
        (SMALL.replace("\"lenet300\"", "\"lenet30\""), "unknown model 'lenet30'; did you mean one of 'lenet300'"),
        (SMALL.replace("rest = 0.2", "fc_1 = 0.2"), "pass 1 (magnitude): unknown layer 'fc_1'; did you mean one of 'fc1'"),
        (SMALL.replace("rest = 0.2", "rest = 1.2"), "a ratio lies in [0, 1], not 1.2"),
        (SMALL.replace("rest = 0.2", "fc2 = 0"), "node 'fc2'"),
        (
            SMALL.replace("fc1 = 0.1", "fc1 = 1"),
            "pass 2 (filter-l1): node 'fc1': would keep none of its 300 channels; remove less",
        ),
        (SMALL.replace("bits = 4", "bits = 20"), "bits lie in 1..=16, not 20"),
        (SMALL.replace("seed = 5", "seed = 5\nsead = 6"), "unknown field `sead`"),
        (SMALL.replace("seed = 5", "device = \"gpu\""), "unknown device 'gpu'"),
        (
            SMALL.replace("seed = 5", "device = \"wgpu:one\""),
            "device 'wgpu:one': after the colon stands a number, as in 'wgpu:0'",
        ),
        (SMALL.replace("seed = 5", "device = \"flex:1\""), "device 'flex:1': this machine has one device of 'flex', 'flex:0'"),
        (SMALL.replace("model =", "model"), "small.toml"),
    ];
    for (text, expected) in cases {
        let bench = Bench::with(&text);
        let (error, code) = bench.refusal(&["plan", "small.toml"]);
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        assert_eq!((code, error.lines().filter(|line| line.starts_with("error: ")).count()), (2, 1), "{error}");
    }
}

#[test]
fn numbers_of_threads_that_no_machine_runs_are_bad_usage() {
    let bench = Bench::with(SMALL);
    for threads in ["0", "-1", "60000", "two"] {
        let (error, code) = bench.refusal(&["run", "small.toml", &format!("--threads={threads}")]);
        let expected = format!("invalid value '{threads}' for '--threads <N>'");
        assert!(error.contains(&expected) && code == 2, "{error}");
    }
    for arguments in [&["run", "small.toml", "--threads", "1,2"][..], &["--threads", "1,2", "run", "small.toml"]] {
        let (error, code) = bench.refusal(arguments);
        assert!(error.contains("`--threads` takes one number; only `bench` measures several") && code == 2, "{error}");
    }
    assert!(!bench.path("runs").exists());
}

#[test]
fn files_and_data_that_are_not_there_are_named() {
    let bench = Bench::with(&SMALL.replace("glyphs", "mnist"));
    let (error, code) = bench.refusal(&["run", "small.toml", "--data-dir", "."]);
    assert!(error.contains("train-images-idx3-ubyte") && error.contains("BRIQUETTE_DATA") && code == 1, "{error}");
    let (error, code) = bench.refusal(&["run", "smal.toml"]);
    assert!(error.contains("cannot read the config smal.toml") && code == 2, "{error}");
    let (error, _) = bench.refusal(&["eval", "model.brq", "--data", "glyphs"]);
    assert!(error.contains("cannot read model.brq"), "{error}");
    std::fs::write(bench.path("model.brq"), b"not a container").unwrap();
    let (error, code) = bench.refusal(&["inspect", "model.brq"]);
    assert!(error.contains("model.brq is not a whole container") && code == 1, "{error}");
    let (error, _) = bench.refusal(&["run", "small.toml", "--set", "data=mnisst"]);
    assert!(error.contains("unknown data set 'mnisst'; did you mean 'mnist'"), "{error}");
}

#[test]
fn a_trial_run_may_take_other_data_and_says_so() {
    let text = SMALL.replace("name = \"glyphs\"", "name = \"mnist\", smoke = \"glyphs\"");
    let bench = Bench::with(&text);
    let (error, _) = bench.refusal(&["run", "small.toml", "--data-dir", "."]);
    assert!(error.contains("data set 'mnist'"), "{error}");
    let output = bench.call(&["run", "small.toml", "--data-dir", ".", "--smoke", "--out", "trial"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("mnist is not at hand; this trial run takes glyphs"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(bench.path("trial/report.json")).unwrap()).unwrap();
    assert_eq!((&report["data"]["name"], &report["smoke"]), (&"glyphs".into(), &true.into()));
}

#[test]
fn data_of_the_wrong_length_or_content_is_refused() {
    let bench = Bench::with(&SMALL.replace("glyphs", "mnist"));
    let name = "train-images-idx3-ubyte.gz";
    for file in [name, "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"] {
        std::fs::write(bench.path(file), b"too short").unwrap();
    }
    let (error, code) = bench.refusal(&["run", "small.toml", "--data-dir", "."]);
    assert!(error.contains("expected") && error.contains("bytes, found 9") && code == 1, "{error}");
    let length: u64 = {
        let digits = error.split("expected ").nth(1).unwrap();
        digits.split(' ').next().unwrap().parse().unwrap()
    };
    let refused = error.split(": expected").next().unwrap().rsplit('/').next().unwrap().to_string();
    std::fs::write(bench.path(&refused), vec![0; usize::try_from(length).unwrap()]).unwrap();
    let (error, _) = bench.refusal(&["run", "small.toml", "--data-dir", "."]);
    assert!(error.contains("expected SHA-256") || error.contains("bytes, found 9"), "{error}");
}

/// A checkpoint of LeNet-300-100 as another program would write it.
fn safetensors_of_lenet300(classes: usize) -> Vec<u8> {
    let tensors: Vec<(String, Vec<usize>)> = [("a", 784, 300), ("b", 300, 100), ("c", 100, classes)]
        .into_iter()
        .flat_map(|(name, fan_in, out)| [(format!("{name}.weight"), vec![out, fan_in]), (format!("{name}.bias"), vec![out])])
        .collect();
    let zeros = vec![0; 4 * 784 * 300];
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = 4 * shape.iter().product::<usize>();
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), &zeros[..bytes]).unwrap())
    });
    safetensors::serialize(views.collect::<HashMap<_, _>>(), None).unwrap()
}

/// LeNet-300-100 in a container, one of its weights not a number, as another writer might leave it.
fn unsound(bench: &Bench) {
    std::fs::write(bench.path("net.safetensors"), safetensors_of_lenet300(10)).unwrap();
    assert!(bench.call(&["import", "net.safetensors", "--arch", "lenet300", "--out", "net.brq"]).status.success());
    let mut model = Model::from_bytes(&std::fs::read(bench.path("net.brq")).unwrap()).unwrap();
    let node = model.nodes.iter_mut().find(|node| node.name == "fc2").unwrap();
    let weight = &mut node.tensors.iter_mut().find(|(name, _)| name == "weight").unwrap().1;
    let mut values = weight.decode();
    values[7] = f32::NAN;
    values[9] = f32::NEG_INFINITY;
    *weight = Coded::encode(weight.shape(), &values, None, &Permission::default()).unwrap();
    std::fs::write(bench.path("net.brq"), model.to_bytes().unwrap()).unwrap();
}

#[test]
fn a_container_that_is_not_finite_is_never_sound() {
    let bench = Bench::with(SMALL);
    unsound(&bench);
    let said = "2 of 30000 value(s) of 'fc2.weight' are not finite";
    let verified = bench.call(&["verify", "net.brq"]);
    assert_eq!((verified.status.code(), String::from_utf8(verified.stdout).unwrap().trim()), (Some(1), said));
    let inspected = bench.call(&["inspect", "net.brq"]);
    assert!(inspected.status.success() && String::from_utf8(inspected.stdout).unwrap().contains(&format!("NOT SOUND: {said}")));
    let (error, code) = bench.refusal(&["eval", "net.brq", "--data", "glyphs"]);
    assert!(error.contains("net.brq") && error.contains(said) && code == 1, "{error}");
    let load = "model = \"lenet300\"\ndata = { name = \"glyphs\", train = 120, test = 60 }\n[[pass]]\nmethod = \"load\"\nfile = \"net.brq\"\n";
    std::fs::write(bench.path("load.toml"), load).unwrap();
    let (error, _) = bench.refusal(&["run", "load.toml"]);
    assert!(error.contains("(load)") && error.contains("net.brq") && error.contains(said), "{error}");
    std::fs::write(bench.path("start.toml"), SMALL.replace("\"lenet300\"", "{ file = \"net.brq\" }")).unwrap();
    let (error, _) = bench.refusal(&["run", "start.toml"]);
    assert!(error.contains("net.brq") && error.contains(said), "{error}");
}

#[test]
fn pointers_of_git_lfs_and_onnx_files_are_named_as_such() {
    let bench = Bench::with(&SMALL.replace("glyphs", "mnist"));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    for name in ["net.brq", "net.pt", "net.safetensors"] {
        std::fs::write(bench.path(name), pointer).unwrap();
        let (error, code) = bench.refusal(&["inspect", name]);
        assert!(
            error.contains(name) && error.contains("a git-LFS pointer") && error.contains("git lfs pull") && code == 1,
            "{error}"
        );
    }
    let (error, _) = bench.refusal(&["import", "net.pt", "--arch", "lenet5", "--out", "out.brq"]);
    assert!(error.contains("net.pt: a git-LFS pointer"), "{error}");
    for file in
        ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    {
        std::fs::write(bench.path(file), pointer).unwrap();
    }
    let (error, code) = bench.refusal(&["run", "small.toml", "--data-dir", "."]);
    assert!(error.contains("ubyte.gz: a git-LFS pointer") && code == 1, "{error}");
    std::fs::write(bench.path("net.onnx"), b"\x08\x07\x12\x07pytorch").unwrap();
    for verb in [&["inspect", "net.onnx"][..], &["import", "net.onnx", "--arch", "lenet5", "--out", "out.brq"]] {
        let (error, code) = bench.refusal(verb);
        assert!(error.contains("net.onnx: ONNX files cannot be read yet") && code == 1, "{error}");
    }
}

#[test]
fn a_scalar_is_printed_as_one() {
    let bench = Bench::with(SMALL);
    let one = 2.5_f32.to_le_bytes();
    let views = [("temperature", TensorView::new(Dtype::F32, vec![], &one).unwrap())];
    std::fs::write(bench.path("net.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let text = String::from_utf8(bench.call(&["inspect", "net.safetensors"]).stdout).unwrap();
    assert!(text.contains("scalar") && !text.contains("[]"), "{text}");
}

#[test]
fn a_container_is_inspected_as_one_whatever_it_is_called() {
    let bench = Bench::with(SMALL);
    std::fs::write(bench.path("net.safetensors"), safetensors_of_lenet300(10)).unwrap();
    assert!(bench.call(&["import", "net.safetensors", "--arch", "lenet300", "--out", "net.bin"]).status.success());
    let text = String::from_utf8(bench.call(&["inspect", "net.bin"]).stdout).unwrap();
    assert!(text.contains("266610 parameters"), "{text}");
}

#[test]
fn a_benchmark_refuses_files_and_numbers_that_it_cannot_measure() {
    let bench = Bench::with(SMALL);
    std::fs::write(bench.path("net.safetensors"), safetensors_of_lenet300(10)).unwrap();
    assert!(bench.call(&["import", "net.safetensors", "--arch", "lenet300", "--out", "net.brq"]).status.success());
    std::fs::write(bench.path("wide.safetensors"), safetensors_of_lenet300(2000)).unwrap();
    let wide = ["import", "wide.safetensors", "--arch", "lenet300", "--classes", "2000", "--out", "wide.brq"];
    assert!(bench.call(&wide).status.success());
    let mut other = Model::from_bytes(&std::fs::read(bench.path("net.brq")).unwrap()).unwrap();
    let Layer::Input(input) = &mut other.nodes[0].layer else { panic!("the first node is the input") };
    input.shape = vec![1, 14, 56];
    std::fs::write(bench.path("other.brq"), other.to_bytes().unwrap()).unwrap();
    for (arguments, expected, expected_code) in [
        (&["training"][..], "cannot read training", 1),
        (&["net.brq", "--against", "before.brq"], "cannot read before.brq", 1),
        (&["net.safetensors"], "net.safetensors is not a whole container", 1),
        (&["net.brq", "--batch", "1,4000000"], "net.brq: a batch of 4000000 images takes more than 1 GB with its results", 1),
        // The images alone would fit.
        (&["wide.brq", "--batch", "300000"], "`--batch 96420` is the largest", 1),
        (&["net.brq", "--against", "wide.brq", "--batch", "300000"], "wide.brq: a batch of 300000 images", 1),
        (&["net.brq", "--against", "other.brq"], "other.brq takes images of [1, 14, 56] and net.brq of [1, 28, 28]", 1),
        (&["net.brq", "--batch", "1,0"], "invalid value '0' for '--batch <N,...>'", 2),
        (&["net.brq", "--batch", "one"], "invalid value 'one' for '--batch <N,...>'", 2),
        (&["net.brq", "--threads", "2,0"], "invalid value '0' for '--threads <N>'", 2),
        (&["net.brq", "--threads", "1,60000"], "invalid value '60000' for '--threads <N>'", 2),
        (&["net.brq", "--net", "lenet5"], "unexpected argument '--net'", 2),
    ] {
        let (error, code) = bench.refusal(&[&["bench"], arguments].concat());
        assert!(error.contains(expected) && code == expected_code, "{arguments:?}: {code}, {error}");
    }
}

#[test]
fn a_benchmark_prints_one_document_with_a_row_for_each_batch_and_number_of_threads() {
    let bench = Bench::with(SMALL);
    std::fs::write(bench.path("net.safetensors"), safetensors_of_lenet300(10)).unwrap();
    assert!(bench.call(&["import", "net.safetensors", "--arch", "lenet300", "--out", "net.brq"]).status.success());
    let rows = |arguments: &[&str]| {
        let output = bench.call(&[&["--json", "bench", "net.brq"], arguments].concat());
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        document["rows"].as_array().unwrap().clone()
    };
    let beside = rows(&["--against", "net.brq", "--batch", "1,3", "--threads", "1,2", "--layers"]);
    let at: Vec<[u64; 2]> = beside.iter().map(|row| ["batch", "threads"].map(|key| row[key].as_u64().unwrap())).collect();
    assert_eq!(at, [[1, 1], [3, 1], [1, 2], [3, 2]]);
    for row in &beside {
        assert_eq!((row["layers"].as_array().unwrap().len(), row["speedup"].as_array().unwrap().len()), (3, 3), "{row}");
        assert_eq!(row["peak_bytes"], row["against"]["peak_bytes"]);
    }
    // One flag with one meaning, wherever it stands.
    let before: serde_json::Value =
        serde_json::from_slice(&bench.call(&["--json", "--threads", "2,1", "bench", "net.brq", "--batch", "1"]).stdout).unwrap();
    assert_eq!(before["rows"].as_array().unwrap().iter().map(|row| row["threads"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 1]);
    let alone = rows(&["--batch", "2", "--threads", "1"]);
    assert!(alone.len() == 1 && alone[0]["against"].is_null() && alone[0]["median_ms"].as_f64().unwrap() > 0.0, "{alone:?}");
}

#[test]
fn masks_of_no_tensor_and_variances_below_zero_are_seen_by_inspect() {
    let bench = Bench::with(SMALL);
    let floats: Vec<u8> = [1.0_f32, -0.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = |kind, bytes| TensorView::new(kind, vec![2], bytes).unwrap();
    let views = [
        ("bn.running_var", view(Dtype::F32, &floats)),
        ("bn.running_mean", view(Dtype::F32, &floats)),
        ("fc.weight_mask", view(Dtype::U8, &[1, 0])),
        ("fc.scale", view(Dtype::F8_E4M3, &[1, 0])),
    ];
    std::fs::write(bench.path("net.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let text = String::from_utf8(bench.call(&["inspect", "net.safetensors"]).stdout).unwrap();
    assert!(text.contains("NOT SOUND: 1 of 2 value(s) of 'bn.running_var' are not finite"), "{text}");
    assert!(!text.contains("value(s) of 'bn.running_mean'"), "{text}");
    let line = |name: &str, said: &str| text.lines().any(|line| line.starts_with(name) && line.ends_with(said));
    assert!(line("fc.weight_mask", "[2]  a mask of no tensor"), "{text}");
    assert!(line("fc.scale", "not read, a tensor of the type F8_E4M3"), "{text}");
}

#[test]
fn a_table_and_a_prefix_lead_to_the_weights() {
    let bench = Bench::with(SMALL);
    let (zeros, ones) =
        (vec![0; 4 * 784 * 300], [1.0_f32; 784 * 300].iter().flat_map(|one| one.to_le_bytes()).collect::<Vec<u8>>());
    let mut tensors = Vec::new();
    for (group, values) in [("model", &zeros), ("ema", &ones)] {
        for (name, shape) in [("in", vec![300, 784]), ("mid", vec![100, 300]), ("out", vec![10, 100])] {
            for (part, shape) in [("weight", shape.clone()), ("bias", shape[..1].to_vec())] {
                let bytes = 4 * shape.iter().product::<usize>();
                tensors.push((format!("{group}.{name}.{part}"), TensorView::new(Dtype::F32, shape, &values[..bytes]).unwrap()));
            }
        }
    }
    std::fs::write(bench.path("both.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    let import = ["import", "both.safetensors", "--arch", "lenet300", "--out", "net.brq"];
    let (error, _) = bench.refusal(&import);
    assert!(error.contains("holds 6 module(s)") && error.contains("--prefix 'ema'"), "{error}");
    let with = |more: &[&str]| bench.call(&[&import[..], more].concat());
    assert!(with(&["--prefix", "ema"]).status.success());
    let weight = |node: &str| {
        let model = Model::from_bytes(&std::fs::read(bench.path("net.brq")).unwrap()).unwrap();
        let node = model.nodes.into_iter().find(|own| own.name == node).unwrap();
        node.tensor("weight").unwrap().decode()
    };
    assert!(weight("fc1").iter().all(|w| *w == 1.0));
    std::fs::write(bench.path("table.toml"), "fc1 = \"in\"\nfc2 = \"mid\"\nfc3 = \"out\"\n").unwrap();
    assert!(with(&["--prefix", "model", "--table", "table.toml"]).status.success());
    assert!(weight("fc1").iter().all(|w| *w == 0.0));
    std::fs::write(bench.path("table.toml"), "fc1 = \"in\"\nfc2 = \"mid\"\nfc4 = \"out\"\n").unwrap();
    let (error, _) = bench.refusal(&[&import[..], &["--prefix", "model", "--table", "table.toml"]].concat());
    assert!(error.contains("unknown layer 'fc4'; did you mean"), "{error}");
    std::fs::write(bench.path("table.toml"), "layer1.0 = \"in\"\n").unwrap();
    let (error, _) = bench.refusal(&[&import[..], &["--table", "table.toml"]].concat());
    assert!(error.contains("table.toml: a table has lines like") && error.contains("in quotes"), "{error}");
    let (error, _) = bench.refusal(&["inspect", "both.safetensors", "--prefix", "mode"]);
    assert!(error.contains("no tensor's name begins with 'mode.'"), "{error}");
    let inspected = bench.call(&["inspect", "both.safetensors", "--prefix", "model"]).stdout;
    assert!(String::from_utf8(inspected).unwrap().contains("both.safetensors: 6 tensors, 266610 values"));
    let (error, _) = bench.refusal(&[&import[..], &["--prefix", "ema", "--mean", "0.1", "--std", "0"]].concat());
    assert!(error.contains("a deviation must be positive, not 0"), "{error}");
    // In a config the model's table says the same.
    let model = "{ arch = \"lenet300\", file = \"both.safetensors\", prefix = \"ema\" }";
    std::fs::write(bench.path("ema.toml"), SMALL.replace("\"lenet300\"", model)).unwrap();
    let planned = bench.call(&["plan", "ema.toml"]);
    assert!(planned.status.success(), "{}", String::from_utf8_lossy(&planned.stderr));
}

#[test]
fn a_network_for_other_images_or_classes_is_refused_by_every_verb() {
    let bench = Bench::with(SMALL);
    std::fs::write(bench.path("net.safetensors"), safetensors_of_lenet300(3)).unwrap();
    let import = ["import", "net.safetensors", "--arch", "lenet300", "--classes", "3", "--out", "net.brq"];
    assert!(bench.call(&import).status.success());
    let container = ["--set", "model=net.brq"];
    for verb in [&["eval", "net.brq", "--data", "glyphs"][..], &["plan", "small.toml"], &["run", "small.toml"]] {
        let arguments = if verb[0] == "eval" { verb.to_vec() } else { [verb, &container].concat() };
        let (error, _) = bench.refusal(&arguments);
        let expected = ": it tells 3 classes apart, the data have 10; name a pair that fits";
        assert!(error.contains("net.brq: the network does not fit the data 'glyphs") && error.contains(expected), "{error}");
    }
    assert!(!bench.path("runs").exists());
    let loads = bench.path("loads.toml");
    std::fs::write(&loads, SMALL.replace("method = \"encode\"\ncoder = \"entropy\"", "method = \"load\"\nfile = \"net.brq\""))
        .unwrap();
    let (error, _) = bench.refusal(&["run", "loads.toml", "--smoke"]);
    assert!(error.contains("(load): net.brq: the network does not fit the data 'glyphs train'"), "{error}");
    let (error, _) = bench.refusal(&["plan", "loads.toml"]);
    assert!(error.contains("(load): net.brq: the network does not fit the data 'glyphs'"), "{error}");
    // The manifest knows the images without the files.
    let (error, code) = bench.refusal(&["plan", "small.toml", "--set", "data=cifar10"]);
    let expected = "model 'lenet300': the network does not fit the data 'cifar10': it takes images of shape [1, 28, 28], the data have [3, 32, 32]";
    assert!(error.contains(expected) && code == 2, "{error}");
}

#[test]
fn an_empty_folder_that_exists_is_a_place_for_a_run() {
    let text = "# nothing is trained\nmodel = \"lenet300\"\ndata = { name = \"glyphs\", train = 60, test = 20 }\n";
    let bench = Bench::with(text);
    std::fs::create_dir(bench.path("mine")).unwrap();
    let run = ["run", "small.toml", "--out", "mine"];
    assert!(bench.call(&run).status.success());
    assert!(bench.path("mine/report.json").exists());
    let (error, _) = bench.refusal(&run);
    assert!(error.contains("mine exists and is not empty; `--resume` goes on with it"), "{error}");
}

#[test]
fn the_half_of_the_test_images_that_validates_is_in_no_figure() {
    let text = "# nothing is trained\nmodel = \"lenet300\"\ndata = { name = \"glyphs\", train = 60, test = 20, valid-from = \"test\" }\n";
    let bench = Bench::with(text);
    assert!(bench.call(&["run", "small.toml", "--out", "run"]).status.success());
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(bench.path("run/report.json")).unwrap()).unwrap();
    let data = &report["data"];
    let expected = (&60.into(), &10.into(), &10.into(), &"test".into());
    assert_eq!((&data["train"], &data["valid"], &data["test"], &data["valid_from"]), expected);
    let markdown = std::fs::read_to_string(bench.path("run/report.md")).unwrap();
    assert!(markdown.contains("60 training, 10 validation (of the test set), 10 test images"), "{markdown}");
    let (error, _) = bench.refusal(&["run", "small.toml", "--set", "data.valid=20"]);
    assert!(error.contains("20 of 20 test images cannot be held back for validation"), "{error}");
}

#[test]
fn the_old_file_survives_a_full_disk() {
    let bench = Bench::with(SMALL);
    std::fs::write(bench.path("net.safetensors"), safetensors_of_lenet300(10)).unwrap();
    let import = ["import", "net.safetensors", "--arch", "lenet300", "--out", "net.brq"];
    assert!(bench.call(&import).status.success());
    let before = std::fs::read(bench.path("net.brq")).unwrap();

    // A limit on the size of files stands in for the full disk: both fail the write half-way.
    let program = bench.command(&[]).get_program().to_string_lossy().into_owned();
    let script = format!("trap '' XFSZ; ulimit -f 1; exec '{program}' {}", import.join(" "));
    let full = std::process::Command::new("bash").args(["-c", &script]).current_dir(bench.folder.path()).output().unwrap();
    let error = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write net.brq") && error.contains("is the disk full"), "{error}");
    assert!(std::fs::read(bench.path("net.brq")).unwrap() == before);
    let left: Vec<_> = std::fs::read_dir(bench.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "nothing half-written stays: {left:?}");
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_by_name() {
    let bench = Bench::with(SMALL);
    std::fs::write(bench.path("net.safetensors"), safetensors_of_lenet300(10)).unwrap();
    let (error, _) = bench.refusal(&["import", "net.safetensors", "--arch", "lenet5", "--out", "net.brq"]);
    assert!(error.contains("0 module(s) of the kind 'convolution', the network has 2"), "{error}");
    std::fs::write(bench.path("net.pt"), b"\x80\x02garbage").unwrap();
    let (error, _) = bench.refusal(&["import", "net.pt", "--arch", "lenet5", "--out", "net.brq"]);
    assert!(error.contains("net.pt"), "{error}");
    assert!(!bench.path("net.brq").exists());
}
