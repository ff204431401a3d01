//! Values that a config can only hold when they make sense, so that no method checks them again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize as DeserializeDerive, Serialize};

use crate::error::{Error, Result};
use crate::net::{Net, Node};

mod budget;
mod bytes;
mod select;

pub use budget::Budget;
pub use bytes::Bytes;
pub use select::{Fit, Layers, Selector, WEIGHTLESS};

/// A share in `[0, 1]`.
#[derive(Debug, Default, Clone, Copy, PartialEq, PartialOrd, Serialize, DeserializeDerive)]
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

/// One value for all layers, or values by [`Selector`], of which the closest to a layer decides: its name before a wildcard, the longer
/// wildcard before the shorter, then its kind, then `rest`. Layers that nothing names are left alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PerLayer<T> {
    /// The same for every layer.
    All(T),
    /// By selector.
    Each(BTreeMap<Selector, T>),
}

impl<T: Clone> PerLayer<T> {
    /// The value for each node with weights, in the network's order.
    ///
    /// # Errors
    /// A selector that fits no layer, and two wildcards of the same length that fit the same one.
    pub fn resolve(&self, net: &Net) -> Result<Vec<(usize, T)>> {
        Ok(self.fits(net)?.into_iter().map(|(index, (_, value))| (index, value)).collect())
    }

    /// [`PerLayer::resolve`] for the layers that [`Layers::without`] has chosen.
    ///
    /// # Errors
    /// As [`PerLayer::resolve`], and a layer that has a value under its name but is not chosen or has no weights of its own.
    pub fn resolve_within(&self, net: &Net, chosen: &BTreeSet<usize>) -> Result<Vec<(usize, T)>> {
        let mut within = Vec::new();
        for (index, (fit, value)) in self.fits(net)? {
            if chosen.contains(&index) {
                within.push((index, value));
            } else if fit == Fit::Name {
                let node = &net.nodes[index];
                let left_out = "has a value of its own, but `layers` and `except` leave it out; name it in `layers`";
                return Err(Error::node(&node.name, if node.op.weight_shape().is_some() { left_out } else { WEIGHTLESS }));
            }
        }
        Ok(within)
    }

    /// The value for each node with weights, with how closely its selector fits.
    ///
    /// # Errors
    /// As [`PerLayer::resolve`].
    pub fn fits(&self, net: &Net) -> Result<BTreeMap<usize, (Fit, T)>> {
        let each = match self {
            PerLayer::All(value) => return Ok(net.weighted().map(|(index, _)| (index, (Fit::Rest, value.clone()))).collect()),
            PerLayer::Each(each) => each,
        };
        let mut found: BTreeMap<usize, Vec<(Fit, &Selector, T)>> = BTreeMap::new();
        for (selector, value) in each {
            let fit = |node: &Node| selector.fit(node).or((selector.text() == REST).then_some(Fit::Rest));
            let before = found.values().map(Vec::len).sum::<usize>();
            for (index, node) in net.weighted() {
                found.entry(index).or_default().extend(fit(node).map(|fit| (fit, selector, value.clone())));
            }
            if found.values().map(Vec::len).sum::<usize>() == before {
                return Err(Error::unknown("layer", selector.text(), select::known(net).chain([REST])));
            }
        }
        let mut closest = BTreeMap::new();
        for (index, mut found) in found {
            found.sort_by_key(|(fit, ..)| Reverse(*fit));
            match &found[..] {
                [(fit, one, _), (other, two, _), ..] if fit == other => {
                    let detail = format!("`{}` and `{}` fit it equally well; give it a value of its own", one.text(), two.text());
                    return Err(Error::node(&net.nodes[index].name, detail));
                }
                [(fit, _, value), ..] => drop(closest.insert(index, (*fit, value.clone()))),
                [] => {}
            }
        }
        Ok(closest)
    }

    /// Refuses a layer that a table names, by its very name, of which `done` does not hold; `why` says what keeps a method from it. What
    /// only a kind or `rest` names, a method may leave alone.
    ///
    /// # Errors
    /// Names the layer.
    pub fn all_done(&self, net: &Net, done: impl Fn(usize) -> bool, why: &str) -> Result<()> {
        let PerLayer::Each(each) = self else { return Ok(()) };
        let missed =
            net.weighted().find(|(index, node)| each.keys().any(|selector| selector.text() == node.name) && !done(*index));
        missed.map_or(Ok(()), |(_, node)| Err(Error::node(&node.name, why)))
    }
}

