//! From names in a config to a device, data and a network.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use briquette_core::builder::stream;
use briquette_core::net::Net;
use briquette_core::pass::Data;
use briquette_core::zoo::{Arch, Wanted};
use briquette_data::{GlyphCounts, Locations, Splits, Status};
use burn::tensor::Device;

use crate::config::{Config, DataSpec, ModelSpec};

/// The device of this name.
///
/// # Errors
/// Unknown names and backends that this build leaves out, with the way to get them.
pub fn device(name: &str) -> Result<Device> {
    let (backend, _index) = name.split_once(':').unwrap_or((name, "0"));
    match backend {
        "auto" | "flex" => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        "ndarray" => Ok(Device::ndarray()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(_index.parse::<usize>().with_context(|| format!("device '{name}'"))?)),
        "ndarray" | "wgpu" | "vulkan" | "cuda" => bail!(
            "device '{name}': this binary was built without it; `cargo xtask run` builds what a config asks for, or build with `--features {backend}`"
        ),
        _ => Err(briquette_core::Error::unknown("device", name, ["auto", "flex", "ndarray", "wgpu", "vulkan", "cuda:0"]).into()),
    }
}

/// The data set, split three ways, and its normalization.
///
/// # Errors
/// When it is not there or not whole.
pub fn data(spec: &DataSpec, seed: u64, data_dir: Option<&Path>) -> Result<(Splits, Data)> {
    let mut at = Locations::from_env(data_dir);
    let all = GlyphCounts::default();
    at.glyphs = GlyphCounts { train: spec.train.unwrap_or(all.train), test: spec.test.unwrap_or(all.test) };
    let mut name = &spec.name;
    if let Status::Missing { files } = briquette_data::locate(name, &at)? {
        match &spec.smoke {
            Some(other) if !matches!(briquette_data::locate(other, &at)?, Status::Missing { .. }) => {
                tracing::info!("{name} is not at hand; this trial run takes {other}");
                name = other;
            }
            _ if !at.offline && files.iter().all(|file| !file.urls.is_empty()) => drop(fetch(name, &at)?),
            _ => {}
        }
    }
    let splits = briquette_data::open(name, &at)?;
    let train = spec.train.map_or(splits.train.clone(), |n| splits.train.take(n));
    let test = spec.test.map_or(splits.test.clone(), |n| splits.test.take(n));
    let valid = spec.valid.unwrap_or(train.len() / 12);
    if valid == 0 || valid >= train.len() {
        bail!("data '{name}': {valid} of {} training images cannot be held back for validation", train.len());
    }
    let (train, valid) = train.split(valid, stream(seed, "validation"));
    Ok((splits, Data { train, valid, test }))
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

/// The network that a config starts from. `splits` gives classes and normalization; without it (a plan) the architecture's own hold.
///
/// # Errors
/// Unknown architectures, files that do not fit.
pub fn model(config: &Config, splits: Option<&Splits>, device: &Device) -> Result<Net> {
    let spec = &config.model;
    if let Some(file) = spec.file.as_ref().filter(|file| file.extension().is_some_and(|e| e == "brq")) {
        let path = find(file, &config.path)?;
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let model = briquette_runtime::Model::from_bytes(&bytes).with_context(|| path.display().to_string())?;
        return Net::from_model(&model, device).with_context(|| path.display().to_string());
    }
    let name = spec.arch.as_ref().ok_or_else(|| anyhow!("model: names no `arch`"))?;
    let arch = Arch::named(name)?;
    let wanted = Wanted {
        width: spec.width,
        classes: splits.map_or(arch.classes, |splits| splits.classes.len()),
        normalization: normalization(spec, splits)?,
        seed: stream(config.seed, "weights"),
    };
    let net = arch.build(&wanted, device)?;
    if let Some(splits) = splits
        && net.input_shape() != splits.train.shape
    {
        bail!("model '{name}' takes images of shape {:?}, data '{}' has {:?}", arch.input, splits.name, splits.train.shape);
    }
    match &spec.file {
        None => Ok(net),
        Some(file) => {
            let checkpoint = briquette_interchange::read(&find(file, &config.path)?)?;
            Ok(briquette_interchange::assign(net, &checkpoint, spec.table.as_ref())?)
        }
    }
}

fn normalization(spec: &ModelSpec, splits: Option<&Splits>) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
    match (&spec.mean, &spec.std) {
        (Some(mean), Some(std)) => {
            if let Some(bad) = std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
                bail!("model: a deviation must be positive, not {bad}");
            }
            Ok(Some((mean.clone(), std.clone())))
        }
        (None, None) => Ok(splits.map(|splits| (splits.mean.clone(), splits.std.clone()))),
        _ => bail!("model: `mean` and `std` go together"),
    }
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
