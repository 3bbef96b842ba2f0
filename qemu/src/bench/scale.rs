//! `quire bench --scale`: how costs grow with CPUs, with the device, and with a
//! directory, as curves.
//!
//! | curves | where they are measured | a figure is |
//! |---|---|---|
//! | `scale_…` | four CPUs, each a thread of the host | operations in a second, and locks waited for |
//! | `size_…` | `--icount`, sparse NVDIMMs | instructions; bytes of RAM |
//! | `names_…` | `--icount` | instructions for each name |
//!
//! The first depend on the machine and its load; the others repeat exactly. They
//! are kept in `docs/bench/scale.json`, and the book's page is made from that.

use super::chart::{Chart, Series};
use super::measure::{COUNTED, FORMAT, Guest, succeeded, today, versions};
use super::table::grouped;
use crate::cli::{Arch, BenchArgs};
use crate::error::{Context, Failure, Result};
use crate::size::{GIB, TIB};
use crate::workspace::Workspace;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Sizes of devices.
const SIZES: [u64; 6] = [GIB, 16 * GIB, 128 * GIB, TIB, 4 * TIB, 16 * TIB];
/// Room for a million inodes, at the density that mkfs chooses.
const MANY: &str = "32G";
/// Memory in files, for sizes that the state's file system has no files of.
const SHM: &str = "/dev/shm";

/// A curve's point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Threads, bytes, or names.
    pub at: u64,
    /// The figure.
    pub value: u64,
    /// Locks that had to be waited for in a million operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locks: Option<u64>,
}

/// One architecture's curves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Curves {
    /// On which CPU.
    pub arch: String,
    /// When, as `2026-01-31`.
    pub date: String,
    /// Of everything that a figure depends on.
    pub versions: BTreeMap<String, String>,
    /// By operation.
    pub curves: BTreeMap<String, Vec<Point>>,
}

fn record_file(workspace: &Workspace) -> PathBuf {
    workspace.root.join("docs/bench/scale.json")
}

fn page_file(workspace: &Workspace) -> PathBuf {
    workspace.root.join("docs/src/scaling.md")
}

/// Measures, prints the tables, keeps what is asked for; the exit status.
pub fn run(workspace: &Workspace, args: &BenchArgs) -> Result<u8> {
    let all = match &args.from {
        Some(file) => load(file)?,
        None => {
            let mut all = Vec::new();
            for arch in args.arch.list() {
                all.push(measure(workspace, arch, args.yes)?);
            }
            all
        }
    };
    print!("{}", tables(&all));
    if let Some(file) = &args.json {
        save(file, &all)?;
    }
    if let Some(file) = &args.html {
        std::fs::write(file, html(&all)).context(|| format!("cannot write {}", file.display()))?;
    }
    if args.record {
        let mut kept = all.clone();
        let file = record_file(workspace);
        if file.exists() {
            let old = load(&file)?.into_iter();
            kept.extend(old.filter(|old| all.iter().all(|new| new.arch != old.arch)));
        }
        kept.sort_by(|a, b| b.arch.cmp(&a.arch));
        save(&file, &kept)?;
        let page_file = page_file(workspace);
        std::fs::write(&page_file, page(&kept))
            .context(|| format!("cannot write {}", page_file.display()))?;
        eprintln!("quire: recorded in {}", file.display());
    }
    Ok(0)
}

fn load(path: &Path) -> Result<Vec<Curves>> {
    let text = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).context(|| format!("{} is not a list of curves", path.display()))
}

/// Writes curves, a line for each, so that a change of one is one of a line.
fn save(path: &Path, all: &[Curves]) -> Result<()> {
    let mut out = String::from("[\n");
    for (index, run) in all.iter().enumerate() {
        out.push_str(&format!(
            " {{\"arch\": {}, \"date\": {},\n  \"versions\": {},\n  \"curves\": {{\n",
            text(&run.arch)?,
            text(&run.date)?,
            text(&run.versions)?
        ));
        for (at, (op, points)) in run.curves.iter().enumerate() {
            let comma = if at + 1 == run.curves.len() { "" } else { "," };
            out.push_str(&format!("   {}: {}{comma}\n", text(op)?, text(points)?));
        }
        let comma = if index + 1 == all.len() { "" } else { "," };
        out.push_str(&format!("  }}\n }}{comma}\n"));
    }
    out.push_str("]\n");
    std::fs::write(path, out).context(|| format!("cannot write {}", path.display()))
}

