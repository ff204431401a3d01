//! Huffman coding of codebook indices and of the gaps between surviving weights.
//!
//! D. A. Huffman. "A Method for the Construction of Minimum-Redundancy Codes". Proc. IRE 40(9), 1952; as the third stage of Han, Mao,
//! Dally. "Deep Compression". ICLR 2016. The codes are canonical, so that only their lengths are stored.

use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::passes::Encode;
use briquette_runtime::Coder;
use serde::Deserialize;

/// [`Encode`] with the Huffman coder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Huffman {}

impl Method for Huffman {
    const NAME: &'static str = "huffman";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Han, Mao, Dally, ICLR 2016, arXiv:1510.00149";
    const EXAMPLE: &'static str = "";
}

impl Pass for Huffman {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        Encode { coder: Coder::Huffman, ..Encode::default() }.run(net, cx)
    }
}
