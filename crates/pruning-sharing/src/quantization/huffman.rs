//! Huffman coding of codebook indices and of the gaps between surviving weights.
//!
//! D. A. Huffman. "A Method for the Construction of Minimum-Redundancy Codes". Proc. IRE 40(9), 1952; as the third stage of Han, Mao,
//! Dally. "Deep Compression". ICLR 2016. The codes are canonical, so that only their lengths are stored.
//!
//! ```
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::huffman::Huffman;
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
//! Huffman {}.run(shared, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
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

#[cfg(test)]
pub(crate) mod proof {
    use briquette_core::coding::Source;
    use briquette_core::context::{Context, Memory};
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_runtime::Model;
    use burn::tensor::Device;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::quantization::kmeans_sharing::{Init, share};

    /// The entropy of the indices of a layer with `levels` shared values, the mean bits that a coder spends on each, and the bytes of the
    /// whole file. What comes out of the pass holds the values that went in, bit by bit.
    pub(crate) fn coded<P: Pass + DeserializeOwned>(levels: usize) -> (f64, f64, usize) {
        let arch = Arch::named("lenet300").unwrap();
        let net = arch.build(&Wanted { width: 0.5, ..arch.wanted() }, &Device::flex()).unwrap();
        let net = share(net, |_| Some(levels), Init::Linear);
        let (data, mut host) = (briquette_handmade::images(), Memory::default());
        let pass: P = serde_json::from_str("{}").unwrap();
        let decoded = pass.run(net.deep_clone(), &mut Context::new(&Device::flex(), 3, &data, &mut host)).unwrap();
        for ((_, before), (_, after)) in net.weighted().zip(decoded.weighted()) {
            let bits = |node: &briquette_core::net::Node| -> Vec<u32> {
                node.weight().unwrap().values().iter().map(|v| v.to_bits()).collect()
            };
            assert!(bits(before) == bits(after), "{}", before.name);
        }
        let layer = net.nodes[net.index("fc1").unwrap()].weight().unwrap();
        let Source::Codebook { centroids, assignment } = layer.coding.source else { panic!("the layer is shared") };
        let mut counts = vec![0.0; centroids.len()];
        assignment.iter().for_each(|&index| counts[index as usize] += 1.0);
        let n = assignment.len() as f64;
        let entropy = counts.iter().filter(|count| **count > 0.0).map(|count: &f64| -count / n * (count / n).log2()).sum();
        let file = &host.files["model.brq"];
        let model = Model::from_bytes(file).unwrap();
        let stored = model.nodes.iter().find(|node| node.name == "fc1").unwrap().tensor("weight").unwrap();
        (entropy, stored.bits().values as f64 / n, file.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_length_is_within_a_bit_of_the_entropy_and_nothing_is_lost() {
        for levels in [2, 5, 16, 64] {
            let (entropy, mean, _) = proof::coded::<Huffman>(levels);
            assert!(mean >= entropy - 1e-3 && mean < entropy + 1.0, "{levels} values: {mean} and {entropy}");
        }
    }
}