fn text(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).context(|| "cannot write JSON")
}

/// The points in what the guest has printed.
fn parse(lines: &str, curves: &mut BTreeMap<String, Vec<Point>>) -> Result<()> {
    for line in lines.lines().filter(|line| line.starts_with('{')) {
        let value: serde_json::Value = serde_json::from_str(line)
            .context(|| format!("what `bench` printed is not JSON: {line}"))?;
        let number = |key: &str| value[key].as_u64();
        let first = |keys: [&str; 3]| keys.into_iter().find_map(number);
        let (Some(op), Some(at), Some(figure)) = (
            value["op"].as_str(),
            first(["threads", "at", "at"]),
            first(["ops_per_s", "ns", "bytes"]),
        ) else {
            return Err(Failure::setup(format!("not measured: {line}")));
        };
        let locks = match (number("spun"), number("waited"), number("ops")) {
            (Some(spun), Some(waited), Some(ops)) => {
                Some((spun + waited).saturating_mul(1_000_000) / ops.max(1))
            }
            _ => None,
        };
        curves.entry(op.into()).or_default().push(Point {
            at,
            value: figure,
            locks,
        });
    }
    Ok(())
}

fn measure(workspace: &Workspace, arch: Arch, yes: bool) -> Result<Curves> {
    let guest = Guest::new(workspace, arch, yes)?;
    let mut curves = BTreeMap::new();
    let mut take = |options: &[&str], file: &Path, size: &str, append: &str, commands: &str| {
        let output = guest.start(options, file, size, append, commands);
        let _ = std::fs::remove_file(file);
        let output = output?;
        succeeded(&output)?;
        parse(&output.stdout, &mut curves)
    };
    let threads = ["--smp", "4", "--memory", "1G"];
    take(&threads, &guest.nvdimm(), "1G", FORMAT, "bench scale")?;
    take(COUNTED, &guest.nvdimm(), MANY, FORMAT, "bench names")?;
    for size in SIZES {
        let Some(file) = sparse(&guest.nvdimm(), size) else {
            eprintln!(
                "quire: no file of {} can be made here: left out",
                bytes(size)
            );
            continue;
        };
        let command = "bench -d /big size pmem0";
        take(COUNTED, &file, &size.to_string(), "", command)?;
    }
    let mut versions = versions(workspace, arch);
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    versions.insert("cores of the host".into(), cores.to_string());
    Ok(Curves {
        arch: arch.name().into(),
        date: today(),
        versions,
        curves,
    })
}

/// A sparse file of that size, where one can be: a file system on a disk may
/// end before, one in memory does not.
fn sparse(preferred: &Path, size: u64) -> Option<PathBuf> {
    let name = preferred.file_name()?;
    let places = [preferred.to_path_buf(), Path::new(SHM).join(name)];
    places.into_iter().find(|path| {
        let made = std::fs::File::create(path).and_then(|file| file.set_len(size));
        if made.is_err() {
            let _ = std::fs::remove_file(path);
        }
        made.is_ok()
    })
}

