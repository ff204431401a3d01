//! What tells the measurements of one pass from those of another.

use std::io::Write;

use briquette_core::net::Net;
use sha2::{Digest, Sha256};

/// Hash of a network and of the settings that a point depends on beside its layer and value.
pub(crate) fn fingerprint(net: &Net, settings: &str) -> String {
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
