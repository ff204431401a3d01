//! A table and its three looks: Markdown, plain text, and (through the page's template) HTML.

use std::borrow::Cow;

/// Rows of cells under named columns; an empty cell is something unknown.
pub(super) struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<String>>,
}

/// A column: texts stand left, numbers right.
#[derive(Clone)]
pub(super) struct Column {
    pub name: Cow<'static, str>,
    pub text: bool,
}

/// A column of texts.
pub(super) const fn text(name: &'static str) -> Column {
    Column { name: Cow::Borrowed(name), text: true }
}

/// A column of numbers.
pub(super) const fn number(name: &'static str) -> Column {
    Column { name: Cow::Borrowed(name), text: false }
}

impl Table {
    /// A table without the columns of which nothing is known.
    pub(super) fn new(columns: &[Column], rows: Vec<Vec<String>>) -> Self {
        let table = Self { columns: columns.to_vec(), rows };
        table.filter(|table, at| table.rows.is_empty() || table.rows.iter().any(|row| !row[at].is_empty()))
    }

    /// Only the columns of these names.
    pub(super) fn keep(self, names: &[&str]) -> Self {
        self.filter(|table, at| names.contains(&table.columns[at].name.as_ref()))
    }

    /// A pipe table.
    pub(super) fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let head = line(self.columns.iter().map(|column| escaped(&column.name)).collect());
        let rule: String = self.columns.iter().map(|column| if column.text { "|---" } else { "|---:" }).collect();
        let rows: String = self.rows.iter().map(|row| line(row.iter().map(|cell| escaped(shown(cell))).collect())).collect();
        format!("{head}{rule}|\n{rows}")
    }

    /// Aligned columns, two spaces between.
    pub(super) fn text(&self) -> String {
        let head: Vec<String> = self.columns.iter().map(|column| column.name.to_string()).collect();
        let wide = |cell: &String| shown(cell).chars().count();
        let widths: Vec<usize> =
            (0..head.len()).map(|at| self.rows.iter().chain([&head]).map(|row| wide(&row[at])).max().unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&self.columns).zip(&widths).map(|((cell, column), &width)| {
                let cell = shown(cell);
                if column.text { format!("{cell:width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
        };
        let rule = "-".repeat(widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)) + "\n";
        line(&head) + &rule + &self.rows.iter().map(line).collect::<String>()
    }

    fn filter(self, keep: impl Fn(&Self, usize) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.columns.len()).filter(|&at| keep(&self, at)).collect();
        Self {
            columns: kept.iter().map(|&at| self.columns[at].clone()).collect(),
            rows: self.rows.iter().map(|row| kept.iter().map(|&at| row[at].clone()).collect()).collect(),
        }
    }
}

fn shown(cell: &str) -> &str {
    if cell.is_empty() { "–" } else { cell }
}

/// What Markdown would take for markup, made harmless; names of layers pass as they are.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' | '*' | '`' | '[' | ']' => out.extend(['\\', c]),
            '<' => out += "&lt;",
            '&' => out += "&amp;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_columns_go_and_the_rest_is_aligned() {
        let cells = |row: [&str; 3]| row.map(str::to_string).to_vec();
        let table =
            Table::new(&[text("name"), number("gone"), number("n")], vec![cells(["a", "", "10,000"]), cells(["b|<i>", "", ""])]);
        assert_eq!(table.text(), "name        n\n-------------\na      10,000\nb|<i>       –\n");
        assert_eq!(table.markdown(), "| name | n |\n|---|---:|\n| a | 10,000 |\n| b\\|&lt;i> | – |\n");
    }
}
