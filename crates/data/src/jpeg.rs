//! CIFAR-10 as JPEGs in a tar.xz of `train/<class>/0000.jpg` and `test/<class>/0000.jpg`.

use std::{io::Read, path::Path};

use image::ImageFormat;
use liblzma::read::XzDecoder;
use rayon::prelude::*;

use crate::{
    Dataset, Error, Locations,
    ends::is_whole,
    files::{Checked, Found},
    manifest::Manifest,
    store,
};

/// Reads both splits: training images in the order of the label file if it is there, else (as the test images) one of each class
/// in turn.
///
/// Decoding takes some seconds on two cores; the pixels are kept in the cache folder.
pub(crate) fn splits(set: &Manifest, found: &[Found], at: &Locations) -> Result<(Dataset, Dataset, Vec<String>), Error> {
    let archive = found[0].read()?.remove(0);
    let order = found.get(1).map(|labels| labels.read().map(|mut parts| parts.remove(0))).transpose()?;
    let size: usize = set.shape.iter().product();
    let pixels = match store::load(&archive.sha256, set.counts.iter().sum::<usize>() * size, at) {
        Some(pixels) => pixels,
        None => {
            let pixels = decode(set, &archive)?;
            store::save(&archive.sha256, &pixels, at);
            pixels
        }
    };
    let (train, test) = pixels.split_at(set.counts[0] * size);
    let in_turn = |count: usize| (0..count).map(|i| (i % set.classes.len()) as u8).collect::<Vec<_>>();
    let train_labels = order.as_ref().map_or_else(|| in_turn(set.counts[0]), |file| file.bytes.clone());
    let path = order.as_ref().map_or(&archive.path, |file| &file.path);
    let train = arrange(set, "train", train, &train_labels, path)?;
    let test = arrange(set, "test", test, &in_turn(set.counts[1]), path)?;
    Ok((train, test, [archive.sha256].into_iter().chain(order.map(|file| file.sha256)).collect()))
}

/// All pixels, `[train then test, class, number within class, c, h, w]`.
fn decode(set: &Manifest, archive: &Checked) -> Result<Vec<u8>, Error> {
    let files = unpack(set, archive)?;
    let size: usize = set.shape.iter().product();
    let mut pixels = vec![0; files.len() * size];
    pixels.par_chunks_exact_mut(size).zip(&files).enumerate().try_for_each(|(at, (slot, jpeg))| {
        let fault = |what| Error::malformed(&archive.path, format!("image {at}: {what}"));
        if !is_whole([&jpeg[..]]) {
            return Err(fault("it does not reach the end of its image".into()));
        }
        let image = image::load_from_memory_with_format(jpeg, ImageFormat::Jpeg).map_err(|error| fault(error.to_string()))?;
        let image = image.into_rgb8();
        if [3, image.height() as usize, image.width() as usize] != set.shape {
            return Err(fault(format!("{}x{} pixels where {:?} were expected", image.height(), image.width(), set.shape)));
        }
        planes(image.as_raw(), 3, slot);
        Ok(())
    })?;
    Ok(pixels)
}

/// `[h, w, c]` to `[c, h, w]`.
pub(crate) fn planes(interleaved: &[u8], channels: usize, out: &mut [u8]) {
    let area = out.len() / channels;
    for (at, pixel) in interleaved.chunks_exact(channels).enumerate() {
        pixel.iter().enumerate().for_each(|(channel, &value)| out[channel * area + at] = value);
    }
}

/// Longest JPEG accepted; the real ones have about a kilobyte.
const LONGEST: u64 = 1 << 20;

