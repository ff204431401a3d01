//! What was measured once, for as long as the run's states are kept.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Context, Host, Saved};
use crate::error::{Error, Result};
use crate::scan::Measured;

/// What was found at each point, such as what a network does or how long it takes, or why a method refuses it.
#[derive(Debug)]
pub struct Points<T = Measured> {
    key: String,
    points: BTreeMap<String, std::result::Result<T, String>>,
}

impl<T: Clone + Serialize + DeserializeOwned> Points<T> {
    /// Those that are kept under this key.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn load(key: impl Into<String>, host: &mut dyn Host) -> Result<Self> {
        let key = key.into();
        let points = match host.saved(&key)? {
            Some(Saved { name, bytes }) => {
                let damaged = |error| Error::State(format!("{name}: {error}; remove the file, and the measurements begin anew"));
                serde_json::from_reader(bytes).map_err(damaged)?
            }
            None => BTreeMap::new(),
        };
        Ok(Self { key, points })
    }

    /// The point of this name, measured now unless it is known. What fails is no point: a run that
    /// goes on measures it anew.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the host asks to stop, and what [fails](Error::refuses) instead of refusing.
    pub fn get(
        &mut self,
        name: &str,
        cx: &mut Context<'_>,
        measure: impl FnOnce(&mut Context<'_>) -> Result<T>,
    ) -> Result<std::result::Result<T, String>> {
        if let Some(known) = self.points.get(name) {
            return Ok(known.clone());
        }
        if cx.host.stop_requested() {
            return Err(Error::Stopped);
        }
        let found = match measure(cx) {
            Err(failure) if !failure.refuses() => return Err(failure),
            found => found.map_err(|error| error.to_string()),
        };
        self.points.insert(name.to_string(), found.clone());
        let points = serde_json::to_vec(&self.points).expect("plain data serializes");
        cx.host.save(&self.key, &mut |to| to.write_all(&points).map_err(|error| Error::Host(error.to_string())))?;
        Ok(found)
    }
}
