//! Writes the network into a container and goes on with what the container decodes to.

use briquette_runtime::{Coder, Model, ValueFormat};
use serde::Deserialize;

use crate::error::Result;
use crate::net::Net;
use crate::pass::{Context, Method, Pass};
use crate::stored::Storage;

/// Codes every weight as its coding says: masked weights by relative index, shared weights by codebook index, the streams by `coder`.
///
/// What follows works on the decoded network, so that every later figure is one of the file and not of the network in memory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Encode {
    /// How codebook indices and gaps are coded: `packed`, `huffman` or `entropy` (rANS).
    pub coder: Coder,
    /// How values outside codebooks are written: `f32`, or `f16`, which rounds biases and free weights to half precision.
    pub float: Float,
    /// Name of the file.
    pub file: String,
}

/// Formats of values that no codebook holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Float {
    /// IEEE single precision: nothing is lost.
    F32,
    /// IEEE half precision.
    F16,
}

impl Default for Encode {
    fn default() -> Self {
        Self { coder: Coder::Huffman, float: Float::F32, file: "model.brq".into() }
    }
}

impl Method for Encode {
    const NAME: &'static str = "encode";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Han, Mao, Dally, \"Deep Compression\", ICLR 2016";
    const EXAMPLE: &'static str = "coder = \"huffman\"";
}

impl Pass for Encode {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let float = match self.float {
            Float::F32 => ValueFormat::F32,
            Float::F16 => ValueFormat::F16,
        };
        cx.storage = Storage { coder: self.coder, float };
        let bytes = net.to_model(cx.storage)?.to_bytes()?;
        cx.host.write(&self.file, &bytes)?;
        Net::from_model(&Model::from_bytes(&bytes)?, &cx.device)
    }
}
