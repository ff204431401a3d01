//! What DoReFa-Net and PACT share: squashed weights between layers whose activations are clipped.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::coding::{Rounding, Weight, adjust};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::training::Projection;
use briquette_core::types::{Bits, Layers, PerLayer};
use briquette_core::{Grid, StepGradient};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::Deserialize;

use briquette_parts::observers::Scale;
use briquette_parts::quantizers::{Per, Site, activation_levels, grid, inner, layers, on_grids, place, sites};
use briquette_parts::refuse;
use briquette_parts::steps::paths;

/// The settings; a method's struct flattens them into its own and denies unknown fields there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Clipped {
    /// Bits of the weights, at most 8.
    bits: PerLayer<Bits>,
    /// Bits of the activations, at most 8; without, they are neither clipped nor rounded.
    activations: Option<PerLayer<Bits>>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone; the first and the last where neither list is given.
    #[serde(default)]
    except: Layers,
}

impl Clipped {
    /// The layers with their bits.
    ///
    /// # Errors
    /// Bits out of range; pruned layers of one bit, whose signs have no zero.
    pub fn layers(&self, method: &str, net: &Net, least: u32) -> Result<BTreeMap<usize, u32>> {
        let chosen = inner(net, (&self.layers, &self.except))?;
        let layers = layers(method, net, &self.bits, &chosen, (|bits| (least..=8).contains(&bits), &range(least)))?;
        refuse::pruned(net, layers.iter().filter(|(_, bits)| **bits == 1).map(|(layer, _)| layer), method)?;
        Ok(layers)
    }

    /// The network with the layers' weights at `2 / (2^b - 1) round((2^b - 1) (t / 2 + 1 / 2)) - 1`, where `t = tanh(w) / max |tanh(w)|`, or for one bit
    /// at `sign(w) mean |w|`, and the activations that they read clipped to `[0, clip]` and rounded to `2^b` levels, for all readers alike; `b` is
    /// `least` to 8.
    ///
    /// # Errors
    /// Bits out of range, and layers that read negative values, which the clip would lose.
    pub fn apply(&self, method: &str, net: Net, clip: f64, least: u32, train: StepGradient) -> Result<Net> {
        let layers = self.layers(method, &net, least)?;
        let mut quantizers = Vec::new();
        let levels = activation_levels(
            method,
            &net,
            self.activations.as_ref(),
            &layers,
            (|bits| (least..=8).contains(&bits), &range(least)),
        )?;
        let sites = sites(&net, levels);
        for site in &sites {
            if !site.unsigned {
                let detail = format!("reads values below 0, which {method} clips away; add it to `except`");
                return Err(Error::node(&site.readers[0], detail));
            }
            if let Some(other) = sites.iter().find(|other| other.value == site.value && other.levels != site.levels) {
                let detail =
                    format!("reads the same value as '{}', which is clipped once; give both the same bits", other.readers[0]);
                return Err(Error::node(&site.readers[0], detail));
            }
            // The quantizer is the layer's activation function, so that a shortcut reads what it puts out.
            let all = net.nodes.iter().filter(|node| node.inputs.contains(&site.value)).map(|node| node.name.clone());
            let step = (clip / f64::from(site.levels - 1)) as f32;
            quantizers.push((Site { readers: all.collect(), ..site.clone() }, Scale { step, zero: 0.0 }));
        }
        place(squash(net, |weight| layers.get(&weight.node()?).copied()), &quantizers, train)
    }
}

/// Gives each tensor of rank 2 or more in any Burn module the values that [`Clipped::apply`] gives to weights; `bits` says of how many bits,
/// brought within 1 to 8, and tensors for which it says nothing are left alone. Those of one bit need [`magnitude`] after each step of their
/// training.
pub fn squash<M: Module>(module: M, bits: impl Fn(&Weight) -> Option<u32>) -> M {
    let module = on_grids(module, (Rounding::Nearest, false), |weight| {
        let signs = |values: &[f32]| {
            let mean = values.iter().map(|w| f64::from(w.abs())).sum::<f64>() / values.len().max(1) as f64;
            Scale { step: (2.0 * mean.max(SMALLEST)) as f32, zero: 0.5 }
        };
        (bits(weight)? <= 1).then(|| grid(weight, 2, Per::Tensor, signs))
    });
    on_grids(module, (Rounding::Tanh, false), |weight| {
        let last = (1 << bits(weight).filter(|bits| *bits > 1)?.min(8)) - 1;
        Some(Grid::uniform(last + 1, 2.0 / last as f32, last as f32 / 2.0))
    })
}

/// The step of one-bit weights, twice their mean magnitude, for the weights underneath.
pub fn magnitude(base: &Tensor<3>) -> Tensor<1> {
    base.clone().abs().mean().mul_scalar(2.0).clamp_min(2.0 * SMALLEST)
}

/// Sets the scale of one-bit weights anew after each step.
#[derive(Debug)]
pub struct Magnitudes(BTreeSet<String>);

impl Magnitudes {
    /// For the weights of these layers that have one bit.
    pub fn new(net: &Net, layers: &BTreeMap<String, u32>) -> Self {
        let one_bit = |weight: &Weight| weight.node().is_some_and(|node| layers.get(&net.nodes[node].name) == Some(&1));
        Self(paths(net, one_bit))
    }
}

impl Projection for Magnitudes {
    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        adjust(net, |path, base, steps| {
            let steps = if self.0.contains(path) { magnitude(&base) } else { steps };
            (base, steps)
        })
    }
}

/// Smallest scale: weights that are all 0 have a sign, too.
const SMALLEST: f64 = 1e-12;

fn range(least: u32) -> String {
    format!("{least} to 8")
}
