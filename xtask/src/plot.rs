//! A plot of what several methods reach at several sizes.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// A method's name and its points: kilobytes and accuracy in percent.
pub(crate) type Series = (String, Vec<(f64, f64)>);

const COLORS: [RGBColor; 8] = [
    RGBColor(0x2f, 0x6d, 0xb5),
    RGBColor(0xc2, 0x57, 0x1a),
    RGBColor(0x3c, 0x8d, 0x40),
    RGBColor(0x8a, 0x4f, 0xa3),
    RGBColor(0xb0, 0x2a, 0x4c),
    RGBColor(0x1f, 0x8f, 0x94),
    RGBColor(0x8c, 0x6d, 0x1f),
    RGBColor(0x55, 0x55, 0x55),
];

/// Accuracy against the size of the file, which grows by factors, as an SVG; nothing where no method has a point.
///
/// # Errors
/// When the library cannot draw.
pub(crate) fn accuracy_by_size(series: &[Series]) -> Result<Option<String>> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let ends = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), at| (low.min(at), high.max(at)))
    };
    let ((small, large), (_, best)) = (ends(|(size, _)| *size), ends(|(_, accuracy)| *accuracy));
    if points().next().is_none() {
        return Ok(None);
    }
    let mut svg = String::new();
    let sheet = SVGBackend::with_string(&mut svg, (760, 440)).into_drawing_area();
    draw(&sheet, series, (0.9 * small..1.1 * large, 0.0..(best + 4.0).min(100.0)))
        .map_err(|error| anyhow!("a plot cannot be drawn: {error}"))?;
    drop(sheet);
    Ok(Some(svg))
}

type Sheet<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Failed<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;
type Ends = std::ops::Range<f64>;

fn draw<'a>(sheet: &Sheet<'a>, series: &[Series], (sizes, accuracies): (Ends, Ends)) -> std::result::Result<(), Failed<'a>> {
    sheet.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(sheet)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(sizes.log_scale(), accuracies)?;
    let number = |value: &f64| if *value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    chart
        .configure_mesh()
        .x_desc("file, kB")
        .y_desc("test accuracy, percent")
        .x_label_formatter(&number)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for ((name, points), color) in series.iter().zip(COLORS.into_iter().cycle()) {
        let mut points = points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
        chart.draw_series(line)?.label(name).legend(key);
        let dots = points.iter().map(|at| Circle::new(*at, 3, color.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(RGBColor(0xdc, 0xda, 0xd5))
        .draw()?;
    sheet.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_drawn_with_its_name() {
        let series = [("energy".to_string(), vec![(100.0, 90.0), (10.0, 20.0)]), ("bits".to_string(), vec![(50.0, 88.0)])];
        let svg = accuracy_by_size(&series).unwrap().unwrap();
        assert!(svg.contains("energy") && svg.contains("bits"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert_eq!(accuracy_by_size(&[("none".to_string(), Vec::new())]).unwrap(), None);
    }
}
