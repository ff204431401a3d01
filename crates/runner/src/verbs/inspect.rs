use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use briquette_core::cost::Cost;
use briquette_interchange::Foreign;
use briquette_runtime::{Layer, Model, NotFinite, layers};
use serde::Serialize;

use crate::setup;

/// What is in a file.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Inspected {
    Container(Container),
    Checkpoint(Checkpoint),
}

#[derive(Debug, Serialize)]
pub(crate) struct Container {
    #[serde(skip)]
    file: PathBuf,
    file_bytes: usize,
    params: usize,
    macs: u64,
    tensors: Vec<Tensor>,
    not_finite: Vec<String>,
}

/// A tensor of a container.
#[derive(Debug, Serialize)]
struct Tensor {
    layer: String,
    kind: &'static str,
    output: Vec<usize>,
    tensor: String,
    shape: Vec<usize>,
    values: usize,
    nonzero: usize,
    sparse: bool,
    format: String,
    coder: String,
    codebook: Option<usize>,
    gap_bits: Option<u32>,
    bits: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Checkpoint {
    #[serde(skip)]
    file: PathBuf,
    values: usize,
    tensors: Vec<Part>,
    /// Masks of no tensor, with their shapes.
    #[serde(serialize_with = "names")]
    stray: BTreeMap<String, Vec<usize>>,
    unclear: BTreeMap<String, Vec<String>>,
    unread: BTreeMap<String, String>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Serialize)]
struct Part {
    tensor: String,
    shape: Vec<usize>,
    not_finite: usize,
    masked: Option<usize>,
}

fn names<S: serde::Serializer>(stray: &BTreeMap<String, Vec<usize>>, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(stray.keys())
}

/// `inspect`.
pub(crate) fn inspect(file: &Path, prefix: Option<&str>) -> Result<Inspected> {
    if !is_container(file) {
        return checkpoint(file, prefix).map(Inspected::Checkpoint);
    }
    if prefix.is_some() {
        bail!("{}: `--prefix` selects a part of a checkpoint, this is a container", file.display());
    }
    container(file).map(Inspected::Container)
}

/// Whether a file is a container, by its first bytes; what is named as one is read as one, to say what is wrong with it.
fn is_container(file: &Path) -> bool {
    let mut start = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(8).read_to_end(&mut start));
    (read.is_ok() && Model::is_begun(&start)) || file.extension().is_some_and(|ending| ending == "brq")
}

fn container(file: &Path) -> Result<Container> {
    let (model, file_bytes) = super::container(file)?;
    let shapes = model.check()?;
    let mut tensors = Vec::new();
    for (node, output) in model.nodes.iter().zip(&shapes) {
        for (name, coded) in &node.tensors {
            let summary = coded.summary();
            tensors.push(Tensor {
                layer: node.name.clone(),
                kind: node.layer.kind().name(),
                output: output.clone(),
                tensor: name.clone(),
                shape: coded.shape().to_vec(),
                values: coded.shape().iter().product(),
                nonzero: coded.nonzero(),
                sparse: summary.sparse,
                format: format!("{:?}", summary.value_format),
                coder: format!("{:?}", summary.coder),
                codebook: summary.codebook_len,
                gap_bits: summary.gap_bits,
                bits: coded.bits().total(),
            });
        }
    }
    let cost = Cost::of_model(&model)?;
    let not_finite = model.not_finite().iter().map(ToString::to_string).collect();
    Ok(Container { file: file.into(), file_bytes, params: cost.params(), macs: cost.macs(), tensors, not_finite })
}

fn checkpoint(file: &Path, prefix: Option<&str>) -> Result<Checkpoint> {
    let found = setup::checkpoint(file, prefix)?;
    let masked = |name: &String| found.masks.get(name).map(|mask| mask.iter().filter(|keep| !**keep).count());
    let part = |(name, tensor): (&String, &Foreign)| Part {
        tensor: name.clone(),
        shape: tensor.shape.clone(),
        not_finite: not_finite(name, tensor),
        masked: masked(name),
    };
    Ok(Checkpoint {
        file: file.into(),
        values: found.tensors.values().map(|tensor| tensor.values.len()).sum(),
        tensors: found.tensors.iter().map(part).collect(),
        stray: found.stray.iter().map(|(name, mask)| (name.clone(), mask.shape.clone())).collect(),
        unclear: found.unclear,
        unread: found.unread,
    })
}

/// How many values of a checkpoint's tensor no network computes with.
fn not_finite(name: &str, tensor: &Foreign) -> usize {
    // The file does not say what a norm adds to its variances; this is what PyTorch does.
    let norm = Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-5 });
    let part = if name.rsplit('.').next() == Some("running_var") { "var" } else { name };
    NotFinite::of(name, &norm, part, &tensor.values).map_or(0, |found| found.values)
}

impl fmt::Display for Inspected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inspected::Container(container) => container.fmt(f),
            Inspected::Checkpoint(checkpoint) => checkpoint.fmt(f),
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, file_bytes, params, macs, tensors, not_finite } = self;
        writeln!(f, "{}: {file_bytes} bytes, {params} parameters, {macs} MACs", file.display())?;
        super::lines(f, not_finite.iter().map(|what| alarm(what)))?;
        writeln!(
            f,
            "{:24} {:8} {:18} {:>10} {:>10} {:>8} {:>8} {:>9} {:>10} {:>7}",
            "layer", "tensor", "shape", "values", "non-zero", "format", "coder", "codebook", "bits", "ratio"
        )?;
        for Tensor { layer, tensor, shape, values, nonzero, format, coder, codebook, bits, .. } in tensors {
            let shape = dimensions(shape).replace(' ', "");
            let codebook = codebook.map_or("-".into(), |len| len.to_string());
            let ratio = 32.0 * *values as f64 / (*bits as f64).max(1.0);
            writeln!(
                f,
                "{layer:24} {tensor:8} {shape:18} {values:>10} {nonzero:>10} {format:>8} {coder:>8} {codebook:>9} {bits:>10} {ratio:>6.1}x"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, values, tensors, stray, unclear, unread } = self;
        writeln!(f, "{}: {} tensors, {values} values", file.display(), tensors.len())?;
        let count = |part: &Part| part.shape.iter().product::<usize>();
        for part in tensors.iter().filter(|part| part.not_finite > 0) {
            let what = format!("{} of {} value(s) of '{}' are not finite", part.not_finite, count(part), part.tensor);
            writeln!(f, "{}", alarm(&what))?;
        }
        for part in tensors {
            let mask = part.masked.map_or(String::new(), |gone| format!("  {gone} of {} masked", count(part)));
            writeln!(f, "{:48} {}{mask}", part.tensor, dimensions(&part.shape))?;
        }
        for (name, shape) in stray.iter().filter(|(name, _)| !unclear.contains_key(*name)) {
            writeln!(f, "{name:48} {}  a mask of no tensor", dimensions(shape))?;
        }
        super::lines(f, unclear.iter().map(|(name, of)| format!("{name:48} a mask that may be of {}", of.join(", "))))?;
        super::lines(f, unread.iter().map(|(name, what)| format!("{name:48} not read, {what}")))
    }
}

/// A line that cannot be overlooked.
fn alarm(what: &str) -> String {
    format!("NOT SOUND: {what}")
}

/// A shape as it is printed; `[]` would look like nothing.
fn dimensions(shape: &[usize]) -> String {
    if shape.is_empty() { "scalar".into() } else { format!("{shape:?}") }
}
