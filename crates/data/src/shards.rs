//! Images in tar archives: `train/*.tar` and `test/*.tar`, read by offset and never unpacked.
//!
//! A member `CLASS/NAME.jpg` (`.jpeg`, `.png`; subfolders belong to their class) is an image of that class, as in a folder of images. Where there are members
//! `KEY.cls`, as in WebDataset's archives, `KEY.jpg` is an image of the class whose number is the text of `KEY.cls`; a key ends at the first dot of
//! a file's name.
//!
//! Images are taken one of each class in turn, those of a class in order of name, however they are spread over the archives: a folder packed into
//! shards is the same set, and trains to the same bits.

mod archive;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::{
    Dataset, Error,
    encoded::{Kind, Listed, Source, Split, in_turn, same_classes},
    files::{is_lfs_pointer, there},
    folder::{BESIDE, EMPTY, NO_FILE, UNREAD, entries},
};
use archive::{Content, Member};

/// What a set of this kind is.
pub(crate) const HOLDS: &str = "`shards:PATH` takes archives of images from PATH/train/*.tar and PATH/test/*.tar";

/// Lists both splits.
pub(crate) fn list(path: &Path) -> Result<Listed<Shards>, Error> {
    let folders = ["train", "test"].map(|split| path.join(split));
    [path, &folders[0], &folders[1]].into_iter().try_for_each(|folder| there(folder, HOLDS))?;
    let [train, test] = [Found::below(&folders[0])?, Found::below(&folders[1])?];
    let archives = [train.archives.clone(), test.archives.clone()];
    let sorted = match [train.is_labelled(), test.is_labelled()] {
        [false, false] => Found::by_folder as fn(Found) -> Result<Classes, Error>,
        [true, true] => Found::by_number,
        [labelled, _] => {
            let (with, without) = if labelled { ("train", "test") } else { ("test", "train") };
            let what = format!("no member `KEY.cls` says a class, but in {with}/ some do; label both splits alike");
            return Err(Error::malformed(path.join(without), what));
        }
    };
    let ((classes, train), (judged, test)) = (sorted(train)?, sorted(test)?);
    if classes.is_empty() || classes.len() > usize::from(u16::MAX) {
        let what =
            format!("expected images as `CLASS/NAME.jpg`, or as `KEY.jpg` with `KEY.cls`, found {} classes", classes.len());
        return Err(Error::malformed(&folders[0], what));
    }
    filled(&folders[0], &classes, &train)?;
    same_classes([(&folders[0], &classes), (&folders[1], &judged)])?;
    filled(&folders[1], &judged, &test)?;
    let [read, judged] = archives;
    let [train, test] = [(read, train), (judged, test)].map(|(archives, classes)| {
        let (places, labels) = in_turn(classes).into_iter().unzip();
        Split { source: Shards { archives, places }, labels }
    });
    Ok(Listed { name: format!("shards:{}", path.display()), classes, train, test })
}

/// The images of the archives in a folder, in order of name, and their digest; what says their classes is passed over.
pub(crate) fn unlabelled(path: &Path, shape: [usize; 3]) -> Result<(Dataset, String), Error> {
    let Found { archives, images, .. } = Found::below(path)?;
    if images.is_empty() {
        return Err(Error::malformed(path, "no .png, .jpg or .jpeg in these archives"));
    }
    let places = images.into_values().collect();
    Split::unlabelled(Shards { archives, places }, path.display().to_string(), shape)
}

/// Refuses a class without images.
fn filled(folder: &Path, classes: &[String], images: &[Vec<Place>]) -> Result<(), Error> {
    match images.iter().position(Vec::is_empty) {
        Some(class) => Err(Error::malformed(folder.join(&classes[class]), EMPTY)),
        None => Ok(()),
    }
}

/// The names of classes, and the images of each.
type Classes = (Vec<String>, Vec<Vec<Place>>);

/// Where an image lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Which archive.
    archive: u32,
    /// Where the member begins with its headers.
    start: u64,
    /// Where its bytes are.
    content: Content,
}

/// Archives that hold images.
#[derive(Debug)]
pub(crate) struct Shards {
    archives: Vec<PathBuf>,
    places: Vec<Place>,
}

impl Source for Shards {
    fn len(&self) -> usize {
        self.places.len()
    }

    /// The archive, and in it the member, whose name is read again: names of all images would take the most memory of all that is kept.
    fn place(&self, i: usize) -> PathBuf {
        let Place { archive, start, .. } = self.places[i];
        let path = &self.archives[archive as usize];
        let member = File::open(path).ok().and_then(|file| archive::member(&file, start).ok().flatten());
        path.join(member.map_or_else(|| PathBuf::from(format!("(member at byte {start})")), |member| member.path))
    }

    fn open(&self, i: usize) -> Result<(File, u64), Error> {
        let Place { archive, content, .. } = self.places[i];
        open(&self.archives[archive as usize], content.start).map(|file| (file, content.length))
    }
}

/// A file at one of its bytes, opened each time anew: a set may have more archives than a process may hold open.
fn open(path: &Path, start: u64) -> Result<File, Error> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    file.seek(SeekFrom::Start(start)).map_err(Error::io(path))?;
    Ok(file)
}

/// The archives of a split, in order of name.
fn archives(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut archives = Vec::new();
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_dir() {
            return Err(Error::malformed(path, "a folder among the archives, which is not looked into; take it away"));
        }
        if name.ends_with(".tar") {
            if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
                return Err(Error::malformed(path, NO_FILE));
            }
            archives.push(path);
        } else if name.contains(".tar.") || name.ends_with(".tgz") || name.ends_with(".txz") {
            return Err(Error::malformed(path, "a compressed archive has no offsets to read by; decompress it to a .tar"));
        }
    }
    match archives.is_empty() {
        true => Err(Error::malformed(folder, "no .tar in this folder")),
        false => Ok(archives),
    }
}

