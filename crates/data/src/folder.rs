//! A folder of images: `train/<class>/*.png|jpg|jpeg` and `test/<class>/...`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::{ColorType, DynamicImage};
use rayon::prelude::*;

use crate::{Dataset, Error, Splits, files::sha256_of, jpeg::planes};

/// Reads both splits. Classes are the folders of `train/` in order of name, images are taken class by class in turn.
///
/// The first training image decides size and channels (grey or red, green, blue); images of another size are an error.
pub(crate) fn splits(path: &Path) -> Result<Splits, Error> {
    let classes: Vec<String> = folders(&path.join("train"))?;
    if classes.is_empty() || classes.len() > usize::from(u16::MAX) {
        return Err(Error::malformed(path.join("train"), format!("expected one folder for each class, found {}", classes.len())));
    }
    if let Some(odd) = folders(&path.join("test"))?.iter().find(|class| !classes.contains(class)) {
        return Err(Error::malformed(path.join("test").join(odd), "train/ has no such class"));
    }
    let files = [samples(&path.join("train"), &classes)?, samples(&path.join("test"), &classes)?];
    let Some((first, _)) = files[0].first() else {
        return Err(Error::malformed(path.join("train"), "no .png, .jpg or .jpeg in any class folder"));
    };
    let first_image = decode(first)?;
    let channels =
        if matches!(first_image.color(), ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16) { 1 } else { 3 };
    let shape = [channels, first_image.height() as usize, first_image.width() as usize];
    let name = format!("folder:{}", path.display());
    let [train, test] = files.map(|files| read(&name, shape, classes.len(), &files));
    let (train, test) = (train?, test?);
    let (mean, std) = train.statistics();
    let sha256 = [&train, &test].map(|split| sha256_of(&split.images)).to_vec();
    Ok(Splits { name, train, test, classes, mean, std, sha256 })
}

fn read(name: &str, shape: [usize; 3], classes: usize, files: &[(PathBuf, u16)]) -> Result<Dataset, Error> {
    let size = shape.iter().product();
    let mut images = vec![0; files.len() * size];
    images.par_chunks_exact_mut(size).zip(files).try_for_each(|(slot, (path, _))| {
        let image = decode(path)?;
        if [image.height() as usize, image.width() as usize] != shape[1..] {
            let what = format!("{}x{} pixels where the first image has {}x{}", image.width(), image.height(), shape[2], shape[1]);
            return Err(Error::malformed(path, what + "; bring all images to one size"));
        }
        match shape[0] {
            1 => slot.copy_from_slice(image.into_luma8().as_raw()),
            _ => planes(image.into_rgb8().as_raw(), 3, slot),
        }
        Ok(())
    })?;
    Dataset::from_memory(name, shape, classes, images, files.iter().map(|&(_, label)| label).collect())
}

fn decode(path: &Path) -> Result<DynamicImage, Error> {
    image::open(path).map_err(|error| Error::malformed(path, error.to_string()))
}

/// Image files with their labels, one of each class in turn.
fn samples(split: &Path, classes: &[String]) -> Result<Vec<(PathBuf, u16)>, Error> {
    let mut ranked = Vec::new();
    for (class, label) in classes.iter().zip(0_u16..) {
        let folder = split.join(class);
        if folder.is_dir() {
            let images = entries(&folder)?.into_iter().filter(|path| is_image(path));
            ranked.extend(images.enumerate().map(|(rank, path)| (rank, label, path)));
        }
    }
    ranked.sort();
    Ok(ranked.into_iter().map(|(_, label, path)| (path, label)).collect())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    path.is_file() && extension.is_some_and(|extension| ["png", "jpg", "jpeg"].iter().any(|known| extension == *known))
}

fn folders(path: &Path) -> Result<Vec<String>, Error> {
    let dirs = entries(path)?.into_iter().filter(|path| path.is_dir());
    Ok(dirs.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
}

/// What a folder holds, in order of name.
fn entries(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let listing = fs::read_dir(path).map_err(Error::io(path))?;
    let mut entries: Vec<PathBuf> =
        listing.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(Error::io(path))?;
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use tempfile::TempDir;

    fn grey(dir: &TempDir, name: &str, [width, height]: [u32; 2], value: u8) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("folder")).expect("created");
        GrayImage::from_pixel(width, height, Luma([value])).save(path).expect("saved");
    }

    fn toy() -> TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        [("train/cat/0.png", 1), ("train/cat/1.PNG", 2), ("train/ant/0.png", 3), ("test/ant/0.png", 4)]
            .iter()
            .for_each(|(name, value)| grey(&dir, name, [3, 2], *value));
        fs::write(dir.path().join("train/ant/notes.txt"), "no image").expect("written");
        dir
    }

    #[test]
    fn classes_in_order_of_name_and_images_in_turn() {
        let dir = toy();
        let set = crate::open(&format!("folder:{}", dir.path().display()), &crate::Locations::from_env(None)).expect("whole");
        assert_eq!((set.classes, set.train.shape), (vec!["ant".to_owned(), "cat".to_owned()], [1, 2, 3]));
        assert_eq!((0..3).map(|i| (set.train.label(i), set.train.pixel(i)[0])).collect::<Vec<_>>(), [(0, 3), (1, 1), (1, 2)]);
        assert_eq!((set.test.len(), set.test.pixel(0)[5]), (1, 4));
    }

    #[test]
    fn colours_become_planes() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for split in ["train/a", "test/a"] {
            fs::create_dir_all(dir.path().join(split)).expect("created");
            RgbImage::from_pixel(2, 1, Rgb([1, 2, 3])).save(dir.path().join(split).join("0.png")).expect("saved");
        }
        assert_eq!(splits(dir.path()).expect("whole").train.pixel(0), [1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |dir: &TempDir| splits(dir.path()).expect_err("broken").to_string();
        let dir = toy();
        grey(&dir, "test/cat/0.png", [2, 2], 1);
        assert!(error(&dir).contains("2x2 pixels where the first image has 3x2"));
        fs::write(dir.path().join("test/cat/0.png"), "no image").expect("written");
        assert!(error(&dir).contains("0.png: "));
        grey(&dir, "test/dog/0.png", [3, 2], 1);
        assert!(error(&dir).contains("train/ has no such class"));
        let empty = tempfile::tempdir().expect("temporary folder");
        assert!(matches!(splits(empty.path()), Err(Error::Io { .. })));
        fs::create_dir_all(empty.path().join("train")).expect("created");
        assert!(error(&empty).contains("one folder for each class"));
        fs::create_dir_all(empty.path().join("train/a")).expect("created");
        fs::create_dir_all(empty.path().join("test")).expect("created");
        assert!(error(&empty).contains("no .png"));
    }
}
