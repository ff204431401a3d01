//! A folder of images: `train/<class>/*.png|jpg|jpeg` and `test/<class>/...`.

use std::{
    fs::{self, File, Metadata},
    path::{Path, PathBuf},
};

use crate::{
    Dataset, Error,
    encoded::{Kind, Listed, Source, Split, in_turn, same_classes},
    files::there,
};

/// What a set of this kind is.
pub(crate) const HOLDS: &str = "`folder:PATH` takes the images of each class from PATH/train/<class>/ and PATH/test/<class>/";

/// Lists both splits. Classes are the folders of `train/` in order of name, images are taken class by class in turn.
pub(crate) fn list(path: &Path) -> Result<Listed<Files>, Error> {
    let [train, test] = ["train", "test"].map(|split| path.join(split));
    [path, &train, &test].into_iter().try_for_each(|folder| there(folder, HOLDS))?;
    let (classes, judged) = (folders(&train)?, folders(&test)?);
    if classes.is_empty() || classes.len() > usize::from(u16::MAX) {
        return Err(Error::malformed(train, format!("expected one folder for each class, found {}", classes.len())));
    }
    let files = samples(&train, &classes)?;
    same_classes([(&train, &classes), (&test, &judged)])?;
    let test = samples(&test, &classes)?;
    Ok(Listed { name: format!("folder:{}", path.display()), classes, train: files, test })
}

/// Files that each hold an image.
#[derive(Debug)]
pub(crate) struct Files(Vec<PathBuf>);

impl Source for Files {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self, i: usize) -> PathBuf {
        self.0[i].clone()
    }

    fn open(&self, i: usize) -> Result<(File, u64), Error> {
        let path = &self.0[i];
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        Ok((file, length))
    }
}

/// The images below a folder, in order of name, and their digest.
pub(crate) fn unlabelled(path: &Path, shape: [usize; 3]) -> Result<(Dataset, String), Error> {
    let mut images = Vec::new();
    gather(path, &mut Vec::new(), &mut images)?;
    if images.is_empty() {
        return Err(Error::malformed(path, "no .png, .jpg or .jpeg in this folder"));
    }
    Split::unlabelled(Files(images), path.display().to_string(), shape)
}

/// Image files with their labels, one of each class in turn; subfolders belong to their class.
fn samples(split: &Path, classes: &[String]) -> Result<Split<Files>, Error> {
    if let Some(stray) = entries(split)?.iter().find(|path| path.is_file() && Kind::of(path) != Kind::Other) {
        return Err(Error::malformed(stray, BESIDE));
    }
    let mut members = Vec::new();
    for class in classes {
        let (folder, mut images) = (split.join(class), Vec::new());
        gather(&folder, &mut Vec::new(), &mut images)?;
        if images.is_empty() {
            return Err(Error::malformed(folder, EMPTY));
        }
        members.push(images);
    }
    let (files, labels) = in_turn(members).into_iter().unzip();
    Ok(Split { source: Files(files), labels })
}

/// An image of no class.
pub(crate) const BESIDE: &str = "lies beside the class folders, not in one";

/// A class of no image.
pub(crate) const EMPTY: &str = "no .png, .jpg or .jpeg in this class; fill the folder or remove the class";

/// An image of another format.
pub(crate) const UNREAD: &str = "only .png, .jpg and .jpeg are read; convert it or take it away";

/// What is no file has no end that could be waited for.
pub(crate) const NO_FILE: &str = "neither a file nor a folder; take it away";

/// The images below a folder, which lies in those of `above`.
fn gather(folder: &Path, above: &mut Vec<PathBuf>, images: &mut Vec<PathBuf>) -> Result<(), Error> {
    let here = fs::canonicalize(folder).map_err(Error::io(folder))?;
    if above.contains(&here) {
        return Err(Error::malformed(folder, "a link back to a folder that it lies in; take it away"));
    }
    above.push(here);
    for path in entries(folder)? {
        let found = fs::metadata(&path);
        if found.as_ref().is_ok_and(Metadata::is_dir) {
            gather(&path, above, images)?;
            continue;
        }
        match Kind::of(&path) {
            Kind::Read if found.is_ok_and(|found| !found.is_file()) => return Err(Error::malformed(path, NO_FILE)),
            Kind::Read => images.push(path),
            Kind::Unread => return Err(Error::malformed(path, UNREAD)),
            Kind::Other => {}
        }
    }
    above.pop();
    Ok(())
}

fn folders(path: &Path) -> Result<Vec<String>, Error> {
    let dirs = entries(path)?.into_iter().filter(|path| path.is_dir());
    Ok(dirs.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
}

/// What a folder holds, in order of name. What begins with a dot is some program's own: `.DS_Store`, `._0.png`, `.ipynb_checkpoints`.
pub(crate) fn entries(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let listing = fs::read_dir(path).map_err(Error::io(path))?;
    let paths = listing.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(Error::io(path))?;
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let mut entries: Vec<PathBuf> = paths.into_iter().filter(|path| !hidden(path)).collect();
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests;
