//! What a TOML file says about an experiment, checked before anything runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use briquette_core::pass::{Entry, Step};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::METHODS;

mod keys;
mod sequence;

/// An experiment.
#[derive(Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// The settings in force, with every `--set` applied, as TOML.
    pub text: String,
    /// First comment of the file: the expected result.
    pub expected: String,
    /// The network to start from.
    pub model: ModelSpec,
    /// The data.
    pub data: DataSpec,
    /// `auto` or a device's name.
    pub device: String,
    /// Seed of everything random.
    pub seed: u64,
    /// The passes, in order.
    pub passes: Vec<Step>,
    /// Whether this is a trial run.
    pub smoke: bool,
    /// The overrides, as given.
    pub sets: Vec<String>,
    /// The device that was asked for in the place of the file's.
    pub other_device: Option<String>,
}

/// Where the network comes from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelSpec {
    /// Architecture of the zoo; a container brings its own.
    pub arch: Option<String>,
    /// Width multiplier; 1 without it.
    pub width: Option<f64>,
    /// Height and width of the images; the paper's without it.
    pub size: Option<usize>,
    /// Checkpoint (`.safetensors`, PyTorch) or container (`.brq`) with the weights.
    pub file: Option<PathBuf>,
    /// Only the checkpoint's tensors below this dotted prefix are taken.
    pub prefix: Option<String>,
    /// Layer name to the prefix of its tensors in the checkpoint.
    pub table: Option<briquette_interchange::Table>,
    /// Channel means of the input in pixels / 255; the data set's own without it.
    pub mean: Option<Vec<f32>>,
    /// Channel deviations of the input.
    pub std: Option<Vec<f32>>,
}

/// Which data, and how much of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DataSpec {
    /// Name of the set, `folder:PATH` or `shards:PATH`.
    pub name: String,
    /// Training images to use, validation included; all without it.
    pub train: Option<usize>,
    /// Test images to use; all without it.
    pub test: Option<usize>,
    /// Set that a trial run takes when the named one is not at hand.
    pub smoke: Option<String>,
    /// Images held back for the choice of the epoch; a twelfth of the training images, or half of the test images, without it.
    pub valid: Option<usize>,
    /// Where these come from. Without it from the training images, but from the test images where `model.file` brings a network: what has been
    /// trained before may have seen every training image.
    pub valid_from: Option<ValidFrom>,
}

/// A split that gives the validation images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValidFrom {
    /// Training images, drawn by the run's seed; they are not trained on.
    #[default]
    Train,
    /// Test images, the same for every seed; figures are of the others.
    Test,
}

impl ModelSpec {
    /// The container with the network, if there is one.
    pub fn container(&self) -> Option<&Path> {
        self.file.as_deref().filter(|file| is_container(file))
    }

    /// Refuses what a container brings itself, and names of a checkpoint that is not there.
    fn check(&self) -> Result<()> {
        let given = [
            ("arch", self.arch.is_some()),
            ("width", self.width.is_some()),
            ("size", self.size.is_some()),
            ("prefix", self.prefix.is_some()),
            ("table", self.table.is_some()),
            ("mean", self.mean.is_some()),
            ("std", self.std.is_some()),
        ];
        match (self.container(), given.iter().find(|(_, given)| *given)) {
            (Some(file), Some((key, _))) => {
                bail!("{} brings its own layers and normalization: leave out `{key}`", file.display())
            }
            _ if self.file.is_none() && (self.prefix.is_some() || self.table.is_some()) => {
                bail!("`prefix` and `table` find weights in a checkpoint: name its `file`")
            }
            _ => Ok(()),
        }
    }
}

fn is_container(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "brq")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Top {
    model: toml::Value,
    data: toml::Value,
    #[serde(default = "auto")]
    device: String,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    pass: Vec<toml::Table>,
}

