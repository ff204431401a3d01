use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use briquette_data::{Locations, Status};
use serde::Serialize;

use crate::setup;

/// The data sets, and where they lie.
#[derive(Debug, Serialize)]
pub(crate) struct Sets(Vec<Set>);

#[derive(Debug, Serialize)]
struct Set {
    name: &'static str,
    found: bool,
    /// The folder, or what is missing.
    #[serde(rename = "where")]
    place: String,
}

/// `data`.
pub(crate) fn data(data_dir: Option<&Path>) -> Result<Sets> {
    let at = Locations::from_env(data_dir);
    let set = |name| -> Result<Set> {
        let (found, place) = match briquette_data::locate(name, &at)? {
            Status::Embedded => (true, "embedded".to_string()),
            Status::Found(folder) => (true, folder.display().to_string()),
            Status::Missing { files, .. } => {
                let names: Vec<&str> = files.iter().map(|file| file.file.as_str()).collect();
                (false, format!("missing {}; `briquette data get {name}`", names.join(", ")))
            }
        };
        Ok(Set { name, found, place })
    };
    briquette_data::names().into_iter().map(set).collect::<Result<_>>().map(Sets)
}

impl fmt::Display for Sets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::lines(f, self.0.iter().map(|Set { name, place, .. }| format!("{name:16} {place}")))
    }
}

/// A data set that is at hand now.
#[derive(Debug, Serialize)]
pub(crate) struct Got {
    name: String,
    folder: PathBuf,
}

/// `data get`.
pub(crate) fn get(name: &str, data_dir: Option<&Path>) -> Result<Got> {
    let folder = setup::fetch(name, &Locations::from_env(data_dir))?;
    Ok(Got { name: name.into(), folder })
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in {}", self.name, self.folder.display())
    }
}
