//! What a layer costs with so many bits.

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::types::{Bits, PerLayer};
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
    /// By both, with the bits, no fewer, that cost as much.
    Both(BTreeMap<[usize; 2], ([usize; 2], f64)>),
}

impl Of {
    fn bits(&self, bits: [usize; 2]) -> f64 {
        match self {
            Of::Products { macs, reads } => macs * bits[0] as f64 * reads.unwrap_or(bits[1] as f64) / (FLOAT * FLOAT),
            Of::Weights(by) => by.get(&bits[0]).copied().unwrap_or(f64::INFINITY),
            Of::Both(by) => by.get(&bits).map_or(f64::INFINITY, |(_, cost)| *cost),
        }
    }

    /// By measurements, in which more bits may be the faster ones: each number of bits costs what the fastest that is no smaller does. Where bits are not `chosen`, they are
    /// what they are.
    fn fastest(measured: &BTreeMap<[usize; 2], f64>, chosen: bool, places: &Places) -> Self {
        let free = |bits: &[usize; 2]| bits[0] <= places.most && (!places.activations || bits[1] <= places.most);
        let of = |bits: [usize; 2], cost: f64| {
            let no_fewer = |other: &[usize; 2]| other[0] >= bits[0] && other[1] >= bits[1] && chosen && free(other);
            let others = measured.iter().filter(|(other, _)| no_fewer(other)).map(|(other, cost)| (*other, *cost));
            others.fold((bits, cost), |best, other| if other.1 <= best.1 { other } else { best })
        };
        Of::Both(measured.iter().map(|(bits, cost)| (*bits, of(*bits, *cost))).collect())
    }
}

impl Costs {
    /// With these bits of weights, and of what the layers read.
    pub(super) fn of(&self, bits: &[[usize; 2]]) -> f64 {
        self.rest + self.layers.iter().zip(bits).map(|(layer, bits)| layer.bits(*bits)).sum::<f64>()
    }

    /// The bits, of each layer no fewer, that cost as much.
    pub(super) fn raised(&self, bits: &[[usize; 2]]) -> Vec<[usize; 2]> {
        let raised = |(layer, bits): (&Of, &[usize; 2])| match layer {
            Of::Both(by) => by.get(bits).map_or(*bits, |(raised, _)| *raised),
            Of::Products { .. } | Of::Weights(_) => *bits,
        };
        self.layers.iter().zip(bits).map(raised).collect()
    }

    /// What a network costs that was made with these bits, which alone tell its products.
    pub(super) fn made(&self, net: &Net, bits: &[[usize; 2]], meter: &mut Meter, cx: &mut Context<'_>) -> Result<f64> {
        match meter.budget {
            Budget::Macs(_) => Ok(self.of(bits)),
            Budget::Bytes(_) | Budget::Size(_) | Budget::Ms(_) => meter.of(net, cx),
        }
    }

    /// As far as shapes tell: of a container the bits of its weights, and nothing of times.
    pub(super) fn counted(haq: &Haq, net: &Net, places: &Places) -> Result<Option<Self>> {
        let cost = Cost::of(net)?;
        let of = |index: usize| cost.layers.iter().find(|layer| layer.node == index);
        let layers = places.layers.iter().map(|(index, _)| of(*index));
        Ok(match haq.settings.budget {
            Budget::Macs(_) => {
                let given = given(haq, net)?;
                let reads = |index: &usize| given.get(index).map_or(FLOAT, |bits| f64::from(bits.get()));
                let macs: Vec<f64> = layers.map(|layer| layer.map_or(0.0, |layer| layer.macs as f64)).collect();
                let rest = cost.macs() as f64 - macs.iter().sum::<f64>();
                let product = |((index, _), macs): (&(usize, String), f64)| Of::Products {
                    macs,
                    reads: (!haq.settings.activations).then(|| reads(index)),
                };
                Some(Self { rest, layers: places.layers.iter().zip(macs).map(product).collect() })
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
        let fastest = |(at, by): (usize, &BTreeMap<[usize; 2], f64>)| Of::fastest(by, places.chosen(at), places);
        Ok(Self { rest, layers: layers.iter().enumerate().map(fastest).collect() })
    }
}

/// The bits of what the layers read that `probe` gives them.
fn given(haq: &Haq, net: &Net) -> Result<BTreeMap<usize, Bits>> {
    let Some(given) = haq.probe.setting("activations") else { return Ok(BTreeMap::new()) };
    let bits = serde_json::from_value::<PerLayer<Bits>>(given.clone());
    let bits =
        bits.map_err(|error| Error::Invalid(format!("haq: `macs` counts bits, but `activations` of `probe` are none: {error}")))?;
    Ok(bits.resolve(net)?.into_iter().collect())
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

#[cfg(test)]
mod tests {
    use briquette_core::pass::{Catalogue, Search};
    use briquette_handmade::small;
    use serde_json::json;

    use super::*;

    const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);

    #[test]
    fn fewer_bits_that_are_slower_give_way_to_more() {
        let haq = Haq::read(json!({ "budget": { "ms": 1.0 } }), METHODS).unwrap();
        let places = haq.places(&small()).unwrap();
        let measured = BTreeMap::from([([2, 8], 5.0), ([4, 8], 3.0), ([6, 8], 3.0), ([8, 8], 4.0)]);
        let costs = |chosen: bool| Costs { rest: 1.0, layers: vec![Of::fastest(&measured, chosen, &places)] };
        assert_eq!([2, 4, 6, 8].map(|bits| costs(true).of(&[[bits, 8]])), [4.0, 4.0, 4.0, 5.0]);
        assert_eq!([2, 4, 6, 8].map(|bits| costs(true).raised(&[[bits, 8]])[0]), [[6, 8], [6, 8], [6, 8], [8, 8]]);
        assert_eq!(costs(false).of(&[[2, 8]]), 6.0, "the ends have the bits that they have");
    }
}
