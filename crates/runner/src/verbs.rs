//! The verbs beside `run`. Each computes a value; how it reads as text is its `Display`, and as JSON what it serializes to.

mod bench;
mod data;
mod eval;
mod import;
mod inspect;
mod methods;
mod models;
mod plan;
mod verify;

use std::path::Path;

use anyhow::{Context as _, Result};
use briquette_runtime::Model;

pub(crate) use bench::{Settings, bench};
pub(crate) use data::{data, get};
pub(crate) use eval::eval;
pub(crate) use import::import;
pub(crate) use inspect::inspect;
pub(crate) use methods::methods;
pub(crate) use models::models;
pub(crate) use plan::Preview;
pub(crate) use verify::verify;

/// The container in a file, and the file's length.
fn container(file: &Path) -> Result<(Model, usize)> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let model = Model::from_bytes(&bytes).with_context(|| format!("{} is not a whole container", file.display()))?;
    Ok((model, bytes.len()))
}

/// The lines one below the other.
fn lines(f: &mut std::fmt::Formatter<'_>, lines: impl IntoIterator<Item = String>) -> std::fmt::Result {
    lines.into_iter().try_for_each(|line| writeln!(f, "{line}"))
}
