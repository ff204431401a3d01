//! What a config would do, without doing it.

use anyhow::{Context as _, Result};
use briquette_core::stored::Storage;
use burn::tensor::Device;

use crate::config::Config;
use crate::report::Row;
use crate::{measure, setup};

/// One row per pass, the network that the config starts from first; and the epochs of each pass.
///
/// Structure, parameters and multiply-accumulates are exact. Bytes are those of untrained weights stored packed: they tell the order of
/// magnitude, since what an entropy coder gains depends on the trained values.
///
/// # Errors
/// As a run would fail before its first step.
pub fn plan(config: &Config) -> Result<Vec<(Row, usize)>> {
    let device = Device::flex();
    let mut net = setup::model(config, None, &device)?;
    let mut rows = vec![(measure::size(&net, Storage::default(), 0, "start")?.0, 0)];
    for (index, step) in config.passes.iter().enumerate() {
        let named = || format!("{}: pass {index} ({})", config.path.display(), step.entry.name);
        net = step.pass.plan(net).with_context(named)?;
        rows.push((measure::size(&net, Storage::default(), index, step.entry.name).with_context(named)?.0, step.pass.epochs()));
    }
    Ok(rows)
}
