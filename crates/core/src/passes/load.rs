//! Replaces the network by one from a container.

use briquette_runtime::Model;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::net::Net;
use crate::pass::{Context, Method, Pass};

/// Reads a container; masks and codebooks in it become codings again, so that tuning goes on from there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// The container.
    pub file: String,
}

impl Method for Load {
    const NAME: &'static str = "load";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Briquette's container, docs/container.md";
    const EXAMPLE: &'static str = "file = \"before-tuning.brq\"";
}

impl Pass for Load {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let loaded = Net::from_model(&Model::from_bytes(&cx.host.read(&self.file)?)?, &cx.device)?;
        if loaded.input_shape() != net.input_shape() {
            let (found, expected) = (loaded.input_shape(), net.input_shape());
            return Err(Error::Invalid(format!("{} takes inputs of shape {found:?}, the data has {expected:?}", self.file)));
        }
        Ok(loaded)
    }
}
