//! The tables of a page on sweeps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use crate::plot::{self, Series};
use crate::sweep::{Method, Point, Row, Sweep, read_record};

/// The section on the sweep that a file describes, and the plots that it shows, by their names in `docs/images`.
///
/// # Errors
/// When the file or its record does not read, and when a plot cannot be drawn.
pub(crate) fn section(root: &Path, description: &Path) -> Result<(String, Vec<(String, String)>)> {
    let sweep = Sweep::read(description)?;
    let mut plots = Vec::new();
    let Some(record) = read_record(&description.with_extension("json"))? else {
        let file = description.strip_prefix(root).unwrap_or(description).display();
        let text = format!("\n## {}\n\n{}\n\nNot run yet: `cargo xtask sweep {file}`.\n", sweep.heading, sweep.text.trim());
        return Ok((text, plots));
    };
    let mut text = format!("\n## {}\n\n{}\n\nRepeat with `{}`.\n", sweep.heading, sweep.text.trim(), record.command);
    let mut reasons = BTreeSet::new();
    for data in &sweep.data {
        let points: Vec<&Point> =
            record.points.iter().filter(|point| point.data == *data && sweep.seeds.contains(&point.seed)).collect();
        let dense: BTreeMap<u64, f64> =
            points.iter().filter_map(|point| Some((point.seed, 100.0 * point.rows.first()?.accuracy))).collect();
        let seeds = if dense.len() == 1 { "one seed".to_string() } else { format!("mean ± deviation of {} seeds", dense.len()) };
        let start = match sweep.untrained() {
            true => String::new(),
            false => format!("; at the start {}", mean(&dense.into_values().collect::<Vec<_>>(), 2)),
        };
        text += &format!("\n### {data}\n\nTest accuracy in percent, {seeds}{start}.\n");
        if sweep.plot {
            let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let file = format!("{}-{}-{data}.svg", name(description.parent().unwrap_or(description)), name(description));
            if let Some(svg) = plot::accuracy_by_size(&series(&sweep, &points))? {
                text += &format!("\n![Accuracy against size](../images/{file})\n");
                plots.push((file, svg));
            }
        }
        let table = match (sweep.keep.len(), sweep.tune.all().len()) {
            _ if sweep.plot => listed(&sweep, &points),
            (1, 0) if sweep.untrained() => sizes(&sweep, &points),
            (1, 0) => outcomes(&sweep, &points),
            (1, _) => measures(&sweep, &points),
            _ => shares(&sweep, &points),
        };
        text += &table;
        if sweep.keep.len() == 1 {
            text += &speedups(&sweep, &points);
        }
        reasons.extend(points.iter().filter_map(|point| Some(format!("- {}: {}\n", point.method, point.error.as_ref()?))));
    }
    if !reasons.is_empty() {
        text += &format!("\nA dash stands where a method cannot do it:\n\n{}", reasons.into_iter().collect::<String>());
    }
    Ok((text, plots))
}

/// Kilobytes and accuracy of each method at each of its shares, means over the seeds.
fn series(sweep: &Sweep, points: &[&Point]) -> Vec<Series> {
    let average = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let of = |method: &Method| {
        let at = |keep: &f64| {
            let measured = |measure: fn(&Row, &Row) -> f64| average(measured(method, Some(*keep), points, 1, measure));
            (measured(|row, _| row.file_bytes as f64 / 1e3), measured(|row, _| 100.0 * row.accuracy))
        };
        let finite = |(size, accuracy): &(f64, f64)| size.is_finite() && accuracy.is_finite();
        (method.name.clone(), sweep.shares(method).iter().map(at).filter(finite).collect())
    };
    sweep.method.iter().map(of).collect()
}

/// Every method at each of its shares.
fn listed(sweep: &Sweep, points: &[&Point]) -> String {
    let mut text = String::from(
        "\n| method | setting | accuracy | points lost | file, kB | file smaller | MACs fewer |\n|---|---|---|---|---|---|---|\n",
    );
    for method in &sweep.method {
        for keep in sweep.shares(method) {
            let cell = |measure: fn(&Row, &Row) -> f64| cell(method, Some(*keep), points, 1, measure);
            text += &format!(
                "| {} | {} | {} | {} | {} | {}x | {}x |\n",
                method.name,
                if method.takes_a_share() { keep.to_string() } else { "–".into() },
                cell(|row, _| 100.0 * row.accuracy),
                cell(|row, start| 100.0 * (start.accuracy - row.accuracy)),
                cell(|row, _| row.file_bytes as f64 / 1e3),
                cell(|row, start| start.file_bytes as f64 / row.file_bytes as f64),
                cell(|row, start| start.macs as f64 / row.macs as f64),
            );
        }
    }
    text
}

