//! Trained weights from elsewhere.

use std::path::PathBuf;

use briquette_core::cost::Cost;
use briquette_core::stored::Storage;
use briquette_core::training::hits;
use briquette_core::zoo::Arch;
use briquette_data::{Loader, Locations};
use briquette_runtime::Engine;
use burn::tensor::Device;

use crate::engine::difference;
use crate::program::{Bench, SMALL};

#[test]
#[ignore = "needs the checkpoints in BRIQUETTE_MODELS"]
fn zip_and_legacy_checkpoints_are_read_whole() {
    let folder = PathBuf::from(std::env::var_os("BRIQUETTE_MODELS").unwrap()).join("cifar10-resnet-akamaster");
    let files = [
        ("resnet20", "12fca82f", 269_722),
        ("resnet32", "d509ac18", 464_154),
        ("resnet44", "014dd654", 658_586),
        ("resnet56", "4bfd9763", 853_018),
    ];
    for (name, hash, params) in files {
        let arch = Arch::named(name).unwrap();
        let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let checkpoint = briquette_interchange::read(&folder.join(format!("{name}-{hash}.th"))).unwrap();
        let net = briquette_interchange::assign(net, &checkpoint, None).unwrap();
        assert_eq!(Cost::of(&net).unwrap().params(), params, "{name}");
    }
}

#[test]
#[ignore = "needs the checkpoints in BRIQUETTE_MODELS and the data sets in BRIQUETTE_DATA"]
fn a_resnet_trained_with_pytorch_keeps_its_accuracy() {
    let models = PathBuf::from(std::env::var_os("BRIQUETTE_MODELS").unwrap());
    let checkpoint = briquette_interchange::read(&models.join("cifar10-resnet-akamaster/resnet20-12fca82f.th")).unwrap();
    let arch = Arch::named("resnet20").unwrap();
    let mut wanted = arch.wanted();
    wanted.normalization = Some((vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]));
    let net = arch.build(&wanted, &Device::flex()).unwrap();
    let net = briquette_interchange::assign(net, &checkpoint, None).unwrap();
    let cost = Cost::of(&net).unwrap();
    assert_eq!((cost.params(), cost.macs()), (269_722, 40_551_040));

    let model = net.to_model(Storage::default()).unwrap();
    let engine = Engine::new(&model, 2).unwrap();
    let data = briquette_data::open("cifar10-exact4000", &Locations::from_env(None)).unwrap().train;
    let mut right = 0;
    for (index, batch) in Loader::ordered(&data, 200).enumerate() {
        let batch = batch.unwrap();
        right += hits(&engine.run(&batch.images, batch.len).unwrap(), &batch.labels, 1);
        if index == 0 {
            assert!(difference(&net, &model, batch.images, batch.len) <= 1e-4);
        }
    }
    // 99.80 % of the 4,000 images, as an independent forward pass measured.
    assert_eq!((data.len(), right), (4000, 3992));
}

/// A checkpoint among the cases that were found in use.
fn case(name: &str) -> String {
    let cases = PathBuf::from(std::env::var_os("BRIQUETTE_MODELS").unwrap()).with_file_name("cases");
    cases.join(name).to_str().unwrap().to_string()
}

/// Arguments that import a ResNet-20 as its author trained it.
fn import<'a>(file: &'a str, out: &'a str) -> [&'a str; 10] {
    let [mean, std] = ["0.485,0.456,0.406", "0.229,0.224,0.225"];
    ["import", file, "--arch", "resnet20", "--mean", mean, "--std", std, "--out", out]
}

#[test]
#[ignore = "needs the cases beside BRIQUETTE_MODELS and the data sets in BRIQUETTE_DATA"]
fn biases_that_the_architecture_has_no_place_for_count() {
    let bench = Bench::with(SMALL);
    for name in ["a1_conv_bias", "a1_twin"] {
        let (file, out) = (case(&format!("{name}.safetensors")), format!("{name}.brq"));
        let output = bench.call(&import(&file, &out));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = bench.call(&["eval", &out, "--data", "cifar10-exact4000", "--split", "train", "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        // As an independent forward pass counted.
        assert_eq!((&found["correct"], &found["samples"]), (&1233.into(), &4000.into()), "{name}");
    }
}

#[test]
#[ignore = "needs the cases beside BRIQUETTE_MODELS"]
fn a_value_that_is_not_finite_is_named_and_counted() {
    let bench = Bench::with(SMALL);
    let file = case("a3_nan.safetensors");
    let said = "1 of 4608 value(s) of 'layer2.0.conv1.weight' are not finite";
    let (error, code) = bench.refusal(&import(&file, "nan.brq"));
    assert!(error.contains(said) && code == 1 && !bench.path("nan.brq").exists(), "{error}");
    let inspected = bench.call(&["inspect", &file]);
    assert!(inspected.status.success() && String::from_utf8_lossy(&inspected.stdout).contains(&format!("NOT SOUND: {said}")));
}
