//! Size and accuracy after each pass.

use anyhow::Result;

use super::super::Report;
use super::super::format::{count, percent, short_bytes};
use super::bars::{self, Bars};
use super::canvas::{BLUE, RUST};

/// Nothing when neither is known of any row.
pub(super) fn draw(report: &Report) -> Result<Option<String>> {
    let columns: Vec<Bars> = [sizes(report), accuracies(report)].into_iter().flatten().collect();
    if columns.is_empty() {
        return Ok(None);
    }
    let names: Vec<String> = report.rows.iter().map(|row| format!("{} {}", row.pass, row.method)).collect();
    bars::draw(&names, &columns).map(Some)
}

fn sizes(report: &Report) -> Option<Bars> {
    let known = |bytes: Option<u64>| bytes.filter(|&bytes| bytes > 0).map(|bytes| (bytes as f64).log10());
    let logs: Vec<Option<f64>> = report.rows.iter().map(|row| known(row.file_bytes)).collect();
    let (low, high) = range(&logs)?;
    // The axis begins at the power of ten below; the smallest bar is still to be seen.
    let (from, to) = ((low - 0.1).floor(), high);
    let place = |log: f64| (log - from) / (to - from);
    let text = |bytes: Option<u64>| bytes.map_or("–".into(), |bytes| count(bytes) + " B");
    Some(Bars {
        title: "file size, logarithmic",
        values: logs.iter().zip(&report.rows).map(|(log, row)| (log.map(place), text(row.file_bytes))).collect(),
        ticks: (from as i32..=to as i32).map(|power| (place(f64::from(power)), short_bytes(10f64.powi(power)))).collect(),
        color: BLUE,
        dots: false,
    })
}

fn accuracies(report: &Report) -> Option<Bars> {
    let known: Vec<Option<f64>> = report.rows.iter().map(|row| row.accuracy.filter(|a| a.is_finite())).collect();
    let (low, high) = range(&known)?;
    let pad = (0.1 * (high - low)).max(0.0005);
    let (from, to) = ((low - pad).max(0.0), (high + pad).min(1.0).max(low + pad));
    let place = |accuracy: f64| (accuracy - from) / (to - from);
    let text = |accuracy: Option<f64>| accuracy.map_or("–".into(), |accuracy| percent(accuracy) + " %");
    Some(Bars {
        title: "test accuracy",
        values: known.iter().map(|&accuracy| (accuracy.map(place), text(accuracy))).collect(),
        ticks: steps(100.0 * from, 100.0 * to).into_iter().map(|(at, text)| (place(at / 100.0), text + " %")).collect(),
        color: RUST,
        dots: true,
    })
}

fn range(values: &[Option<f64>]) -> Option<(f64, f64)> {
    let known = || values.iter().flatten().copied();
    Some((known().reduce(f64::min)?, known().reduce(f64::max)?))
}

/// A few round numbers within the range, with as many decimals as their step needs.
fn steps(from: f64, to: f64) -> Vec<(f64, String)> {
    let rough = (to - from) / 3.0;
    let power = rough.log10().floor();
    let step = [5.0, 2.0, 1.0].map(|n| n * 10f64.powf(power)).into_iter().find(|step| *step <= rough).unwrap_or(rough);
    let places = (-power).max(0.0) as usize;
    let numbers = (from / step).ceil() as i64..=(to / step).floor() as i64;
    numbers.map(|n| n as f64 * step).map(|at| (at, format!("{at:.places$}"))).collect()
}
