//! A folder of images: `train/<class>/*.png|jpg|jpeg` and `test/<class>/...`.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    encoded::{Kind, Listed, Source, Split, in_turn, same_classes},
};

/// Lists both splits. Classes are the folders of `train/` in order of name, images are taken class by class in turn.
pub(crate) fn list(path: &Path) -> Result<Listed<Files>, Error> {
    let [train, test] = ["train", "test"].map(|split| path.join(split));
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

    fn bytes(&self, i: usize, most: u64) -> Result<Vec<u8>, Error> {
        let (path, mut bytes) = (&self.0[i], Vec::new());
        let file = fs::File::open(path).map_err(Error::io(path))?;
        file.take(most).read_to_end(&mut bytes).map_err(Error::io(path))?;
        Ok(bytes)
    }
}

/// Image files with their labels, one of each class in turn; subfolders belong to their class.
fn samples(split: &Path, classes: &[String]) -> Result<Split<Files>, Error> {
    if let Some(stray) = entries(split)?.iter().find(|path| path.is_file() && Kind::of(path) != Kind::Other) {
        return Err(Error::malformed(stray, BESIDE));
    }
    let mut members = Vec::new();
    for class in classes {
        let (folder, mut images) = (split.join(class), Vec::new());
        gather(&folder, &mut images)?;
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

fn gather(folder: &Path, images: &mut Vec<PathBuf>) -> Result<(), Error> {
    for path in entries(folder)? {
        match Kind::of(&path) {
            _ if path.is_dir() => gather(&path, images)?,
            Kind::Read => images.push(path),
            Kind::Unread => return Err(Error::malformed(path, UNREAD)),
            Kind::Other => {}
        }
    }
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
