//! The points of a scan, as far as they are measured.

use std::collections::BTreeMap;
use std::io::Write;

use briquette_core::context::{Context, Host, Saved};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::scan::Measured;
use sha2::{Digest, Sha256};

/// The points that are measured: what the network does, or why the method refuses the layer.
pub(super) struct Points {
    key: String,
    points: BTreeMap<String, std::result::Result<Measured, String>>,
}

impl Points {
    pub(super) fn load(fingerprint: &str, host: &mut dyn Host) -> Result<Self> {
        let key = format!("sensitivity-{fingerprint}");
        let points = match host.saved(&key)? {
            Some(Saved { name, bytes }) => {
                let damaged = |error| Error::State(format!("{name}: {error}; remove the file, and the scan begins anew"));
                serde_json::from_reader(bytes).map_err(damaged)?
            }
            None => BTreeMap::new(),
        };
        Ok(Self { key, points })
    }

    /// The point of this name, measured now unless it is known. What fails is no point: it ends the scan, which measures it anew when it goes on.
    pub(super) fn get(
        &mut self,
        name: &str,
        cx: &mut Context<'_>,
        measure: impl FnOnce(&mut Context<'_>) -> Result<Measured>,
    ) -> Result<std::result::Result<Measured, String>> {
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

/// Hash of a network and of the settings that a point depends on beside its layer and value.
pub(super) fn fingerprint(net: &Net, settings: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(settings.as_bytes());
    net.write_state(&mut Hashing(&mut hasher)).expect("a hash takes all bytes");
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what is written.
struct Hashing<'a>(&'a mut Sha256);

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
