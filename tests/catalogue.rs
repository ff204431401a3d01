//! What every method and every config must do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use briquette_runner::config::Config;

fn configs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn every_method_reads_its_own_example_and_refuses_unknown_settings() {
    let methods = briquette_runner::methods();
    let names: BTreeSet<&str> = methods.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), methods.len(), "names are unique");
    for entry in methods {
        let table: toml::Table = entry.example.parse().unwrap();
        let mut settings = serde_json::to_value(table).unwrap();
        (entry.parse)(settings.clone()).unwrap_or_else(|error| panic!("{}: {error}", entry.name));
        settings["no-such-setting"] = 1.into();
        let error = (entry.parse)(settings).unwrap_err().to_string();
        assert!(error.contains("unknown field `no-such-setting`"), "{}: {error}", entry.name);
        assert!(!entry.paper.is_empty() && !entry.family.is_empty(), "{} names its paper", entry.name);
    }
}

#[test]
fn every_config_holds_together() {
    for path in configs() {
        let config = Config::read(&path, &[], false, None).unwrap();
        assert!(!config.expected.is_empty(), "{}: line 1 says what is expected", path.display());
        if config.model.file.is_none() {
            briquette_runner::plan::plan(&config).unwrap();
        }
    }
}

#[test]
#[ignore = "needs the checkpoints in BRIQUETTE_MODELS"]
fn every_config_with_a_checkpoint_holds_together() {
    for path in configs() {
        let config = Config::read(&path, &[], false, None).unwrap();
        if config.model.file.is_some() {
            briquette_runner::plan::plan(&config).unwrap();
        }
    }
}

#[test]
fn vgg_16_a_is_planned_as_li_et_al_count_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/vgg16_pruning.toml");
    let rows = briquette_runner::plan::plan(&Config::read(&path, &[], false, None).unwrap()).unwrap();
    let weights = |index: usize| -> usize {
        rows[index]
            .row
            .layers
            .iter()
            .filter(|layer| !layer.shape.is_empty())
            .map(|layer| layer.shape.iter().product::<usize>())
            .sum()
    };
    assert_eq!((weights(0), rows[0].row.macs), (14_977_728, 313_463_808));
    assert_eq!(rows[2].row.method, "filter-l1");
    assert_eq!((weights(2), rows[2].row.macs), (5_390_176, 206_279_680));
}