fn unpack(set: &Manifest, archive: &Checked) -> Result<Vec<Vec<u8>>, Error> {
    let broken = |error| Error::malformed(&archive.path, format!("not a whole tar.xz archive: {error}"));
    let mut files = vec![Vec::new(); set.counts.iter().sum()];
    for entry in tar::Archive::new(XzDecoder::new(&archive.bytes[..])).entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        if let Some(at) = position(set, &name) {
            entry.take(LONGEST).read_to_end(&mut files[at]).map_err(broken)?;
        }
    }
    match files.iter().position(Vec::is_empty) {
        Some(at) => Err(Error::malformed(&archive.path, format!("the archive holds no image for place {at} of {}", files.len()))),
        None => Ok(files),
    }
}

/// Place of `split/class/number.jpg` among all images.
fn position(set: &Manifest, name: &Path) -> Option<usize> {
    let mut parts = name.iter().map(|part| part.to_str());
    let (split, class, file) = (parts.next()??, parts.next()??, parts.next()??);
    let (start, count) = match split {
        "train" => (0, set.counts[0]),
        "test" => (set.counts[0], set.counts[1]),
        _ => return None,
    };
    let each = count / set.classes.len();
    let class = set.classes.iter().position(|known| known == class)?;
    let number: usize = file.strip_suffix(".jpg")?.parse().ok()?;
    (number < each).then_some(start + class * each + number)
}

/// Puts images that lie class by class into the order of `labels`.
fn arrange(set: &Manifest, split: &str, pixels: &[u8], labels: &[u8], path: &Path) -> Result<Dataset, Error> {
    let size: usize = set.shape.iter().product();
    let each = pixels.len() / size / set.classes.len();
    let mut used = vec![0; set.classes.len()];
    let mut images = Vec::with_capacity(pixels.len());
    for (at, &label) in labels.iter().enumerate() {
        let class = usize::from(label);
        if used.get(class).is_none_or(|&used| used == each) {
            return Err(Error::malformed(path, format!("label {label} at {at}: no such class, or more than {each} of it")));
        }
        images.extend_from_slice(&pixels[(class * each + used[class]) * size..][..size]);
        used[class] += 1;
    }
    let labels = labels.iter().map(|&label| u16::from(label)).collect();
    Dataset::from_memory(format!("{} {split}", set.name), set.shape, set.classes.len(), images, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn tiny() -> Manifest {
        let mut set = manifest("cifar10-jpeg").expect("known");
        set.classes.truncate(2);
        Manifest { shape: [1, 1, 1], counts: [4, 2], ..set }
    }

    #[test]
    fn places_follow_split_class_and_number() {
        let at = |name: &str| position(&tiny(), Path::new(name));
        assert_eq!(at("train/automobile/0001.jpg"), Some(3));
        assert_eq!(at("test/airplane/0000.jpg"), Some(4));
        for odd in
            ["train/automobile/0002.jpg", "train/bird/0000.jpg", "valid/airplane/0000.jpg", "README", "train/airplane/x.jpg"]
        {
            assert_eq!(at(odd), None, "{odd}");
        }
    }

    #[test]
    fn images_follow_the_labels() {
        let set = arrange(&tiny(), "train", &[1, 2, 3, 4], &[1, 0, 0, 1], Path::new("order")).expect("consistent");
        assert_eq!((0..4).map(|i| set.pixel(i).expect("memory")[0]).collect::<Vec<_>>(), [3, 1, 2, 4]);
        for wrong in [[1, 1, 1, 0], [0, 1, 2, 0]] {
            let error = arrange(&tiny(), "train", &[1, 2, 3, 4], &wrong, Path::new("order")).expect_err("wrong").to_string();
            assert!(error.contains("order: label "), "{error}");
        }
    }

    #[test]
    fn a_cut_archive_is_refused() {
        let archive = Checked { path: "a.tar.xz".into(), bytes: vec![0xfd, b'7', b'z', b'X', b'Z', 0], sha256: String::new() };
        let error = decode(&tiny(), &archive).expect_err("cut").to_string();
        assert!(error.starts_with("a.tar.xz: not a whole tar.xz archive"), "{error}");
    }
}
