//! Files that are either whole or not there.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes a file so that a crash, a kill or a full disk leaves the old one or the new one: a temporary file beside it, flushed to the
/// disk, then renamed.
///
/// # Errors
/// Names the file; the old one is untouched.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let save = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    save().with_context(|| {
        format!("cannot write {} ({} bytes); is the disk full or the folder read-only?", path.display(), bytes.len())
    })
}
