//! CIFAR records: one label byte (CIFAR-100: coarse, then fine), then red, green and blue planes.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use liblzma::read::XzDecoder;

use crate::{
    Dataset, Error,
    files::Found,
    manifest::{Format, Manifest},
};

/// Reads the archive, or the record files unpacked from it.
pub(crate) fn splits(set: &Manifest, found: &[Found]) -> Result<(Dataset, Dataset, Vec<String>), Error> {
    let file = &found[0];
    let parts = file.read()?;
    let sha256 = parts.iter().map(|part| part.sha256.clone()).collect();
    let records: Vec<(PathBuf, Vec<u8>)> = match (file.packed, set.format) {
        (false, _) => parts.into_iter().map(|part| (part.path, part.bytes)).collect(),
        (true, Format::CifarXz) => vec![(parts[0].path.clone(), unpack_xz(&parts[0].path, &parts[0].bytes, set)?)],
        (true, _) => unpack_tar(&parts[0].path, &parts[0].bytes, set)?,
    };
    if set.format == Format::CifarXz {
        let all = dataset(set, "first 4000", set.counts[0], &records)?;
        return Ok((all.clone(), all, sha256));
    }
    let (train, test) = records.split_at(records.len() - 1);
    Ok((dataset(set, "train", set.counts[0], train)?, dataset(set, "test", set.counts[1], test)?, sha256))
}

fn unpack_xz(path: &Path, bytes: &[u8], set: &Manifest) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let limit = set.files[0].unpacked[0].bytes + 1;
    let read = XzDecoder::new(bytes).take(limit).read_to_end(&mut content);
    read.map_err(|error| Error::malformed(path, format!("not a whole xz stream: {error}")))?;
    Ok(content)
}

/// The record files of an archive in the order of the manifest, not of the archive.
fn unpack_tar(path: &Path, bytes: &[u8], set: &Manifest) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let broken = |error| Error::malformed(path, format!("not a whole tar.gz archive: {error}"));
    let pieces = &set.files[0].unpacked;
    let mut contents: Vec<Option<Vec<u8>>> = vec![None; pieces.len()];
    for entry in tar::Archive::new(GzDecoder::new(bytes)).entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        if let Some(at) = pieces.iter().position(|piece| Path::new(&piece.file) == name) {
            let mut content = Vec::new();
            entry.take(pieces[at].bytes + 1).read_to_end(&mut content).map_err(broken)?;
            contents[at] = Some(content);
        }
    }
    let named = pieces.iter().zip(contents).map(|(piece, content)| {
        let absent = || Error::malformed(path, format!("the archive holds no {}", piece.file));
        content.map(|content| (path.join(&piece.file), content)).ok_or_else(absent)
    });
    named.collect()
}

fn dataset(set: &Manifest, split: &str, count: usize, files: &[(PathBuf, Vec<u8>)]) -> Result<Dataset, Error> {
    let lead = if set.format == Format::Cifar100 { 2 } else { 1 };
    let (mut images, mut labels) = (Vec::with_capacity(count * PIXELS), Vec::with_capacity(count));
    for (path, bytes) in files {
        records(path, bytes, lead, set.classes.len(), &mut images, &mut labels)?;
    }
    if labels.len() != count {
        let path = files.first().map_or_else(PathBuf::new, |(path, _)| path.clone());
        return Err(Error::malformed(path, format!("expected {count} records, found {}", labels.len())));
    }
    Dataset::from_memory(format!("{} {split}", set.name), set.shape, set.classes.len(), images, labels)
}

/// Height and width of an image, and its bytes.
const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

/// Appends the images and labels of a file of records, whose label is the last of `lead` bytes.
fn records(
    path: &Path,
    bytes: &[u8],
    lead: usize,
    classes: usize,
    images: &mut Vec<u8>,
    labels: &mut Vec<u16>,
) -> Result<(), Error> {
    let record = lead + PIXELS;
    if !bytes.len().is_multiple_of(record) {
        return Err(Error::malformed(path, format!("{} bytes are no whole number of records of {record}", bytes.len())));
    }
    images.reserve(bytes.len() / record * PIXELS);
    for sample in bytes.chunks_exact(record) {
        let label = sample[lead - 1];
        if usize::from(label) >= classes {
            return Err(Error::malformed(path, format!("label {label} of record {} is not below {classes}", labels.len())));
        }
        labels.push(u16::from(label));
        images.extend_from_slice(&sample[lead..]);
    }
    Ok(())
}

