//! From names in a config to data and a network.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use briquette_core::context::Data;
use briquette_core::net::Net;
use briquette_core::streams::stream;
use briquette_core::task::Task;
use briquette_core::zoo::{Arch, Wanted};
use briquette_data::{Dataset, GlyphCounts, Locations, Outline, Splits, Status};
use briquette_interchange::{Checkpoint, Table};
use burn::tensor::Device;

use crate::config::{Config, DataSpec, ModelSpec, ValidFrom};

/// The data set, split three ways, and its normalization.
///
/// # Errors
/// When it is not there or not whole.
pub fn data(spec: &DataSpec, seed: u64, data_dir: Option<&Path>) -> Result<(Splits, Data)> {
    let at = locations(spec, data_dir);
    let name = at_hand(spec, &at)?;
    if let Status::Missing { files } = briquette_data::locate(name, &at)?
        && !at.offline
        && files.iter().all(|file| !file.urls.is_empty())
    {
        fetch(name, &at)?;
    }
    let splits = briquette_data::open(name, &at)?;
    let [train, test] =
        [(&splits.train, spec.train), (&splits.test, spec.test)].map(|(all, n)| n.map_or(all.clone(), |n| all.take(n)));
    let [_, valid, _] = sizes(spec, [train.len(), test.len()])?;
    let (train, valid, test) = match spec.valid_from.unwrap_or_default() {
        ValidFrom::Train => {
            let (train, valid) = train.split(valid, stream(seed, "validation"));
            (train, valid, test)
        }
        ValidFrom::Test => {
            let (test, valid) = halves(&test, valid);
            (train, valid, test)
        }
    };
    Ok((splits, Data { train, valid, test }))
}

/// Splits a test set into what figures are of and, second, `valid` images for validation: the same ones for every seed, as many of each class as its
/// share.
pub fn halves(test: &Dataset, valid: usize) -> (Dataset, Dataset) {
    test.split(valid, stream(0, "validation from the test images"))
}

/// What is known of the data without reading any image; the counts are those of training and test images that a run would use.
///
/// # Errors
/// When no such set is known or its folder is not in order.
pub fn outline(spec: &DataSpec, data_dir: Option<&Path>) -> Result<Outline> {
    let at = locations(spec, data_dir);
    let outline = briquette_data::outline(at_hand(spec, &at)?, &at)?;
    let [train, test] = outline.counts;
    let [train, _, test] = sizes(spec, [train.min(spec.train.unwrap_or(train)), test.min(spec.test.unwrap_or(test))])?;
    Ok(Outline { counts: [train, test], ..outline })
}

fn locations(spec: &DataSpec, data_dir: Option<&Path>) -> Locations {
    let all = GlyphCounts::default();
    let glyphs = GlyphCounts { train: spec.train.unwrap_or(all.train), test: spec.test.unwrap_or(all.test) };
    Locations { glyphs, ..Locations::from_env(data_dir) }
}

/// The set that is meant or, for a trial run without its files, the other one.
fn at_hand<'a>(spec: &'a DataSpec, at: &Locations) -> Result<&'a str> {
    let missing = |name: &str| Ok::<_, anyhow::Error>(matches!(briquette_data::locate(name, at)?, Status::Missing { .. }));
    match &spec.smoke {
        Some(other) if missing(&spec.name)? && !missing(other)? => {
            tracing::info!("{} is not at hand; this trial run takes {other}", spec.name);
            Ok(other)
        }
        _ => Ok(&spec.name),
    }
}

/// Images to train on, to validate on and to test on, of so many training and test images.
fn sizes(spec: &DataSpec, [train, test]: [usize; 2]) -> Result<[usize; 3]> {
    let (whole, share, what) = match spec.valid_from.unwrap_or_default() {
        ValidFrom::Train => (train, 12, "training"),
        ValidFrom::Test => (test, 2, "test"),
    };
    let valid = spec.valid.unwrap_or(whole / share);
    if valid == 0 || valid >= whole {
        bail!("data '{}': {valid} of {whole} {what} images cannot be held back for validation", spec.name);
    }
    Ok(match spec.valid_from.unwrap_or_default() {
        ValidFrom::Train => [train - valid, valid, test],
        ValidFrom::Test => [train, valid, test - valid],
    })
}

