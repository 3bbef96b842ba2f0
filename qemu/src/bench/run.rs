//! A run: one system's figures, as they are kept in files.

use crate::error::{Context, Failure, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One operation's figures, in nanoseconds of counted time: instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// The median.
    pub ns: u64,
    /// Repetitions.
    pub n: u64,
    /// What the hardware needs at least for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A system's figures, with what they depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What was measured: `Quire`, `Linux 7.2 lean`.
    pub system: String,
    /// On which CPU.
    pub arch: String,
    /// When, as `2026-01-31`.
    pub date: String,
    /// Of everything that a figure depends on.
    pub versions: BTreeMap<String, String>,
    /// By operation.
    pub ops: BTreeMap<String, Figure>,
}

/// Reads a file of runs.
pub fn load(path: &Path) -> Result<Vec<Run>> {
    let text = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).context(|| format!("{} is not a list of runs", path.display()))
}

/// Writes a file of runs, a line for each operation, so that a change of one
/// figure is a change of one line.
pub fn save(path: &Path, runs: &[Run]) -> Result<()> {
    std::fs::write(path, text(runs)).context(|| format!("cannot write {}", path.display()))
}

/// Runs as their file's content.
pub fn text(runs: &[Run]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut out = String::from("[\n");
    for (index, run) in runs.iter().enumerate() {
        let pairs = |out: &mut String, lines: Vec<(String, String)>| {
            let last = lines.len().saturating_sub(1);
            for (at, (key, value)) in lines.into_iter().enumerate() {
                let comma = if at == last { "" } else { "," };
                out.push_str(&format!("   {}: {value}{comma}\n", quoted(&key)));
            }
        };
        out.push_str(&format!(
            " {{\n  \"system\": {},\n  \"arch\": {},\n  \"date\": {},\n  \"versions\": {{\n",
            quoted(&run.system),
            quoted(&run.arch),
            quoted(&run.date)
        ));
        let versions = run.versions.iter();
        pairs(
            &mut out,
            versions.map(|(k, v)| (k.clone(), quoted(v))).collect(),
        );
        out.push_str("  },\n  \"ops\": {\n");
        let figure = |f: &Figure| match f.limit {
            Some(limit) => format!("{{\"ns\": {}, \"n\": {}, \"limit\": {limit}}}", f.ns, f.n),
            None => format!("{{\"ns\": {}, \"n\": {}}}", f.ns, f.n),
        };
        let ops = run.ops.iter();
        pairs(&mut out, ops.map(|(k, f)| (k.clone(), figure(f))).collect());
        let comma = if index + 1 == runs.len() { "" } else { "," };
        out.push_str(&format!("  }}\n }}{comma}\n"));
    }
    out.push_str("]\n");
    out
}

/// The figures in what the shell's `bench` has printed, a JSON line each; and
/// the operations that could not be measured, with the reason.
pub fn parse(lines: &str) -> Result<(BTreeMap<String, Figure>, Vec<String>)> {
    let (mut ops, mut failed) = (BTreeMap::new(), Vec::new());
    for line in lines.lines().filter(|line| line.starts_with('{')) {
        let value: serde_json::Value = serde_json::from_str(line)
            .context(|| format!("what `bench` printed is not JSON: {line}"))?;
        let Some(op) = value["op"].as_str() else {
            return Err(Failure::setup(format!("a result without a name: {line}")));
        };
        match (value["ns"].as_u64(), value["n"].as_u64()) {
            (Some(ns), Some(n)) => {
                let limit = value["limit"].as_u64();
                ops.insert(op.to_string(), Figure { ns, n, limit });
            }
            _ => {
                let why = value["error"].as_str().unwrap_or("no figure");
                failed.push(format!("{op}: {why}"));
            }
        }
    }
    Ok((ops, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_runs_reads_back_and_has_a_line_for_each_figure() {
        let run = Run {
            system: "Quire".into(),
            arch: "x86_64".into(),
            date: "2026-01-31".into(),
            versions: BTreeMap::from([("qemu".into(), "10 \"x\"".into())]),
            ops: BTreeMap::from([
                (
                    "a".into(),
                    Figure {
                        ns: 1,
                        n: 2,
                        limit: None,
                    },
                ),
                (
                    "b".into(),
                    Figure {
                        ns: 3,
                        n: 4,
                        limit: Some(2),
                    },
                ),
            ]),
        };
        let runs = vec![run.clone(), run];
        let text = text(&runs);
        let back: Vec<Run> = serde_json::from_str(&text).expect("reads back");
        assert_eq!(back, runs);
        assert!(text.contains("\n   \"b\": {\"ns\": 3, \"n\": 4, \"limit\": 2}\n"));
    }

    #[test]
    fn printed_lines_become_figures_and_reasons() {
        let printed = "{\"op\":\"a\",\"ns\":5,\"n\":2,\"limit\":3,\"faults\":1}\n\
                       {\"op\":\"b\",\"error\":\"no space left\"}\n";
        let (ops, failed) = parse(printed).expect("parses");
        assert_eq!(
            ops["a"],
            Figure {
                ns: 5,
                n: 2,
                limit: Some(3)
            }
        );
        assert_eq!(failed, ["b: no space left"]);
        assert!(parse("{\"op\":").is_err());
    }
}
