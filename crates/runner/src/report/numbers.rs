//! JSON has no NaN and no infinity: they are written as `null`, and read back here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// A number; NaN where it was none.
pub(super) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The entries that are numbers.
pub(super) fn map<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let entries = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    Ok(entries.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}
