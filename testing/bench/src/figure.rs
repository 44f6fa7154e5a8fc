//! Figures and the table that compares them.

use std::collections::BTreeMap;
use std::fmt::Write;

/// One measured number.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: &'static str,
    /// In which unit; less is better unless the unit is a rate.
    pub(crate) unit: &'static str,
    /// How much.
    pub(crate) value: f64,
}

impl Figure {
    /// A figure.
    pub(crate) fn new(name: &'static str, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value }
    }
}

/// Figures of several sets side by side; of several rounds the median counts.
pub(crate) struct Table {
    sets: Vec<String>,
    /// In the order of first appearance.
    rows: Vec<(&'static str, &'static str)>,
    values: BTreeMap<(&'static str, &'static str), Vec<Vec<f64>>>,
    heading: bool,
}

impl Table {
    /// A table with a column a set.
    pub(crate) fn new(sets: Vec<String>) -> Self {
        Self { sets, rows: Vec::new(), values: BTreeMap::new(), heading: true }
    }

    /// Adds figures of one set.
    pub(crate) fn add(&mut self, column: usize, figures: Vec<Figure>) {
        for figure in figures {
            let key = (figure.name, figure.unit);
            if !self.rows.contains(&key) {
                self.rows.push(key);
            }
            self.values.entry(key).or_insert_with(|| vec![Vec::new(); self.sets.len()])[column]
                .push(figure.value);
        }
    }

    /// The rows since the last call as text.
    pub(crate) fn take_printed(&mut self) -> String {
        let mut out = String::new();
        if std::mem::take(&mut self.heading) {
            let _ = write!(out, "{:<46} {:<8}", "figure", "unit");
            for set in &self.sets {
                let _ = write!(out, " {set:>12}");
            }
            for set in self.sets.iter().skip(1) {
                let _ = write!(out, " {:>14}", format!("{}/{set}", self.sets[0]));
            }
            out.push('\n');
        }
        for row in std::mem::take(&mut self.rows) {
            let columns = self.values.remove(&row).unwrap_or_default();
            let medians: Vec<f64> = columns.iter().map(|c| median(c)).collect();
            let _ = write!(out, "{:<46} {:<8}", row.0, row.1);
            for value in &medians {
                let _ = write!(out, " {value:>12.2}");
            }
            for other in medians.iter().skip(1) {
                let _ = write!(out, " {:>14.3}", medians[0] / other);
            }
            out.push('\n');
        }
        out.trim_end().to_owned()
    }
}

/// The middle value; NaN where there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_ratio_are_shown() {
        let mut table = Table::new(vec!["a".into(), "b".into()]);
        for value in [1.0, 9.0, 2.0] {
            table.add(0, vec![Figure::new("mint", "µs", value)]);
        }
        table.add(1, vec![Figure::new("mint", "µs", 8.0)]);
        let text = table.take_printed();
        assert!(text.contains("2.00") && text.contains("8.00") && text.contains("0.250"), "{text}");
        assert!(table.take_printed().is_empty());
    }
}
