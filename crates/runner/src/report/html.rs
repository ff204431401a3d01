//! `report.html`: one file, readable without a network.

use anyhow::Result;
use minijinja::{Environment, Value, context};

use super::format::{count, percent, ratio};
use super::table::Table;
use super::{Report, content};

impl Report {
    /// The report as a page of its own: style and plots inside, nothing fetched, no scripts. `plots` are those of
    /// [`Report::plots`].
    ///
    /// # Errors
    /// When the template cannot be filled in.
    pub fn html(&self, plots: &[(String, String)]) -> Result<String> {
        let mut templates = Environment::new();
        // The name turns escaping on.
        templates.add_template("page.html", include_str!("page.html"))?;
        let plot = |name: &str| plots.iter().find(|(file, _)| file == name).map(|(_, svg)| svg);
        let facts: Vec<Value> = content::facts(self).into_iter().map(|(name, value)| context! { name, value }).collect();
        let shown = |table: Table| (table.columns.len() > 2).then(|| value(table));
        let scans = plots.iter().filter(|(name, _)| name.starts_with("sensitivity")).zip(self.scans());
        let scans: Vec<Value> =
            scans.map(|((_, svg), scan)| context! { svg, method => &scan.method, key => &scan.key }).collect();
        let page = templates.get_template("page.html")?.render(context! {
            title => &self.title,
            expected => &self.expected,
            command => &self.command,
            config => &self.config,
            smoke => self.smoke.then_some(content::SMOKE),
            facts => facts,
            tiles => self.tiles(),
            passes => value(content::passes(self)),
            notes => value(content::notes(self)),
            metrics => value(content::metrics(self)),
            latency => shown(content::latency(self)),
            speedup => shown(content::speedup(self)),
            turns => content::TURNS,
            scans => scans,
            layers => value(content::layers(self)),
            layers_note => content::LAYERS,
            plots => context! { passes => plot("passes.svg"), curves => plot("curves.svg"), layers => plot("layers.svg") },
        })?;
        Ok(page)
    }

    /// What the last row came to: a name, a value, a detail each.
    fn tiles(&self) -> Vec<Value> {
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else { return Vec::new() };
        let m = &self.metrics;
        let speed = m.delta.get("b1t1").copied();
        [
            last.accuracy
                .map(|now| ("test accuracy", percent(now) + " %", first.accuracy.map(|was| format!("from {} %", percent(was))))),
            last.file_bytes
                .map(|now| ("file", count(now) + " bytes", first.file_bytes.map(|was| format!("from {}", count(was))))),
            m.alpha_bytes
                .map(|alpha| ("compression", ratio(alpha), m.saving.map(|saving| format!("{} % saved", percent(saving))))),
            speed.map(|delta| ("speed-up", ratio(delta), Some("batch 1, 1 thread".into()))),
            m.macs_ratio.map(|macs| ("fewer MACs", ratio(macs), Some(format!("{} left", count(last.macs))))),
        ]
        .into_iter()
        .flatten()
        .map(|(name, value, detail)| context! { name, value, detail })
        .collect()
    }
}

fn value(table: Table) -> Value {
    let columns: Vec<Value> =
        table.columns.iter().map(|column| context! { name => column.name.as_ref(), text => column.text }).collect();
    context! { columns, rows => table.rows }
}

#[cfg(test)]
mod tests {
    use super::super::sample;

    #[test]
    fn hostile_texts_are_harmless() {
        let hostile = "<script>alert('1')</script>\"&\u{1}";
        let mut report = sample::report();
        for text in [&mut report.title, &mut report.expected, &mut report.command, &mut report.config, &mut report.device] {
            *text = hostile.into();
        }
        for row in &mut report.rows {
            row.method = hostile.into();
            row.latency_ms.insert(hostile.into(), 1.0);
            row.layers[0].name = hostile.into();
            row.layers[0].kind = hostile.into();
            row.notes.push(hostile.into());
        }
        let mut scan = sample::scan();
        for text in [&mut scan.method, &mut scan.key, &mut scan.points[0].layer] {
            *text = hostile.into();
        }
        report.rows[0].scan = Some(scan);
        let plots = report.plots().unwrap();
        let page = report.html(&plots).unwrap();
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"), "{page}");
        assert!(plots.iter().all(|(_, svg)| !svg.contains("<script") && !svg.contains('\u{1}')));
        assert!(!report.markdown().replace("```sh\n<script", "").contains("<script"));
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let mut report = sample::report();
        report.rows[1].scan = Some(sample::scan());
        let page = report.html(&report.plots().unwrap()).unwrap();
        assert_eq!(page.matches("<svg").count(), 4);
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
