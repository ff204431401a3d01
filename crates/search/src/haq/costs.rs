//! What a layer costs with so many bits.

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use serde_json::{Map, Value};

use super::{Haq, Places};
use crate::budget::{Budget, Meter, Unit};

/// Costs by the bits of weights and of what the layers read, layer by layer, and of all else.
pub(super) struct Costs {
    rest: f64,
    layers: Vec<Of>,
}

/// Of one layer.
enum Of {
    /// Products in 32 bits, and the bits of what the layer reads where they are not chosen.
    Products { macs: f64, reads: Option<f64> },
    /// By the bits of the weights.
    Weights(BTreeMap<usize, f64>),
    /// By both.
    Both(BTreeMap<[usize; 2], f64>),
}

impl Of {
    fn bits(&self, bits: [usize; 2]) -> f64 {
        match self {
            Of::Products { macs, reads } => macs * bits[0] as f64 * reads.unwrap_or(bits[1] as f64) / (FLOAT * FLOAT),
            Of::Weights(by) => by.get(&bits[0]).copied().unwrap_or(f64::INFINITY),
            Of::Both(by) => by.get(&bits).copied().unwrap_or(f64::INFINITY),
        }
    }
}

impl Costs {
    /// With these bits of weights, and of what the layers read.
    pub(super) fn of(&self, bits: &[[usize; 2]]) -> f64 {
        self.rest + self.layers.iter().zip(bits).map(|(layer, bits)| layer.bits(*bits)).sum::<f64>()
    }

    /// As far as shapes tell: of a container the bits of its weights, and nothing of times.
    pub(super) fn counted(haq: &Haq, net: &Net, places: &Places) -> Result<Option<Self>> {
        let cost = Cost::of(net)?;
        let of = |index: usize| cost.layers.iter().find(|layer| layer.node == index);
        let layers = places.layers.iter().map(|(index, _)| of(*index));
        Ok(match haq.settings.budget {
            Budget::Macs(_) => {
                let reads = (!haq.settings.activations).then(|| haq.probe.number("activations").unwrap_or(FLOAT));
                let macs: Vec<f64> = layers.map(|layer| layer.map_or(0.0, |layer| layer.macs as f64)).collect();
                let rest = cost.macs() as f64 - macs.iter().sum::<f64>();
                Some(Self { rest, layers: macs.into_iter().map(|macs| Of::Products { macs, reads }).collect() })
            }
            Budget::Bytes(_) | Budget::Size(_) => {
                let by = |weights: usize| places.widths().map(|bits| (bits, (weights * bits) as f64 / 8.0)).collect();
                let weights = layers.map(|layer| layer.map_or(0, |layer| layer.weights));
                Some(Self { rest: 0.0, layers: weights.map(|weights| Of::Weights(by(weights))).collect() })
            }
            Budget::Ms(_) => None,
        })
    }

    /// By networks all of whose layers have as many bits.
    pub(super) fn measured(haq: &Haq, net: &Net, places: &Places, meter: &mut Meter, cx: &mut Context<'_>) -> Result<Self> {
        let with = |weights: usize, reads: usize, cx: &mut Context<'_>| {
            let table = |bits: usize| -> Map<String, Value> {
                places.layers.iter().map(|(_, name)| (name.clone(), bits.into())).collect()
            };
            let reads = places.activations.then(|| ("activations", table(reads)));
            haq.probe.apply(net, &[("bits", table(weights))].into_iter().chain(reads).collect::<Vec<_>>(), cx)
        };
        if let (Budget::Macs(_), Some(counted)) = (haq.settings.budget, Self::counted(haq, net, places)?) {
            return Ok(counted);
        }
        let Unit::Times(latencies) = &mut meter.unit else {
            let (mut layers, mut rest) = (vec![BTreeMap::new(); places.layers.len()], 0.0_f64);
            for bits in places.widths() {
                let model = with(bits, places.most, cx)?.to_model(Storage::default())?;
                let mut others = model.to_bytes()?.len() as f64;
                for ((_, name), by) in places.layers.iter().zip(&mut layers) {
                    let tensors =
                        model.nodes.iter().find(|node| node.name == *name).map_or(&[][..], |node| node.tensors.as_slice());
                    let bytes: f64 = tensors.iter().map(|(_, coded)| coded.bits().total().div_ceil(8) as f64).sum();
                    by.insert(bits, bytes);
                    others -= bytes;
                }
                rest = rest.max(others);
            }
            return Ok(Self { rest, layers: layers.into_iter().map(Of::Weights).collect() });
        };
        let (mut layers, mut rest) = (vec![BTreeMap::new(); places.layers.len()], 0.0_f64);
        for weights in places.widths() {
            for reads in places.widths().filter(|reads| places.activations || *reads == places.ends) {
                let quantized = with(weights, reads, cx)?;
                let mut others = latencies.sum(&quantized, cx)?;
                for ((_, name), by) in places.layers.iter().zip(&mut layers) {
                    let ms = latencies.layer(&quantized, quantized.index(name)?, cx)?;
                    by.insert([weights, reads], ms);
                    others -= ms;
                }
                rest = rest.max(others);
            }
        }
        Ok(Self { rest, layers: layers.into_iter().map(Of::Both).collect() })
    }
}

impl Places {
    /// All numbers of bits that a layer may have.
    fn widths(&self) -> impl Iterator<Item = usize> + use<> {
        let ends = (!(self.least..=self.most).contains(&self.ends)).then_some(self.ends);
        (self.least..=self.most).chain(ends)
    }
}

/// Bits of a number that is not quantized.
const FLOAT: f64 = 32.0;
