use std::fmt;

use serde::Serialize;

use crate::plan::Planned;
use crate::report::Row;

/// What `plan` says.
#[derive(Debug, Serialize)]
pub(crate) struct Preview {
    schema: u32,
    rows: Vec<Planned>,
}

impl Preview {
    pub(crate) fn of(rows: Vec<Planned>) -> Self {
        Self { schema: crate::report::SCHEMA, rows }
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = &self.rows[0].row;
        let head = ["epochs", "weights", "non-zero", "MACs", "weights -", "MACs -", "bytes <=", "minutes", "MiB"];
        writeln!(f, "{:16}{}", "pass", head.map(|title| format!("{title:>13}")).concat())?;
        for Planned { row, epochs, memory_mib, .. } in &self.rows {
            let less = |now: f64, before: f64| format!("{:.1} %", 100.0 * (1.0 - now / before));
            let trains = |text: String| if *epochs > 0 { text } else { "-".into() };
            let cells = [
                epochs.to_string(),
                weights(row).to_string(),
                row.nonzero.to_string(),
                row.macs.to_string(),
                less(weights(row) as f64, weights(first) as f64),
                less(row.macs as f64, first.macs as f64),
                row.file_bytes.unwrap_or(0).to_string(),
                trains(format!("{:.1}", row.seconds / 60.0)),
                trains(format!("{memory_mib:.0}")),
            ];
            writeln!(f, "{:16}{}", row.method, cells.map(|cell| format!("{cell:>13}")).concat())?;
        }
        f.write_str(
            "Bytes are of untrained weights, packed; minutes extrapolate a few measured steps; MiB are about what training takes.\n",
        )?;
        super::lines(
            f,
            self.rows.iter().filter_map(|Planned { row, estimate, .. }| {
                Some(format!("An estimate from pass {} ({}) on: {}.", row.pass, row.method, (*estimate)?))
            }),
        )
    }
}

/// Values of convolutions and fully connected layers, biases and normalization left out.
fn weights(row: &Row) -> usize {
    row.layers.iter().filter(|layer| !layer.shape.is_empty()).map(|layer| layer.shape.iter().product::<usize>()).sum()
}
