//! Keys of a config: what an unknown one may have meant, and where `--set` writes.

use anyhow::{Context as _, Result, anyhow, bail};
use briquette_core::types::unquoted;
use briquette_data::nearest;
use serde_json::Value;

/// Every key that a config can hold, one after another in the tables' first cells.
const VOCABULARY: &str = include_str!("../../../../docs/vocabulary.md");

/// What serde says about settings, with the keys that they have and the one that an unknown one resembles. `fits` tells whether the settings
/// would know one key in the place of another, for serde does not list the keys of structs that are made of several.
pub(super) fn explain(error: &str, fits: impl Fn(&str, &str) -> bool) -> String {
    let Some((key, rest)) = error.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) else {
        return error.to_string();
    };
    let mut listed: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let mut text = error.trim_end().to_string();
    if listed.is_empty() {
        listed = vocabulary().filter(|known| fits(key, known)).collect();
        listed.sort_unstable();
        if !listed.is_empty() {
            let names: Vec<String> = listed.iter().map(|name| format!("`{name}`")).collect();
            text += &format!(", expected one of {}", names.join(", "));
        }
    }
    let kebab = key.replace('_', "-");
    let meant = if listed.contains(&kebab.as_str()) {
        Some(kebab)
    } else {
        // Of a short list, which the message shows whole, this would name any.
        Some(listed).filter(|listed| listed.len() > 12).and_then(|listed| nearest(key, listed).into_iter().next())
    };
    meant.map_or(text.clone(), |meant| format!("{text}; did you mean `{meant}`?"))
}

fn vocabulary() -> impl Iterator<Item = &'static str> {
    let cells = VOCABULARY.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').step_by(2))
}

/// The settings with the key of that name, at the top, renamed.
pub(super) fn renamed(settings: &Value, key: &str, to: &str) -> Value {
    let Value::Object(table) = settings else { return settings.clone() };
    table.iter().map(|(name, value)| (if name == key { to.to_string() } else { name.clone() }, value.clone())).collect()
}

/// Refuses a table of names under `key` in which one with dots is not quoted.
pub(super) fn all_quoted(settings: &toml::Value, key: &str) -> Result<()> {
    let names = settings.get(key).and_then(toml::Value::as_table);
    match names.into_iter().flatten().find(|(_, value)| value.is_table()) {
        Some((name, value)) => bail!(unquoted(name, &serde_json::to_value(value)?)),
        None => Ok(()),
    }
}

/// Sets one key, as `KEY=VALUE` says; numbers in the key index lists, and parts that hold dots are quoted. The value is TOML, or a text when
/// it is not.
pub(super) fn set(table: &mut toml::Table, set: &str) -> Result<()> {
    let (parts, text) = parts(set)?;
    let value = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
    let value = value.unwrap_or_else(|| toml::Value::String(text.to_string()));
    let (last, path) = parts.split_last().context("has an empty key")?;
    let mut at = table;
    let mut index = 0;
    while index < path.len() {
        let slot = at.entry(&path[index]).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        index += 1;
        at = match slot {
            toml::Value::Table(table) => table,
            toml::Value::Array(list) => {
                let Some(position) = path.get(index) else { bail!(no_entry(&path.join("."), last, list)) };
                let (count, number) = (list.len(), position.parse::<usize>().ok());
                index += 1;
                number
                    .and_then(|i| list.get_mut(i))
                    .and_then(toml::Value::as_table_mut)
                    .ok_or_else(|| anyhow!(beyond(&path[index - 2], count, position)))?
            }
            other => bail!("'{}' is {other}, which has no keys", path[index - 1]),
        };
    }
    at.insert(last.clone(), value);
    Ok(())
}

fn beyond(name: &str, entries: usize, position: &str) -> String {
    format!("'{name}' has the entries 0 to {}, not '{position}'", entries.max(1) - 1)
}

