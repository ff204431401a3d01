use std::{io, path::PathBuf};

use crate::Hint;

/// What went wrong while a data set was looked for, fetched or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No data set has this name.
    #[error("unknown data set '{name}'{hint} (a folder of images is named 'folder:PATH', one of tar archives 'shards:PATH')")]
    UnknownSet {
        /// The name asked for.
        name: String,
        /// Which it may have meant.
        hint: Hint,
    },
    /// Files of the set are in none of the folders searched.
    #[error(
        "data set '{set}': {} not found in {}; put the files into one of these folders (or below it, into '{set}/'), \
         name their folder with --data-dir or BRIQUETTE_DATA, or run `briquette data get {set}` with a network",
        files.join(", "),
        folders(dirs)
    )]
    Missing {
        /// Name of the set.
        set: String,
        /// The absent files.
        files: Vec<String>,
        /// The folders searched.
        dirs: Vec<PathBuf>,
    },
    /// The operating system refused to read or to write.
    #[error("{}: {reason}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says; no source of its own, which would be told a second time.
        reason: io::Error,
    },
    /// A file is not as long as its manifest says.
    #[error(
        "{}: expected {expected} bytes, found {found}; the file is incomplete or another one: delete it and fetch it again",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// A pointer that git-LFS leaves in place of a large file.
    #[error("{}: a git-LFS pointer, not the file itself: `git lfs pull` in its repository fetches that", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file's SHA-256 is not the manifest's.
    #[error(
        "{}: expected SHA-256 {expected}, found {found}; the file is damaged or another one: delete it and fetch it again",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// SHA-256 by the manifest.
        expected: String,
        /// SHA-256 of the bytes on disk.
        found: String,
    },
    /// A file's bytes break the rules of its format.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The broken rule, with the values found.
        what: String,
    },
    /// Images, labels and shape handed over do not fit together.
    #[error("data set '{name}': {what}")]
    Inconsistent {
        /// Name of the set.
        name: String,
        /// What does not fit, with the numbers.
        what: String,
    },
    /// The manifest knows no address for a file.
    #[error("data set '{set}': no public address is known for {file}; copy it into one of {} by hand", folders(dirs))]
    NotDownloadable {
        /// Name of the set.
        set: String,
        /// The file without an address.
        file: String,
        /// Where the file would be found.
        dirs: Vec<PathBuf>,
    },
    /// Every address of a file failed.
    #[error(
        "data set '{set}': could not download {file}: {}; fetch it by other means and put it into {}",
        attempts.join("; "),
        into.display()
    )]
    Download {
        /// Name of the set.
        set: String,
        /// The file.
        file: String,
        /// One line for each address: what happened.
        attempts: Vec<String>,
        /// Where the file would be found.
        into: PathBuf,
    },
    /// No folder is known to write to.
    #[error("data set '{set}': no cache folder is known to download into; set HOME or XDG_CACHE_HOME")]
    NoCache {
        /// Name of the set.
        set: String,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |reason| Self::Io { path, reason }
    }

    pub(crate) fn malformed(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), what: what.into() }
    }
}

fn folders(dirs: &[PathBuf]) -> String {
    if dirs.is_empty() {
        return "any folder (none is configured)".into();
    }
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}
