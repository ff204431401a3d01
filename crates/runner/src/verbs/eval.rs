use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use briquette_core::task::Task;
use briquette_core::training::hits;
use briquette_data::{Loader, Locations};
use briquette_runtime::Engine;
use serde::Serialize;

use crate::setup;

/// How a container does on a split of a data set.
#[derive(Debug, Serialize)]
pub(crate) struct Evaluation {
    file: PathBuf,
    data: String,
    split: String,
    samples: usize,
    correct: usize,
    accuracy: f64,
}

/// `eval`.
pub(crate) fn eval(file: &Path, data: &str, split: &str, data_dir: Option<&Path>) -> Result<Evaluation> {
    let (model, _) = super::container(file)?;
    model.finite().with_context(|| file.display().to_string())?;
    let splits = briquette_data::open(data, &Locations::from_env(data_dir))?;
    let half = || setup::halves(&splits.test, splits.test.len() / 2);
    let set = match split {
        "train" => splits.train,
        "test" => splits.test,
        "valid" => half().1,
        "rest" => half().0,
        other => return Err(briquette_core::Error::unknown("split", other, ["train", "test", "valid", "rest"]).into()),
    };
    let engine = Engine::new(&model, rayon::current_num_threads())?;
    let task = Task::between(engine.input_shape(), engine.output_shape());
    task.check(&set).with_context(|| file.display().to_string())?;
    let mut correct = 0;
    for batch in Loader::ordered(&set, 100) {
        let batch = batch?;
        correct += hits(&engine.run(&batch.images, batch.len)?, &batch.labels, 1);
    }
    let (samples, accuracy) = (set.len(), correct as f64 / set.len().max(1) as f64);
    Ok(Evaluation { file: file.into(), data: data.into(), split: split.into(), samples, correct, accuracy })
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data, split, samples, correct, accuracy, .. } = self;
        write!(f, "{:.2} % ({correct} of {samples}) on {data} {split}", 100.0 * accuracy)
    }
}
