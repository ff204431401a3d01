use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    Error, Locations, folder, get,
    manifest::{File, Manifest},
    open::Origin,
    shards,
};

/// Whether the files of a set are at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The set needs no files.
    Embedded,
    /// All files exist; they are checked when the set is opened.
    Found(PathBuf),
    /// Some files are absent.
    Missing {
        /// The absent files.
        files: Vec<MissingFile>,
    },
}

/// A file that was not found, and what identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingFile {
    /// Name of the file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Where it can be fetched; empty if nowhere.
    pub urls: Vec<String>,
}

/// Looks for the files of a set without opening them.
pub fn locate(name: &str, at: &Locations) -> Result<Status, Error> {
    let own = |path: &Path, holds| there(path, holds).map(|()| Status::Found(path.into()));
    let set = match Origin::of(name)? {
        Origin::Glyphs => return Ok(Status::Embedded),
        Origin::Folder(path) => return own(path, folder::HOLDS),
        Origin::Shards(path) => return own(path, shards::HOLDS),
        Origin::Files(set) | Origin::Rotated(set) | Origin::Cluttered(set) => set,
    };
    Ok(match find(&set, at) {
        Ok(found) => Status::Found(found[0].folder.clone()),
        Err(files) => Status::Missing { files: files.into_iter().map(describe).collect() },
    })
}

/// Refuses a folder that is not there, with what it should hold.
pub(crate) fn there(folder: &Path, holds: &str) -> Result<(), Error> {
    match folder.try_exists().map_err(Error::io(folder))? {
        true => Ok(()),
        false => Err(Error::malformed(folder, format!("there is no such folder; {holds}"))),
    }
}

/// A file of a set, as it lies on disk.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) folder: PathBuf,
    parts: Vec<Part>,
    /// Whether this is the file as distributed, not its unpacked content.
    pub(crate) packed: bool,
}

#[derive(Clone, Debug)]
struct Part {
    path: PathBuf,
    bytes: u64,
    sha256: String,
}

/// The verified bytes of a file.
pub(crate) struct Checked {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sha256: String,
}

impl Found {
    /// Reads each part and checks length and SHA-256 of exactly the bytes that are handed on.
    pub(crate) fn read(&self) -> Result<Vec<Checked>, Error> {
        self.parts.iter().map(|part| checked(&part.path, part.bytes, &part.sha256)).collect()
    }
}

/// Finds every file of the set, optional ones only if present; or tells which are absent.
pub(crate) fn find<'a>(set: &'a Manifest, at: &Locations) -> Result<Vec<Found>, Vec<&'a File>> {
    let search = set.files.iter().map(|file| (file, find_file(set, file, at)));
    let (found, absent): (Vec<_>, Vec<_>) = search.partition(|(_, found)| found.is_some());
    let absent: Vec<&File> = absent.into_iter().map(|(file, _)| file).filter(|file| !file.optional).collect();
    if absent.is_empty() { Ok(found.into_iter().filter_map(|(_, found)| found).collect()) } else { Err(absent) }
}

fn find_file(set: &Manifest, file: &File, at: &Locations) -> Option<Found> {
    let below = [set.name.as_str()].into_iter().chain(set.folders.iter().map(String::as_str)).chain([""]);
    let folders: Vec<PathBuf> = below.flat_map(|below| at.dirs.iter().map(move |dir| dir.join(below))).collect();
    folders.iter().find_map(|folder| {
        let part = |file: &str, bytes, sha256: &str| Part { path: folder.join(file), bytes, sha256: sha256.into() };
        let whole = vec![part(&file.file, file.bytes, &file.sha256)];
        let pieces: Vec<Part> = file.unpacked.iter().map(|piece| part(&piece.file, piece.bytes, &piece.sha256)).collect();
        let here = |parts: &Vec<Part>| !parts.is_empty() && parts.iter().all(|part| part.path.is_file());
        [(whole, true), (pieces, false)].into_iter().find(|(parts, _)| here(parts)).map(|(parts, packed)| Found {
            folder: folder.clone(),
            parts,
            packed,
        })
    })
}

