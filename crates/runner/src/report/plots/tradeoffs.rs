//! What a network does for what it costs: accuracy over mean multiply-accumulates.

use anyhow::Result;
use briquette_core::tradeoff::{Balance, Tradeoff};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::super::format::{count, fit, percent};
use super::canvas::{BLUE, INK, LINE, RUST, WIDTH, failed, line, sheet, write};

const LEFT: i32 = 64;
const RIGHT: i32 = 40;
const HEAD: i32 = 26;
const TALL: i32 = 220;
const FOOT: i32 = 34;

/// Draws the points as a line, and what was chosen as a dot.
pub(super) fn draw(tradeoff: &Tradeoff) -> Result<String> {
    let all = || tradeoff.points.iter().map(|point| point.balance).chain([tradeoff.chosen]);
    let range = |of: fn(&Balance) -> f64, least: f64| {
        let values = || all().map(|balance| of(&balance));
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let pad = (0.06 * (high - low)).max(least);
        ((low - pad).max(0.0), high + pad)
    };
    let (accuracies, costs) = (range(|balance| balance.accuracy, 0.002), range(|balance| balance.macs, 1.0));
    let share = |(low, high): (f64, f64), value: f64| (value - low) / (high - low);
    let x = |macs: f64| LEFT + (f64::from(WIDTH - LEFT - RIGHT) * share(costs, macs)).round() as i32;
    let y = |accuracy: f64| HEAD + TALL - (f64::from(TALL) * share(accuracies, accuracy)).round() as i32;
    sheet(HEAD + TALL + FOOT, |area| {
        let what = format!("validation accuracy over mean multiply-accumulates, by {} of {}", tradeoff.key, tradeoff.method);
        write(area, &fit(&what, 90), (LEFT, HEAD / 2), HPos::Left)?;
        for part in [0.0, 0.5, 1.0] {
            let at = |(low, high): (f64, f64)| low + part * (high - low);
            let (accuracy, macs) = (at(accuracies), at(costs));
            line(area, (LEFT, y(accuracy)), (WIDTH - RIGHT, y(accuracy)), LINE)?;
            write(area, &(percent(accuracy) + " %"), (LEFT - 6, y(accuracy)), HPos::Right)?;
            line(area, (x(macs), HEAD + TALL), (x(macs), HEAD + TALL + 4), INK)?;
            write(area, &count(macs.round() as u64), (x(macs), HEAD + TALL + 15), HPos::Center)?;
        }
        line(area, (LEFT, HEAD + TALL), (WIDTH - RIGHT, HEAD + TALL), INK)?;
        let place = |balance: &Balance| (x(balance.macs), y(balance.accuracy));
        let curve: Vec<(i32, i32)> = tradeoff.points.iter().map(|point| place(&point.balance)).collect();
        area.draw(&PathElement::new(curve, BLUE.stroke_width(2))).map_err(failed)?;
        area.draw(&Circle::new(place(&tradeoff.chosen), 4, RUST.filled())).map_err(failed)
    })
}
