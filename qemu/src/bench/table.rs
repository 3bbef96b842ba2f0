//! The table: each operation, what Linux needs for it, what Quire needs, and
//! how that has changed.

use super::run::{Figure, Run};

/// The counter's own cost: in every figure, and no operation.
const COUNTER: &str = "tsc_overhead";

/// Everything that stands in one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The operation.
    pub op: String,
    /// What the hardware needs at least, on the first architecture.
    pub limit: Option<u64>,
    /// Quire's figures, in the order of [`Table::quire`].
    pub quire: Vec<Cell>,
    /// Linux's, in the order of [`Table::linux`].
    pub linux: Vec<Option<u64>>,
    /// How many times more the last of Linux's columns needs.
    pub ratio: Option<f64>,
}

/// A figure of Quire's and what it was when it was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cell {
    /// Now.
    pub now: Option<u64>,
    /// As recorded.
    pub was: Option<u64>,
}

impl Cell {
    /// The change in percent.
    pub fn change(self) -> Option<f64> {
        let (now, was) = (self.now? as f64, self.was? as f64);
        (was > 0.0).then(|| (now - was) / was * 100.0)
    }
}

/// The whole of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Architectures of Quire's columns.
    pub quire: Vec<String>,
    /// Names of Linux's columns.
    pub linux: Vec<String>,
    /// The rows, in the order of `bench --list`.
    pub rows: Vec<Row>,
}

/// What the rows come to, against one column of Linux.
#[derive(Debug, Clone, PartialEq)]
pub struct Sum {
    /// The column.
    pub against: String,
    /// Operations in which Quire needs fewer instructions.
    pub ahead: usize,
    /// Operations that both have.
    pub of: usize,
    /// Geometric mean of Linux's figure over Quire's.
    pub mean: f64,
}

impl Table {
    /// Puts runs side by side. `order` is the order of the rows; what it
    /// doesn't name comes last.
    pub fn new(quire: &[Run], recorded: &[Run], linux: &[Run], order: &[String]) -> Self {
        let mut names: Vec<&String> = quire.iter().flat_map(|run| run.ops.keys()).collect();
        let place = |name: &String| order.iter().position(|other| other == name);
        names.sort_by_key(|name| (place(name).unwrap_or(usize::MAX), name.as_str()));
        names.dedup();
        let figure = |run: &Run, op: &str| run.ops.get(op).copied();
        let rows = names.into_iter().map(|op| {
            let cells = quire.iter().map(|run| {
                let before = recorded.iter().find(|old| old.arch == run.arch);
                Cell {
                    now: figure(run, op).map(|f| f.ns),
                    was: before.and_then(|old| figure(old, op)).map(|f| f.ns),
                }
            });
            let cells: Vec<Cell> = cells.collect();
            let linux: Vec<Option<u64>> = linux
                .iter()
                .map(|run| figure(run, op).map(|f| f.ns))
                .collect();
            let limit = |f: Figure| f.limit;
            Row {
                op: op.clone(),
                limit: quire
                    .first()
                    .and_then(|run| figure(run, op))
                    .and_then(limit),
                ratio: ratio(&cells, linux.last().copied().flatten()),
                quire: cells,
                linux,
            }
        });
        Self {
            quire: quire.iter().map(|run| run.arch.clone()).collect(),
            linux: linux.iter().map(|run| run.system.clone()).collect(),
            rows: rows.collect(),
        }
    }

    /// What it comes to, for each column of Linux.
    pub fn sums(&self) -> Vec<Sum> {
        let columns = self.linux.iter().enumerate();
        let sums = columns.map(|(column, against)| {
            let ratios: Vec<f64> = self
                .rows
                .iter()
                .filter(|row| row.op != COUNTER)
                .filter_map(|row| ratio(&row.quire, row.linux.get(column).copied().flatten()))
                .collect();
            Sum {
                against: against.clone(),
                ahead: ratios.iter().filter(|ratio| **ratio > 1.0).count(),
                of: ratios.len(),
                mean: geometric_mean(&ratios),
            }
        });
        sums.filter(|sum| sum.of > 0).collect()
    }

