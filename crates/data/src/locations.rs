use std::{
    env,
    path::{Path, PathBuf},
};

use directories::ProjectDirs;

/// Where data sets are looked for and where fetched files go.
#[derive(Clone, Debug)]
pub struct Locations {
    /// Folders searched, first match first.
    pub dirs: Vec<PathBuf>,
    /// Folder that downloads and decoded pixels are written to.
    pub cache: Option<PathBuf>,
    /// Never use the network.
    pub offline: bool,
    /// How many images `glyphs` draws.
    pub glyphs: GlyphCounts,
}

/// Size of the synthetic set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlyphCounts {
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

impl Locations {
    /// Looks in `data_dir` (a `--data-dir`), else in the folder that `BRIQUETTE_DATA` names, and in the user's cache folder.
    ///
    /// Only the cache folder is ever written to. `BRIQUETTE_OFFLINE`, when set and not `0`, forbids the network.
    pub fn from_env(data_dir: Option<&Path>) -> Self {
        let given = data_dir.map(Path::to_path_buf).or_else(|| variable("BRIQUETTE_DATA").map(PathBuf::from));
        let cache = ProjectDirs::from("", "", "briquette").map(|dirs| dirs.cache_dir().to_path_buf());
        Self {
            dirs: given.into_iter().chain(cache.clone()).collect(),
            cache,
            offline: variable("BRIQUETTE_OFFLINE").is_some_and(|value| value != "0"),
            glyphs: GlyphCounts::default(),
        }
    }
}

impl Default for GlyphCounts {
    fn default() -> Self {
        Self { train: 60_000, test: 10_000 }
    }
}

fn variable(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_folder_comes_first() {
        let at = Locations::from_env(Some(Path::new("/given")));
        assert_eq!(at.dirs[0], Path::new("/given"));
        assert_eq!(at.glyphs, GlyphCounts { train: 60_000, test: 10_000 });
    }
}