/// Accuracy before and after tuning, a column for each share.
fn shares(sweep: &Sweep, points: &[&Point]) -> String {
    let mut text = String::new();
    for (when, back) in [("before tuning", 2), ("after tuning", 1)] {
        let head: Vec<String> = sweep.keep.iter().map(|keep| format!("{:.0} %", 100.0 * (1.0 - keep))).collect();
        text += &format!(
            "\n| {when}, by the share of {} that goes | {} |\n|---|{}\n",
            sweep.of,
            head.join(" | "),
            "---|".repeat(head.len())
        );
        for method in &sweep.method {
            let cell = |keep: &f64| {
                let keep = if method.takes_a_share() { Some(*keep) } else { None };
                cell(method, keep, points, back, |row, _| 100.0 * row.accuracy)
            };
            let cells: Vec<String> = sweep.keep.iter().map(cell).collect();
            text += &format!("| {} | {} |\n", method.name, cells.join(" | "));
        }
    }
    text
}

/// What comes of each method that begins with random weights.
fn sizes(sweep: &Sweep, points: &[&Point]) -> String {
    let mut text = String::from(
        "\n| method | accuracy | parameters, thousands | fewer | MACs fewer | file, kB |\n|---|---|---|---|---|---|\n",
    );
    for method in &sweep.method {
        let cell = |measure: fn(&Row, &Row) -> f64| cell(method, None, points, 1, measure);
        text += &format!(
            "| {} | {} | {} | {}x | {}x | {} |\n",
            method.name,
            cell(|row, _| 100.0 * row.accuracy),
            cell(|row, _| row.nonzero as f64 / 1e3),
            cell(|row, start| start.nonzero as f64 / row.nonzero as f64),
            cell(|row, start| start.macs as f64 / row.macs as f64),
            cell(|row, _| row.file_bytes as f64 / 1e3),
        );
    }
    text
}

/// What comes of each method.
fn outcomes(sweep: &Sweep, points: &[&Point]) -> String {
    let mut text = String::from("\n| method | accuracy | points lost | file smaller |\n|---|---|---|---|\n");
    for method in &sweep.method {
        let cell = |measure: fn(&Row, &Row) -> f64| cell(method, None, points, 1, measure);
        text += &format!(
            "| {} | {} | {} | {}x |\n",
            method.name,
            cell(|row, _| 100.0 * row.accuracy),
            cell(|row, start| 100.0 * (start.accuracy - row.accuracy)),
            cell(|row, start| start.file_bytes as f64 / row.file_bytes as f64),
        );
    }
    text
}

/// What is left of a network at one share, its accuracy before and after each training.
fn measures(sweep: &Sweep, points: &[&Point]) -> String {
    let epochs = sweep.tune.epochs();
    let after = |epochs: &i64| format!("after {epochs} epoch{}", if *epochs == 1 { "" } else { "s" });
    let after: Vec<String> = if epochs.len() == 1 { vec!["after tuning".into()] } else { epochs.iter().map(after).collect() };
    let mut text =
        format!("\n| method | before tuning | {} | MACs fewer | parameters left | file smaller |\n", after.join(" | "));
    text += &format!("|---|---|{}---|---|---|\n", "---|".repeat(epochs.len()));
    for method in &sweep.method {
        let cell = |back: usize, measure: fn(&Row, &Row) -> f64| cell(method, None, points, back, measure);
        let accuracies: Vec<String> =
            (1..=epochs.len() + 1).rev().map(|back| cell(back, |row, _| 100.0 * row.accuracy)).collect();
        text += &format!(
            "| {} | {} | {}x | {} % | {}x |\n",
            method.name,
            accuracies.join(" | "),
            cell(1, |row, dense| dense.macs as f64 / row.macs as f64),
            cell(1, |row, dense| 100.0 * row.nonzero as f64 / dense.nonzero as f64),
            cell(1, |row, dense| dense.file_bytes as f64 / row.file_bytes as f64),
        );
    }
    text
}

