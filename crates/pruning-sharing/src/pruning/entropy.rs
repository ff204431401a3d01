//! Entropy coding of codebook indices and gaps by asymmetric numeral systems (rANS), within a hundredth of the entropy.
//!
//! J. Duda. "Asymmetric Numeral Systems". arXiv:0902.0271, 2009; the coder is that of the crate `constriction`.
//!
//! ```
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::entropy::Entropy;
//! use briquette_pruning_sharing::quantization::kmeans_sharing::{Init, share};
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let shared = share(net, |_| Some(16), Init::Linear);
//! let packed = shared.to_model(Default::default())?.to_bytes()?.len();
//! let mut host = Memory::default();
//! Entropy {}.run(shared, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! assert!(host.files["model.brq"].len() < packed);
//! # Ok(())
//! # }
//! ```

use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantization::huffman::{Huffman, proof::coded};

    #[test]
    fn the_mean_length_is_within_a_hundredth_of_the_entropy_and_the_file_no_larger_than_by_huffman() {
        for levels in [2, 5, 16, 64] {
            let (entropy, mean, bytes) = coded::<Entropy>(levels);
            assert!(mean >= 0.999 * entropy && mean < 1.01 * entropy, "{levels} values: {mean} and {entropy}");
            let (_, _, huffman) = coded::<Huffman>(levels);
            assert!(bytes <= huffman, "{levels} values: {bytes} and {huffman} bytes");
        }
    }
}
