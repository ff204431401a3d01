//! Files that are either whole or not there.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes a file so that a crash, a kill or a full disk leaves the old one or the new one: a temporary file beside it, flushed to the
/// disk, then renamed.
///
/// # Errors
/// Names the file; the old one is untouched.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    stream(path, |to| Ok(to.write_all(bytes)?)).map(drop)
}

/// As [`write`], of what `content` writes; the number of bytes.
///
/// # Errors
/// Names the file; the old one is untouched. Those of `content`.
pub fn stream(path: &Path, content: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let save = || -> Result<u64> {
        let mut file = BufWriter::with_capacity(1 << 20, tempfile::NamedTempFile::new_in(folder)?);
        content(&mut file)?;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let len = file.as_file().metadata()?.len();
        file.persist(path)?;
        Ok(len)
    };
    save().with_context(|| format!("cannot write {}; is the disk full or the folder read-only?", path.display()))
}
