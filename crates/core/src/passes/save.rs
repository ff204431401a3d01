//! Writes the network into a container without changing it.

use serde::Deserialize;

use crate::error::Result;
use crate::net::Net;
use crate::pass::{Context, Method, Pass};

/// Writes a container as the storage in force says (packed until an `encode` pass has run).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Save {
    /// Name of the file, within the run's folder unless it is absolute.
    pub file: String,
}

impl Method for Save {
    const NAME: &'static str = "save";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Briquette's container, docs/container.md";
    const EXAMPLE: &'static str = "file = \"before-tuning.brq\"";
}

impl Pass for Save {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        cx.host.write(&self.file, &net.to_model(cx.storage)?.to_bytes()?)?;
        Ok(net)
    }
}
