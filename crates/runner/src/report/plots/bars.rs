//! Rows with a name and two columns of bars; grows downwards, so that no names overlap.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::super::format::fit;
use super::canvas::{Area, INK, LINE, WIDTH, failed, line, sheet, width, write};

/// A column: one place in [0, 1] per row, with the text that belongs to it.
pub(super) struct Bars {
    pub title: &'static str,
    /// A row without a value has no place.
    pub values: Vec<(Option<f64>, String)>,
    /// Places and texts of the axis.
    pub ticks: Vec<(f64, String)>,
    pub color: RGBColor,
    /// Dots where an axis does not begin at nothing.
    pub dots: bool,
}

const ROW: i32 = 22;
const TOP: i32 = 34;
const BOTTOM: i32 = 30;
const GAP: i32 = 26;

/// Draws the columns side by side.
pub(super) fn draw(names: &[String], columns: &[Bars]) -> Result<String> {
    let names: Vec<String> = names.iter().map(|name| fit(name, 26)).collect();
    let left = 20 + names.iter().map(|name| width(name)).max().unwrap_or(0);
    let each = (WIDTH - left) / columns.len().max(1) as i32;
    sheet(TOP + ROW * names.len() as i32 + BOTTOM, |area| {
        for (row, name) in names.iter().enumerate() {
            write(area, name, (left - 10, middle(row)), HPos::Right)?;
        }
        columns.iter().zip(0..).try_for_each(|(column, at)| one(area, column, left + at * each, each - GAP))
    })
}

fn one(area: &Area<'_>, column: &Bars, left: i32, room: i32) -> Result<()> {
    let bottom = TOP + ROW * column.values.len() as i32;
    let text = column.values.iter().map(|(_, text)| width(text)).max().unwrap_or(0);
    let long = (room - text - 12).max(40);
    let x = |place: f64| left + (place.clamp(0.0, 1.0) * f64::from(long)).round() as i32;
    write(area, column.title, (left, TOP - 18), HPos::Left)?;
    let mut free = i32::MIN;
    for (place, text) in &column.ticks {
        line(area, (x(*place), TOP - 4), (x(*place), bottom), LINE)?;
        let half = width(text) / 2;
        if x(*place) - half > free {
            write(area, text, (x(*place), bottom + 14), HPos::Center)?;
            free = x(*place) + half + 6;
        }
    }
    for (row, (place, text)) in column.values.iter().enumerate() {
        let y = middle(row);
        let end = place.map_or(left, x);
        if place.is_some() {
            if column.dots {
                area.draw(&Circle::new((end, y), 4, column.color.filled())).map_err(failed)?;
            } else {
                area.draw(&Rectangle::new([(left, y - 6), (end.max(left + 1), y + 6)], column.color.filled())).map_err(failed)?;
            }
        }
        write(area, text, (end + 8, y), HPos::Left)?;
    }
    line(area, (left, TOP - 4), (left, bottom), INK)
}

fn middle(row: usize) -> i32 {
    TOP + ROW * row as i32 + ROW / 2
}