/// How much faster than the network at the start each method's is in the engine, where that was measured.
fn speedups(sweep: &Sweep, points: &[&Point]) -> String {
    let settings = [("b1t1", "batch 1"), ("b32t1", "batch 32")];
    if points.iter().all(|point| point.latency.speedup.is_empty()) {
        return String::new();
    }
    let mut text = String::from(
        "\nSpeed-up over the network at the start, on one thread of the engine, the two taking turns: mean of the medians of ",
    );
    let measured: BTreeSet<u64> =
        points.iter().filter(|point| !point.latency.speedup.is_empty()).map(|point| point.seed).collect();
    let seeds = measured.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    text += &format!("seed {seeds}; in brackets, the lowest first and the highest third quartile.\n");
    text += &format!("\n| method | {} |\n|---|---|---|\n", settings.map(|(_, name)| name).join(" | "));
    for method in &sweep.method {
        let of: Vec<&&Point> = points.iter().filter(|point| point.method == method.name).collect();
        let cells = settings
            .map(|(key, _)| spread(&of.iter().filter_map(|point| point.latency.speedup.get(key)).copied().collect::<Vec<_>>()));
        text += &format!("| {} | {} |\n", method.name, cells.join(" | "));
    }
    text
}

/// The mean of the medians, and what the quartiles of all reach to.
fn spread(quartiles: &[[f64; 3]]) -> String {
    if quartiles.is_empty() {
        return "–".into();
    }
    let median = quartiles.iter().map(|[_, median, _]| median).sum::<f64>() / quartiles.len() as f64;
    let low = quartiles.iter().map(|[low, ..]| *low).fold(f64::INFINITY, f64::min);
    let high = quartiles.iter().map(|[.., high]| *high).fold(0.0, f64::max);
    format!("{median:.2}x [{low:.2}, {high:.2}]")
}

/// Mean and deviation, over the seeds, of a measure of the row that is so many from the end, given the first row too.
fn cell(method: &Method, keep: Option<f64>, points: &[&Point], back: usize, measure: impl Fn(&Row, &Row) -> f64) -> String {
    mean(&measured(method, keep, points, back, measure), 2)
}

/// The same of each seed.
fn measured(method: &Method, keep: Option<f64>, points: &[&Point], back: usize, measure: impl Fn(&Row, &Row) -> f64) -> Vec<f64> {
    let of = points.iter().filter(|point| point.method == method.name && keep.is_none_or(|keep| keep == point.keep));
    of.filter_map(|point| Some(measure(point.rows.iter().rev().nth(back - 1)?, point.rows.first()?))).collect()
}

/// Mean and deviation of a sample with so many digits, a dash of none.
pub(crate) fn mean(values: &[f64], digits: usize) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    match values.len() {
        0 => "–".into(),
        1 => format!("{mean:.digits$}"),
        _ => format!("{mean:.digits$} ± {:.digits$}", (square / (n - 1.0)).sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_up_shows_its_spread_over_turns_and_seeds() {
        assert_eq!((spread(&[]), spread(&[[1.5, 2.0, 2.25]])), ("–".to_string(), "2.00x [1.50, 2.25]".to_string()));
        assert_eq!(spread(&[[1.5, 2.0, 2.25], [1.75, 3.0, 3.5]]), "2.50x [1.50, 3.50]");
    }

    #[test]
    fn a_sweep_without_a_record_says_so() {
        let root = std::env::temp_dir().join(format!("briquette-section-{}", std::process::id()));
        std::fs::create_dir_all(root.join("page")).unwrap();
        let text = "heading = \"H\"\ntext = \"T\"\nmodel = \"mlp1\"\ndata = [\"mnist\"]\nvalid = 1\nseeds = [1]\n[[method]]\nname = \"m\"\npass = []\n";
        std::fs::write(root.join("page/net.toml"), text).unwrap();
        let (section, plots) = section(&root, &root.join("page/net.toml")).unwrap();
        assert!(plots.is_empty());
        assert_eq!(section, "\n## H\n\nT\n\nNot run yet: `cargo xtask sweep page/net.toml`.\n");
    }

    #[test]
    fn figures_are_means_and_deviations_over_the_seeds() {
        assert_eq!((mean(&[], 2), mean(&[2.0], 1)), ("–".to_string(), "2.0".to_string()));
        assert_eq!(mean(&[1.0, 2.0, 3.0], 2), "2.00 ± 1.00");
    }
}
