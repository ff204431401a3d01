use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use briquette_runtime::Model;
use serde::Serialize;

/// What is wrong with a container.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    file: PathBuf,
    faults: Vec<String>,
}

/// `verify`.
pub(crate) fn verify(file: &Path) -> Result<Verified> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Verified { file: file.into(), faults: Model::verify(&bytes) })
}

impl Verified {
    pub(crate) fn sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sound() { write!(f, "{}: sound", self.file.display()) } else { f.write_str(&self.faults.join("\n")) }
    }
}