/// The layers that nothing else in a table names.
const REST: &str = "rest";

impl<'de, T: DeserializeOwned> Deserialize<'de> for PerLayer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(PerLayerVisitor(PhantomData))
    }
}

/// Tells a table from a single value, so that errors speak of the value and not of an untagged enum.
struct PerLayerVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for PerLayerVisitor<T> {
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

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut each = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, serde_json::Value>()? {
            // A name with dots that is not quoted becomes tables within tables.
            if let serde_json::Value::Object(_) = value {
                return Err(de::Error::custom(unquoted(&name, &value)));
            }
            let value = serde_json::from_value(value).map_err(|error| de::Error::custom(format!("`{name}`: {error}")))?;
            each.insert(Selector::from(name.as_str()), value);
        }
        Ok(PerLayer::Each(each))
    }
}

/// What to say of a name that was taken apart at its dots into tables within tables.
pub fn unquoted(name: &str, mut value: &serde_json::Value) -> String {
    let mut full = name.to_string();
    while let Some((part, inner)) = value.as_object().and_then(|table| table.iter().next()) {
        full = format!("{full}.{part}");
        value = inner;
    }
    format!("`{full}` is a table within tables; a name with dots needs quotes: {{ \"{full}\" = {value} }}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Op;

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
        assert!(matches!(table, PerLayer::Each(each) if each[&Selector::from("conv")].get() == 0.5));
        let all: PerLayer<Bits> = serde_json::from_str("5").unwrap();
        assert!(matches!(all, PerLayer::All(bits) if bits.levels() == 32));
    }

    fn net() -> Net {
        use crate::builder::{Builder, Conv};
        let mut b = Builder::new([1, 4, 4], 1, &burn::tensor::Device::flex());
        let mut x = b.input();
        for name in ["conv1", "layer1.0.conv", "layer1.1.conv"] {
            x = b.conv(name, x, Conv::new(2, 1));
        }
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 4);
        b.finish().unwrap()
    }

    fn values(table: &str) -> std::result::Result<Vec<f64>, String> {
        let table: PerLayer<Ratio> = serde_json::from_str(table).map_err(|error| error.to_string())?;
        let values = table.resolve(&net()).map_err(|error| error.to_string())?;
        Ok(values.into_iter().map(|(_, value)| value.get()).collect())
    }

    #[test]
    fn the_closest_selector_of_a_table_decides() {
        let table = r#"{ "rest": 0.1, "conv": 0.2, "layer1.*": 0.3, "layer1.1.*": 0.4, "layer1.0.conv": 0.5 }"#;
        assert_eq!(values(table).unwrap(), [0.2, 0.5, 0.4, 0.1]);
        assert_eq!(values(r#"{ "layer*": 0.3 }"#).unwrap(), [0.3, 0.3], "the others are left alone");
        let error = values(r#"{ "layer2.*": 0.3 }"#).unwrap_err();
        assert!(error.starts_with("unknown layer 'layer2.*'; did you mean one of 'layer1."), "{error}");
        let error = values(r#"{ "layer1.*": 0.3, "*.0.conv": 0.4 }"#).unwrap_err();
        assert_eq!(error, "node 'layer1.0.conv': `*.0.conv` and `layer1.*` fit it equally well; give it a value of its own");
        assert!(values(r#"{ "conv": 1.5 }"#).unwrap_err().contains("`conv`: a ratio lies in [0, 1], not 1.5"));
    }

    #[test]
    fn a_name_with_dots_asks_for_quotes() {
        let error = values(r#"{ "layer1": { "0": { "conv": 0.5 } } }"#).unwrap_err();
        assert!(error.contains(r#"a name with dots needs quotes: { "layer1.0.conv" = 0.5 }"#), "{error}");
    }

    #[test]
    fn a_layer_with_a_value_of_its_own_cannot_be_excepted() {
        let table: PerLayer<Ratio> = serde_json::from_str(r#"{ "fc": 0.5, "conv": 0.2 }"#).unwrap();
        let except = |names: &[&str]| {
            let chosen = Layers::default().without(&names.iter().copied().collect(), &net())?;
            table.resolve_within(&net(), &chosen)
        };
        assert_eq!(except(&["layer1.*"]).unwrap().len(), 2);
        let error = except(&["fc"]).unwrap_err().to_string();
        assert_eq!(error, "node 'fc': has a value of its own, but `layers` and `except` leave it out; name it in `layers`");
    }
}
