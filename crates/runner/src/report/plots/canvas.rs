//! What the plots share: colors, fonts, the sheet.
//!
//! The page's style knows these colors by their value and exchanges them for a dark reader.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A sheet to draw on, or a part of it.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Width of every plot in pixels.
pub(super) const WIDTH: i32 = 760;
/// Background.
pub(super) const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(0x2b, 0x2b, 0x2b);
/// Grid lines.
pub(super) const LINE: RGBColor = RGBColor(0xdc, 0xda, 0xd5);
/// First series.
pub(super) const BLUE: RGBColor = RGBColor(0x2f, 0x6d, 0xb5);
/// Second series.
pub(super) const RUST: RGBColor = RGBColor(0xc2, 0x57, 0x1a);

/// Draws on a sheet of this height.
pub(super) fn sheet(height: i32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&PAPER).map_err(failed)?;
    draw(&area)?;
    area.present().map_err(failed)?;
    drop(area);
    Ok(svg)
}

/// Text of 12 pixels; the SVG backend divides sizes by 1.24.
pub(super) fn font(at: HPos) -> TextStyle<'static> {
    ("sans-serif", 12.0 * 1.24).into_font().color(&INK).pos(Pos::new(at, VPos::Center))
}

/// Width of a text of 12 pixels in an ordinary font, rather more than less.
pub(super) fn width(text: &str) -> i32 {
    (7.2 * text.chars().count() as f64).ceil() as i32
}

/// Writes beside a point.
pub(super) fn write(area: &Area<'_>, text: &str, at: (i32, i32), align: HPos) -> Result<()> {
    area.draw_text(text, &font(align), at).map_err(failed)
}

/// A straight line, one pixel wide.
pub(super) fn line(area: &Area<'_>, from: (i32, i32), to: (i32, i32), color: RGBColor) -> Result<()> {
    area.draw(&PathElement::new([from, to], color)).map_err(failed)
}

/// The error of the drawing library, which borrows from the sheet, as one that does not.
pub(super) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}
