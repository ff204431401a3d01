//! Keys of a config: what an unknown one may have meant.

use briquette_core::error::nearest;
use serde_json::Value;

/// What serde says about settings, with the key that an unknown one resembles. `fits` tells whether the settings would be read with one
/// key in the place of another, for serde does not list the keys of structs that are made of several.
pub(super) fn explain(error: &str, fits: impl Fn(&str, &str) -> bool) -> String {
    let Some((key, rest)) = error.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) else {
        return error.to_string();
    };
    let kebab = key.replace('_', "-");
    let listed: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let meant = if listed.contains(&kebab.as_str()) || (kebab != key && fits(key, &kebab)) {
        Some(kebab)
    } else {
        // Of a short list, which the message shows whole, this would name any.
        Some(listed).filter(|listed| listed.len() > 12).and_then(|listed| nearest(key, listed).into_iter().next())
    };
    meant.map_or(error.to_string(), |meant| format!("{}; did you mean `{meant}`?", error.trim_end()))
}

/// The settings with the key of that name, at the top, renamed.
pub(super) fn renamed(settings: &Value, key: &str, to: &str) -> Value {
    let Value::Object(table) = settings else { return settings.clone() };
    table.iter().map(|(name, value)| (if name == key { to.to_string() } else { name.clone() }, value.clone())).collect()
}
