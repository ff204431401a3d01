//! What DoReFa-Net and PACT share: squashed weights between layers whose activations are clipped.

use std::collections::BTreeMap;

use briquette_core::coding::{Rounding, Weight};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::types::{Bits, PerLayer};
use briquette_core::{Grid, StepGradient};
use burn::module::Module;
use serde::Deserialize;

use super::observers::Scale;
use super::quantizers::{Site, ends, layers, on_grids, place, sites};

/// The settings; a method's struct flattens them into its own and denies unknown fields there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Clipped {
    /// Bits of the weights, 2 to 8.
    bits: PerLayer<Bits>,
    /// Bits of the activations, 2 to 8; without, they are neither clipped nor rounded.
    activations: Option<Bits>,
    /// Layers that are left alone, by default the first and the last; a trailing `*` stands for any ending.
    except: Option<Vec<String>>,
}

impl Clipped {
    /// The layers with their bits.
    ///
    /// # Errors
    /// Bits out of range.
    pub fn layers(&self, method: &str, net: &Net) -> Result<BTreeMap<usize, u32>> {
        let spared = match &self.except {
            Some(except) => except.clone(),
            None => ends(net).into_iter().map(|end| net.nodes[end].name.clone()).collect(),
        };
        layers(method, net, &self.bits, &spared, (|bits| (2..=8).contains(&bits), "2 to 8"))
    }

    /// The network with the layers' weights at `2 / (2^b - 1) round((2^b - 1) (t / 2 + 1 / 2)) - 1`, where `t = tanh(w) / max |tanh(w)|`, and
    /// the activations that they read clipped to `[0, clip]` and rounded to `2^b` levels, for all readers alike.
    ///
    /// # Errors
    /// Bits out of range, and layers that read negative values, which the clip would lose.
    pub fn apply(&self, method: &str, net: Net, clip: f64, train: StepGradient) -> Result<Net> {
        let layers = self.layers(method, &net)?;
        let mut quantizers = Vec::new();
        if let Some(bits) = self.activations {
            if !(2..=8).contains(&bits.get()) {
                return Err(Error::Invalid(format!("{method}: `activations` takes 2 to 8 bits, not {}", bits.get())));
            }
            for site in sites(&net, layers.keys().map(|layer| (*layer, 1 << bits.get()))) {
                if !site.unsigned {
                    let detail = format!("reads values below 0, which {method} clips away; add it to `except`");
                    return Err(Error::node(&site.readers[0], detail));
                }
                // The quantizer is the layer's activation function, so that a shortcut reads what it puts out.
                let all = net.nodes.iter().filter(|node| node.inputs.contains(&site.value)).map(|node| node.name.clone());
                let step = (clip / f64::from(site.levels - 1)) as f32;
                quantizers.push((Site { readers: all.collect(), ..site }, Scale { step, zero: 0.0 }));
            }
        }
        place(squash(net, |weight| layers.get(&weight.node()?).copied()), &quantizers, train)
    }
}

/// Gives each tensor of rank 2 or more in any Burn module the values that [`Clipped::apply`] gives to weights; `bits` says of how many bits,
/// brought within 2 to 8, and tensors for which it says nothing are left alone.
pub fn squash<M: Module>(module: M, bits: impl Fn(&Weight) -> Option<u32>) -> M {
    on_grids(module, (Rounding::Tanh, false), |weight| {
        let last = (1 << bits(weight)?.clamp(2, 8)) - 1;
        Some(Grid::uniform(last + 1, 2.0 / last as f32, last as f32 / 2.0))
    })
}
