//! Sets of JPEG and PNG files, be they in folders or in archives: indexed when the set is opened, decoded when an image is asked for.
//!
//! Pixels are those of torchvision's `ImageFolder`, which is `PIL.Image.open(path).convert("RGB")`: the format is told by the content, palettes and
//! CMYK become red, green and blue, alpha is dropped, grey stands in all three planes, 16 bits keep the high eight, and the rotation that EXIF asks
//! for is not applied. Three things differ: 16-bit grey keeps its high eight bits too, where PIL cuts off at 255, a set without any colour stays grey, one
//! plane, and JPEG decoders round colours differently, by a fraction of a level on the mean.
//!
//! What is checked when: [`Listed::outline`] looks at headers, for a plan need not wait for more. [`Listed::splits`] reads each file once, from its
//! first byte to its last, a piece at a time, without decoding it: sizes and colours must agree, a file that ends before its image does is refused by name, and the digest of
//! all bytes tells one set from another. What only a decoder sees, an error names when the image is read, be it for the statistics or for a
//! training; so does a file that has gone since, or changed its size. Other changes while a set is open are not seen.

mod survey;

use std::{
    fmt,
    fs::File,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::{DynamicImage, ImageReader};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    Dataset, Error, Images, Outline, Splits,
    ends::is_whole,
    files::{hexadecimal, is_lfs_pointer},
    jpeg::planes,
};
use survey::{Seen, all, cut_short, header, whole};

/// Where the bytes of encoded images lie.
pub(crate) trait Source: fmt::Debug + Send + Sync + 'static {
    /// Number of images.
    fn len(&self) -> usize;

    /// What errors call image `i`.
    fn place(&self, i: usize) -> PathBuf;

    /// The file in which image `i` lies, at its first byte, and how many bytes it has.
    fn open(&self, i: usize) -> Result<(File, u64), Error>;
}

/// Encoded images and their labels.
#[derive(Debug)]
pub(crate) struct Split<S> {
    pub(crate) source: S,
    pub(crate) labels: Vec<u16>,
}

/// Both splits of a set of encoded images, of which no image has been looked at yet.
pub(crate) struct Listed<S> {
    pub(crate) name: String,
    pub(crate) classes: Vec<String>,
    pub(crate) train: Split<S>,
    pub(crate) test: Split<S>,
}

impl<S: Source> Listed<S> {
    /// The set, after a look at each file.
    ///
    /// All images must have one size. One image in colour makes all of them red, green and blue; without any, all are grey.
    pub(crate) fn splits(self) -> Result<Splits, Error> {
        let (shape, sha256) = self.survey(whole)?;
        let Self { name, classes, train, test } = self;
        let set = |split: &str, Split { source, labels }: Split<S>| {
            let images = Encoded { source, labels, shape };
            Dataset::new(format!("{name} {split}"), shape, classes.len(), Arc::new(images))
        };
        let (train, test) = (set("train", train)?, set("test", test)?);
        Ok(Splits { name, train, test, classes, moments: None, sha256: sha256.to_vec() })
    }

    /// What [`Listed::splits`] would give, by the headers of the images alone.
    pub(crate) fn outline(self) -> Result<Outline, Error> {
        let (shape, _) = self.survey(header)?;
        let counts = [&self.train, &self.test].map(|split| split.labels.len());
        Ok(Outline { name: self.name, shape, classes: self.classes.len(), counts })
    }

    /// `[channels, height, width]` of all images, and of each split a digest of what was seen, in order, with the labels.
    fn survey(&self, look: fn(&S, usize) -> Result<Seen, Error>) -> Result<([usize; 3], [String; 2]), Error> {
        let mut known = Known::default();
        let digests = [self.train.survey(look, &mut known)?, self.test.survey(look, &mut known)?];
        Ok((known.shape(), digests))
    }
}

/// What is known of the images that were looked at so far: the size and place of the first, and the place of the first in colour.
#[derive(Default)]
struct Known {
    first: Option<([u32; 2], PathBuf)>,
    colour: Option<PathBuf>,
}

impl Known {
    /// `[channels, height, width]`.
    fn shape(&self) -> [usize; 3] {
        let [width, height] = self.first.as_ref().map_or([0; 2], |(size, _)| *size);
        let channels = if self.colour.is_some() { 3 } else { 1 };
        [channels, height as usize, width as usize]
    }
}

impl<S: Source> Split<S> {
    /// Images without labels, after a look at each file, in the shape of those of another set, and a digest of all files. Grey ones stand in all planes
    /// where these are in colour; other sizes, and colour where there is none, are refused.
    pub(crate) fn unlabelled(source: S, name: String, shape: [usize; 3]) -> Result<(Dataset, String), Error> {
        let (split, mut known) = (Self { labels: vec![0; source.len()], source }, Known::default());
        let digest = split.survey(whole, &mut known)?;
        let ([channels, height, width], found) = (shape, known.shape());
        if let Some((_, place)) = known.first.filter(|_| found[1..] != shape[1..]) {
            let what = format!("{}x{} pixels where the data have {width}x{height}", found[2], found[1]);
            return Err(Error::malformed(place, what + "; bring all images to one size"));
        }
        if let Some(place) = known.colour.filter(|_| channels == 1) {
            return Err(Error::malformed(place, "in colour where the data are grey; make the images grey"));
        }
        if ![1, 3].contains(&channels) {
            return Err(Error::Inconsistent { name, what: format!("no image file has the data's {channels} channels") });
        }
        let Self { source, labels } = split;
        Ok((Dataset::new(name, shape, 1, Arc::new(Encoded { source, labels, shape }))?, digest))
    }