/// Downloads and verifies a data set with a progress bar; the folder that holds it.
///
/// # Errors
/// When it cannot be fetched or is not what its manifest says.
pub fn fetch(name: &str, at: &Locations) -> Result<PathBuf> {
    let style =
        indicatif::ProgressStyle::with_template("  fetching {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")?;
    let bar = indicatif::ProgressBar::no_length().with_style(style).with_message(name.to_string());
    let folder = briquette_data::get(name, at, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(folder)
}

/// The network that a config starts from, for the data of this outline. An architecture of the zoo is built for their classes; `normalization` is
/// theirs and gives way to the config's own.
///
/// # Errors
/// Unknown architectures, files that do not fit, networks for other images or classes.
pub fn model(config: &Config, outline: &Outline, normalization: Normalization, device: &Device) -> Result<Net> {
    built(&config.model, config, outline, normalization, device)
}

/// A network as a config may describe it beside the one that it starts from: with the weights of a file, from the folder of the config.
///
/// # Errors
/// As [`model`], and a network without a file, whose weights would be drawn.
pub fn other_model(spec: &ModelSpec, config: &Config, splits: &Splits, device: &Device) -> Result<Net> {
    if spec.file.is_none() {
        bail!("`{}` has no trained weights; name their `file`", spec.arch.as_deref().unwrap_or("model"));
    }
    let normalization = if normalizes(spec) { Some(splits.normalization()?) } else { None };
    built(spec, config, &splits.outline(), normalization, device)
}

fn built(spec: &ModelSpec, config: &Config, outline: &Outline, normalization: Normalization, device: &Device) -> Result<Net> {
    if let Some(file) = spec.container() {
        return container(&find(file, &config.path)?, outline, device);
    }
    let name = spec.arch.as_ref().ok_or_else(|| anyhow!("model: names no `arch`"))?;
    let arch = Arch::within(crate::zoo(), name)?;
    let wanted = Wanted {
        width: spec.width.unwrap_or(1.0),
        size: spec.size,
        classes: outline.classes,
        normalization: given(spec)?.or(normalization),
        seed: stream(config.seed, "weights"),
    };
    let task = Task { shape: arch.shape(&wanted).to_vec(), classes: outline.classes };
    suits(&task, outline).with_context(|| format!("model '{name}'"))?;
    let net = arch.build(&wanted, device)?;
    match &spec.file {
        None => Ok(net),
        Some(file) => Names { prefix: spec.prefix.clone(), table: spec.table.clone() }.assign(net, &find(file, &config.path)?),
    }
}

/// Whether such a network takes the data's normalization: one that is built, unless it sets another.
pub fn normalizes(spec: &ModelSpec) -> bool {
    spec.container().is_none() && spec.mean.is_none() && spec.std.is_none()
}

/// The network of a container, for the data of this outline.
///
/// # Errors
/// A file that cannot be read, is no container, or holds a network for other images or classes.
pub fn container(path: &Path, outline: &Outline, device: &Device) -> Result<Net> {
    let read = || -> Result<Net> {
        let net = Net::from_model(&briquette_runtime::Model::from_bytes(&std::fs::read(path)?)?, device)?;
        suits(&Task::of(&net)?, outline)?;
        Ok(net)
    };
    read().with_context(|| path.display().to_string())
}

fn suits(task: &Task, outline: &Outline) -> briquette_core::Result<()> {
    task.suits(&outline.name, &outline.shape, outline.classes)
}

/// Which part of a checkpoint is the network, and which of its modules are which layers.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Only the tensors below this dotted prefix are looked at.
    pub prefix: Option<String>,
    /// Layer name to the prefix of its tensors; found by names and order without it.
    pub table: Option<Table>,
}

impl Names {
    /// The network with the weights of this file.
    ///
    /// # Errors
    /// A file that cannot be read or does not fit.
    pub fn assign(&self, net: Net, file: &Path) -> Result<Net> {
        let checkpoint = checkpoint(file, self.prefix.as_deref())?;
        Ok(briquette_interchange::assign(net, &checkpoint, self.table.as_ref())?)
    }
}

