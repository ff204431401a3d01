//! The tables of a report, and the sentences around them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::format::{count, decimals, percent, ratio, setting, three};
use super::shares::Share;
use super::table::{Column, Table, number, text};
use super::{LayerRow, Report, Row};
use crate::config::ValidFrom;

/// Stands over the report of a trial run.
pub(super) const SMOKE: &str =
    "SMOKE RUN: epochs and data are cut down. The figures show that the pipeline works, not what the methods achieve.";

/// Columns of [`passes`] that fit on a terminal.
pub(super) const CONSOLE: &[&str] =
    &["pass", "method", "accuracy %", "parameters", "non-zero", "file bytes", "ratio", "MACs", "mean MACs", "ms b1t1", "seconds"];

/// One line per pass.
pub(super) fn passes(report: &Report) -> Table {
    const COLUMNS: &[Column] = &[
        number("pass"),
        text("method"),
        number("accuracy %"),
        number("error %"),
        number("top-5 %"),
        number("parameters"),
        number("non-zero"),
        number("bits"),
        number("file bytes"),
        number("ratio"),
        number("MACs"),
        number("mean MACs"),
        number("ms b1t1"),
        number("seconds"),
    ];
    let first = report.rows.first().and_then(|row| row.file_bytes);
    let line = |row: &Row| {
        let smaller = first.zip(row.file_bytes).map(|(before, now)| before as f64 / now as f64);
        vec![
            row.pass.to_string(),
            row.method.clone(),
            known(row.accuracy, percent),
            known(row.accuracy.map(|accuracy| 1.0 - accuracy), percent),
            known(row.top5, percent),
            count(row.params as u64),
            count(row.nonzero as u64),
            count(row.bits),
            row.file_bytes.map_or(String::new(), count),
            known(smaller, ratio),
            count(row.macs),
            known(row.mean_macs, |macs| count(macs.round() as u64)),
            known(row.latency_ms.get("b1t1").copied(), three),
            decimals(row.seconds, 1),
        ]
    };
    Table::new(COLUMNS, report.rows.iter().map(line).collect())
}

