//! IDX: a magic number, big-endian sizes, then bytes (LeCun's MNIST files).

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;

use crate::{
    Dataset, Error,
    files::{Checked, Found},
    manifest::Manifest,
};

const IMAGES: u32 = 2051;
const LABELS: u32 = 2049;

/// Reads training images, training labels, test images and test labels, each gzipped or plain.
pub(crate) fn splits(set: &Manifest, found: &[Found]) -> Result<(Dataset, Dataset, Vec<String>), Error> {
    let mut sha256 = Vec::new();
    let mut halves = Vec::new();
    for (split, pair) in ["train", "test"].into_iter().zip(found.chunks(2)) {
        let [images, labels] = [unpack(&pair[0], &mut sha256)?, unpack(&pair[1], &mut sha256)?];
        let half = half(format!("{} {split}", set.name), set.classes.len(), &images, &labels)?;
        if half.shape != set.shape {
            return Err(Error::malformed(images.path, format!("images of the shape {:?}, not {:?}", half.shape, set.shape)));
        }
        halves.push(half);
    }
    let test = halves.pop().expect("four files make two splits");
    let train = halves.pop().expect("four files make two splits");
    Ok((train, test, sha256))
}

/// One split from a file of images and one of labels.
fn half(name: String, classes: usize, images: &Plain, labels: &Plain) -> Result<Dataset, Error> {
    let ([count, height, width], pixels) = images_of(images)?;
    let marks = labels_of(labels)?;
    if count != marks.len() {
        let what = format!("{} labels for {count} images of {height}x{width}", marks.len());
        return Err(Error::malformed(&labels.path, what));
    }
    Dataset::from_memory(name, [1, height, width], classes, pixels, marks.into_iter().map(u16::from).collect())
}

impl Dataset {
    /// Grey images from a file of images and one of labels in the IDX format, plain or gzipped, whose bytes are in memory: a magic number,
    /// big-endian sizes, then a byte for each pixel or label (Y. LeCun, C. Cortes, C. Burges, *The MNIST database*).
    ///
    /// # Errors
    /// When one of them is no such file, or they do not fit together.
    pub fn from_idx(name: impl Into<String>, classes: usize, images: &[u8], labels: &[u8]) -> Result<Self, Error> {
        let name = name.into();
        let plain = |what: &str, bytes: &[u8]| {
            let path = PathBuf::from(format!("{name} {what}"));
            let bytes = if bytes.starts_with(&GZIP) { gunzip(&path, bytes)? } else { bytes.to_vec() };
            Ok(Plain { path, bytes })
        };
        let (images, labels) = (plain("images", images)?, plain("labels", labels)?);
        half(name, classes, &images, &labels)
    }
}

/// How gzipped files begin.
const GZIP: [u8; 2] = [0x1f, 0x8b];

struct Plain {
    path: PathBuf,
    bytes: Vec<u8>,
}

fn unpack(found: &Found, sha256: &mut Vec<String>) -> Result<Plain, Error> {
    let Checked { path, bytes, sha256: digest } = found.read()?.remove(0);
    sha256.push(digest);
    let bytes = if found.packed { gunzip(&path, &bytes)? } else { bytes };
    Ok(Plain { path, bytes })
}

/// Longest content a gzipped file may unfold to.
const LIMIT: u64 = 1 << 30;

fn gunzip(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let read = GzDecoder::new(bytes).take(LIMIT + 1).read_to_end(&mut content);
    read.map_err(|error| Error::malformed(path, format!("not a whole gzip stream: {error}")))?;
    if content.len() as u64 > LIMIT {
        return Err(Error::malformed(path, format!("unfolds to more than {LIMIT} bytes")));
    }
    Ok(content)
}

fn images_of(file: &Plain) -> Result<([usize; 3], Vec<u8>), Error> {
    let (sizes, pixels) = parse(file, IMAGES, 3)?;
    Ok(([sizes[0], sizes[1], sizes[2]], pixels))
}

fn labels_of(file: &Plain) -> Result<Vec<u8>, Error> {
    Ok(parse(file, LABELS, 1)?.1)
}

/// Splits a file into its `rank` sizes and its bytes, whose number must be the product of the sizes.
fn parse(file: &Plain, magic: u32, rank: usize) -> Result<(Vec<usize>, Vec<u8>), Error> {
    let fault = |what| Err(Error::malformed(&file.path, what));
    let header = 4 * (1 + rank);
    if file.bytes.len() < header {
        return fault(format!("{} bytes are shorter than the header of {header}", file.bytes.len()));
    }
    let (head, body) = file.bytes.split_at(header);
    let words: Vec<u32> = head.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]])).collect();
    if words[0] != magic {
        return fault(format!("expected IDX magic number {magic}, found {}", words[0]));
    }
    let product = words[1..].iter().try_fold(1_usize, |product, &size| product.checked_mul(size as usize));
    if product != Some(body.len()) {
        return fault(format!("the header promises sizes {:?}, but {} bytes follow", &words[1..], body.len()));
    }
    Ok((words[1..].iter().map(|&size| size as usize).collect(), body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> Plain {
        Plain { path: "some.idx".into(), bytes: bytes.to_vec() }
    }

    const TWO_IMAGES: [u8; 20] = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 10, 20, 30, 40];

    #[test]
    fn golden_bytes() {
        assert_eq!(images_of(&file(&TWO_IMAGES)).expect("whole"), ([2, 1, 2], vec![10, 20, 30, 40]));
        assert_eq!(labels_of(&file(&[0, 0, 8, 1, 0, 0, 0, 3, 7, 0, 9])).expect("whole"), [7, 0, 9]);
    }

    #[test]
    fn broken_files_are_refused() {
        let error = |bytes: &[u8]| images_of(&file(bytes)).expect_err("broken").to_string();
        assert!(error(&TWO_IMAGES[..10]).contains("shorter than the header of 16"));
        assert!(error(&TWO_IMAGES[..19]).contains("[2, 1, 2], but 3 bytes follow"));
        assert!(error(&[0, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).contains("magic number 2051, found 2049"));
        let huge = [&[0, 0, 8, 3][..], &[255; 12], &[0]].concat();
        assert!(error(&huge).contains("but 1 bytes follow"));
    }

    #[test]
    fn files_in_memory_become_a_set() {
        let labels = [0, 0, 8, 1, 0, 0, 0, 2, 1, 0];
        let set = Dataset::from_idx("mine", 2, &TWO_IMAGES, &labels).expect("whole");
        assert_eq!((set.shape, set.len(), set.pixel(1).expect("memory"), set.label(0)), ([1, 1, 2], 2, vec![30, 40], 1));
        let error = |labels: &[u8]| Dataset::from_idx("mine", 2, &TWO_IMAGES, labels).expect_err("broken").to_string();
        assert_eq!(error(&[0, 0, 8, 1, 0, 0, 0, 1, 1]), "mine labels: 1 labels for 2 images of 1x2");
        assert!(error(&[0, 0, 8, 1, 0, 0, 0, 2, 1, 2]).contains("label 2 of image 1"));
        assert!(error(&GZIP).starts_with("mine labels: not a whole gzip stream"));
    }

    #[test]
    fn a_cut_gzip_stream_is_refused() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&TWO_IMAGES).expect("memory");
        let packed = packed.finish().expect("memory");
        assert_eq!(gunzip(Path::new("f.gz"), &packed).expect("whole"), TWO_IMAGES);
        let error = gunzip(Path::new("f.gz"), &packed[..packed.len() - 9]).expect_err("cut").to_string();
        assert!(error.starts_with("f.gz: not a whole gzip stream"), "{error}");
    }
}
