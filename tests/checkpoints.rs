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
        right += hits(&engine.run(&batch.images, batch.len).unwrap(), &batch.labels, 1);
        if index == 0 {
            assert!(difference(&net, &model, batch.images, batch.len) <= 1e-4);
        }
    }
    // 99.80 % of the 4,000 images, as an independent forward pass measured.
    assert_eq!((data.len(), right), (4000, 3992));
}
