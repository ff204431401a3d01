//! Values that a config can only hold when they make sense, so that no method checks them again.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize as DeserializeDerive, Serialize};

use crate::error::{Error, Result};
use crate::net::{Net, Op};

mod budget;

pub use budget::Budget;

/// A share in `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, DeserializeDerive)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

impl Ratio {
    /// The share as a number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = String;

    fn try_from(value: f64) -> std::result::Result<Self, String> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(format!("a ratio lies in [0, 1], not {value}")) }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> f64 {
        ratio.0
    }
}

/// A number of bits in `1..=16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, DeserializeDerive)]
#[serde(try_from = "u32", into = "u32")]
pub struct Bits(u32);

impl Bits {
    /// The number of bits.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number of values that fit, `2^bits`.
    pub fn levels(self) -> usize {
        1 << self.0
    }
}

impl TryFrom<u32> for Bits {
    type Error = String;

    fn try_from(value: u32) -> std::result::Result<Self, String> {
        if (1..=16).contains(&value) { Ok(Self(value)) } else { Err(format!("bits lie in 1..=16, not {value}")) }
    }
}

impl From<Bits> for u32 {
    fn from(bits: Bits) -> u32 {
        bits.0
    }
}

/// One value for all layers, or values by name. A name is a layer's, or `conv`, `fc` or `rest` for all layers of that kind that are not
/// named themselves. Layers that nothing names are left alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PerLayer<T> {
    /// The same for every layer.
    All(T),
    /// By name or kind.
    Each(BTreeMap<String, T>),
}

impl<T: Copy> PerLayer<T> {
    /// The value for each node with weights, in the network's order.
    ///
    /// # Errors
    /// A name that neither a layer nor a kind bears.
    pub fn resolve(&self, net: &Net) -> Result<Vec<(usize, T)>> {
        let each = match self {
            PerLayer::All(value) => return Ok(net.weighted().map(|(index, _)| (index, *value)).collect()),
            PerLayer::Each(each) => each,
        };
        let names: Vec<&str> = net.weighted().map(|(_, node)| node.name.as_str()).collect();
        let kinds = ["conv", "fc", "rest"];
        if let Some(wrong) = each.keys().find(|key| !names.contains(&key.as_str()) && !kinds.contains(&key.as_str())) {
            return Err(Error::unknown("layer", wrong, names.into_iter().chain(kinds)));
        }
        let value = |node: &crate::net::Node| {
            let kind = if matches!(node.op, Op::Conv2d(_)) { "conv" } else { "fc" };
            each.get(&node.name).or_else(|| each.get(kind)).or_else(|| each.get("rest")).copied()
        };
        Ok(net.weighted().filter_map(|(index, node)| value(node).map(|value| (index, value))).collect())
    }

    /// Refuses a layer that a table names, by its very name, of which `done` does not hold; `why` says what keeps a method from it. What
    /// only a kind or `rest` names, a method may leave alone.
    ///
    /// # Errors
    /// Names the layer.
    pub fn all_done(&self, net: &Net, done: impl Fn(usize) -> bool, why: &str) -> Result<()> {
        let PerLayer::Each(each) = self else { return Ok(()) };
        let missed = net.weighted().find(|(index, node)| each.contains_key(&node.name) && !done(*index));
        missed.map_or(Ok(()), |(_, node)| Err(Error::node(&node.name, why)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for PerLayer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(PerLayerVisitor(PhantomData))
    }
}

/// Tells a table from a single value, so that errors speak of the value and not of an untagged enum.
struct PerLayerVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PerLayerVisitor<T> {
    type Value = PerLayer<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one number for all layers or a table { layer = number }")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(PerLayer::All)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(PerLayer::All)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> std::result::Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(PerLayer::All)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
        BTreeMap::deserialize(de::value::MapAccessDeserializer::new(map)).map(PerLayer::Each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_and_cannot_be_done_is_refused_and_what_a_kind_names_is_not() {
        let arch = crate::zoo::Arch::named("lenet5").unwrap();
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).unwrap();
        let conv = |index: usize| matches!(net.nodes[index].op, Op::Conv2d(_));
        let refused = |table: &str| serde_json::from_str::<PerLayer<Ratio>>(table).unwrap().all_done(&net, conv, "is none");
        assert_eq!(refused(r#"{ "conv1": 0.5, "fc1": 0.5 }"#).unwrap_err().to_string(), "node 'fc1': is none");
        for fine in [r#"{ "conv1": 0.5, "fc": 0.5 }"#, r#"{ "rest": 0.5 }"#, "0.5"] {
            assert!(refused(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn ranges_are_checked_where_a_value_is_read() {
        assert!(serde_json::from_str::<Ratio>("1.2").unwrap_err().to_string().contains("a ratio lies in [0, 1], not 1.2"));
        assert!(serde_json::from_str::<Bits>("17").is_err());
        let table: PerLayer<Ratio> = serde_json::from_str(r#"{"conv": 0.5}"#).unwrap();
        assert!(matches!(table, PerLayer::Each(each) if each["conv"].get() == 0.5));
        let all: PerLayer<Bits> = serde_json::from_str("5").unwrap();
        assert!(matches!(all, PerLayer::All(bits) if bits.levels() == 32));
    }
}
