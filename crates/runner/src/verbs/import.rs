use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use briquette_core::stored::Storage;
use briquette_core::zoo::Arch;
use burn::tensor::Device;
use serde::Serialize;

use crate::report::Row;
use crate::{files, measure, setup};

/// The container that a checkpoint became.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Imported {
    row: Row,
    #[serde(skip)]
    out: PathBuf,
}

/// `import`.
pub(crate) fn import(
    file: &Path,
    names: &setup::Names,
    arch: &str,
    normalization: Option<(Vec<f32>, Vec<f32>)>,
    classes: Option<usize>,
    out: &Path,
) -> Result<Imported> {
    let arch = Arch::within(crate::zoo(), arch)?;
    let mut wanted = arch.wanted();
    wanted.classes = classes.unwrap_or(wanted.classes);
    wanted.normalization = normalization;
    let net = arch.build(&wanted, &Device::flex())?;
    let net = names.assign(net, file)?;
    let (row, bytes) = measure::size(&net, Storage::default(), 0, "import")?;
    files::write(out, &bytes)?;
    Ok(Imported { row, out: out.into() })
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { params, macs, file_bytes, .. } = &self.row;
        write!(f, "{}: {params} parameters, {macs} MACs, {} bytes", self.out.display(), file_bytes.unwrap_or(0))
    }
}
