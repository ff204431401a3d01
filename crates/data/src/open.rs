use std::path::Path;

use crate::{
    Dataset, Error, Hint, Locations, Manifest, cifar, cluttered, files, folder, glyphs, idx, jpeg, manifest, manifest::Format,
    manifest::MANIFESTS, rotated, shards,
};

/// A data set, opened: both splits and what is known of them.
#[derive(Clone, Debug)]
pub struct Splits {
    /// Name of the set.
    pub name: String,
    /// Images to train on.
    pub train: Dataset,
    /// Images to judge by.
    pub test: Dataset,
    /// Class names, label 0 first.
    pub classes: Vec<String>,
    /// Mean and standard deviation of each channel of the training images, pixels / 255, where they are known already; [`Splits::normalization`] measures
    /// them where not.
    pub moments: Option<(Vec<f32>, Vec<f32>)>,
    /// SHA-256 of each file read, or of each from which images are drawn when they are asked for; of each split's pixels where they are drawn or turned, and of the digests of its files and their labels where every
    /// image has a file of its own.
    pub sha256: Vec<String>,
}

/// What is known of a data set without reading its pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Name of the set.
    pub name: String,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Training and test images.
    pub counts: [usize; 2],
}

impl Splits {
    /// Mean and standard deviation of each channel of the training images, pixels / 255. Where they are not known, all training images are read for them.
    ///
    /// # Errors
    /// Names an image that cannot be read.
    pub fn normalization(&self) -> Result<(Vec<f32>, Vec<f32>), Error> {
        self.moments.clone().map_or_else(|| self.train.statistics(), Ok)
    }

    /// What [`outline`] says of this set.
    pub fn outline(&self) -> Outline {
        let (shape, classes) = (self.train.shape, self.classes.len());
        Outline { name: self.name.clone(), shape, classes, counts: [self.train.len(), self.test.len()] }
    }
}

/// Names that [`open`] knows, the one that needs no files first, and last `rotated-mnist` and `cluttered-mnist`, which are made from MNIST's files. Besides, `folder:PATH` is a
/// folder of images, and `shards:PATH` one of tar archives of images.
pub fn names() -> Vec<&'static str> {
    [glyphs::NAME].into_iter().chain(MANIFESTS.iter().map(|(name, _)| *name)).chain([rotated::NAME, cluttered::NAME]).collect()
}

/// Opens a data set by name; every file of a public set is checked by length and SHA-256 before it is used.
///
/// Public sets lie in memory. Folders and shards are indexed: each file is read once, to see its header and its end, but decoded only when an
/// image is asked for.
///
/// Absent files are downloaded into the cache folder unless [`Locations::offline`] is set.
pub fn open(name: &str, at: &Locations) -> Result<Splits, Error> {
    match Origin::of(name)? {
        Origin::Glyphs => glyphs::splits(at.glyphs),
        Origin::Folder(path) => folder::list(path)?.splits(),
        Origin::Shards(path) => shards::list(path)?.splits(),
        Origin::Files(set) => read(set, at),
        Origin::Rotated(mnist) => rotated::splits(&read(mnist, at)?),
        Origin::Cluttered(mnist) => cluttered::splits(read(mnist, at)?),
    }
}

fn read(set: Manifest, at: &Locations) -> Result<Splits, Error> {
    let found = files::obtain(&set, at)?;
    let (train, test, sha256) = match set.format {
        Format::Idx => idx::splits(&set, &found)?,
        Format::Cifar10 | Format::Cifar100 | Format::CifarXz => cifar::splits(&set, &found)?,
        Format::CifarJpeg => jpeg::splits(&set, &found, at)?,
    };
    Ok(Splits { name: set.name, train, test, classes: set.classes, moments: Some((set.mean, set.std)), sha256 })
}

/// What [`open`] would give, without the pixels: of a public set by its manifest, whether its files are at hand or not; of a folder or of
/// shards by the headers of the images.
pub fn outline(name: &str, at: &Locations) -> Result<Outline, Error> {
    Ok(match Origin::of(name)? {
        Origin::Glyphs => glyphs::outline(at.glyphs),
        Origin::Folder(path) => folder::list(path)?.outline()?,
        Origin::Shards(path) => shards::list(path)?.outline()?,
        Origin::Files(set) => Outline { name: set.name, shape: set.shape, classes: set.classes.len(), counts: set.counts },
        Origin::Rotated(mnist) => rotated::outline(&mnist),
        Origin::Cluttered(mnist) => cluttered::outline(&mnist),
    })
}

