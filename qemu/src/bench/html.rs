//! The table as a picture: bars on a logarithmic scale, in one page that needs
//! nothing else.

use super::table::{Table, grouped};

/// Pixels from one power of ten to the next.
const DECADE: f64 = 70.0;

/// A bar's length for a number of instructions.
fn length(instructions: u64) -> f64 {
    (instructions.max(1) as f64).log10() * DECADE
}

/// Text as HTML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The page.
pub fn page(table: &Table, date: &str) -> String {
    let mut rows = String::new();
    for row in &table.rows {
        let mut bars = String::new();
        let mut bar = |kind: &str, name: &str, value: Option<u64>| {
            if let Some(value) = value {
                bars.push_str(&format!(
                    "<div class=\"bar {kind}\" style=\"width:{:.1}px\" title=\"{}\"></div>\
                     <span>{}</span><br>",
                    length(value).max(1.0),
                    escaped(name),
                    grouped(value)
                ));
            }
        };
        for (index, (arch, cell)) in table.quire.iter().zip(&row.quire).enumerate() {
            bar(&format!("q{index}"), &format!("Quire {arch}"), cell.now);
        }
        for (index, (name, value)) in table.linux.iter().zip(&row.linux).enumerate() {
            bar(&format!("l{index}"), name, *value);
        }
        if let Some(limit) = row.limit {
            bars.push_str(&format!(
                "<i style=\"left:{:.1}px\" title=\"limit: {}\"></i>",
                length(limit),
                grouped(limit)
            ));
        }
        let ratio = row.ratio.map_or(String::new(), |r| format!("{r:.1} ×"));
        rows.push_str(&format!(
            "<tr><th>{}</th><td class=\"bars\">{bars}</td><td>{ratio}</td></tr>\n",
            escaped(&row.op)
        ));
    }
    let names = table.quire.iter().map(|arch| format!("Quire {arch}"));
    let kinds = (0..table.quire.len()).map(|n| format!("q{n}"));
    let kinds = kinds.chain((0..table.linux.len()).map(|n| format!("l{n}")));
    let legend: String = kinds
        .zip(names.chain(table.linux.iter().cloned()))
        .map(|(kind, name)| {
            format!(
                "<span class=\"bar {kind}\" style=\"width:1em\"></span> {} &nbsp; ",
                escaped(&name)
            )
        })
        .collect();
    let sums: String = table
        .sums()
        .iter()
        .map(|sum| {
            format!(
                "<p>Against {}: ahead in {} of {} operations, {:.1} times fewer instructions in \
                 the geometric mean.</p>\n",
                escaped(&sum.against),
                sum.ahead,
                sum.of,
                sum.mean
            )
        })
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <title>What Quire's operations cost</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>What Quire's operations cost</h1>\n\
         <p>Instructions for each operation, counted by QEMU, {date}; a step to the right is ten \
         times more. The thin line is the limit: the copies, write-backs and fences alone.</p>\n\
         <p>{legend}</p>\n{sums}<table>\n{rows}</table></body></html>\n"
    )
}

const STYLE: &str = "body{font:14px sans-serif;margin:2em;color:#222;background:#fff}\
th{text-align:left;font-weight:normal;white-space:nowrap;padding-right:1em;vertical-align:top}\
td{vertical-align:top;white-space:nowrap}tr{border-top:1px solid #ddd}\
table{border-collapse:collapse}.bars{position:relative;line-height:12px;padding:3px 0}\
.bars span{font-size:10px;color:#666;padding-left:4px}\
.bar{display:inline-block;height:9px;border-radius:2px}\
.q0{background:#1769aa}.q1{background:#7fb2dc}.l0{background:#b4531d}.l1{background:#e0a483}\
.l2,.l3{background:#ccc}\
i{position:absolute;top:2px;bottom:2px;width:1px;background:#000}";

#[cfg(test)]
mod tests {
    use super::super::table::{Cell, Row};
    use super::*;

    #[test]
    fn bars_grow_by_powers_of_ten_and_names_are_escaped() {
        let table = Table {
            quire: vec!["x86_64".into()],
            linux: vec!["a<b".into()],
            rows: vec![Row {
                op: "stat".into(),
                limit: Some(10),
                quire: vec![Cell {
                    now: Some(100),
                    was: None,
                }],
                linux: vec![Some(1_000)],
                ratio: Some(10.0),
            }],
        };
        let page = page(&table, "2026-01-31");
        assert!(page.contains("width:140.0px") && page.contains("width:210.0px"));
        assert!(page.contains("left:70.0px") && page.contains("a&lt;b"));
        assert!(page.contains("10.0 ×") && !page.contains("http"));
    }
}