impl Config {
    /// Reads and checks a config. `sets` are `KEY=VALUE` with keys like `pass.1.tune.epochs`.
    ///
    /// # Errors
    /// Names the file, and the pass and key where there is one.
    pub fn read(path: &Path, sets: &[String], smoke: bool, device: Option<&str>) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the config {}", path.display()))?;
        Self::parse(path, &text, sets, smoke, device)
    }

    /// [`Config::read`] of a text that is already there.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(path: &Path, text: &str, sets: &[String], smoke: bool, device: Option<&str>) -> Result<Self> {
        let at = || path.display().to_string();
        let mut table: toml::Table = text.parse().with_context(at)?;
        for set in sets {
            keys::set(&mut table, set).with_context(|| format!("--set {set}"))?;
        }
        if let Some(device) = device {
            table.insert("device".into(), device.into());
        }
        let resolved = toml::to_string(&table).with_context(at)?;
        let top: Top = read(table).with_context(at)?;
        let short = if top.model.as_str().is_some_and(|name| is_container(name.as_ref())) { "file" } else { "arch" };
        let model = keys::all_quoted(&top.model, "table").and_then(|()| named_or_table::<ModelSpec>(top.model, short));
        let model = model.with_context(|| format!("{}: model", at()))?;
        model.check().with_context(|| format!("{}: model", at()))?;
        let mut data: DataSpec = named_or_table(top.data, "name").with_context(|| format!("{}: data", at()))?;
        data.valid_from.get_or_insert(if model.file.is_some() { ValidFrom::Test } else { ValidFrom::Train });
        let mut passes = Vec::new();
        for (index, settings) in top.pass.into_iter().enumerate() {
            passes.push(step(index, settings, smoke).with_context(at)?);
        }
        sequence::check(&passes, model.file.is_some()).with_context(at)?;
        if !smoke {
            data.smoke = None;
        } else {
            data.train = Some(data.train.map_or(SMOKE_TRAIN, |n| n.min(SMOKE_TRAIN)));
            data.test = Some(data.test.map_or(SMOKE_TEST, |n| n.min(SMOKE_TEST)));
            data.valid = data.valid.map(|n| n.min(SMOKE_TRAIN / 6));
        }
        let expected = text.lines().next().and_then(|line| line.strip_prefix('#')).unwrap_or("").trim().to_string();
        Ok(Self {
            path: path.into(),
            text: resolved,
            expected,
            model,
            data,
            device: top.device,
            seed: top.seed,
            passes,
            smoke,
            sets: sets.to_vec(),
            other_device: device.map(str::to_string),
        })
    }

    /// Hash of everything that the result depends on.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.text.as_bytes());
        hasher.update([u8::from(self.smoke)]);
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Name of the config, without folder and ending.
    pub fn name(&self) -> String {
        self.path.file_stem().map_or("run".into(), |stem| stem.to_string_lossy().into_owned())
    }
}

/// Images that a trial run uses at most.
const SMOKE_TRAIN: usize = 900;
const SMOKE_TEST: usize = 300;

fn step(index: usize, mut settings: toml::Table, trial: bool) -> Result<Step> {
    let at = || format!("pass {index}");
    let method = settings.remove("method").ok_or_else(|| anyhow!("has no `method`")).with_context(at)?;
    let name = method.as_str().ok_or_else(|| anyhow!("`method` is not a text: {method}")).with_context(at)?;
    let entry = METHODS.find(name).with_context(at)?;
    let settings = serde_json::to_value(settings).with_context(at)?;
    entry.read(settings.clone(), METHODS, trial).map_err(|error| not_read(index, entry, &settings, &error))
}

/// What is missing is shown by the method's example.
fn not_read(index: usize, entry: &Entry, settings: &serde_json::Value, error: &serde_json::Error) -> anyhow::Error {
    let name = entry.name;
    let text = keys::explain(&error.to_string(), |key, to| {
        let error = (entry.parse)(keys::renamed(settings, key, to), METHODS).err();
        error.is_none_or(|error| !error.to_string().starts_with("unknown field"))
    });
    let example = if text.starts_with("missing field") {
        format!("; for example: {}", entry.example.replace('\n', ", "))
    } else {
        String::new()
    };
    anyhow!("pass {index} ({name}): {text}{example}")
}

/// `"lenet5"` is short for `{ arch = "lenet5" }`, `"net.brq"` for `{ file = "net.brq" }`.
fn named_or_table<T: DeserializeOwned>(value: toml::Value, short: &str) -> Result<T> {
    let table = match value {
        toml::Value::String(name) => [(short.to_string(), toml::Value::String(name))].into_iter().collect(),
        toml::Value::Table(table) => table,
        other => bail!("must be a name or a table, not {other}"),
    };
    read(table)
}

fn read<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    toml::Value::Table(table).try_into().map_err(|error: toml::de::Error| anyhow!(keys::explain(error.message(), |_, _| false)))
}