/// Why nothing can be set directly in the list of this name.
fn no_entry(name: &str, key: &str, list: &[toml::Value]) -> String {
    if !list.iter().all(toml::Value::is_table) {
        return format!("'{name}' is a list of values: set it as a whole, as in '{name}=[...]'");
    }
    let Ok(number) = key.parse::<usize>() else {
        return format!("'{name}' is a list: give the number of an entry, as in '{name}.0.{key}'");
    };
    let Some(entry) = list.get(number) else { return beyond(name, list.len(), key) };
    let own = entry.as_table().and_then(|entry| entry.keys().next()).map_or("KEY", String::as_str);
    format!("an entry of '{name}' cannot be replaced as a whole: name a key of it, as in '{name}.{number}.{own}'")
}

/// The parts of the key in `KEY=VALUE`, quotes taken off, and the value.
fn parts(set: &str) -> Result<(Vec<String>, &str)> {
    let (mut parts, mut part, mut quote) = (Vec::new(), String::new(), None);
    for (at, c) in set.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '.' | '=') if part.is_empty() => bail!("has an empty key"),
            (None, '.') => parts.push(std::mem::take(&mut part)),
            (None, '=') => {
                parts.push(part.trim_end().to_string());
                return Ok((parts, set[at + 1..].trim_start()));
            }
            (_, c) => part.push(c),
        }
    }
    Err(match quote {
        Some(open) => anyhow!("has a {open} that nothing closes"),
        None => anyhow!("must be KEY=VALUE"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sets: &[&str]) -> Result<toml::Table> {
        let mut table: toml::Table = "[[pass]]\nkeep = { \"layer1.0.conv1\" = 0.5, fc = 0.1 }\n".parse()?;
        sets.iter().try_for_each(|one| set(&mut table, one))?;
        Ok(table)
    }

    #[test]
    fn a_quoted_part_of_a_key_keeps_its_dots() {
        for quoted in [r#"pass.0.keep."layer1.0.conv1"=0.3"#, "pass.0.keep.'layer1.0.conv1' = 0.3"] {
            let table = after(&[quoted]).unwrap();
            let keep = table["pass"][0]["keep"].as_table().unwrap();
            assert_eq!((keep["layer1.0.conv1"].as_float(), keep.len()), (Some(0.3), 2), "{quoted}");
        }
        assert_eq!(after(&["name=a.b=c"]).unwrap()["name"].as_str(), Some("a.b=c"));
    }

    #[test]
    fn an_entry_of_a_list_that_is_to_be_replaced_is_refused_by_what_would_do() {
        let refused = |text: &str| format!("{:#}", after(&[text]).unwrap_err());
        let whole = "an entry of 'pass' cannot be replaced as a whole: name a key of it, as in 'pass.";
        assert_eq!(refused("pass.0={ method = \"magnitude\" }"), format!("{whole}0.keep'"));
        assert_eq!(refused("pass.3=1"), "'pass' has the entries 0 to 0, not '3'");
        let mean = format!("{:#}", after(&["model.mean=[0.5]", "model.mean.0=0.4"]).unwrap_err());
        assert_eq!(mean, "'model.mean' is a list of values: set it as a whole, as in 'model.mean=[...]'");
    }

    #[test]
    fn keys_that_cannot_be_read_are_refused() {
        let refused = |text: &str| format!("{:#}", after(&[text]).unwrap_err());
        assert_eq!(refused(r#"pass.0.keep."layer1.0=0.3"#), "has a \" that nothing closes");
        assert_eq!(refused("pass..keep=1"), "has an empty key");
        assert_eq!(refused("=1"), "has an empty key");
        assert_eq!(refused("seed"), "must be KEY=VALUE");
        assert_eq!(refused("pass.7.keep=1"), "'pass' has the entries 0 to 0, not '7'");
        assert_eq!(refused("pass.keep=1"), "'pass' is a list: give the number of an entry, as in 'pass.0.keep'");
    }
}
