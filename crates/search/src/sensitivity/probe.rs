//! The method that is tried, on one layer at a time.

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Catalogue, Entry, Pass};
use serde_json::{Map, Number, Value};

/// A method whose setting `key` is still open.
#[derive(Debug)]
pub(super) struct Probe {
    methods: Catalogue,
    entry: &'static Entry,
    settings: Map<String, Value>,
    pub(super) key: String,
    pub(super) values: Vec<Number>,
    /// How often one application goes through its recipes.
    pub(super) rounds: usize,
    /// Whether the method is shrunk as for a trial run.
    pub(super) trial: bool,
}

impl Probe {
    pub(super) fn of(
        mut settings: Map<String, Value>,
        sweep: BTreeMap<String, Vec<Number>>,
        methods: Catalogue,
    ) -> std::result::Result<Self, String> {
        let name = settings.remove("method").ok_or("`probe` has no `method`")?;
        let name = name.as_str().ok_or_else(|| format!("`method` of `probe` is not a text: {name}"))?;
        let entry = methods.find(name).map_err(|error| error.to_string())?;
        let mut sweep = sweep.into_iter();
        let (key, values) = match (sweep.next(), sweep.next()) {
            (Some((key, values)), None) if !values.is_empty() => (key, values),
            _ => return Err("`sweep` takes one setting and the values to try, for example { keep = [0.5, 0.1] }".into()),
        };
        if settings.contains_key(&key) {
            return Err(format!("`{key}` stands in `probe` and in `sweep`; leave it out of `probe`"));
        }
        let mut probe = Probe { methods, entry, settings, key, values, rounds: 1, trial: false };
        for value in &probe.values {
            probe.rounds = probe.on("rest", value).map_err(|error| error.to_string())?.rounds();
        }
        Ok(probe)
    }

    /// The method's name.
    pub(super) fn name(&self) -> &'static str {
        self.entry.name
    }

    /// The name of the point for this layer and value.
    pub(super) fn point(&self, layer: &str, value: &Number) -> String {
        format!("{layer}, {} = {value}", self.key)
    }

    /// All that its outcome depends on beside network, layer, value, images and seed.
    pub(super) fn settings(&self) -> String {
        format!("{} {:?} {} {}", self.entry.name, self.settings, self.key, self.trial)
    }

    /// The method with this value for this layer alone.
    pub(super) fn on(&self, layer: &str, value: &Number) -> Result<Box<dyn Pass>> {
        let mut settings = self.settings.clone();
        settings.insert(self.key.clone(), Map::from_iter([(layer.to_string(), Value::Number(value.clone()))]).into());
        let read = self.entry.read(Value::Object(settings), self.methods, self.trial).map_err(|error| {
            let hint = if error.to_string().starts_with("invalid type: map") { "it takes no value for each layer: " } else { "" };
            Error::Invalid(format!("{} with {} = {value}: {hint}{error}", self.entry.name, self.key))
        })?;
        Ok(read.pass)
    }

    /// A copy of the network with one layer changed.
    pub(super) fn apply(&self, net: &Net, layer: &str, value: &Number, cx: &mut Context<'_>) -> Result<Net> {
        cx.aside(|cx| self.on(layer, value)?.run(net.deep_clone(), cx))
    }
}
