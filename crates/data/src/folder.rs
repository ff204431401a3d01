//! A folder of images: `train/<class>/*.png|jpg|jpeg` and `test/<class>/...`.
//!
//! Pixels are those of torchvision's `ImageFolder`, which is `PIL.Image.open(path).convert("RGB")`: the format is told by the content, palettes and
//! CMYK become red, green and blue, alpha is dropped, grey stands in all three planes, 16 bits keep the high eight, and the rotation that EXIF asks
//! for is not applied. Two things differ: 16-bit grey keeps its high eight bits too, where PIL cuts off at 255, and a set without any colour
//! stays grey, one plane.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use rayon::prelude::*;

use crate::{
    Dataset, Error, Outline, Splits,
    files::{is_lfs_pointer, sha256_of},
    jpeg::{is_whole, planes},
};

/// Reads both splits. Classes are the folders of `train/` in order of name, images are taken class by class in turn.
///
/// All images must have one size. One image in colour makes all of them red, green and blue; without any, all are grey.
pub(crate) fn splits(path: &Path) -> Result<Splits, Error> {
    let found = Found::below(path)?;
    let shape = found.shape()?;
    let name = format!("folder:{}", path.display());
    let read = |split: &str, files: &[Sample]| read(&format!("{name} {split}"), shape, found.classes.len(), files);
    let (train, test) = (read("train", &found.train)?, read("test", &found.test)?);
    let (mean, std) = train.statistics();
    let sha256 = [&train, &test].map(|split| sha256_of(&split.images)).to_vec();
    Ok(Splits { name, train, test, classes: found.classes, mean, std, sha256 })
}

/// What [`splits`] would read, by the headers of the files alone.
pub(crate) fn outline(path: &Path) -> Result<Outline, Error> {
    let found = Found::below(path)?;
    Ok(Outline {
        name: format!("folder:{}", path.display()),
        shape: found.shape()?,
        classes: found.classes.len(),
        counts: [found.train.len(), found.test.len()],
    })
}

/// A file and its label.
type Sample = (PathBuf, u16);

/// The files of both splits.
struct Found {
    classes: Vec<String>,
    train: Vec<Sample>,
    test: Vec<Sample>,
}

impl Found {
    fn below(path: &Path) -> Result<Self, Error> {
        let [train, test] = ["train", "test"].map(|split| path.join(split));
        let (classes, judged) = (folders(&train)?, folders(&test)?);
        if classes.is_empty() || classes.len() > usize::from(u16::MAX) {
            return Err(Error::malformed(train, format!("expected one folder for each class, found {}", classes.len())));
        }
        let files = samples(&train, &classes)?;
        for (here, there, split, other) in [(&judged, &classes, &test, "train"), (&classes, &judged, &train, "test")] {
            if let Some(odd) = here.iter().find(|class| !there.contains(class)) {
                return Err(Error::malformed(
                    split.join(odd),
                    format!("{other}/ has no such class; both splits must have the same"),
                ));
            }
        }
        let test = samples(&test, &classes)?;
        Ok(Self { classes, train: files, test })
    }

    /// `[channels, height, width]` of all images, by their headers.
    fn shape(&self) -> Result<[usize; 3], Error> {
        let files = [&self.train[..], &self.test[..]].concat();
        let headers: Vec<([u32; 2], bool)> = files.par_iter().map(|(path, _)| header(path)).collect::<Result<_, _>>()?;
        let [width, height] = headers[0].0;
        if let Some(odd) = headers.iter().position(|(size, _)| *size != [width, height]) {
            let [other_width, other_height] = headers[odd].0;
            let what = format!("{other_width}x{other_height} pixels where {} has {width}x{height}", files[0].0.display());
            return Err(Error::malformed(&files[odd].0, what + "; bring all images to one size"));
        }
        let channels = if headers.iter().any(|(_, colour)| *colour) { 3 } else { 1 };
        Ok([channels, height as usize, width as usize])
    }
}

/// Width and height, and whether there is colour.
fn header(path: &Path) -> Result<([u32; 2], bool), Error> {
    let fault = |error: &dyn std::fmt::Display| Error::malformed(path, error.to_string());
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(Error::io(path))?;
    let decoder = reader.into_decoder().map_err(|error| match fs::read(path) {
        Ok(bytes) if is_lfs_pointer(&bytes) => Error::LfsPointer { path: path.into() },
        _ => fault(&error),
    })?;
    let (width, height) = decoder.dimensions();
    let grey = matches!(decoder.color_type(), ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16);
    Ok(([width, height], !grey))
}

