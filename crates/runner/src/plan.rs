//! What a config would do, without doing it.

use anyhow::{Context as _, Result};
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::training::Recipe;
use burn::tensor::Device;
use serde::Serialize;

use crate::config::{Config, DataSpec};
use crate::report::Row;
use crate::{bench, measure, setup};

/// What is known of a pass before it runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    /// Structure, parameters and multiply-accumulates are exact. Bytes are those of untrained weights stored packed: they tell the order
    /// of magnitude, since what an entropy coder gains depends on the trained values. `seconds` extrapolates a few measured steps.
    #[serde(flatten)]
    pub row: Row,
    /// Training epochs.
    pub epochs: usize,
    /// Memory of the training in MiB, about: activations and their gradients of one batch, and weights, gradients, momentum and the best copy.
    pub memory_mib: f64,
}

/// One entry per pass, the network that the config starts from first.
///
/// # Errors
/// As a run would fail before its first step.
pub fn plan(mut config: Config) -> Result<Vec<Planned>> {
    let mut net = setup::model(&config, None, &Device::flex())?;
    let planned = |net: &Net, pass: usize, method: &str, trainings: &[Recipe]| -> Result<Planned> {
        let (mut row, _) = measure::size(net, Storage::default(), pass, method)?;
        let (mut epochs, mut memory_mib) = (0, 0.0_f64);
        if let Some(images) = training_images(&config.data).filter(|_| trainings.iter().any(|recipe| recipe.epochs > 0)) {
            let per_image = bench::seconds_per_image(net)?;
            for recipe in trainings {
                epochs += recipe.epochs;
                memory_mib = memory_mib.max(memory(net, recipe.batch)?);
            }
            row.seconds = (epochs * images) as f64 * per_image;
        }
        Ok(Planned { row, epochs, memory_mib })
    };
    let mut rows = vec![planned(&net, 0, "start", &[])?];
    for (index, step) in config.passes.iter_mut().enumerate() {
        let named = || format!("{}: pass {index} ({})", config.path.display(), step.entry.name);
        net = step.pass.plan(net).with_context(named)?;
        rows.push(planned(&net, index, step.entry.name, &step.pass.trainings()).with_context(named)?);
    }
    Ok(rows)
}

/// Images of an epoch, as far as the config or the data set's manifest tells.
fn training_images(data: &DataSpec) -> Option<usize> {
    let all = match data.name.as_str() {
        "glyphs" => briquette_data::GlyphCounts::default().train,
        name => briquette_data::manifest(name)?.counts[0],
    };
    let used = data.train.map_or(all, |train| train.min(all));
    used.checked_sub(data.valid.unwrap_or(used / 12))
}

fn memory(net: &Net, batch: usize) -> Result<f64> {
    let activations: usize = net.shapes()?.iter().map(|shape| shape.iter().product::<usize>()).sum();
    let weights = briquette_core::cost::Cost::of(net)?.params();
    Ok(4.0 * (2 * batch * activations + 4 * weights) as f64 / f64::from(1 << 20))
}