    /// A digest of what was seen, in order, with the labels.
    fn survey(&self, look: fn(&S, usize) -> Result<Seen, Error>, known: &mut Known) -> Result<String, Error> {
        let Self { source, labels } = self;
        let mut digest = Sha256::new();
        // A number at a time, so that what is kept of each image does not pile up.
        for start in (0..source.len()).step_by(TOGETHER) {
            let some = start..source.len().min(start + TOGETHER);
            let seen: Vec<Result<Seen, Error>> = some.clone().into_par_iter().map(|i| look(source, i)).collect();
            for (i, seen) in some.zip(seen) {
                // Of several faults, the first in the order of the set, whichever thread met which first.
                let seen = seen?;
                let (size, place) = known.first.get_or_insert_with(|| (seen.size, source.place(i)));
                if *size != seen.size {
                    let ([width, height], [other_width, other_height]) = (*size, seen.size);
                    let what = format!("{other_width}x{other_height} pixels where {} has {width}x{height}", place.display());
                    return Err(Error::malformed(source.place(i), what + "; bring all images to one size"));
                }
                if seen.colour {
                    known.colour.get_or_insert_with(|| source.place(i));
                }
                digest.update(labels[i].to_le_bytes());
                digest.update(seen.digest);
            }
        }
        Ok(hexadecimal(&digest.finalize()))
    }
}

/// Images that a survey looks at before it compares them.
const TOGETHER: usize = 4096;

/// Images that are decoded each time they are asked for.
struct Encoded<S> {
    source: S,
    labels: Vec<u16>,
    shape: [usize; 3],
}

impl<S: Source> Images for Encoded<S> {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn label(&self, i: usize) -> u16 {
        self.labels[i]
    }

    fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error> {
        let bytes = all(&self.source, i)?;
        let place = || self.source.place(i);
        if is_lfs_pointer(&bytes) {
            return Err(Error::LfsPointer { path: place() });
        }
        if !is_whole([&bytes[..]]) {
            return Err(cut_short(place()));
        }
        let decode = || ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?.decode();
        let image = decode().map_err(|error| Error::malformed(place(), error.to_string()))?;
        let [channels, height, width] = self.shape;
        let changed = [image.width() as usize, image.height() as usize] != [width, height];
        if changed || (channels == 1 && image.color().has_color()) {
            let what = "no longer the image that was indexed: size or colour differ; the set changed while it was in use";
            return Err(Error::malformed(place(), what));
        }
        match channels {
            1 => pixels.copy_from_slice(grey(image).as_raw()),
            _ => planes(colour(image).as_raw(), 3, pixels),
        }
        Ok(())
    }
}

impl<S> fmt::Debug for Encoded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").field("len", &self.labels.len()).field("shape", &self.shape).finish_non_exhaustive()
    }
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

/// The members of all classes, one of each class in turn, with their labels: any first few hold as many of each class.
pub(crate) fn in_turn<T>(classes: Vec<Vec<T>>) -> Vec<(T, u16)> {
    let ranked =
        |(members, label): (Vec<T>, u16)| members.into_iter().enumerate().map(move |(rank, member)| (rank, label, member));
    let mut all: Vec<(usize, u16, T)> = classes.into_iter().zip(0_u16..).flat_map(ranked).collect();
    all.sort_by_key(|&(rank, label, _)| (rank, label));
    all.into_iter().map(|(_, label, member)| (member, label)).collect()
}

/// Refuses a class that only one of the splits has.
pub(crate) fn same_classes([train, test]: [(&Path, &[String]); 2]) -> Result<(), Error> {
    for ((split, here), (_, there), other) in [(test, train, "train"), (train, test, "test")] {
        if let Some(odd) = here.iter().find(|class| !there.contains(class)) {
            let what = format!("{other}/ has no such class; both splits must have the same");
            return Err(Error::malformed(split.join(odd), what));
        }
    }
    Ok(())
}

/// What the ending of a file's name says, in capitals or not.
#[derive(PartialEq, Eq)]
pub(crate) enum Kind {
    /// An image that is read.
    Read,
    /// An image in a format that is not read.
    Unread,
    /// No image.
    Other,
}

impl Kind {
    pub(crate) fn of(path: &Path) -> Self {
        let ending =
            path.extension().map(|ending| ending.to_ascii_lowercase().to_string_lossy().into_owned()).unwrap_or_default();
        match ending.as_str() {
            "png" | "jpg" | "jpeg" => Self::Read,
            "bmp" | "gif" | "pgm" | "ppm" | "tif" | "tiff" | "webp" => Self::Unread,
            _ => Self::Other,
        }
    }
}