/// Bytes in the largest unit that they are a whole number of.
fn bytes(n: u64) -> String {
    let units = [(TIB, "T"), (GIB, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let unit = units
        .iter()
        .find(|(unit, _)| n >= *unit && n.is_multiple_of(*unit));
    unit.map_or(n.to_string(), |(unit, name)| format!("{}{name}", n / unit))
}

/// What belongs in one table and one picture.
struct Group {
    title: &'static str,
    about: &'static str,
    takes: fn(&str) -> bool,
    /// What stands across, and how it is written.
    across: &'static str,
    label: fn(u64) -> String,
    up: &'static str,
}

const GROUPS: &[Group] = &[
    Group {
        title: "Threads",
        about: "Operations in a second of all threads together, and in brackets how many locks \
                had to be waited for in a million operations. Every CPU of the guest is a thread \
                of the host, so with fewer cores than threads the first cannot grow further; and \
                QEMU takes every exception of the guest under one lock of its own, so faults do \
                not scale in it. The second is the kernel's own: where it is 0, the threads met \
                no lock of each other. The best of three rounds. The picture is relative to one \
                thread.",
        takes: |op| op.starts_with("scale_"),
        across: "threads",
        label: |at| at.to_string(),
        up: "times one thread",
    },
    Group {
        title: "Size of the device: steps",
        about: "Instructions, counted. `first_write` makes a file of 4 KiB and syncs it: the \
                first allocation.",
        takes: |op| op.starts_with("size_") && op != "size_memory",
        across: "size of the device",
        label: bytes,
        up: "instructions",
    },
    Group {
        title: "Size of the device: memory",
        about: "Bytes of RAM taken from before the mount to after the first write.",
        takes: |op| op == "size_memory",
        across: "size of the device",
        label: bytes,
        up: "bytes",
    },
    Group {
        title: "Names in a directory",
        about: "Instructions for each name, counted; means. Names are looked up from the root. \
                Made are the last thousand, looked up and removed a thousand of all.",
        takes: |op| op.starts_with("names_"),
        across: "names",
        label: grouped,
        up: "instructions for each",
    },
];

impl Group {
    fn of<'a>(&self, run: &'a Curves) -> Vec<(&'a str, &'a [Point])> {
        let ops = run.curves.iter().filter(|(op, _)| (self.takes)(op));
        ops.map(|(op, points)| (op.as_str(), points.as_slice()))
            .collect()
    }

    fn threads(&self) -> bool {
        self.across == "threads"
    }

    /// The table's rows, the head first.
    fn rows(&self, run: &Curves) -> Vec<Vec<String>> {
        let curves = self.of(run);
        let mut across: Vec<u64> = curves
            .iter()
            .flat_map(|(_, points)| points.iter().map(|point| point.at))
            .collect();
        across.sort_unstable();
        across.dedup();
        let mut rows = vec![vec![self.across.to_string()]];
        rows[0].extend(across.iter().map(|at| (self.label)(*at)));
        for (op, points) in curves {
            let cell = |at: &u64| match points.iter().find(|point| point.at == *at) {
                None => "–".to_string(),
                Some(Point { value, locks, .. }) => match locks {
                    Some(locks) => format!("{} ({})", grouped(*value), grouped(*locks)),
                    None => grouped(*value),
                },
            };
            let mut row = vec![op.to_string()];
            row.extend(across.iter().map(cell));
            rows.push(row);
        }
        rows
    }

    fn chart(&self, run: &Curves) -> Chart {
        let series = self.of(run).into_iter().map(|(op, points)| {
            let one = points.first().map_or(1, |point| point.value.max(1)) as f64;
            let up = |value: u64| match self.threads() {
                true => value as f64 / one,
                false => value as f64,
            };
            Series {
                name: op.to_string(),
                points: points.iter().map(|p| (p.at, up(p.value))).collect(),
            }
        });
        Chart {
            title: format!("{}, {}", self.title, run.arch),
            across: self.across.into(),
            up: self.up.into(),
            decades: !self.threads(),
            label: self.label,
            series: series.collect(),
        }
    }
}

/// All tables for a terminal.
fn tables(all: &[Curves]) -> String {
    let mut out = String::new();
    for run in all {
        for group in GROUPS {
            let rows = group.rows(run);
            if rows.len() < 2 {
                continue;
            }
            out.push_str(&format!("{}, {}\n", group.title, run.arch));
            let width = |column: usize| {
                let cells = rows.iter().map(|row| row[column].chars().count());
                cells.max().unwrap_or(0)
            };
            let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
            for row in &rows {
                out.push_str(&format!("{:<1$}", row[0], widths[0]));
                for (cell, width) in row.iter().zip(&widths).skip(1) {
                    out.push_str(&format!("  {cell:>width$}"));
                }
                out.push('\n');
            }
            out.push('\n');
        }
    }
    out
}

fn about(run: &Curves) -> String {
    let versions = run
        .versions
        .iter()
        .map(|(key, value)| format!("{key} {value}"));
    let versions: Vec<String> = versions.collect();
    format!("{}, {}: {}", run.arch, run.date, versions.join("; "))
}

/// The book's page.
fn page(all: &[Curves]) -> String {
    let mut out = String::from(
        "# How it grows\n\nThis page is made by `cargo run -- bench --scale --record`; \
         [Measuring](bench.md) says how.\n\n",
    );
    for run in all {
        out.push_str(&format!("- {}\n", about(run)));
    }
    for group in GROUPS {
        out.push_str(&format!("\n## {}\n\n{}\n", group.title, group.about));
        for run in all {
            let rows = group.rows(run);
            if rows.len() < 2 {
                continue;
            }
            out.push_str(&format!("\nOn {}:\n\n", run.arch));
            for (index, row) in rows.iter().enumerate() {
                out.push_str(&format!("| {} |\n", row.join(" | ")));
                if index == 0 {
                    out.push_str(&format!("|---|{}\n", "---:|".repeat(row.len() - 1)));
                }
            }
            out.push_str(&format!("\n{}", group.chart(run).svg()));
        }
    }
    out
}

/// The same as one page by itself.
fn html(all: &[Curves]) -> String {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <title>How Quire grows</title>\n<style>body{font:14px sans-serif;margin:2em}\
         td,th{padding:2px 10px;text-align:right;border-top:1px solid #ddd}\
         td:first-child,th:first-child{text-align:left}table{border-collapse:collapse}\
         </style></head><body>\n<h1>How Quire grows</h1>\n",
    );
    for run in all {
        out.push_str(&format!("<p>{}</p>\n", about(run)));
    }
    for group in GROUPS {
        let text = group.about.replace('`', "");
        out.push_str(&format!("<h2>{}</h2>\n<p>{text}</p>\n", group.title));
        for run in all {
            let rows = group.rows(run);
            if rows.len() < 2 {
                continue;
            }
            out.push_str(&group.chart(run).svg());
            out.push_str("<table>\n");
            for (index, row) in rows.iter().enumerate() {
                let tag = if index == 0 { "th" } else { "td" };
                let cells = row.iter().map(|cell| format!("<{tag}>{cell}</{tag}>"));
                out.push_str(&format!("<tr>{}</tr>\n", cells.collect::<String>()));
            }
            out.push_str("</table>\n");
        }
    }
    out + "</body></html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
{\"op\":\"scale_stat\",\"threads\":1,\"cpus\":4,\"ops\":1000,\"ns\":9,\"ops_per_s\":500,\"spun\":0,\"waited\":0}
{\"op\":\"scale_stat\",\"threads\":2,\"cpus\":4,\"ops\":2000,\"ns\":9,\"ops_per_s\":1000,\"spun\":1,\"waited\":3}
{\"op\":\"size_mount\",\"at\":1073741824,\"ns\":7000}
{\"op\":\"size_memory\",\"at\":1073741824,\"bytes\":4096}
";

    fn curves() -> Curves {
        let mut curves = BTreeMap::new();
        parse(PRINTED, &mut curves).expect("parses");
        Curves {
            arch: "x86_64".into(),
            date: "2026-01-31".into(),
            versions: BTreeMap::from([("qemu".into(), "10".into())]),
            curves,
        }
    }

    #[test]
    fn printed_lines_become_points() {
        let curves = curves();
        let point = curves.curves["scale_stat"][1];
        assert_eq!(
            (point.at, point.value, point.locks),
            (2, 1_000, Some(2_000))
        );
        let point = curves.curves["size_memory"][0];
        assert_eq!((point.at, point.value, point.locks), (GIB, 4_096, None));
        let error = "{\"op\":\"a\",\"threads\":1,\"error\":\"no space\"}";
        assert!(parse(error, &mut BTreeMap::new()).is_err());
    }

    #[test]
    fn tables_and_pictures_show_them() {
        let all = [curves()];
        let text = tables(&all);
        assert!(
            text.contains("1,000 (2,000)") && text.contains("1G"),
            "{text}"
        );
        let page = page(&all);
        assert!(page.contains("| size_mount | 7,000 |") && page.contains("<svg"));
        // Two threads do twice what one does.
        let chart = GROUPS[0].chart(&all[0]);
        assert_eq!(chart.series[0].points, [(1, 1.0), (2, 2.0)]);
        assert!(html(&all).contains("<td>7,000</td>"));
    }

    #[test]
    fn a_file_of_curves_reads_back() {
        let file = std::env::temp_dir().join(format!("quire-curves-{}", std::process::id()));
        let all = vec![curves(), curves()];
        save(&file, &all).expect("written");
        assert_eq!(load(&file).expect("read"), all);
        std::fs::remove_file(&file).expect("removed");
    }

    #[test]
    fn the_page_in_the_book_is_made_of_the_recorded_curves() {
        let workspace = Workspace::locate();
        let all = load(&record_file(&workspace)).expect("a record");
        let kept = std::fs::read_to_string(page_file(&workspace)).expect("the page");
        assert_eq!(
            kept,
            page(&all),
            "run `cargo run -- bench --scale --record`"
        );
    }
}
