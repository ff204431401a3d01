//! The plots, as SVG.

mod bars;
mod canvas;
mod curves;
mod layers;
mod passes;
mod scans;
mod tradeoffs;

use anyhow::Result;

pub(crate) use scans::draw as scan;

use briquette_core::scan::Scan;

use super::Report;

impl Report {
    /// File name and text of every plot that has something to show: `passes.svg`, `curves.svg`, `layers.svg`, and for passes that
    /// scanned the layers `sensitivity.svg`, `sensitivity-2.svg` and so on, for networks that skip work `tradeoff.svg` likewise.
    ///
    /// # Errors
    /// When a plot cannot be drawn.
    pub fn plots(&self) -> Result<Vec<(String, String)>> {
        let plots =
            [("passes.svg", passes::draw(self)?), ("curves.svg", curves::draw(self)?), ("layers.svg", layers::draw(self)?)];
        let mut plots: Vec<_> = plots.into_iter().filter_map(|(name, svg)| Some((name.to_string(), svg?))).collect();
        for (scan, number) in self.scans().zip(1..) {
            let name = if number == 1 { "sensitivity.svg".into() } else { format!("sensitivity-{number}.svg") };
            plots.push((name, scans::draw(scan)?));
        }
        for (tradeoff, number) in self.rows.iter().filter_map(|row| row.tradeoff.as_ref()).zip(1..) {
            let name = if number == 1 { "tradeoff.svg".into() } else { format!("tradeoff-{number}.svg") };
            plots.push((name, tradeoffs::draw(tradeoff)?));
        }
        Ok(plots)
    }

    /// The scans of the run that measured anything, in order.
    pub(super) fn scans(&self) -> impl Iterator<Item = &Scan> {
        self.rows.iter().filter_map(|row| row.scan.as_ref()).filter(|scan| !scan.points.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::scan::Scan;
    use briquette_core::tradeoff::{Balance, Balanced, Tradeoff};

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
        report.rows[6].scan = Some(sample::scan());
        report.rows[7].scan = Some(Scan { points: sample::scan().points[..1].into(), ..sample::scan() });
        report.rows[8].scan = Some(Scan::default());
        report.rows[8].tradeoff = Some(Tradeoff::default());
        let balance = |accuracy, macs| Balance { accuracy, macs };
        let points = (0..30).map(|i| f64::from(i) / 30.0);
        let points = points.map(|value| Balanced { value, balance: balance(0.9 - 0.5 * value, 1e6 - 7e5 * value) }).collect();
        let (method, key) = ("early-exit".into(), "threshold".into());
        report.rows[9].tradeoff = Some(Tradeoff { method, key, chosen: balance(0.85, 8e5), points });
        let names: Vec<String> = report.plots().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[3..], ["sensitivity.svg", "sensitivity-2.svg", "tradeoff.svg", "tradeoff-2.svg"]);
        for (name, svg) in report.plots().unwrap() {
            assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{name}");
        }
    }

    #[test]
    fn nothing_known_means_nothing_drawn() {
        assert_eq!(Report::default().plots().unwrap(), []);
    }
}
