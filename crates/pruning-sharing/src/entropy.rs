//! Entropy coding of codebook indices and gaps by asymmetric numeral systems (rANS), within a hundredth of the entropy.
//!
//! J. Duda. "Asymmetric Numeral Systems". arXiv:0902.0271, 2009; the coder is that of the crate `constriction`.

use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::passes::Encode;
use briquette_runtime::Coder;
use serde::Deserialize;

/// [`Encode`] with the rANS coder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {}

impl Method for Entropy {
    const NAME: &'static str = "entropy";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Duda, arXiv:0902.0271";
    const EXAMPLE: &'static str = "";
}

impl Pass for Entropy {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        Encode { coder: Coder::Entropy, ..Encode::default() }.run(net, cx)
    }
}