fn auto() -> String {
    "auto".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# expected\nmodel = \"lenet5\"\ndata = \"glyphs\"\n[[pass]]\nmethod = \"train\"\nepochs = 3\n\
                        [[pass]]\nmethod = \"magnitude\"\nkeep = 0.1\ntune = { epochs = 4 }\n";

    fn parse(text: &str, sets: &[&str]) -> Result<Config> {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
        Config::parse(Path::new("test.toml"), text, &sets, false, None)
    }

    #[test]
    fn keys_can_be_overridden_deep_down() {
        let config = parse(TEXT, &["pass.1.tune.epochs=1", "model=lenet300", "seed=9"]).unwrap();
        assert_eq!(config.passes[1].trainings().next().unwrap().epochs, 1);
        assert_eq!(config.model.arch.as_deref(), Some("lenet300"));
        assert_eq!((config.seed, config.expected.as_str()), (9, "expected"));
        assert_ne!(config.hash(), parse(TEXT, &[]).unwrap().hash());
        let error = format!("{:#}", parse(TEXT, &["pass.7.epochs=1"]).unwrap_err());
        assert!(error.contains("'pass' has the entries 0 to 1, not '7'"), "{error}");
    }

    #[test]
    fn validation_images_of_a_network_that_was_trained_before_come_from_the_test_set() {
        let from = |text: &str, sets: &[&str]| parse(text, sets).unwrap().data.valid_from;
        let (fresh, checkpoint) = (TEXT, TEXT.replace("\"lenet5\"", "{ arch = \"lenet5\", file = \"theirs.pt\" }"));
        let container = TEXT.replace("\"lenet5\"", "\"start/lenet5.brq\"");
        assert_eq!(parse(&container, &[]).unwrap().model.container(), Some(Path::new("start/lenet5.brq")));
        assert_eq!(from(fresh, &[]), Some(ValidFrom::Train));
        assert_eq!([from(&checkpoint, &[]), from(&container, &[])], [Some(ValidFrom::Test); 2]);
        let said = ["data={ name = \"glyphs\", valid-from = \"train\" }"];
        assert_eq!(from(&container, &said), Some(ValidFrom::Train));
    }

    #[test]
    fn faults_are_named_with_file_pass_and_what_would_be_right() {
        let cases = [
            (TEXT.replace("keep", "kep"), "test.toml: pass 1 (magnitude): unknown field `kep`"),
            (
                TEXT.replace("magnitude", "filter-l1").replace("keep", "rate"),
                "(filter-l1): unknown field `rate`, expected one of `budget`, `except`, `layers`, `ratio`, `renew`, `tune`",
            ),
            (TEXT.replace("magnitude", "kmeans-sharing").replace("keep = 0.1", ""), "missing field `bits`; for example: bits = "),
            (TEXT.replace("magnitude", "magnitud"), "unknown method 'magnitud'; did you mean 'magnitude'?"),
            (TEXT.replace("0.1", "1.5"), "a ratio lies in [0, 1], not 1.5"),
            (TEXT.replace("seed", "sead").replace("data =", "sead = 1\ndata ="), "unknown field `sead`"),
            (TEXT.replace("method = \"train\"", ""), "pass 0: has no `method`"),
            (TEXT.replace("\"glyphs\"", "3"), "data: must be a name or a table, not 3"),
            (
                TEXT.replace("keep = 0.1", "keep = { layer1.0.conv1 = 0.5 }"),
                "(magnitude): `layer1.0.conv1` is a table within tables; a name with dots needs quotes: { \"layer1.0.conv1\" = 0.5 }",
            ),
            (
                TEXT.replace("\"lenet5\"", "{ arch = \"lenet5\", table = { layer1.0.conv1 = \"a\" } }"),
                "model: `layer1.0.conv1` is a table within tables; a name with dots needs quotes",
            ),
            (TEXT.replace("epochs = 4", "weight_decay = 0.1"), "unknown field `weight_decay`, expected one of `epochs`"),
            (TEXT.replace("epochs = 4", "weight_decay = 0.1"), "; did you mean `weight-decay`?"),
            (TEXT.replace("epochs = 4", "weight-decai = 0.1"), "; did you mean `weight-decay`?"),
            (
                TEXT.replace("magnitude", "ecsq").replace("keep = 0.1", "lambda = 0.1\nper_layer = true"),
                "`tune`; did you mean `per-layer`?",
            ),
            (
                TEXT.replace("\"lenet5\"", "{ file = \"a.brq\", width = 0.5 }"),
                "test.toml: model: a.brq brings its own layers and normalization: leave out `width`",
            ),
        ];
        for (text, expected) in cases {
            let error = format!("{:#}", parse(&text, &[]).unwrap_err());
            assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        }
    }
}