impl Dataset {
    /// Colour images of 32 by 32 pixels from CIFAR's records, whose bytes are in memory: the label, which is the last of `lead` bytes (1 for
    /// CIFAR-10, 2 for CIFAR-100), then the red, the green and the blue plane (A. Krizhevsky, *Learning multiple layers of features from tiny
    /// images*, 2009).
    ///
    /// # Errors
    /// When they are no whole number of records, a label is not below `classes`, or there is no byte for the label.
    pub fn from_cifar(name: impl Into<String>, classes: usize, lead: usize, bytes: &[u8]) -> Result<Self, Error> {
        let (name, mut images, mut labels) = (name.into(), Vec::new(), Vec::new());
        if !(1..=PIXELS).contains(&lead) {
            return Err(Error::malformed(name, format!("records that begin with {lead} bytes; the last of them is the label")));
        }
        records(Path::new(&name), bytes, lead, classes, &mut images, &mut labels)?;
        Self::from_memory(name, [3, SIDE, SIDE], classes, images, labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn record(lead: &[u8]) -> Vec<u8> {
        [lead, &[1; 1024], &[2; 1024], &[3; 1024]].concat()
    }

    fn read(set: &str, bytes: Vec<u8>, count: usize) -> Result<Dataset, Error> {
        dataset(&manifest(set).expect("known"), "train", count, &[("batch.bin".into(), bytes)])
    }

    #[test]
    fn golden_records() {
        let set = read("cifar10", [record(&[9]), record(&[0])].concat(), 2).expect("whole");
        assert_eq!(
            (set.label(0), set.label(1), set.pixel(1).expect("memory")[1023], set.pixel(1).expect("memory")[1024]),
            (9, 0, 1, 2)
        );
        let set = read("cifar100", record(&[19, 99]), 1).expect("whole");
        assert_eq!((set.label(0), set.pixel(0).expect("memory")[0]), (99, 1));
    }

    #[test]
    fn broken_records_are_refused() {
        let error = |bytes, count| read("cifar10", bytes, count).expect_err("broken").to_string();
        assert!(error(record(&[9])[..3000].to_vec(), 1).contains("records of 3073"));
        assert!(error(record(&[10]), 1).contains("label 10 of record 0"));
        assert!(error(record(&[1]), 2).contains("expected 2 records, found 1"));
    }

    #[test]
    fn records_in_memory_become_a_set() {
        let set = Dataset::from_cifar("mine", 7, 2, &[record(&[0, 6]), record(&[9, 1])].concat()).expect("whole");
        assert_eq!((set.shape, set.len(), set.label(0), set.label(1)), ([3, 32, 32], 2, 6, 1));
        assert_eq!((set.pixel(1).expect("memory")[0], set.pixel(1).expect("memory")[3071]), (1, 3));
        let error = |lead: usize, bytes: &[u8]| Dataset::from_cifar("mine", 7, lead, bytes).expect_err("broken").to_string();
        assert_eq!(error(1, &[0; 3072]), "mine: 3072 bytes are no whole number of records of 3073");
        assert_eq!(error(1, &record(&[7])), "mine: label 7 of record 0 is not below 7");
        assert!(error(0, &[]).contains("begin with 0 bytes") && error(usize::MAX, &[]).contains("begin with"));
    }

    #[test]
    fn archives_are_read_in_manifest_order() {
        let set = manifest("cifar100").expect("known");
        let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, byte) in
            [("cifar-100-binary/test.bin", 2_u8), ("cifar-100-binary/readme", 0), ("cifar-100-binary/train.bin", 1)]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            archive.append_data(&mut header, name, &[byte][..]).expect("memory");
        }
        let packed = archive.into_inner().and_then(flate2::write::GzEncoder::finish).expect("memory");
        let files = unpack_tar(Path::new("a.tar.gz"), &packed, &set).expect("whole");
        assert_eq!(files.iter().map(|(_, bytes)| bytes[0]).collect::<Vec<_>>(), [1, 2]);
        let cut = unpack_tar(Path::new("a.tar.gz"), &packed[..40], &set).expect_err("cut").to_string();
        assert!(cut.starts_with("a.tar.gz: not a whole tar.gz archive"), "{cut}");
        let other =
            unpack_tar(Path::new("a.tar.gz"), &packed, &manifest("cifar10").expect("known")).expect_err("other").to_string();
        assert!(other.contains("holds no cifar-10-batches-bin/data_batch_1.bin"), "{other}");
    }
}
