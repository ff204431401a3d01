use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use briquette_core::task::Task;
use briquette_data::{Dataset, Locations};
use briquette_runtime::activations::MAX_ACTIVATIONS_HELD;
use briquette_runtime::{Engine, Model};
use serde::Serialize;

use crate::memory::shown;
use crate::timing::{self, Inputs, Spread};

/// What is measured of a container.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Another container, which takes turns with it.
    pub(crate) against: Option<PathBuf>,
    /// Images in a batch.
    pub(crate) batches: Vec<usize>,
    /// Threads of the engine.
    pub(crate) threads: Vec<usize>,
    /// Whether the time of each layer is told.
    pub(crate) layers: bool,
    /// The data set whose test images they are timed on; any values without it.
    pub(crate) data: Option<String>,
}

/// How long a container takes.
#[derive(Debug, Serialize)]
pub(crate) struct Bench {
    file: PathBuf,
    against: Option<PathBuf>,
    /// The images on which means are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<Images>,
    date: String,
    instructions: String,
    rows: Vec<Row>,
}

/// Test images of a set.
#[derive(Debug, Serialize)]
struct Images {
    data: String,
    count: usize,
}

/// The times of a batch on so many threads.
#[derive(Debug, Serialize)]
struct Row {
    batch: usize,
    threads: usize,
    #[serde(flatten)]
    taken: Taken,
    /// Of the other container.
    against: Option<Taken>,
    /// How often this container's time goes into the other's, turn by turn: first quartile, median and third quartile.
    speedup: Option<[f64; 3]>,
}

/// What one container takes.
#[derive(Debug, Serialize)]
struct Taken {
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    /// First and third quartile.
    quartiles_ms: [f64; 2],
    /// Number of turns.
    turns: usize,
    /// Weights as they are held, activations at the fullest moment and the result; scratch memory of the threads comes on top.
    peak_bytes: usize,
    /// In the order in which they run; a layer that became part of the one before it is not there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<LayerTime>,
}

/// The median time of a layer.
#[derive(Debug, Serialize)]
struct LayerTime {
    name: String,
    ms: f64,
}

/// `bench`.
pub(crate) fn bench(file: &Path, settings: Settings, data_dir: Option<&Path>) -> Result<Bench> {
    let files: Vec<&Path> = std::iter::once(file).chain(settings.against.as_deref()).collect();
    let models = files.iter().map(|file| super::container(file).map(|(model, _)| model)).collect::<Result<Vec<_>>>()?;
    measurable(&files, &models, &settings.batches)?;
    let open = |name: &str| briquette_data::open(name, &Locations::from_env(data_dir)).map(|set| set.test);
    let inputs = inputs(&files, &models, settings.data.as_deref().map(open).transpose()?.as_ref())?;
    let mut rows = Vec::new();
    for &threads in &settings.threads {
        let engine = |(model, file): (_, &&Path)| Engine::new(model, threads).with_context(|| file.display().to_string());
        let engines = models.iter().zip(&files).map(engine).collect::<Result<Vec<_>>>()?;
        for &batch in &settings.batches {
            rows.push(row(&engines, (batch, &inputs.batches(batch)), threads, settings.layers)?);
        }
    }
    let (date, instructions) = (timing::now()?, briquette_kernels::instructions());
    let images = settings.data.map(|data| Images { data, count: inputs.count });
    Ok(Bench { file: file.into(), against: settings.against, images, date, instructions, rows })
}

/// Images of this set; any values without one, unless a network decides by them what it computes.
fn inputs(files: &[&Path], models: &[Model], images: Option<&Dataset>) -> Result<Inputs> {
    for (file, model) in files.iter().zip(models) {
        let shapes = model.check()?;
        match images {
            Some(images) => {
                let task = Task::between(&shapes[0], &shapes[shapes.len() - 1]);
                task.check(images).with_context(|| file.display().to_string())?;
            }
            None if timing::decides(model) => {
                bail!("{}: how long an image takes depends on where it leaves; name images by `--data NAME`", file.display());
            }
            None => {}
        }
    }
    images.map_or_else(|| Ok(Inputs::any(&models[0].check()?[0])), Inputs::of)
}

