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

/// How the names of files begin that are being written.
const UNFINISHED: &str = ".unfinished-";

/// Removes what writing left in a folder when it was killed; what cannot be removed does no harm.
pub fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// As [`write()`], of what `content` writes; the number of bytes.
///
/// # Errors
/// Names the file; the old one is untouched. Those of `content`.
pub fn stream(path: &Path, content: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let save = || -> Result<u64> {
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        content(&mut file)?;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let len = file.as_file().metadata()?.len();
        file.persist(path)?;
        Ok(len)
    };
    save().with_context(|| format!("cannot write {}; is the disk full or the folder read-only?", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_the_old_one_and_remnants_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.state");
        assert_eq!(stream(&path, |to| Ok(to.write_all(b"first")?)).unwrap(), 5);
        let failed = stream(&path, |to| {
            to.write_all(&vec![7; 3 << 20])?;
            anyhow::bail!("no more")
        });
        let failed = format!("{:#}", failed.unwrap_err());
        assert!(failed.starts_with(&format!("cannot write {}", path.display())) && failed.ends_with("no more"), "{failed}");
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        // A process that is killed cannot remove what it was writing.
        std::fs::write(folder.path().join(format!("{UNFINISHED}Xy7")), "half").unwrap();
        sweep(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
