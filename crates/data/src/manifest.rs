use serde::Deserialize;

/// What is known of a public data set: its files, their checksums and addresses, and what they hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name of the set.
    pub name: String,
    /// Layout of the files.
    pub format: Format,
    /// Folders below a data folder where the files may lie, besides the set's name and the data folder itself.
    pub folders: Vec<String>,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Training and test images.
    pub counts: [usize; 2],
    /// Class names, label 0 first.
    pub classes: Vec<String>,
    /// Mean of each channel of the training images, pixels / 255.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel of the training images, pixels / 255.
    pub std: Vec<f32>,
    /// Terms of use.
    pub license: String,
    /// Origin, and what a reader of results should know.
    pub note: String,
    /// The files, in the order the format asks for.
    #[serde(rename = "file")]
    pub files: Vec<File>,
}

/// How the files of a set are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Four IDX files: training images, training labels, test images, test labels.
    Idx,
    /// CIFAR records (label, then planes) in one archive or unpacked.
    Cifar10,
    /// CIFAR records with a coarse label before the fine one.
    Cifar100,
    /// CIFAR records in one compressed file that is both train and test.
    CifarXz,
    /// An archive of JPEGs, and the labels in canonical order.
    CifarJpeg,
}

/// One file as it is distributed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Name of the file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Where it can be fetched; empty if nowhere.
    #[serde(default)]
    pub urls: Vec<String>,
    /// The set can be read without it.
    #[serde(default)]
    pub optional: bool,
    /// What the file holds, unpacked; accepted instead of it.
    #[serde(default)]
    pub unpacked: Vec<Piece>,
}

/// One file out of an archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Path of the file below the folder that would hold the archive.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The manifest of a set that is made of files, if the name is known.
pub fn manifest(name: &str) -> Option<Manifest> {
    let (_, text) = MANIFESTS.iter().find(|(known, _)| *known == name)?;
    Some(toml::from_str(text).expect("embedded manifests are tested"))
}

pub(crate) const MANIFESTS: &[(&str, &str)] = &[
    ("cifar10", include_str!("../../../datasets/cifar10.toml")),
    ("cifar10-exact4000", include_str!("../../../datasets/cifar10-exact4000.toml")),
    ("cifar10-jpeg", include_str!("../../../datasets/cifar10-jpeg.toml")),
    ("cifar100", include_str!("../../../datasets/cifar100.toml")),
    ("fashion-mnist", include_str!("../../../datasets/fashion-mnist.toml")),
    ("mnist", include_str!("../../../datasets/mnist.toml")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_is_whole() {
        assert!(MANIFESTS.is_sorted());
        for (name, _) in MANIFESTS {
            let set = manifest(name).expect("listed");
            assert_eq!(set.name, *name);
            assert!(set.mean.len() == set.shape[0] && set.std.len() == set.shape[0], "{name}: one mean and std for each channel");
            assert!(!set.license.is_empty() && !set.note.is_empty(), "{name}: license and note");
            let pieces = set.files.iter().flat_map(|file| &file.unpacked);
            let checked = set.files.iter().map(|file| (&file.file, &file.sha256));
            for (file, sha256) in checked.chain(pieces.map(|piece| (&piece.file, &piece.sha256))) {
                assert!(sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{file}");
            }
        }
        assert!(manifest("imagenet").is_none());
    }

    #[test]
    fn every_manifest_in_the_folder_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../datasets");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("datasets/")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().trim_end_matches(".toml").to_owned())
            .collect();
        names.sort();
        assert_eq!(names, MANIFESTS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
