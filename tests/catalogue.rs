//! What belongs to every method beside its code, and what every config must do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use briquette_runner::config::Config;

use crate::conformance::{ensure, every_method, file, source};

fn configs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn every_method_has_a_config() {
    let read = |path: PathBuf| Config::read(&path, &[], false, None).unwrap();
    let named: BTreeSet<&str> = configs().into_iter().flat_map(|path| read(path).passes).map(|step| step.entry.name).collect();
    every_method(|entry| ensure(named.contains(entry.name), "no config in configs/ names it"));
}

#[test]
fn every_method_has_an_example_that_runs() {
    every_method(|entry| {
        let text = source(entry).unwrap_or_default();
        let asserts = examples(&text).iter().any(|example| example.contains("assert"));
        ensure(asserts, "the comment at the head of its file has no example that runs and asserts something")
    });
}

/// Methods that only give weights other values or codings, and so serve any Burn module.
const OF_VALUES: [&str; 19] = [
    "binary-connect",
    "bwn",
    "dorefa",
    "ecsq",
    "few-multiplications",
    "fixed-point",
    "hashed",
    "hessian-kmeans",
    "kmeans-sharing",
    "learned-step",
    "loss-aware-binarization",
    "magnitude",
    "n-m",
    "product-quantization",
    "random",
    "soft-weight-sharing",
    "stochastic-rounding",
    "ternary",
    "weight-distortion",
];

#[test]
fn examples_of_methods_that_only_change_values_show_a_network_and_a_module_of_burn() {
    let missing = OF_VALUES.iter().find(|name| !briquette_runner::methods().iter().any(|entry| entry.name == **name));
    assert_eq!(missing, None);
    every_method(|entry| {
        let examples = examples(&source(entry).unwrap_or_default()).concat();
        let (net, module) = (examples.contains(".run(") || examples.contains(".plan("), examples.contains("LinearConfig"));
        ensure(!OF_VALUES.contains(&entry.name) || net && module, "its examples lack a network or a module of Burn")
    });
}

#[test]
fn every_method_has_a_test() {
    every_method(|entry| {
        let text = source(entry).unwrap_or_default();
        let named = text.split("::").skip(1).map(|rest| rest.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()).next());
        let shared = named.flatten().filter_map(|part| file(&[entry.home, "parts"], part));
        let tested = std::iter::once(text.clone()).chain(shared).any(|text| text.contains("#[test]"));
        ensure(tested, "neither its file nor one that it shares with others has a test")
    });
}

/// The blocks of code in the comment at the head of a file that rustdoc compiles and runs.
fn examples(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut within = None;
    for line in text.lines().map_while(|line| line.strip_prefix("//!")) {
        match (line.trim().strip_prefix("```"), within) {
            (Some(tags), None) => {
                within = Some(tags.is_empty());
                blocks.extend(tags.is_empty().then(String::new));
            }
            (Some(_), Some(_)) => within = None,
            (None, Some(true)) => *blocks.last_mut().unwrap() += line,
            (None, _) => {}
        }
    }
    blocks
}

#[test]
fn every_config_holds_together() {
    for path in configs() {
        let config = Config::read(&path, &[], false, None).unwrap();
        assert!(!config.expected.is_empty(), "{}: line 1 says what is expected", path.display());
        if config.model.file.is_none() {
            briquette_runner::plan::plan(&config, None).unwrap();
        }
    }
}

#[test]
#[ignore = "needs the checkpoints in BRIQUETTE_MODELS"]
fn every_config_with_a_checkpoint_holds_together() {
    for path in configs() {
        let config = Config::read(&path, &[], false, None).unwrap();
        if config.model.file.is_some() {
            briquette_runner::plan::plan(&config, None).unwrap();
        }
    }
}

#[test]
fn a_plan_says_which_passes_it_only_estimates() {
    let estimated = |settings: &str| {
        let text = format!("model = \"lenet300\"\ndata = \"glyphs\"\n[[pass]]\n{settings}\n");
        let config = Config::parse(Path::new("one.toml"), &text, &[], false, None).unwrap();
        let rows = briquette_runner::plan::plan(&config, None).unwrap();
        assert_eq!(rows[0].estimate, None);
        rows[1].estimate.is_some()
    };
    for exact in ["method = \"magnitude\"\nkeep = 0.1", "method = \"filter-l1\"\nbudget = { macs = 0.5 }", "method = \"encode\""]
    {
        assert!(!estimated(exact), "{exact}");
    }
    for estimate in [
        "method = \"magnitude\"\nglobal = 0.1",
        "method = \"taylor\"\nglobal = 0.5",
        "method = \"biased-decay\"\nlambda = 1e-5\nthreshold = 0.01\ntrain = { epochs = 1 }",
    ] {
        assert!(estimated(estimate), "{estimate}");
    }
}

#[test]
fn vgg_16_a_is_planned_as_li_et_al_count_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/vgg16_pruning.toml");
    let rows = briquette_runner::plan::plan(&Config::read(&path, &[], false, None).unwrap(), None).unwrap();
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