/// Refuses what would break off between two measurements: networks that cannot take the same images, and batches that are not held in memory with their
/// results.
fn measurable(files: &[&Path], models: &[Model], batches: &[usize]) -> Result<()> {
    let mut first = None;
    for (file, model) in files.iter().zip(models) {
        let shapes = model.check().with_context(|| file.display().to_string())?;
        let (input, output) = (&shapes[0], &shapes[shapes.len() - 1]);
        let (one, taken) = first.get_or_insert_with(|| (file, input.clone()));
        if taken != input {
            bail!("{} takes images of {input:?} and {} of {taken:?}; both are timed on the same", file.display(), one.display());
        }
        let each = input.iter().product::<usize>() + output.iter().product::<usize>();
        let most = MAX_ACTIVATIONS_HELD / each;
        if let Some(batch) = batches.iter().find(|batch| **batch > most) {
            let file = file.display();
            bail!("{file}: a batch of {batch} images takes more than 1 GB with its results; `--batch {most}` is the largest");
        }
    }
    Ok(())
}

/// The first engine, beside the second if there is one.
fn row(engines: &[Engine], (batch, images): (usize, &[Vec<f32>]), threads: usize, layers: bool) -> Result<Row> {
    let mut steps: Vec<Vec<(String, Vec<f64>)>> = vec![Vec::new(); engines.len()];
    let times = timing::turns(engines.len(), |side| {
        if !layers {
            return timing::once(&engines[side], batch, images);
        }
        let (ms, taken) = timing::once_by_step(&engines[side], batch, images)?;
        if steps[side].is_empty() {
            // The first turn finds cold caches and is not counted.
            steps[side] = taken.into_iter().map(|(name, _)| (name, Vec::new())).collect();
        } else {
            steps[side].iter_mut().zip(taken).for_each(|((_, all), (_, ms))| all.push(ms));
        }
        Ok(ms)
    })?;
    let speedup = times.get(1).map(|other| {
        let spread = Spread::of(other.iter().zip(&times[0]).map(|(other, own)| other / own).collect());
        spread.quartiles()
    });
    let mut sides = times.into_iter().zip(steps).zip(engines).map(|((times, steps), engine)| {
        let turns = times.len();
        let Spread { min, low, median, high, max } = Spread::of(times);
        Taken {
            median_ms: median,
            min_ms: min,
            max_ms: max,
            quartiles_ms: [low, high],
            turns,
            peak_bytes: engine.peak_bytes(batch),
            layers: steps.into_iter().map(|(name, times)| LayerTime { name, ms: timing::median(times) }).collect(),
        }
    });
    let taken = sides.next().context("no container is measured")?;
    Ok(Row { batch, threads, taken, against: sides.next(), speedup })
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(against) = &self.against {
            write!(f, " in turns with {}", against.display())?;
        }
        write!(f, "; {}; milliseconds of a batch", self.instructions)?;
        if let Some(Images { data, count }) = &self.images {
            write!(f, ", the mean over {count} test images of {data}")?;
        }
        writeln!(f, ", memory without scratch")?;
        let head = ["threads", "median", "min", "max", "memory"].map(|title| format!("{title:>11}")).concat();
        let faster = self.against.as_ref().map_or("", |_| "   the other's time over this one's, in brackets the quartiles");
        writeln!(f, "{:>8}{head}{faster}", "batch")?;
        for row in &self.rows {
            write!(f, "{:8}{:11}{}", row.batch, row.threads, row.taken)?;
            match (&row.against, row.speedup) {
                (Some(against), Some([low, median, high])) => {
                    writeln!(f, "   {median:.2}x [{low:.2}, {high:.2}]\n{:>19}{against}", "the other")?;
                }
                _ => writeln!(f)?,
            }
            let other = |name: &str| row.against.iter().flat_map(|taken| &taken.layers).find(|layer| layer.name == name);
            for LayerTime { name, ms } in &row.taken.layers {
                let share = 100.0 * ms / row.taken.median_ms;
                let beside = other(name).map_or(String::new(), |other| format!("{:10.4} ms of the other", other.ms));
                writeln!(f, "    {name:28} {ms:10.4} ms {share:5.1} %{beside}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median_ms, min_ms, max_ms, .. } = self;
        write!(f, "{median_ms:11.4}{min_ms:11.4}{max_ms:11.4}{:>11}", shown(self.peak_bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::Builder;
    use briquette_core::stored::Storage;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_runtime::layers::{Gate, Measure, Merge, Route};
    use burn::tensor::Device;

    use super::*;

    fn stored(folder: &Path, name: &str, width: f64) -> PathBuf {
        let arch = Arch::named("lenet5").unwrap();
        let net = arch.build(&Wanted { width, ..arch.wanted() }, &Device::flex()).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, net.to_model(Storage::default()).unwrap().to_bytes().unwrap()).unwrap();
        path
    }

    #[test]
    fn every_setting_has_its_row_and_every_layer_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let [small, large] = [("small.brq", 0.1), ("large.brq", 0.3)].map(|(name, width)| stored(folder.path(), name, width));
        let settings =
            |against: Option<PathBuf>, layers| Settings { against, batches: vec![3, 1], threads: vec![1, 2], layers, data: None };
        let found = bench(&small, settings(Some(large), true), None).unwrap();
        let at: Vec<[usize; 2]> = found.rows.iter().map(|row| [row.batch, row.threads]).collect();
        assert_eq!(at, [[3, 1], [1, 1], [3, 2], [1, 2]]);
        for row in &found.rows {
            let (own, other) = (&row.taken, row.against.as_ref().unwrap());
            assert!(own.min_ms <= own.median_ms && own.median_ms <= own.max_ms && own.turns == other.turns);
            assert!(own.peak_bytes < other.peak_bytes && row.speedup.unwrap().is_sorted());
            let names: Vec<&str> = own.layers.iter().map(|layer| layer.name.as_str()).collect();
            assert!(["conv1", "conv2", "fc1", "fc2"].iter().all(|name| names.contains(name)), "{names:?}");
        }
        let text = found.to_string();
        assert_eq!(text.matches("the other\u{20}\u{20}").count(), 4, "{text}");
        let alone = bench(&small, settings(None, false), None).unwrap();
        assert!(alone.rows.iter().all(|row| row.against.is_none() && row.taken.layers.is_empty()));
        let json = serde_json::to_value(&alone).unwrap();
        assert!(json["rows"][0]["median_ms"].is_number() && json["rows"][0].get("layers").is_none(), "{json}");
    }

    #[test]
    fn a_batch_that_no_memory_holds_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = stored(folder.path(), "small.brq", 0.1);
        let settings = Settings { against: None, batches: vec![1, 1_000_000], threads: vec![1], layers: false, data: None };
        let error = bench(&file, settings, None).unwrap_err().to_string();
        assert!(error.contains("takes more than 1 GB with its results; `--batch 338079` is the largest"), "{error}");
    }

    #[test]
    fn a_network_that_decides_is_timed_on_images_that_are_named() {
        let mut b = Builder::new([1, 2, 2], 5, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let early = b.linear("early", x, 3);
        let decision = b.fixed("gate", &[early], Gate { measure: Measure::Confidence, threshold: 0.5 });
        let leaving = b.fixed("leave", &[early, decision], Route { leaving: true });
        let on = b.fixed("go-on", &[x, decision], Route { leaving: false });
        let late = b.linear("late", on, 3);
        b.fixed("merge", &[leaving, late, decision], Merge);
        let model = [b.finish().unwrap().to_model(Storage::default()).unwrap()];
        let data = |classes| Dataset::from_memory("mine", [1, 2, 2], classes, vec![7; 20], vec![0; 5]).unwrap();
        let timed_on =
            |images: Option<&Dataset>| inputs(&[Path::new("gated.brq")], &model, images).map_err(|error| format!("{error:#}"));
        let expected = "gated.brq: how long an image takes depends on where it leaves; name images by `--data NAME`";
        assert_eq!(timed_on(None).unwrap_err(), expected);
        assert_eq!(timed_on(Some(&data(3))).unwrap(), Inputs::of(&data(3)).unwrap());
        let error = timed_on(Some(&data(4))).unwrap_err();
        assert!(error.starts_with("gated.brq: ") && error.contains("tells 3 classes apart, the data have 4"), "{error}");

        let folder = tempfile::tempdir().unwrap();
        let file = stored(folder.path(), "small.brq", 0.1);
        let named = Some("folder:nowhere".into());
        let settings = Settings { against: None, batches: vec![1], threads: vec![1], layers: false, data: named };
        let error = bench(&file, settings, None).unwrap_err().to_string();
        assert!(error.contains("there is no such folder"), "{error}");
    }
}
