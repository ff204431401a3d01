//! How sensitive each layer is: a panel for every layer, the accuracy over the values that were tried.

use anyhow::Result;
use briquette_core::scan::{Point, Scan};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::super::format::{fit, percent};
use super::canvas::{Area, BLUE, INK, LINE, RUST, WIDTH, failed, line, sheet, width, write};

const COLUMNS: i32 = 4;
const LEFT: i32 = 62;
const PANEL: i32 = (WIDTH - LEFT) / COLUMNS;
const GAP: i32 = 18;
const HEAD: i32 = 26;
const TALL: i32 = 110;
const FOOT: i32 = 34;

/// What all panels share: the values in ascending order, evenly spaced, and the range of accuracies.
struct Axes {
    values: Vec<f64>,
    low: f64,
    high: f64,
    baseline: f64,
}

/// Draws the panels in rows, all with the same axes.
pub(crate) fn draw(scan: &Scan) -> Result<String> {
    let mut panels: Vec<(&str, Vec<&Point>)> = Vec::new();
    for point in &scan.points {
        match panels.last_mut() {
            Some((layer, points)) if *layer == point.layer => points.push(point),
            _ => panels.push((&point.layer, vec![point])),
        }
    }
    let axes = Axes::of(scan);
    let rows = (panels.len() as i32 + COLUMNS - 1) / COLUMNS;
    sheet(HEAD + rows * (HEAD + TALL + FOOT), |area| {
        let what = format!("validation accuracy over {} of {}", scan.key, scan.method);
        write(area, &fit(&what, 90), (LEFT, HEAD / 2), HPos::Left)?;
        panels.iter().zip(0..).try_for_each(|((layer, points), at)| {
            let corner = (LEFT + at % COLUMNS * PANEL, HEAD + at / COLUMNS * (HEAD + TALL + FOOT));
            axes.panel(area, corner, layer, points)
        })
    })
}

impl Axes {
    fn of(scan: &Scan) -> Self {
        let mut values: Vec<f64> = scan.points.iter().map(|point| point.value).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let baseline = scan.baseline.accuracy;
        let all = || scan.points.iter().map(|point| point.measured.accuracy).chain([baseline]);
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        let pad = (0.06 * (high - low)).max(0.002);
        Self { values, low: (low - pad).max(0.0), high: high + pad, baseline }
    }

    fn panel(&self, area: &Area<'_>, (left, top): (i32, i32), layer: &str, points: &[&Point]) -> Result<()> {
        let (top, right) = (top + HEAD, left + PANEL - GAP);
        let y = |accuracy: f64| {
            top + TALL
                - (f64::from(TALL) * (accuracy - self.low) / (self.high - self.low)).round().clamp(0.0, f64::from(TALL)) as i32
        };
        let x = |value: f64| {
            let place = self.values.iter().position(|v| *v == value).unwrap_or(0) as f64;
            left + 8 + (f64::from(right - left - 16) * place / (self.values.len() - 1).max(1) as f64).round() as i32
        };
        write(area, &fit(layer, 22), (left, top - 12), HPos::Left)?;
        for accuracy in [self.low, 0.5 * (self.low + self.high), self.high] {
            line(area, (left, y(accuracy)), (right, y(accuracy)), LINE)?;
            if left == LEFT {
                write(area, &(percent(accuracy) + " %"), (left - 6, y(accuracy)), HPos::Right)?;
            }
        }
        line(area, (left, y(self.baseline)), (right, y(self.baseline)), RUST)?;
        let mut free = i32::MIN;
        for value in &self.values {
            let (text, at) = (value.to_string(), x(*value));
            let half = width(&text) / 2;
            line(area, (at, top + TALL), (at, top + TALL + 4), INK)?;
            if at - half > free {
                write(area, &text, (at, top + TALL + 13), HPos::Center)?;
                free = at + half + 4;
            }
        }
        line(area, (left, top + TALL), (right, top + TALL), INK)?;
        let mut places: Vec<(i32, i32)> = points.iter().map(|point| (x(point.value), y(point.measured.accuracy))).collect();
        places.sort_unstable();
        area.draw(&PathElement::new(places.clone(), BLUE.stroke_width(2))).map_err(failed)?;
        places.iter().try_for_each(|at| area.draw(&Circle::new(*at, 3, BLUE.filled())).map_err(failed))
    }
}
