//! Training loss and validation accuracy over all epochs of a run.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::super::format::fit;
use super::super::{Epoch, Report};
use super::canvas::{Area, BLUE, INK, LINE, RUST, WIDTH, failed, font, line, sheet, width, write};

const LEFT: i32 = 64;
const RIGHT: i32 = 20;
const PANEL: i32 = 200;
const AXIS: i32 = 30;
const LANE: i32 = 16;

/// A training: the epoch it began after, its name, its epochs.
struct Training<'a> {
    from: i32,
    name: String,
    curve: &'a [Epoch],
}

/// One quantity over the epochs.
struct Chart {
    title: &'static str,
    color: RGBColor,
    value: fn(&Epoch) -> Option<f64>,
    /// From the smallest and largest value to the range that is shown.
    around: fn(f64, f64) -> (f64, f64),
}

const CHARTS: [Chart; 2] = [
    Chart { title: "training loss", color: RUST, value: |e| Some(e.train_loss), around: |_, high| (0.0, high * 1.05 + 1e-9) },
    Chart {
        title: "validation accuracy, %",
        color: BLUE,
        value: |e| e.valid_accuracy.map(|share| 100.0 * share),
        around: |low, high| {
            let pad = (0.06 * (high - low)).max(0.1);
            ((low - pad).max(0.0), high + pad)
        },
    },
];

/// Nothing when no pass trained.
pub(super) fn draw(report: &Report) -> Result<Option<String>> {
    let mut epochs = 0;
    let mut trainings = Vec::new();
    for row in report.rows.iter().filter(|row| !row.curve.is_empty()) {
        trainings.push(Training { from: epochs, name: fit(&row.method, 26), curve: &row.curve });
        epochs += row.curve.len() as i32;
    }
    let panels: Vec<&Chart> = CHARTS.iter().filter(|panel| values(panel, &trainings).next().is_some()).collect();
    if panels.is_empty() {
        return Ok(None);
    }
    let lanes = lanes(&trainings, epochs);
    let top = 10 + LANE * (1 + lanes.iter().map(|(lane, _)| lane).max().unwrap_or(&0));
    sheet(top + (24 + PANEL) * panels.len() as i32 + AXIS, |area| {
        let (names, rest) = area.split_vertically(top);
        let parts = rest.split_evenly((panels.len(), 1));
        for (training, (lane, label)) in trainings.iter().zip(&lanes) {
            let y = 10 + lane * LANE;
            line(&names, (x(training.from, epochs), y - 5), (x(training.from, epochs), top), LINE)?;
            write(&names, &training.name, (*label, y), HPos::Left)?;
        }
        panels.iter().zip(&parts).try_for_each(|(panel, part)| one(part, panel, &trainings, epochs))
    })
    .map(Some)
}

fn one(area: &Area<'_>, panel: &Chart, trainings: &[Training<'_>], epochs: i32) -> Result<()> {
    let low = values(panel, trainings).fold(f64::INFINITY, f64::min);
    let high = values(panel, trainings).fold(f64::NEG_INFINITY, f64::max);
    let (from, to) = (panel.around)(low, high);
    let label = labels(to - from);
    let height = area.dim_in_pixel().1 as i32;
    for training in trainings {
        line(area, (x(training.from, epochs), 0), (x(training.from, epochs), height - AXIS), LINE)?;
    }
    write(area, panel.title, (LEFT, 12), HPos::Left)?;
    write(area, "epoch", (LEFT - 10, height - AXIS + 17), HPos::Right)?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(24)
        .margin_right(RIGHT)
        .x_label_area_size(AXIS)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(0..epochs, from..to)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(NOTHING)
        .bold_line_style(LINE)
        .axis_style(INK)
        .y_labels(5)
        .x_labels(10)
        .x_label_style(font(HPos::Center))
        .y_label_style(font(HPos::Center))
        .y_label_formatter(&label)
        .draw()
        .map_err(failed)?;
    for training in trainings {
        let points: Vec<(i32, f64)> = training
            .curve
            .iter()
            .zip(training.from + 1..)
            .filter_map(|(epoch, at)| Some((at, (panel.value)(epoch).filter(|value| value.is_finite())?)))
            .collect();
        if points.len() == 1 || epochs <= 60 {
            chart.draw_series(points.iter().map(|&at| Circle::new(at, 3, panel.color.filled()))).map_err(failed)?;
        }
        chart.draw_series(LineSeries::new(points, panel.color.stroke_width(2))).map_err(failed)?;
    }
    Ok(())
}

/// No colour at all.
const NOTHING: RGBAColor = RGBAColor(0, 0, 0, 0.0);

fn values<'a>(panel: &'a Chart, trainings: &'a [Training<'_>]) -> impl Iterator<Item = f64> + 'a {
    trainings.iter().flat_map(|training| training.curve).filter_map(panel.value).filter(|value| value.is_finite())
}

/// For each name the first line, counted from the top, where it fits, and where it begins there.
fn lanes(trainings: &[Training<'_>], epochs: i32) -> Vec<(i32, i32)> {
    let mut free: Vec<i32> = Vec::new();
    let place = |training: &Training<'_>| {
        let long = width(&training.name);
        let begin = (x(training.from, epochs) + 4).min(WIDTH - 4 - long);
        let lane = free.iter().position(|&end| end < begin).unwrap_or(free.len());
        if lane == free.len() {
            free.push(0);
        }
        free[lane] = begin + long + 6;
        (lane as i32, begin)
    };
    trainings.iter().map(place).collect()
}

fn x(epoch: i32, epochs: i32) -> i32 {
    LEFT + (f64::from(WIDTH - LEFT - RIGHT) * f64::from(epoch) / f64::from(epochs.max(1))).round() as i32
}

/// Numbers with as many decimals as about five steps of the range need.
fn labels(range: f64) -> impl Fn(&f64) -> String {
    let places = (1.0 - range.log10()).ceil().clamp(0.0, 6.0) as usize;
    move |value| if range >= 1e5 { format!("{value:.0e}") } else { format!("{value:.places$}") }
}