/// Where the images of a set come from.
pub(crate) enum Origin<'a> {
    /// They are drawn.
    Glyphs,
    /// A user's folder of images.
    Folder(&'a Path),
    /// A user's folder of tar archives.
    Shards(&'a Path),
    /// The files of a public set.
    Files(Manifest),
    /// MNIST's files, turned.
    Rotated(Manifest),
    /// MNIST's files, strewn.
    Cluttered(Manifest),
}

impl<'a> Origin<'a> {
    /// What a name means.
    pub(crate) fn of(name: &'a str) -> Result<Self, Error> {
        let unknown = || Error::UnknownSet { name: name.into(), hint: Hint::of(&name.to_lowercase(), names()) };
        if let Some(path) = name.strip_prefix("folder:") {
            return Ok(Self::Folder(path.as_ref()));
        }
        if let Some(path) = name.strip_prefix("shards:") {
            return Ok(Self::Shards(path.as_ref()));
        }
        match name {
            glyphs::NAME => Ok(Self::Glyphs),
            rotated::NAME => manifest(rotated::OF).map(Self::Rotated).ok_or_else(unknown),
            cluttered::NAME => manifest(cluttered::OF).map(Self::Cluttered).ok_or_else(unknown),
            _ => manifest(name).map(Self::Files).ok_or_else(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_hand(name: &str) -> Splits {
        let at = Locations { offline: true, ..Locations::from_env(None) };
        open(name, &at).expect("the files are at hand and whole")
    }

    /// Measures what the manifest promises.
    fn agrees(set: &Splits) {
        let (mean, std) = set.train.statistics().expect("memory");
        let (known_mean, known_std) = set.normalization().expect("known");
        let near = |found: &[f32], said: &[f32]| found.iter().zip(said).all(|(found, said)| (found - said).abs() < 2e-6);
        assert!(near(&mean, &known_mean) && near(&std, &known_std), "{}: mean {mean:?}, std {std:?}", set.name);
        let counts = manifest(&set.name).expect("known").counts;
        assert_eq!([set.train.len(), set.test.len()], counts);
    }

    #[test]
    fn an_unknown_name_brings_the_nearest() {
        let error = open("MNSIT", &Locations::from_env(None)).expect_err("unknown").to_string();
        assert!(error.starts_with("unknown data set 'MNSIT'; did you mean 'mnist'? ("), "{error}");
    }

    #[test]
    #[ignore = "needs the data sets in BRIQUETTE_DATA"]
    fn mnist_is_mnist() {
        let set = at_hand("mnist");
        agrees(&set);
        assert_eq!(set.train.class_counts(), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
        assert_eq!(set.test.class_counts(), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    }

    #[test]
    #[ignore = "needs the data sets in BRIQUETTE_DATA"]
    fn fashion_mnist_is_balanced() {
        let set = at_hand("fashion-mnist");
        agrees(&set);
        assert_eq!((set.train.class_counts(), set.test.class_counts()), (vec![6000; 10], vec![1000; 10]));
    }

    #[test]
    #[ignore = "needs the data sets in BRIQUETTE_DATA"]
    fn jpegs_follow_the_order_of_the_exact_images() {
        let (lossy, exact) = (at_hand("cifar10-jpeg"), at_hand("cifar10-exact4000"));
        agrees(&lossy);
        // Means by libjpeg; the decoder used here rounds chroma up by a fifth of a level.
        let libjpeg = [0.491250, 0.482090, 0.446521];
        let (mean, _) = lossy.normalization().expect("known");
        assert!(mean.iter().zip(libjpeg).all(|(mean, other)| (mean - other).abs() < 1.5e-3), "{mean:?}");
        assert_eq!((lossy.train.class_counts(), lossy.test.class_counts()), (vec![5000; 10], vec![1000; 10]));
        let [mut square, values] = [0.0, (4000 * 3072) as f64];
        for i in 0..4000 {
            assert_eq!(lossy.train.label(i), exact.train.label(i));
            let [lossy, exact] = [&lossy, &exact].map(|set| set.train.pixel(i).expect("memory"));
            let pairs = lossy.iter().zip(&exact);
            square += pairs.map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>();
        }
        // The same pictures but for the loss of quality 75: a signal-to-noise ratio near 30 dB.
        let rms = (square / values).sqrt();
        assert!((5.0..10.0).contains(&rms), "{rms}");
    }
}
