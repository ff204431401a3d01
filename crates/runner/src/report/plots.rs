//! The plots, as SVG.

mod bars;
mod canvas;
mod curves;
mod layers;
mod passes;

use anyhow::Result;

use super::Report;

impl Report {
    /// File name and text of every plot that has something to show: `passes.svg`, `curves.svg`, `layers.svg`.
    ///
    /// # Errors
    /// When a plot cannot be drawn.
    pub fn plots(&self) -> Result<Vec<(String, String)>> {
        let plots =
            [("passes.svg", passes::draw(self)?), ("curves.svg", curves::draw(self)?), ("layers.svg", layers::draw(self)?)];
        Ok(plots.into_iter().filter_map(|(name, svg)| Some((name.to_string(), svg?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Epoch, Report, Row, sample};

    #[test]
    fn many_and_odd_passes_are_drawn() {
        let mut report = sample::report();
        let one =
            Row { method: "a-method-with-quite-a-long-name".into(), curve: vec![Epoch::default()], ..report.rows[0].clone() };
        report.rows.extend(std::iter::repeat_n(one, 40));
        report.rows[3].accuracy = Some(f64::NAN);
        report.rows[4].file_bytes = Some(0);
        report.rows[5].curve[0].train_loss = 1e30;
        for (name, svg) in report.plots().unwrap() {
            assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{name}");
        }
    }

    #[test]
    fn nothing_known_means_nothing_drawn() {
        assert_eq!(Report::default().plots().unwrap(), []);
    }
}