/// What the archives of a split hold.
struct Found {
    archives: Vec<PathBuf>,
    /// By the member's path.
    images: BTreeMap<PathBuf, Place>,
    /// The numbers in `KEY.cls`, by the path up to the key's end.
    labels: BTreeMap<PathBuf, (Place, u16)>,
    /// Folders at the top.
    folders: BTreeSet<String>,
}

impl Found {
    fn below(folder: &Path) -> Result<Self, Error> {
        let archives = archives(folder)?;
        let mut found = Self { archives, images: BTreeMap::new(), labels: BTreeMap::new(), folders: BTreeSet::new() };
        for (path, archive) in found.archives.clone().iter().zip(0_u32..) {
            let file = File::open(path).map_err(Error::io(path))?;
            let mut beginning = Vec::new();
            (&file).take(64).read_to_end(&mut beginning).map_err(Error::io(path))?;
            if is_lfs_pointer(&beginning) {
                return Err(Error::LfsPointer { path: path.clone() });
            }
            let mut start = 0;
            while let Some(member) = archive::member(&file, start).map_err(|what| Error::malformed(path, what))? {
                let next = member.next;
                found.add(member, archive, start)?;
                start = next;
            }
        }
        Ok(found)
    }

    fn add(&mut self, member: Member, archive: u32, start: u64) -> Result<(), Error> {
        let Member { path, content, .. } = member;
        // What begins with a dot is some program's own, as in a folder.
        if path.iter().any(|part| part.as_encoded_bytes().starts_with(b".")) {
            return Ok(());
        }
        let at = self.archives[archive as usize].join(&path);
        let parts = path.iter().count();
        if let Some(top) = path.iter().next().filter(|_| parts > 1 || content.is_none()) {
            self.folders.insert(top.to_string_lossy().into_owned());
        }
        let Some(content) = content else { return Ok(()) };
        let place = Place { archive, start, content };
        let twice = |other: Place| {
            let other = self.archives[other.archive as usize].display();
            Err(Error::malformed(&at, format!("{other} has a member of this name, too; names must differ within a split")))
        };
        if path.extension() == Some(OsStr::new("cls")) {
            if path.file_stem() != key(&path).file_name() {
                // `KEY.fine.cls` is another field of the sample.
                return Ok(());
            }
            let label = label(&self.archives[archive as usize], content, &at)?;
            return self.labels.insert(key(&path), (place, label)).map_or(Ok(()), |(other, _)| twice(other));
        }
        match Kind::of(&path) {
            Kind::Read => self.images.insert(path, place).map_or(Ok(()), twice),
            Kind::Unread => Err(Error::malformed(at, UNREAD)),
            Kind::Other => Ok(()),
        }
    }

    /// Whether members say the classes, not folders.
    fn is_labelled(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Classes in order of name, with their images in order of name.
    fn by_folder(self) -> Result<Classes, Error> {
        let mut classes: BTreeMap<String, Vec<Place>> = self.folders.into_iter().map(|folder| (folder, Vec::new())).collect();
        for (path, place) in self.images {
            let class = path.iter().next().filter(|_| path.iter().count() > 1).map(OsStr::to_string_lossy);
            match class.and_then(|class| classes.get_mut(&*class)) {
                Some(images) => images.push(place),
                None => return Err(Error::malformed(self.archives[place.archive as usize].join(path), BESIDE)),
            }
        }
        Ok(classes.into_iter().unzip())
    }

    /// The images of classes 0 and on, each in order of name.
    fn by_number(self) -> Result<Classes, Error> {
        let Self { archives, images, mut labels, .. } = self;
        let highest = labels.values().map(|&(_, label)| usize::from(label)).max();
        let mut classes = vec![Vec::new(); highest.map_or(0, |highest| highest + 1)];
        for (path, place) in images {
            match labels.remove(&key(&path)) {
                Some((_, label)) => classes[usize::from(label)].push(place),
                None => {
                    let at = archives[place.archive as usize].join(path);
                    return Err(Error::malformed(at, "no `KEY.cls` says its class, or another image has its key"));
                }
            }
        }
        match labels.into_iter().next() {
            Some((key, (place, _))) => {
                let at = archives[place.archive as usize].join(format!("{}.cls", key.display()));
                Err(Error::malformed(at, "says the class of no image: there is no .png, .jpg or .jpeg of its key"))
            }
            None => Ok(((0..classes.len()).map(|class| class.to_string()).collect(), classes)),
        }
    }
}

/// The path up to the first dot of the file's name.
fn key(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(name.split('.').next().unwrap_or_default())
}

/// The number that a `.cls` holds, which is called `at`.
fn label(archive: &Path, content: Content, at: &Path) -> Result<u16, Error> {
    // A number of a class has at most five digits, and perhaps a line's end behind it.
    let mut bytes = Vec::new();
    open(archive, content.start)?.take(content.length.min(16)).read_to_end(&mut bytes).map_err(Error::io(archive))?;
    let text = String::from_utf8_lossy(&bytes);
    text.trim().parse().ok().filter(|&label| content.length <= 16 && label < u16::MAX).ok_or_else(|| {
        Error::malformed(at, format!("a class is a number below {}, not '{}'", u16::MAX, text.trim().escape_debug()))
    })
}