/// Reads a file whose length and SHA-256 are known.
pub(crate) fn checked(path: &Path, bytes: u64, sha256: &str) -> Result<Checked, Error> {
    let file = fs::File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let size = |found| Error::Size { path: path.into(), expected: bytes, found };
    if length != bytes {
        let mut start = Vec::new();
        file.take(64).read_to_end(&mut start).map_err(Error::io(path))?;
        return Err(if is_lfs_pointer(&start) { Error::LfsPointer { path: path.into() } } else { size(length) });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.take(bytes + 1).read_to_end(&mut content).map_err(Error::io(path))?;
    if content.len() as u64 != bytes {
        return Err(size(content.len() as u64));
    }
    let found = sha256_of(&content);
    if found != sha256 {
        return Err(Error::Checksum { path: path.into(), expected: sha256.into(), found });
    }
    Ok(Checked { path: path.into(), bytes: content, sha256: found })
}

/// Whether these are the few lines that git-LFS leaves in place of a file.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(crate) fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Finds the set's files, downloading them first if they are absent and the network may be used.
pub(crate) fn obtain(set: &Manifest, at: &Locations) -> Result<Vec<Found>, Error> {
    let missing = |files: Vec<&File>| Error::Missing {
        set: set.name.clone(),
        files: files.into_iter().map(|file| file.file.clone()).collect(),
        dirs: at.dirs.clone(),
    };
    match find(set, at) {
        Ok(found) => Ok(found),
        Err(absent) if at.offline || absent.iter().any(|file| file.urls.is_empty()) => Err(missing(absent)),
        Err(_) => {
            let folder = get(&set.name, at, &mut |_, _| ())?;
            let mut there = at.clone();
            there.dirs.push(folder);
            find(set, &there).map_err(missing)
        }
    }
}

fn describe(file: &File) -> MissingFile {
    MissingFile { file: file.file.clone(), bytes: file.bytes, sha256: file.sha256.clone(), urls: file.urls.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GlyphCounts;
    use crate::manifest;

    fn only(dir: &Path) -> Locations {
        Locations { dirs: vec![dir.into()], cache: None, offline: true, glyphs: GlyphCounts::default() }
    }

    #[test]
    fn absent_files_are_named_with_their_checksums() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let Ok(Status::Missing { files }) = locate("mnist", &only(dir.path())) else { panic!("nothing is there") };
        assert_eq!(files.len(), 4);
        assert!(files.iter().all(|file| file.sha256.len() == 64 && !file.urls.is_empty()));
        let error = crate::open("mnist", &only(dir.path())).expect_err("nothing is there");
        assert!(matches!(error, Error::Missing { .. }));
        let text = error.to_string();
        assert!(text.contains("t10k-labels-idx1-ubyte.gz") && text.contains("--data-dir"), "{text}");
    }

    #[test]
    fn files_are_found_in_each_layout() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let set = manifest("mnist").expect("known");
        for folder in ["mnist", "MNIST/raw", ""] {
            let folder = dir.path().join(folder);
            fs::create_dir_all(&folder).expect("folder");
            set.files.iter().for_each(|file| fs::write(folder.join(&file.unpacked[0].file), []).expect("file"));
            assert!(matches!(locate("mnist", &only(dir.path())), Ok(Status::Found(_))));
            set.files.iter().for_each(|file| fs::remove_file(folder.join(&file.unpacked[0].file)).expect("file"));
        }
    }

    #[test]
    fn length_and_checksum_are_both_checked() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("file");
        fs::write(&path, b"abc").expect("write");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(checked(&path, 3, sha256).expect("intact").bytes, b"abc");
        assert!(matches!(checked(&path, 4, sha256), Err(Error::Size { expected: 4, found: 3, .. })));
        fs::write(&path, b"abd").expect("write");
        let error = checked(&path, 3, sha256).err().expect("changed");
        assert!(matches!(&error, Error::Checksum { expected, .. } if expected == sha256), "{error}");
        assert!(matches!(checked(&dir.path().join("none"), 3, sha256), Err(Error::Io { .. })));
        fs::write(&path, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n").expect("write");
        let error = checked(&path, 3, sha256).err().expect("a pointer").to_string();
        assert!(error.contains("git-LFS pointer") && error.contains("git lfs pull"), "{error}");
    }
}
