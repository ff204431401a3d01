//! A method that is tried on some layers.

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Catalogue, Entry, Pass};
use serde::Deserialize;
use serde_json::{Map, Number, Value};

/// A method some of whose settings are still open.
#[derive(Debug)]
pub(crate) struct Probe {
    methods: Catalogue,
    entry: &'static Entry,
    settings: Map<String, Value>,
    /// Whether the method is shrunk as for a trial run.
    pub(crate) trial: bool,
}

impl Probe {
    /// From its settings, with its name under `method`; those that are to stay `open` are not among them.
    pub(crate) fn of(mut settings: Map<String, Value>, open: &[&str], methods: Catalogue) -> std::result::Result<Self, String> {
        let name = settings.remove("method").ok_or("`probe` has no `method`")?;
        let name = name.as_str().ok_or_else(|| format!("`method` of `probe` is not a text: {name}"))?;
        let entry = methods.find(name).map_err(|error| error.to_string())?;
        if let Some(key) = open.iter().find(|key| settings.contains_key(**key)) {
            return Err(format!("`{key}` stands in `probe`, but is what is tried; leave it out there"));
        }
        Ok(Self { methods, entry, settings, trial: false })
    }

    /// As [`Probe::of`] a method that cuts channels, by its `ratio`.
    pub(crate) fn cutting(settings: Map<String, Value>, methods: Catalogue) -> std::result::Result<Self, String> {
        let probe = Self::of(settings, &["ratio", "budget", "global"], methods)?;
        let half = ("ratio", Map::from_iter([("rest".into(), 0.5.into())]));
        probe.with(&[half]).map_err(|error| error.to_string())?;
        Ok(probe)
    }

    /// The method's name.
    pub(crate) fn name(&self) -> &'static str {
        self.entry.name
    }

    /// All that its outcome depends on beside network, open settings, images and seed.
    pub(crate) fn settings(&self) -> String {
        format!("{} {:?} {}", self.entry.name, self.settings, self.trial)
    }

    /// A setting that is given.
    pub(crate) fn setting(&self, key: &str) -> Option<&Value> {
        self.settings.get(key)
    }

    /// The method with a table of layers for each of these settings.
    pub(crate) fn with(&self, tables: &[(&str, Map<String, Value>)]) -> Result<Box<dyn Pass>> {
        let mut settings = self.settings.clone();
        settings.extend(tables.iter().map(|(key, table)| ((*key).to_string(), Value::Object(table.clone()))));
        let read = self.entry.read(Value::Object(settings), self.methods, self.trial).map_err(|error| {
            let hint = if error.to_string().starts_with("invalid type: map") { "it takes no value for each layer: " } else { "" };
            let of = |(key, table): &(&str, Map<String, Value>)| match table.values().next() {
                Some(value) if table.len() == 1 => format!("{key} = {value}"),
                _ => format!("{key} = {}", Value::Object(table.clone())),
            };
            let open: Vec<String> = tables.iter().map(of).collect();
            Error::Invalid(format!("{} with {}: {hint}{error}", self.entry.name, open.join(" and ")))
        })?;
        Ok(read.pass)
    }

    /// A copy of the network after the method with these tables.
    pub(crate) fn apply(&self, net: &Net, tables: &[(&str, Map<String, Value>)], cx: &mut Context<'_>) -> Result<Net> {
        cx.aside(|cx| self.with(tables)?.run(net.deep_clone(), cx))
    }
}

/// A setting that takes a value for each layer, and values to try: `{ keep = [0.5, 0.1] }`, or one key deeper `{ ranks.fraction = [0.5, 0.1] }`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub(crate) struct Sweep {
    /// The setting.
    pub(crate) key: String,
    /// The key below it, where there is one.
    inner: Option<String>,
    /// The values.
    pub(crate) values: Vec<Number>,
}

impl TryFrom<Map<String, Value>> for Sweep {
    type Error = String;

    fn try_from(table: Map<String, Value>) -> std::result::Result<Self, String> {
        let one = |table: Map<String, Value>| {
            let mut entries = table.into_iter();
            entries.next().filter(|_| entries.next().is_none())
        };
        let numbers = |value: Value| serde_json::from_value::<Vec<Number>>(value).ok().filter(|values| !values.is_empty());
        let read = one(table).and_then(|(key, value)| match value {
            Value::Object(below) => {
                let (inner, value) = one(below)?;
                Some(Self { key, inner: Some(inner), values: numbers(value)? })
            }
            value => Some(Self { key, inner: None, values: numbers(value)? }),
        });
        read.ok_or_else(|| "`sweep` takes one setting and the values to try, for example { keep = [0.5, 0.1] }".into())
    }
}

impl Sweep {
    /// A table that gives each of these layers its value.
    pub(crate) fn table<'a>(&self, values: impl IntoIterator<Item = (&'a str, &'a Number)>) -> [(&str, Map<String, Value>); 1] {
        let value = |value: &Number| match &self.inner {
            Some(inner) => Value::Object(Map::from_iter([(inner.clone(), value.clone().into())])),
            None => value.clone().into(),
        };
        [(&self.key, values.into_iter().map(|(layer, number)| (layer.to_string(), value(number))).collect())]
    }

    /// The name of the point for this layer and value.
    pub(crate) fn point(&self, layer: &str, value: &Number) -> String {
        format!("{layer}, {self} = {value}")
    }
}

impl std::fmt::Display for Sweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.inner {
            Some(inner) => write!(f, "{}.{inner}", self.key),
            None => f.write_str(&self.key),
        }
    }
}