fn read(name: &str, shape: [usize; 3], classes: usize, files: &[Sample]) -> Result<Dataset, Error> {
    let size = shape.iter().product();
    let mut images = vec![0; files.len() * size];
    images.par_chunks_exact_mut(size).zip(files).try_for_each(|(slot, (path, _))| {
        let image = decode(path)?;
        match shape[0] {
            1 => slot.copy_from_slice(grey(image).as_raw()),
            _ => planes(colour(image).as_raw(), 3, slot),
        }
        Ok(())
    })?;
    Dataset::from_memory(name, shape, classes, images, files.iter().map(|&(_, label)| label).collect())
}

fn decode(path: &Path) -> Result<DynamicImage, Error> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    if is_lfs_pointer(&bytes) {
        return Err(Error::LfsPointer { path: path.into() });
    }
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(Error::io(path))?;
    if reader.format() == Some(ImageFormat::Jpeg) && !is_whole(&bytes) {
        return Err(Error::malformed(path, "the file is cut short: it does not reach the end of its image; fetch it again"));
    }
    reader.decode().map_err(|error| Error::malformed(path, error.to_string()))
}

fn colour(image: DynamicImage) -> image::RgbImage {
    match image {
        DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            let wide = image.into_rgb16();
            image::RgbImage::from_fn(wide.width(), wide.height(), |x, y| image::Rgb(wide.get_pixel(x, y).0.map(high)))
        }
        DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) => DynamicImage::from(grey(image)).into_rgb8(),
        image => image.into_rgb8(),
    }
}

fn grey(image: DynamicImage) -> image::GrayImage {
    match image {
        DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) => {
            let wide = image.into_luma16();
            image::GrayImage::from_fn(wide.width(), wide.height(), |x, y| image::Luma(wide.get_pixel(x, y).0.map(high)))
        }
        image => image.into_luma8(),
    }
}

fn high(value: u16) -> u8 {
    value.to_be_bytes()[0]
}

/// Image files with their labels, one of each class in turn; subfolders belong to their class.
fn samples(split: &Path, classes: &[String]) -> Result<Vec<Sample>, Error> {
    if let Some(stray) = entries(split)?.iter().find(|path| path.is_file() && kind(path) != Kind::Other) {
        return Err(Error::malformed(stray, "lies beside the class folders, not in one"));
    }
    let mut ranked = Vec::new();
    for (class, label) in classes.iter().zip(0_u16..) {
        let (folder, mut images) = (split.join(class), Vec::new());
        gather(&folder, &mut images)?;
        if images.is_empty() {
            return Err(Error::malformed(folder, "no .png, .jpg or .jpeg in this class; fill the folder or remove the class"));
        }
        ranked.extend(images.into_iter().enumerate().map(|(rank, path)| (rank, label, path)));
    }
    ranked.sort();
    Ok(ranked.into_iter().map(|(_, label, path)| (path, label)).collect())
}

fn gather(folder: &Path, images: &mut Vec<PathBuf>) -> Result<(), Error> {
    for path in entries(folder)? {
        match kind(&path) {
            _ if path.is_dir() => gather(&path, images)?,
            Kind::Read => images.push(path),
            Kind::Unread => return Err(Error::malformed(path, "only .png, .jpg and .jpeg are read; convert it or take it away")),
            Kind::Other => {}
        }
    }
    Ok(())
}

/// What the ending of a file's name says, in capitals or not.
#[derive(PartialEq, Eq)]
enum Kind {
    /// An image that is read.
    Read,
    /// An image in a format that is not read.
    Unread,
    /// No image.
    Other,
}

fn kind(path: &Path) -> Kind {
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase().to_string_lossy().into_owned()).unwrap_or_default();
    match ending.as_str() {
        "png" | "jpg" | "jpeg" => Kind::Read,
        "bmp" | "gif" | "pgm" | "ppm" | "tif" | "tiff" | "webp" => Kind::Unread,
        _ => Kind::Other,
    }
}

fn folders(path: &Path) -> Result<Vec<String>, Error> {
    let dirs = entries(path)?.into_iter().filter(|path| path.is_dir());
    Ok(dirs.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
}

/// What a folder holds, in order of name. What begins with a dot is some program's own: `.DS_Store`, `._0.png`, `.ipynb_checkpoints`.
fn entries(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let listing = fs::read_dir(path).map_err(Error::io(path))?;
    let paths = listing.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(Error::io(path))?;
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let mut entries: Vec<PathBuf> = paths.into_iter().filter(|path| !hidden(path)).collect();
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests;