/// A checkpoint, or what lies below a prefix in it.
///
/// # Errors
/// A file that cannot be read or has nothing below the prefix.
pub fn checkpoint(file: &Path, prefix: Option<&str>) -> Result<Checkpoint> {
    let checkpoint = briquette_interchange::read(file)?;
    Ok(match prefix {
        Some(prefix) => checkpoint.under(prefix)?,
        None => checkpoint,
    })
}

/// Reads a table of layers and modules.
///
/// # Errors
/// A file that cannot be read or is no such table.
pub fn table(file: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the table {}", file.display()))?;
    let wanted = "a table has lines like `\"layer1.0.conv1\" = \"features.3\"`, names with dots in quotes";
    toml::from_str(&text).with_context(|| format!("{}: {wanted}", file.display()))
}

/// The normalization that the config sets.
fn given(spec: &ModelSpec) -> Result<Normalization> {
    match (&spec.mean, &spec.std) {
        (Some(mean), Some(std)) => normalized(Some((mean.clone(), std.clone()))).context("model"),
        (None, None) => Ok(None),
        _ => bail!("model: `mean` and `std` go together"),
    }
}

/// Means and deviations of the input's channels.
pub type Normalization = Option<(Vec<f32>, Vec<f32>)>;

/// A normalization that a user gave, if it can be computed with.
///
/// # Errors
/// Means that are not finite and deviations that are not positive.
pub fn normalized(given: Normalization) -> Result<Normalization> {
    let (means, deviations) = given.as_ref().map_or((&[][..], &[][..]), |(means, deviations)| (means, deviations));
    if let Some(bad) = means.iter().find(|mean| !mean.is_finite()) {
        bail!("a mean must be finite, not {bad}");
    }
    if let Some(bad) = deviations.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        bail!("a deviation must be positive, not {bad}");
    }
    Ok(given)
}

/// A file named in a config: as it stands, beside the config, or in the folder of models (`BRIQUETTE_MODELS`).
///
/// # Errors
/// Lists where it was looked for.
pub fn find(file: &Path, config: &Path) -> Result<PathBuf> {
    let beside = config.parent().map(Path::to_path_buf);
    let models = std::env::var_os("BRIQUETTE_MODELS").map(PathBuf::from);
    let tried: Vec<PathBuf> = [Some(PathBuf::new()), beside, models].into_iter().flatten().map(|base| base.join(file)).collect();
    tried.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
        anyhow!("no file {}: tried {}; BRIQUETTE_MODELS may name the folder that holds it", file.display(), tried.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(valid_from: ValidFrom) -> DataSpec {
        DataSpec {
            name: "glyphs".into(),
            train: Some(120),
            test: Some(60),
            smoke: None,
            valid: None,
            valid_from: Some(valid_from),
        }
    }

    #[test]
    fn validation_images_of_the_test_set_are_the_same_for_every_seed_and_in_no_other_split() {
        let pixels = |set: &Dataset| (0..set.len()).map(|i| set.pixel(i).unwrap()).collect::<Vec<_>>();
        let [(splits, one), (_, other)] = [1, 2].map(|seed| data(&spec(ValidFrom::Test), seed, None).unwrap());
        assert_eq!((one.train.len(), one.valid.class_counts(), one.test.class_counts()), (120, vec![3; 10], vec![3; 10]));
        assert_eq!(pixels(&one.valid), pixels(&other.valid));
        let mut all = [pixels(&one.valid), pixels(&one.test)].concat();
        let mut whole = pixels(&splits.test);
        all.sort();
        whole.sort();
        assert_eq!(all, whole);
    }

    #[test]
    fn validation_images_of_the_training_set_follow_the_seed() {
        let [one, other] = [1, 2].map(|seed| data(&spec(ValidFrom::Train), seed, None).unwrap().1);
        assert_eq!((one.train.len(), one.valid.len(), one.test.len()), (110, 10, 60));
        assert_ne!(one.valid.pixel(0).unwrap(), other.valid.pixel(0).unwrap());
    }

    #[test]
    fn an_outline_counts_what_a_run_uses() {
        for from in [ValidFrom::Train, ValidFrom::Test] {
            let (outline, (_, data)) = (outline(&spec(from), None).unwrap(), data(&spec(from), 1, None).unwrap());
            assert_eq!((outline.counts, outline.classes), ([data.train.len(), data.test.len()], data.train.classes));
            assert_eq!(outline.shape, data.test.shape);
        }
    }
}
