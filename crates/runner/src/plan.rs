//! What a config would do, without doing it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::training::Recipe;
use burn::tensor::Device;
use serde::Serialize;

use crate::config::Config;
use crate::report::Row;
use crate::run::MODEL;
use crate::{measure, setup, steps};

/// What is known of a pass before it runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    /// Structure, parameters, non-zeros and multiply-accumulates are what the run will have, unless this pass or one before it has an
    /// `estimate`. Bytes are those of untrained weights stored packed: they tell the order of magnitude, since what an entropy coder gains
    /// depends on the trained values. `seconds` extrapolates a few measured steps.
    #[serde(flatten)]
    pub row: Row,
    /// Training epochs.
    pub epochs: usize,
    /// What of the pass's structure is an estimate, if anything is.
    pub estimate: Option<&'static str>,
    /// Memory of the training in MiB, about: activations and their gradients of one batch, and weights, gradients, momentum and the best copy.
    pub memory_mib: f64,
}

/// One entry per pass, the network that the config starts from first.
///
/// # Errors
/// As a run would fail before its first step.
pub fn plan(config: &Config, data_dir: Option<&Path>) -> Result<Vec<Planned>> {
    let outline = setup::outline(&config.data, data_dir)?;
    let mut net = setup::model(config, &outline, None, &Device::flex())?;
    let planned = |net: &Net, pass: usize, method: &str, trainings: &[&Recipe]| -> Result<Planned> {
        let (mut row, _) = measure::size(net, Storage::default(), pass, method)?;
        let (mut epochs, mut memory_mib) = (0, 0.0_f64);
        if trainings.iter().any(|recipe| recipe.epochs > 0) {
            let per_image = steps::seconds_per_image(net)?;
            for recipe in trainings {
                epochs += recipe.epochs;
                memory_mib = memory_mib.max(memory(net, recipe.batch)?);
            }
            row.seconds = (epochs * outline.counts[0]) as f64 * per_image;
        }
        Ok(Planned { row, epochs, estimate: None, memory_mib })
    };
    let mut rows = vec![planned(&net, 0, "start", &[])?];
    let base = config.path.parent().map(Path::to_path_buf).unwrap_or_default();
    let loaded: BTreeSet<String> = config.passes.iter().filter_map(|step| step.pass.loads().map(str::to_string)).collect();
    // What passes will have written by then goes before files of that name beside the config, as in a run.
    let mut saved: BTreeMap<String, Net> = BTreeMap::new();
    for (index, step) in config.passes.iter().enumerate() {
        let named = || format!("{}: pass {index} ({})", config.path.display(), step.entry.name);
        let mut estimate = step.pass.estimate();
        let path: Option<PathBuf> = step.pass.loads().map(|file| base.join(file));
        net = match (step.pass.loads().and_then(|file| saved.get(file)), path) {
            (Some(saved), _) => saved.deep_clone(),
            (None, Some(path)) if path.is_file() => setup::container(&path, &outline, &Device::flex()).with_context(named)?,
            (None, path) => {
                estimate = path.map(|_| ABSENT).or(estimate);
                step.pass.plan(net).with_context(named)?
            }
        };
        for file in step.pass.saves().into_iter().chain([MODEL]).filter(|file| loaded.contains(*file)) {
            saved.insert(file.to_string(), net.deep_clone());
        }
        let row = planned(&net, index, step.entry.name, &step.trainings().collect::<Vec<_>>()).with_context(named)?;
        rows.push(Planned { estimate, ..row });
    }
    Ok(rows)
}

/// Of a pass whose network comes from a file that a plan cannot know.
const ABSENT: &str = "its file is not there yet, and the network at hand stands in for the one that it will hold";

fn memory(net: &Net, batch: usize) -> Result<f64> {
    let activations: usize = net.shapes()?.iter().map(|shape| shape.iter().product::<usize>()).sum();
    let weights = briquette_core::cost::Cost::of(net)?.params();
    Ok(4.0 * (2 * batch * activations + 4 * weights) as f64 / f64::from(1 << 20))
}
