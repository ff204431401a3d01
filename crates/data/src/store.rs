//! Decoded pixels kept between runs: a magic number, the pixels, their SHA-256. Losing the file costs time, nothing else.

use std::{env, fs, io, io::Write, path::Path, path::PathBuf};

use sha2::{Digest, Sha256};

use crate::Locations;

/// Its number rises when the same archive decodes to other pixels.
const MAGIC: &[u8; 8] = b"BRQPIX01";
const DIGEST: usize = 32;

/// The pixels stored under `key`, if they are there, whole and unchanged.
pub(crate) fn load(key: &str, pixels: usize, at: &Locations) -> Option<Vec<u8>> {
    folders(at).iter().find_map(|folder| read(&folder.join(file(key)), pixels))
}

/// Stores the pixels in the first folder that can be written to, if any.
pub(crate) fn save(key: &str, pixels: &[u8], at: &Locations) {
    folders(at).iter().any(|folder| write(folder, &file(key), pixels).is_ok());
}

fn folders(at: &Locations) -> Vec<PathBuf> {
    at.cache.iter().map(|cache| cache.join("decoded")).chain([env::temp_dir().join("briquette-decoded")]).collect()
}

fn file(key: &str) -> String {
    format!("{key}.pixels")
}

fn read(path: &Path, pixels: usize) -> Option<Vec<u8>> {
    let length = fs::metadata(path).ok()?.len();
    if length != (MAGIC.len() + pixels + DIGEST) as u64 {
        return None;
    }
    let mut bytes = fs::read(path).ok()?;
    let digest = bytes.split_off(bytes.len().checked_sub(DIGEST)?);
    if !bytes.starts_with(MAGIC) || Sha256::digest(&bytes)[..] != digest[..] {
        return None;
    }
    bytes.drain(..MAGIC.len());
    Some(bytes)
}

/// Writes under a name of this process and renames, so that no reader meets half a file.
fn write(folder: &Path, name: &str, pixels: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let part = folder.join(format!("{name}.{}.part", std::process::id()));
    let digest = Sha256::new().chain_update(MAGIC).chain_update(pixels).finalize();
    let written = fs::File::create(&part).and_then(|mut file| {
        file.write_all(MAGIC)?;
        file.write_all(pixels)?;
        file.write_all(&digest)
    });
    written.and_then(|()| fs::rename(&part, folder.join(name))).inspect_err(|_| drop(fs::remove_file(&part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_and_unchanged_files_are_used() {
        let dir = tempfile::tempdir().expect("temporary folder");
        write(dir.path(), "k.pixels", &[1, 2, 3]).expect("written");
        let path = dir.path().join("k.pixels");
        assert_eq!(read(&path, 3), Some(vec![1, 2, 3]));
        assert_eq!(read(&path, 4), None);
        let mut bytes = fs::read(&path).expect("written");
        bytes[9] ^= 1;
        fs::write(&path, bytes).expect("written");
        assert_eq!(read(&path, 3), None);
        assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("file"), []).expect("written");
        assert!(write(&dir.path().join("file"), "k.pixels", &[1]).is_err());
    }
}
