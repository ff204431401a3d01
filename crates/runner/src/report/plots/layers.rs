//! What is left of each layer.

use anyhow::Result;

use super::super::Report;
use super::super::format::percent;
use super::super::shares::Share;
use super::bars::{self, Bars};
use super::canvas::{BLUE, RUST};

/// Nothing without layers. Normalization is left out: it is small and hides the rest.
pub(super) fn draw(report: &Report) -> Result<Option<String>> {
    let (Some(first), Some(last)) = (report.rows.first(), report.rows.last()) else { return Ok(None) };
    let layers: Vec<_> = last.layers.iter().filter(|layer| layer.params > 0 && layer.kind != "batch-norm").collect();
    if layers.is_empty() {
        return Ok(None);
    }
    let shares: Vec<Share> = layers.iter().map(|layer| Share::of_layer(first, layer)).collect();
    let column = |title, color, share: fn(&Share) -> f64| {
        let values: Vec<f64> = shares.iter().map(share).collect();
        let most = values.iter().copied().fold(1.0, f64::max);
        let value = |&share: &f64| (share.is_finite().then_some(share / most), percent(share) + " %");
        let ticks = [0.0, 0.25, 0.5, 0.75, 1.0].map(|at| (at / most, format!("{} %", 100.0 * at)));
        Bars { title, values: values.iter().map(value).collect(), ticks: ticks.into(), color, dots: false }
    };
    let names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
    bars::draw(&names, &[column("values kept", BLUE, Share::kept), column("size against 32 bits per value", RUST, Share::size)])
        .map(Some)
}