/// The metrics that are known, each with its meaning.
pub(super) fn metrics(report: &Report) -> Table {
    let m = &report.metrics;
    let line =
        |name: &str, value: Option<String>, meaning: &str| value.map(|value| vec![name.to_string(), value, meaning.to_string()]);
    let mut rows: Vec<_> = [
        line("α, parameters", m.alpha_params.map(ratio), "compression rate a / a*, by parameters that are not zero"),
        line("α, bits", m.alpha_bits.map(ratio), "compression rate a / a*, by stored bits: values, indexes, codebooks"),
        line("α, bytes", m.alpha_bytes.map(ratio), "compression rate a / a*, by the size of the file"),
        line(
            "β, survey",
            m.beta_survey.map(|beta| decimals(beta, 2)),
            "(a − a*) / a* by file size, as the survey prints it: α − 1, no share",
        ),
        line(
            "saving",
            m.saving.map(|saving| percent(saving) + " %"),
            "1 − a* / a by file size: the share of the file that is gone",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    for (key, &delta) in &m.delta {
        let spread = report.rows.last().and_then(|row| row.speedup.get(key));
        let spread = spread
            .map_or(String::new(), |[low, _, high]| format!("; half of the turns from {} to {}", ratio(*low), ratio(*high)));
        let meaning = format!("speed-up s / s* of latencies, first network over last, median of turns{spread}");
        rows.push(vec![format!("δ, {}", setting(key)), ratio(delta), meaning]);
    }
    rows.extend(line("MACs", m.macs_ratio.map(ratio), "multiply-accumulates of one sample, first network over last; computed"));
    Table::new(&[text("metric"), number("value"), text("meaning")], rows)
}

/// Milliseconds of every pass in every setting: median and, in brackets, quartiles.
pub(super) fn latency(report: &Report) -> Table {
    let cell = |row: &Row, key: &str| {
        let quartiles = row.latency_quartiles.get(key).map(|[low, high]| format!(" ({} to {})", three(*low), three(*high)));
        known(row.latency_ms.get(key).copied(), three) + &quartiles.unwrap_or_default()
    };
    by_setting(report, |row| row.latency_ms.keys().collect(), cell)
}

/// Speed-up over the first row of every pass in every setting: median and, in brackets, quartiles.
pub(super) fn speedup(report: &Report) -> Table {
    let cell = |row: &Row, key: &str| {
        row.speedup
            .get(key)
            .map_or(String::new(), |[low, median, high]| format!("{} ({} to {})", ratio(*median), ratio(*low), ratio(*high)))
    };
    by_setting(report, |row| row.speedup.keys().collect(), cell)
}

/// What the passes found out.
pub(super) fn notes(report: &Report) -> Table {
    const COLUMNS: &[Column] = &[number("pass"), text("method"), text("note")];
    let lines = |row: &Row| row.notes.iter().map(|note| vec![row.pass.to_string(), row.method.clone(), note.clone()]).collect();
    Table::new(COLUMNS, report.rows.iter().flat_map::<Vec<Vec<String>>, _>(lines).collect())
}

/// What [`latency`] and [`speedup`] show.
pub(super) const TURNS: &str = "Median and quartiles. Every network took turns with the first one, so that what slows the machine down slows both; the first row \
     against itself shows what is noise.";

fn by_setting(report: &Report, keys: fn(&Row) -> Vec<&String>, cell: impl Fn(&Row, &str) -> String) -> Table {
    let keys: BTreeSet<&String> = report.rows.iter().flat_map(keys).collect();
    let settings = keys.iter().map(|key| Column { name: Cow::Owned(setting(key)), text: false });
    let columns: Vec<Column> = [number("pass"), text("method")].into_iter().chain(settings).collect();
    let line =
        |row: &Row| [row.pass.to_string(), row.method.clone()].into_iter().chain(keys.iter().map(|key| cell(row, key))).collect();
    Table::new(&columns, report.rows.iter().map(line).collect())
}

/// The layers of the last row and their total, after the tables of the Deep Compression paper.
pub(super) fn layers(report: &Report) -> Table {
    const COLUMNS: &[Column] = &[
        text("layer"),
        text("kind"),
        number("weights"),
        number("kept %"),
        number("value bits"),
        number("index bits"),
        number("codebook"),
        number("bytes"),
        number("size %"),
        number("ratio"),
    ];
    let (Some(first), Some(last)) = (report.rows.first(), report.rows.last()) else { return Table::new(COLUMNS, Vec::new()) };
    let line =
        |name: String, kind: String, share: &Share, bits: [Option<f64>; 2], codebook: Option<usize>, bytes: Option<u64>| {
            vec![
                name,
                kind,
                count(share.params as u64),
                percent(share.kept()),
                known(bits[0], |bits| decimals(bits, 2)),
                known(bits[1], |bits| decimals(bits, 2)),
                codebook.map_or(String::new(), |entries| count(entries as u64)),
                bytes.map_or(String::new(), count),
                percent(share.size()),
                ratio(share.size().recip()),
            ]
        };
    let mut rows: Vec<_> = last
        .layers
        .iter()
        .map(|layer| {
            let share = Share::of_layer(first, layer);
            let name = if share.new { format!("{} (new)", layer.name) } else { layer.name.clone() };
            line(name, layer.kind.clone(), &share, [layer.value_bits, layer.index_bits], layer.codebook, layer.bytes)
        })
        .collect();
    if !rows.is_empty() {
        let bits = [mean(&last.layers, |layer| layer.value_bits), mean(&last.layers, |layer| layer.index_bits)];
        rows.push(line("total".into(), String::new(), &Share::of_row(first, last), bits, None, Some(last.bits.div_ceil(8))));
    }
    Table::new(COLUMNS, rows)
}

/// What the columns of [`layers`] mean.
pub(super) const LAYERS: &str = "Weights: trainable values of the layer at the start, biases included. \
     Kept: those that are left and not zero. Value and index bits: mean per non-zero weight, after coding. \
     Size: stored bits as a share of the layer at the start with 32 bits per value. \
     A new layer was made by a pass and is measured against itself. \
     The total counts every stored tensor; the file adds the topology and checksums.";

/// Where, on what and with what the run was made: names and values.
pub(super) fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let data = &report.data;
    let from = match data.valid_from {
        ValidFrom::Train => "validation",
        ValidFrom::Test => "validation (of the test set)",
    };
    let images = [(data.train, "training"), (data.valid, from), (data.test, "test")];
    let images = images.map(|(n, split)| format!("{} {split}", count(n as u64))).join(", ");
    let versions: Vec<String> = report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let facts = [
        ("data", if data.name.is_empty() { String::new() } else { format!("{}: {images} images", data.name) }),
        ("device", report.device.clone()),
        ("adapter", report.adapter.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("seed", report.seed.to_string()),
        ("config hash", report.config_hash.clone()),
        ("versions", versions.join(", ")),
        ("date", report.date.clone()),
        ("latencies of", report.remeasured.clone().unwrap_or_default()),
    ];
    facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// The mean over the non-zero weights of the layers where it is known.
fn mean(layers: &[LayerRow], bits: impl Fn(&LayerRow) -> Option<f64>) -> Option<f64> {
    let known = layers.iter().filter_map(|layer| Some((layer.nonzero as f64, bits(layer)?)));
    let (weights, sum) = known.fold((0.0, 0.0), |(weights, sum), (n, bits)| (weights + n, sum + n * bits));
    (weights > 0.0).then(|| sum / weights)
}

fn known(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or(String::new(), show)
}