    /// As text for a terminal.
    pub fn text(&self) -> String {
        let cells = self.cells(true);
        let width = |column: usize| {
            let lengths = cells.iter().map(|row| row[column].chars().count());
            lengths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
        let mut out = String::new();
        for row in &cells {
            for (column, cell) in row.iter().enumerate() {
                match column {
                    0 => out.push_str(&format!("{cell:<0$}", widths[0])),
                    _ => out.push_str(&format!("  {cell:>0$}", widths[column])),
                }
            }
            out.push('\n');
        }
        out + &self.summary("")
    }

    /// As a table of the book.
    pub fn markdown(&self) -> String {
        let cells = self.cells(false);
        let mut out = String::new();
        for (index, row) in cells.iter().enumerate() {
            out.push_str(&format!("| {} |\n", row.join(" | ")));
            if index == 0 {
                out.push_str("|---|");
                out.push_str(&"---:|".repeat(row.len() - 1));
                out.push('\n');
            }
        }
        out + "\n" + &self.summary("- ")
    }

    fn summary(&self, bullet: &str) -> String {
        let lines = self.sums().into_iter().map(|sum| {
            format!(
                "{bullet}against {}: ahead in {} of {} operations, {:.1} times fewer instructions in the geometric mean\n",
                sum.against, sum.ahead, sum.of, sum.mean
            )
        });
        lines.collect()
    }

    /// The cells of all rows, with Quire's changes or without.
    fn cells(&self, changes: bool) -> Vec<Vec<String>> {
        let mut head = vec!["operation".to_string(), "limit".into()];
        for arch in &self.quire {
            head.push(format!("Quire {arch}"));
            if changes {
                head.push("change".into());
            }
        }
        head.extend(self.linux.iter().cloned());
        head.push("ratio".into());
        let mut out = vec![head];
        for row in &self.rows {
            let number = |n: Option<u64>| n.map_or("–".to_string(), grouped);
            let mut line = vec![row.op.clone(), number(row.limit)];
            for cell in &row.quire {
                line.push(number(cell.now));
                if changes {
                    line.push(match cell.change() {
                        Some(change) if change.abs() >= 0.05 => format!("{change:+.1} %"),
                        Some(_) => "=".into(),
                        None => "new".into(),
                    });
                }
            }
            line.extend(row.linux.iter().map(|n| number(*n)));
            line.push(row.ratio.map_or("–".into(), |ratio| format!("{ratio:.1}")));
            out.push(line);
        }
        out
    }
}

fn ratio(quire: &[Cell], linux: Option<u64>) -> Option<f64> {
    let ours = quire.first()?.now?;
    Some(linux? as f64 / ours.max(1) as f64)
}

fn geometric_mean(values: &[f64]) -> f64 {
    let logs: f64 = values.iter().map(|value| value.ln()).sum();
    (logs / values.len().max(1) as f64).exp()
}

/// A number with commas between its thousands.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn run(system: &str, arch: &str, ops: &[(&str, u64)]) -> Run {
        let figure = |ns| Figure {
            ns,
            n: 1,
            limit: Some(ns / 2),
        };
        Run {
            system: system.into(),
            arch: arch.into(),
            date: String::new(),
            versions: BTreeMap::new(),
            ops: ops
                .iter()
                .map(|(op, ns)| (op.to_string(), figure(*ns)))
                .collect(),
        }
    }

    fn table() -> Table {
        let quire = [
            run(
                "Quire",
                "x86_64",
                &[("tsc_overhead", 3), ("b", 100), ("a", 50)],
            ),
            run("Quire", "aarch64", &[("a", 60)]),
        ];
        let recorded = [run("Quire", "x86_64", &[("a", 40), ("b", 100)])];
        let linux = [
            run(
                "default",
                "x86_64",
                &[("tsc_overhead", 3), ("a", 5_000), ("b", 90)],
            ),
            run("lean", "x86_64", &[("a", 450), ("b", 400)]),
        ];
        Table::new(&quire, &recorded, &linux, &["b".into(), "a".into()])
    }

    #[test]
    fn rows_keep_their_order_and_compare() {
        let table = table();
        let names: Vec<&str> = table.rows.iter().map(|row| row.op.as_str()).collect();
        assert_eq!(names, ["b", "a", "tsc_overhead"]);
        let a = &table.rows[1];
        assert_eq!((a.limit, a.ratio), (Some(25), Some(9.0)));
        assert_eq!(a.quire[0].change(), Some(25.0));
        assert_eq!(
            a.quire[1],
            Cell {
                now: Some(60),
                was: None
            }
        );
    }

    #[test]
    fn sums_leave_the_counter_out() {
        let sums = table().sums();
        assert_eq!((sums[0].ahead, sums[0].of), (1, 2));
        assert_eq!((sums[1].ahead, sums[1].of), (2, 2));
        // (450 / 50 * 400 / 100) ** 0.5
        assert!((sums[1].mean - 6.0).abs() < 1e-9, "{}", sums[1].mean);
    }

    #[test]
    fn text_and_markdown_show_all_of_it() {
        let text = table().text();
        let line = text
            .lines()
            .find(|line| line.starts_with("a "))
            .expect("a row");
        assert!(line.contains("+25.0 %") && line.contains("5,000") && line.ends_with("9.0"));
        let markdown = table().markdown();
        assert!(markdown.contains("| b | 50 | 100 | – | 90 | 400 | 4.0 |"));
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
    }
}
